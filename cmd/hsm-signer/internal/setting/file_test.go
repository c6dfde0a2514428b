package setting

import (
	"os"
	"strings"
	"testing"

	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/internal/must"
)

// testLayout has a setting of each kind.
var testLayout = Layout{
	Known: []string{"ADDRESS", "DIRECTORY", "NAME"}, Shared: []string{"ADDRESS"},
	Inherited: []string{"DIRECTORY"}, Forbidden: map[string]string{"PIN": "this file holds no PIN"},
}

// twoCAs is a file with the CAs "first" and "second".
const twoCAs = `common:
  ADDRESS: a:1
  DIRECTORY: /common
cas:
  first:
    NAME: one
  second:
    NAME: two
    DIRECTORY: /second
`

func TestTextThatIsNoCONFIGFILE(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "it is empty",
		"x":                            "the file is not a mapping",
		"cas: {a: 1}":                  "a is not a mapping",
		"a: {}\ncas: {a: {}}":          `unknown key "a"`,
		"cas: {a: {}}\n---\nx":         "more than one YAML document",
		"cas: {a: &x {}, b: *x}":       "b is not a mapping",
		"cas: {a: {}, a: {}}":          "cas has the key a twice",
		"common: {DIRECTORY: /var}":    "has no CA",
		"cas: {a: {}}\ncommon: {? {}}": "a key is not a text",
		"cas: [":                       "it is not YAML",
	} {
		faults := &Faults{}
		readFile(fixture.File(t, "config.yaml", text), testLayout, faults)
		if len(*faults) == 0 || !strings.HasPrefix((*faults)[0], "CONFIG_FILE: ") ||
			!strings.Contains((*faults)[0], want) {
			t.Errorf("%q: %q; want %q", text, *faults, want)
		}
	}
}

// A file that others can write decides nothing.
func TestCONFIGFILEHasATrustedOwner(t *testing.T) {
	file := fixture.File(t, "config.yaml", twoCAs)
	must.OK(t, os.Chmod(file, 0o666))
	faults := &Faults{}
	if readFile(file, testLayout, faults); len(*faults) != 1 ||
		!strings.Contains((*faults)[0], "whoever can write it controls who signs what") {
		t.Errorf("%q", *faults)
	}
}
