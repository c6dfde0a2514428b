// Package pkcs11uri reads and writes PKCS#11 URIs (RFC 7512).
//
// It is strict: what the RFC does not define is an error. No error and no printed URI shows a PIN.
package pkcs11uri

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A URI names a token and an object in it, and how to reach them. An empty or nil field is not in
// the URI.
type URI struct {
	Token, Manufacturer, Serial, Model      string // of the token
	SlotID                                  *uint
	SlotDescription, SlotManufacturer       string
	LibraryManufacturer, LibraryDescription string
	LibraryVersion                          *Version
	Object                                  string // CKA_LABEL
	ID                                      []byte // CKA_ID
	Type                                    string // one of types

	PINSource  string // path of a file
	PINValue   PIN
	ModuleName string // without path or ending
	ModulePath string
}

// A Version is a CK_VERSION.
type Version struct{ Major, Minor uint8 }

// A PIN is a user PIN. It does not show itself when printed.
type PIN string

// String hides the PIN.
func (PIN) String() string { return "(PIN)" }

// GoString hides the PIN.
func (PIN) GoString() string { return "(PIN)" }

// MarshalText hides the PIN.
func (PIN) MarshalText() ([]byte, error) { return []byte("(PIN)"), nil }

const (
	scheme = "pkcs11:"
	// longest is more than all attributes at their longest, percent-encoded.
	longest = 32 << 10
	// longestObject bounds what PKCS#11 does not: labels, ids, paths.
	longestObject = 1024
)

// types are the values of "type" (RFC 7512, section 2.3).
var types = []string{"private", "public", "cert", "secret-key", "data"}

// An attribute is one that RFC 7512 defines.
type attribute struct {
	name  string
	query bool // it stands after the "?"
	most  int  // bytes; of texts of a fixed length, that length (PKCS#11 v2.40, section 3.2)
	read  func(u *URI, value string) error
	write func(u *URI) string // percent-encoded; empty: it is not in the URI
	fixed bool                // a text of a fixed length, which the module may have padded
}

// attributes are in the order in which they are printed, which is p11tool's.
var attributes = []attribute{
	fixedText("library-description", 32, func(u *URI) *string { return &u.LibraryDescription }),
	fixedText("library-manufacturer", 32, func(u *URI) *string { return &u.LibraryManufacturer }),
	{"library-version", false, 7, readVersion, writeVersion, false},
	fixedText("slot-description", 64, func(u *URI) *string { return &u.SlotDescription }),
	fixedText("slot-manufacturer", 32, func(u *URI) *string { return &u.SlotManufacturer }),
	{"slot-id", false, 20, readSlot, writeSlot, false},
	fixedText("model", 16, func(u *URI) *string { return &u.Model }),
	fixedText("manufacturer", 32, func(u *URI) *string { return &u.Manufacturer }),
	fixedText("serial", 16, func(u *URI) *string { return &u.Serial }),
	fixedText("token", 32, func(u *URI) *string { return &u.Token }),
	{"id", false, longestObject, func(u *URI, v string) error { u.ID = []byte(v); return nil },
		writeID, false},
	text("object", longestObject, func(u *URI) *string { return &u.Object }),
	{"type", false, longestObject, readType, func(u *URI) string { return u.Type }, false},

	{"module-name", true, longestObject, readModuleName,
		func(u *URI) string { return escape(u.ModuleName) }, false},
	queryText("module-path", func(u *URI) *string { return &u.ModulePath }),
	{"pin-source", true, longestObject, readPINSource,
		func(u *URI) string { return escape(u.PINSource) }, false},
	queryText("pin-value", func(u *URI) *string { return (*string)(&u.PINValue) }),
}

// fixedText is a text of a fixed length. p11tool writes the NULs that some modules pad it with
// (%00).
func fixedText(name string, most int, at func(u *URI) *string) attribute {
	a := text(name, most, at)
	a.fixed = true
	return a
}

// text is a text of the path that is kept as it is.
func text(name string, most int, at func(u *URI) *string) attribute {
	return attribute{
		name: name, most: most,
		read:  func(u *URI, value string) error { *at(u) = value; return nil },
		write: func(u *URI) string { return escape(*at(u)) },
	}
}

// queryText is a text of the query that is kept as it is.
func queryText(name string, at func(u *URI) *string) attribute {
	a := text(name, longestObject, at)
	a.query = true
	return a
}

// Parse reads a PKCS#11 URI. An empty value is an error too: it would mean an empty label, which is
// hardly meant. An error names attributes and never shows a value, which could be the PIN.
func Parse(text string) (URI, error) {
	switch {
	case len(text) > longest:
		return URI{}, fmt.Errorf("the PKCS#11 URI has %d bytes; more than %d are not read",
			len(text), longest)
	case len(text) < len(scheme) || !strings.EqualFold(text[:len(scheme)], scheme):
		return URI{}, errors.New(`the PKCS#11 URI does not begin with "pkcs11:"`)
	}
	path, query, _ := strings.Cut(text[len(scheme):], "?")
	p := parser{seen: map[string]bool{},
		mayHoldPIN: strings.Contains(strings.ToLower(text), "pin-value")}
	if err := p.parse("path", path, ";"); err != nil {
		return URI{}, fmt.Errorf("the PKCS#11 URI: %w", err)
	}
	if err := p.parse("query", query, "&"); err != nil {
		return URI{}, fmt.Errorf("the PKCS#11 URI: %w", err)
	}
	if p.uri.PINSource != "" && p.uri.PINValue != "" { // RFC 7512, section 2.4
		return URI{}, errors.New("the PKCS#11 URI has both pin-source and pin-value: leave " +
			"pin-value out")
	}
	return p.uri, nil
}

type parser struct {
	uri  URI
	seen map[string]bool
	// mayHoldPIN: an unescaped separator in a PIN would turn a part of it into the name of an
	// attribute, so unknown names are not shown.
	mayHoldPIN bool
}

// parse reads the attributes of the path or of the query.
func (p *parser) parse(part, text, separator string) error {
	if text == "" {
		return nil
	}
	for i, item := range strings.Split(text, separator) {
		name, value, found := strings.Cut(item, "=")
		switch {
		case item == "":
			return fmt.Errorf("attribute %d of its %s is empty: there is one %q too many", i+1,
				part, separator)
		case !found:
			return fmt.Errorf("attribute %d of its %s has no value: write NAME=VALUE, and %q in "+
				"a value as %%%X",
				i+1, part, separator, separator)
		}
		known, err := p.find(part, name)
		if err != nil {
			return fmt.Errorf("attribute %d of its %s %w", i+1, part, err)
		}
		if err := known.parse(&p.uri, value); err != nil {
			return fmt.Errorf("%s %w", name, err)
		}
	}
	return nil
}

// find returns the attribute with the name. The error continues "attribute 2 of its path".
func (p *parser) find(part, name string) (attribute, error) {
	shown := " (" + strconv.Quote(name) + ")"
	if p.mayHoldPIN {
		shown = ""
	}
	i := slices.IndexFunc(attributes, func(a attribute) bool { return a.name == name })
	switch {
	case i < 0 && strings.HasPrefix(name, "x-"):
		return attribute{}, fmt.Errorf("is a vendor's own%s, which hsm-signer does not support: "+
			"leave it out", shown)
	case i < 0:
		return attribute{}, fmt.Errorf("is not one of RFC 7512%s: correct its name (they are in "+
			"lower case) or leave it out", shown)
	case attributes[i].query != (part == "query"):
		return attribute{}, fmt.Errorf("is %s, which does not belong there: put module-name, "+
			"module-path, pin-source and pin-value after \"?\", separated by \"&\", and all "+
			"others before it, separated by \";\"", name)
	case p.seen[name]:
		return attribute{}, fmt.Errorf("is a second %s: remove one", name)
	}
	p.seen[name] = true
	return attributes[i], nil
}

// parse reads the value. The error continues the attribute's name.
func (a attribute) parse(u *URI, encoded string) error {
	value, err := a.decode(encoded)
	if a.fixed {
		value = trimPadding(value)
	}
	switch {
	case err != nil:
		return err
	case value == "":
		return errors.New("is empty: leave it out")
	case len(value) > a.most:
		return fmt.Errorf("has %d bytes; more than %d cannot be right", len(value), a.most)
	}
	if a.name != "id" { // raw bytes
		if err := checkText(value); err != nil {
			return err
		}
	}
	return a.read(u, value)
}

// What need not be percent-encoded: unreserved characters (RFC 3986, section 2.3), and more in the
// path and in the query (RFC 7512, section 2.3). A plus is a plus.
const (
	unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	inPath     = unreserved + ":[]@!$'()*+,=&"
	inQuery    = unreserved + ":[]@!$'()*+,=/?|"
)

// decode removes the percent-encoding.
func (a attribute) decode(encoded string) (string, error) {
	allowed := inPath
	if a.query {
		allowed = inQuery
	}
	var value []byte
	for i := 0; i < len(encoded); i++ {
		switch c := encoded[i]; {
		case c == '%':
			if i+2 >= len(encoded) {
				return "", errors.New(`ends in the middle of a percent-encoding: write "%" as %25`)
			}
			b, err := hex.DecodeString(encoded[i+1 : i+3])
			if err != nil {
				return "", errors.New(`has a "%" without two hexadecimal digits: write "%" as %25`)
			}
			value = append(value, b[0])
			i += 2
		case strings.IndexByte(allowed, c) >= 0:
			value = append(value, c)
		default:
			return "", fmt.Errorf("has a character that must be percent-encoded, such as a "+
				"space (%%20), \"/\" in the path (%%2F), \";\" (%%3B) or \"#\" (%%23), at "+
				"position %d", i+1)
		}
	}
	return string(value), nil
}

// trimPadding removes the padding of a text of a fixed length: blanks, or what follows a NUL.
func trimPadding(s string) string {
	text, _, _ := strings.Cut(s, "\x00")
	return strings.TrimRight(text, " ")
}

// checkText requires UTF-8 (RFC 7512, section 2.3) and no control characters.
func checkText(value string) error {
	switch {
	case !utf8.ValidString(value):
		return errors.New("is not UTF-8")
	case strings.ContainsFunc(value, unicode.IsControl):
		return errors.New("has control characters in it")
	}
	return nil
}

// decimal is 1*DIGIT; strconv alone would take a sign too.
var decimal = regexp.MustCompile(`^[0-9]+$`)

func readSlot(u *URI, value string) error {
	n, err := strconv.ParseUint(value, 10, strconv.IntSize)
	if err != nil || !decimal.MatchString(value) {
		return errors.New("is not a slot id, which is a number in decimal")
	}
	slot := uint(n)
	u.SlotID = &slot
	return nil
}

func writeSlot(u *URI) string {
	if u.SlotID == nil {
		return ""
	}
	return strconv.FormatUint(uint64(*u.SlotID), 10)
}

// readVersion reads 1*DIGIT [ "." 1*DIGIT ]; without a minor version it is 0.
func readVersion(u *URI, value string) error {
	major, minor, dotted := strings.Cut(value, ".")
	if !dotted {
		minor = "0"
	}
	a, errA := strconv.ParseUint(major, 10, 8)
	b, errB := strconv.ParseUint(minor, 10, 8)
	if errA != nil || errB != nil || !decimal.MatchString(major) || !decimal.MatchString(minor) {
		return errors.New("is not a version such as 2.40")
	}
	u.LibraryVersion = &Version{uint8(a), uint8(b)}
	return nil
}

func writeVersion(u *URI) string {
	if u.LibraryVersion == nil {
		return ""
	}
	return fmt.Sprintf("%d.%d", u.LibraryVersion.Major, u.LibraryVersion.Minor)
}

func readType(u *URI, value string) error {
	if !slices.Contains(types, value) {
		return fmt.Errorf("is not one of %s", strings.Join(types, ", "))
	}
	u.Type = value
	return nil
}

func readModuleName(u *URI, value string) error {
	if strings.Contains(value, "/") {
		return errors.New("has a path in it: use module-path")
	}
	u.ModuleName = value
	return nil
}

// otherScheme is the beginning of a URI (RFC 3986, section 3.1).
var otherScheme = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*:`)

// readPINSource takes a path, or a file URI (RFC 8089) of this machine. It refuses a command
// ("|…"), which RFC 7512 allows: write access to the configuration must not mean running programs.
func readPINSource(u *URI, value string) error {
	switch {
	case strings.HasPrefix(value, "|"):
		return errors.New("is a command, which is never run: name a file")
	case !otherScheme.MatchString(value):
		u.PINSource = value
		return nil
	case !strings.EqualFold(value[:min(len("file:"), len(value))], "file:"):
		return errors.New("is neither a path nor a file: URI")
	}
	file, err := url.Parse(value)
	if err != nil || file.Opaque != "" || file.Host != "" && file.Host != "localhost" ||
		file.User != nil ||
		file.RawQuery != "" || file.ForceQuery || file.Fragment != "" ||
		!strings.HasPrefix(file.Path, "/") {
		return errors.New("is not a file: URI of this machine, such as file:/etc/hsm-signer/pin")
	}
	u.PINSource = file.Path
	return checkText(file.Path)
}

// CheckKey returns nil if the URI can name a private key.
func (u URI) CheckKey() error {
	if u.Type != "" && u.Type != "private" {
		return fmt.Errorf("the PKCS#11 URI names an object of the type %s; the CA's key has the "+
			"type private: correct type=, or leave it out", u.Type)
	}
	return nil
}

// String returns the URI without the value of the PIN.
func (u URI) String() string {
	if u.PINValue != "" {
		u.PINValue = "not-shown"
	}
	return u.withPIN()
}

// withPIN returns the URI with everything in it.
func (u URI) withPIN() string {
	var path, query []string
	for _, a := range attributes {
		value := a.write(&u)
		switch {
		case value == "":
		case a.query:
			query = append(query, a.name+"="+value)
		default:
			path = append(path, a.name+"="+value)
		}
	}
	text := scheme + strings.Join(path, ";")
	if len(query) > 0 {
		text += "?" + strings.Join(query, "&")
	}
	return text
}

// escape percent-encodes all that is reserved, as p11tool does.
func escape(value string) string {
	var text strings.Builder
	for i := range len(value) {
		if strings.IndexByte(unreserved, value[i]) >= 0 {
			text.WriteByte(value[i])
		} else {
			fmt.Fprintf(&text, "%%%02X", value[i])
		}
	}
	return text.String()
}

// writeID encodes each byte, as p11tool does.
func writeID(u *URI) string {
	var text strings.Builder
	for _, b := range u.ID {
		fmt.Fprintf(&text, "%%%02X", b)
	}
	return text.String()
}
