package service

import (
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/internal/must"
	"hsm-signer/issuer"
)

// rotating is a complete configuration with a next CA, whose key is in the token of the CA's.
func rotating(t *testing.T) (variables map[string]string, dir string) {
	t.Helper()
	variables, dir = completeConfig(t), t.TempDir()
	maps.Copy(variables, map[string]string{
		"LEADER_ELECT": "true", "LEASE_NAMESPACE": "default", "NEXT_CA_KEY_LABEL": "next",
		"NEXT_CA_CERT_FILE": writeCA(t, dir, "next.crt"),
	})
	return variables, dir
}

func writeCA(t *testing.T, dir, name string) (path string) {
	t.Helper()
	path = filepath.Join(dir, name)
	must.OK(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: fixture.NewCA(t).Certificate.Raw}), 0o600))
	return path
}

// Without a URI the next key is in the token of the CA's key, with its PIN.
func TestNextKeyInTheSameToken(t *testing.T) {
	variables, _ := rotating(t)
	_, s, faults := serviceOf(t, variables)
	requireFaults(t, faults)
	if s.Next.Token.Key.Label != "next" || s.Next.Token.Token != s.Token.Token ||
		s.Next.Token.Module != s.Token.Module || s.Next.CA.KeySHA256() == s.CA.KeySHA256() {
		t.Errorf("%s, %s, %s", s.Next.Token.Token, s.Next.Token.Key, s.Next.Token.Module)
	}
}

// A URI names the token, its PIN and perhaps another module.
func TestNextKeyInAnotherToken(t *testing.T) {
	variables, dir := rotating(t)
	delete(variables, "NEXT_CA_KEY_LABEL")
	pin := filepath.Join(dir, "pin")
	must.OK(t, os.WriteFile(pin, []byte("5678\n"), 0o600))
	const uri, file = "pkcs11:token=other;object=k", "pin-source=file:"
	for uri, want := range map[string]string{
		uri + "?" + file + pin:                       "",
		uri + "?module-path=/other.so&" + file + pin: "",
		uri:                                "names no PIN",
		uri + "?pin-value=1":               "has a pin-value",
		"pkcs11:token=other?" + file + pin: "names no key",
		uri + "?" + file + pin + ".gone":   "the PIN cannot",
	} {
		variables["NEXT_PKCS11_URI"] = uri
		c, s, faults := serviceOf(t, variables)
		if want != "" {
			requireFaults(t, faults, "NEXT_PKCS11_URI: "+want)
			continue
		}
		requireFaults(t, faults)
		module := c.Token.Module
		if strings.Contains(uri, "/other.so") {
			module = "/other.so"
		}
		given, err := s.Next.Token.PIN()
		if err != nil || string(given) != "5678" || s.Next.Token.Token.Label != "other" ||
			s.Next.Token.Key.Label != "k" || s.Next.Token.Module != module {
			t.Errorf("%v, %s, %s, %s", err, s.Next.Token.Token, s.Next.Token.Key,
				s.Next.Token.Module)
		}
	}
}

// With a cross-certificate of the next CA, its self-signed certificate is what is published.
func TestNextCAIsCrossSigned(t *testing.T) {
	variables, dir := rotating(t)
	write := func(variable string, certs issuer.Chain) *issuer.CA {
		t.Helper()
		variables[variable] = filepath.Join(dir, variable)
		must.OK(t, os.WriteFile(variables[variable], certs.PEM(), 0o600))
		return must.Value(issuer.ParseCA(certs.PEM()))(t)
	}
	former, next := fixture.NewCA(t), fixture.NewCA(t)
	ca := write("CA_CERT_FILE", issuer.Chain{former.Certificate})
	write("TRUST_BUNDLE_FILE", issuer.Chain{former.Certificate})
	write("NEXT_TRUST_BUNDLE_FILE", issuer.Chain{next.Certificate})
	cross := must.Value(issuer.NewCross(ca, next.Certificate, time.Now()))(t)
	write("NEXT_CA_CERT_FILE", must.Value(cross.Sign(former.Key))(t))
	_, s, faults := serviceOf(t, variables)
	requireFaults(t, faults)
	if !next.Certificate.Equal(s.Next.Anchors[0]) || next.Certificate.Equal(s.Next.CA.Certificate()) {
		t.Errorf("%v, %v", s.Next.Anchors[0].Issuer, s.Next.CA.Certificate().Issuer)
	}
}

// What does not fit is reported once, with what to do.
func TestNextCAIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(variables map[string]string, dir string)
		want   string
	}{
		"no election": {func(v map[string]string, _ string) { v["LEADER_ELECT"] = "false" },
			"NEXT_CA_CERT_FILE: needs LEADER_ELECT=true"},
		"no certificate": {func(v map[string]string, _ string) { delete(v, "NEXT_CA_CERT_FILE") },
			"NEXT_CA_KEY_LABEL: is set, and NEXT_CA_CERT_FILE is not"},
		"no key": {func(v map[string]string, _ string) { delete(v, "NEXT_CA_KEY_LABEL") },
			"NEXT_CA_KEY_LABEL: is not set, and neither is"},
		"the CA's own key": {func(v map[string]string, _ string) {
			v["NEXT_CA_CERT_FILE"] = v["CA_CERT_FILE"]
		}, "NEXT_CA_CERT_FILE: the CA CN=Test CA has the same key"},
		"an algorithm of other keys": {func(v map[string]string, _ string) {
			v["NEXT_SIGNATURE_ALGORITHM"] = "ECDSAWithSHA256"
		}, "NEXT_SIGNATURE_ALGORITHM: the CA's key"},
		"a shadow": {func(v map[string]string, _ string) { v["APPROVE"] = "shadow" },
			"is set, and APPROVE is shadow"},
		"named twice": {func(v map[string]string, dir string) {
			v["NEXT_PKCS11_URI"] = "pkcs11:token=o;object=k?pin-source=file:" + v["PKCS11_PIN_FILE"]
		}, "NEXT_PKCS11_URI: is set, and so is NEXT_CA_KEY_LABEL"},
		"only the roots of the present CA": {func(v map[string]string, _ string) {
			v["TRUST_BUNDLE_FILE"] = v["CA_CERT_FILE"]
		}, "NEXT_TRUST_BUNDLE_FILE: is not set, and TRUST_BUNDLE_FILE is"},
		"only the roots of the next CA": {func(v map[string]string, _ string) {
			v["NEXT_TRUST_BUNDLE_FILE"] = v["NEXT_CA_CERT_FILE"]
		}, "NEXT_TRUST_BUNDLE_FILE: is set, and TRUST_BUNDLE_FILE is not"},
		"roots of another CA": {func(v map[string]string, _ string) {
			v["TRUST_BUNDLE_FILE"] = v["CA_CERT_FILE"]
			v["NEXT_TRUST_BUNDLE_FILE"] = v["CA_CERT_FILE"]
		}, "do not trust the CA"},
		"both roots": {func(v map[string]string, _ string) {
			v["TRUST_BUNDLE_FILE"] = v["CA_CERT_FILE"]
			v["NEXT_TRUST_BUNDLE_FILE"] = v["NEXT_CA_CERT_FILE"]
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			variables, dir := rotating(t)
			c.change(variables, dir)
			_, faults := configFaultsOf(t, variables)
			if c.want == "" {
				requireFaults(t, faults)
			} else {
				requireFaults(t, faults, c.want)
			}
		})
	}
}
