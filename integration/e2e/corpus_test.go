package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
	"hsm-signer/policy/hostile"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// The policy allows every requester, usage and key, and every name that a pattern may match. Still
// every hostile request is refused through the real API server, every harmless one gets its
// certificate, and no certificate has anything unchecked.
func TestHostileRequests(t *testing.T) {
	everything := must.Get(os.ReadFile(filepath.Join("..", "testdata", "allow-everything.yaml")))(t)
	startReady(t, ca,
		withPolicy(t,
			string(everything)+
				"\nbudget: {total: 10000, perServiceAccount: 100%, perPod: 10000}\n"))
	p := newPod(t, node)
	samples := hostile.Samples(t)
	admitted := map[string]hostile.Sample{}
	outcomes := map[string]int{}
	for i, s := range samples {
		name := fmt.Sprintf("sample-%d", i)
		if _, err := p.Requests().Create(t.Context(),
			object(s, name), metav1.CreateOptions{}); err != nil {
			outcomes[s.Verdict+": not admitted by the API server"]++
			if s.Verdict == hostile.Accept {
				t.Errorf("%s: not admitted: %v", s.Name, err)
			}
			continue
		}
		admitted[name] = s
	}
	ended := waitForAll(t, admitted)
	for _, name := range slices.Sorted(maps.Keys(admitted)) {
		outcomes[admitted[name].Verdict+": "+judge(t, admitted[name], ended[name])]++
	}
	for _, outcome := range slices.Sorted(maps.Keys(outcomes)) {
		t.Logf("%4d %s", outcomes[outcome], outcome)
	}
}

// Expensive checks count against the budget, and so do refusals. Without budget the key is not
// checked.
func TestExaminedWithinTheBudgetAlone(t *testing.T) {
	everything := must.Get(os.ReadFile(filepath.Join("..", "testdata", "allow-everything.yaml")))(t)
	startReady(t, ca, withPolicy(t, string(everything)+"\nbudget: {perPod: 1}\n"))
	p := newPod(t, node)
	prime := hostile.Sample{PEM: pkcs10test.PrimeModulus(t)}
	if err := refusal(t, p, object(prime, "prime-1")); err == nil ||
		!strings.Contains(err.Error(), "its modulus is a prime") {
		t.Errorf("%v", err)
	}
	must.Get(p.Requests().Create(t.Context(),
		object(prime, "prime-2"), metav1.CreateOptions{}))(t)
	requireEvent(t, "prime-2", "OverBudget")
	requireOpen(t, "prime-2")
}

func object(s hostile.Sample, name string) *certificatesv1.CertificateSigningRequest {
	var usages []certificatesv1.KeyUsage
	for _, usage := range hostile.Usages {
		usages = append(usages, certificatesv1.KeyUsage(usage))
	}
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: s.PEM, SignerName: testenv.SignerName,
			Usages: usages,
		},
	}
}

// waitForAll waits until each request has ended.
func waitForAll(t *testing.T,
	requests map[string]hostile.Sample) map[string]*certificatesv1.CertificateSigningRequest {
	t.Helper()
	ended := map[string]*certificatesv1.CertificateSigningRequest{}
	must.Eventually(t, "every request to end", func(ctx context.Context) (bool, error) {
		list, err := shared.Cluster.Requests().List(ctx,
			metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		for i := range list.Items {
			csr := &list.Items[i]
			denied := slices.ContainsFunc(csr.Status.Conditions,
				func(c certificatesv1.CertificateSigningRequestCondition) bool {
					return c.Type == certificatesv1.CertificateDenied
				})
			if _, ours := requests[csr.Name]; ours && (denied || len(csr.Status.Certificate) > 0) {
				ended[csr.Name] = csr
			}
		}
		return len(ended) == len(requests), nil
	})
	return ended
}

// judge compares the answer to the sample with the right one.
func judge(t *testing.T, s hostile.Sample, csr *certificatesv1.CertificateSigningRequest) string {
	t.Helper()
	if len(csr.Status.Certificate) == 0 {
		condition := csr.Status.Conditions[0]
		if s.Verdict == hostile.Accept {
			t.Errorf("%s: refused: %s", s.Name, condition.Message)
		}
		if strings.ContainsFunc(condition.Message,
			func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("%s: a condition that could break a terminal: %q", s.Name, condition.Message)
		}
		return "refused"
	}
	if s.Verdict == hostile.Reject {
		t.Errorf("%s: it has a certificate", s.Name)
	}
	s.RequireNothingElse(t, csr.Status.Certificate)
	return "granted, and nothing else in the certificate"
}
