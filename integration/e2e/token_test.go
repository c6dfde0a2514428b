package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/miekg/pkcs11"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
	"hsm-signer/integration/testenv"
)

// behindShim puts a shim before the token, and returns the environment with which hsm-signer loads
// it.
func behindShim(t *testing.T) (*pkcs11shim.Shim, []string) {
	t.Helper()
	s := must.Get(pkcs11shim.New(t.Context(), t.TempDir(), shared.Token.Module))(t)
	return s, s.Env()
}

// callsOf returns the calls that the shim has logged.
func callsOf(t *testing.T, s *pkcs11shim.Shim) pkcs11shim.Calls {
	t.Helper()
	return must.Get(s.Calls())(t)
}

func logins(t *testing.T, s *pkcs11shim.Shim) int {
	t.Helper()
	return callsOf(t, s).Count(pkcs11shim.Login)
}

// A supervisor that follows deploy/systemd/hsm-signer.service restarts a process that crashes, ten
// times here. If the PIN has become wrong, it is tried exactly once.
func TestSupervisorDoesNotTryAWrongPINAgain(t *testing.T) {
	const restarts = 10
	unit, err := os.ReadFile(filepath.Join("..", "..", "deploy", "systemd", "hsm-signer.service"))
	must.OK(t, err)
	prevented := regexp.MustCompile(`(?m)^RestartPreventExitStatus=(.*)$`).
		FindStringSubmatch(string(unit))
	if prevented == nil || !strings.Contains(string(unit), "\nRestart=on-failure\n") {
		t.Fatalf("the unit does not say when to restart:\n%s", unit)
	}
	s, env := behindShim(t)
	pin := tempFile(t, "pin", shared.Token.PIN+"\n")
	env = append(env, "PKCS11_PIN=", "PKCS11_PIN_FILE="+pin,
		"STATE_DIR="+filepath.Join(t.TempDir(), "state"))
	for range restarts {
		d := startReady(t, ca, env...)
		must.OK(t, d.Kill())
	}
	must.OK(t, os.WriteFile(pin, []byte("0000-wrong\n"), 0o600))
	defer logIn(t)
	starts := 0
	for range restarts {
		starts++
		_, stderr, code := shared.Command(t.Context(), ca, env, "run")
		if code == 0 || slices.Contains(strings.Fields(prevented[1]), strconv.Itoa(code)) {
			break
		}
		t.Logf("start %d ended with exit code %d: %s", starts, code, stderr)
	}
	calls := callsOf(t, s)
	wrong := calls.Of(pkcs11shim.Login).With(pkcs11.CKR_PIN_INCORRECT)
	if starts != 1 || len(wrong) != 1 || calls.Count(pkcs11shim.Login) != restarts+1 {
		t.Errorf("%d calls of C_Login, %d with the wrong PIN, in %d starts with that; want "+
			"one in one", calls.Count(pkcs11shim.Login), len(wrong), starts)
	}
	t.Logf("%d restarts after crashes; then C_Login with the wrong PIN: %d, starts with it: %d",
		restarts, len(wrong), starts)
}

// In a pod, which would be restarted after any exit code, the process keeps running after a refused
// PIN and is not ready. It does not try the PIN again until the file has another one.
func TestRefusedPINInAPod(t *testing.T) {
	const wrong = "0000-canary"
	s, env := behindShim(t)
	pin := tempFile(t, "pin", wrong)
	d := start(t, ca,
		append(env, "KUBERNETES_SERVICE_HOST=127.0.0.1", "KUBERNETES_SERVICE_PORT=1", "PKCS11_PIN=",
			"PKCS11_PIN_FILE="+pin, "LOG_LEVEL=trace")...)
	must.OK(t, d.WaitNotReady(t.Context(), "the PIN is wrong"))
	p, asking := newRequester(t, node)
	asking.SecretName = "refused-pin"
	csr := submit(t, p, asking)
	requireEvent(t, csr.Name, "SignerFault")
	requireNowhere(t, d, wrong)
	if n := logins(t, s); n != 1 {
		t.Errorf("the wrong PIN was tried %d times", n)
	}
	must.OK(t, os.WriteFile(pin, []byte(shared.Token.PIN), 0o600))
	must.OK(t, d.WaitReady(t.Context()))
	requireAnswered(t, p, asking)
	if n := logins(t, s); n != 2 {
		t.Errorf("%d calls of C_Login, for two PINs", n)
	}
}

// A process that crashes writes no core dump, which would have the PIN, even if the limits allow
// one.
func TestCrashWritesNoCore(t *testing.T) {
	var limit syscall.Rlimit
	must.OK(t, syscall.Getrlimit(syscall.RLIMIT_CORE, &limit))
	highest := syscall.Rlimit{Cur: limit.Max, Max: limit.Max}
	must.OK(t, syscall.Setrlimit(syscall.RLIMIT_CORE, &highest))
	defer func() { must.OK(t, syscall.Setrlimit(syscall.RLIMIT_CORE, &limit)) }()
	other := exec.CommandContext(t.Context(), "sh", "-c", "kill -ABRT $$")
	other.Dir = t.TempDir()
	_ = other.Run()
	d := must.Get(shared.Run(t.Context(), ca, "GOTRACEBACK=crash"))(t)
	must.OK(t, d.WaitReady(t.Context()))
	must.OK(t, d.Signal(syscall.SIGABRT))
	must.Get(d.Wait())(t)
	if d.DumpedCore() || strings.Contains(d.Log(), shared.Token.PIN) {
		t.Errorf("it wrote a core: %t; or its last words hold the PIN:\n%s", d.DumpedCore(),
			d.Log())
	}
	t.Logf("another process that crashes writes a core here: %t; hsm-signer: %t",
		other.ProcessState.Sys().(syscall.WaitStatus).CoreDump(), d.DumpedCore())
}

// While the token hangs requests stay pending and /readyz gives the reason. All are answered when
// the token continues.
func TestTokenHangsAndGoesOn(t *testing.T) {
	s, env := behindShim(t)
	d := startReady(t, ca, append(env, "PKCS11_TIMEOUT=1s")...)
	must.OK(t, s.Rules(pkcs11shim.Hang(pkcs11shim.Sign),
		pkcs11shim.Hang(pkcs11shim.GetAttributeValue)))
	must.OK(t, d.WaitNotReady(t.Context(), "did not return within 1s"))
	p, asking := newRequester(t, node)
	csr := submit(t, p, asking)
	requireEvent(t, csr.Name, "SignerFault")
	requireOpen(t, csr.Name)
	must.OK(t, s.Rules())
	must.OK(t, d.WaitReady(t.Context()))
	requireAnswered(t, p, asking)
}

// If the module hangs permanently the process exits, so that a supervisor can start another one.
func TestTokenHangsForGood(t *testing.T) {
	t.Parallel()
	signer := newOwnSigner(t, "hangs-for-good")
	s, env := behindShim(t)
	d, err := shared.Run(t.Context(), ca, signer.env(append(env, "PKCS11_TIMEOUT=500ms")...)...)
	must.OK(t, err)
	must.OK(t, d.WaitReady(t.Context()))
	must.OK(t, s.Rules(pkcs11shim.Hang(pkcs11shim.Any)))
	code := must.Get(d.Wait())(t)
	if code != 1 || !strings.Contains(d.Log(), "attempts to continue without the") {
		t.Errorf("exit code %d; log:\n%s", code, d.Log())
	}
}

// A URI replaces the variables. A PIN in it is removed from the environment.
func TestURINamesAll(t *testing.T) {
	without := []string{"PKCS11_MODULE=", "PKCS11_TOKEN_LABEL=", "CA_KEY_LABEL=", "PKCS11_PIN="}
	uri := "pkcs11:token=" + shared.Token.Label + ";manufacturer=SoftHSM%20project;object=" +
		ca.KeyLabel + ";type=private?module-path=" + shared.Token.Module
	d := startReady(t, ca, append(without, "PKCS11_URI="+uri+"&pin-value="+shared.Token.PIN)...)
	environ := must.Get(os.ReadFile(filepath.Join("/proc", strconv.Itoa(d.PID()), "environ")))(t)
	if !strings.Contains(string(environ), "PKCS11_URI=pkcs11:") ||
		strings.Contains(string(environ)+d.Log(), shared.Token.PIN) {
		t.Error("the environment or the log holds the PIN, or the environment no URI")
	}
	pin := tempFile(t, "pin", shared.Token.PIN+"\n")
	command(t, ca, without, "check", "--pkcs11-uri", uri+"&pin-source=file:"+pin).prints(t, 0)
}

// A setting in the URI must not be set elsewhere, and a flag must not have a PIN.
func TestURIFaults(t *testing.T) {
	uri := "pkcs11:token=ca;object=a?module-path=/nowhere.so&pin-value=0000-canary"
	for _, c := range []struct {
		env, args []string
		want      string
	}{
		{[]string{"PKCS11_URI=" + uri}, nil,
			"PKCS11_TOKEN_LABEL: is set, and PKCS11_URI sets the same"},
		{[]string{"PKCS11_URI=" + uri}, nil, "CA_KEY_LABEL: is set, and PKCS11_URI sets the same"},
		{[]string{"PKCS11_URI=" + uri}, nil, "PKCS11_PIN: is set, and so is"},
		{nil, []string{"--pkcs11-uri", uri}, "--pkcs11-uri: has a pin-value"},
		{[]string{"PKCS11_URI=pkcs11:token=ca;type=public"}, nil,
			"PKCS11_URI: the PKCS#11 URI names an object of the type public"},
		{[]string{"PKCS11_URI=pkcs11:tokn=ca"}, nil, "PKCS11_URI: "},
		{[]string{"PKCS11_URI=pkcs11:token=ca?module-name=nowhere"}, nil,
			"module-name: there is no such module"},
	} {
		p := command(t, ca, c.env, append([]string{"check"}, c.args...)...)
		p.complains(t, 4, c.want)
		p.lacks(t, "0000-canary")
	}
}

// The PIN is in nothing that leaves the process, whatever the token answers.
func TestPINIsInNoFault(t *testing.T) {
	s, env := behindShim(t)
	state := filepath.Join(t.TempDir(), "state")
	d := startReady(t, ca, append(env, "LOG_LEVEL=trace", "STATE_DIR="+state)...)
	p := newPod(t, node)
	for _, rules := range [][]pkcs11shim.Rule{
		{pkcs11shim.LoseSessions(pkcs11shim.SignInit),
			pkcs11shim.Fail(pkcs11shim.Login, pkcs11.CKR_DEVICE_ERROR).Times(1)},
		{pkcs11shim.Fail(pkcs11shim.Sign, pkcs11.CKR_GENERAL_ERROR).Times(3)},
		{pkcs11shim.Fail(pkcs11shim.SignInit, pkcs11.CKR_KEY_HANDLE_INVALID).Times(1),
			pkcs11shim.Fail(pkcs11shim.FindObjects, pkcs11.CKR_VENDOR_DEFINED).Times(1)},
	} {
		must.OK(t, s.Rules(rules...))
		asking := p.InitContainer(node)
		asking.Key = calico.NewP256Key()
		requireCertificate(t, p, asking)
	}
	requireNowhere(t, d, shared.Token.PIN)
	requireNotInFiles(t, state, shared.Token.PIN)
}

// requireNowhere requires that a running process shows the PIN nowhere.
func requireNowhere(t *testing.T, d *testenv.Daemon, pin string) {
	t.Helper()
	_, ready, err := d.Readyz(t.Context())
	must.OK(t, err)
	events, err := shared.Cluster.Client().CoreV1().Events(metav1.NamespaceAll).List(t.Context(),
		metav1.ListOptions{})
	must.OK(t, err)
	requests := must.Get(shared.Cluster.Requests().List(t.Context(), metav1.ListOptions{}))(t)
	places := map[string]string{
		"log": d.Log(), "/readyz": ready, "/metrics": d.Metrics(t.Context()),
		"events": fmt.Sprintf("%+v", events.Items), "requests": fmt.Sprintf("%+v", requests.Items),
	}
	for _, name := range []string{"environ", "cmdline"} {
		text := must.Get(os.ReadFile(filepath.Join("/proc", strconv.Itoa(d.PID()), name)))(t)
		places["/proc/PID/"+name] = string(text)
	}
	for where, text := range places {
		hits := strings.Count(text, pin)
		t.Logf("%s: %d bytes, %d hits", where, len(text), hits)
		if text == "" || hits > 0 {
			t.Errorf("%s: %d bytes, and the PIN is there %d times", where, len(text), hits)
		}
	}
}

// requireNotInFiles requires that no file below the directory has the PIN, and that there are
// files.
func requireNotInFiles(t *testing.T, dir, pin string) {
	t.Helper()
	files := 0
	must.OK(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if files++; strings.Contains(string(text), pin) {
			t.Errorf("%s holds the PIN", path)
		}
		return err
	}))
	if files == 0 {
		t.Errorf("there is no file in %s", dir)
	}
}

// logIn makes the token forget a wrong PIN, which its flags would report to later tests.
func logIn(t *testing.T) {
	t.Helper()
	command(t, ca, nil, "check", "--try-pin").prints(t, 0)
}

// While the token reports a wrong PIN, check tries no PIN unless it is asked to, not even the right
// one.
func TestCheckDoesNotTryAPINAfterAWrongOne(t *testing.T) {
	s, env := behindShim(t)
	for i, c := range []struct {
		env, args    []string
		code, logins int
		want         string
	}{
		{[]string{"PKCS11_PIN=0000-wrong"}, nil, 3, 1, "the PIN is wrong (CKR_PIN_INCORRECT)"},
		{nil, nil, 3, 1, "try it here with --try-pin"},
		{nil, []string{"--try-pin"}, 0, 2, "warning  PIN state "},
		{nil, nil, 0, 3, "the token accepts the PIN"},
	} {
		command(t, ca, slices.Concat(env, c.env), append([]string{"check"}, c.args...)...).
			prints(t, c.code, c.want)
		if n := logins(t, s); n != c.logins {
			t.Errorf("check %d: %d calls of C_Login so far, want %d", i+1, n, c.logins)
		}
	}
}

// check goes through the token step by step, reports the first failure with its remedy, and skips
// the later steps.
func TestCheckAsksInOrder(t *testing.T) {
	steps := []string{"module", "token", "PIN state", "login", "key", "key cannot leave",
		"key is the CA's"}
	s, env := behindShim(t)
	imported := importKey(t, label(t))
	other := testenv.CA{KeyLabel: label(t), CertFile: filepath.Join(t.TempDir(), "ca.crt")}
	createCA(t, other, "--out", other.CertFile)
	with := func(key string) testenv.CA { return testenv.CA{KeyLabel: key, CertFile: ca.CertFile} }
	for i, c := range []struct {
		ca   testenv.CA
		env  []string
		rule pkcs11shim.Rule
		want string
	}{
		{ca, []string{"PKCS11_MODULE=/nowhere.so"}, pkcs11shim.ReportSessions(0),
			"install the library of your HSM, or correct PKCS11_MODULE"},
		{ca, []string{"PKCS11_TOKEN_LABEL=nobody"}, pkcs11shim.ReportSessions(0),
			"labelled \"nobody\" not found: the module shows token in slot "},
		{ca, nil, pkcs11shim.AddTokenFlags(pkcs11.CKF_USER_PIN_FINAL_TRY),
			"log in by hand with the right PIN first"},
		{ca, []string{"PKCS11_PIN=0000-wrong"}, pkcs11shim.ReportSessions(0),
			"the PIN is wrong (CKR_PIN_INCORRECT): compare it"},
		{with("nobody"), nil, pkcs11shim.ReportSessions(0), "it holds the key labelled "},
		{imported, nil, pkcs11shim.ReportSessions(0),
			"Create a key in the token with \"hsm-signer ca create\""},
		{with(other.KeyLabel), nil, pkcs11shim.ReportSessions(0),
			"Name the key and the certificate that belong together"},
	} {
		must.OK(t, s.Rules(c.rule))
		p := command(t, c.ca, slices.Concat(env, c.env), "check", "--output", "json")
		if steps[i] == "login" {
			logIn(t)
		}
		code := 2
		if steps[i] == "PIN state" || steps[i] == "login" {
			code = 3
		}
		for n, line := range strings.SplitN(p.prints(t, code), "\n", len(steps)+1)[:len(steps)] {
			want := fmt.Sprintf(`{"check":%q,"result":%q`, steps[n],
				map[bool]string{true: "ok", false: "skipped"}[n < i])
			if n == i {
				want = fmt.Sprintf(`{"check":%q,"result":"failed"`, steps[n])
				var text struct{ Detail string }
				if err := json.Unmarshal([]byte(line), &text); err != nil ||
					!strings.Contains(text.Detail, c.want) {
					t.Errorf("%s: %s; want %q", steps[i], line, c.want)
				}
			}
			if !strings.HasPrefix(line, want) {
				t.Errorf("line %d is %s, want %s", n+1, line, want)
			}
		}
	}
}
