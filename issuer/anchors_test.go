package issuer

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"hsm-signer/internal/must"
)

// anchorsOf are the certificates as the file of a user holds them.
func anchorsOf(t *testing.T, certs ...*x509.Certificate) Anchors {
	t.Helper()
	anchors, err := ParseAnchors(append([]byte("\r\n"), Chain(certs).PEM()...))
	must.OK(t, err)
	return anchors
}

// Clients that trust a root, or any CA between it and the certificate, accept what the CA issues.
func TestAnchorsTrustTheCA(t *testing.T) {
	h := newThreeTier(t)
	chain := h.chain(t)
	ca, err := ParseCA(chain.PEM())
	must.OK(t, err)
	withoutRoot, err := ParseCA(chain[:2].PEM())
	must.OK(t, err)
	stranger := newThreeTier(t).chain(t)[2]
	for _, anchor := range chain {
		if err := anchorsOf(t, stranger, anchor).Trust(ca); err != nil {
			t.Error(err)
		}
	}
	if err := anchorsOf(t, chain[2]).Trust(withoutRoot); err != nil {
		t.Error(err)
	}
	if err := anchorsOf(t, stranger).Trust(ca); err == nil ||
		!strings.Contains(err.Error(), "do not trust the CA CN=ca: ") {
		t.Errorf("another root: %v", err)
	}
	h.root.NotAfter = time.Now().Add(-time.Minute)
	expired := h.chain(t)
	if ca, err = ParseCA(expired.PEM()); err != nil {
		t.Fatal(err)
	}
	if err := anchorsOf(t, expired[2]).Trust(ca); err != nil {
		t.Errorf("the dates are not the anchors' concern: %v", err)
	}
}

// A CA whose certificate, or one above it, is not valid yet or any more is not trusted for that.
func TestAnchorsDoNotTrustACAForItsDates(t *testing.T) {
	stranger := anchorsOf(t, newThreeTier(t).chain(t)[2])
	for name, change := range map[string]func(h *threeTier){
		"not valid yet":  func(h *threeTier) { h.ca.NotBefore = time.Now().Add(time.Minute) },
		"expired":        func(h *threeTier) { h.ca.NotAfter = time.Now().Add(-time.Minute) },
		"expired, above": func(h *threeTier) { h.middle.NotAfter = time.Now().Add(-time.Minute) },
	} {
		h := newThreeTier(t)
		change(h)
		chain := h.chain(t)
		ca, err := ParseCA(chain[:2].PEM())
		must.OK(t, err)
		if err := stranger.Trust(ca); err == nil {
			t.Errorf("%s: another root trusts it", name)
		}
		if err := anchorsOf(t, chain[2]).Trust(ca); err != nil {
			t.Errorf("%s: its own root: %v", name, err)
		}
	}
}

// What a ClusterTrustBundle cannot hold is refused.
func TestWrongAnchors(t *testing.T) {
	root := newThreeTier(t).chain(t)[2]
	leaf := newCA(t, time.Now(), time.Now().Add(time.Hour)).leaf(t)
	for want, certs := range map[string]Chain{
		"there is no certificate":                      {},
		"certificate 2 () is not a CA's":               {root, leaf},
		"certificates 1 and 2 (CN=root) are the same:": {root, root},
	} {
		if _, err := ParseAnchors(certs.PEM()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q; got %v", want, err)
		}
	}
	if text := anchorsOf(t, root).PEM(); !strings.HasPrefix(text, "-----BEGIN CERTIFICATE-----\n") ||
		strings.Count(text, "-----") != 4 {
		t.Errorf("%s", text)
	}
}
