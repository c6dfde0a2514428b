package e2e

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// With a next CA, "check" checks both, and tries no PIN after a refused one. "ca show" shows both,
// and gives Calico the certificates of both.
func TestNextCA(t *testing.T) {
	next := testenv.CA{KeyLabel: label(t), CertFile: filepath.Join(t.TempDir(), "next.crt")}
	createCA(t, next, "--key-type", "ecdsa-p384", "--subject", "CN=next", "--out", next.CertFile)
	env := append([]string{"NEXT_CA_CERT_FILE=" + next.CertFile,
		"NEXT_CA_KEY_LABEL=" + next.KeyLabel}, electing...)
	requireBothShown(t, env)
	requireCheck(t, env, 0, "ok       next CA: key is the CA's           a test signature verifies",
		"ok       next CA: CA certificate            CN=next")
	requireCheck(t, append(env, "NEXT_CA_KEY_LABEL="+ca.KeyLabel), 2,
		"failed   next CA: key is the CA's")
	requireCheck(t, append(env, "PKCS11_PIN=wrong-1"), 3, "failed   login ",
		"skipped  next CA: token ")
	logIn(t)
}

// requireBothShown requires that "ca show" shows both CAs, and gives Calico both certificates.
func requireBothShown(t *testing.T, env []string) {
	t.Helper()
	var shown struct {
		PEM  string
		Next struct {
			PEM string
			Key struct{ Type string }
		}
		Calico struct {
			Spec struct{ CertificateManagement struct{ CACert []byte } }
		}
	}
	text := command(t, ca, env, "ca", "show", "--output", "json").prints(t, 0)
	must.OK(t, json.Unmarshal([]byte(text), &shown))
	trusted := string(shown.Calico.Spec.CertificateManagement.CACert)
	if shown.Next.Key.Type != "ecdsa-p384" || shown.Next.PEM == "" ||
		trusted != shown.PEM+shown.Next.PEM {
		t.Errorf("%+v", shown)
	}
}
