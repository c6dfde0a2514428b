package policy

import (
	"slices"
	"strings"
	"time"
)

// A Verdict is exactly one of [*Grant], [*Refusal] and [*Waiting].
type Verdict interface{ verdict() }

func (*Grant) verdict()   {}
func (*Refusal) verdict() {}
func (*Waiting) verdict() {}

// A Code says in one CamelCase word why a request was refused. It becomes the reason of the
// condition, so the set is small and does not change.
type Code string

// Every Code there is; see [Codes].
const (
	InvalidRequest      Code = "InvalidRequest"      // the PKCS#10 request itself is wrong
	ObjectTooLarge      Code = "ObjectTooLarge"      // the API object has no room for an answer
	RequesterNotAllowed Code = "RequesterNotAllowed" // no rule applies to the requester
	// the requester is not the live pod that it should be
	PodNotVerified Code = "PodNotVerified"
	NameNotAllowed Code = "NameNotAllowed" // a name is not the requester's
	// the type of the key, or a key that is blocked
	KeyNotAllowed   Code = "KeyNotAllowed"
	UsageNotAllowed Code = "UsageNotAllowed" // one of spec.usages
	ConditionNotMet Code = "ConditionNotMet" // a condition of the rule's own
	NotIssuable     Code = "NotIssuable"     // the CA or a lint rules the certificate out
	// an earlier certificate of the request no longer fits
	FormerCertificate Code = "FormerCertificate"

	// These two are for pod certificates alone, with the words of the API
	// (PodCertificateRequest, status.conditions).
	UnsupportedKeyType Code = "UnsupportedKeyType" // the type of the key
	// an annotation that no rule names
	InvalidAnnotations Code = "InvalidUnverifiedUserAnnotations"
)

// Codes lists every Code.
func Codes() []Code {
	return []Code{InvalidRequest, ObjectTooLarge, RequesterNotAllowed, PodNotVerified,
		NameNotAllowed,
		KeyNotAllowed, UsageNotAllowed, ConditionNotMet, NotIssuable, FormerCertificate,
		UnsupportedKeyType, InvalidAnnotations}
}

// A Reason is one way in which a request falls short of a rule.
type Reason struct {
	Code  Code   `json:"code,omitempty"` // a log of decisions leaves it out
	Rule  string `json:"rule,omitempty"` // the rule's name
	Field string `json:"field"`          // what is wrong, as a path
	// how it is wrong; safe to show to the requester and in a terminal
	Message string `json:"message"`
	// what the rule would have allowed; not for the requester
	Allowed []string `json:"allowed,omitempty"`
}

// String returns the reason as a sentence, with what would have been allowed.
func (r Reason) String() string {
	text := r.sentence()
	if len(r.Allowed) > 0 {
		text += " (allowed: " + strings.Join(r.Allowed, ", ") + ")"
	}
	return text
}

// sentence is what the requester may read.
func (r Reason) sentence() string { return "rule " + r.Rule + ": " + r.Field + " " + r.Message }

// A Refusal says no, with every reason of the rule that came nearest. It is final.
type Refusal struct {
	Reasons    []Reason
	PolicyHash string // the [Policy.Hash] of the policy that refuses
	// of the DER request, hex; empty if unreadable, or no rule names the requester
	RequestSHA256 string
}

// TooLarge refuses a request whose API object has no room for an answer.
func TooLarge(message string) *Refusal { return &Refusal{Reasons: []Reason{tooLarge(message)}} }

func tooLarge(message string) Reason {
	return Reason{Code: ObjectTooLarge, Rule: ruleClosedWorld, Field: "object", Message: message}
}

// Code returns the code of the first reason.
func (r *Refusal) Code() Code {
	if len(r.Reasons) == 0 {
		return InvalidRequest
	}
	return r.Reasons[0].Code
}

// Final reports whether no policy could grant the request: what is wrong lies in the request or in
// who asks, and not in a rule.
func (r *Refusal) Final() bool {
	return slices.ContainsFunc(r.Reasons, func(reason Reason) bool {
		return slices.Contains([]Code{InvalidRequest, ObjectTooLarge, PodNotVerified}, reason.Code)
	})
}

// Rule returns the rule of the first reason: the one that came nearest, or a built-in one.
func (r *Refusal) Rule() string {
	if len(r.Reasons) == 0 {
		return ruleClosedWorld
	}
	return r.Reasons[0].Rule
}

// UnknownRequester reports whether no rule applies to the requester.
func (r *Refusal) UnknownRequester() bool {
	return slices.ContainsFunc(r.Reasons, func(reason Reason) bool {
		return reason.Code == RequesterNotAllowed
	})
}

// Message returns what the requester may read: each reason with its rule and its field, at most
// 1 KiB of it.
func (r *Refusal) Message() string { return join(r.Reasons, Reason.sentence, 1<<10) }

// String returns what is for the operator, also what would have been allowed, at most 8 KiB of it.
func (r *Refusal) String() string { return join(r.Reasons, Reason.String, 8<<10) }

// join puts the reasons together, as many as there is room for.
func join(reasons []Reason, sentence func(Reason) string, most int) string {
	var text strings.Builder
	for i, reason := range reasons {
		one := sentence(reason)
		if i > 0 {
			one = "; " + one
		}
		const more = "; and more"
		if room := most - text.Len() - len(more); len(one) > room {
			return text.String() + strings.ToValidUTF8(one[:room], "") + more
		}
		text.WriteString(one)
	}
	return text.String()
}

// Waiting says that a fact or room in a budget is missing and may still come, or that a refusal is
// held: the request stays open and is tried again.
type Waiting struct {
	Rule    string       // the rule that would grant; empty if no rule was judged
	Missing string       // what is missing; safe to show
	Budget  *OverBudget  // the budget that is spent, or nil
	Held    *HeldRefusal // the refusal that is held, or nil
}

// A HeldRefusal is a refusal that becomes final only if the policy is still in force later.
type HeldRefusal struct {
	*Refusal
	Until time.Time // when it becomes final
}
