package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/kubernetes/pkg/kubelet/podcertificate"
	clocktesting "k8s.io/utils/clock/testing"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
	"hsm-signer/policy/pkcs10"
)

// A kubelet is the part of kubelet that keeps the certificates of a node's pods, with the rights of
// the node and with a clock that the test sets.
type kubelet struct {
	*podcertificate.IssuingManager
	pods   podsOfNode
	clock  *clocktesting.FakeClock
	events *record.FakeRecorder
}

type podsOfNode []*corev1.Pod

// GetPods is kubelet's.
func (p podsOfNode) GetPods() []*corev1.Pod { return p }

// GetPodByUID is kubelet's.
func (p podsOfNode) GetPodByUID(uid types.UID) (*corev1.Pod, bool) {
	for _, pod := range p {
		if pod.UID == uid {
			return pod, true
		}
	}
	return nil, false
}

// startKubelet runs it for the pods of the node until the end of the test.
func startKubelet(t *testing.T, node string, pods ...*corev1.Pod) *kubelet {
	t.Helper()
	config := shared.Cluster.Config()
	config.Impersonate = rest.ImpersonationConfig{UserName: "system:node:" + node,
		Groups: []string{"system:nodes", "system:authenticated"}}
	client := must.Get(kubernetes.NewForConfig(config))(t)
	own := func(field string) informers.SharedInformerFactory {
		return informers.NewSharedInformerFactoryWithOptions(client, 0,
			informers.WithTweakListOptions(func(o *metav1.ListOptions) {
				o.FieldSelector = field + "=" + node
			}))
	}
	requests, nodes := own("spec.nodeName"), own("metadata.name")
	k := &kubelet{pods: pods, clock: clocktesting.NewFakeClock(time.Now()),
		events: record.NewFakeRecorder(100)}
	k.IssuingManager = podcertificate.NewIssuingManager(client, k.pods, k.events,
		requests.Certificates().V1().PodCertificateRequests(), nodes.Core().V1().Nodes(),
		types.NodeName(node), k.clock)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan struct{})
	requests.Start(ctx.Done())
	nodes.Start(ctx.Done())
	go func() { defer close(ended); k.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		<-ended
		requests.Shutdown()
		nodes.Shutdown()
	})
	for _, pod := range pods {
		k.TrackPod(ctx, pod)
	}
	return k
}

// newVolumePod makes a pod on a node of its own with a volume of the signer's.
func (s ownSigner) newVolumePod(t *testing.T, node, keyType string) *corev1.Pod {
	t.Helper()
	made := must.Get(shared.Cluster.Pod(t.Context(), testenv.PodSpec{Namespace: "pods",
		Name: node + "-" + strings.ToLower(keyType) + "-empty", Node: node}))(t)
	most := int32(3600)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: node + "-" + strings.ToLower(keyType)},
		Spec: made.Spec}
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "identity",
		VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			Sources: []corev1.VolumeProjection{{PodCertificate: &corev1.PodCertificateProjection{
				SignerName: s.name(), KeyType: keyType, MaxExpirationSeconds: &most,
				CredentialBundlePath: "credentials.pem",
			}}},
		}}})
	return must.Get(shared.Cluster.Client().CoreV1().Pods(made.Namespace).Create(t.Context(), pod,
		metav1.CreateOptions{}))(t)
}

// bundle returns the private key and the certificate that kubelet would write into the volume, in
// PEM.
func (k *kubelet) bundle(pod *corev1.Pod) (key, chain []byte, err error) {
	return k.GetPodCertificateCredentialBundle(context.Background(), pod.Namespace, pod.Name,
		string(pod.UID), "identity", 0)
}

// requireBundle waits until kubelet has another certificate than the former for the pod.
func (k *kubelet) requireBundle(t *testing.T, pod *corev1.Pod, former []byte) []byte {
	t.Helper()
	var key, chain []byte
	must.Eventually(t, "the certificate of "+pod.Name, func(context.Context) (bool, error) {
		var err error
		key, chain, err = k.bundle(pod)
		return err == nil && !bytes.Equal(chain, former), nil
	})
	if _, err := tls.X509KeyPair(chain, key); err != nil {
		t.Fatalf("%s: %v", pod.Name, err)
	}
	return chain
}

// requireStates checks in which state kubelet counts the certificates.
func (k *kubelet) requireStates(t *testing.T, state string, count int) {
	t.Helper()
	states := k.MetricReport().PodCertificateStates
	if len(states) != 1 {
		t.Errorf("%v; want %d %s", states, count, state)
	}
	for is, n := range states {
		if is.State != state || n != count {
			t.Errorf("%v; want %d %s", states, count, state)
		}
	}
}

// kubelet's own code obtains and refreshes certificates, for each type of key that it can make.
func TestKubeletObtainsAndRefreshesCertificates(t *testing.T) {
	t.Parallel()
	s, _ := newPodSigner(t, "pods-kubelet")
	const node = "kubelet-a"
	var pods []*corev1.Pod
	for _, key := range []string{"RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521",
		"ED25519"} {
		pods = append(pods, s.newVolumePod(t, node, key))
	}
	k := startKubelet(t, node, pods...)
	former := map[types.UID][]byte{}
	for _, pod := range pods {
		former[pod.UID] = k.requireBundle(t, pod, nil)
	}
	k.requireStates(t, "fresh", len(pods))
	// The refresh begins after 29 minutes and up to five more.
	k.clock.SetTime(time.Now().Add(36 * time.Minute))
	k.requireStates(t, "fresh", len(pods))
	for _, pod := range pods {
		k.TrackPod(t.Context(), pod)
	}
	for _, pod := range pods {
		k.requireBundle(t, pod, former[pod.UID])
	}
	k.clock.SetTime(time.Now())
	k.requireStates(t, "fresh", len(pods))
}

// rulesFor is a policy with one rule for pods, of the service account.
func rulesFor(account string) string {
	return `version: 1
rules:
  - name: pods
    from: {podCertificates: true, serviceAccounts: ["` + account + `"]}
    grant:
      uris: ["spiffe://example.org/ns/{namespace}/sa/{serviceAccount}"]
      keys: [rsa-3072, ecdsa-p256]
      usages: [digital signature]
`
}

// kubelet tells the owner of a pod that never had a certificate why it is denied.
func TestKubeletIsDenied(t *testing.T) {
	t.Parallel()
	s, _ := newPodSigner(t, "pods-denied", withPolicy(t, rulesFor("none/none")))
	const node = "kubelet-b"
	pod := s.newVolumePod(t, node, "ECDSAP256")
	k := startKubelet(t, node, pod)
	must.Eventually(t, "the Event", func(context.Context) (bool, error) {
		select {
		case event := <-k.events.Events:
			return strings.Contains(event, "RequesterNotAllowed") &&
				strings.Contains(event, "which no rule names"), nil
		default:
			return false, nil
		}
	})
	k.requireStates(t, "denied", 1)
}

// A refresh that the policy refuses is held for a pod that runs, so its volume is not lost; with no
// delay it is denied.
func TestRefusedRefreshIsHeld(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		delay, condition string
		started          bool
	}{
		"pods-held":    {"1h", "", true},
		"pods-new":     {"1h", "Denied", false},
		"pods-decided": {"0s", "Denied", true},
	} {
		t.Run(name, func(t *testing.T) {
			settings := []string{withPolicy(t, rulesFor("pods/allowed")),
				"POD_REFUSAL_DELAY=" + c.delay}
			s, d := newPodSigner(t, name, settings...)
			pod := newPlainPod(t)
			if c.started {
				pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main",
					State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
				must.Get(shared.Cluster.Client().CoreV1().Pods(pod.Namespace).UpdateStatus(
					t.Context(), pod, metav1.UpdateOptions{}))(t)
			}
			pcr, _ := s.podRequest(t, pod, pkcs10.ECDSAP256)
			if c.condition == "" {
				pcr = createPodRequest(t, pcr)
				waitLog(t, d, "The pod has had a certificate")
				requirePodRequestsOpen(t, pcr)
				waitMetrics(t, d, "\nhsm_signer_open_requests{state=\"refusal_held\"} 1\n")
				checked := command(t, ca, s.podEnv(settings...), "check").stdout
				if !strings.Contains(checked, "the policy refuses 1 request") ||
					!strings.Contains(checked, pcr.Name+": rule ") {
					t.Errorf("check:\n%s", checked)
				}
				return
			}
			if _, got := answer(t, pcr); got.Type != c.condition ||
				got.Reason != "RequesterNotAllowed" {
				t.Errorf("%+v", got)
			}
		})
	}
}
