package hsm

import (
	"context"
	"crypto"
	"fmt"
	"time"

	"github.com/miekg/pkcs11"
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
	conn := &connection{timeout: k.config.Timeout}
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
	conn.close()
	if conn.module != nil {
		conn.module.close(ctx)
	}
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
			if conn.module, err = load(ctx, c, &k.counts); err == nil {
				detail, err = conn.describeLibrary(ctx, c.Module)
			}
			return detail, false, err
		}},
		{"token", func() (string, bool, error) {
			err := conn.findToken(ctx, c)
			return conn.describeToken(), false, err
		}},
		{"PIN state", func() (string, bool, error) {
			if conn.wrongPIN() {
				return "not locked, but a wrong PIN was tried since the last login", true,
					conn.pinState(c)
			}
			return "not locked", false, conn.pinState(c)
		}},
		{"login", func() (string, bool, error) {
			if conn.wrongPIN() && !o.TryPIN {
				return "", false, faultf(ErrPIN, "the PIN was not tried: the token has counted "+
					"a wrong PIN since the last login, and tokens lock after a few. Compare the "+
					"PIN with its source, then log in by hand once, or try it here with --try-pin")
			}
			err := conn.start(ctx, c)
			if conn.alreadyIn {
				return "another application is logged in, so the token DID NOT CHECK THE PIN: " +
					"run check again when that has ended", true, err
			}
			return "the token accepts the PIN", false, err
		}},
		{"key", func() (string, bool, error) {
			return "the private " + c.Key.String(), false,
				conn.findKey(ctx, c.Key)
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

// describeLibrary returns what the module says about itself (C_GetInfo).
func (c *connection) describeLibrary(ctx context.Context, path string) (string, error) {
	info, err := call(ctx, c.module, c.timeout, "C_GetInfo",
		func() (pkcs11.Info, error) { return c.module.ctx.GetInfo() }, nil)
	if err != nil {
		return "", unavailable(err, "ask the module %s what it is", path)
	}
	return fmt.Sprintf("%s: %s by %s, version %d.%d, for PKCS#11 %d.%d", path,
		trim(info.LibraryDescription), trim(info.ManufacturerID),
		info.LibraryVersion.Major, info.LibraryVersion.Minor, info.CryptokiVersion.Major,
		info.CryptokiVersion.Minor), nil
}

func (c *connection) describeToken() string {
	t := c.token
	sessions := "any number of sessions"
	if limit := t.MaxSessionCount; limit != 0 && limit != ^uint(0) {
		sessions = fmt.Sprintf("at most %d sessions", limit)
	}
	return fmt.Sprintf("%q, serial number %s, in slot %d: %s by %s, firmware %d.%d, %s",
		trim(t.Label), trim(t.SerialNumber), c.slot,
		trim(t.Model), trim(t.ManufacturerID), t.FirmwareVersion.Major, t.FirmwareVersion.Minor,
		sessions)
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

// wrongPIN reports whether the token says that a wrong PIN was tried after the last login.
func (c *connection) wrongPIN() bool { return c.token.Flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0 }
