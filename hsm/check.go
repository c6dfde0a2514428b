package hsm

import (
	"context"
	"crypto"
	"fmt"
	"time"

	"github.com/miekg/pkcs11"
)

// A Step is one precondition of signing and how it stands.
type Step struct {
	Name    string
	Detail  string // what was found
	Warning bool   // it holds, and what was found must not go unseen
	Err     error  // why it does not hold
	Skipped bool   // an earlier one does not hold
}

// CheckOptions are what [Check] does in addition.
type CheckOptions struct {
	TryPIN  bool      // even if the token reports a wrong one
	Other   *OtherKey // checked last; nil if there is none
	OtherAs string    // the name of its step
}

// Check goes through the preconditions of signing in the order in which a
// support engineer would ask, and reports each. Nothing is changed. The PIN is
// tried once, and not at all if the token reports a wrong one.
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
	if conn.library != nil {
		conn.library.close(ctx)
	}
	return results
}

// A precondition checks one thing and reports what it found. Each relies on those before it.
type precondition struct {
	name string
	look func() (detail string, warning bool, err error)
}

// preconditions are those of signing with the key; they build up the connection.
func preconditions(ctx context.Context, k *Key, conn *connection, o CheckOptions) []precondition {
	c := k.config
	all := []precondition{
		{"module", func() (detail string, _ bool, err error) {
			if conn.library, err = load(ctx, c, &k.counts); err == nil {
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
				return "not locked, but a wrong PIN was tried since the last login", true, conn.pinState(c)
			}
			return "not locked", false, conn.pinState(c)
		}},
		{"login", func() (string, bool, error) {
			if conn.wrongPIN() && !o.TryPIN {
				return "", false, faultf(ErrPIN, "the PIN was not tried: the token has counted a wrong PIN since the last login, and tokens lock after a few. Compare the PIN with its source, then log in by hand once, or try it here with --try-pin")
			}
			err := conn.start(ctx, c)
			if conn.alreadyIn {
				return "another application is already logged in, so the token DID NOT CHECK THE PIN: check again when that application has ended", true, err
			}
			return "the token accepts the PIN", false, err
		}},
		{"key", func() (string, bool, error) { return "the private " + c.Key.String(), false, conn.findKey(ctx, c.Key) }},
		{"key cannot leave", func() (string, bool, error) { return k.checkProof(ctx, conn) }},
		{"key is the CA's", func() (string, bool, error) {
			begin := time.Now()
			err := k.signTest(ctx, conn, ProbeBegin)
			return fmt.Sprintf("a test signature verifies with the CA certificate; it took %s", time.Since(begin).Round(10*time.Microsecond)), false, err
		}},
	}
	if o.Other != nil {
		all = append(all, precondition{o.OtherAs, func() (string, bool, error) { return o.Other.check(ctx, conn) }})
	}
	return all
}

// describeLibrary returns the module's description of itself (C_GetInfo).
func (c *connection) describeLibrary(ctx context.Context, path string) (string, error) {
	info, err := call(ctx, c.library, c.timeout, "C_GetInfo", func() (pkcs11.Info, error) { return c.library.module.GetInfo() }, nil)
	if err != nil {
		return "", unavailable(err, "ask the module %s what it is", path)
	}
	return fmt.Sprintf("%s: %s by %s, version %d.%d, for PKCS#11 %d.%d", path, trim(info.LibraryDescription), trim(info.ManufacturerID),
		info.LibraryVersion.Major, info.LibraryVersion.Minor, info.CryptokiVersion.Major, info.CryptokiVersion.Minor), nil
}

func (c *connection) describeToken() string {
	t := c.token
	sessions := "any number of sessions"
	if limit := t.MaxSessionCount; limit != 0 && limit != ^uint(0) {
		sessions = fmt.Sprintf("at most %d sessions", limit)
	}
	return fmt.Sprintf("%q, serial number %s, in slot %d: %s by %s, firmware %d.%d, %s", trim(t.Label), trim(t.SerialNumber), c.slot,
		trim(t.Model), trim(t.ManufacturerID), t.FirmwareVersion.Major, t.FirmwareVersion.Minor, sessions)
}

func (k *Key) checkProof(ctx context.Context, conn *connection) (string, bool, error) {
	proof, err := conn.prove(ctx, conn.key)
	if err == nil {
		err = k.judge(proof)
	}
	if err == nil {
		err = conn.requireOneLogin(ctx, k.config.Key)
	}
	if err == nil && !proof.Holds() {
		return "IT CAN, which ALLOW_EXTRACTABLE_KEY allows: " + proof.String(), true, nil
	}
	return proof.String(), proof.Doubtful(), err
}

// wrongPIN reports whether the token has counted a wrong PIN since the last login.
func (c *connection) wrongPIN() bool { return c.token.Flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0 }
