package soak

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
)

// passing are faults that each hit the next call, of any function, after which calls succeed.
var passing = []pkcs11shim.Rule{
	pkcs11shim.Fail(pkcs11shim.Any, pkcs11.CKR_DEVICE_ERROR).Times(1),
	pkcs11shim.Fail(pkcs11shim.Any, pkcs11.CKR_DEVICE_ERROR).Times(1),
	pkcs11shim.Fail(pkcs11shim.Any, pkcs11.CKR_SESSION_HANDLE_INVALID).Times(1),
	pkcs11shim.Fail(pkcs11shim.Any, pkcs11.CKR_USER_NOT_LOGGED_IN).Times(1),
	pkcs11shim.Fail(pkcs11shim.Any, pkcs11.CKR_DEVICE_REMOVED).Times(1),
	pkcs11shim.CloseSessions(pkcs11shim.Any),
	pkcs11shim.Fail(pkcs11shim.Any, pkcs11.CKR_KEY_HANDLE_INVALID).Times(1),
}

const faultEvery = 400 * time.Millisecond

// keepFailing makes one call fail every 0.4 s until the caller calls stop.
func (s *signer) keepFailing(t *testing.T) (stop func() (faults int)) {
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	faults := 0
	group.Go(func() {
		ticker := time.NewTicker(faultEvery)
		defer ticker.Stop()
		for {
			if err := s.shim.Rules(passing[faults%len(passing)]); err != nil {
				t.Error(err)
			}
			faults++
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	})
	return func() int {
		cancel()
		group.Wait()
		must.OK(t, s.shim.Rules())
		return faults
	}
}

// A token in which a call fails every 0.4 s continues to sign.
func TestUnreliableToken(t *testing.T) {
	const deadline = time.Minute
	r := begin(t, 23,
		"one fault of the token every 0.4 s, in turn CKR_DEVICE_ERROR (twice), "+
			"CKR_SESSION_HANDLE_INVALID, "+
			"CKR_USER_NOT_LOGGED_IN, CKR_DEVICE_REMOVED, all sessions closed, "+
			"CKR_KEY_HANDLE_INVALID; 1,000 requests come in",
		"all issued within 60 s; lost 0; certificates per UID ≤ 1")
	s := shared.signer(t)
	d := s.startReady(t)
	c := shared.newBatch(t)
	stopFailing := s.keepFailing(t)
	began := time.Now()
	c.ask(t, of(60, 1000))
	asked := time.Since(began)
	c.waitForAll(t)
	took := time.Since(began)
	faults := stopFailing()
	r.within(took, deadline)
	must.OK(t, d.Shutdown())
	a := s.account(t)
	a.requireWhole(t, c)
	calls, err := s.shim.Calls()
	must.OK(t, err)
	logins := calls.Of(pkcs11shim.Login)
	r.measured("%d requests, asked within %s; all issued %s after the first was asked", c.size(),
		seconds(asked), seconds(took))
	r.measured("%d faults, %d calls that failed, %d calls of C_Login, %d of them failed",
		faults, len(calls)-len(calls.With(pkcs11.CKR_OK)), len(logins),
		len(logins)-len(logins.With(pkcs11.CKR_OK)))
	r.measured("lost %d, signed again %d", c.size()-len(a.certificates), a.again)
}
