package e2e

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// With a next CA, "ca show" shows both, and gives Calico the certificates of both.
func TestCeremonyShowsBothCAs(t *testing.T) {
	next := testenv.CA{KeyLabel: label(t), CertFile: filepath.Join(t.TempDir(), "next.crt")}
	createCA(t, next, "--key-type", "ecdsa-p384", "--subject", "CN=next", "--out", next.CertFile)
	requireBothShown(t, []string{"NEXT_CA_CERT_FILE=" + next.CertFile,
		"NEXT_CA_KEY_LABEL=" + next.KeyLabel})
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
