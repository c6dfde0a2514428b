//go:build cgo

package hsm

import (
	"errors"

	"hsm-signer/hsm/ckr"
	"hsm-signer/hsm/cryptoki"
)

// retriesOnSession reports whether a signature is worth another try on another session of the same
// connection. After a code for lost sessions, logins or handles it is not: the connection is gone,
// and an old handle may name another key.
func retriesOnSession(err error) bool {
	var login *cryptoki.LoginSessionError
	var form *formError
	switch {
	case errors.As(err, &login):
		return false
	case errors.As(err, &form):
		return true
	}
	if _, isCKR := ckr.RecoveryFrom(err); !isCKR {
		return false
	}
	step := recoveryFrom(err)
	return step == ckr.NewSession || step == ckr.NewModule && !ckr.IsGone(err)
}

// recoveryFrom returns the recovery step after an error.
func recoveryFrom(err error) ckr.Recovery {
	var hung *cryptoki.AbandonedError
	switch {
	case errors.As(err, &hung) && hung.Early != nil:
		return ckr.None // the token is not at fault
	case errors.Is(err, cryptoki.ErrEnded):
		return ckr.NewLogin // the module is initialised again already
	case hung != nil || errors.Is(err, ErrKey):
		return ckr.NewLogin
	}
	step, _ := ckr.RecoveryFrom(err)
	var login *cryptoki.LoginSessionError
	if step == ckr.NewSession && errors.As(err, &login) {
		return ckr.NewLogin
	}
	return step
}
