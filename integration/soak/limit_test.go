package soak

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// Some requests have 1.4 MB, others are so close to etcd's limit that no answer fits into the
// object.
func TestRequestsNearTheLimitOfEtcd(t *testing.T) {
	each := of(6, 60)
	r := begin(t, 21,
		"60 requests of 1.4 MB and 60 within 300 bytes of etcd's limit; then as long as a retry "+
			"would take; then good ones",
		"120 recorded refusals; failed writes 0, faults 0, one event each; good ones issued")
	own := ownFixture(t)
	s := own.signer(t)
	pod, err := own.NewPod(t.Context(), node(), own.NextIP())
	must.OK(t, err)
	asking := pod.InitContainer(node())
	asking.SecretName = "batch-001"
	template, err := asking.Object()
	must.OK(t, err)
	longest, err := pod.LongestRequest(t.Context(), template)
	must.OK(t, err)
	good, bad := own.newBatch(t), own.batchOf(t, pod, func(number int,
		asking *calico.InitContainer) (*certificatesv1.CertificateSigningRequest, error) {
		asking.SecretName = fmt.Sprintf("batch-%03d", number)
		csr, err := asking.Object()
		if err == nil && number <= each {
			testenv.Pad(csr, 1_400_000)
		} else if err == nil {
			testenv.Pad(csr, longest-300*(number-each-1)/each)
		}
		return csr, err
	})
	bad.ask(t, each)
	d := s.startReady(t)
	bad.ask(t, each)
	if bad.size() != 2*each {
		t.Errorf("the API server accepted %d of %d requests", bad.size(), 2*each)
	}
	recorded := func() int {
		text, err := os.ReadFile(filepath.Join(s.state, "refusals.log"))
		if err != nil {
			return 0
		}
		return strings.Count(string(text), "\n")
	}
	must.Eventually(t, "every refusal to be recorded", func(context.Context) (bool, error) {
		return recorded() >= 2*each, nil
	})
	hold(t, 20*time.Second) // the longest pause between two tries is 8 s
	good.ask(t, 10)
	good.waitForAll(t)
	metrics := d.Metrics(t.Context())
	must.OK(t, d.Shutdown())
	s.account(t).requireWhole(t, good)

	if n := recorded(); n != 2*each {
		t.Errorf("%d refusals are recorded for %d requests", n, 2*each)
	}
	failedWrite :=
		regexp.MustCompile(`hsm_signer_api_calls_total\{code="(4|5)..",verb="(put|post|patch)"\}.*`)
	failed := failedWrite.FindAllString(metrics, -1)
	refusals := fmt.Sprintf("\nhsm_signer_refusals_total %d\n", 2*each)
	if len(failed) > 0 || !strings.Contains(metrics, "\nhsm_signer_faults_total 0\n") ||
		!strings.Contains(metrics, refusals) {
		t.Errorf("failed writes %v; the metrics:\n%s", failed, metrics)
	}
	events, err := own.Cluster.Client().CoreV1().Events("default").List(t.Context(),
		metav1.ListOptions{})
	must.OK(t, err)
	times := 0
	for _, event := range events.Items {
		times += int(max(1, event.Count))
	}
	if times > 2*each {
		t.Errorf("%d events for %d requests", times, 2*each)
	}
	denied, err := bad.refused(t.Context())
	must.OK(t, err)
	r.measured("%d requests, the longest spec.request that etcd stores has %d bytes; %d refusals "+
		"recorded, "+
		"%d of them denied, the others left alone", bad.size(), longest, recorded(), len(denied))
	r.measured("failed writes %d, faults 0, events %d", len(failed), times)
	r.measured("%d good ones issued afterwards", good.size())
}
