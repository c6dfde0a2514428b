//go:build cgo

package hsm

import (
	"context"
	"crypto"
	"fmt"
	"time"
)

// A Step is one precondition of signing and its result.
type Step struct {
	Name    string
	Detail  string // what was found
	Warning bool   // it holds, but the detail needs attention
	Err     error  // why it does not hold
	Skipped bool   // an earlier one does not hold
}

// CheckOptions are options of [Check].
type CheckOptions struct {
	TryPIN     bool           // also after a wrong PIN that the token reports
	Checkpoint *CheckpointKey // checked last; nil: there is none
}

// Check checks the preconditions of signing in the order in which a support engineer would ask, and
// reports each. It changes nothing. It tries the PIN once, but not after a wrong one that the token
// reports.
func Check(ctx context.Context, c Config, public crypto.PublicKey, o CheckOptions) []Step {
	k, err := NewKey(c, public)
	if err != nil {
		return []Step{{Name: "key", Err: err}}
	}
	conn := &connection{}
	var results []Step
	failed := false
	for _, p := range preconditions(ctx, k, conn, o) {
		result := Step{Name: p.name, Skipped: failed}
		if !failed {
			result.Detail, result.Warning, result.Err = p.look()
			if result.Err != nil {
				result.Detail, result.Warning, failed = "", false, true
			}
		}
		results = append(results, result)
	}
	if conn.Connection != nil {
		conn.Close()
	}
	k.user.Leave(ctx)
	return results
}

// A precondition checks one thing and returns what it found. Each relies on those before it.
type precondition struct {
	name string
	look func() (detail string, warning bool, err error)
}

// preconditions returns those of signing with the key. Together they build the connection.
func preconditions(ctx context.Context, k *Key, conn *connection, o CheckOptions) []precondition {
	c := k.config
	all := []precondition{
		{"module", func() (detail string, _ bool, err error) {
			if err := k.user.Load(ctx); err != nil {
				return "", false, err
			}
			conn.Connection = k.user.NewConnection()
			detail, err = k.user.Describe(ctx)
			return detail, false, err
		}},
		{"token", func() (string, bool, error) {
			err := conn.FindToken(ctx)
			return conn.Describe(), false, err
		}},
		{"PIN state", func() (string, bool, error) { return conn.checkPINState(ctx) }},
		{"login", func() (string, bool, error) { return conn.checkLogin(ctx, o.TryPIN) }},
		{"key", func() (string, bool, error) {
			return "the private " + c.Key.String(), false, conn.findKey(ctx, c.Key)
		}},
		{"key cannot leave", func() (string, bool, error) { return k.checkAttributes(ctx, conn) }},
		{"key is the CA's", func() (string, bool, error) {
			begin := time.Now()
			err := k.signTest(ctx, conn, ProbeBegin)
			return fmt.Sprintf("a test signature verifies with the CA certificate; it took %s",
				time.Since(begin).Round(10*time.Microsecond)), false, err
		}},
	}
	if o.Checkpoint != nil {
		all = append(all,
			precondition{"checkpoint key",
				func() (string, bool, error) { return o.Checkpoint.check(ctx, conn) }})
	}
	return all
}

func (c *connection) checkPINState(ctx context.Context) (detail string, warning bool, err error) {
	err = c.PINState(ctx)
	if c.WrongPIN() {
		return "not locked, but a wrong PIN was tried since the last login", true, err
	}
	return "not locked", false, err
}

func (c *connection) checkLogin(ctx context.Context,
	tryPIN bool) (detail string, warning bool, err error) {
	if c.WrongPIN() && !tryPIN {
		return "", false, faultf(ErrPIN, "the PIN was not tried: the token has counted a wrong "+
			"PIN since the last login, and tokens lock after a few. Compare the PIN with its "+
			"source, then log in by hand once, or try it here with --try-pin")
	}
	err = c.Login(ctx)
	if c.AlreadyLoggedIn() {
		return "another application is logged in, so the token DID NOT CHECK THE PIN: run check " +
			"again when that has ended", true, err
	}
	return "the token accepts the PIN", false, err
}

func (k *Key) checkAttributes(ctx context.Context, conn *connection) (string, bool, error) {
	attributes, err := conn.attributes(ctx, conn.key)
	if err == nil {
		err = k.judge(attributes)
	}
	if err == nil {
		err = conn.requireOneLogin(ctx, k.config.Key)
	}
	if err == nil && !attributes.Holds() {
		return "IT CAN, and ALLOW_EXTRACTABLE_KEY allows that: " + attributes.String(), true, nil
	}
	return attributes.String(), attributes.Doubtful(), err
}
