// Package issuer issues.
//
// Duty: turn a [policy.Grant] into a certificate, in two steps. [Issuer.Prepare] does everything
// that precedes the signature; [Prepared.Issue] writes the intent, has the CA's key sign it,
// verifies the signature, records it, and returns the certificate with its chain.
//
// Contract: nothing is signed without a grant that was spent for it, nor before the same bytes were
// linted with a throwaway key and written to the journal. What a certificate holds comes from the
// grant and from the CA, never from the request's bytes. The package knows the key as a
// [crypto.Signer] and nothing of what is behind it.
package issuer

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"slices"
	"sync"
	"time"

	"hsm-signer/policy"
)

// Backdate is how long before now a certificate begins to be valid, for clocks that are a little
// behind. It is what kube-controller-manager's signer uses.
const Backdate = 5 * time.Minute

// For the certificates of pods, the API server requires more (PodCertificateRequest, status): it
// takes none whose notBefore is five minutes or more from its own clock.
const (
	// PodBackdate is [Backdate] for a pod. It counts in the lifetime.
	PodBackdate = time.Minute
	// podWindow is how old the certificate of a pod may become before it is published. What is
	// left is for the clocks.
	podWindow = 3 * time.Minute
)

// An Issuer issues certificates under one CA, and after [Issuer.SignWith] under another. It is safe
// for concurrent use.
type Issuer struct {
	authorities authorities // each certificate is made with the one that was in force
	journal     Journal
	budget      *budget
	signing     sync.Map // of the UIDs that are being signed
	recent      recent
	now         func() time.Time
}

// New returns an issuer that issues under the CA.
func New(a Authority, j Journal) (*Issuer, error) {
	first, err := a.complete()
	if err != nil {
		return nil, err
	}
	i := &Issuer{journal: j, budget: newBudget(), now: time.Now}
	i.authorities.byKey = map[[sha256.Size]byte]*Authority{first.CA.KeySHA256(): first}
	i.authorities.inForce.Store(first)
	return i, nil
}

// Ready returns nil if a certificate could be issued now.
func (i *Issuer) Ready(ctx context.Context) error {
	return i.ready(ctx, i.authorities.inForce.Load())
}

func (i *Issuer) ready(ctx context.Context, a *Authority) error {
	if err := a.CA.ValidAt(i.now()); err != nil {
		return err
	}
	if err := i.journal.Ready(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return a.Key.Ready(ctx)
}

// newTemplate builds the certificate (RFC 5280, section 4) from the grant, for the default
// algorithm of the CA's key. Unless the CA's dates prevent it, it is valid from now on.
func newTemplate(ca *CA, g *policy.Grant, serial *big.Int, now time.Time) (*x509.Certificate,
	error) {
	keyID, err := keyIdentifier(g.PublicKey())
	if err != nil {
		return nil, err
	}
	keyUsage, extKeyUsage, err := x509Usages(g.Usages())
	if err != nil {
		return nil, err
	}
	ips, uris, err := addresses(g)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		SignatureAlgorithm:    DefaultAlgorithm(ca.cert.PublicKey),
		Subject:               subject(g),
		DNSNames:              g.DNSNames(),
		IPAddresses:           ips,
		URIs:                  uris,
		EmailAddresses:        g.EmailAddresses(),
		KeyUsage:              keyUsage,
		ExtKeyUsage:           extKeyUsage,
		BasicConstraintsValid: true, // CA:FALSE
		SubjectKeyId:          keyID,
	}
	if g.OfPod() {
		template.NotBefore, template.NotAfter, err = ca.podDatesFor(now, g.Lifetime())
		return template, err
	}
	template.NotBefore, template.NotAfter = ca.datesFor(now, g.Lifetime())
	return template, nil
}

// subject returns the name in which each attribute stands alone, in the order of the grant.
func subject(g *policy.Grant) pkix.Name {
	var name pkix.Name
	for _, a := range g.Subject() {
		value := any(a.Value) // PrintableString where it can be, else UTF8String
		if a.Name == "DC" {   // RFC 4519, section 2.4
			value = asn1.RawValue{Tag: asn1.TagIA5String, Bytes: []byte(a.Value)}
		}
		name.ExtraNames = append(name.ExtraNames,
			pkix.AttributeTypeAndValue{Type: a.Type, Value: value})
	}
	return name
}

// addresses returns the IP addresses and the URIs of the grant in the types of crypto/x509.
func addresses(g *policy.Grant) (ips []net.IP, uris []*url.URL, err error) {
	for _, ip := range g.IPAddresses() {
		ips = append(ips, ip.AsSlice())
	}
	for _, text := range g.URIs() {
		uri, err := url.Parse(text)
		if err != nil {
			return nil, nil, err
		}
		uris = append(uris, uri)
	}
	return ips, uris, nil
}

// keyIdentifier returns the subject key identifier: the leftmost 160 bits of the
// SHA-256 of the public key (RFC 7093, section 2, method 1).
func keyIdentifier(public crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("key identifier: %w", err)
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, fmt.Errorf("key identifier: %w", err)
	}
	sum := sha256.Sum256(info.Key.RightAlign())
	return sum[:20], nil
}

var keyUsages = map[policy.Usage]x509.KeyUsage{
	policy.DigitalSignature:  x509.KeyUsageDigitalSignature,
	policy.ContentCommitment: x509.KeyUsageContentCommitment,
	policy.KeyEncipherment:   x509.KeyUsageKeyEncipherment,
	policy.DataEncipherment:  x509.KeyUsageDataEncipherment,
	policy.KeyAgreement:      x509.KeyUsageKeyAgreement,
}

var extKeyUsages = map[policy.Usage]x509.ExtKeyUsage{
	policy.ServerAuth: x509.ExtKeyUsageServerAuth,
	policy.ClientAuth: x509.ExtKeyUsageClientAuth,
}

func x509Usages(usages []policy.Usage) (x509.KeyUsage, []x509.ExtKeyUsage, error) {
	var key x509.KeyUsage
	var extended []x509.ExtKeyUsage
	for _, usage := range usages {
		k, isKey := keyUsages[usage]
		e, isExtended := extKeyUsages[usage]
		switch {
		case isKey:
			key |= k
		case !isExtended:
			return 0, nil, fmt.Errorf("the usage %q has no counterpart in X.509", usage)
		case !slices.Contains(extended, e):
			extended = append(extended, e)
		}
	}
	return key, extended, nil
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func encodePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
