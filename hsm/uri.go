package hsm

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

// A URI names a token and an object in it, and says how to get there (RFC 7512). What is empty or nil
// is not said.
type URI struct {
	Token, Manufacturer, Serial, Model      string // of the token
	SlotID                                  *uint
	SlotDescription, SlotManufacturer       string
	LibraryManufacturer, LibraryDescription string
	LibraryVersion                          *URIVersion
	Object                                  string // CKA_LABEL
	ID                                      []byte // CKA_ID
	Type                                    string // one of uriTypes

	PINSource  string // path of a file
	PINValue   PIN
	ModuleName string // without path or ending
	ModulePath string
}

// A URIVersion is a CK_VERSION.
type URIVersion struct{ Major, Minor uint8 }

const (
	uriScheme = "pkcs11:"
	// longestURI is more than all attributes at their longest, percent-encoded.
	longestURI = 32 << 10
	// longestObject bounds what PKCS#11 does not: labels, ids, paths.
	longestObject = 1024
)

// uriTypes are the values of "type" (RFC 7512, section 2.3).
var uriTypes = []string{"private", "public", "cert", "secret-key", "data"}

// A uriAttribute is one that RFC 7512 defines.
type uriAttribute struct {
	name  string
	query bool // stands behind the "?"
	most  int  // bytes; of texts of a fixed length, that length (PKCS#11 v2.40, section 3.2)
	read  func(u *URI, value string) error
	write func(u *URI) string // percent-encoded; empty: it is not said
	fixed bool                // a text of a fixed length, which the module may have padded
}

// uriAttributes are in the order in which they are printed, which is p11tool's.
var uriAttributes = []uriAttribute{
	uriFixed("library-description", 32, func(u *URI) *string { return &u.LibraryDescription }),
	uriFixed("library-manufacturer", 32, func(u *URI) *string { return &u.LibraryManufacturer }),
	{"library-version", false, 7, readURIVersion, writeURIVersion, false},
	uriFixed("slot-description", 64, func(u *URI) *string { return &u.SlotDescription }),
	uriFixed("slot-manufacturer", 32, func(u *URI) *string { return &u.SlotManufacturer }),
	{"slot-id", false, 20, readURISlot, writeURISlot, false},
	uriFixed("model", 16, func(u *URI) *string { return &u.Model }),
	uriFixed("manufacturer", 32, func(u *URI) *string { return &u.Manufacturer }),
	uriFixed("serial", 16, func(u *URI) *string { return &u.Serial }),
	uriFixed("token", 32, func(u *URI) *string { return &u.Token }),
	{"id", false, longestObject, func(u *URI, v string) error { u.ID = []byte(v); return nil }, writeURIID, false},
	uriText("object", longestObject, func(u *URI) *string { return &u.Object }),
	{"type", false, longestObject, readURIType, func(u *URI) string { return u.Type }, false},

	{"module-name", true, longestObject, readURIModuleName, func(u *URI) string { return uriEscape(u.ModuleName) }, false},
	{"module-path", true, longestObject, func(u *URI, v string) error { u.ModulePath = v; return nil }, func(u *URI) string { return uriEscape(u.ModulePath) }, false},
	{"pin-source", true, longestObject, readURIPINSource, func(u *URI) string { return uriEscape(u.PINSource) }, false},
	{"pin-value", true, longestObject, func(u *URI, v string) error { u.PINValue = PIN(v); return nil }, func(u *URI) string { return uriEscape(string(u.PINValue)) }, false},
}

// uriFixed is a text of a fixed length. p11tool writes the NULs that some modules pad it with (%00).
func uriFixed(name string, most int, at func(u *URI) *string) uriAttribute {
	a := uriText(name, most, at)
	a.fixed = true
	return a
}

// uriText is a text that is kept as it is.
func uriText(name string, most int, at func(u *URI) *string) uriAttribute {
	return uriAttribute{
		name: name, most: most,
		read:  func(u *URI, value string) error { *at(u) = value; return nil },
		write: func(u *URI) string { return uriEscape(*at(u)) },
	}
}

// ParseURI reads a PKCS#11 URI, strictly: what RFC 7512 does not define is an error, and so is an empty
// value, which would mean an empty label and is hardly meant. An error names attributes and never shows
// a value: it could be the PIN.
func ParseURI(text string) (URI, error) {
	switch {
	case len(text) > longestURI:
		return URI{}, fmt.Errorf("the PKCS#11 URI has %d bytes; more than %d are not read", len(text), longestURI)
	case len(text) < len(uriScheme) || !strings.EqualFold(text[:len(uriScheme)], uriScheme):
		return URI{}, errors.New(`the PKCS#11 URI does not begin with "pkcs11:"`)
	}
	path, query, _ := strings.Cut(text[len(uriScheme):], "?")
	p := uriParser{seen: map[string]bool{}, mayHoldPIN: strings.Contains(strings.ToLower(text), "pin-value")}
	if err := p.parse("path", path, ";"); err != nil {
		return URI{}, fmt.Errorf("the PKCS#11 URI: %w", err)
	}
	if err := p.parse("query", query, "&"); err != nil {
		return URI{}, fmt.Errorf("the PKCS#11 URI: %w", err)
	}
	if p.uri.PINSource != "" && p.uri.PINValue != "" { // RFC 7512, section 2.4
		return URI{}, errors.New("the PKCS#11 URI has both pin-source and pin-value: leave pin-value out")
	}
	return p.uri, nil
}

type uriParser struct {
	uri  URI
	seen map[string]bool
	// mayHoldPIN: a PIN with an unescaped separator would be taken for attributes, so that not even
	// names that are not known may be shown.
	mayHoldPIN bool
}

// parse reads the attributes of the path or of the query.
func (p *uriParser) parse(part, text, separator string) error {
	if text == "" {
		return nil
	}
	for i, item := range strings.Split(text, separator) {
		name, value, found := strings.Cut(item, "=")
		switch {
		case item == "":
			return fmt.Errorf("attribute %d of its %s is empty: there is one %q too many", i+1, part, separator)
		case !found:
			return fmt.Errorf("attribute %d of its %s has no value: write NAME=VALUE, and %q in a value as %%%X", i+1, part, separator, separator)
		}
		attribute, err := p.find(part, name)
		if err != nil {
			return fmt.Errorf("attribute %d of its %s %w", i+1, part, err)
		}
		if err := attribute.parse(&p.uri, value); err != nil {
			return fmt.Errorf("%s %w", name, err)
		}
	}
	return nil
}

// find looks the attribute up; the error continues "attribute 2 of its path".
func (p *uriParser) find(part, name string) (uriAttribute, error) {
	shown := " (" + strconv.Quote(name) + ")"
	if p.mayHoldPIN {
		shown = ""
	}
	i := slices.IndexFunc(uriAttributes, func(a uriAttribute) bool { return a.name == name })
	switch {
	case i < 0 && strings.HasPrefix(name, "x-"):
		return uriAttribute{}, fmt.Errorf("is a vendor's own%s, which hsm-signer does not support: leave it out", shown)
	case i < 0:
		return uriAttribute{}, fmt.Errorf("is not one of RFC 7512%s: correct its name (they are in lower case) or leave it out", shown)
	case uriAttributes[i].query != (part == "query"):
		return uriAttribute{}, fmt.Errorf("is %s, which does not belong there: the path comes first, its attributes with \";\" between them, then \"?\", then module-name, module-path, pin-source and pin-value with \"&\" between them", name)
	case p.seen[name]:
		return uriAttribute{}, fmt.Errorf("is a second %s: say it once", name)
	}
	p.seen[name] = true
	return uriAttributes[i], nil
}

// parse reads the value; the error continues the attribute's name.
func (a uriAttribute) parse(u *URI, encoded string) error {
	value, err := a.decode(encoded)
	if a.fixed {
		value = trim(value)
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
		if err := checkURIText(value); err != nil {
			return err
		}
	}
	return a.read(u, value)
}

// What need not be percent-encoded: unreserved characters (RFC 3986, section 2.3), and more in the path
// and in the query (RFC 7512, section 2.3). A plus is a plus.
const (
	uriUnreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	uriInPath     = uriUnreserved + ":[]@!$'()*+,=&"
	uriInQuery    = uriUnreserved + ":[]@!$'()*+,=/?|"
)

// decode removes the percent-encoding.
func (a uriAttribute) decode(encoded string) (string, error) {
	allowed := uriInPath
	if a.query {
		allowed = uriInQuery
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
			return "", fmt.Errorf("has a character that must be percent-encoded, such as a space (%%20), \"/\" in the path (%%2F), \";\" (%%3B) or \"#\" (%%23), at position %d", i+1)
		}
	}
	return string(value), nil
}

// checkURIText requires UTF-8 (RFC 7512, section 2.3) and no control characters.
func checkURIText(value string) error {
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

func readURISlot(u *URI, value string) error {
	n, err := strconv.ParseUint(value, 10, strconv.IntSize)
	if err != nil || !decimal.MatchString(value) {
		return errors.New("is not a slot id, which is a number in decimal")
	}
	slot := uint(n)
	u.SlotID = &slot
	return nil
}

func writeURISlot(u *URI) string {
	if u.SlotID == nil {
		return ""
	}
	return strconv.FormatUint(uint64(*u.SlotID), 10)
}

// readURIVersion reads 1*DIGIT [ "." 1*DIGIT ]; without a minor version it is 0.
func readURIVersion(u *URI, value string) error {
	major, minor, dotted := strings.Cut(value, ".")
	if !dotted {
		minor = "0"
	}
	a, errA := strconv.ParseUint(major, 10, 8)
	b, errB := strconv.ParseUint(minor, 10, 8)
	if errA != nil || errB != nil || !decimal.MatchString(major) || !decimal.MatchString(minor) {
		return errors.New("is not a version such as 2.40")
	}
	u.LibraryVersion = &URIVersion{uint8(a), uint8(b)}
	return nil
}

func writeURIVersion(u *URI) string {
	if u.LibraryVersion == nil {
		return ""
	}
	return fmt.Sprintf("%d.%d", u.LibraryVersion.Major, u.LibraryVersion.Minor)
}

func readURIType(u *URI, value string) error {
	if !slices.Contains(uriTypes, value) {
		return fmt.Errorf("is not one of %s", strings.Join(uriTypes, ", "))
	}
	u.Type = value
	return nil
}

func readURIModuleName(u *URI, value string) error {
	if strings.Contains(value, "/") {
		return errors.New("has a path in it: use module-path")
	}
	u.ModuleName = value
	return nil
}

// otherScheme is the beginning of a URI (RFC 3986, section 3.1).
var otherScheme = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*:`)

// readURIPINSource takes a path, or a file URI (RFC 8089) of this machine. A command ("|…"), which RFC 7512
// would allow, is refused: writing the configuration must not mean running programs.
func readURIPINSource(u *URI, value string) error {
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
	if err != nil || file.Opaque != "" || file.Host != "" && file.Host != "localhost" || file.User != nil || file.RawQuery != "" || file.ForceQuery || file.Fragment != "" || !strings.HasPrefix(file.Path, "/") {
		return errors.New("is not a file: URI of this machine, such as file:/etc/hsm-signer/pin")
	}
	u.PINSource = file.Path
	return checkURIText(file.Path)
}

// CheckKey returns nil if the URI can name a private key.
func (u URI) CheckKey() error {
	if u.Type != "" && u.Type != "private" {
		return fmt.Errorf("the PKCS#11 URI names an object of the type %s; the CA's key is of the type private: correct type=, or leave it out", u.Type)
	}
	return nil
}

// String is the URI without the value of the PIN.
func (u URI) String() string {
	if u.PINValue != "" {
		u.PINValue = "not-shown"
	}
	return u.text()
}

// text is the URI with all that it says.
func (u URI) text() string {
	var path, query []string
	for _, a := range uriAttributes {
		value := a.write(&u)
		switch {
		case value == "":
		case a.query:
			query = append(query, a.name+"="+value)
		default:
			path = append(path, a.name+"="+value)
		}
	}
	text := uriScheme + strings.Join(path, ";")
	if len(query) > 0 {
		text += "?" + strings.Join(query, "&")
	}
	return text
}

// uriEscape percent-encodes all that is reserved, as p11tool does.
func uriEscape(value string) string {
	var text strings.Builder
	for i := range len(value) {
		if strings.IndexByte(uriUnreserved, value[i]) >= 0 {
			text.WriteByte(value[i])
		} else {
			fmt.Fprintf(&text, "%%%02X", value[i])
		}
	}
	return text.String()
}

// writeURIID encodes each byte, as p11tool does.
func writeURIID(u *URI) string {
	var text strings.Builder
	for _, b := range u.ID {
		fmt.Fprintf(&text, "%%%02X", b)
	}
	return text.String()
}
