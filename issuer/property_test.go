package issuer

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hsm-signer/internal/must"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// everyCombination grants every key type and usage.
const everyCombination = `
version: 1
budget: {total: 100000, perNamespace: 100%, perServiceAccount: 100%, perPod: 100000}
rules:
  - name: all
    from: {serviceAccounts: [edge/gw]}
    grant:
      dnsNames: [gw.example.com]
      ipAddresses: [pod]
      keys: [rsa-2048, rsa-3072, rsa-4096, rsa-8192, ecdsa-p256, ecdsa-p384, ecdsa-p521, ed25519]
      usages: [server auth, client auth, digital signature, content commitment, key encipherment,
        data encipherment, key agreement]
`

// caseCAs are chains that ParseCA accepts.
func caseCAs(t *testing.T) map[string]*threeTier {
	t.Helper()
	all := map[string]*threeTier{}
	add := func(name string, change func(*threeTier)) {
		h := newThreeTier(t)
		change(h)
		all[name] = h
	}
	cn, serial := []int{2, 5, 4, 3}, []int{2, 5, 4, 5}
	utf8 := func(s string) (v namePart) { v.Value.Tag, v.Value.Bytes = 12, []byte(s); return v }
	attribute := func(id []int, s string) namePart { v := utf8(s); v.Type = id; return v }
	add("plain", func(*threeTier) {})
	add("mv", func(h *threeTier) {
		h.ca.RawSubject = rawName(t, [][]namePart{{attribute(cn, "CA"), attribute(serial, "42")}})
	})
	add("tws", func(h *threeTier) {
		h.ca.RawSubject = rawName(t, [][]namePart{{attribute(cn, "CA ")}})
	})
	add("c-utf8", func(h *threeTier) {
		h.ca.RawSubject = rawName(t,
			[][]namePart{{attribute([]int{2, 5, 4, 6}, "DE")}, {attribute(cn, "CA")}})
	})
	add("rootnc", func(h *threeTier) {
		h.root.PermittedDNSDomains, h.root.PermittedDNSDomainsCritical =
			[]string{"example.com"}, true
	})
	add("eku", func(h *threeTier) {
		h.middle.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth,
			x509.ExtKeyUsageClientAuth}
	})
	return all
}

// A combination is one set of usages with one type of key.
type combination struct {
	usages []policy.Usage
	key    pkcs10.KeyType
}

// combinations lists all key usage sets with all sets of extended key usages, except both empty,
// for each type of key.
func combinations() []combination {
	var all []combination
	usages := policy.Usages()
	for set := 1; set < 1<<len(usages); set++ {
		var chosen []policy.Usage
		for bit, usage := range usages {
			if set&(1<<bit) != 0 {
				chosen = append(chosen, usage)
			}
		}
		for _, key := range pkcs10.KeyTypes() {
			all = append(all, combination{chosen, key})
		}
	}
	return all
}

// Whatever is granted under a CA that loads is issued, and verifies in Go and OpenSSL for each
// extended key usage that it holds, with the root alone trusted. A run tries one combination in
// thirteen under each CA; EVERY_COMBINATION=1 tries all, also with RSA keys of 8192 bits, which
// takes minutes.
func TestEverythingGrantedIsIssued(t *testing.T) {
	every := os.Getenv("EVERY_COMBINATION") != ""
	requests := requestsOfEveryKey(t, every)
	p := parsePolicy(t, everyCombination)
	const stride = 13 // has no factor in common with the number of key types
	for name, h := range caseCAs(t) {
		t.Run(name, func(t *testing.T) {
			chain := h.chain(t)
			ca, err := ParseCA(chain.PEM())
			must.OK(t, err)
			i, err := New(Authority{CA: ca, Key: softKey{key: h.caKey}}, newJournal(t, ca))
			must.OK(t, err)
			openssl := newOpenSSL(t, chain)
			tried, granted, issued := 0, 0, 0
			for n, c := range combinations() {
				if !every && (n+len(name))%stride != 0 || requests[c.key] == nil {
					continue
				}
				tried++
				g, isGrant := decideRequest(ca, p, fmt.Sprint("u", n), c.usages,
					requests[c.key]).(*policy.Grant)
				if !isGrant {
					continue
				}
				granted++
				text, err := tryIssue(t, i, g)
				if err != nil {
					t.Fatalf("%v: %v", c, err)
				}
				issued++
				verifyInGo(t, chain, text)
				openssl.add(t, text)
			}
			t.Logf("tried %d, granted %d, issued %d, faults %d; OpenSSL verified %d", tried,
				granted, issued, granted-issued, openssl.verify(t))
			if granted == 0 || granted != issued {
				t.Error("not everything that was granted was issued")
			}
		})
	}
}

func verifyInGo(t *testing.T, chain Chain, text []byte) {
	t.Helper()
	certs, err := ReadChain(text)
	must.OK(t, err)
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(chain[len(chain)-1])
	for _, cert := range certs[1:] {
		between.AddCert(cert)
	}
	uses := certs[0].ExtKeyUsage
	if len(uses) == 0 {
		uses = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	}
	for _, use := range uses {
		if _, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between,
			KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
			t.Errorf("%v %b: %v", use, certs[0].KeyUsage, err)
		}
	}
}

// requestsOfEveryKey returns a request with each type of key. RSA keys of 8192 bits take a minute
// to make.
func requestsOfEveryKey(t *testing.T, large bool) map[pkcs10.KeyType][]byte {
	t.Helper()
	requests := map[pkcs10.KeyType][]byte{}
	for _, kind := range pkcs10.KeyTypes() {
		if kind == "rsa-8192" && !large {
			continue
		}
		requests[kind] = pkcs10test.Request{Key: keyOfType(t, kind),
			DNSNames: []string{"gw.example.com"},
			Subject:  pkix.Name{CommonName: "gw.example.com"}}.PEM(t)
	}
	return requests
}

func keyOfType(t *testing.T, kind pkcs10.KeyType) crypto.Signer {
	t.Helper()
	return must.Value(kind.Generate())(t)
}

// openSSL verifies certificates in batches, by purpose.
type openSSL struct {
	dir   string
	files map[string][]string // by purpose
}

func newOpenSSL(t *testing.T, chain Chain) *openSSL {
	t.Helper()
	o := &openSSL{t.TempDir(), map[string][]string{}}
	o.write(t, "root.pem", chain[len(chain)-1:].PEM())
	o.write(t, "between.pem", chain[:len(chain)-1].PEM())
	return o
}

func (o *openSSL) write(t *testing.T, name string, text []byte) string {
	t.Helper()
	file := filepath.Join(o.dir, name)
	must.OK(t, os.WriteFile(file, text, 0o600))
	return file
}

func (o *openSSL) add(t *testing.T, text []byte) {
	t.Helper()
	certs, err := ReadChain(text)
	must.OK(t, err)
	file := o.write(t, fmt.Sprintf("%x.pem", certs[0].SerialNumber), encodePEM(certs[0].Raw))
	if len(certs[0].ExtKeyUsage) == 0 {
		o.files["any"] = append(o.files["any"], file)
	}
	for use, purpose := range map[x509.ExtKeyUsage]string{x509.ExtKeyUsageServerAuth: "sslserver",
		x509.ExtKeyUsageClientAuth: "sslclient"} {
		if slices.Contains(certs[0].ExtKeyUsage, use) {
			o.files[purpose] = append(o.files[purpose], file)
		}
	}
}

// verify returns how many certificates it has verified for a purpose.
func (o *openSSL) verify(t *testing.T) (count int) {
	t.Helper()
	for purpose, files := range o.files {
		for batch := range slices.Chunk(files, 500) {
			args := []string{"verify", "-x509_strict", "-CAfile", "root.pem", "-untrusted",
				"between.pem", "-purpose", purpose}
			command := exec.Command("openssl", append(args, batch...)...)
			command.Dir = o.dir
			out, err := command.CombinedOutput()
			if err != nil {
				t.Errorf("openssl verify -purpose %s: %v: %.2000s", purpose, err, out)
			}
			count += strings.Count(string(out), ": OK")
		}
	}
	return count
}
