package policy

import (
	"crypto"
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"hsm-signer/policy/pkcs10"
)

// A Grant is the permission to make exactly one certificate, now. Its fields cannot be set from
// outside, so nothing can be signed that was not decided.
type Grant struct {
	// The redemption is shared by every copy, so that a copy is spent with its original.
	redemption *redemption

	submission    Submission
	requestSHA256 string
	rule          string
	spender       Spender
	subject       []pkcs10.Attribute
	dnsNames      []string
	ipAddresses   []netip.Addr
	uris          []string
	emails        []string
	usages        []Usage
	lifetime      time.Duration
	publicKey     crypto.PublicKey
	podStarted    bool
}

type redemption struct {
	policy *Policy
	spent  atomic.Bool
}

// Why a grant cannot be redeemed.
var (
	ErrNoGrant    = errors.New("policy: the grant is empty: it was not given by a policy")
	ErrGrantSpent = errors.New("policy: the grant was redeemed before: decide again")
	ErrGrantStale = errors.New("policy: the policy or the CA has changed since the grant was " +
		"given: decide again")
)

func (p *Policy) grant(r *Request, f finding) *Grant {
	by := f.rule
	g := &Grant{
		redemption:    &redemption{policy: p},
		submission:    r.Submission,
		requestSHA256: r.sha256(),
		rule:          by.name,
		spender:       SpenderOf(r.Requester),
		subject:       by.subjectFor(r.asked),
		dnsNames:      r.asked.DNSNames,
		ipAddresses:   r.asked.IPAddresses,
		uris:          r.asked.URIs,
		emails:        r.asked.EmailAddresses,
		usages:        fitUsages(r.Usages, r.asked.Key),
		lifetime:      by.lifetimeFor(r.Lifetime),
		publicKey:     r.asked.PublicKey,
	}
	if r.PodCertificate != nil {
		g.dnsNames, g.uris = f.names.dnsNames, f.names.uris
		g.usages, g.podStarted = fitUsages(by.usages, r.asked.Key), f.pod.Started
	}
	return g
}

// Redeem spends the grant. It returns nil once, and only while the policy that gave the grant is in
// force.
func (g *Grant) Redeem() error {
	if err := g.InForce(); err != nil {
		return err
	}
	if !g.redemption.spent.CompareAndSwap(false, true) {
		return ErrGrantSpent
	}
	return nil
}

// InForce returns nil while the policy that gave the grant is in force, whether or not the grant is
// spent.
func (g *Grant) InForce() error {
	switch {
	case g == nil || g.redemption == nil:
		return ErrNoGrant
	case g.redemption.policy.withdrawn.Load():
		return ErrGrantStale
	}
	return nil
}

// CheckKey makes the expensive checks of the requester's key, and returns a refusal if one fails.
// Make them only when there is room in the budget: they cost up to a hundred signatures.
func (g *Grant) CheckKey() *Refusal {
	fault, weak := pkcs10.CheckKey(g.publicKey)
	if !weak {
		return nil
	}
	return &Refusal{Reasons: []Reason{invalid(fault)}, PolicyHash: g.PolicyHash(),
		RequestSHA256: g.requestSHA256}
}

// OfPod reports whether the certificate is a pod's, which kubelet asks for and renews
// (PodCertificateRequest).
func (g *Grant) OfPod() bool { return g.submission.PodCertificate != nil }

// PodStarted reports whether the certificate is a pod's whose volumes were mounted: then it has had
// one before.
func (g *Grant) PodStarted() bool { return g.podStarted }

// RequestUID is the UID of the API object that is answered.
func (g *Grant) RequestUID() string { return g.submission.UID }

// RequestName is the name of that object, which its requester chose; it is for the record.
func (g *Grant) RequestName() string { return g.submission.Name }

// RequestSHA256 is the SHA-256, in hex, of the PKCS#10 request in DER.
func (g *Grant) RequestSHA256() string { return g.requestSHA256 }

// SignerName is the signer that was asked.
func (g *Grant) SignerName() string { return g.submission.SignerName }

// Requester is who asked.
func (g *Grant) Requester() Requester { return g.submission.Requester }

// Rule is the name of the rule that grants.
func (g *Grant) Rule() string { return g.rule }

// PolicyHash is the [Policy.Hash] of the policy that grants.
func (g *Grant) PolicyHash() string { return g.redemption.policy.hash }

// Budget is that of the policy that grants.
func (g *Grant) Budget() Budget { return g.redemption.policy.budget }

// Spender is who the certificate is counted for.
func (g *Grant) Spender() Spender { return g.spender }

// Subject is the subject to certify, an attribute for each relative distinguished name; it may be
// empty.
func (g *Grant) Subject() []pkcs10.Attribute { return slices.Clone(g.subject) }

// Names are all names to certify, each with its kind, and the subject, for people to read.
func (g *Grant) Names() []string {
	var all []string
	for _, a := range g.subject {
		all = append(all, a.Name+"="+pkcs10.Quote(a.Value))
	}
	for _, kind := range []struct {
		name   string
		values []string
	}{{"DNS", g.dnsNames}, {"IP", texts(g.ipAddresses)}, {"URI", g.uris}, {"email", g.emails}} {
		for _, value := range kind.values {
			all = append(all, kind.name+":"+value)
		}
	}
	return all
}

// DNSNames are the DNS names to certify.
func (g *Grant) DNSNames() []string { return slices.Clone(g.dnsNames) }

// IPAddresses are the IP addresses to certify.
func (g *Grant) IPAddresses() []netip.Addr { return slices.Clone(g.ipAddresses) }

// URIs are the URIs to certify.
func (g *Grant) URIs() []string { return slices.Clone(g.uris) }

// EmailAddresses are the email addresses to certify.
func (g *Grant) EmailAddresses() []string { return slices.Clone(g.emails) }

// Usages are the key usages to certify, fitted to the type of the key.
func (g *Grant) Usages() []Usage { return slices.Clone(g.usages) }

// Lifetime is how long the certificate may live from now, or, if it is a pod's, in all; the issuer
// may shorten it.
func (g *Grant) Lifetime() time.Duration { return g.lifetime }

// PublicKey is the requester's key, which it proved to hold.
func (g *Grant) PublicKey() crypto.PublicKey { return g.publicKey }
