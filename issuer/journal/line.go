package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// maxLine bounds a line, in bytes with its newline.
const maxLine = 1 << 20

// A Hash is a SHA-256. In text it is lower-case hex.
type Hash [sha256.Size]byte

// String returns 64 hexadecimal digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText is for JSON.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads 64 hexadecimal digits.
func (h *Hash) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(h)) {
		return fmt.Errorf("%q is not a SHA-256 in hex", text)
	}
	_, err := hex.Decode(h[:], text)
	return err
}

// A Head names a line, and by its hash all lines before it.
type Head struct {
	Seq    uint64 `json:"seq"` // from 1; 0 for the head of an empty journal
	SHA256 Hash   `json:"sha256"`
}

// String is the form in which witnesses keep it: SEQ:SHA256.
func (h Head) String() string { return fmt.Sprintf("%d:%s", h.Seq, h.SHA256) }

// ParseHead reads what [Head.String] writes.
func ParseHead(text string) (Head, error) {
	var h Head
	seq, sum, found := bytes.Cut([]byte(text), []byte(":"))
	var err error
	if h.Seq, err = strconv.ParseUint(string(seq), 10, 64); err == nil && found {
		err = h.SHA256.UnmarshalText(sum)
	}
	if err != nil || !found {
		return Head{}, fmt.Errorf("%q is not the head of a journal, which is a number, a colon "+
			"and a SHA-256 in hex", text)
	}
	return h, nil
}

// A Line is one line of the journal.
type Line struct {
	Seq  uint64    // from 1, without a gap
	Time time.Time // UTC, of the node's clock, which may step back
	Prev Hash      // SHA-256 of the line before with its newline; zero in the first line
	Entry
}

// timeLayout is RFC 3339 with nanoseconds, always nine digits of them.
const timeLayout = "2006-01-02T15:04:05.000000000Z"

// encode returns the line with its newline: the same line always in the same bytes.
func (l Line) encode() ([]byte, error) {
	body, err := json.Marshal(l.Entry)
	if err != nil {
		return nil, err
	}
	return l.appendTo(nil, body), nil
}

// appendTo appends the line with its newline to other lines. body is the JSON of the entry.
func (l Line) appendTo(lines, body []byte) []byte {
	lines = l.begin(lines)
	lines = append(lines, body[1:]...) // no entry is empty
	return append(lines, '\n')
}

// begin appends the fields that all lines have.
func (l Line) begin(lines []byte) []byte {
	return fmt.Appendf(lines, `{"seq":%d,"time":"%s","prev":"%s","kind":"%s",`, l.Seq,
		l.Time.UTC().Format(timeLayout), l.Prev, l.Kind())
}

// parseLine reads one line with its newline. It takes exactly the bytes that encode makes.
func parseLine(raw []byte) (Line, error) {
	l, body, err := parseBegin(raw)
	if err != nil {
		return Line{}, err
	}
	// The fields that all lines have are known: what remains is the entry, less its opening brace.
	if l.Entry, err = decodeEntry(string(l.Entry.Kind()),
		append([]byte{'{'}, body...)); err != nil {
		return Line{}, err
	}
	again, err := l.encode()
	if err != nil {
		return Line{}, err
	}
	if !bytes.Equal(again, raw) {
		return Line{}, errors.New("it is not in the form that hsm-signer writes: a field is " +
			"unknown, missing, repeated or misplaced")
	}
	return l, l.check()
}

// parseBegin reads the fields that all lines have and returns what follows them.
func parseBegin(raw []byte) (l Line, rest []byte, err error) {
	var fields [4]string
	rest = raw
	for i, f := range []struct{ before, after string }{{`{"seq":`, `,`}, {`"time":"`, `",`},
		{`"prev":"`, `",`}, {`"kind":"`, `",`}} {
		value, isField := bytes.CutPrefix(rest, []byte(f.before))
		value, remaining, ends := bytes.Cut(value, []byte(f.after))
		if !isField || !ends || len(value) > 64 {
			return l, nil, fmt.Errorf("it does not begin as a line of the journal does: %.60q", raw)
		}
		fields[i], rest = string(value), remaining
	}
	if l.Seq, err = strconv.ParseUint(fields[0], 10, 64); err != nil {
		return l, nil, fmt.Errorf("%q is not a sequence number", fields[0])
	}
	if l.Time, err = time.Parse(timeLayout, fields[1]); err != nil {
		return l, nil, fmt.Errorf("%q is not a time: %w", fields[1], err)
	}
	if err = l.Prev.UnmarshalText([]byte(fields[2])); err != nil {
		return l, nil, err
	}
	l.Entry = kindOnly(fields[3])
	return l, rest, nil
}

// kindOnly is an entry of which only the kind was read yet.
type kindOnly string

func (k kindOnly) Kind() Kind   { return Kind(k) }
func (k kindOnly) check() error { return nil }
