// Package bench measures speed. Its figures are ratios of two things that run side by side, on the
// same machine in the same minute: a time alone says nothing about another machine.
package bench

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm"
	"hsm-signer/integration/bench/results"
	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
	"hsm-signer/integration/tokens"
)

// resultsVariable names the file that the figures are written to.
const resultsVariable = "BENCH_RESULTS"

// record writes the figure of these values under the key, and replaces that of an earlier run.
func record(b *testing.B, key string, values ...float64) {
	b.Helper()
	if file := os.Getenv(resultsVariable); file != "" {
		must.OK(b, results.Merge(file, map[string]results.Figure{key: results.Of(values...)}))
	}
}

// BenchmarkSigner signs with P-256 in SoftHSM: by the product's signer, which verifies each
// signature, and by a bare loop of C_SignInit and C_Sign with a session for each caller. The
// callers of both share the processors with the verification; a delay stands for the network before
// an HSM.
func BenchmarkSigner(b *testing.B) {
	token, err := tokens.NewSoftHSM(b.Context())
	must.OK(b, err)
	defer func() { must.OK(b, token.Close()) }()
	setenv(b, token.Env...)
	public, err := token.Generate("ecdsa-p256", "ca", []byte{1})
	must.OK(b, err)
	s, err := pkcs11shim.New(b.Context(), b.TempDir(), token.Module)
	must.OK(b, err)
	setenv(b, s.Env()...)
	for _, delay := range []time.Duration{0, 2 * time.Millisecond} {
		for _, callers := range []int{1, 2, 4, 8, 16, 32} {
			b.Run(fmt.Sprintf("callers=%d/delay=%s", callers, delay), func(b *testing.B) {
				module := token.Module
				if delay > 0 {
					module = s.Module
					must.OK(b,
						errors.Join(s.Rules(pkcs11shim.Delay(pkcs11shim.Any, delay)), s.Forget()))
				}
				compare(b, token, s, module, public.(*ecdsa.PublicKey), callers, delay)
			})
		}
	}
}

// rounds is the number of measurements of each signer. They alternate, so that both meet the same
// load.
const rounds = 5

// A speed is one measurement of one signer.
type speed struct{ perSecond, calls float64 } // calls for one signature

// compare measures both signers alternately, with this many callers.
func compare(b *testing.B, token *tokens.Token, s *pkcs11shim.Shim, module string,
	public *ecdsa.PublicKey, callers int, delay time.Duration) {
	b.Helper()
	signatures := b.N
	if delay == 0 {
		signatures *= 10 // they are fast
	}
	signatures = signatures/rounds + 1
	digest := sha256.Sum256([]byte("to be signed"))
	of := func(took time.Duration, calls int) speed {
		return speed{float64(signatures) / took.Seconds(), float64(calls) / float64(signatures)}
	}
	var signer, bare []speed
	for range rounds {
		signer = append(signer,
			of(product(b, token, s, module, public, callers, signatures, digest[:])))
		bare = append(bare, of(bareLoop(b, token, s, module, callers, signatures, digest[:])))
	}
	recordSpeeds(b, signer, bare, fmt.Sprintf("callers_%d_delay_%s", callers, delay), delay > 0)
	b.ReportMetric(0, "ns/op")
}

// recordSpeeds records the measurements of both signers, and reports the medians.
func recordSpeeds(b *testing.B, signer, bare []speed, key string, counted bool) {
	b.Helper()
	all := map[string][]float64{}
	for i := range signer {
		for name, value := range map[string]float64{
			"signer_to_bare":    signer[i].perSecond / bare[i].perSecond,
			"signer_per_second": signer[i].perSecond, "bare_per_second": bare[i].perSecond,
			"signer_calls": signer[i].calls, "bare_calls": bare[i].calls,
		} {
			all[name] = append(all[name], value)
		}
	}
	if !counted {
		delete(all, "signer_calls")
		delete(all, "bare_calls")
	}
	for name, values := range all {
		record(b, name+"_"+key, values...)
		b.ReportMetric(results.Of(values...).Median, name)
	}
}

// product signs with the product's signer, and returns the time and the number of calls.
func product(b *testing.B, token *tokens.Token, s *pkcs11shim.Shim, module string,
	public *ecdsa.PublicKey, callers, signatures int, digest []byte) (time.Duration, int) {
	b.Helper()
	key, err := hsm.NewKey(hsm.Config{
		Module: module, Token: hsm.TokenID{Label: token.Label}, PIN: hsm.PIN(token.PIN).Fixed(),
		Key: hsm.KeyID{Label: "ca"}, MaxSessions: callers,
	}, public)
	must.OK(b, err)
	defer key.Close()
	must.OK(b, key.Ready(b.Context()))
	signer := key.Signer(b.Context())
	must.OK(b, s.Forget())
	took := timed(b, callers, signatures, func(int) error {
		_, err := signer.Sign(nil, digest, crypto.SHA256)
		return err
	})
	return took, countCalls(b, s)
}

// timed returns how long the callers together took to call do this many times.
func timed(b *testing.B, callers, times int, do func(caller int) error) time.Duration {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(times))
	errs := make(chan error, callers)
	begin := time.Now()
	for caller := range callers {
		go func() {
			for left.Add(-1) >= 0 {
				if err := do(caller); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range callers {
		must.OK(b, <-errs)
	}
	return time.Since(begin)
}

// bareLoop signs with the two calls and nothing else.
func bareLoop(b *testing.B, token *tokens.Token, s *pkcs11shim.Shim, module string, callers,
	signatures int, digest []byte) (time.Duration, int) {
	b.Helper()
	p := pkcs11.New(module)
	must.OK(b, p.Initialize())
	defer p.Destroy()
	defer func() { must.OK(b, p.Finalize()) }()
	slot := findSlot(b, p, token.Label)
	sessions := make([]pkcs11.SessionHandle, callers)
	for i := range sessions {
		var err error
		sessions[i], err = p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
		must.OK(b, err)
	}
	must.OK(b, p.Login(sessions[0], pkcs11.CKU_USER, token.PIN))
	must.OK(b,
		p.FindObjectsInit(sessions[0],
			[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY),
				pkcs11.NewAttribute(pkcs11.CKA_LABEL, "ca")}))
	keys, _, err := p.FindObjects(sessions[0], 1)
	must.OK(b, errors.Join(err, p.FindObjectsFinal(sessions[0])))
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)}
	must.OK(b, s.Forget())
	took := timed(b, callers, signatures, func(caller int) error {
		if err := p.SignInit(sessions[caller], mechanism, keys[0]); err != nil {
			return err
		}
		_, err := p.Sign(sessions[caller], digest)
		return err
	})
	return took, countCalls(b, s)
}

func findSlot(b *testing.B, p *pkcs11.Ctx, label string) uint {
	b.Helper()
	slots, err := p.GetSlotList(true)
	must.OK(b, err)
	for _, slot := range slots {
		if info, err := p.GetTokenInfo(slot); err == nil &&
			strings.TrimRight(info.Label, " \x00") == label {
			return slot
		}
	}
	b.Fatalf("no token labelled %q", label)
	return 0
}

// countCalls returns the number of calls in the shim's log. Only delayed calls pass the shim.
func countCalls(b *testing.B, s *pkcs11shim.Shim) int {
	b.Helper()
	calls, err := s.Calls()
	must.OK(b, err)
	return len(calls)
}

func setenv(b *testing.B, variables ...string) {
	for _, variable := range variables {
		name, value, _ := strings.Cut(variable, "=")
		b.Setenv(name, value)
	}
}
