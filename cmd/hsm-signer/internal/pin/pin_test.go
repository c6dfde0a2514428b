package pin

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hsm-signer/cmd/hsm-signer/internal/trustedfile"
	"hsm-signer/internal/must"
)

func TestPINIsTakenOutOfTheEnvironment(t *testing.T) {
	t.Setenv("PKCS11_PIN", "1234")
	if pin, err := Take(); err != nil || string(pin) != "1234" {
		t.Errorf("the PIN was not read: %v", err)
	}
	if again, err := Take(); err != nil || again != "" {
		t.Errorf("the PIN is still there: %v", err)
	}
}

// What nobody can see is refused before the token counts a wrong PIN, wherever the PIN comes from.
func TestInvisibleCharactersInAPIN(t *testing.T) {
	for pin, words := range map[string]string{
		"1234": "", "a b": "", "pässwörd": "", "密码1234": "", "🔑4711": "",
		"\ufeff1234": "byte order mark (U+FEFF)", "1234\u200b": "U+200B", "12\u00a034": "U+00A0",
		"12\u202f34": "U+202F",
		"12\u00ad34": "U+00AD", "12\u200d34": "U+200D", "\u202e1234": "U+202E",
		"12\u206034": "U+2060", "1234\u3000": "U+3000",
		"1234\u2028": "U+2028", "12\ufe0f34": "U+FE0F", "12\u316434": "U+3164",
		"12\U000e006134": "U+E0061",
		"12\t34":         "control character", "1234\x00": "control character",
		"12\u008534": "control character",
	} {
		file := filepath.Join(t.TempDir(), "pin")
		must.OK(t, os.WriteFile(file, []byte(pin+"\n"), 0o600))
		_, err := InFile(trustedfile.Rules{Limit: Longest, Anyone: true}, file)
		for _, err := range []error{Check(pin), err} {
			if (err == nil) != (words == "") || err != nil &&
				!strings.Contains(err.Error(), words) {
				t.Errorf("%+q: %v, want %q", pin, err, words)
			}
			if err != nil && strings.Contains(strings.ReplaceAll(err.Error(), file, ""), "12") {
				t.Errorf("%+q: the error shows the PIN: %v", pin, err)
			}
		}
	}
}
