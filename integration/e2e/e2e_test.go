package e2e

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
	"hsm-signer/issuer/journal"
)

// All tests share these. Each test runs its own hsm-signer, one at a time.
var (
	shared *testenv.Env
	ca     testenv.CA
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "hsm-signer-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	if shared, err = testenv.New(ctx, testenv.Options{Dir: dir, Progress: os.Stderr}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer shared.Close()
	if ca, _, err = shared.CreateCA(ctx, "ecdsa-p256"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// start runs hsm-signer until the end of the test.
func start(t *testing.T, ca testenv.CA, env ...string) *testenv.Daemon {
	t.Helper()
	d, err := shared.Run(context.WithoutCancel(t.Context()), ca, env...)
	must.OK(t, err)
	t.Cleanup(func() { must.OK(t, d.Shutdown()) })
	return d
}

func startReady(t *testing.T, ca testenv.CA, env ...string) *testenv.Daemon {
	t.Helper()
	d := start(t, ca, env...)
	must.OK(t, d.WaitReady(t.Context()))
	return d
}

// withPolicy returns the setting for a policy with this text.
func withPolicy(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "policy.yaml")
	must.OK(t, os.WriteFile(file, []byte(text), 0o600))
	return "POLICY_FILE=" + file
}

// withBudget returns the setting for Calico's policy with another budget.
func withBudget(t *testing.T, budget string) string {
	t.Helper()
	setting, err := shared.WithBudget(t.Context(), ca, budget)
	must.OK(t, err)
	return setting
}

// numbers makes names unique.
var numbers atomic.Uint32

func nextIP() string { return shared.NextIP() }

func newPod(t *testing.T, c calico.Component, ips ...string) testenv.Pod {
	t.Helper()
	p, err := shared.NewPod(t.Context(), c, ips...)
	must.OK(t, err)
	return p
}

// requireCertificate has the pod request its certificate and checks it.
func requireCertificate(t *testing.T, p testenv.Pod,
	asking calico.InitContainer) *x509.Certificate {
	t.Helper()
	csr, err := asking.Run(t.Context(), p.Client)
	must.OK(t, err)
	return requireIssued(t, csr, asking)
}

// requireIssued checks the certificate.
func requireIssued(t *testing.T, csr *certificatesv1.CertificateSigningRequest,
	asking calico.InitContainer) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode(csr.Status.Certificate)
	if block == nil || len(rest) > 0 {
		t.Fatalf("the certificate of %s is not one PEM block", csr.Name)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	must.OK(t, err)
	if key, ok := asking.Key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok ||
		!key.Equal(cert.PublicKey) {
		t.Errorf("%s: the certificate is for another key", csr.Name)
	}
	if !slices.Equal(cert.DNSNames, asking.DNSNames) || len(cert.IPAddresses) != 1 ||
		cert.IPAddresses[0].String() != asking.Pod.Status.PodIP {
		t.Errorf("%s: certified are %v and %v", csr.Name, cert.DNSNames, cert.IPAddresses)
	}
	if cert.Subject.String() != "CN="+asking.DNSNames[0] {
		t.Errorf("%s: the subject is %s", csr.Name, cert.Subject)
	}
	return cert
}

// requireOpenSSL verifies the chain with openssl.
func requireOpenSSL(t *testing.T, ca testenv.CA, cert *x509.Certificate) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "tls.crt")
	must.OK(t,
		os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}),
			0o600))
	out, err := exec.CommandContext(t.Context(), "openssl", "verify", "-x509_strict", "-purpose",
		"sslserver", "-CAfile", ca.CertFile, file).CombinedOutput()
	if err != nil {
		t.Errorf("openssl verify: %v: %s", err, out)
	}
}

func requireRefused(t *testing.T, err error, kind certificatesv1.RequestConditionType, reason,
	words string) {
	t.Helper()
	var refused *calico.Refused
	if !errors.As(err, &refused) {
		t.Fatalf("not refused: %v", err)
	}
	if c := refused.Condition; c.Type != kind || c.Reason != reason ||
		!strings.Contains(c.Message, words) {
		t.Errorf("%s, reason %s: %s; want %s, %s and %q", c.Type, c.Reason, c.Message, kind, reason,
			words)
	}
}

// components returns Calico's open-source components.
func components() []calico.Component { return calico.OpenSource("cluster.local") }

// Each service account requests the names of each component. It gets its own, and no others.
func TestEachComponentGetsItsOwnNamesAlone(t *testing.T) {
	startReady(t, ca)
	for _, who := range components() {
		for _, whose := range components() {
			p := newPod(t, who, nextIP())
			asking := p.InitContainer(whose)
			if who.ServiceAccount == whose.ServiceAccount {
				requireOpenSSL(t, ca, requireCertificate(t, p, asking))
				continue
			}
			_, err := asking.Run(t.Context(), p.Client)
			requireRefused(t, err, certificatesv1.CertificateDenied, "NameNotAllowed",
				whose.DNSNames[0])
		}
	}
}

func TestImpostorsAreDenied(t *testing.T) {
	startReady(t, ca)
	node, typha := components()[0], components()[1]

	stranger := newPod(t, calico.Component{Namespace: "default", ServiceAccount: "default"},
		nextIP())
	_, err := stranger.InitContainer(typha).Run(t.Context(), stranger.Client)
	requireRefused(t, err, certificatesv1.CertificateDenied, "RequesterNotAllowed",
		"default/default")

	p := newPod(t, node, nextIP())
	other := newPod(t, node, nextIP())
	asking := p.InitContainer(node)
	asking.Pod = other.Pod
	_, err = asking.Run(t.Context(), p.Client)
	requireRefused(t, err, certificatesv1.CertificateDenied, "NameNotAllowed", other.Status.PodIP)

	token, err := shared.Cluster.UnboundToken(t.Context(), node.Namespace, node.ServiceAccount)
	must.OK(t, err)
	unbound, err := testenv.PodWith(p.Pod, shared.Cluster.ConfigFor(token))
	must.OK(t, err)
	_, err = unbound.InitContainer(node).Run(t.Context(), unbound.Client)
	requireRefused(t, err, certificatesv1.CertificateDenied, "PodNotVerified", "bound to its pod")

	csr, err := p.InitContainer(node).Object()
	must.OK(t, err)
	csr.Name += "-usages"
	csr.Spec.Usages = append(csr.Spec.Usages, certificatesv1.UsageCertSign)
	requireRefused(t, submit(t, p, csr), certificatesv1.CertificateDenied, "UsageNotAllowed",
		"cert sign")

	csr.Name += "-blocks"
	csr.Spec.Usages = csr.Spec.Usages[:5]
	csr.Spec.Request = slices.Concat(csr.Spec.Request, []byte("x"))
	requireRefused(t, submit(t, p, csr), certificatesv1.CertificateDenied, "InvalidRequest",
		"exactly one block")

	// The daemon still works.
	requireCertificate(t, p, p.InitContainer(node))
	requireEvent(t, csr.Name, "InvalidRequest")
}

// submit creates the request as the pod and returns how it was refused.
func submit(t *testing.T, p testenv.Pod, csr *certificatesv1.CertificateSigningRequest) error {
	t.Helper()
	_, err := p.Requests().Create(t.Context(), csr,
		metav1.CreateOptions{})
	must.OK(t, err)
	_, err = calico.Wait(t.Context(), p.Client, csr.Name)
	return err
}

func requireEvent(t *testing.T, request, reason string) {
	t.Helper()
	must.Eventually(t, "an event "+reason+" on "+request, func(ctx context.Context) (bool, error) {
		events, err := shared.Cluster.Client().CoreV1().Events("default").List(ctx,
			metav1.ListOptions{FieldSelector: "involvedObject.name=" + request})
		return err == nil &&
			slices.ContainsFunc(events.Items,
				func(e corev1.Event) bool { return e.Reason == reason }), err
	})
}

// get returns the request as it is now.
func get(t *testing.T, name string) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	csr, err := shared.Cluster.Requests().Get(t.Context(), name, metav1.GetOptions{})
	must.OK(t, err)
	return csr
}

// A request of a pod without an IP address stays open until the pod has one.
func TestPodWithoutAnAddressIsWaitedFor(t *testing.T) {
	d := startReady(t, ca)
	node := components()[0]
	p := newPod(t, node)
	ip := nextIP()
	asking := p.InitContainer(node)
	asking.Pod = p.DeepCopy()
	asking.Pod.Status.PodIP = ip
	csr, err := asking.Submit(t.Context(), p.Client)
	must.OK(t, err)
	must.Eventually(t, "the log to say what is missing", func(context.Context) (bool, error) {
		return strings.Contains(d.Log(), "the IP address of the pod "+p.Namespace+"/"+p.Name), nil
	})
	if now := get(t, csr.Name); len(now.Status.Conditions) > 0 {
		t.Fatalf("it was decided: %v", now.Status.Conditions)
	}
	_, err = shared.Cluster.RunPod(t.Context(), p.Pod, ip)
	must.OK(t, err)
	csr, err = calico.Wait(t.Context(), p.Client, csr.Name)
	must.OK(t, err)
	requireIssued(t, csr, asking)
}

// A pod that crashed sends a request with the same name and a new key.
func TestNameIsUsedAgain(t *testing.T) {
	startReady(t, ca)
	typha := components()[1]
	p := newPod(t, typha, nextIP())
	first := requireCertificate(t, p, p.InitContainer(typha))
	asking := p.InitContainer(typha)
	asking.Key = calico.NewP256Key()
	if second := requireCertificate(t, p,
		asking); second.SerialNumber.Cmp(first.SerialNumber) == 0 {
		t.Error("two certificates have one serial number")
	}
}

// With APPROVE=false another approver approves. That does not bypass the policy.
func TestAnothersApproval(t *testing.T) {
	startReady(t, ca, "APPROVE=false")
	node, typha := components()[0], components()[1]
	p := newPod(t, node, nextIP())

	good, err := p.InitContainer(node).Submit(t.Context(), p.Client)
	must.OK(t, err)
	approve(t, good.Name)
	csr, err := calico.Wait(t.Context(), p.Client, good.Name)
	must.OK(t, err)
	requireIssued(t, csr, p.InitContainer(node))
	if c := csr.Status.Conditions; len(c) != 1 || c[0].Reason != "ApprovedByTest" {
		t.Errorf("conditions: %v", c)
	}

	bad, err := p.InitContainer(typha).Submit(t.Context(), p.Client)
	must.OK(t, err)
	approve(t, bad.Name)
	_, err = calico.Wait(t.Context(), p.Client, bad.Name)
	requireRefused(t, err, certificatesv1.CertificateFailed, "NameNotAllowed", "typha-server")
}

// A requester with the right to approve may approve its own request. That does not bypass the
// policy either: an approval cannot be withdrawn, so the request fails.
func TestOwnApprovalOfWhatIsRefused(t *testing.T) {
	node := components()[0]
	must.OK(t, shared.Cluster.Apply(t.Context(), []byte(`
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: approves-itself}
rules:
  - {apiGroups: [certificates.k8s.io], resources: [signers], resourceNames: [`+testenv.SignerName+`], verbs: [approve]}
  - {apiGroups: [certificates.k8s.io], resources: [certificatesigningrequests/approval], verbs: [update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: approves-itself}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: approves-itself}
subjects: [{kind: ServiceAccount, namespace: `+node.Namespace+`, name: `+node.ServiceAccount+`}]
`)))
	t.Cleanup(func() {
		roles := shared.Cluster.Client().RbacV1()
		must.OK(t,
			roles.ClusterRoleBindings().Delete(context.Background(), "approves-itself",
				metav1.DeleteOptions{}))
		must.OK(t,
			roles.ClusterRoles().Delete(context.Background(), "approves-itself",
				metav1.DeleteOptions{}))
	})
	for _, mode := range []string{"true", "false"} {
		t.Run("APPROVE="+mode, func(t *testing.T) { ownApprovalOfWhatIsRefused(t, mode) })
	}
}

func ownApprovalOfWhatIsRefused(t *testing.T, mode string) {
	t.Helper()
	node, typha := components()[0], components()[1]
	p := newPod(t, node, nextIP())
	bad, err := p.InitContainer(typha).Submit(t.Context(), p.Client)
	must.OK(t, err)
	approveWith(t, p.Client, bad.Name)
	state := filepath.Join(t.TempDir(), "state")
	// now, so that the approval comes first
	d := startReady(t, ca, "APPROVE="+mode, "STATE_DIR="+state)
	_, err = calico.Wait(t.Context(), p.Client, bad.Name)
	requireRefused(t, err, certificatesv1.CertificateFailed, "NameNotAllowed", "typha-server")
	if now := get(t, bad.Name); len(now.Status.Certificate) > 0 || len(now.Status.Conditions) != 2 {
		t.Errorf("certificate %q, conditions %v", now.Status.Certificate, now.Status.Conditions)
	}
	requireEvent(t, bad.Name, "NameNotAllowed")
	must.Eventually(t, "the refusal to be recorded", func(context.Context) (bool, error) {
		// it is made with the first refusal
		text, _ := os.ReadFile(filepath.Join(state, journal.RefusalsLog))
		return strings.Contains(string(text), string(bad.UID)), nil
	})
	if log := d.Log(); strings.Contains(log, `"@level":"error"`) {
		t.Errorf("there were faults:\n%s", log)
	}
}

// A name that a rule grants but the CA's name constraints exclude is refused: Denied, or Failed if
// the request is approved. It is not a fault, and nothing is retried.
func TestWhatTheCADoesNotPermitIsRefused(t *testing.T) {
	node, typha := components()[0], components()[1]
	narrow := testenv.CA{KeyLabel: "narrow", CertFile: filepath.Join(t.TempDir(), "narrow.crt")}
	_, stderr, code := shared.Command(t.Context(), narrow, nil, "ca", "create", "--subject",
		"CN=Narrow CA",
		"--permit-dns", node.DNSNames[0], "--out", narrow.CertFile)
	if code != 0 {
		t.Fatalf("ca create: exit code %d: %s", code, stderr)
	}
	policy := withPolicy(t, fmt.Sprintf(`
version: 1
rules:
  - name: both-names
    from: {serviceAccounts: [%s/%s]}
    grant:
      dnsNames: [%s, %s]
      ipAddresses: [pod]
      keys: [ecdsa-p256, rsa-2048]
      usages: [digital signature, key encipherment, key agreement, server auth, client auth]
`, node.Namespace, node.ServiceAccount, node.DNSNames[0], typha.DNSNames[0]))
	p := newPod(t, node, nextIP())
	asking := p.InitContainer(typha)
	asking.SecretName = "approved-by-someone"
	approved, err := asking.Submit(t.Context(), p.Client)
	must.OK(t, err)
	approve(t, approved.Name)
	d := startReady(t, narrow, policy) // now, so that the approval comes first
	_, err = calico.Wait(t.Context(), p.Client, approved.Name)
	requireRefused(t, err, certificatesv1.CertificateFailed, "NotIssuable", typha.DNSNames[0])
	_, err = p.InitContainer(typha).Run(t.Context(), p.Client)
	requireRefused(t, err, certificatesv1.CertificateDenied, "NotIssuable", typha.DNSNames[0])
	requireCertificate(t, p, p.InitContainer(node))
	if log := d.Log(); strings.Contains(log, `"@level":"error"`) {
		t.Errorf("there were faults:\n%s", log)
	}
}

func approve(t *testing.T, name string) {
	t.Helper()
	approveWith(t, shared.Cluster.Client(), name)
}

func approveWith(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	csr := get(t, name)
	csr.Status.Conditions = append(csr.Status.Conditions,
		certificatesv1.CertificateSigningRequestCondition{
			Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue,
			Reason: "ApprovedByTest", Message: "for a test",
		})
	_, err := client.CertificatesV1().CertificateSigningRequests().UpdateApproval(t.Context(), name,
		csr, metav1.UpdateOptions{})
	must.OK(t, err)
}

// A shadow decides and reports it. It needs neither token nor CA, takes no lease, and writes
// nothing.
func TestShadowTouchesNothing(t *testing.T) {
	const lease = "of-a-shadow"
	state := filepath.Join(t.TempDir(), "state")
	d := startReady(t, testenv.CA{}, "STATE_DIR="+state, "APPROVE=shadow", "PKCS11_MODULE=",
		"PKCS11_TOKEN_LABEL=", "PKCS11_PIN=", "CA_KEY_LABEL=", "CA_CERT_FILE=",
		"LEADER_ELECT=true", "LEASE_NAMESPACE=hsm-signer", "LEASE_NAME="+lease)
	node, typha := components()[0], components()[1]
	p := newPod(t, node, nextIP())
	var made []*certificatesv1.CertificateSigningRequest
	for _, c := range []calico.Component{node, typha} {
		csr, err := p.InitContainer(c).Submit(t.Context(), p.Client)
		must.OK(t, err)
		made = append(made, csr)
	}
	// among those on what other tests have left
	must.Eventually(t, "the verdicts in the log", func(context.Context) (bool, error) {
		log := d.Log()
		return says(log, "shadow: would grant", made[0]) &&
			says(log, "shadow: would refuse", made[1]), nil
	})
	if metrics := d.Metrics(t.Context()); !strings.Contains(metrics,
		`hsm_signer_decisions_total{reason="",rule="calico-node",verdict="granted"}`) {
		t.Errorf("the verdicts are not counted:\n%s", metrics)
	}
	for _, csr := range made {
		if now := get(t, csr.Name); now.ResourceVersion != csr.ResourceVersion {
			t.Errorf("%s was touched: %v", csr.Name, now.Status)
		}
		events, err := shared.Cluster.Client().CoreV1().Events("default").List(t.Context(),
			metav1.ListOptions{FieldSelector: "involvedObject.name=" + csr.Name})
		must.OK(t, err)
		if len(events.Items) > 0 {
			t.Errorf("%s has events: %v", csr.Name, events.Items)
		}
	}
	if _, err := shared.Cluster.Client().CoordinationV1().Leases("hsm-signer").Get(t.Context(),
		lease, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("it has taken a lease: %v", err)
	}
	must.OK(t, d.Shutdown())
	requireVerdicts(t, filepath.Join(state, journal.ShadowLog), made)
}

// says reports whether a line of the log has this message about the request.
func says(log, message string, csr *certificatesv1.CertificateSigningRequest) bool {
	for line := range strings.Lines(log) {
		if strings.Contains(line, fmt.Sprintf(`"@message":%q`, message)) &&
			strings.Contains(line, string(csr.UID)) {
			return true
		}
	}
	return false
}

// requireVerdicts requires that the log has the first request as granted and the second as refused,
// each with the data by which an auditor finds it.
func requireVerdicts(t *testing.T, log string, made []*certificatesv1.CertificateSigningRequest) {
	t.Helper()
	text, err := os.ReadFile(log)
	must.OK(t, err)
	verdicts := map[string]string{}
	for line := range strings.Lines(string(text)) {
		var d journal.Decision
		must.OK(t, json.Unmarshal([]byte(line), &d))
		if !slices.ContainsFunc(made,
			func(csr *certificatesv1.CertificateSigningRequest) bool { return string(csr.UID) == d.UID }) {
			continue // an earlier test's, which may be unreadable
		}
		verdicts[d.UID] = d.Verdict
		if len(d.RequestSHA256) != 64 || len(d.PolicyHash) != 64 || d.Verdict == "refused" &&
			len(d.Reasons) == 0 || d.Verdict == "granted" && len(d.Names) == 0 {
			t.Errorf("incomplete: %s", line)
		}
	}
	if verdicts[string(made[0].UID)] != "granted" || verdicts[string(made[1].UID)] != "refused" {
		t.Errorf("the log has: %s", text)
	}
}

// A request over the budget stays open, the log reports it, and it is issued once there is room.
func TestOverBudgetWaits(t *testing.T) {
	env := withBudget(t, "{perPod: 1}")
	d := startReady(t, ca, env)
	node := components()[0]
	p := newPod(t, node, nextIP())
	requireCertificate(t, p, p.InitContainer(node))
	second := p.InitContainer(node)
	second.SecretName = "second"
	csr, err := second.Submit(t.Context(), p.Client)
	must.OK(t, err)
	requireEvent(t, csr.Name, "OverBudget")
	if now := get(t, csr.Name); len(now.Status.Conditions) > 0 || len(now.Status.Certificate) > 0 {
		t.Fatalf("it was decided: %v", now.Status.Conditions)
	}
	other := newPod(t, node, nextIP())
	// of the same service account, in another pod
	requireCertificate(t, other, other.InitContainer(node))
	if log := d.Log(); !strings.Contains(log,
		`the budget of pod \"`+string(p.UID)+`\", 1 certificates in an hour`) {
		t.Errorf("the log does not say so:\n%s", log)
	}
	file, _ := strings.CutPrefix(env, "POLICY_FILE=")
	text, err := os.ReadFile(file)
	must.OK(t, err)
	must.OK(t,
		os.WriteFile(file, []byte(strings.Replace(string(text), "perPod: 1", "perPod: 2", 1)),
			0o600))
	csr, err = calico.Wait(t.Context(), p.Client, csr.Name)
	must.OK(t, err)
	requireIssued(t, csr, second)
}

// Requests of other signers are ignored.
func TestForeignRequestIsLeftAlone(t *testing.T) {
	startReady(t, ca)
	node := components()[0]
	p := newPod(t, node, nextIP())
	foreign := p.InitContainer(node)
	foreign.SignerName = "example.com/other"
	foreign.SecretName = "foreign"
	csr, err := foreign.Submit(t.Context(), p.Client)
	must.OK(t, err)
	requireCertificate(t, p, p.InitContainer(node)) // made later, and done
	if now := get(t, csr.Name); now.ResourceVersion != csr.ResourceVersion {
		t.Errorf("the request was touched: %v", now.Status)
	}
}

// Requests from before the start are served after it.
func TestBacklogIsServedAtStart(t *testing.T) {
	node := components()[0]
	p := newPod(t, node, nextIP())
	asking := p.InitContainer(node)
	csr, err := asking.Submit(t.Context(), p.Client)
	must.OK(t, err)
	startReady(t, ca)
	csr, err = calico.Wait(t.Context(), p.Client, csr.Name)
	must.OK(t, err)
	requireIssued(t, csr, asking)
}
