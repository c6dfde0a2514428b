//go:build cgo

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

	"hsm-signer/hsm/ckr"
	"hsm-signer/hsm/cryptoki"
)

// Waits between attempts to reach a missing token.
const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = 15 * time.Second

	defaultTimeout = 10 * time.Second

	// goodFor is how long a signature proves that the token can sign.
	goodFor = 2 * time.Second
	// goodEnough is how long it proves that to [Key.Healthy], while the key is there.
	goodEnough = time.Minute
)

// A Key is the CA's private key in its token. It connects when it is first needed, and again after
// the token was gone. It is safe for concurrent use.
type Key struct {
	config Config
	public crypto.PublicKey
	mech   mechanism

	// Users of the connection hold the lock for reading. Who opens or closes it holds it for
	// writing.
	lock   lock
	user   *cryptoki.User // of the module
	conn   *connection    // nil: not connected
	closed bool
	shown  atomic.Pointer[connection] // the connection, for callers that do not wait

	counts      cryptoki.Counts
	signatures  atomic.Int64  // that were verified, test signatures among them
	connections atomic.Int64  // that were made
	since       time.Time     // before the key was made; the monotonic clock counts from here
	good        atomic.Int64  // when the last signature was made, in ns since then; 0: never
	probe       chan struct{} // one test signature at a time

	mu        sync.Mutex    // guards what follows
	last      error         // why there is no attempt to connect before notYet
	refused   PINSource     // the PIN that the token rejected; nil after it accepted one
	hung      int           // attempts in a row that left calls hanging
	hungSince time.Time     // when the first of them had failed
	credit    int           // signatures for callers that no failure has used up yet; see earn
	unused    int           // connections in a row that were lost before they signed for a caller
	wait      time.Duration // for the next attempt
	loginWait time.Duration // for the next after a login that may have had a wrong PIN
	notYet    time.Time     // do not try to connect before this
}

// NewKey returns the key whose public half is public, the one in the CA's certificate. It does not
// connect to the token.
func NewKey(config Config, public crypto.PublicKey) (*Key, error) {
	mech, err := mechanismFor(public)
	if err != nil {
		return nil, err
	}
	config = config.withDefaults(public)
	k := &Key{config: config, public: public, mech: mech, lock: newLock(),
		since: time.Now().Add(-time.Hour), probe: make(chan struct{}, 1)}
	k.user = cryptoki.NewUser(config.module(), &k.counts)
	return k, nil
}

// withDefaults sets the fields that have their zero value.
func (c Config) withDefaults(public crypto.PublicKey) Config {
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	c.MaxSessions = max(c.MaxSessions, 0)
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

// Ready returns nil if the key can sign: it has just signed, or it now signs a fixed text. After a
// fault it reconnects, if the last attempt was long enough ago. It fails with [ErrUnproven] if no
// test signature may be made.
func (k *Key) Ready(ctx context.Context) error { return k.probed(ctx, goodFor, k.testSignature) }

// Healthy is [Key.Ready] for callers that poll: it makes a test signature at most once a minute,
// and in between only checks that the key is there. With [ErrUnproven] the key is there too.
func (k *Key) Healthy(ctx context.Context) error {
	if k.probedWithin(goodEnough) {
		return k.probed(ctx, goodFor, k.touch)
	}
	err := k.probed(ctx, goodFor, k.testSignature)
	if !errors.Is(err, ErrUnproven) {
		return err
	}
	if touched := k.probed(ctx, goodFor, k.touch); touched != nil {
		return touched
	}
	return err
}

// probed returns nil if a signature was made within the time, and else the result of look at the
// connection. After a fault it reconnects.
func (k *Key) probed(ctx context.Context, within time.Duration,
	look func(context.Context, *connection) error) error {
	if k.probedWithin(within) {
		return nil
	}
	select {
	case k.probe <- struct{}{}:
		defer func() { <-k.probe }()
	case <-ctx.Done():
		return faultf(ErrUnavailable, "the token does not answer: a test signature has not "+
			"returned yet")
	}
	if k.probedWithin(within) {
		return nil
	}
	conn, err := k.connected(ctx)
	if err == nil && conn == nil {
		if err = k.connect(ctx, nil, ckr.NewLogin); err == nil {
			conn, err = k.connected(ctx)
		}
	}
	if err != nil || k.probedWithin(within) {
		return err
	}
	err = look(ctx, conn)
	if r := recoveryFrom(err); r > ckr.None { // one failure in one session proves too little
		return k.connect(ctx, conn, max(r, ckr.NewLogin))
	}
	return err
}

// probedWithin reports whether the last signature was made within the time.
func (k *Key) probedWithin(within time.Duration) bool {
	good := k.good.Load()
	return good != 0 && time.Since(k.since)-time.Duration(good) < within
}

func (k *Key) connected(ctx context.Context) (*connection, error) {
	if err := k.lock.rLock(ctx); err != nil {
		return nil, k.busy(err)
	}
	defer k.lock.rUnlock()
	return k.conn, nil
}

// busy returns the error for a caller that could not wait for the connection.
func (k *Key) busy(err error) error {
	return faultf(ErrUnavailable, "timed out waiting for the token connection: %v", err)
}

// testSignature makes a test signature on the connection.
func (k *Key) testSignature(ctx context.Context, conn *connection) error {
	return k.on(ctx, conn, func() error { return k.signTestTwice(ctx, conn, ProbeReady) })
}

// touch checks that the token still has the key and lets it be used: it reads an attribute.
func (k *Key) touch(ctx context.Context, conn *connection) error {
	return k.on(ctx, conn, func() error {
		if _, err := conn.Attribute(ctx, conn.key, pkcs11.CKA_CLASS); err != nil {
			return unavailable(err, "read the private %s", k.config.Key)
		}
		return nil
	})
}

// on calls do while the connection cannot be replaced.
func (k *Key) on(ctx context.Context, conn *connection, do func() error) error {
	if err := k.lock.rLock(ctx); err != nil {
		return k.busy(err)
	}
	defer k.lock.rUnlock()
	if k.conn != conn || conn == nil {
		return faultf(ErrUnavailable, "the token was reconnected")
	}
	return do()
}

// signTest signs a fixed text, never a caller's, after it was announced. A signature that verifies
// proves that the key is that of the CA certificate.
func (k *Key) signTest(ctx context.Context, conn *connection, when ProbeTime) error {
	if k.config.BeforeProbe != nil {
		if err := k.config.BeforeProbe(ctx, when); err != nil {
			return faultf(ErrUnproven, "token connected; no test signature yet: it could not be "+
				"recorded: %v", err)
		}
	}
	_, err := k.signVerified(ctx, conn, probe(k.config.Signature), k.config.Signature)
	if err != nil && !errors.Is(err, ErrKey) {
		return unavailable(err, "test signature with the private %s", k.config.Key)
	}
	return err
}

// signTestTwice is signTest, with a second test signature if the fault may be the session's.
func (k *Key) signTestTwice(ctx context.Context, conn *connection, when ProbeTime) error {
	err := k.signTest(ctx, conn, when)
	if retriesOnSession(err) {
		err = k.signTest(ctx, conn, when)
	}
	return err
}

// probe returns the input of a test signature: the digest of the text, or for Ed25519 the text
// itself.
func probe(opts crypto.SignerOpts) []byte {
	hash := opts.HashFunc()
	if hash == 0 {
		return []byte(ProbeText)
	}
	h := hash.New()
	h.Write([]byte(ProbeText))
	return h.Sum(nil)
}

// foreign returns the error for a key that is not the CA's.
func (k *Key) foreign(why string) error { return k.foreignFor(nil, why) }

// foreignFor is foreign with the code from PKCS#11.
func (k *Key) foreignFor(cause error, why string) error {
	const text = "the private %s is not the key of the CA certificate: %s. " +
		"Name the key and the certificate that belong together"
	return &fault{Kind: ErrKey, Text: fmt.Sprintf(text, k.config.Key, why), Cause: cause}
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

// attempts bounds how often one signature is tried: on two connections as often as onSessions
// allows, or on more if each try costs one.
const attempts = 6

// sign signs. After a fault it takes the recovery step and tries again.
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
		switch r := recoveryFrom(err); {
		case r == ckr.None:
			return nil, unavailable(err, "sign with the private %s", k.config.Key)
		case retriesOnSession(err) && k.onSessions(retries):
			retries++
		default:
			if err := k.connect(ctx, conn, max(r, ckr.NewLogin)); err != nil {
				return nil, fmt.Errorf("after a fault of the token: %w", err)
			}
			retries = 0
		}
	}
	return nil, unavailable(err, "sign with the private %s, after %d attempts", k.config.Key,
		attempts)
}

// onSessions reports whether a signature may be tried in another session after so many retries. The
// first retry is free, the second costs credit.
func (k *Key) onSessions(retries int) bool { return retries == 0 || retries == 1 && k.spend() }

// attempt signs once, and returns the connection that it used.
func (k *Key) attempt(ctx context.Context, digest []byte, opts crypto.SignerOpts) (*connection,
	[]byte, error) {
	if err := k.lock.rLock(ctx); err != nil {
		return nil, nil, k.busy(err)
	}
	defer k.lock.rUnlock()
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

// signVerified signs, and returns only a signature that verifies with the CA's public key: a handle
// may come to name another key.
func (k *Key) signVerified(ctx context.Context, conn *connection, digest []byte,
	opts crypto.SignerOpts) ([]byte, error) {
	signature, err := conn.sign(ctx, k.mech, conn.key, digest, opts)
	if err != nil {
		return nil, k.failed(err)
	}
	if !verifies(k.public, opts, digest, signature) {
		return nil, k.foreign("its signature does not verify with it")
	}
	k.signatures.Add(1)
	k.good.Store(int64(time.Since(k.since)))
	return signature, nil
}

// failed returns the error of a signature that was not made.
func (k *Key) failed(err error) error {
	form := (*formError)(nil)
	switch {
	case errors.As(err, &form):
		return &fault{Kind: ErrKey, Cause: err, Text: fmt.Sprintf("sign with the private "+
			"%s: %v", k.config.Key, err)}
	case ckr.Is(err, pkcs11.CKR_KEY_TYPE_INCONSISTENT):
		return k.foreignFor(err, "it has another type")
	case errors.Is(err, ErrKey):
		return k.foreign(err.Error())
	}
	return err
}

// Attributes reads the key's attributes. It connects if necessary.
func (k *Key) Attributes(ctx context.Context) (KeyAttributes, error) {
	if err := k.Healthy(ctx); err != nil && !errors.Is(err, ErrUnproven) {
		return KeyAttributes{}, err
	}
	if err := k.lock.rLock(ctx); err != nil {
		return KeyAttributes{}, k.busy(err)
	}
	defer k.lock.rUnlock()
	if k.conn == nil {
		return KeyAttributes{}, faultf(ErrUnavailable, "the token is not connected")
	}
	return k.conn.attributes(ctx, k.conn.key)
}

// Stats returns the counters and the sessions. It does not wait for the token.
func (k *Key) Stats() Stats {
	n := &k.counts
	stats := Stats{
		Signatures: k.signatures.Load(), Logins: n.Logins.Load(),
		Connections: k.connections.Load(), Initialised: n.Initialised.Load(),
		Abandoned: n.Abandoned.Load(), Hanging: n.Hanging.Load(),
	}
	if conn := k.shown.Load(); conn != nil {
		stats.Sessions = conn.Sessions()
	}
	return stats
}

// Close closes the sessions permanently, and the module unless other keys of this process use it.
// It waits for callers, but not for calls that hang.
func (k *Key) Close() {
	if k.lock.lock(context.Background()) != nil { // nothing ends that context
		return
	}
	defer k.lock.unlock()
	k.closed = true
	k.disconnect()
	k.user.Leave(context.Background())
}
