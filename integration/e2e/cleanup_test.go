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

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// answered has the cluster's admin answer a request: with a certificate and an approval, or without
// a certificate and with a denial. It returns the name of the request.
func answered(t *testing.T, csr *certificatesv1.CertificateSigningRequest,
	certificate []byte) string {
	t.Helper()
	kind := certificatesv1.CertificateApproved
	if certificate == nil {
		kind = certificatesv1.CertificateDenied
	}
	csr.Status.Conditions = append(csr.Status.Conditions,
		certificatesv1.CertificateSigningRequestCondition{
			Type: kind, Status: corev1.ConditionTrue, Reason: "Admin",
		})
	csr, err := shared.Cluster.Requests().UpdateApproval(t.Context(), csr.Name, csr,
		metav1.UpdateOptions{})
	must.OK(t, err)
	if certificate != nil {
		csr.Status.Certificate = certificate
		_, err = shared.Cluster.Requests().UpdateStatus(t.Context(), csr, metav1.UpdateOptions{})
		must.OK(t, err)
	}
	return csr.Name
}

// keptRequests returns finished requests that this hsm-signer must not delete, by what they are.
func keptRequests(t *testing.T, s ownSigner) map[string]string {
	t.Helper()
	foreign, err := os.ReadFile(importKey(t, "foreign-to-all").CertFile)
	must.OK(t, err)
	kept := map[string]string{
		"foreign":           answered(t, s.submit(t), foreign),
		"denied by another": answered(t, s.submit(t), nil),
		"another signer's":  answered(t, ownSigner("another").submit(t), foreign),
	}
	former, err := shared.Run(t.Context(), ca, s.env()...)
	must.OK(t, err)
	must.OK(t, former.WaitReady(t.Context()))
	kept["another journal's"] = s.issue(t)
	must.OK(t, former.Shutdown())
	return kept
}

// deniedRequest has a pod request a name that it may not have, and returns the name of the request.
func deniedRequest(t *testing.T, s ownSigner) string {
	t.Helper()
	p := newPod(t, components()[0], nextIP())
	asking := s.initContainer(p)
	asking.DNSNames = components()[1].DNSNames
	csr, err := asking.Submit(t.Context(), p.Client)
	must.OK(t, err)
	_, err = calico.Wait(t.Context(), p.Client, csr.Name)
	requireRefused(t, err, certificatesv1.CertificateDenied, "NameNotAllowed", "")
	return csr.Name
}

// openRequest returns the name of a request that stays open, since its pod has no address.
func openRequest(t *testing.T, s ownSigner) string {
	t.Helper()
	p := newPod(t, components()[0])
	asking := s.initContainer(p)
	asking.Pod = p.DeepCopy()
	asking.Pod.Status.PodIP = nextIP()
	csr, err := asking.Submit(t.Context(), p.Client)
	must.OK(t, err)
	return csr.Name
}

func requireDeleted(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		must.Eventually(t, name+" to be deleted", func(ctx context.Context) (bool, error) {
			there, err := isThere(ctx, name)
			return !there, err
		})
	}
}

func isThere(ctx context.Context, name string) (bool, error) {
	_, err := shared.Cluster.Requests().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// hsm-signer deletes its finished requests after the set time, unless a client is waiting for
// another answer. It keeps all other requests, and the whole journal.
//
// The second signer shows that the time is over: its request is answered last, it is kept for
// longer than the interval between two looks, and no client of this signer waits.
func TestFinishedRequestsAreDeleted(t *testing.T) {
	t.Parallel()
	s, control := newOwnSigner(t, "finished"), newOwnSigner(t, "finished-control")
	kept := keptRequests(t, s)
	env := s.env("STATE_DIR="+filepath.Join(t.TempDir(), "state"), "DELETE_FINISHED_AFTER=90s")
	d := startReady(t, ca, env...)
	startReady(t, ca, control.env("DELETE_FINISHED_AFTER=96s")...)
	finished := []string{s.issue(t), deniedRequest(t, s), s.issue(t)}
	open := openRequest(t, s)
	requireDeleted(t, control.issue(t))
	for _, name := range finished {
		get(t, name) // fails the test if the request was deleted while the other one is open
	}
	must.OK(t, shared.Cluster.Requests().Delete(t.Context(), open, metav1.DeleteOptions{}))
	requireDeleted(t, finished...)
	for what, name := range kept {
		if there, err := isThere(t.Context(), name); err != nil || !there {
			t.Errorf("the request that is %s was deleted; %v", what, err)
		}
	}
	requireMetric(t, d, "hsm_signer_finished_requests_deleted_total 3")
	requireMetric(t, d, `hsm_signer_certificates_in_cluster{origin="own"} 0`)
	requireMetric(t, d, `hsm_signer_journal_lines_total{kind="unconfirmed"} 0`)
	requireMetric(t, d, `hsm_signer_journal_lines_total{kind="orphaned"} 0`)
	requireJournal(t, env, finished[0], finished[2])
}

func requireMetric(t *testing.T, d *testenv.Daemon, line string) {
	t.Helper()
	must.Eventually(t, "the metrics to show "+line, func(ctx context.Context) (bool, error) {
		return strings.Contains(d.Metrics(ctx), "\n"+line+"\n"), nil
	})
}

// requireJournal requires that the journal verifies, and lists the published certificates of these
// requests and no others.
func requireJournal(t *testing.T, env []string, requests ...string) {
	t.Helper()
	if stdout, stderr, code := shared.Command(t.Context(), ca, env, "audit", "verify"); code != 0 {
		t.Errorf("audit verify: exit code %d: %s%s", code, stdout, stderr)
	}
	stdout, stderr, code := shared.Command(t.Context(), ca, env, "audit", "list", "--output",
		"json")
	if code != 0 || strings.Count(stdout, `"state":"published"`) != len(requests) {
		t.Errorf("audit list: exit code %d: %s%s", code, stdout, stderr)
	}
	for _, name := range requests {
		if !strings.Contains(stdout, fmt.Sprintf("%q", name)) {
			t.Errorf("audit list lacks %s: %s", name, stdout)
		}
	}
}

// Without the right to delete requests, check and the daemon name the right and its manifest, and
// certificates are issued. With the component's manifest check passes.
func TestMissingRightToDeleteIsReported(t *testing.T) {
	// What every service account may do here would hide what hsm-signer's may not.
	must.OK(t, shared.Cluster.ForbidRequests(t.Context()))
	t.Cleanup(func() {
		must.OK(t,
			shared.Cluster.AllowRequests(context.WithoutCancel(t.Context())))
	})
	allowPodsAlone(t)
	env := []string{"STATE_DIR=" + filepath.Join(t.TempDir(), "state"), "DELETE_FINISHED_AFTER=90s"}
	requireNamed(t, env, "delete certificatesigningrequests")
	d := startReady(t, ca, env...)
	const missing = "may not delete certificatesigningrequests: " +
		"grant it to the service account, as deploy/components/clean-up does"
	must.Eventually(t, "the log to name the right", func(context.Context) (bool, error) {
		return strings.Contains(d.Log(), missing), nil
	})
	ask(t)
	must.OK(t, d.WaitReady(t.Context()))
	manifest, err := os.ReadFile("../../deploy/components/clean-up/role.yaml")
	must.OK(t, errors.Join(err, shared.Cluster.Apply(t.Context(), manifest)))
	t.Cleanup(func() { kubectl(t, "delete", "-f", "../../deploy/components/clean-up/role.yaml") })
	must.Eventually(t, "check to pass", func(ctx context.Context) (bool, error) {
		stdout, _, code := shared.Command(ctx, ca, env, "check")
		return code == 0 &&
			strings.Contains(stdout, "ok       may delete certificatesigningrequests"), nil
	})
}

// allowPodsAlone allows only the pods of the first component to create requests, until the end of
// the test.
func allowPodsAlone(t *testing.T) {
	t.Helper()
	node, bindings := components()[0], shared.Cluster.Client().RbacV1().ClusterRoleBindings()
	_, err := bindings.Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "pods-alone"},
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole",
			Name: testenv.RequesterRole},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: node.Namespace,
			Name: node.ServiceAccount}},
	}, metav1.CreateOptions{})
	must.OK(t, err)
	t.Cleanup(func() {
		must.OK(t,
			bindings.Delete(context.WithoutCancel(t.Context()), "pods-alone",
				metav1.DeleteOptions{}))
	})
}

// The metric and check count the requests of all signers.
func TestRequestsInTheClusterAreCounted(t *testing.T) {
	ownSigner("another").submit(t)
	d := startReady(t, ca)
	all, err := shared.Cluster.Requests().List(t.Context(), metav1.ListOptions{})
	must.OK(t, err)
	requireMetric(t, d, fmt.Sprintf("hsm_signer_requests_in_cluster %d", len(all.Items)))
	stdout, stderr, code := shared.Command(t.Context(), ca, nil, "check")
	want := regexp.MustCompile(fmt.Sprintf(`(?m)^(ok|warning) +requests in the cluster +%d\b`,
		len(all.Items)))
	if code != 0 || !want.MatchString(stdout) {
		t.Errorf("exit code %d; want %s:\n%s%s", code, want, stdout, stderr)
	}
}

// withCleanUp adds the component to the overlay.
func withCleanUp(kustomization string) string {
	return strings.Replace(kustomization, "components:\n",
		"components:\n  - ../../components/clean-up\n", 1)
}

// An overlay with the component has the setting and the right. An overlay without it has neither.
func TestCleanUpIsAComponent(t *testing.T) {
	for overlay := range overlays {
		for _, c := range []struct {
			edit  func(string) string
			count int
		}{{asItIs, 0}, {withCleanUp, 1}} {
			text, _ := kubectl(t, "kustomize", deployment(t, overlay, c.edit))
			for _, words := range []string{"DELETE_FINISHED_AFTER: 5m\n",
				"  - certificatesigningrequests\n  verbs:\n  - delete\n"} {
				if n := strings.Count(text, words); n != c.count {
					t.Errorf("%s: %q occurs %d times; want %d", overlay, words, n, c.count)
				}
			}
		}
	}
}
