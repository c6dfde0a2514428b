package bridge_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/shim"
)

// behindShim puts a shim before the token, and returns the environment with which hsm-signer loads it.
func behindShim(t *testing.T) (*shim.Shim, []string) {
	t.Helper()
	s, err := shim.New(t.Context(), t.TempDir(), shared.Token.Module)
	must(t, err)
	return s, append(s.Env(), "PKCS11_MODULE="+s.Module)
}

func logins(t *testing.T, s *shim.Shim) int {
	t.Helper()
	calls, err := s.Calls()
	must(t, err)
	return calls.Count(shim.Login)
}

// A supervisor that follows deploy/systemd/hsm-signer.service never costs a second login with a
// wrong PIN, however often it would restart.
func TestSupervisorDoesNotTryAWrongPINAgain(t *testing.T) {
	unit, err := os.ReadFile(filepath.Join("..", "..", "deploy", "systemd", "hsm-signer.service"))
	must(t, err)
	prevented := regexp.MustCompile(`(?m)^RestartPreventExitStatus=(.*)$`).FindStringSubmatch(string(unit))
	if prevented == nil || !strings.Contains(string(unit), "\nRestart=on-failure\n") {
		t.Fatalf("the unit does not say when to restart:\n%s", unit)
	}
	s, env := behindShim(t)
	starts := 0
	for range 10 {
		starts++
		_, stderr, code := shared.Command(t.Context(), ca, append(env, "PKCS11_PIN=0000-wrong"), "run")
		if code == 0 || slices.Contains(strings.Fields(prevented[1]), strconv.Itoa(code)) {
			break
		}
		t.Logf("start %d ended with exit code %d: %s", starts, code, stderr)
	}
	if n := logins(t, s); n != 1 || starts != 1 {
		t.Errorf("%d calls of C_Login in %d starts; want one in one", n, starts)
	}
}

// A token that hangs costs nothing but time: requests stay pending, /readyz says why, and all are
// answered when it goes on.
func TestTokenHangsAndGoesOn(t *testing.T) {
	s, env := behindShim(t)
	d := startReady(t, ca, append(env, "PKCS11_TIMEOUT=1s")...)
	must(t, s.Rules(shim.Hang(shim.Sign)))
	must(t, d.WaitNotReady(t.Context(), "C_Sign did not come back within 1s"))
	node := components()[0]
	p := newPod(t, node, nextIP())
	asking := p.asking(t, node)
	csr, err := asking.Submit(t.Context(), p.client)
	must(t, err)
	requireEvent(t, csr.Name, "SignerFault")
	if now := get(t, csr.Name); len(now.Status.Conditions) > 0 {
		t.Errorf("it was decided while the token hung: %v", now.Status.Conditions)
	}
	must(t, s.Rules())
	must(t, d.WaitReady(t.Context()))
	csr, err = calico.Wait(t.Context(), p.client, csr.Name)
	must(t, err)
	requireIssued(t, csr, asking)
	if n := logins(t, s); n != 2 {
		t.Errorf("%d calls of C_Login; one at the start and one after the hang are enough", n)
	}
}

// A module that hangs for good ends the process, so that a supervisor may start another.
func TestTokenHangsForGood(t *testing.T) {
	s, env := behindShim(t)
	d := start(t, ca, append(env, "PKCS11_TIMEOUT=100ms", "PKCS11_MAX_SESSIONS=1")...)
	must(t, d.WaitReady(t.Context()))
	must(t, s.Rules(shim.Hang(shim.Any)))
	code, err := d.Wait()
	must(t, err)
	if code != 1 || !strings.Contains(d.Log(), "calls hang in the PKCS#11 module") {
		t.Errorf("exit code %d; log:\n%s", code, d.Log())
	}
}

// The PIN is in nothing that leaves the process, whatever the token answers.
func TestPINIsInNoFault(t *testing.T) {
	s, env := behindShim(t)
	d := startReady(t, ca, append(env, "LOG_LEVEL=trace")...)
	node := components()[0]
	p := newPod(t, node, nextIP())
	for _, rules := range [][]shim.Rule{
		{shim.LoseSessions(shim.SignInit), shim.Fail(shim.Login, pkcs11.CKR_DEVICE_ERROR).Times(1)},
		{shim.Fail(shim.Sign, pkcs11.CKR_GENERAL_ERROR).Times(3)},
		{shim.Fail(shim.SignInit, pkcs11.CKR_KEY_HANDLE_INVALID).Times(1), shim.Fail(shim.FindObjects, pkcs11.CKR_VENDOR_DEFINED).Times(1)},
	} {
		must(t, s.Rules(rules...))
		asking := p.asking(t, node)
		key, err := calico.NewKey("ECDSAWithCurve256")
		must(t, err)
		asking.Key = key
		p.requireCertificate(t, asking)
	}
	_, ready, err := d.Readyz(t.Context())
	must(t, err)
	events, err := shared.Cluster.Client().CoreV1().Events(metav1.NamespaceAll).List(t.Context(), metav1.ListOptions{})
	must(t, err)
	var said strings.Builder
	for _, event := range events.Items {
		said.WriteString(event.Message)
	}
	for where, text := range map[string]string{"log": d.Log(), "/readyz": ready, "/metrics": d.Metrics(t.Context()), "events": said.String()} {
		if text == "" || strings.Contains(text, shared.Token.PIN) {
			t.Errorf("%s: %d bytes, and the PIN is among them: %t", where, len(text), strings.Contains(text, shared.Token.PIN))
		}
	}
	cores, err := filepath.Glob("core*")
	must(t, err)
	if len(cores) > 0 {
		t.Errorf("there are core dumps: %v", cores)
	}
}
