// Package policy decides.
//
// Duty: answer, for one certificate request, whether the one who asks may have the certificate that
// it asks for. What was asked is read in a closed world (package pkcs10); the rules are data, in
// YAML; what no rule grants is refused.
//
// Contract: a [Verdict] is exactly one of [*Grant], [*Refusal] and [*Waiting]. Only this package
// can make a Grant, and a Grant permits exactly one certificate, once, under the policy that gave
// it. There is no I/O here, no clock, and no Kubernetes client: what must be known of the world
// (the requester's pod) comes in the [Facts] of a look-up, without which nothing is refused because
// of the pod. The requester's labels and annotations are not part of a [Request].
package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"hsm-signer/policy/pkcs10"
)

// A Policy is a compiled set of rules. It does not change; [Policy.Withdraw] ends it. It is safe
// for concurrent use.
type Policy struct {
	rules         []rule
	budget        Budget
	hash          string
	clusterDomain string
	blocked       *BlockedKeys
	withdrawn     atomic.Bool
}

// Options are what rules depend on in addition to their own text.
type Options struct {
	// ClusterDomain ends the names of services: "cluster.local".
	ClusterDomain string
	// MaxLifetime is the longest that any certificate is granted for.
	MaxLifetime time.Duration
	// ForbiddenAddresses are certified for no pod, whatever its status says, and match no prefix. A
	// rule that writes one out grants it.
	ForbiddenAddresses []netip.Addr
	// BlockedKeys are granted nothing; nil blocks none.
	BlockedKeys *BlockedKeys
	// TrustDomain is what {trustDomain} stands for in a rule; empty: no rule may have it.
	TrustDomain string
}

// Hash identifies the policy: the SHA-256, in hex, of its text and its options.
func (p *Policy) Hash() string { return p.hash }

// BlockedKeys returns the keys for which nothing is granted; nil if there are none.
func (p *Policy) BlockedKeys() *BlockedKeys { return p.blocked }

// Budget bounds how much is granted in an hour; who issues counts it.
func (p *Policy) Budget() Budget { return p.budget }

// Rules returns the names of the rules, in their order.
func (p *Policy) Rules() []string {
	names := make([]string, 0, len(p.rules))
	for _, r := range p.rules {
		names = append(names, r.name)
	}
	return names
}

// Withdraw ends the policy: grants that it gave and that were not redeemed are void from now on.
func (p *Policy) Withdraw() { p.withdrawn.Store(true) }

// Decide answers whether the request may have its certificate. It is granted if one rule grants all
// of it; otherwise the answer holds every reason of the rule that came nearest. The facts must be
// those of [Request.PodQuery]: without them the answer is [*Waiting], never a refusal because of
// the pod. Decide does not make the expensive checks of the key: see [Grant.CheckKey].
func (p *Policy) Decide(r *Request, facts Facts) Verdict {
	if r.PodCertificate != nil {
		return p.decidePod(r, facts)
	}
	if !p.appliesTo(r) { // nothing is parsed, so that refusing costs little
		return &Refusal{PolicyHash: p.hash, Reasons: []Reason{p.unknownRequester(r)}}
	}
	refusal := &Refusal{PolicyHash: p.hash, RequestSHA256: r.sha256()}
	if r.ObjectFault != "" {
		refusal.Reasons = append(refusal.Reasons, tooLarge(r.ObjectFault))
	}
	for _, fault := range r.faults {
		refusal.Reasons = append(refusal.Reasons, invalid(fault))
	}
	if r.asked == nil {
		return refusal
	}
	if !facts.answer(r) {
		return &Waiting{Missing: "a look-up of the requester's pod"}
	}
	if reason, blocked := p.blocked.refuse(r); blocked {
		refusal.Reasons = append(refusal.Reasons, reason)
	}
	finding := p.judge(r, facts)
	switch {
	case len(refusal.Reasons) > 0 || len(finding.reasons) > 0:
		refusal.Reasons = append(refusal.Reasons, finding.reasons...)
		return refusal
	case finding.missing != "":
		return &Waiting{Rule: finding.rule.name, Missing: finding.missing}
	}
	return p.grant(r, finding)
}

// invalid is the reason for which a request is refused for what it is.
func invalid(fault pkcs10.Fault) Reason {
	return Reason{Code: InvalidRequest, Rule: ruleClosedWorld, Field: fault.Field,
		Message: fault.Message}
}

// judge judges the request by every rule that applies to its requester, at least one, and returns
// the best finding: granted, then waiting, then the refusal with the fewest reasons.
func (p *Policy) judge(r *Request, facts Facts) finding {
	var best *finding
	for i := range p.rules {
		if !p.rules[i].from.appliesTo(r) {
			continue
		}
		f := p.rules[i].judge(r, facts)
		if best == nil || f.better(best) {
			best = &f
		}
	}
	return *best
}

// appliesTo reports whether any rule applies to the requester.
func (p *Policy) appliesTo(r *Request) bool {
	return slices.ContainsFunc(p.rules, func(one rule) bool { return one.from.appliesTo(r) })
}

// unknownRequester is the reason to refuse a requester to whom no rule applies.
func (p *Policy) unknownRequester(r *Request) Reason {
	return Reason{
		Code: RequesterNotAllowed, Rule: ruleDefaultDeny, Field: "requester",
		Message: "is " + r.Requester.describe() + ", which no rule names",
		Allowed: p.requesters(),
	}
}

// TakesUnboundTokens reports whether a rule takes tokens that name no pod, as those of
// clusters before Kubernetes 1.22 are.
func (p *Policy) TakesUnboundTokens() bool {
	return slices.ContainsFunc(p.rules, func(one rule) bool { return one.from.pod != podBound })
}

// ForPodCertificates reports whether a rule applies to pod certificates.
func (p *Policy) ForPodCertificates() bool {
	return slices.ContainsFunc(p.rules, func(one rule) bool { return one.from.podCertificates })
}

// requesters lists the rules' requesters.
func (p *Policy) requesters() []string {
	var all []string
	for _, r := range p.rules {
		all = append(all, r.from.describe()...)
	}
	return all
}

// The built-in rules, which stand before and behind the ones in the file.
const (
	ruleClosedWorld = "closed-world" // what is not known is refused
	ruleDefaultDeny = "default-deny" // what no rule grants is refused
	ruleBlockedKeys = "blocked-keys" // a key on the list is refused
)

func hashOf(text []byte, o Options) string {
	h := sha256.New()
	parts := []string{string(text), o.ClusterDomain, o.MaxLifetime.String()}
	if len(o.ForbiddenAddresses) > 0 {
		parts = append(parts, strings.Join(texts(o.ForbiddenAddresses), " "))
	}
	if o.TrustDomain != "" {
		parts = append(parts, "trust domain "+o.TrustDomain)
	}
	if o.BlockedKeys != nil {
		parts = append(parts, "blocked keys "+o.BlockedKeys.hash)
	}
	for _, part := range parts {
		sum := sha256.Sum256([]byte(part))
		h.Write(sum[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}
