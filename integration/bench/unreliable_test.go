package bench

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"k8s.io/apimachinery/pkg/util/wait"

	"hsm-signer/hsm"
	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
)

// unreliableVariable names the page for the table of random faults.
const unreliableVariable = "UNRELIABLE"

const (
	unreliableRuns     = 5
	unreliableRequests = 60
	unreliableCallers  = 8
	// percent of C_Sign that lose the session, where C_OpenSession or C_Login fails
	baseLosses = 2
)

var unreliableRates = []uint{1, 5, 20}

// signCodes are codes that C_SignInit and C_Sign may return: each recovery step, and no code of a
// PIN.
var signCodes = []uint{
	pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED, pkcs11.CKR_FUNCTION_CANCELED,
	pkcs11.CKR_BUFFER_TOO_SMALL, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_MEMORY,
	pkcs11.CKR_HOST_MEMORY,
	pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_VENDOR_DEFINED + 1,
	pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_SESSION_COUNT,
	pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID,
	pkcs11.CKR_KEY_TYPE_INCONSISTENT, pkcs11.CKR_KEY_SIZE_RANGE,
	pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED,
	pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_DATA_LEN_RANGE,
	pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED,
	pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED,
	pkcs11.CKR_DATA_INVALID, pkcs11.CKR_MECHANISM_PARAM_INVALID, pkcs11.CKR_FUNCTION_NOT_SUPPORTED,
}

// openCodes are codes that C_OpenSession may return.
var openCodes = []uint{
	pkcs11.CKR_SESSION_COUNT, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_MEMORY,
	pkcs11.CKR_DEVICE_REMOVED,
	pkcs11.CKR_HOST_MEMORY, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED,
	pkcs11.CKR_SLOT_ID_INVALID,
	pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED,
	pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED,
}

// loginCodes are codes of C_Login that cannot mean a wrong PIN.
var loginCodes = []uint{
	pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_DEVICE_REMOVED,
	pkcs11.CKR_HOST_MEMORY,
	pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED,
	pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED,
}

// A randomFault is a row of the table: the failing functions, and the faults that occur in all of
// its runs.
type randomFault struct {
	name      string
	functions []string
	code      uint
	base      []pkcs11shim.Rule
}

func randomFaults() []randomFault {
	lossy := []pkcs11shim.Rule{pkcs11shim.Fail(pkcs11shim.Sign,
		pkcs11.CKR_SESSION_HANDLE_INVALID).Percent(baseLosses, 7)}
	var all []randomFault
	add := func(codes []uint, base []pkcs11shim.Rule, functions ...string) {
		for _, code := range codes {
			name := strings.Join(functions, ", ") + ": " + pkcs11shim.CodeName(code)
			all = append(all, randomFault{name, functions, code, base})
		}
	}
	add(signCodes, nil, pkcs11shim.SignInit, pkcs11shim.Sign)
	all = append(all, randomFault{"sessions lost, nothing else", nil, 0, lossy})
	add(openCodes, lossy, pkcs11shim.OpenSession)
	add(loginCodes, lossy, pkcs11shim.Login)
	return all
}

// rules returns the rules of one run.
func (f randomFault) rules(percent, seed uint) []pkcs11shim.Rule {
	rules := append([]pkcs11shim.Rule(nil), f.base...)
	for i, function := range f.functions {
		rules = append(rules, pkcs11shim.Fail(function, f.code).Percent(percent, seed*10+uint(i)))
	}
	return rules
}

// A flakyRun has the measurements of one or more runs.
type flakyRun struct {
	requests, retries, connections, logins, lost int64
	took                                         time.Duration
}

func (r *flakyRun) add(o flakyRun) {
	r.requests, r.retries, r.lost = r.requests+o.requests, r.retries+o.retries, r.lost+o.lost
	r.connections, r.logins, r.took = r.connections+o.connections, r.logins+o.logins, r.took+o.took
}

func (r flakyRun) perSecond() float64 { return float64(r.requests) / r.took.Seconds() }

// cell returns the speed relative to that without faults, and reconnections and logins per 100
// requests.
func (r flakyRun) cell(healthy flakyRun) string {
	per100 := func(n int64) float64 { return 100 * float64(n) / float64(r.requests) }
	return fmt.Sprintf("%.1f %%, %.0f, %.0f", 100*r.perSecond()/healthy.perSecond(),
		per100(r.connections), per100(r.logins))
}

// flaky signs with these rules, which apply once the key has connected.
func (f *signers) flaky(b *testing.B, rules []pkcs11shim.Rule) flakyRun {
	b.Helper()
	must.OK(b, f.shim.Rules())
	key := f.key(b, f.shim.Module, unreliableCallers)
	defer key.Close()
	before := key.Stats()
	must.OK(b, errors.Join(f.shim.Rules(rules...), f.shim.Forget()))
	r := flakyRun{requests: unreliableRequests}
	r.retries, r.lost, r.took = ask(b.Context(), key)
	after := key.Stats()
	r.connections, r.logins = after.Connections-before.Connections, after.Logins-before.Logins
	must.OK(b, f.shim.Rules())
	return r
}

// ask runs callers, each of which retries its signature until it succeeds, as the controller does.
func ask(ctx context.Context, key *hsm.Key) (retries, lost int64, took time.Duration) {
	var left, again, without atomic.Int64
	left.Store(unreliableRequests)
	digest := sha256.Sum256([]byte("to be signed"))
	var group sync.WaitGroup
	began := time.Now()
	for range unreliableCallers {
		group.Go(func() {
			for left.Add(-1) >= 0 {
				backoff := wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Steps: 6,
					Cap: 8 * time.Second}
				limited, cancel := context.WithTimeout(ctx, 2*time.Minute)
				err := backoff.DelayFunc().Until(limited, true, true,
					func(ctx context.Context) (bool, error) {
						_, err := key.Signer(ctx).Sign(nil, digest[:], crypto.SHA256)
						if err != nil {
							again.Add(1)
						}
						return err == nil, nil
					})
				cancel()
				if err != nil {
					without.Add(1)
				}
			}
		})
	}
	group.Wait()
	return again.Load(), without.Load(), time.Since(began)
}

// BenchmarkUnreliableToken signs while calls fail at random. It runs once, whatever b.N is: each
// row has its own runs.
func BenchmarkUnreliableToken(b *testing.B) {
	file := os.Getenv(unreliableVariable)
	f := newSigners(b)
	var healthy, all flakyRun
	var rows strings.Builder
	for _, fault := range randomFaults() {
		row := "| " + fault.name + " |"
		for _, percent := range unreliableRates {
			var beside, sum flakyRun // in turns, so that both meet the same load of the machine
			for seed := range uint(unreliableRuns) {
				beside.add(f.flaky(b, nil))
				sum.add(f.flaky(b, fault.rules(percent, seed+1)))
			}
			healthy.add(beside)
			all.add(sum)
			row += " " + sum.cell(beside) + " |"
			if fault.functions == nil {
				row += " – | – |"
				break
			}
		}
		rows.WriteString(row + "\n")
		b.Logf("%s", row)
	}
	if all.lost > 0 {
		b.Errorf("%d of %d requests are lost", all.lost, all.requests)
	}
	b.ReportMetric(healthy.perSecond(), "healthy/s")
	b.ReportMetric(0, "ns/op")
	if file != "" {
		must.OK(b, os.WriteFile(file, []byte(unreliablePage(healthy, all, rows.String())), 0o644))
	}
}

func unreliablePage(healthy, all flakyRun, rows string) string {
	return fmt.Sprintf(`# An unreliable token, measured

`+"`make unreliable`"+` overwrites this page. SoftHSM signs with P-256 for %d callers, and a module in front of it makes
calls fail at random. Each cell is %d runs of %d requests. Every request is retried until it is signed, after 0.2 s,
doubling to 8 s, as hsm-signer does. The same calls fail each time the page is made.

%d requests, %d lost, %d errors that led to a retry. Without faults: %.0f signatures per second.

A cell shows: speed relative to that without faults, reconnections and calls of `+"`C_Login`"+` per 100 requests.

In the rows of `+"`C_OpenSession` and `C_Login`"+`, %d %% of the calls of C_Sign also return CKR_SESSION_HANDLE_INVALID:
otherwise nothing would log in again. Compare them with the row "sessions lost, nothing else". Each failed login
costs at least 0.5 s. CKR_GENERAL_ERROR, CKR_FUNCTION_FAILED and vendors' codes from C_Login may mean a wrong PIN: there
is one login, and the next 30 s later at the earliest, doubling to 15 minutes.

| Fails at random | 1 %% | 5 %% | 20 %% |
|---|---|---|---|
%s`, unreliableCallers, unreliableRuns, unreliableRequests, all.requests, all.lost, all.retries,
		healthy.perSecond(), baseLosses, rows)
}
