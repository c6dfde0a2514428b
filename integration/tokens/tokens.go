// Package tokens makes real PKCS#11 tokens to test with.
//
// Duty: of each kind of token a fresh one, with a user PIN and no keys, together with
// what is known of the kind: which keys it makes, when it locks, what its module does
// when its daemon dies. Who loads Module with the variables of Env in the environment
// finds the token under Label.
//
// Contract: a token is there when its constructor returns, and gone without a trace
// after Close; its daemons end with this process at the latest. Two tokens do not meet,
// but for those that insist on the system's own directories: of these there is one at
// a time on a machine, and another waits for its turn. What cannot be made is an error
// that says what is missing, never a token that does less.
package tokens

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// A Token is one token, and what its kind can do.
type Token struct {
	Name   string   // of the kind
	Module string   // path of the PKCS#11 library
	Env    []string // with which the module finds the token
	Label  string
	PIN    string
	Can    Capabilities

	dir     string
	files   string    // that the token is in
	daemons []*daemon // in the order in which they start
	unlock  func(context.Context) error
	undo    []func() error
}

// Capabilities are what a kind of token can do and how it behaves: the expectations of
// the tests.
type Capabilities struct {
	// KeyTypes are those that it makes, by the names that the ceremony has for them.
	KeyTypes []string
	// Refuses has what is in the error when it is to make a key of any other type.
	Refuses map[string]string
	// Unsaid are attributes of a new key that it does not let one say.
	Unsaid []uint
	// Local tells whether it says of keys that it made itself that it did (CKA_LOCAL).
	Local bool

	// WrongPINs are its answers to wrong PINs one after another, until nothing changes
	// any more; what follows is as the last.
	WrongPINs []Answer

	// KnowsOldPIN tells whether the module goes by the PIN as it was when it was initialised,
	// though another process has changed it meanwhile.
	KnowsOldPIN bool

	// FinalizedOnce tells whether C_Finalize does harm when it is called again without the module
	// having been unloaded meanwhile.
	FinalizedOnce bool

	// Sessions is the greatest number that it says it allows: 0 is no limit, and all
	// ones is not known.
	Sessions uint
	// Limited tells whether it refuses to open more than Sessions.
	Limited bool

	// Lost is what its module does when its daemon died; nil where there is none.
	Lost *Loss
}

// Makes tells whether the token makes keys of that type.
func (c Capabilities) Makes(keyType string) bool { return slices.Contains(c.KeyTypes, keyType) }

// Locks tells whether wrong PINs lock the token.
func (c Capabilities) Locks() bool {
	return len(c.WrongPINs) > 1
}

// An Answer is what a token says to a wrong PIN.
type Answer struct {
	Code  uint // CKR, of C_Login
	Flags uint // of CKF_USER_PIN_…, in C_GetTokenInfo after it
}

// A Loss is what a module answers to an application that uses it when its daemon dies, as
// CKR codes. That the daemon is there again changes nothing until the application has called
// C_Finalize and loaded the module again; then all is well.
type Loss struct {
	// C_SignInit, or else C_Sign, on a session that was open; CKR_OK: the daemon is not needed
	Sign        uint
	OpenSession uint
	Initialize  uint // C_Initialize while the daemon is not there
}

// A Kind is a way to make tokens.
type Kind struct {
	Name string
	New  func(context.Context) (*Token, error)
}

// All are the kinds of token that there are.
func All() []Kind {
	return []Kind{
		{"softhsm", NewSoftHSM},
		{"p11-kit", NewP11Kit},
		{"nss", NewNSS},
		{"opencryptoki", NewOpencryptoki},
		{"tpm", NewTPM},
	}
}

// ErrNoDaemon says that a token has no daemon that could be stopped.
var ErrNoDaemon = errors.New("the token has no daemon")

// HasDaemon tells whether the token depends on a process of its own.
func (t *Token) HasDaemon() bool { return len(t.daemons) > 0 }

// Kill ends the daemon without its having a say, and waits for its end.
func (t *Token) Kill() error { return t.each((*daemon).kill) }

// Stop has the daemon end, and waits for its end.
func (t *Token) Stop() error { return t.each((*daemon).stop) }

// Pause has the daemon hang.
func (t *Token) Pause() error { return t.each((*daemon).pause) }

// Continue ends a Pause.
func (t *Token) Continue() error { return t.each((*daemon).proceed) }

// each does something to the daemons, the last one first.
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

// MoveAway takes the token's files away, as if it had been unplugged.
func (t *Token) MoveAway() error { return os.Rename(t.files, t.away()) }

// MoveBack brings back what MoveAway took, in the place of what has come to be there meanwhile.
func (t *Token) MoveBack() error {
	return errors.Join(os.RemoveAll(t.files), os.Rename(t.away(), t.files))
}

func (t *Token) away() string { return t.files + ".away" }

// Unlock sets the count of wrong PINs back, as the security officer does. The PIN stays. Nobody may
// be logged in.
func (t *Token) Unlock(ctx context.Context) error {
	if t.unlock == nil {
		return nil // it does not count
	}
	return t.unlock(ctx)
}

// Close ends the daemon and removes all that was made.
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

// newToken makes the directory of a token, and the token in it with set. What set has
// begun is undone when it fails. The directory's path is short, because sockets in it
// must have short names.
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

// path is that of a file of the token.
func (t *Token) path(name string) string { return filepath.Join(t.dir, name) }

// run starts a daemon of the token and waits until it is ready.
func (t *Token) run(ctx context.Context, d *daemon) error {
	d.log = t.path(d.name + ".log")
	t.daemons = append(t.daemons, d)
	return d.start(ctx)
}
