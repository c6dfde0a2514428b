package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
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
	csr = decide(t, shared.Cluster.Client(), csr.Name,
		certificatesv1.CertificateSigningRequestCondition{Type: kind})
	if certificate != nil {
		csr.Status.Certificate = certificate
		_, err := shared.Cluster.Requests().UpdateStatus(t.Context(), csr, metav1.UpdateOptions{})
		must.OK(t, err)
	}
	return csr.Name
}

// keptRequests returns finished requests that this hsm-signer must not delete, by what they are.
func keptRequests(t *testing.T, s ownSigner) map[string]string {
	t.Helper()
	foreign := must.Get(os.ReadFile(importKey(t, "foreign-to-all").CertFile))(t)
	kept := map[string]string{
		"foreign":           answered(t, s.submit(t), foreign),
		"denied by another": answered(t, s.submit(t), nil),
		"another signer's":  answered(t, ownSigner("another").submit(t), foreign),
	}
	former := startReady(t, ca, s.env()...)
	kept["another journal's"] = s.issue(t)
	must.OK(t, former.Shutdown())
	return kept
}

// deniedRequest has a pod request a name that it may not have, and returns the name of the request.
func deniedRequest(t *testing.T, s ownSigner) string {
	t.Helper()
	p := newPod(t, node)
	asking := s.initContainer(p)
	asking.DNSNames = typha.DNSNames
	csr := submit(t, p, asking)
	_, err := calico.Wait(t.Context(), p.Client, csr.Name)
	requireRefused(t, err, certificatesv1.CertificateDenied, "NameNotAllowed", "")
	return csr.Name
}

// openRequest returns the name of a request that stays open, since its pod has no address.
func openRequest(t *testing.T, s ownSigner) string {
	t.Helper()
	p := newPendingPod(t, node)
	asking := s.initContainer(p)
	asking.Pod = p.DeepCopy()
	asking.Pod.Status.PodIP = shared.NextIP()
	csr := submit(t, p, asking)
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
	waitMetrics(t, d,
		"\nhsm_signer_finished_requests_deleted_total 3\n",
		"\n"+`hsm_signer_certificates_in_cluster{origin="own"} 0`+"\n",
		"\n"+`hsm_signer_journal_lines_total{kind="unconfirmed"} 0`+"\n",
		"\n"+`hsm_signer_journal_lines_total{kind="orphaned"} 0`+"\n")
	requireJournal(t, env, finished[0], finished[2])
}

// requireJournal requires that the journal verifies, and lists the published certificates of these
// requests and no others.
func requireJournal(t *testing.T, env []string, requests ...string) {
	t.Helper()
	command(t, ca, env, "audit", "verify").prints(t, 0)
	var quoted []string
	for _, name := range requests {
		quoted = append(quoted, fmt.Sprintf("%q", name))
	}
	list := command(t, ca, env, "audit", "list", "--output", "json").prints(t, 0, quoted...)
	if strings.Count(list, `"state":"published"`) != len(requests) {
		t.Errorf("audit list: %s", list)
	}
}

// Without the right to delete requests, check and the daemon name the right and its manifest, and
// certificates are issued. With the component's manifest check passes.
func TestMissingRightToDeleteIsReported(t *testing.T) {
	// What every service account may do here would hide what hsm-signer's may not.
	restrictRequests(t)
	env := []string{"STATE_DIR=" + filepath.Join(t.TempDir(), "state"), "DELETE_FINISHED_AFTER=90s"}
	requireNamed(t, env, "delete certificatesigningrequests")
	d := startReady(t, ca, env...)
	const missing = "may not delete certificatesigningrequests: " +
		"grant it to the service account, as deploy/components/clean-up does"
	waitLog(t, d, missing)
	requireIssues(t)
	must.OK(t, d.WaitReady(t.Context()))
	apply(t, string(must.Get(os.ReadFile("../../deploy/components/clean-up/role.yaml"))(t)))
	must.Eventually(t, "check to pass", func(ctx context.Context) (bool, error) {
		stdout, _, code := shared.Command(ctx, ca, env, "check")
		return code == 0 &&
			strings.Contains(stdout, "ok       may delete certificatesigningrequests"), nil
	})
}

// The metric and check count the requests of all signers.
func TestRequestsInTheClusterAreCounted(t *testing.T) {
	ownSigner("another").submit(t)
	d := startReady(t, ca)
	all := must.Get(shared.Cluster.Requests().List(t.Context(), metav1.ListOptions{}))(t)
	waitMetrics(t, d, fmt.Sprintf("\nhsm_signer_requests_in_cluster %d\n", len(all.Items)))
	want := regexp.MustCompile(fmt.Sprintf(`(?m)^(ok|warning) +requests in the cluster +%d\b`,
		len(all.Items)))
	if text := command(t, ca, nil, "check").prints(t, 0); !want.MatchString(text) {
		t.Errorf("want %s:\n%s", want, text)
	}
}

// An overlay with the component has the setting and the right. An overlay without it has neither.
func TestCleanUpIsAComponent(t *testing.T) {
	for overlay := range overlays {
		for _, c := range []struct {
			edit  func(string) string
			count int
		}{{asItIs, 0}, {with("clean-up"), 1}} {
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
