package e2e

import (
	"context"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/client-go/rest"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
	"hsm-signer/policy"
)

// Without the token requests stay pending and unapproved. They are served when it is back.
func TestTokenGoneAndBack(t *testing.T) {
	node := components()[0]
	p := newPod(t, node, nextIP())
	d := startReady(t, ca)
	requireCertificate(t, p, p.InitContainer(node))

	must.OK(t, shared.Token.MoveAway())
	back := false
	t.Cleanup(func() {
		if !back {
			must.OK(t, shared.Token.MoveBack())
		}
	})
	must.OK(t, d.WaitNotReady(t.Context(), "[-] token"))
	asking := p.InitContainer(node)
	csr, err := asking.Submit(t.Context(), p.Client)
	must.OK(t, err)
	requireEvent(t, csr.Name, "SignerFault")
	if now := get(t, csr.Name); len(now.Status.Conditions) > 0 {
		t.Errorf("decided while the token was gone: %v", now.Status.Conditions)
	}

	must.OK(t, shared.Token.MoveBack())
	back = true
	csr, err = calico.Wait(t.Context(), p.Client, csr.Name)
	must.OK(t, err)
	requireIssued(t, csr, asking)
	must.OK(t, d.WaitReady(t.Context()))
}

// hsm-signer waits for a token that is missing at the start.
func TestTokenComesAfterTheStart(t *testing.T) {
	must.OK(t, shared.Token.MoveAway())
	d := start(t, ca)
	err := d.WaitNotReady(t.Context(), "[-] token")
	must.OK(t, shared.Token.MoveBack())
	must.OK(t, err)
	must.OK(t, d.WaitReady(t.Context()))
}

// hsm-signer waits for an API server that is missing at the start.
func TestAPIServerComesAfterTheStart(t *testing.T) {
	must.OK(t, shared.Cluster.StopAPIServer())
	d := start(t, ca)
	err := d.WaitNotReady(t.Context(), "[-] requests")
	must.OK(t, shared.Cluster.StartAPIServer(context.Background()))
	must.OK(t, err)
	if !strings.Contains(d.Log(), "the API server does not answer") {
		t.Errorf("the log does not say that the API server is missing:\n%s", d.Log())
	}
	must.OK(t, d.WaitReady(t.Context()))
}

// hsm-signer watches again after an outage of the API server.
func TestAPIServerGoneAndBack(t *testing.T) {
	node := components()[0]
	p := newPod(t, node, nextIP())
	d := startReady(t, ca)
	must.OK(t, shared.Cluster.StopAPIServer())
	err := d.WaitNotReady(t.Context(), "[-] requests")
	must.OK(t, shared.Cluster.StartAPIServer(context.Background()))
	must.OK(t, err)
	must.OK(t, d.WaitReady(t.Context()))
	requireCertificate(t, p, p.InitContainer(node))
}

// An API server that accepts requests and never answers does not keep hsm-signer from stopping. No
// real one does that on demand: a paused one does not finish the TLS handshake, and the client
// gives up by itself.
func TestStopsThoughTheAPIServerHangs(t *testing.T) {
	asked := make(chan struct{}, 1)
	server := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case asked <- struct{}{}:
		default:
		}
		<-r.Context().Done() // until the client goes away
	}))
	t.Cleanup(server.Close)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	must.OK(t, shared.KubeconfigVia(t.Context(), kubeconfig, func(token string) *rest.Config {
		authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
			Bytes: server.Certificate().Raw})
		return &rest.Config{Host: server.URL, BearerToken: token,
			TLSClientConfig: rest.TLSClientConfig{CAData: authority}}
	}))
	start(t, ca, "KUBECONFIG="+kubeconfig) // and at the end of the test it must stop with 0
	select {
	case <-asked:
	case <-time.After(time.Minute):
		t.Fatal("hsm-signer did not ask the API server")
	}
}

func TestWrongPINIsTriedOnceAndEnds(t *testing.T) {
	const wrong = "0000-canary"
	for _, command := range []string{"check", "run"} {
		stdout, stderr, code := shared.Command(t.Context(), ca, []string{"PKCS11_PIN=" + wrong},
			command)
		if code != 3 || !strings.Contains(stdout+stderr, "the PIN is wrong") {
			t.Errorf("%s: exit code %d:\n%s%s", command, code, stdout, stderr)
		}
		if strings.Contains(stdout+stderr, wrong) {
			t.Errorf("%s shows the PIN:\n%s%s", command, stdout, stderr)
		}
	}
	logIn(t)
}

// A PIN with control characters is a configuration error, and the token does not see it.
func TestPINThatNobodyCanType(t *testing.T) {
	s, env := behindShim(t)
	file := filepath.Join(t.TempDir(), "pin")
	must.OK(t, os.WriteFile(file, []byte("0000-canary\n0000-canary\n"), 0o400))
	for _, c := range []struct {
		variable string
		env      []string
	}{
		{"PKCS11_PIN", []string{"PKCS11_PIN=0000-canary\n"}},
		{"PKCS11_PIN_FILE", []string{"PKCS11_PIN=", "PKCS11_PIN_FILE=" + file}},
	} {
		stdout, stderr, code := shared.Command(t.Context(), ca, append(slices.Clone(env), c.env...),
			"run")
		if code != 4 || !strings.Contains(stderr, c.variable+": the ") ||
			!strings.Contains(stderr, "the PIN contains a control character") ||
			strings.Contains(stdout+stderr, "canary") {
			t.Errorf("%s: exit code %d: %s%s", c.variable, code, stdout, stderr)
		}
	}
	if n := logins(t, s); n != 0 {
		t.Errorf("%d calls of C_Login", n)
	}
}

func TestPINFromFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pin")
	must.OK(t, os.WriteFile(file, []byte(shared.Token.PIN+"\n"), 0o400))
	startReady(t, ca, "PKCS11_PIN=", "PKCS11_PIN_FILE="+file)
}

// One message has every configuration error with its variable.
func TestConfigurationFaultsComeAllAtOnce(t *testing.T) {
	_, stderr, code := shared.Command(t.Context(), ca, []string{
		"SIGNER_NAME=kubernetes.io/kubelet-serving,nonsense", "PKCS11_SLOT=first", "PKCS11_PIN=",
		"PKCS11_MODULE=", "CA_KEY_ID=xyz",
		"CA_CERT_FILE=/nowhere", "POLICY_FILE=/nowhere", "CERTIFICATE_LIFETIME=1s", "WORKERS=0",
		"KUBECONFIG=/nowhere", "LOG_LEVEL=loud", "UNSET_SIGNER_NAME=perhaps",
		"SIGNATURE_ALGORITHM=MD5",
	}, "run")
	if code != 4 {
		t.Errorf("exit code %d", code)
	}
	for _, variable := range []string{
		"SIGNER_NAME: \"kubernetes.io/kubelet-serving\" is reserved",
		"\"nonsense\" is not a signer name", "PKCS11_SLOT:", "PKCS11_PIN_FILE:", "PKCS11_MODULE:",
		"CA_KEY_ID:", "CA_CERT_FILE:", "POLICY_FILE:", "CERTIFICATE_LIFETIME:", "WORKERS:",
		"KUBECONFIG:", "LOG_LEVEL:",
		"UNSET_SIGNER_NAME:", "SIGNATURE_ALGORITHM:",
	} {
		if !strings.Contains(stderr, variable) {
			t.Errorf("%s is missing in:\n%s", variable, stderr)
		}
	}
}

func TestFlagWinsOverVariable(t *testing.T) {
	_, stderr, code := shared.Command(t.Context(), ca, []string{"LOG_LEVEL=info"}, "run",
		"--log-level", "loud")
	if code != 4 || !strings.Contains(stderr, `"loud" is not one of`) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestKeyAndCertificateThatDisagreeDoNotStart(t *testing.T) {
	other, _, err := shared.CreateCA(t.Context(), "ecdsa-p384")
	must.OK(t, err)
	for _, mixed := range []testenv.CA{
		{KeyLabel: other.KeyLabel, CertFile: ca.CertFile},
		{KeyLabel: "nobody", CertFile: ca.CertFile},
	} {
		_, stderr, code := shared.Command(t.Context(), mixed, nil, "run")
		if code != 4 || !strings.Contains(stderr, "key") {
			t.Errorf("exit code %d: %s", code, stderr)
		}
	}
}

func TestPolicyThatAnyoneMayWriteIsRefused(t *testing.T) {
	text, _, code := shared.Command(t.Context(), ca, nil, "policy", "show", "calico")
	if code != 0 || !strings.Contains(text, "calico-typha") {
		t.Fatalf("policy show: exit code %d: %s", code, text)
	}
	file := filepath.Join(t.TempDir(), "policy.yaml")
	must.OK(t, os.WriteFile(file, []byte(text), 0o600))
	must.OK(t, os.Chmod(file, 0o666))
	_, stderr, code := shared.Command(t.Context(), ca, []string{"POLICY_FILE=" + file}, "run")
	if code != 4 || !strings.Contains(stderr, "can be written by everyone") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// The directory of a ConfigMap is writable by everyone and mounted read-only. Its files are links
// into another directory.
func TestPolicyOfAConfigMapIsRead(t *testing.T) {
	dir := t.TempDir()
	must.OK(t, os.Mkdir(filepath.Join(dir, "..2026"), 0o700))
	must.OK(t, os.Chmod(filepath.Join(dir, "..2026"), 0o755))
	must.OK(t, os.Chmod(dir, 0o777))
	must.OK(t,
		os.WriteFile(filepath.Join(dir, "..2026", "policy.yaml"), []byte("version: 2\n"), 0o600))
	must.OK(t, os.Symlink("..2026", filepath.Join(dir, "..data")))
	must.OK(t, os.Symlink("..data/policy.yaml", filepath.Join(dir, "policy.yaml")))
	for mount, want := range map[string]string{
		// it was read
		`mount --bind -o ro "$1" "$1" && mount -o remount,bind,ro "$1"`: "version: must be 1",
		`mount --bind "$1" "$1"`: "can be replaced by everyone",
	} {
		// A root directory of its own: each directory on the path must belong to root, and for a
		// user who is not root the machine's belong to nobody there.
		inside := exec.CommandContext(t.Context(), "unshare", "--user", "--map-root-user",
			"--mount", "sh", "-ec",
			mount+`; mount -t tmpfs tmpfs "$2"; cd "$2"
			for d in bin lib lib64 usr etc; do [ ! -e /$d ] || { mkdir $d; mount --rbind /$d $d; }; done
			mkdir policy; mount --rbind "$1" policy; cp "$0" hsm-signer; exec chroot . /hsm-signer check`,
			shared.Binary(), dir, t.TempDir())
		inside.Env = append(shared.Environ(ca), "POLICY_FILE=/policy/policy.yaml")
		out, err := inside.CombinedOutput()
		if !strings.Contains(string(out), want) {
			t.Errorf("%s: %v; want %q:\n%s", mount, err, want, out)
		}
	}
}

// A changed policy takes effect without a restart; an invalid one does not.
func TestPolicyIsReloaded(t *testing.T) {
	text, _, _ := shared.Command(t.Context(), ca, nil, "policy", "show", "calico")
	file := filepath.Join(t.TempDir(), "policy.yaml")
	must.OK(t,
		os.WriteFile(file, []byte(strings.ReplaceAll(text, "typha-client", "typha-guest")), 0o600))
	d := startReady(t, ca, "POLICY_FILE="+file)
	node := components()[0]
	p := newPod(t, node, nextIP())
	_, err := p.InitContainer(node).Run(t.Context(), p.Client)
	requireRefused(t, err, certificatesv1.CertificateDenied, "NameNotAllowed", "typha-client")

	must.OK(t, os.WriteFile(file, []byte("version: 1\nrulez: []\n"), 0o600))
	must.Eventually(t, "the bad policy to be refused", func(ctx context.Context) (bool, error) {
		ready, body, err := d.Readyz(ctx)
		return ready && strings.Contains(body, `unknown key "rulez"`), err
	})
	requireEvent(t, testenv.SignerName, "PolicyRefused")
	must.OK(t, os.WriteFile(file, []byte(text), 0o600))
	must.Eventually(t, "the good policy to be in force", func(context.Context) (bool, error) {
		return strings.Contains(d.Log(), "the policy has changed and is in force"), nil
	})
	requireCertificate(t, p, p.InitContainer(node))
}

func TestUnknownVariableIsWarnedOf(t *testing.T) {
	d := startReady(t, ca, "PKCS11_TOKEN_LABLE=ca", "SOME_PKCS11_THING=1")
	if log := d.Log(); !strings.Contains(log, `"nearest":"PKCS11_TOKEN_LABEL"`) ||
		strings.Contains(log, "SOME_PKCS11_THING") {
		t.Errorf("log:\n%s", log)
	}
}

// check passes with the rights of deploy/base/rbac.yaml, and the one logger prints client-go's
// lines.
func TestCheckPasses(t *testing.T) {
	stdout, stderr, code := shared.Command(t.Context(), ca, nil, "check", "--output", "json")
	if code != 0 {
		t.Fatalf("exit code %d: %s\n%s", code, stderr, stdout)
	}
	for _, want := range []string{
		`"module"`, `"token"`, `"PIN state"`, `"login"`, `"key"`, `"key cannot leave"`,
		`"key is the CA's"`, `"CA certificate"`, `"state directory"`, `"API server"`,
		`"API version"`,
		`"may update certificatesigningrequests/approval"`, `"may sign signers example.com/calico"`,
		`"policy"`,
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%s is missing in:\n%s", want, stdout)
		}
	}
}

func TestCheckNamesAMissingPermission(t *testing.T) {
	stdout, _, code := shared.Command(t.Context(), ca, []string{"SIGNER_NAME=example.com/unknown"},
		"check")
	if code != 2 || !strings.Contains(stdout, "may sign signers example.com/unknown") ||
		!strings.Contains(stdout, "deploy/base/rbac.yaml") {
		t.Errorf("exit code %d:\n%s", code, stdout)
	}
}

// check reports namespaces that the policy names and that do not exist, if it may read them.
func TestCheckNamesAMissingNamespace(t *testing.T) {
	must.OK(t, shared.Cluster.EnsureNamespace(t.Context(), "calico-system"))
	text, _ := policy.BuiltIn("calico")
	missing := withPolicy(t, strings.Replace(string(text), "[calico-apiserver/", "[nowhere/", 1))
	// That of a rule for an earlier Calico need not be there: it is noted, with the remedy.
	stdout, stderr, code := shared.Command(t.Context(), ca,
		[]string{"KUBECONFIG=" + shared.Cluster.Kubeconfig()}, "check")
	if code != 0 ||
		!strings.Contains(stdout,
			"note     namespaces of the policy           calico-apiserver does not exist") ||
		!strings.Contains(stdout, "kubectl create namespace calico-apiserver\n") ||
		!strings.Contains(stdout, "\nsummary: ") {
		t.Errorf("exit code %d:\n%s%s", code, stdout, stderr)
	}
	for kubeconfig, want := range map[string][]string{
		shared.Cluster.Kubeconfig(): {"ok       namespaces of the policy           calico-system\n",
			"warning  namespaces of the policy           nowhere does not exist",
			"the rules calico-apiserver-3.30 grant"},
		"": {"skipped  namespaces of the policy           may not be " +
			"read: calico-system, nowhere;"},
	} {
		env := []string{missing}
		if kubeconfig != "" {
			env = append(env, "KUBECONFIG="+kubeconfig)
		}
		stdout, stderr, code := shared.Command(t.Context(), ca, env, "check")
		for _, words := range want {
			if code != 0 || !strings.Contains(stdout, words) {
				t.Errorf("exit code %d; want %q:\n%s%s", code, words, stdout, stderr)
			}
		}
	}
}

// explain --live prints the verdict on a request in the cluster and changes nothing.
func TestExplainLive(t *testing.T) {
	node := components()[0]
	p := newPod(t, node, nextIP())
	csr, err := p.InitContainer(node).Submit(t.Context(), p.Client)
	must.OK(t, err)
	stdout, stderr, code := shared.Command(t.Context(), ca, nil, "policy", "explain", "--live",
		csr.Name)
	if code != 0 || !strings.Contains(stdout, "granted by rule calico-node") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	if now := get(t, csr.Name); now.ResourceVersion != csr.ResourceVersion {
		t.Errorf("the request was touched: %v", now.Status)
	}
}

func TestCeremonyOverwritesNothing(t *testing.T) {
	before, err := os.ReadFile(ca.CertFile)
	must.OK(t, err)
	out := filepath.Join(t.TempDir(), "again.crt")
	_, stderr, code := shared.Command(t.Context(), ca, nil, "ca", "create", "--out", out)
	if code == 0 || !strings.Contains(stderr, "holds a key labelled") {
		t.Errorf("a second key with the label: exit code %d: %s", code, stderr)
	}
	_, stderr, code = shared.Command(t.Context(), testenv.CA{KeyLabel: "new"}, nil, "ca", "create",
		"--out", ca.CertFile)
	if code != 4 || !strings.Contains(stderr, "already exists") {
		t.Errorf("a second certificate: exit code %d: %s", code, stderr)
	}
	if after, err := os.ReadFile(ca.CertFile); err != nil || string(after) != string(before) {
		t.Errorf("the certificate has changed: %v", err)
	}
}

// hsm-signer finishes its work before it stops, and exits with 0.
func TestStopsCleanly(t *testing.T) {
	d, err := shared.Run(context.WithoutCancel(t.Context()), ca)
	must.OK(t, err)
	must.OK(t, d.WaitReady(t.Context()))
	must.OK(t, d.Shutdown())
}

// hsm-signer does not start with a key that can leave its token. With ALLOW_EXTRACTABLE_KEY it
// starts with a warning.
func TestKeyThatCanLeaveIsRefused(t *testing.T) {
	extractable := importKey(t, "imported")
	_, stderr, code := shared.Command(t.Context(), extractable, nil, "run")
	if code != 4 || !strings.Contains(stderr, "could leave the token") ||
		!strings.Contains(stderr, "CKA_NEVER_EXTRACTABLE=0") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	stdout, _, code := shared.Command(t.Context(), extractable,
		[]string{"ALLOW_EXTRACTABLE_KEY=true"}, "check", "--output", "json")
	if code != 0 ||
		!strings.Contains(stdout,
			`{"check":"key cannot leave","result":"warning","detail":"IT CAN`) {
		t.Errorf("check: exit code %d: %s", code, stdout)
	}
	d := startReady(t, extractable, "ALLOW_EXTRACTABLE_KEY=true")
	if !strings.Contains(d.Log(), "CAN LEAVE ITS TOKEN") {
		t.Errorf("the log does not say so:\n%s", d.Log())
	}
}

// importKey puts a key into the token that was made outside it, with a CA certificate.
func importKey(t *testing.T, label string) testenv.CA {
	t.Helper()
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	for _, args := range [][]string{
		{"openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
			"-nodes", "-keyout", file("key"), "-out", file("crt"),
			"-subj", "/CN=imported", "-days", "1", "-addext", "keyUsage=critical,keyCertSign",
			"-addext", "basicConstraints=critical,CA:TRUE"},
		{"openssl", "pkcs8", "-topk8", "-nocrypt", "-in", file("key"), "-out", file("p8")},
		{"softhsm2-util", "--import", file("p8"), "--token", shared.Token.Label, "--label", label,
			"--id", fmt.Sprintf("e1%04x", numbers.Add(1)), "--pin", shared.Token.PIN},
	} {
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Env = append(os.Environ(), shared.Token.Env())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", args[0], err, out)
		}
	}
	return testenv.CA{KeyLabel: label, CertFile: file("crt")}
}
