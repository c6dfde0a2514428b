package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
	"hsm-signer/issuer/journal"
)

// Each service account requests the names of each component. It gets its own, and no others.
func TestEachComponentGetsItsOwnNamesAlone(t *testing.T) {
	d := startReady(t, ca)
	for _, who := range components {
		for _, whose := range components {
			p := newPod(t, who)
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
	requireNeverNamed(t, d, "podcertificate")
}

func TestImpostorsAreDenied(t *testing.T) {
	startReady(t, ca)

	stranger := newPod(t, calico.Component{Namespace: "default", ServiceAccount: "default"})
	_, err := stranger.InitContainer(typha).Run(t.Context(), stranger.Client)
	requireRefused(t, err, certificatesv1.CertificateDenied, "RequesterNotAllowed",
		"default/default")

	p := newPod(t, node)
	other := newPod(t, node)
	asking := p.InitContainer(node)
	asking.Pod = other.Pod
	_, err = asking.Run(t.Context(), p.Client)
	requireRefused(t, err, certificatesv1.CertificateDenied, "NameNotAllowed", other.Status.PodIP)

	token, err := shared.Cluster.UnboundToken(t.Context(), node.Namespace, node.ServiceAccount)
	must.OK(t, err)
	unbound := must.Get(testenv.PodWith(p.Pod, shared.Cluster.ConfigFor(token)))(t)
	_, err = unbound.InitContainer(node).Run(t.Context(), unbound.Client)
	requireRefused(t, err, certificatesv1.CertificateDenied, "PodNotVerified", "bound to its pod")

	csr := must.Get(p.InitContainer(node).Object())(t)
	csr.Name += "-usages"
	csr.Spec.Usages = append(csr.Spec.Usages, certificatesv1.UsageCertSign)
	requireRefused(t, refusal(t, p, csr), certificatesv1.CertificateDenied, "UsageNotAllowed",
		"cert sign")

	csr.Name += "-blocks"
	csr.Spec.Usages = csr.Spec.Usages[:5]
	csr.Spec.Request = slices.Concat(csr.Spec.Request, []byte("x"))
	requireRefused(t, refusal(t, p, csr), certificatesv1.CertificateDenied, "InvalidRequest",
		"exactly one block")

	// The daemon still works.
	requireCertificate(t, p, p.InitContainer(node))
	requireEvent(t, csr.Name, "InvalidRequest")
}

// A request of a pod without an IP address stays open until the pod has one.
func TestPodWithoutAnAddressIsWaitedFor(t *testing.T) {
	d := startReady(t, ca)
	p := newPendingPod(t, node)
	ip := shared.NextIP()
	asking := p.InitContainer(node)
	asking.Pod = p.DeepCopy()
	asking.Pod.Status.PodIP = ip
	csr := submit(t, p, asking)
	waitLog(t, d, "the IP address of the pod "+p.Namespace+"/"+p.Name)
	requireOpen(t, csr.Name)
	must.Get(shared.Cluster.RunPod(t.Context(), p.Pod, ip))(t)
	requireAnswered(t, p, asking)
}

// A pod that crashed sends a request with the same name and a new key.
func TestNameIsUsedAgain(t *testing.T) {
	startReady(t, ca)
	p := newPod(t, typha)
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
	p := newPod(t, node)

	good := submit(t, p, p.InitContainer(node))
	approve(t, shared.Cluster.Client(), good.Name)
	csr := must.Get(calico.Wait(t.Context(), p.Client, good.Name))(t)
	requireIssued(t, csr, p.InitContainer(node))
	if c := csr.Status.Conditions; len(c) != 1 || c[0].Reason != "DecidedByTest" {
		t.Errorf("conditions: %v", c)
	}

	bad := submit(t, p, p.InitContainer(typha))
	approve(t, shared.Cluster.Client(), bad.Name)
	_, err := calico.Wait(t.Context(), p.Client, bad.Name)
	requireRefused(t, err, certificatesv1.CertificateFailed, "NameNotAllowed", "typha-server")
}

// A requester with the right to approve may approve its own request. That does not bypass the
// policy either: an approval cannot be withdrawn, so the request fails.
func TestOwnApprovalOfWhatIsRefused(t *testing.T) {
	apply(t, `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: approves-itself}
rules:
  - apiGroups: [certificates.k8s.io]
    resources: [signers]
    resourceNames: [`+testenv.SignerName+`]
    verbs: [approve]
  - apiGroups: [certificates.k8s.io]
    resources: [certificatesigningrequests/approval]
    verbs: [update]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: approves-itself}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: approves-itself}
subjects: [{kind: ServiceAccount, namespace: `+node.Namespace+`, name: `+node.ServiceAccount+`}]
`)
	for _, mode := range []string{"true", "false"} {
		t.Run("APPROVE="+mode, func(t *testing.T) { ownApprovalOfWhatIsRefused(t, mode) })
	}
}

func ownApprovalOfWhatIsRefused(t *testing.T, mode string) {
	t.Helper()
	p := newPod(t, node)
	bad := submit(t, p, p.InitContainer(typha))
	approve(t, p.Client, bad.Name)
	state := filepath.Join(t.TempDir(), "state")
	// now, so that the approval comes first
	d := startReady(t, ca, "APPROVE="+mode, "STATE_DIR="+state)
	_, err := calico.Wait(t.Context(), p.Client, bad.Name)
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
	requireNoFaults(t, d)
}

// A name that a rule grants but the CA's name constraints exclude is refused: Denied, or Failed if
// the request is approved. It is not a fault, and nothing is retried.
func TestWhatTheCADoesNotPermitIsRefused(t *testing.T) {
	narrow := testenv.CA{KeyLabel: "narrow", CertFile: filepath.Join(t.TempDir(), "narrow.crt")}
	createCA(t, narrow, "--subject", "CN=Narrow CA", "--permit-dns", node.DNSNames[0], "--out",
		narrow.CertFile)
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
	p := newPod(t, node)
	asking := p.InitContainer(typha)
	asking.SecretName = "approved-by-someone"
	approved := submit(t, p, asking)
	approve(t, shared.Cluster.Client(), approved.Name)
	d := startReady(t, narrow, policy) // now, so that the approval comes first
	_, err := calico.Wait(t.Context(), p.Client, approved.Name)
	requireRefused(t, err, certificatesv1.CertificateFailed, "NotIssuable", typha.DNSNames[0])
	_, err = p.InitContainer(typha).Run(t.Context(), p.Client)
	requireRefused(t, err, certificatesv1.CertificateDenied, "NotIssuable", typha.DNSNames[0])
	requireCertificate(t, p, p.InitContainer(node))
	requireNoFaults(t, d)
}

// A shadow decides and reports it. It needs neither token nor CA, takes no lease, and writes
// nothing.
func TestShadowTouchesNothing(t *testing.T) {
	const lease = "of-a-shadow"
	state := filepath.Join(t.TempDir(), "state")
	d := startReady(t, testenv.CA{}, "STATE_DIR="+state, "APPROVE=shadow", "PKCS11_MODULE=",
		"PKCS11_TOKEN_LABEL=", "PKCS11_PIN=", "CA_KEY_LABEL=", "CA_CERT_FILE=",
		"LEADER_ELECT=true", "LEASE_NAMESPACE=hsm-signer", "LEASE_NAME="+lease)
	p := newPod(t, node)
	var made []*certificatesv1.CertificateSigningRequest
	for _, c := range []calico.Component{node, typha} {
		csr := submit(t, p, p.InitContainer(c))
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
		requireUntouched(t, csr)
		if events := eventsOn(t, csr.Name); len(events) > 0 {
			t.Errorf("%s has events: %v", csr.Name, events)
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
	text := must.Get(os.ReadFile(log))(t)
	verdicts := map[string]string{}
	for line := range strings.Lines(string(text)) {
		var d journal.Decision
		must.OK(t, json.Unmarshal([]byte(line), &d))
		if d.UID != string(made[0].UID) && d.UID != string(made[1].UID) {
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
	p := newPod(t, node)
	requireCertificate(t, p, p.InitContainer(node))
	second := p.InitContainer(node)
	second.SecretName = "second"
	csr := submit(t, p, second)
	requireEvent(t, csr.Name, "OverBudget")
	requireOpen(t, csr.Name)
	other := newPod(t, node)
	// of the same service account, in another pod
	requireCertificate(t, other, other.InitContainer(node))
	if log := d.Log(); !strings.Contains(log,
		`the budget of pod \"`+string(p.UID)+`\", 1 certificates in an hour`) {
		t.Errorf("the log does not say so:\n%s", log)
	}
	file, _ := strings.CutPrefix(env, "POLICY_FILE=")
	text := must.Get(os.ReadFile(file))(t)
	write(t, file, strings.Replace(string(text), "perPod: 1", "perPod: 2", 1))
	requireAnswered(t, p, second)
}

// Requests of other signers are ignored.
func TestForeignRequestIsLeftAlone(t *testing.T) {
	startReady(t, ca)
	p := newPod(t, node)
	foreign := p.InitContainer(node)
	foreign.SignerName = "example.com/other"
	foreign.SecretName = "foreign"
	csr := submit(t, p, foreign)
	requireCertificate(t, p, p.InitContainer(node)) // made later, and done
	requireUntouched(t, csr)
}

// Requests from before the start are served after it.
func TestBacklogIsServedAtStart(t *testing.T) {
	p, asking := newRequester(t, node)
	submit(t, p, asking)
	startReady(t, ca)
	requireAnswered(t, p, asking)
}
