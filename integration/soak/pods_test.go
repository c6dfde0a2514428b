package soak

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
	"hsm-signer/integration/testenv"
)

// pcrs are PodCertificateRequests for one pod. It is a [kind].
type pcrs struct {
	admin    kubernetes.Interface
	template *certificatesv1.PodCertificateRequest
}

// forPods is what a signer of pod certificates needs.
func (s *fixture) forPods(t *testing.T) (env []string) {
	t.Helper()
	env, err := s.ForPods(t.Context(), s.ca)
	must.OK(t, err)
	return env
}

// newPodBatch returns a batch of requests for a new pod. They are deleted when the test ends.
func (s *fixture) newPodBatch(t *testing.T) *batch {
	t.Helper()
	ip := s.NextIP()
	pod, err := s.Cluster.Pod(t.Context(), testenv.PodSpec{Namespace: "pods",
		Name: "pod-" + strings.ReplaceAll(ip, ".", "-"), IPs: []string{ip}})
	must.OK(t, err)
	stub, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{},
		calico.NewP256Key())
	must.OK(t, err)
	template, err := s.Cluster.PodCertificateRequest(t.Context(), testenv.SignerName, pod, stub)
	must.OK(t, err)
	k := pcrs{s.admin(t), template}
	t.Cleanup(func() {
		must.OK(t, k.admin.CertificatesV1().PodCertificateRequests(pod.Namespace).DeleteCollection(
			context.Background(), metav1.DeleteOptions{}, metav1.ListOptions{}))
	})
	return newBatch(k)
}

func (k pcrs) create(ctx context.Context, _ int) (metav1.Object, error) {
	return k.admin.CertificatesV1().PodCertificateRequests(k.template.Namespace).Create(ctx,
		k.template, metav1.CreateOptions{})
}

func (k pcrs) list(ctx context.Context) (all []metav1.Object, err error) {
	list, err := k.admin.CertificatesV1().PodCertificateRequests(k.template.Namespace).List(ctx,
		metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for i := range list.Items {
		all = append(all, &list.Items[i])
	}
	return all, nil
}

func (k pcrs) answer(request any) answer {
	pcr := request.(*certificatesv1.PodCertificateRequest)
	a := answer{name: pcr.Namespace + "/" + pcr.Name, conditions: len(pcr.Status.Conditions),
		chain: []byte(pcr.Status.CertificateChain)}
	for _, c := range pcr.Status.Conditions {
		is := c.Status == metav1.ConditionTrue
		if c.Type == certificatesv1.PodCertificateRequestConditionTypeIssued {
			a.issued = is && len(a.chain) > 0
		} else {
			a.refused = is
		}
	}
	return a
}

func (k pcrs) informer() cache.SharedIndexInformer {
	return informers.NewSharedInformerFactory(k.admin, 0).Certificates().V1().
		PodCertificateRequests().Informer()
}

// The faults of the rows above happen to requests of pods.

func TestPodsKilledAtRandom(t *testing.T) {
	r := begin(t, 25, "as row 1, 50 times during 1,000 requests for pod certificates",
		"as row 1")
	killAtRandom(t, r, shared.signer(t, shared.forPods(t)...), shared.newPodBatch(t), of(4, 50),
		of(80, 1000))
}

func TestPodsKilledAtEachPoint(t *testing.T) {
	r := begin(t, 26, "as row 2, for pod certificates, which have no approval: at 4 points, 10 "+
		"times each", "as row 2")
	p, through := shared.proxied(t)
	killAtPoints(t, r, p, shared.signer(t, append(shared.forPods(t), through)...),
		shared.newPodBatch(t), points[2:], of(1, 10))
}

func TestAnswerForPodIsLost(t *testing.T) {
	r := begin(t, 27, "as row 3, for pod certificates: 100 answers", "signed again 0")
	p, through := shared.proxied(t)
	loseAnswers(t, r, p, shared.signer(t, append(shared.forPods(t), through)...),
		shared.newPodBatch(t), of(10, 100), 1)
}

func TestLeadersForPods(t *testing.T) {
	r := begin(t, 28, "as row 10, for pod certificates: SIGSTOP 5 times, kill -9 twice, SIGTERM "+
		"twice", "as row 10")
	changeLeaders(t, r, newPair(t, shared, shared.forPods(t)...), shared.newPodBatch(t), of(0, 5),
		of(1, 2), of(1, 2))
}

func TestEtcdIsRestoredWithPods(t *testing.T) {
	r := begin(t, 29, "as row 16, for pod certificates", "as row 16")
	own := ownFixture(t)
	restoreEtcd(t, r, own.signer(t, own.forPods(t)...), own.newPodBatch, of(10, 100))
}

func TestDiskIsFullWithPods(t *testing.T) {
	r := begin(t, 30, "as row 11, for pod certificates", "as row 11")
	fillDisk(t, r, shared.forPods(t), shared.newPodBatch(t))
}

// kubelet takes a denial or a failure as final, so an unavailable token must lead to neither.
func TestTokenIsAwayWithPods(t *testing.T) {
	r := begin(t, 31, "the token is unavailable for 8 minutes, while a pod certificate is requested each "+
		"second", "none denied or failed; all issued within 60 s after it is back")
	s := shared.signer(t, shared.forPods(t)...)
	d := s.startReady(t)
	c := shared.newPodBatch(t)
	must.OK(t, s.shim.Rules(pkcs11shim.Fail(pkcs11shim.Any, pkcs11.CKR_DEVICE_REMOVED)))
	c.ask(t, 1)
	must.OK(t, d.WaitNotReady(t.Context(), "[-] token"))
	stopAsking := c.keepAsking(t, 1)
	c.waitForSize(t, 5)
	hold(t, 8*time.Minute)
	stopAsking()
	refused, err := c.refused(t.Context())
	must.OK(t, err)
	open, err := c.lost(t.Context())
	must.OK(t, err)
	must.OK(t, s.shim.Rules())
	took := c.waitForAll(t)
	r.within(took, time.Minute)
	must.OK(t, d.Shutdown())
	s.account(t).requireWhole(t, c)
	if len(refused) > 0 || len(open) != c.size() {
		t.Errorf("refused: %v; open: %d of %d", refused, len(open), c.size())
	}
	r.measured("%d requests, all open meanwhile; denied or failed %d; all issued %s after "+
		"it was back", c.size(), len(refused), seconds(took))
}
