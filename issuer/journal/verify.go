package journal

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// VerifyOptions say what a journal is verified against.
type VerifyOptions struct {
	// CAs are the certificates of the CA: the present one, the next one, and former ones. Each
	// certificate in the journal must be signed by one of them, or by a [RotatedCA].
	CAs []*x509.Certificate
	// Witnessed are heads that someone else has kept: each must be in the chain.
	Witnessed []Head
	// CheckpointKey is the key that checkpoints must be signed with; nil: their signatures are not
	// verified.
	CheckpointKey crypto.PublicKey
	// Progress, where it is not nil, is called periodically with how many bytes are read, and how
	// many there were at the beginning.
	Progress func(read, total int64)
}

// A Summary is what a journal holds.
type Summary struct {
	Journal ID     `json:"journal"` // empty when there is no line
	Head    Head   `json:"head"`
	Files   int    `json:"files"`
	Counts  Counts `json:"lines"`
	// Unfinished are the requests that are neither published nor orphaned.
	Unfinished int `json:"unfinished"`
	// RotatedCAs are known from the journal alone: their certificates are protected by the chain.
	RotatedCAs []RotatedCA `json:"rotatedCAs,omitempty"`
	// Checkpointed is the last line that a checkpoint vouches for whose signature was verified;
	// zero when there is none.
	Checkpointed Head `json:"checkpointed,omitzero"`
	// VouchedAt is the time of the last line that such a checkpoint or a witness vouches for; zero
	// if there is none. Unvouched is the number of lines after it, without the checkpoints
	// themselves.
	VouchedAt time.Time `json:"vouchedAt,omitzero"`
	Unvouched uint64    `json:"unvouched"`
	// Torn is the number of bytes behind the last whole line: a line that is being written, or what
	// a power cut has left; [Open] moves them away.
	Torn int `json:"torn"`
}

// Verify reads a whole journal and returns nil if every line is right: the chain and the sequence
// without a gap, the names and the serial number of each intent those of its to-be-signed
// certificate, each certificate made for its intent, of the same bytes, and signed by the CA; no
// request and no serial number with two certificates; each head that was witnessed in its place.
// The first line that is wrong is a [*Fault]; the summary is then of what comes before. It takes no
// lock: a journal can be verified while it is written. Memory: about 200 bytes a certificate.
func Verify(dir string, o VerifyOptions) (Summary, error) {
	v := &verifier{options: o, ledger: newLedger(), serials: map[[8]byte]bool{},
		witnessed: map[uint64]Hash{}}
	for _, head := range o.Witnessed {
		if sum, twice := v.witnessed[head.Seq]; twice && sum != head.SHA256 {
			return Summary{},
				fmt.Errorf(
					"two witnessed heads of line %d differ: one of them is of another journal",
					head.Seq)
		}
		v.witnessed[head.Seq] = head.SHA256
	}
	v.rotated = rotatedCAs(o.CAs, rotations(dir))
	v.total = size(dir)
	e, err := replay(dir, reader{line: v.line, fits: v.ledger.fits, progress: v.progress})
	s := Summary{Checkpointed: v.checkpointed, VouchedAt: v.vouchedAt, Unvouched: v.unvouched,
		Journal: v.ledger.id, Counts: v.ledger.counts, Unfinished: len(v.ledger.open), Head: v.head,
		RotatedCAs: v.rotated}
	if err != nil {
		return s, err
	}
	s.Files, s.Torn = int(e.number), len(e.torn)
	if e.chain.head.Seq == 0 {
		return s, &Fault{File: filepath.Base(filePath("", 1)),
			Err: errors.New("there is no line: this is no journal")}
	}
	return s, v.missing(e)
}

// size is the bytes of all files, as far as it can be told.
func size(dir string) (total int64) {
	count, _ := countFiles(dir) // what is wrong is found when they are read
	for number := uint32(1); number <= count; number++ {
		if info, err := os.Stat(filePath(dir, number)); err == nil {
			total += info.Size()
		}
	}
	return total
}

type verifier struct {
	options   VerifyOptions
	ledger    *ledger
	serials   map[[8]byte]bool
	witnessed map[uint64]Hash // that were not met yet
	head      Head
	rotated   []RotatedCA

	checkpointed Head
	vouchedAt    time.Time
	vouchedSeq   uint64
	unvouched    uint64
	// of the recent lines, by the sequence number's remainder
	times [len(chain{}.recent)]time.Time

	read  int64
	told  int64 // bytes of which progress was told
	total int64
}

// progressStep is the number of bytes between two tellings of progress.
const progressStep = 1 << 20

func (v *verifier) progress(bytes int64) {
	if v.read += bytes; v.options.Progress != nil && v.read-v.told >= progressStep {
		v.told = v.read
		v.options.Progress(v.read, v.total)
	}
}

// line verifies one line, of which the chain was verified already.
func (v *verifier) line(l Line, at place, sum Hash) error {
	if want, is := v.witnessed[l.Seq]; is && want != sum {
		return fmt.Errorf("the hash of this line is %s, but a witness has %s: the line, or one "+
			"before, was changed", sum, want)
	}
	v.times[l.Seq%uint64(len(v.times))] = l.Time
	var err error
	switch e := l.Entry.(type) {
	case Intent:
		if err = v.serial(e); err == nil {
			err = checkNames(e)
		}
	case Signed:
		err = v.signature(e.Certificate)
	case Checkpoint:
		err = v.checkpoint(e, l.Seq)
	}
	if err == nil {
		err = v.ledger.apply(l, at, sum)
	}
	if err == nil {
		v.count(l, sum)
	}
	return err
}

// count counts a valid line, and records whether anything vouches for it.
func (v *verifier) count(l Line, sum Hash) {
	v.head = Head{l.Seq, sum}
	if _, is := l.Entry.(Checkpoint); !is || v.options.CheckpointKey == nil {
		v.unvouched++
	}
	if _, is := v.witnessed[l.Seq]; is {
		delete(v.witnessed, l.Seq)
		v.vouch(l.Seq, l.Seq)
	}
}

// vouch records that something vouches for all lines up to seq, which is at most the line at.
func (v *verifier) vouch(seq, at uint64) {
	if seq > v.vouchedSeq {
		v.vouchedSeq, v.vouchedAt = seq, v.times[seq%uint64(len(v.times))]
		v.unvouched = at - seq
	}
}

func (v *verifier) serial(e Intent) error {
	if v.serials[short(e.Serial)] {
		return fmt.Errorf("the serial number %s is there twice", e.Serial)
	}
	v.serials[short(e.Serial)] = true
	return nil
}

// signature returns nil if a CA has signed the certificate, and counts it if that is a rotated one.
func (v *verifier) signature(der []byte) error {
	_, err := checkSignature(der, v.options.CAs)
	for n := range v.rotated {
		ca := &v.rotated[n]
		if err == nil {
			break
		}
		if _, other := checkSignature(der, []*x509.Certificate{ca.cert}); other == nil {
			ca.Certificates++
			err = nil
		}
	}
	return err
}

// checkpoint verifies the signature of the checkpoint in the line at.
func (v *verifier) checkpoint(e Checkpoint, at uint64) error {
	if v.options.CheckpointKey == nil {
		return nil
	}
	signed := CheckpointText(v.ledger.id, Head{e.HeadSeq, e.HeadSHA256})
	holder := x509.Certificate{PublicKey: v.options.CheckpointKey}
	if err := holder.CheckSignature(algorithmNamed(e.Algorithm), signed, e.Signature); err != nil {
		return fmt.Errorf("the checkpoint's signature is not by the key: %w", err)
	}
	if e.HeadSeq > v.checkpointed.Seq {
		v.checkpointed = Head{e.HeadSeq, e.HeadSHA256}
	}
	v.vouch(e.HeadSeq, at-1) // the checkpoint itself needs nobody to vouch for it
	return nil
}

// missing returns nil if all that was witnessed was met.
func (v *verifier) missing(e *end) error {
	for _, head := range slices.Backward(v.options.Witnessed) {
		if _, is := v.witnessed[head.Seq]; is {
			return e.fault(fmt.Errorf("the journal ends with line %d, but a witness has seen "+
				"line %d: the end was cut off", e.chain.head.Seq, head.Seq))
		}
	}
	return nil
}

// checkSignature parses a certificate and returns nil if one of the CAs has signed it.
func checkSignature(der []byte, cas []*x509.Certificate) (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("the certificate cannot be read: %w", err)
	}
	for _, ca := range cas {
		if bytes.Equal(cert.RawIssuer, ca.RawSubject) &&
			ca.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate,
				cert.Signature) == nil {
			return cert, nil
		}
	}
	return nil, fmt.Errorf("the certificate %s, issued by %q, is not signed by the CA",
		FormatSerial(cert.SerialNumber), cert.Issuer.String())
}
