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

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
	"hsm-signer/policy"
)

// Without the token requests stay pending and unapproved. They are served when it is back.
func TestTokenGoneAndBack(t *testing.T) {
	p := newPod(t, node)
	d := startReady(t, ca)
	requireCertificate(t, p, p.InitContainer(node))

	back := removeToken(t)
	must.OK(t, d.WaitNotReady(t.Context(), "[-] token"))
	asking := p.InitContainer(node)
	csr := submit(t, p, asking)
	requireEvent(t, csr.Name, "SignerFault")
	requireOpen(t, csr.Name)

	back()
	requireAnswered(t, p, asking)
	must.OK(t, d.WaitReady(t.Context()))
}

// hsm-signer waits for a token that is missing at the start.
func TestTokenComesAfterTheStart(t *testing.T) {
	back := removeToken(t)
	d := start(t, ca)
	must.OK(t, d.WaitNotReady(t.Context(), "[-] token"))
	back()
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
	p := newPod(t, node)
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
	for _, name := range []string{"check", "run"} {
		p := command(t, ca, []string{"PKCS11_PIN=" + wrong}, name)
		p.lacks(t, wrong)
		if p.code != 3 || !strings.Contains(p.stdout+p.stderr, "the PIN is wrong") {
			t.Errorf("%s: exit code %d:\n%s%s", name, p.code, p.stdout, p.stderr)
		}
	}
	logIn(t)
}

// A PIN with control characters is a configuration error, and the token does not see it.
func TestPINThatNobodyCanType(t *testing.T) {
	s, env := behindShim(t)
	file := tempFile(t, "pin", "0000-canary\n0000-canary\n")
	for _, c := range []struct {
		variable string
		env      []string
	}{
		{"PKCS11_PIN", []string{"PKCS11_PIN=0000-canary\n"}},
		{"PKCS11_PIN_FILE", []string{"PKCS11_PIN=", "PKCS11_PIN_FILE=" + file}},
	} {
		p := command(t, ca, slices.Concat(env, c.env), "run")
		p.complains(t, 4, c.variable+": the ", "the PIN contains a control character")
		p.lacks(t, "canary")
	}
	if n := logins(t, s); n != 0 {
		t.Errorf("%d calls of C_Login", n)
	}
}

func TestPINFromFile(t *testing.T) {
	file := tempFile(t, "pin", shared.Token.PIN+"\n")
	startReady(t, ca, "PKCS11_PIN=", "PKCS11_PIN_FILE="+file)
}

// One message has every configuration error with its variable.
func TestConfigurationFaultsComeAllAtOnce(t *testing.T) {
	command(t, ca, []string{
		"SIGNER_NAME=kubernetes.io/kubelet-serving,nonsense", "PKCS11_SLOT=first", "PKCS11_PIN=",
		"PKCS11_MODULE=", "CA_KEY_ID=xyz", "CA_CERT_FILE=/nowhere", "POLICY_FILE=/nowhere",
		"CERTIFICATE_LIFETIME=1s", "WORKERS=0", "KUBECONFIG=/nowhere", "LOG_LEVEL=loud",
		"UNSET_SIGNER_NAME=perhaps", "SIGNATURE_ALGORITHM=MD5",
	}, "run").complains(t, 4,
		"SIGNER_NAME: \"kubernetes.io/kubelet-serving\" is reserved",
		"\"nonsense\" is not a signer name", "PKCS11_SLOT:", "PKCS11_PIN_FILE:", "PKCS11_MODULE:",
		"CA_KEY_ID:", "CA_CERT_FILE:", "POLICY_FILE:", "CERTIFICATE_LIFETIME:", "WORKERS:",
		"KUBECONFIG:", "LOG_LEVEL:", "UNSET_SIGNER_NAME:", "SIGNATURE_ALGORITHM:")
}

func TestFlagWinsOverVariable(t *testing.T) {
	command(t, ca, []string{"LOG_LEVEL=info"}, "run", "--log-level", "loud").complains(t, 4,
		`"loud" is not one of`)
}

func TestKeyAndCertificateThatDisagreeDoNotStart(t *testing.T) {
	other, _, err := shared.CreateCA(t.Context(), "ecdsa-p384")
	must.OK(t, err)
	for _, mixed := range []testenv.CA{
		{KeyLabel: other.KeyLabel, CertFile: ca.CertFile},
		{KeyLabel: "nobody", CertFile: ca.CertFile},
	} {
		command(t, mixed, nil, "run").complains(t, 4, "key")
	}
}

func TestPolicyThatAnyoneMayWriteIsRefused(t *testing.T) {
	text := command(t, ca, nil, "policy", "show", "calico").prints(t, 0, "calico-typha")
	file := tempFile(t, "policy.yaml", text)
	must.OK(t, os.Chmod(file, 0o666))
	command(t, ca, []string{"POLICY_FILE=" + file}, "run").complains(t, 4,
		"can be written by everyone")
}

// The directory of a ConfigMap is writable by everyone and mounted read-only. Its files are links
// into another directory.
func TestPolicyOfAConfigMapIsRead(t *testing.T) {
	dir := t.TempDir()
	must.OK(t, os.Mkdir(filepath.Join(dir, "..2026"), 0o700))
	must.OK(t, os.Chmod(filepath.Join(dir, "..2026"), 0o755))
	must.OK(t, os.Chmod(dir, 0o777))
	must.OK(t, os.WriteFile(filepath.Join(dir, "..2026", "policy.yaml"), []byte("version: 2\n"),
		0o600))
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
	text := command(t, ca, nil, "policy", "show", "calico").prints(t, 0)
	file := tempFile(t, "policy.yaml", strings.ReplaceAll(text, "typha-client", "typha-guest"))
	d := startReady(t, ca, "POLICY_FILE="+file)
	p := newPod(t, node)
	_, err := p.InitContainer(node).Run(t.Context(), p.Client)
	requireRefused(t, err, certificatesv1.CertificateDenied, "NameNotAllowed", "typha-client")

	must.OK(t, os.WriteFile(file, []byte("version: 1\nrulez: []\n"), 0o600))
	must.Eventually(t, "the bad policy to be refused", func(ctx context.Context) (bool, error) {
		ready, body, err := d.Readyz(ctx)
		return ready && strings.Contains(body, `unknown key "rulez"`), err
	})
	requireEvent(t, testenv.SignerName, "PolicyRefused")
	must.OK(t, os.WriteFile(file, []byte(text), 0o600))
	waitLog(t, d, "the policy has changed and is in force")
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
	command(t, ca, nil, "check", "--output", "json").prints(t, 0,
		`"module"`, `"token"`, `"PIN state"`, `"login"`, `"key"`, `"key cannot leave"`,
		`"key is the CA's"`, `"CA certificate"`, `"state directory"`, `"API server"`,
		`"API version"`, `"may update certificatesigningrequests/approval"`,
		`"may sign signers example.com/calico"`, `"policy"`)
}

func TestCheckNamesAMissingPermission(t *testing.T) {
	requireCheck(t, []string{"SIGNER_NAME=example.com/unknown"}, 2,
		"may sign signers example.com/unknown", "deploy/base/rbac.yaml")
}

// check reports namespaces that the policy names and that do not exist, if it may read them.
func TestCheckNamesAMissingNamespace(t *testing.T) {
	must.OK(t, shared.Cluster.EnsureNamespace(t.Context(), "calico-system"))
	text, _ := policy.BuiltIn("calico")
	missing := withPolicy(t, strings.Replace(string(text), "[calico-apiserver/", "[nowhere/", 1))
	// That of a rule for an earlier Calico need not be there: it is noted, with the remedy.
	admin := "KUBECONFIG=" + shared.Cluster.Kubeconfig()
	requireCheck(t, []string{admin}, 0,
		"note     namespaces of the policy           calico-apiserver does not exist",
		"kubectl create namespace calico-apiserver\n", "\nsummary: ")
	requireCheck(t, []string{admin, missing}, 0,
		"ok       namespaces of the policy           calico-system\n",
		"warning  namespaces of the policy           nowhere does not exist",
		"the rules calico-apiserver-3.30 grant")
	requireCheck(t, []string{missing}, 0,
		"skipped  namespaces of the policy           may not be read: calico-system, nowhere;")
}

// explain --live prints the verdict on a request in the cluster and changes nothing.
func TestExplainLive(t *testing.T) {
	p := newPod(t, node)
	csr := submit(t, p, p.InitContainer(node))
	command(t, ca, nil, "policy", "explain", "--live", csr.Name).prints(t, 0,
		"granted by rule calico-node")
	requireUntouched(t, csr)
}

func TestCeremonyOverwritesNothing(t *testing.T) {
	before := must.Get(os.ReadFile(ca.CertFile))(t)
	out := filepath.Join(t.TempDir(), "again.crt")
	command(t, ca, nil, "ca", "create", "--out", out).complains(t, 4, "holds a key labelled")
	command(t, testenv.CA{KeyLabel: "new"}, nil, "ca", "create", "--out", ca.CertFile).
		complains(t, 4, "already exists")
	if after, err := os.ReadFile(ca.CertFile); err != nil || string(after) != string(before) {
		t.Errorf("the certificate has changed: %v", err)
	}
}

// hsm-signer finishes its work before it stops, and exits with 0.
func TestStopsCleanly(t *testing.T) {
	d := startReady(t, ca)
	must.OK(t, d.Shutdown())
}

// hsm-signer does not start with a key that can leave its token. With ALLOW_EXTRACTABLE_KEY it
// starts with a warning.
func TestKeyThatCanLeaveIsRefused(t *testing.T) {
	extractable := importKey(t, "imported")
	command(t, extractable, nil, "run").complains(t, 4, "could leave the token",
		"CKA_NEVER_EXTRACTABLE=0")
	command(t, extractable, []string{"ALLOW_EXTRACTABLE_KEY=true"}, "check", "--output", "json").
		prints(t, 0, `{"check":"key cannot leave","result":"warning","detail":"IT CAN`)
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
		must.Get(testenv.Output(t.Context(), "", []string{shared.Token.Env()}, args[0],
			args[1:]...))(t)
	}
	return testenv.CA{KeyLabel: label, CertFile: file("crt")}
}
