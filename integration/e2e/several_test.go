package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
	"hsm-signer/integration/testenv"
)

// pinOfSecond is the user PIN of the second token.
const pinOfSecond = "5028-second"

// twoCAs are two CAs in one CONFIG_FILE, each with its own token and module. The second is behind a
// shim.
type twoCAs struct {
	file          string
	pin1, pin2    string // the files with the PINs
	module        string // of the first
	shim          *pkcs11shim.Shim
	first, second ownSigner
	env           []string
}

// configuredBy are the settings of a process with several CAs.
func configuredBy(file string) []string {
	env := []string{"CONFIG_FILE=" + file}
	for _, variable := range []string{"PKCS11_MODULE", "PKCS11_TOKEN_LABEL", "PKCS11_PIN",
		"CA_KEY_LABEL", "CA_CERT_FILE", "SIGNER_NAME", "STATE_DIR"} {
		env = append(env, variable+"=")
	}
	return env
}

// newTwoCAs creates the tokens and the CAs. The names begin with the prefix.
func newTwoCAs(t *testing.T, prefix string) twoCAs {
	t.Helper()
	dir := t.TempDir()
	token, err := testenv.NewSoftHSM(t.Context(), filepath.Join(dir, "softhsm"), "first")
	must.OK(t, err)
	must.OK(t, token.AddToken(t.Context(), "second", pinOfSecond))
	// Two modules, so that they do not share their fate: a library is loaded once.
	library, err := os.ReadFile(token.Module)
	must.OK(t, err)
	other := filepath.Join(dir, "other.so")
	must.OK(t, os.WriteFile(other, library, 0o600))
	shim, err := pkcs11shim.New(t.Context(), dir, other)
	must.OK(t, err)
	c := twoCAs{
		file: filepath.Join(dir, "config.yaml"), module: token.Module, shim: shim,
		pin1: tempFile(t, "pin1", token.PIN), pin2: tempFile(t, "pin2", pinOfSecond),
		first: newOwnSigner(t, prefix+"-first"), second: newOwnSigner(t, prefix+"-second"),
	}
	must.OK(t, os.WriteFile(c.file, fmt.Appendf(nil, `
common:
  STATE_DIR: %[1]s/state
  PKCS11_TIMEOUT: 500ms
cas:
  first:
    SIGNER_NAME: %[2]s
    CA_CERT_FILE: %[1]s/first.crt
    PKCS11_URI: pkcs11:token=first;object=first?module-path=%[3]s&pin-source=%[4]s
  second:
    SIGNER_NAME: %[5]s
    CA_CERT_FILE: %[1]s/second.crt
    PKCS11_URI: pkcs11:token=second;object=second?module-path=%[6]s
    PKCS11_PIN_FILE: %[7]s
`, dir, c.first.name(), token.Module, c.pin1, c.second.name(), shim.Module, c.pin2), 0o600))
	c.env = slices.Concat([]string{token.Env()}, shim.Env(), configuredBy(c.file))
	for _, name := range []string{"first", "second"} {
		command(t, testenv.CA{}, c.env, "ca", "create", "--ca", name, "--subject", "CN="+name,
			"--out", filepath.Join(dir, name+".crt")).prints(t, 0)
	}
	must.OK(t, shim.Forget())
	return c
}

// setPIN changes the PIN of the second CA.
func (c twoCAs) setPIN(t *testing.T, pin string) {
	t.Helper()
	must.OK(t, os.WriteFile(c.pin2, []byte(pin), 0o600))
}

// change replaces texts in CONFIG_FILE: each first one by the one that follows.
func (c twoCAs) change(t *testing.T, oldnew ...string) {
	t.Helper()
	text, err := os.ReadFile(c.file)
	must.OK(t, err)
	write(t, c.file, strings.NewReplacer(oldnew...).Replace(string(text)))
}

// wrongPINs returns how often the token of a module behind the shim has rejected the PIN.
func (c twoCAs) wrongPINs(t *testing.T) int {
	t.Helper()
	return len(callsOf(t, c.shim).Of(pkcs11shim.Login).With(pkcs11.CKR_PIN_INCORRECT))
}

// readyz returns the status code and the body of /readyz, or of a path below it.
func readyz(t *testing.T, d *testenv.Daemon, path string) (int, string) {
	t.Helper()
	return getText(t, "http://"+d.Address()+"/readyz"+path)
}

func getText(t *testing.T, url string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	must.OK(t, err)
	response, err := http.DefaultClient.Do(request)
	must.OK(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	must.OK(t, err)
	return response.StatusCode, string(body)
}

// A refused PIN stops its own CA alone, and is tried once. When its file has the right one, the CA
// signs without a restart.
func TestAWrongPINStopsItsOwnCA(t *testing.T) {
	c := newTwoCAs(t, "pins")
	c.setPIN(t, "0000-canary")
	d := start(t, testenv.CA{}, c.env...)
	waitLog(t, d, "this CA has failed and signs nothing; the other CAs are served")
	must.OK(t, d.WaitNotReady(t.Context(),
		`[-] second/token: the token labelled "second" rejected the PIN`))
	p := newPod(t, node)
	asking := c.second.initContainer(p)
	csr := submit(t, p, asking)
	requireEvent(t, csr.Name, "SignerFault")
	c.first.issue(t)
	requireOpen(t, csr.Name)
	if code, body := readyz(t, d, "/first"); code != http.StatusOK ||
		!strings.Contains(body, "[+] first/token ok") || strings.Contains(body, "second") {
		t.Errorf("the first CA: %d %s", code, body)
	}
	if code, body := readyz(t, d, "/second"); code != http.StatusServiceUnavailable {
		t.Errorf("the second CA: %d %s", code, body)
	}
	waitMetrics(t, d, `hsm_signer_ready{ca="first",part="token"} 1`,
		`hsm_signer_ready{ca="second",part="token"} 0`,
		`hsm_signer_certificates_issued_total{ca="first",rule="calico-node"} 1`,
		`hsm_signer_token_logins_total{ca="second"} 1`)
	page, err := d.StatusPage(t.Context())
	must.OK(t, err)
	if _, body := getText(t, page); !strings.Contains(body, "Not well: second") ||
		!strings.Contains(body, `<a href="/ca/first">`) {
		t.Errorf("the list of CAs: %s", body)
	}
	if _, body := getText(t, page+"ca/second"); !strings.Contains(body, "the PIN is wrong") {
		t.Errorf("the page of the second CA: %s", body)
	}
	command(t, testenv.CA{}, c.env, "check", "--try-pin").prints(t, 3, "ok       first: token",
		"failed   second: ")
	requireNowhere(t, d, "0000-canary")

	c.setPIN(t, pinOfSecond)
	must.OK(t, d.WaitReady(t.Context()))
	requireAnswered(t, p, asking)
	waitLog(t, d, "this CA works again")
	wrong := callsOf(t, c.shim).By(d.PID()).Of(pkcs11shim.Login).With(pkcs11.CKR_PIN_INCORRECT)
	if len(wrong) != 1 { // "check" has tried it too
		t.Errorf("the wrong PIN was tried %d times", len(wrong))
	}
	c.requireCommands(t)
}

// requireCommands requires that commands are about the CA that they are given.
func (c twoCAs) requireCommands(t *testing.T) {
	t.Helper()
	for words, args := range map[string][]string{
		"CN=second":     {"ca", "show", "--ca", "second"},
		c.second.name(): {"audit", "list", "--ca", "second", "--output", "json"},
		"/state/first":  {"audit", "verify", "--ca", "first"},
		"calico-typha":  {"policy", "show", "--ca", "first"},
	} {
		command(t, testenv.CA{}, c.env, args...).prints(t, 0, words)
	}
	command(t, testenv.CA{}, c.env, "audit", "verify").complains(t, 4,
		"--ca: is not set: name a CA of CONFIG_FILE: first, second")
}

// A token that is taken away, and a module that hangs permanently, stop their own CA alone.
func TestALostHSMStopsItsOwnCA(t *testing.T) {
	t.Parallel()
	c := newTwoCAs(t, "hangs")
	d := startReady(t, testenv.CA{}, c.env...)
	c.second.issue(t)
	p := newPod(t, node)
	asking := c.second.initContainer(p)
	must.OK(t, c.shim.Rules(pkcs11shim.Fail(pkcs11shim.Any, pkcs11.CKR_DEVICE_REMOVED)))
	must.OK(t, d.WaitNotReady(t.Context(), "[-] second/token: "))
	submit(t, p, asking)
	c.first.issue(t)
	must.OK(t, c.shim.Rules())
	requireAnswered(t, p, asking)
	must.OK(t, d.WaitReady(t.Context()))

	must.OK(t, c.shim.Rules(pkcs11shim.Hang(pkcs11shim.Any)))
	for !strings.Contains(d.Log(), "this CA has failed and signs nothing") { // after a minute
		c.first.issue(t)
	}
	c.first.issue(t)
	csr := c.second.submit(t)
	requireEvent(t, csr.Name, "SignerFault")
	if !d.Running() {
		t.Fatalf("the process has ended:\n%s", d.Log())
	}
	must.OK(t, c.shim.Rules()) // the calls return
	must.OK(t, d.WaitReady(t.Context()))
	must.Eventually(t, "the request to be answered", func(context.Context) (bool, error) {
		return len(get(t, csr.Name).Status.Certificate) > 0, nil
	})
}

// When every CA has failed, the process ends. It says why, and no supervisor starts it again.
func TestEveryCAHasFailed(t *testing.T) {
	c := newTwoCAs(t, "lost")
	c.setPIN(t, "0000-wrong")
	c.change(t, "object=first", "object=nobody")
	command(t, testenv.CA{}, c.env, "run").complains(t, 3, "every CA has failed:\n",
		"first: the token has no private key",
		`second: the token labelled "second" rejected the PIN`)
	if n := logins(t, c.shim); n != 1 {
		t.Errorf("the wrong PIN was tried %d times", n)
	}
}

// Two CAs whose tokens are behind one library: a wrong PIN of one stops that one alone, and neither
// the fault nor the recovery keeps the other from issuing.
func TestCAsBehindOneLibrary(t *testing.T) {
	c := newTwoCAs(t, "library")
	c.change(t, "module-path="+c.module, "module-path="+c.shim.Module)
	c.setPIN(t, "0000-wrong")
	d := start(t, testenv.CA{}, c.env...)
	waitLog(t, d, "this CA has failed and signs nothing; the other CAs are served")
	waitLog(t, d, "this CA shares its PKCS#11 module with another one")
	csr := c.second.submit(t)
	requireEvent(t, csr.Name, "SignerFault")
	c.first.issue(t)
	c.setPIN(t, pinOfSecond)
	must.OK(t, d.WaitReady(t.Context()))
	c.first.issue(t)
	c.second.issue(t)
	if n := c.wrongPINs(t); n != 1 {
		t.Errorf("the wrong PIN was tried %d times", n)
	}
}

// Two CAs on one token try a wrong PIN once, since the token counts for both.
func TestCAsOnOneTokenTryAWrongPINOnce(t *testing.T) {
	c := newTwoCAs(t, "token")
	c.change(t, "module-path="+c.module, "module-path="+c.shim.Module,
		"token=second;object=second", "token=first;object=first", "second.crt", "first.crt")
	must.OK(t, os.WriteFile(c.pin1, []byte("0000-wrong"), 0o600))
	c.setPIN(t, "0000-wrong")
	command(t, testenv.CA{}, c.env, "run").complains(t, 3, "every CA has failed:\n")
	if n := c.wrongPINs(t); n != 1 {
		t.Errorf("the wrong PIN was tried %d times", n)
	}
}

// One CA of two is changed, and the other one neither knows nor notices.
func TestRotationOfOneCA(t *testing.T) {
	c := newTwoCAs(t, "rotate")
	dir := filepath.Dir(c.file)
	file := func(name string) testenv.CA {
		return testenv.CA{CertFile: filepath.Join(dir, name+".crt")}
	}
	c.change(t, "object=second", "object=next")
	command(t, testenv.CA{}, c.env, "ca", "create", "--ca", "second", "--subject", "CN=next",
		"--out", file("next").CertFile).prints(t, 0)
	c.change(t, "object=next", "object=second", "common:", "common:\n  LEADER_ELECT: true\n"+
		"  LEASE_NAMESPACE: hsm-signer", "  first:\n", "  first:\n    LEASE_NAME: "+
		string(c.first)+"\n", "  second:\n", "  second:\n    LEASE_NAME: "+string(c.second)+
		"\n    ROTATION_TRUST_TIME: 1s\n    NEXT_CA_KEY_LABEL: next\n    NEXT_CA_CERT_FILE: "+
		file("next").CertFile+"\n")
	d := startReady(t, testenv.CA{}, c.env...)
	waitMetrics(t, d, `hsm_signer_leading{ca="first"} 1`, `hsm_signer_leading{ca="second"} 1`)
	rotate := func(args ...string) printout {
		return command(t, testenv.CA{}, c.env, append([]string{"ca", "rotate"}, args...)...)
	}
	signs := func(signer ownSigner, by testenv.CA) {
		t.Helper()
		p := newPod(t, node)
		requireIssuedBy(t, requireCertificate(t, p, signer.initContainer(p)), by)
	}
	rotate("announce").complains(t, 4, "--ca: is not set: name a CA of CONFIG_FILE")
	rotate("announce", "--ca", "first").complains(t, 2, "set NEXT_CA_CERT_FILE")
	rotate("announce", "--ca", "second").prints(t, 0, "the phase is announced")
	rotate("trust", "--ca", "second").prints(t, 0, "the phase is trusted")
	signs(c.second, file("second"))
	must.Eventually(t, "the phase signing", func(context.Context) (bool, error) {
		return rotate("sign", "--ca", "second").code == 0, nil
	})
	signs(c.second, file("next"))
	signs(c.first, file("first"))
	waitMetrics(t, d, `hsm_signer_rotation_phase{ca="second",phase="signing"} 1`,
		`hsm_signer_live_certificates{ca="second",file="NEXT_CA_CERT_FILE"} `,
		`hsm_signer_certificates_issued_total{ca="first",rule="calico-node"} 1`)
	if text := d.Metrics(t.Context()); strings.Contains(text,
		`hsm_signer_live_certificates{ca="first"`) || strings.Contains(text,
		`hsm_signer_rotation_phase{ca="first",phase="signing"} 1`) {
		t.Errorf("the first CA has metrics of a rotation:\n%s", text)
	}
	rotate("status", "--ca", "second").prints(t, 0, "signing since", "CN=next")
	rotate("status", "--ca", "first").prints(t, 0, "no rotation")
	must.OK(t, d.Shutdown())
	for _, name := range []string{"first", "second"} {
		command(t, testenv.CA{}, c.env, "audit", "verify", "--ca", name).prints(t, 0)
	}
}

// heal reads what CONFIG_FILE says of one CA, and has its own credential and address.
func TestHealOfOneCA(t *testing.T) {
	c := newTwoCAs(t, "heal")
	c.change(t, "common:", "common:\n  KUBECONFIG: /nowhere\n  LISTEN_ADDRESS: 192.0.2.1:80")
	command(t, testenv.CA{}, c.env, "heal").complains(t, 4,
		"--ca: is not set: name a CA of CONFIG_FILE: first, second")
	healer, err := shared.HealOf(context.WithoutCancel(t.Context()), "second", c.env...)
	must.OK(t, err)
	t.Cleanup(func() { must.OK(t, healer.Shutdown()) })
	must.OK(t, healer.WaitReady(t.Context()))
	if log := healer.Log(); !strings.Contains(log, c.second.name()) || strings.Contains(log,
		c.first.name()) {
		t.Errorf("it heals pods of others:\n%s", log)
	}
}
