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
	must(t, s.Rules(shim.Hang(shim.Sign), shim.Hang(shim.GetAttributeValue)))
	must(t, d.WaitNotReady(t.Context(), "did not come back within 1s"))
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
}

// A module that hangs for good ends the process, so that a supervisor may start another.
func TestTokenHangsForGood(t *testing.T) {
	s, env := behindShim(t)
	d, err := shared.Run(t.Context(), ca, append(env, "PKCS11_TIMEOUT=100ms")...)
	must(t, err)
	must(t, d.WaitReady(t.Context()))
	must(t, s.Rules(shim.Hang(shim.Any)))
	code, err := d.Wait()
	must(t, err)
	if code != 1 || !strings.Contains(d.Log(), "hangs, and 5 attempts to go on") {
		t.Errorf("exit code %d; log:\n%s", code, d.Log())
	}
}

// A URI takes the place of the variables; a PIN in it is gone from the environment.
func TestURINamesAll(t *testing.T) {
	without := []string{"PKCS11_MODULE=", "PKCS11_TOKEN_LABEL=", "CA_KEY_LABEL=", "PKCS11_PIN="}
	uri := "pkcs11:token=" + shared.Token.Label + ";manufacturer=SoftHSM%20project;object=" + ca.KeyLabel + ";type=private?module-path=" + shared.Token.Module
	d := startReady(t, ca, append(without, "PKCS11_URI="+uri+"&pin-value="+shared.Token.PIN)...)
	environ, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(d.PID()), "environ"))
	must(t, err)
	if !strings.Contains(string(environ), "PKCS11_URI=pkcs11:") || strings.Contains(string(environ)+d.Log(), shared.Token.PIN) {
		t.Error("the environment or the log holds the PIN, or the environment no URI")
	}
	pin := filepath.Join(t.TempDir(), "pin")
	must(t, os.WriteFile(pin, []byte(shared.Token.PIN+"\n"), 0o400))
	stdout, stderr, code := shared.Command(t.Context(), ca, without, "check", "--pkcs11-uri", uri+"&pin-source=file:"+pin)
	if code != 0 {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
}

// What a URI names is named by nothing else, and a flag holds no PIN.
func TestURIFaults(t *testing.T) {
	uri := "pkcs11:token=ca;object=a?module-path=/nowhere.so&pin-value=0000-canary"
	for _, c := range []struct {
		env, args []string
		want      string
	}{
		{[]string{"PKCS11_URI=" + uri}, nil, "PKCS11_TOKEN_LABEL: is set, and PKCS11_URI says the same"},
		{[]string{"PKCS11_URI=" + uri}, nil, "CA_KEY_LABEL: is set, and PKCS11_URI says the same"},
		{[]string{"PKCS11_URI=" + uri}, nil, "PKCS11_PIN: is set, and so is"},
		{nil, []string{"--pkcs11-uri", uri}, "--pkcs11-uri: holds a pin-value"},
		{[]string{"PKCS11_URI=pkcs11:token=ca;type=public"}, nil, "PKCS11_URI: the PKCS#11 URI names an object of the type public"},
		{[]string{"PKCS11_URI=pkcs11:tokn=ca"}, nil, "PKCS11_URI: "},
		{[]string{"PKCS11_URI=pkcs11:token=ca?module-name=nowhere"}, nil, "module-name: there is no such module"},
	} {
		_, stderr, code := shared.Command(t.Context(), ca, c.env, append([]string{"check"}, c.args...)...)
		if code != 4 || !strings.Contains(stderr, c.want) || strings.Contains(stderr, "0000-canary") {
			t.Errorf("%v %v: exit code %d: %s; want %q", c.env, c.args, code, stderr, c.want)
		}
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
}
