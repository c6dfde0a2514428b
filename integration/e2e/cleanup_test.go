package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	certificatesclient "k8s.io/client-go/kubernetes/typed/certificates/v1"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// deletingSoon has finished requests deleted as soon as it may be set.
const deletingSoon = "DELETE_FINISHED_AFTER=90s"

func allRequests() certificatesclient.CertificateSigningRequestInterface {
	return shared.Cluster.Client().CertificatesV1().CertificateSigningRequests()
}

// submitted is a request of a new pod for which nothing is done yet.
func submitted(t *testing.T, change func(*calico.InitContainer)) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	p := newPod(t, components()[0], nextIP())
	asking := p.InitContainer(components()[0])
	if change != nil {
		change(&asking)
	}
	csr, err := asking.Submit(t.Context(), p.Client)
	must.OK(t, err)
	return csr
}

// forAnother has the pod ask another signer.
func forAnother(a *calico.InitContainer) { a.SignerName = "example.com/another" }

// answered is a request that the cluster's admin answers: a certificate and an approval, or a
// denial.
func answered(t *testing.T, csr *certificatesv1.CertificateSigningRequest, certificate []byte) string {
	t.Helper()
	kind := certificatesv1.CertificateApproved
	if certificate == nil {
		kind = certificatesv1.CertificateDenied
	}
	csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: kind, Status: corev1.ConditionTrue, Reason: "Admin",
	})
	csr, err := allRequests().UpdateApproval(t.Context(), csr.Name, csr, metav1.UpdateOptions{})
	must.OK(t, err)
	if certificate != nil {
		csr.Status.Certificate = certificate
		_, err = allRequests().UpdateStatus(t.Context(), csr, metav1.UpdateOptions{})
		must.OK(t, err)
	}
	return csr.Name
}

// toBeKept are finished requests that hsm-signer has not answered, by what they are.
func toBeKept(t *testing.T) map[string]string {
	t.Helper()
	foreign, err := os.ReadFile(importKey(t, "foreign-to-all").CertFile)
	must.OK(t, err)
	kept := map[string]string{
		"foreign":           answered(t, submitted(t, nil), foreign),
		"denied by another": answered(t, submitted(t, nil), nil),
		"another signer's":  answered(t, submitted(t, forAnother), foreign),
	}
	former, err := shared.Run(t.Context(), ca)
	must.OK(t, err)
	must.OK(t, former.WaitReady(t.Context()))
	kept["another journal's"] = issuedRequest(t)
	if code, err := former.Stop(); err != nil || code != 0 {
		t.Fatalf("it ended with code %d, %v", code, err)
	}
	return kept
}

// issuedRequest has a pod ask, and returns the name of its request when it has the certificate.
func issuedRequest(t *testing.T) string {
	t.Helper()
	p := newPod(t, components()[0], nextIP())
	csr, err := p.InitContainer(components()[0]).Run(t.Context(), p.Client)
	must.OK(t, err)
	return csr.Name
}

// deniedRequest has a pod ask for what it may not have, and returns the name of its request.
func deniedRequest(t *testing.T) string {
	t.Helper()
	p := newPod(t, components()[0], nextIP())
	asking := p.InitContainer(components()[0])
	asking.DNSNames = components()[1].DNSNames
	csr, err := asking.Submit(t.Context(), p.Client)
	must.OK(t, err)
	_, err = calico.Wait(t.Context(), p.Client, csr.Name)
	requireRefused(t, err, certificatesv1.CertificateDenied, "NameNotAllowed", "")
	return csr.Name
}

func isThere(ctx context.Context, name string) (bool, error) {
	_, err := allRequests().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// An openClient has no address, so its request stays open. It deletes its request and makes it
// again at times, as Calico's client does when it got no answer.
type openClient struct {
	pod    testenv.Pod
	asking calico.InitContainer
}

func newOpenClient(t *testing.T) openClient {
	t.Helper()
	p := newPod(t, components()[0])
	asking := p.InitContainer(components()[0])
	asking.Pod = p.DeepCopy()
	asking.Pod.Status.PodIP = nextIP()
	return openClient{p, asking}
}

// askUntil asks again each 30 seconds until the time on the API server's clock, and returns the name
// of the request that is open then.
func (c openClient) askUntil(t *testing.T, end time.Time) (name string) {
	t.Helper()
	for {
		csr, err := c.asking.Submit(t.Context(), c.pod.Client)
		must.OK(t, err)
		made := csr.CreationTimestamp.Time
		if made.After(end) {
			return csr.Name
		}
		must.Eventually(t, "the client to lose its patience", func(context.Context) (bool, error) {
			return time.Since(made) > 30*time.Second, nil
		})
		must.OK(t, allRequests().Delete(t.Context(), csr.Name, metav1.DeleteOptions{}))
	}
}

// Finished requests of ours are deleted when their time has come, and no client waits. Others are
// kept. The journal has all that it had.
func TestFinishedRequestsAreDeleted(t *testing.T) {
	kept := toBeKept(t)
	env := []string{"STATE_DIR=" + filepath.Join(t.TempDir(), "state"), deletingSoon}
	d := startReady(t, ca, env...)
	gone := []string{issuedRequest(t), deniedRequest(t), issuedRequest(t)}
	open := newOpenClient(t).askUntil(t, time.Now().Add(100*time.Second))
	for _, name := range gone {
		get(t, name) // which fails if it was deleted while one was open
	}
	must.OK(t, allRequests().Delete(t.Context(), open, metav1.DeleteOptions{}))
	for _, name := range gone {
		must.Eventually(t, name+" to be deleted", func(ctx context.Context) (bool, error) {
			there, err := isThere(ctx, name)
			return !there, err
		})
	}
	for what, name := range kept {
		if there, err := isThere(t.Context(), name); err != nil || !there {
			t.Errorf("the request that is %s was deleted; %v", what, err)
		}
	}
	requireMetric(t, d, "hsm_signer_finished_requests_deleted_total 3")
	requireMetric(t, d, `hsm_signer_certificates_in_cluster{origin="own"} 0`)
	requireMetric(t, d, `hsm_signer_journal_lines_total{kind="unconfirmed"} 0`)
	requireMetric(t, d, `hsm_signer_journal_lines_total{kind="orphaned"} 0`)
	requireJournal(t, env, gone[0], gone[2])
}

func requireMetric(t *testing.T, d *testenv.Daemon, line string) {
	t.Helper()
	var metrics string
	err := wait.PollUntilContextTimeout(t.Context(), 100*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		metrics = d.Metrics(ctx)
		return strings.Contains(metrics, "\n"+line+"\n"), nil
	})
	if err != nil {
		t.Errorf("the metrics lack %q:\n%s", line, metrics)
	}
}

// requireJournal requires that the journal verifies, and lists the published certificates of these
// requests and no others.
func requireJournal(t *testing.T, env []string, requests ...string) {
	t.Helper()
	if stdout, stderr, code := shared.Command(t.Context(), ca, env, "audit", "verify"); code != 0 {
		t.Errorf("audit verify: exit code %d: %s%s", code, stdout, stderr)
	}
	stdout, stderr, code := shared.Command(t.Context(), ca, env, "audit", "list", "--output", "json")
	if code != 0 || strings.Count(stdout, `"state":"published"`) != len(requests) {
		t.Errorf("audit list: exit code %d: %s%s", code, stdout, stderr)
	}
	for _, name := range requests {
		if !strings.Contains(stdout, fmt.Sprintf("%q", name)) {
			t.Errorf("audit list lacks %s: %s", name, stdout)
		}
	}
}

// Without the right to delete requests, check and the daemon name it and its manifest, and
// certificates are issued. With the component's manifest check passes.
func TestMissingRightToDeleteIsReported(t *testing.T) {
	// What every service account may do here would hide what hsm-signer's may not.
	must.OK(t, shared.Cluster.ForbidRequests(t.Context()))
	t.Cleanup(func() { must.OK(t, shared.Cluster.AllowRequests(context.WithoutCancel(t.Context()))) })
	allowPodsAlone(t)
	env := []string{"STATE_DIR=" + filepath.Join(t.TempDir(), "state"), deletingSoon}
	requireNamed(t, env, "delete certificatesigningrequests")
	d := startReady(t, ca, env...)
	const missing = "may not delete certificatesigningrequests: " +
		"grant it to the service account, as deploy/components/clean-up does"
	must.Eventually(t, "the log to name the right", func(context.Context) (bool, error) {
		return strings.Contains(d.Log(), missing), nil
	})
	issuedRequest(t)
	must.OK(t, d.WaitReady(t.Context()))
	manifest, err := os.ReadFile("../../deploy/components/clean-up/role.yaml")
	must.OK(t, errors.Join(err, shared.Cluster.Apply(t.Context(), manifest)))
	t.Cleanup(func() { kubectl(t, "delete", "-f", "../../deploy/components/clean-up/role.yaml") })
	must.Eventually(t, "check to pass", func(ctx context.Context) (bool, error) {
		stdout, _, code := shared.Command(ctx, ca, env, "check")
		return code == 0 && strings.Contains(stdout, "ok       may delete certificatesigningrequests"), nil
	})
}

// allowPodsAlone lets the pods of the first component make requests, until the end of the test.
func allowPodsAlone(t *testing.T) {
	t.Helper()
	node, bindings := components()[0], shared.Cluster.Client().RbacV1().ClusterRoleBindings()
	_, err := bindings.Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "pods-alone"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: testenv.RequesterRole},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: node.Namespace, Name: node.ServiceAccount}},
	}, metav1.CreateOptions{})
	must.OK(t, err)
	t.Cleanup(func() {
		must.OK(t, bindings.Delete(context.WithoutCancel(t.Context()), "pods-alone", metav1.DeleteOptions{}))
	})
}

// The metric and check count the requests of all signers, as many as a list has.
func TestRequestsInTheClusterAreCounted(t *testing.T) {
	submitted(t, forAnother)
	d := startReady(t, ca)
	all, err := allRequests().List(t.Context(), metav1.ListOptions{})
	must.OK(t, err)
	requireMetric(t, d, fmt.Sprintf("hsm_signer_requests_in_cluster %d", len(all.Items)))
	stdout, stderr, code := shared.Command(t.Context(), ca, nil, "check")
	want := regexp.MustCompile(fmt.Sprintf(`(?m)^(ok|warning) +requests in the cluster +%d\b`, len(all.Items)))
	if code != 0 || !want.MatchString(stdout) {
		t.Errorf("exit code %d; want %s:\n%s%s", code, want, stdout, stderr)
	}
}

// withCleanUp takes the component into the overlay.
func withCleanUp(kustomization string) string {
	return strings.Replace(kustomization, "components:\n", "components:\n  - ../../components/clean-up\n", 1)
}

// An overlay with the component has the setting and the right, and one without it has neither.
func TestCleanUpIsAComponent(t *testing.T) {
	for overlay := range overlays {
		for _, c := range []struct {
			edit  func(string) string
			count int
		}{{asItIs, 0}, {withCleanUp, 1}} {
			text, _ := kubectl(t, "kustomize", deployment(t, overlay, c.edit))
			for _, words := range []string{"DELETE_FINISHED_AFTER: 5m\n", "  - certificatesigningrequests\n  verbs:\n  - delete\n"} {
				if n := strings.Count(text, words); n != c.count {
					t.Errorf("%s: %q is there %d times; want %d", overlay, words, n, c.count)
				}
			}
		}
	}
}
