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

// Waits between attempts to reach a token that is not there.
const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = 15 * time.Second

	defaultTimeout = 10 * time.Second

	// goodFor is how long a signature shows that the token is there.
	goodFor = 2 * time.Second
)

// A Key is the CA's private key in its token. It connects when it is first
// needed, and again after the token was gone. It is safe for concurrent use.
type Key struct {
	config Config
	public crypto.PublicKey
	mech   mechanism

	// calls is held for reading while the module is in use, and for writing while
	// it is opened or closed: never finalize with calls in flight.
	calls  sync.RWMutex
	conn   *connection // nil: not connected
	closed bool

	good  atomic.Int64  // when the last signature was made, in ns since 1970
	probe chan struct{} // one test signature at a time

	mu     sync.Mutex // guards what follows
	last   error      // why it is not connected
	wait   time.Duration
	notYet time.Time // do not try to connect before this
}

// NewKey returns the key in the token whose public half is public (the one in the CA's
// certificate). It does not touch the token yet.
func NewKey(config Config, public crypto.PublicKey) (*Key, error) {
	mech, err := mechanismFor(public)
	if err != nil {
		return nil, err
	}
	if config.Timeout <= 0 {
		config.Timeout = defaultTimeout
	}
	if config.Signature == nil {
		config.Signature = crypto.SHA256
	}
	return &Key{config: config, public: public, mech: mech, probe: make(chan struct{}, 1)}, nil
}

// Public returns the public half.
func (k *Key) Public() crypto.PublicKey { return k.public }

// Ready answers nil when the key can sign now: it has just signed, or it signs
// a fixed text. After a fault it connects again, when the last attempt to do so
// was long enough ago.
func (k *Key) Ready(ctx context.Context) error {
	if k.provenLately() {
		return nil
	}
	select {
	case k.probe <- struct{}{}:
		defer func() { <-k.probe }()
	case <-ctx.Done():
		return faultf(ErrUnavailable, "the token does not answer: a test signature has not come back yet")
	}
	if k.provenLately() {
		return nil
	}
	conn := k.connected()
	if conn == nil {
		return k.connect(nil)
	}
	err := k.testSignature(ctx, conn)
	if isLost(err) {
		return k.connect(conn)
	}
	return err
}

func (k *Key) provenLately() bool {
	return time.Since(time.Unix(0, k.good.Load())) < goodFor
}

func (k *Key) connected() *connection {
	k.calls.RLock()
	defer k.calls.RUnlock()
	return k.conn
}

// connect makes a new connection in the place of the one that failed. When
// another caller has made one meanwhile, there is nothing to do.
func (k *Key) connect(failed *connection) error {
	k.calls.Lock()
	defer k.calls.Unlock()
	switch {
	case k.closed:
		return faultf(ErrUnavailable, "the key was closed")
	case k.conn != nil && k.conn != failed:
		return nil
	}
	k.disconnect()
	if err := k.mayTry(); err != nil {
		return err
	}
	conn, err := k.open()
	k.tried(err)
	if err != nil {
		return err
	}
	k.conn = conn
	return nil
}

// disconnect closes the connection. The caller holds the lock for writing.
func (k *Key) disconnect() {
	k.good.Store(0)
	if k.conn != nil {
		k.conn.close()
		k.conn = nil
	}
}

// mayTry refuses an attempt that is too early, or one that can only do harm.
func (k *Key) mayTry() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last != nil && (errors.Is(k.last, ErrPIN) || time.Now().Before(k.notYet)) {
		return k.last
	}
	return nil
}

func (k *Key) tried(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.last = err
	if err == nil {
		k.wait = 0
		return
	}
	k.wait = min(max(2*k.wait, firstRetry), lastRetry)
	k.notYet = time.Now().Add(k.wait)
}

// open connects, and lets the connection live only when it holds the right
// key and that key cannot leave.
func (k *Key) open() (*connection, error) {
	conn, err := connect(k.config)
	if err != nil {
		return nil, err
	}
	if err := k.admit(conn); err != nil {
		conn.close()
		return nil, err
	}
	return conn, nil
}

func (k *Key) admit(conn *connection) error {
	if err := conn.findKey(k.config.Key); err != nil {
		return err
	}
	proof, err := conn.prove()
	if err != nil {
		return err
	}
	if err := k.judge(proof); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), k.config.Timeout)
	defer cancel()
	return k.signTest(ctx, conn)
}

// judge refuses a key that could leave its token.
func (k *Key) judge(p Proof) error {
	if p.Holds() || k.config.AllowExtractable {
		return nil
	}
	return faultf(ErrKey, "the private %s could leave the token: %s. Make a key in the token with \"hsm-signer ca create\"; for a trial, set ALLOW_EXTRACTABLE_KEY=true", k.config.Key, p)
}

// testSignature makes a test signature on a connection that is in use.
func (k *Key) testSignature(ctx context.Context, conn *connection) error {
	k.calls.RLock()
	defer k.calls.RUnlock()
	if k.conn != conn {
		return faultf(ErrUnavailable, "the token was connected anew")
	}
	return k.signTest(ctx, conn)
}

// signTest signs a fixed text, never a caller's. That its signature verifies shows
// that the key is the one of the CA certificate.
func (k *Key) signTest(ctx context.Context, conn *connection) error {
	_, err := k.signVerified(ctx, conn, testText(k.config.Signature), k.config.Signature)
	if err != nil && !errors.Is(err, ErrKey) {
		return unavailable(err, "test signature with the private %s", k.config.Key)
	}
	return err
}

// foreign is the fault of a key that is not the CA's.
func (k *Key) foreign(why string) error {
	return faultf(ErrKey, "the private %s is not the key of the CA certificate: %s. Name the key and the certificate that belong together", k.config.Key, why)
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

// sign signs; after a fault it makes a new connection and tries once more.
func (k *Key) sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, k.config.Timeout)
	defer cancel()
	if err := k.Ready(ctx); err != nil {
		return nil, err
	}
	conn, signature, err := k.attempt(ctx, digest, opts)
	switch {
	case err == nil:
		return signature, nil
	case isLost(err):
		if err := k.connect(conn); err != nil {
			return nil, fmt.Errorf("after a fault of the token: %w", err)
		}
	case !isSession(err):
		return nil, unavailable(err, "sign with the private %s", k.config.Key)
	}
	if _, signature, err = k.attempt(ctx, digest, opts); err != nil {
		return nil, unavailable(err, "sign with the private %s", k.config.Key)
	}
	return signature, nil
}

// attempt signs once and returns the connection that it used.
func (k *Key) attempt(ctx context.Context, digest []byte, opts crypto.SignerOpts) (*connection, []byte, error) {
	k.calls.RLock()
	defer k.calls.RUnlock()
	if k.conn == nil {
		return nil, nil, faultf(ErrUnavailable, "the token is not connected")
	}
	signature, err := k.signVerified(ctx, k.conn, digest, opts)
	return k.conn, signature, err
}

// signVerified signs, and lets only a signature out that verifies with the CA's public key: a
// handle may come to name another key.
func (k *Key) signVerified(ctx context.Context, conn *connection, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, err := conn.sign(ctx, k.mech, digest, opts)
	switch {
	case is(err, pkcs11.CKR_KEY_TYPE_INCONSISTENT):
		return nil, k.foreign("it is of another type")
	case errors.Is(err, ErrKey):
		return nil, k.foreign(err.Error())
	case err != nil:
		return nil, err
	case !verifies(k.public, opts, digest, signature):
		return nil, k.foreign("its signature does not verify with it")
	}
	k.good.Store(time.Now().UnixNano())
	return signature, nil
}

// Proof returns what the token says of the key's attributes; it connects if need be.
func (k *Key) Proof(ctx context.Context) (Proof, error) {
	if err := k.Ready(ctx); err != nil {
		return Proof{}, err
	}
	k.calls.RLock()
	defer k.calls.RUnlock()
	if k.conn == nil {
		return Proof{}, faultf(ErrUnavailable, "the token is not connected")
	}
	return k.conn.prove()
}

// Close closes the sessions and the module for good. It waits for calls in flight.
func (k *Key) Close() {
	k.calls.Lock()
	defer k.calls.Unlock()
	k.closed = true
	k.disconnect()
}
