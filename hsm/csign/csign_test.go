package csign

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/miekg/pkcs11"

	"hsm-signer/internal/must"
)

// module is a PKCS#11 module without a token. Its signature has four bytes, each the number of
// calls of C_Sign. The first byte of the data says what it does wrong.
const module = `
static unsigned long calls;
static unsigned long sign_init(unsigned long session, void *mechanism, unsigned long key)
{
	calls = 0;
	return session == 1 ? 0 : 0xb3; // CKR_SESSION_HANDLE_INVALID
}
static unsigned long sign(unsigned long session, unsigned char *data, unsigned long length,
	unsigned char *signature, unsigned long *room)
{
	unsigned long had = *room;
	calls++;
	*room = data[0] == 'l' ? had + 1 : data[0] == 'h' ? -1UL : 4;
	if (data[0] == 'h' || had < 4)
		return 0x150; // CKR_BUFFER_TOO_SMALL
	for (int i = 0; i < 4; i++)
		signature[i] = calls;
	return 0;
}
static struct { unsigned char version[2]; void *functions[68]; } list =
	{ {2, 40}, { [42] = sign_init, [43] = WITHOUT_SIGN ? 0 : sign } };
unsigned long C_GetFunctionList(void **to) { *to = &list; return 0; }
`

// load compiles and loads the module.
func load(t *testing.T, define string) *pkcs11.Ctx {
	t.Helper()
	dir := t.TempDir()
	source, library := filepath.Join(dir, "module.c"), filepath.Join(dir, "module.so")
	must.OK(t, os.WriteFile(source, []byte(module), 0o600))
	if out, err := exec.CommandContext(t.Context(), "cc", "-shared", "-fPIC", "-D"+define, "-o",
		library, source).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p := pkcs11.New(library)
	if p == nil {
		t.Fatal("the module cannot be loaded")
	}
	t.Cleanup(p.Destroy)
	return p
}

func TestCallsOfASignature(t *testing.T) {
	f, err := Of(load(t, "WITHOUT_SIGN=0"))
	must.OK(t, err)
	for name, c := range map[string]struct {
		session pkcs11.SessionHandle
		input   string
		length  int
		want    []byte // nil: an error
		code    pkcs11.Error
	}{
		"known length":                {1, "d", 4, []byte{1, 1, 1, 1}, 0},
		"larger buffer":               {1, "d", 9, []byte{1, 1, 1, 1}, 0},
		"smaller buffer":              {1, "d", 3, []byte{2, 2, 2, 2}, 0},
		"unknown length":              {1, "d", 0, []byte{2, 2, 2, 2}, 0},
		"C_SignInit fails":            {2, "d", 4, nil, pkcs11.CKR_SESSION_HANDLE_INVALID},
		"module asks for too much":    {1, "h", 4, nil, pkcs11.CKR_BUFFER_TOO_SMALL},
		"length beyond the signature": {1, "l", 4, nil, 0},
	} {
		among := struct { // pointers, which must not matter
			input [1]byte
			other *int
		}{[1]byte{c.input[0]}, new(int)}
		got, err := f.Sign(c.session, Request{Input: among.input[:], Length: c.length})
		var code pkcs11.Error
		errors.As(err, &code)
		if !bytes.Equal(got, c.want) || (err == nil) != (c.want != nil) || code != c.code {
			t.Errorf("%s: %x, %v; want %x, code %#x", name, got, err, c.want, uint(c.code))
		}
	}
}

func TestModuleWithoutC_Sign(t *testing.T) {
	if _, err := Of(load(t, "WITHOUT_SIGN=1")); err == nil {
		t.Error("the module is accepted")
	}
}
