package issuer

import (
	"sync"
	"time"

	"hsm-signer/issuer/journal"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10"
)

// A budget counts what was issued in the last hour, or is about to be, against the limits of the
// policy that grants. It is safe for concurrent use. It lives in memory, and begins with what the
// journal knows of the last hour, so that a restart gives nobody another hour's worth.
type budget struct {
	recall  sync.Once
	mu      sync.Mutex
	entries []entry        // the oldest first
	counted map[string]int // by request, account, namespace, pod, and namespace within a rule
	rules   map[string]int // by rule
}

// An entry is one request's. Its keys say what they are, so that none is taken for another; one is
// empty when it is not known.
type entry struct {
	at                    time.Time
	rule                  string
	request, account, pod string
	namespace, inRule     string
}

func newEntry(uid, rule string, spender policy.Spender, at time.Time) entry {
	e := entry{at: at, rule: rule, request: "request " + uid, account: "account " + spender.Account}
	if spender.Pod != "" {
		e.pod = "pod " + spender.Pod
	}
	if spender.Namespace != "" {
		e.namespace = "namespace " + spender.Namespace
		e.inRule = "namespace " + spender.Namespace + " in rule " + rule
	}
	return e
}

func newBudget() *budget { return &budget{counted: map[string]int{}, rules: map[string]int{}} }

// begin counts what was issued before this process was started. Only its first call does anything.
func (b *budget) begin(recent []journal.Recent, now time.Time) {
	b.recall.Do(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, r := range recent {
			// clocks may have been set back
			e := newEntry(r.UID, r.Rule, policy.SpenderOf(r.Requester), earliest(r.At, now))
			b.entries = append(b.entries, e)
			b.count(e, 1)
		}
	})
}

// reserve counts the grant's certificate, once for each request however often it is called. It
// returns the budget that is spent, or nil.
func (b *budget) reserve(g *policy.Grant, now time.Time) *policy.OverBudget {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.entries) > 0 && now.Sub(b.entries[0].at) >= policy.BudgetWindow {
		b.count(b.entries[0], -1)
		b.entries = b.entries[1:]
	}
	e := newEntry(g.RequestUID(), g.Rule(), g.Spender(), now)
	if b.counted[e.request] > 0 {
		return nil
	}
	if over := b.spent(e, g.Spender(), g.Budget()); over != nil {
		return over
	}
	if over := b.spentByAll(e, g.Budget()); over != nil {
		return over
	}
	b.entries = append(b.entries, e)
	b.count(e, 1)
	return nil
}

// spent returns the budget of the requester's own, or of its rule, that is spent, or nil. The
// caller must hold mu.
func (b *budget) spent(e entry, spender policy.Spender, limits policy.Budget) *policy.OverBudget {
	rule, quote := limits.Rule(e.rule), pkcs10.Quote
	switch {
	case e.pod != "" && b.counted[e.pod] >= limits.Pod:
		return b.over("pod "+quote(spender.Pod), limits.Pod, func(old entry) bool {
			return old.pod == e.pod
		})
	case b.counted[e.account] >= limits.Account():
		return b.over("account "+quote(spender.Account), limits.Account(), func(old entry) bool {
			return old.account == e.account
		})
	case e.namespace != "" && b.counted[e.namespace] >= limits.Namespace:
		return b.over("namespace "+quote(spender.Namespace), limits.Namespace,
			func(old entry) bool { return old.namespace == e.namespace })
	case e.inRule != "" && b.counted[e.inRule] >= rule.Namespace:
		return b.over("namespace "+quote(spender.Namespace)+" in rule "+quote(e.rule),
			rule.Namespace, func(old entry) bool { return old.inRule == e.inRule })
	case rule.Limit < limits.Total && b.rules[e.rule] >= rule.Limit:
		return b.over("rule "+quote(e.rule), rule.Limit, func(old entry) bool {
			return old.rule == e.rule
		})
	}
	return nil
}

// spentByAll returns the total if nothing is left of it, or nothing but what is reserved for other
// rules; otherwise nil. The caller must hold mu.
func (b *budget) spentByAll(e entry, limits policy.Budget) *policy.OverBudget {
	if len(b.entries) >= limits.Total {
		return b.over("all together", limits.Total, func(entry) bool { return true })
	}
	if b.rules[e.rule] < limits.Rule(e.rule).Reserve {
		return nil
	}
	shared := 0 // a rule that the policy no longer has has no reserve
	for rule, count := range b.rules {
		shared += max(0, count-limits.Rule(rule).Reserve)
	}
	if shared < limits.Shared() {
		return nil
	}
	beyond := func(old entry) bool { return b.rules[old.rule] > limits.Rule(old.rule).Reserve }
	if limits.Shared() == 0 {
		return b.over("rule "+pkcs10.Quote(e.rule), limits.Rule(e.rule).Reserve,
			func(old entry) bool { return old.rule == e.rule })
	}
	return b.over("all rules beyond what is reserved for each", limits.Shared(), beyond)
}

// count adds the entry, or takes it away. The caller must hold mu.
func (b *budget) count(e entry, by int) {
	for _, key := range []string{e.request, e.account, e.pod, e.namespace, e.inRule} {
		if b.counted[key] += by; b.counted[key] == 0 {
			delete(b.counted, key)
		}
	}
	if b.rules[e.rule] += by; b.rules[e.rule] == 0 {
		delete(b.rules, e.rule)
	}
}

// over returns a budget that is spent until the oldest of the entries that count for it is
// forgotten. The caller must hold mu.
func (b *budget) over(whose string, limit int, counts func(entry) bool) *policy.OverBudget {
	for _, e := range b.entries {
		if counts(e) {
			return &policy.OverBudget{Whose: whose, Limit: limit,
				Until: e.at.Add(policy.BudgetWindow)}
		}
	}
	// unreachable while every limit is at least 1
	return &policy.OverBudget{Whose: whose, Limit: limit}
}
