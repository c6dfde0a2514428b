package policy

import "sync/atomic"

// A Current is the policy in force, which can be replaced while requests are being decided: each is
// decided under one policy, and what an earlier one granted is void. It is safe for concurrent use.
type Current struct{ policy atomic.Pointer[Policy] }

// NewCurrent puts the policy in force.
func NewCurrent(p *Policy) *Current {
	c := &Current{}
	c.policy.Store(p)
	return c
}

// Policy returns the policy in force.
func (c *Current) Policy() *Policy { return c.policy.Load() }

// Decide answers as the policy in force does; see [Policy.Decide].
func (c *Current) Decide(r *Request, facts Facts) Verdict { return c.Policy().Decide(r, facts) }

// PodQuery returns the query of the policy in force; see [Policy.PodQuery].
func (c *Current) PodQuery(r *Request) (PodQuery, bool) { return c.Policy().PodQuery(r) }

// Replace puts another policy in force and withdraws the one before.
func (c *Current) Replace(p *Policy) { c.policy.Swap(p).Withdraw() }
