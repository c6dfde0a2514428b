// Package policy decides.
//
// Duty: answer, for one certificate request, whether the one who asks may have
// the certificate that it asks for. What was asked is read in a closed world
// (package pkcs10); the rules are data, in YAML; what no rule grants is
// refused.
//
// Contract: a [Verdict] is exactly one of [*Grant], [*Refusal] and [*NotYet].
// Only this package can make a Grant, and a Grant permits exactly one
// certificate, once, under the policy that gave it. There is no I/O here, no
// clock, and no Kubernetes client: what must be known of the world (the
// requester's pod) is brought along in the [Request]. The requester's labels and
// annotations are not even part of it.
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

// A Policy is a compiled set of rules. It does not change; [Policy.Withdraw]
// ends it. It is safe for concurrent use.
type Policy struct {
	rules         []rule
	budget        Budget
	hash          string
	clusterDomain string
	blocked       *BlockedKeys
	withdrawn     atomic.Bool
}

// Options are what rules depend on beside their own text.
type Options struct {
	// ClusterDomain ends the names of services: "cluster.local".
	ClusterDomain string
	// MaxLifetime is the longest that any certificate is granted for.
	MaxLifetime time.Duration
	// ForbiddenAddresses are certified for no pod, whatever its status says, and match no prefix. A rule
	// that writes one out grants it.
	ForbiddenAddresses []netip.Addr
	// BlockedKeys are granted nothing; nil blocks none.
	BlockedKeys *BlockedKeys
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

// Withdraw ends the policy: grants that it gave and that were not redeemed are
// void from now on.
func (p *Policy) Withdraw() { p.withdrawn.Store(true) }

// Decide answers whether the request may have its certificate. It is granted
// when one rule grants all of it; otherwise the answer holds every reason of the
// rule that came nearest. What takes long to find out is not looked at yet: see [Grant.Examine].
func (p *Policy) Decide(r *Request) Verdict {
	if !p.speaksOf(r) { // nothing more is looked at, so that it costs little to refuse
		return &Refusal{PolicyHash: p.hash, Reasons: []Reason{p.stranger(r)}}
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
	if reason, blocked := p.blocked.refuse(r); blocked {
		refusal.Reasons = append(refusal.Reasons, reason)
	}
	finding := p.judge(r)
	switch {
	case len(refusal.Reasons) > 0 || len(finding.reasons) > 0:
		refusal.Reasons = append(refusal.Reasons, finding.reasons...)
		return refusal
	case finding.missing != "":
		return &NotYet{Rule: finding.rule.name, Missing: finding.missing}
	}
	return p.grant(r, finding)
}

// invalid is the reason for which a request is refused for what it is.
func invalid(fault pkcs10.Fault) Reason {
	return Reason{Code: InvalidRequest, Rule: ruleClosedWorld, Field: fault.Field, Message: fault.Message}
}

// judge puts the request before every rule that speaks of its requester (one
// must) and returns the finding that is best for it: granted before missing a
// fact before refused, and among the refused the one with the fewest reasons.
func (p *Policy) judge(r *Request) finding {
	var best *finding
	for i := range p.rules {
		if !p.rules[i].from.speaksOf(r) {
			continue
		}
		f := p.rules[i].judge(r)
		if best == nil || f.better(best) {
			best = &f
		}
	}
	return *best
}

// Knows reports whether a rule speaks of the requester. If none does, [Policy.Decide] refuses whatever
// the request holds, and no pod needs to be looked up.
func (p *Policy) Knows(requester Requester) bool {
	return p.speaksOf(&Request{Submission: Submission{Requester: requester}})
}

// speaksOf tells whether any rule speaks of the requester.
func (p *Policy) speaksOf(r *Request) bool {
	return slices.ContainsFunc(p.rules, func(one rule) bool { return one.from.speaksOf(r) })
}

// stranger is the reason for which a requester of whom no rule speaks is refused.
func (p *Policy) stranger(r *Request) Reason {
	return Reason{
		Code: RequesterNotAllowed, Rule: ruleDefaultDeny, Field: "requester",
		Message: "is " + r.Requester.describe() + ", of whom no rule speaks",
		Allowed: p.requesters(),
	}
}

// TakesUnboundTokens tells whether a rule takes tokens that name no pod, as those of
// clusters before Kubernetes 1.22 are.
func (p *Policy) TakesUnboundTokens() bool {
	return slices.ContainsFunc(p.rules, func(one rule) bool { return one.from.pod != podBound })
}

// requesters lists those whom the rules speak of.
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
	if o.BlockedKeys != nil {
		parts = append(parts, "blocked keys "+o.BlockedKeys.hash)
	}
	for _, part := range parts {
		sum := sha256.Sum256([]byte(part))
		h.Write(sum[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}
