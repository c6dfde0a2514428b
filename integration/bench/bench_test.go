// Package bench measures speed. Its figures are ratios of two things that run side by side, on the
// same machine in the same minute: a time alone says nothing about another machine.
package bench

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"golang.org/x/sync/errgroup"

	"hsm-signer/hsm"
	"hsm-signer/hsm/csign"
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
	recordFigure(b, key, results.Of(values...))
}

func recordFigure(b *testing.B, key string, figure results.Figure) {
	b.Helper()
	if file := os.Getenv(resultsVariable); file != "" {
		must.OK(b, results.Merge(file, map[string]results.Figure{key: figure}))
	}
}

// BenchmarkSigner signs with P-256 in SoftHSM: by the product's signer, and by a bare loop of
// C_SignInit, C_Sign and one verification, with a session for each caller. A delay stands for the
// network before an HSM. Each pair runs alternately, so that both meet the same load.
func BenchmarkSigner(b *testing.B) {
	f := newSigners(b)
	var atLeastFour, calls []results.Figure
	for _, delay := range []time.Duration{0, 2 * time.Millisecond} {
		for _, callers := range []int{1, 2, 4, 8, 16, 32} {
			b.Run(fmt.Sprintf("callers=%d/delay=%s", callers, delay), func(b *testing.B) {
				ratio, counted := f.compare(b, callers, delay)
				switch {
				case delay > 0:
					calls = append(calls, counted)
				case callers >= 4:
					atLeastFour = append(atLeastFour, ratio)
				}
			})
		}
	}
	byMedian := func(a, b results.Figure) int { return cmp.Compare(a.Median, b.Median) }
	if len(atLeastFour) > 0 {
		recordFigure(b, "signer_vs_verified_csign_4plus", slices.MinFunc(atLeastFour, byMedian))
	}
	if len(calls) > 0 {
		recordFigure(b, "calls_per_signature", slices.MaxFunc(calls, byMedian))
	}
}

// signers are the two that are compared, on one key.
type signers struct {
	token  *tokens.Token
	public *ecdsa.PublicKey
	shim   *pkcs11shim.Shim
	digest [sha256.Size]byte
}

// newSigners creates a SoftHSM with the P-256 key "ca", and a shim before it, for this process.
func newSigners(b *testing.B) *signers {
	b.Helper()
	token := must.Get(tokens.NewSoftHSM(b.Context()))(b)
	b.Cleanup(func() { must.OK(b, token.Close()) })
	must.Setenv(b, token.Env...)
	public := must.Get(token.Generate("ecdsa-p256", "ca", []byte{1}))(b)
	shim := must.Get(pkcs11shim.New(b.Context(), b.TempDir(), token.Module))(b)
	must.Setenv(b, shim.Env()...)
	return &signers{token, public.(*ecdsa.PublicKey), shim, sha256.Sum256([]byte("to be signed"))}
}

// rounds is how often both signers are measured.
const rounds = 5

// compare measures both signers, and returns how many times as fast as the loop the product signs,
// and the product's calls for one signature. It counts calls only if there is a delay: the shim
// costs time.
func (f *signers) compare(b *testing.B, callers int,
	delay time.Duration) (ratio, calls results.Figure) {
	b.Helper()
	module, signatures := f.token.Module, 100*b.N/rounds+1
	if delay > 0 {
		module, signatures = f.shim.Module, 2*b.N/rounds+callers
		must.OK(b, errors.Join(f.shim.Rules(pkcs11shim.Delay(pkcs11shim.Any, delay)),
			f.shim.Forget()))
	}
	var all [4][]float64
	for range rounds {
		signer, counted := f.signer(b, module, callers, signatures)
		loop := f.loop(b, module, callers, signatures)
		for i, value := range []float64{loop.Seconds() / signer.Seconds(),
			float64(signatures) / signer.Seconds(), float64(signatures) / loop.Seconds(),
			float64(counted) / float64(signatures)} {
			all[i] = append(all[i], value)
		}
	}
	key := fmt.Sprintf("callers_%d_delay_%s", callers, delay)
	for i, name := range []string{"signer_vs_verified_csign", "signer_per_second",
		"verified_csign_per_second"} {
		record(b, name+"_"+key, all[i]...)
		b.ReportMetric(results.Of(all[i]...).Median, name)
	}
	b.ReportMetric(0, "ns/op")
	return results.Of(all[0]...), results.Of(all[3]...)
}

// signer signs with the product's signer, and returns the time and the number of calls. Its
// sessions are open before.
func (f *signers) signer(b *testing.B, module string, callers,
	signatures int) (time.Duration, int) {
	b.Helper()
	key := f.key(b, module, callers)
	defer key.Close()
	signer := key.Signer(b.Context())
	sign := func(int) error {
		_, err := signer.Sign(nil, f.digest[:], crypto.SHA256)
		return err
	}
	timed(b, callers, 2*callers, sign)
	must.OK(b, f.shim.Forget())
	took := timed(b, callers, signatures, sign)
	return took, len(must.Get(f.shim.Calls())(b))
}

// key returns the product's key, connected.
func (f *signers) key(b *testing.B, module string, callers int) *hsm.Key {
	b.Helper()
	key := must.Get(hsm.NewKey(hsm.Config{
		Module: module, Token: hsm.TokenID{Label: f.token.Label},
		PIN: hsm.PIN(f.token.PIN).Fixed(), Key: hsm.KeyID{Label: "ca"}, MaxSessions: callers,
	}, f.public))(b)
	must.OK(b, key.Ready(b.Context()))
	return key
}

// BenchmarkSign is one signature by the product's signer, with its memory; run it with -benchmem.
func BenchmarkSign(b *testing.B) {
	f := newSigners(b)
	key := f.key(b, f.token.Module, 16)
	defer key.Close()
	signer := key.Signer(b.Context())
	b.ReportAllocs()
	b.SetParallelism(4)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if _, err := signer.Sign(nil, f.digest[:], crypto.SHA256); err != nil {
				b.Error(err)
			}
		}
	})
}

// timed returns how long the callers together took to call do this many times.
func timed(b *testing.B, callers, times int, do func(caller int) error) time.Duration {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(times))
	var group errgroup.Group
	begin := time.Now()
	for caller := range callers {
		group.Go(func() error {
			for left.Add(-1) >= 0 {
				if err := do(caller); err != nil {
					return err
				}
			}
			return nil
		})
	}
	must.OK(b, group.Wait())
	return time.Since(begin)
}

// loop signs with the two calls and one verification, and returns the time.
func (f *signers) loop(b *testing.B, module string, callers, signatures int) time.Duration {
	b.Helper()
	p := pkcs11.New(module)
	must.OK(b, p.Initialize())
	defer p.Destroy()
	defer func() { must.OK(b, p.Finalize()) }()
	slot := findSlot(b, p, f.token.Label)
	sessions := make([]pkcs11.SessionHandle, callers)
	for i := range sessions {
		sessions[i] = must.Get(p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION))(b)
	}
	must.OK(b, p.Login(sessions[0], pkcs11.CKU_USER, f.token.PIN))
	must.OK(b,
		p.FindObjectsInit(sessions[0],
			[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY),
				pkcs11.NewAttribute(pkcs11.CKA_LABEL, "ca")}))
	keys, _, err := p.FindObjects(sessions[0], 1)
	must.OK(b, errors.Join(err, p.FindObjectsFinal(sessions[0])))
	functions := must.Get(csign.Of(p))(b)
	request := csign.Request{Key: keys[0], Mechanism: pkcs11.CKM_ECDSA, Input: f.digest[:],
		Length: 64}
	return timed(b, callers, signatures, func(caller int) error {
		raw, err := functions.Sign(sessions[caller], request)
		if err != nil {
			return err
		}
		r, s := new(big.Int).SetBytes(raw[:32]), new(big.Int).SetBytes(raw[32:])
		if !ecdsa.Verify(f.public, f.digest[:], r, s) {
			return errors.New("the signature does not verify")
		}
		return nil
	})
}

func findSlot(b *testing.B, p *pkcs11.Ctx, label string) uint {
	b.Helper()
	slots := must.Get(p.GetSlotList(true))(b)
	for _, slot := range slots {
		if info, err := p.GetTokenInfo(slot); err == nil &&
			strings.TrimRight(info.Label, " \x00") == label {
			return slot
		}
	}
	b.Fatalf("no token labelled %q", label)
	return 0
}
