package issuer

import (
	"sync"
	"time"

	"hsm-signer/issuer/journal"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10"
)

// A budget counts what was issued in the last hour, or is about to be, against the limits of the
// policy that grants. It is safe for concurrent use. It lives in memory, and begins with what the journal
// knows of the last hour, so that a restart gives nobody another hour's worth.
type budget struct {
	recall  sync.Once
	mu      sync.Mutex
	entries []entry        // the oldest first
	counted map[string]int // by request, by account and by pod
}

// An entry is one request's. Its keys say what they are, so that none is taken for another.
type entry struct {
	at                    time.Time
	request, account, pod string // pod is empty when none is known
}

func newEntry(uid string, spender policy.Spender, at time.Time) entry {
	e := entry{at: at, request: "request " + uid, account: "account " + spender.Account}
	if spender.Pod != "" {
		e.pod = "pod " + spender.Pod
	}
	return e
}

func newBudget() *budget { return &budget{counted: map[string]int{}} }

// begin counts what was issued before this process was started. Only its first call does anything.
func (b *budget) begin(recent []journal.Recent, now time.Time) {
	b.recall.Do(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, r := range recent {
			e := newEntry(r.UID, policy.SpenderOf(policy.Requester(r.Requester)), earliest(r.At, now)) // clocks may have been set back
			b.entries = append(b.entries, e)
			b.count(e, 1)
		}
	})
}

// reserve counts the grant's certificate, once for each request however often it is asked, or
// answers a [*policy.OverBudget].
func (b *budget) reserve(g *policy.Grant, now time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.entries) > 0 && now.Sub(b.entries[0].at) >= policy.BudgetWindow {
		b.count(b.entries[0], -1)
		b.entries = b.entries[1:]
	}
	spender, limits := g.Spender(), g.Budget()
	e := newEntry(g.RequestUID(), spender, now)
	switch {
	case b.counted[e.request] > 0:
		return nil
	case e.pod != "" && b.counted[e.pod] >= limits.Pod:
		return b.over("pod "+pkcs10.Quote(spender.Pod), limits.Pod, func(old entry) bool { return old.pod == e.pod })
	case b.counted[e.account] >= limits.Account():
		return b.over("account "+pkcs10.Quote(spender.Account), limits.Account(), func(old entry) bool { return old.account == e.account })
	case len(b.entries) >= limits.Total:
		return b.over("all together", limits.Total, func(entry) bool { return true })
	}
	b.entries = append(b.entries, e)
	b.count(e, 1)
	return nil
}

func (b *budget) count(e entry, by int) {
	for _, key := range []string{e.request, e.account, e.pod} {
		if b.counted[key] += by; b.counted[key] == 0 {
			delete(b.counted, key)
		}
	}
}

// over says that a budget is spent, until the oldest of the entries that count for it is forgotten.
func (b *budget) over(whose string, limit int, counts func(entry) bool) error {
	for _, e := range b.entries {
		if counts(e) {
			return &policy.OverBudget{Whose: whose, Limit: limit, Until: e.at.Add(policy.BudgetWindow)}
		}
	}
	return &policy.OverBudget{Whose: whose, Limit: limit} // unreachable while every limit is at least 1
}
