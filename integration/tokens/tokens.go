// Package tokens creates PKCS#11 tokens for tests.
//
// Duty: a constructor for each kind of token returns a new token with a user PIN and no keys. The
// token comes with the properties of its kind: which keys it makes, when it locks, and what its
// module does when its daemon dies. A process that loads Module with the variables in Env finds the
// token by Label.
//
// Contract: a token exists when its constructor returns, and is gone without a trace after Close.
// Its daemons end with this process at the latest. Tokens are independent, except for kinds that
// need the system's own directories: only one of these exists at a time, and the next constructor
// waits. A constructor that cannot create its token returns an error that says what is missing,
// never a token that does less.
package tokens

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// A Token is a token with the properties of its kind.
type Token struct {
	Name   string   // of the kind
	Module string   // path of the PKCS#11 library
	Env    []string // with which the module finds the token
	Label  string
	PIN    string
	Can    Capabilities

	dir     string
	files   string    // directory or file with the token's data
	daemons []*daemon // in the order in which they start
	unlock  func(context.Context) error
	undo    []func() error
}

// Capabilities describe what a kind of token can do and how it behaves. The tests expect this.
type Capabilities struct {
	// KeyTypes are the types of key that it makes, by their names in "ca create".
	KeyTypes []string
	// Refuses has a part of the error for each other type of key.
	Refuses map[string]string
	// Unsaid are attributes that it does not accept for a new key.
	Unsaid []uint
	// Local reports whether it sets CKA_LOCAL for keys that it made itself.
	Local bool

	// WrongPINs are its answers to successive wrong PINs, until nothing changes any more. All
	// further answers equal the last one.
	WrongPINs []Answer

	// KnowsOldPIN reports whether the module keeps accepting the PIN from its initialization after
	// another process has changed it.
	KnowsOldPIN bool

	// FinalizedOnce reports whether a second C_Finalize does harm unless the module was unloaded in
	// between.
	FinalizedOnce bool

	// Sessions is the maximum number of sessions that it reports: 0 means no limit, all ones means
	// unknown.
	Sessions uint
	// Limited reports whether it refuses to open more than Sessions.
	Limited bool

	// Lost is what its module does after its daemon died; nil if there is no daemon.
	Lost *Loss
}

// Makes reports whether the token makes keys of that type.
func (c Capabilities) Makes(keyType string) bool { return slices.Contains(c.KeyTypes, keyType) }

// Locks reports whether wrong PINs lock the token.
func (c Capabilities) Locks() bool {
	return len(c.WrongPINs) > 1
}

// An Answer is the answer of a token to a wrong PIN.
type Answer struct {
	Code  uint // CKR, of C_Login
	Flags uint // of CKF_USER_PIN_…, in C_GetTokenInfo after it
}

// A Loss has the CKR codes that a module returns to an application after its daemon died. A restart
// of the daemon changes nothing until the application calls C_Finalize and loads the module again.
type Loss struct {
	// C_SignInit, or else C_Sign, on a session that was open; CKR_OK: the daemon is not needed
	Sign        uint
	OpenSession uint
	Initialize  uint // C_Initialize without the daemon
}

// A Kind is a kind of token with its constructor.
type Kind struct {
	Name string
	New  func(context.Context) (*Token, error)
}

// All returns every kind of token.
func All() []Kind {
	return []Kind{
		{"softhsm", NewSoftHSM},
		{"p11-kit", NewP11Kit},
		{"nss", NewNSS},
		{"opencryptoki", NewOpencryptoki},
		{"tpm", NewTPM},
	}
}

// ErrNoDaemon is returned for a token without a daemon.
var ErrNoDaemon = errors.New("the token has no daemon")

// HasDaemon reports whether the token depends on a process of its own.
func (t *Token) HasDaemon() bool { return len(t.daemons) > 0 }

// Kill kills the daemon and waits until it has exited.
func (t *Token) Kill() error { return t.each((*daemon).kill) }

// Stop terminates the daemon and waits until it has exited.
func (t *Token) Stop() error { return t.each((*daemon).stop) }

// Pause makes the daemon hang.
func (t *Token) Pause() error { return t.each((*daemon).pause) }

// Continue ends a Pause.
func (t *Token) Continue() error { return t.each((*daemon).proceed) }

// each calls do for each daemon, the last one first.
func (t *Token) each(do func(*daemon) error) error {
	if !t.HasDaemon() {
		return fmt.Errorf("%s: %w", t.Name, ErrNoDaemon)
	}
	var errs []error
	for _, d := range slices.Backward(t.daemons) {
		errs = append(errs, do(d))
	}
	return errors.Join(errs...)
}

// Start starts the daemon again after Kill or Stop, and waits until it is ready.
func (t *Token) Start(ctx context.Context) error {
	if !t.HasDaemon() {
		return fmt.Errorf("%s: %w", t.Name, ErrNoDaemon)
	}
	for _, d := range t.daemons {
		if err := d.start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Restart kills the daemon and starts it again.
func (t *Token) Restart(ctx context.Context) error {
	if err := t.Kill(); err != nil {
		return err
	}
	return t.Start(ctx)
}

// MoveAway moves the token's files away, as if the token were unplugged.
func (t *Token) MoveAway() error { return os.Rename(t.files, t.away()) }

// MoveBack undoes MoveAway. It removes files that were created in between.
func (t *Token) MoveBack() error {
	return errors.Join(os.RemoveAll(t.files), os.Rename(t.away(), t.files))
}

func (t *Token) away() string { return t.files + ".away" }

// Unlock resets the count of wrong PINs, as the security officer does. The PIN stays the same.
// Nobody may be logged in.
func (t *Token) Unlock(ctx context.Context) error {
	if t.unlock == nil {
		return nil // it does not count wrong PINs
	}
	return t.unlock(ctx)
}

// Close stops the daemon and removes everything that the token created.
func (t *Token) Close() error {
	var errs []error
	if t.HasDaemon() {
		errs = append(errs, t.Stop())
	}
	for _, undo := range slices.Backward(t.undo) {
		errs = append(errs, undo())
	}
	return errors.Join(errs...)
}

// newToken creates the directory of a token, and the token in it with set. If set fails newToken
// undoes its work. The path is short, because the paths of sockets in it are limited.
func newToken(ctx context.Context, t *Token, set func(context.Context, *Token) error) (*Token,
	error) {
	dir, err := os.MkdirTemp("", "token-")
	if err != nil {
		return nil, fmt.Errorf("directory of token %s: %w", t.Name, err)
	}
	t.dir = dir
	t.undo = append(t.undo, func() error { return os.RemoveAll(dir) })
	if err := set(ctx, t); err != nil {
		return nil, errors.Join(fmt.Errorf("make token %s: %w", t.Name, err), t.Close())
	}
	return t, nil
}

// path returns the path of a file of the token.
func (t *Token) path(name string) string { return filepath.Join(t.dir, name) }

// run starts a daemon of the token and waits until it is ready.
func (t *Token) run(ctx context.Context, d *daemon) error {
	d.log = t.path(d.name + ".log")
	t.daemons = append(t.daemons, d)
	return d.start(ctx)
}
