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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
	"hsm-signer/issuer/journal"
)

// A request that leaves no room for an answer is refused once, and is not a fault. A request that
// the policy grants is refused for its size before it is approved, and denied if the denial fits.
func TestRequestsNearTheLimitOfEtcd(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	d := startReady(t, ca, "STATE_DIR="+state)
	p := newPod(t, node)
	object := func(name string) *certificatesv1.CertificateSigningRequest {
		csr := must.Get(p.InitContainer(node).Object())(t)
		csr.Name = name
		return csr
	}
	longest := must.Get(p.LongestRequest(t.Context(), object("limit-0")))(t)
	t.Logf("etcd stores %d bytes of spec.request", longest)
	var full []*certificatesv1.CertificateSigningRequest
	for n, spare := range []int{0, 100, 299, 2000} {
		csr := object(fmt.Sprintf("limit-%d", n))
		testenv.Pad(csr, longest-spare)
		full = append(full, create(t, p, csr))
	}
	granted := object("limit-9") // whose request is good, among very many labels
	testenv.PadLabels(granted, 816_000)
	made := create(t, p, granted)
	t.Logf("with labels it has %d bytes", made.Size())
	must.Eventually(t, "the one with room for that to be denied",
		func(context.Context) (bool, error) {
			c := get(t, granted.Name).Status.Conditions
			return len(c) == 1 && c[0].Type == certificatesv1.CertificateDenied &&
				c[0].Reason == "ObjectTooLarge", nil
		})
	must.Eventually(t, "the others to be recorded", func(context.Context) (bool, error) {
		text, err := os.ReadFile(filepath.Join(state, journal.RefusalsLog))
		for _, csr := range full {
			if strings.Count(string(text), string(csr.UID)) != 1 {
				return false, err
			}
		}
		return true, nil
	})
	requireCertificate(t, p, p.InitContainer(node)) // made later, and done
	for _, csr := range full {
		requireUntouched(t, csr)
		events := eventsOn(t, csr.Name)
		for _, event := range events {
			if event.Count > 1 || len(events) > 1 {
				t.Errorf("%s has %d events, such as %d times %s", csr.Name, len(events),
					event.Count, event.Reason)
			}
		}
	}
	metrics := d.Metrics(t.Context())
	if !strings.Contains(metrics, "\nhsm_signer_faults_total 0\n") ||
		regexp.MustCompile(`hsm_signer_api_calls_total\{code="(4|5)..",verb="put"\}`).
			MatchString(metrics) {
		t.Errorf("there were faults, or writes that failed:\n%s", metrics)
	}
	if !strings.Contains(metrics, fmt.Sprintf("\nhsm_signer_refusals_total %d\n", len(full)+1)) {
		t.Errorf("not every refusal is counted once:\n%s", metrics)
	}
}

// create creates the request as the pod, and deletes it at the end of the test.
func create(t *testing.T, p testenv.Pod,
	csr *certificatesv1.CertificateSigningRequest) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	made := must.Get(p.Requests().Create(t.Context(), csr, metav1.CreateOptions{}))(t)
	t.Cleanup(func() {
		_ = p.Requests().Delete(context.Background(), made.Name, metav1.DeleteOptions{})
	})
	return made
}
