package hsm

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
)

// Waits between attempts to reach a missing token.
const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = 15 * time.Second
	// After a login that may have failed for the PIN; see mayMeanPIN. Tokens lock after three to ten.
	firstLoginRetry = 30 * time.Second
	lastLoginRetry  = 15 * time.Minute

	defaultTimeout = 10 * time.Second

	// goodFor is how long a signature shows that the token can sign.
	goodFor = 2 * time.Second
	// goodEnough is how long it shows that to [Key.Look], as long as the token holds the key.
	goodEnough = time.Minute
)

// A Key is the CA's private key in its token. It connects when it is first
// needed, and again after the token was gone. It is safe for concurrent use.
type Key struct {
	config Config
	public crypto.PublicKey
	mech   mechanism

	// Who uses the connection is in the gate; who makes or closes it, alone.
	gate    *gate
	library *library    // nil: not loaded
	conn    *connection // nil: not connected
	closed  bool
	pool    atomic.Pointer[pool] // of the connection, for callers that must not wait

	counts counts
	began  time.Time     // an hour before the key was made: good counts from here
	good   atomic.Int64  // when the last signature was made, in ns since then; 0: never
	probe  chan struct{} // one test signature at a time

	mu        sync.Mutex    // guards what follows
	last      error         // why one does not connect before notYet
	refused   PINSource     // the PIN that the token did not take; nil after it took one
	hung      int           // attempts in a row that left calls hanging
	hungSince time.Time     // when the first of them had failed
	credit    int           // signatures for callers that no failure has used up yet; see earn
	inVain    int           // connections in a row that were lost before they had signed for anybody
	wait      time.Duration // for the next attempt
	loginWait time.Duration // for the next after a login that may have been one with a wrong PIN
	notYet    time.Time     // do not try to connect before this
}

// NewKey returns the key in the token whose public half is public (the one in the CA's
// certificate). It does not touch the token yet.
func NewKey(config Config, public crypto.PublicKey) (*Key, error) {
	mech, err := mechanismFor(public)
	if err != nil {
		return nil, err
	}
	config = config.withDefaults(public)
	return &Key{config: config, public: public, mech: mech, gate: newGate(), began: time.Now().Add(-time.Hour), probe: make(chan struct{}, 1)}, nil
}

// withDefaults fills in what was left open.
func (c Config) withDefaults(public crypto.PublicKey) Config {
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	if c.MaxSessions <= 0 {
		c.MaxSessions = defaultSessions
	}
	if c.Signature == nil {
		c.Signature = crypto.SHA256
		if _, ok := public.(ed25519.PublicKey); ok {
			c.Signature = crypto.Hash(0)
		}
	}
	return c
}

// Public returns the public half.
func (k *Key) Public() crypto.PublicKey { return k.public }

// Ready returns nil if the key can sign now: it has just signed, or it signs
// a fixed text. After a fault it connects again, when the last attempt to do so
// was long enough ago. It fails with [ErrUnproven] where no test signature may be made.
func (k *Key) Ready(ctx context.Context) error { return k.prove(ctx, goodFor, k.testSignature) }

// Look is [Key.Ready] for callers that poll: it makes a test signature at most once a minute, and in between
// checks that the token still holds the key, as it does with [ErrUnproven].
func (k *Key) Look(ctx context.Context) error {
	if k.provenFor(goodEnough) {
		return k.prove(ctx, goodFor, k.touch)
	}
	err := k.prove(ctx, goodFor, k.testSignature)
	if !errors.Is(err, ErrUnproven) {
		return err
	}
	if touched := k.prove(ctx, goodFor, k.touch); touched != nil {
		return touched
	}
	return err
}

// prove returns nil if a signature was made within a time, or else what the look at the connection says. After a
// fault it connects again.
func (k *Key) prove(ctx context.Context, within time.Duration, look func(context.Context, *connection) error) error {
	if k.provenFor(within) {
		return nil
	}
	select {
	case k.probe <- struct{}{}:
		defer func() { <-k.probe }()
	case <-ctx.Done():
		return faultf(ErrUnavailable, "the token does not respond: a test signature has not returned yet")
	}
	if k.provenFor(within) {
		return nil
	}
	conn, err := k.connected(ctx)
	if err == nil && conn == nil {
		if err = k.connect(ctx, nil, newLogin); err == nil {
			conn, err = k.connected(ctx)
		}
	}
	if err != nil || k.provenFor(within) {
		return err
	}
	err = look(ctx, conn)
	if r := rungOf(err); r > giveUp { // a test signature that fails on its session says too little
		return k.connect(ctx, conn, max(r, newLogin))
	}
	return err
}

// provenFor reports whether the last signature was made within a time.
func (k *Key) provenFor(within time.Duration) bool {
	good := k.good.Load()
	return good != 0 && time.Since(k.began)-time.Duration(good) < within
}

func (k *Key) connected(ctx context.Context) (*connection, error) {
	if err := k.gate.enter(ctx); err != nil {
		return nil, k.busy(err)
	}
	defer k.gate.leave()
	return k.conn, nil
}

// busy is the fault of a caller that could not wait while the token is being connected.
func (k *Key) busy(err error) error {
	return faultf(ErrUnavailable, "timed out waiting for the token connection: %v", err)
}

// testSignature makes a test signature on a connection that is in use.
func (k *Key) testSignature(ctx context.Context, conn *connection) error {
	return k.on(ctx, conn, func() error { return k.signTestTwice(ctx, conn, ProbeReady) })
}

// touch looks whether the token still has the key, and lets it be used: it reads an attribute.
func (k *Key) touch(ctx context.Context, conn *connection) error {
	return k.on(ctx, conn, func() error {
		if _, err := conn.attribute(ctx, conn.key, pkcs11.CKA_CLASS); err != nil {
			return unavailable(err, "look at the private %s", k.config.Key)
		}
		return nil
	})
}

// on does something on a connection while it is in use.
func (k *Key) on(ctx context.Context, conn *connection, do func() error) error {
	if err := k.gate.enter(ctx); err != nil {
		return k.busy(err)
	}
	defer k.gate.leave()
	if k.conn != conn || conn == nil {
		return faultf(ErrUnavailable, "the token was connected again")
	}
	return do()
}

// signTest signs a fixed text, never a caller's, after it has said so. That its signature verifies shows
// that the key belongs to the CA certificate.
func (k *Key) signTest(ctx context.Context, conn *connection, when ProbeTime) error {
	if k.config.BeforeProbe != nil {
		if err := k.config.BeforeProbe(ctx, when); err != nil {
			return faultf(ErrUnproven, "logged in to the token, but no test signature was made: it could not be recorded: %v", err)
		}
	}
	_, err := k.signVerified(ctx, conn, probe(k.config.Signature), k.config.Signature)
	if err != nil && !errors.Is(err, ErrKey) {
		return unavailable(err, "test signature with the private %s", k.config.Key)
	}
	return err
}

// signTestTwice is signTest, and makes a second test signature if the fault may be the session's.
func (k *Key) signTestTwice(ctx context.Context, conn *connection, when ProbeTime) error {
	err := k.signTest(ctx, conn, when)
	if retriesOnSession(err) {
		err = k.signTest(ctx, conn, when)
	}
	return err
}

// probe is what a test signature of that kind is given: the digest of the text, or for Ed25519 the text itself.
func probe(opts crypto.SignerOpts) []byte {
	hash := opts.HashFunc()
	if hash == 0 {
		return []byte(ProbeText)
	}
	h := hash.New()
	h.Write([]byte(ProbeText))
	return h.Sum(nil)
}

// foreign is the fault of a key that is not the CA's.
func (k *Key) foreign(why string) error { return k.foreignFor(nil, why) }

// foreignFor is foreign where PKCS#11 said so, with its code.
func (k *Key) foreignFor(cause error, why string) error {
	const text = "the private %s is not the key of the CA certificate: %s. " +
		"Name the key and the certificate that belong together"
	return &fault{kind: ErrKey, text: fmt.Sprintf(text, k.config.Key, why), cause: cause}
}

func verifies(public crypto.PublicKey, opts crypto.SignerOpts, digest, signature []byte) bool {
	switch key := public.(type) {
	case *rsa.PublicKey:
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(key, opts.HashFunc(), digest, signature, pss) == nil
		}
		return rsa.VerifyPKCS1v15(key, opts.HashFunc(), digest, signature) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, digest, signature)
	case ed25519.PublicKey:
		return ed25519.Verify(key, digest, signature)
	}
	return false
}

// Signer returns a [crypto.Signer] whose signatures end with the context.
func (k *Key) Signer(ctx context.Context) crypto.Signer { return signer{k, ctx} }

type signer struct {
	key *Key
	ctx context.Context
}

func (s signer) Public() crypto.PublicKey { return s.key.public }

func (s signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.key.sign(s.ctx, digest, opts)
}

// attempts bounds how often one signature is tried: on two connections as often as onSessions says,
// or on more if each try costs one.
const attempts = 6

// sign signs; after a fault it goes back as far as it must and tries again.
func (k *Key) sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := k.Ready(ctx); err != nil {
		return nil, err
	}
	var err error
	retries := 0 // on other sessions of the same connection
	for range attempts {
		var conn *connection
		var signature []byte
		conn, signature, err = k.attempt(ctx, digest, opts)
		if err == nil {
			return signature, nil
		}
		switch r := rungOf(err); {
		case r == giveUp:
			return nil, unavailable(err, "sign with the private %s", k.config.Key)
		case retriesOnSession(err) && k.onSessions(retries):
			retries++
		default:
			if err := k.connect(ctx, conn, max(r, newLogin)); err != nil {
				return nil, fmt.Errorf("after a fault of the token: %w", err)
			}
			retries = 0
		}
	}
	return nil, unavailable(err, "sign with the private %s, after %d attempts", k.config.Key, attempts)
}

// onSessions reports whether a signature may be tried on another session after so many retries. The
// first is free, the second costs credit.
func (k *Key) onSessions(retries int) bool { return retries == 0 || retries == 1 && k.spend() }

// attempt signs once and returns the connection that it used.
func (k *Key) attempt(ctx context.Context, digest []byte, opts crypto.SignerOpts) (*connection, []byte, error) {
	if err := k.gate.enter(ctx); err != nil {
		return nil, nil, k.busy(err)
	}
	defer k.gate.leave()
	if k.conn == nil {
		return nil, nil, faultf(ErrUnavailable, "the token is not connected")
	}
	signature, err := k.signVerified(ctx, k.conn, digest, opts)
	if err == nil {
		k.conn.served.Store(true)
		k.earn()
	}
	return k.conn, signature, err
}

// signVerified signs, and lets only a signature out that verifies with the CA's public key: a
// handle may come to name another key.
func (k *Key) signVerified(ctx context.Context, conn *connection, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, err := conn.sign(ctx, k.mech, conn.key, digest, opts)
	form := (*formError)(nil)
	switch {
	case errors.As(err, &form):
		return nil, &fault{kind: ErrKey, cause: err, text: fmt.Sprintf("sign with the private %s: %v", k.config.Key, err)}
	case is(err, pkcs11.CKR_KEY_TYPE_INCONSISTENT):
		return nil, k.foreignFor(err, "it is of another type")
	case errors.Is(err, ErrKey):
		return nil, k.foreign(err.Error())
	case err != nil:
		return nil, err
	case !verifies(k.public, opts, digest, signature):
		return nil, k.foreign("its signature does not verify with it")
	}
	k.counts.signatures.Add(1)
	k.good.Store(int64(time.Since(k.began)))
	return signature, nil
}

// Proof returns what the token says of the key's attributes; it connects if need be.
func (k *Key) Proof(ctx context.Context) (Proof, error) {
	if err := k.Look(ctx); err != nil && !errors.Is(err, ErrUnproven) {
		return Proof{}, err
	}
	if err := k.gate.enter(ctx); err != nil {
		return Proof{}, k.busy(err)
	}
	defer k.gate.leave()
	if k.conn == nil {
		return Proof{}, faultf(ErrUnavailable, "the token is not connected")
	}
	return k.conn.prove(ctx, k.conn.key)
}

// Stats returns what the key did so far, and the sessions that it has now. It waits for nothing.
func (k *Key) Stats() Stats {
	n := &k.counts
	stats := Stats{
		Signatures: n.signatures.Load(), Logins: n.logins.Load(), Connections: n.connections.Load(),
		Initialised: n.initialised.Load(), Abandoned: n.abandoned.Load(), Hanging: n.hanging.Load(),
	}
	if pool := k.pool.Load(); pool != nil {
		stats.Sessions = pool.sessions()
	}
	return stats
}

// Close closes the sessions and the module permanently. It waits for callers, but not for calls that
// hang.
func (k *Key) Close() {
	if k.gate.lock(context.Background()) != nil { // nothing ends that context
		return
	}
	defer k.gate.unlock()
	k.closed = true
	k.disconnect()
	k.unload(context.Background())
}
