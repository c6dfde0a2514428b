package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/legacyapi"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// An oldCluster is the shared cluster as an old Kubernetes: certificate requests are v1beta1, and
// tokens name no pod.
type oldCluster struct {
	api        *legacyapi.Server
	kubeconfig string // of hsm-signer's service account
}

// newOldCluster makes the shared cluster look old until the end of the test. It deletes all
// requests before and after: without signer names all requests look alike.
func newOldCluster(t *testing.T, o legacyapi.Options) oldCluster {
	t.Helper()
	o.Upstream = shared.Cluster.Config()
	server := must.Get(legacyapi.Start(o))(t)
	t.Cleanup(server.Close)
	must.OK(t, shared.Cluster.DeleteRequests(t.Context()))
	t.Cleanup(func() { must.OK(t, shared.Cluster.DeleteRequests(context.Background())) })
	old := oldCluster{server, filepath.Join(t.TempDir(), "kubeconfig")}
	must.OK(t, shared.KubeconfigVia(t.Context(), old.kubeconfig, server.Config))
	return old
}

// start runs hsm-signer on the old cluster until the end of the test.
func (o oldCluster) start(t *testing.T, env ...string) *testenv.Daemon {
	t.Helper()
	return start(t, ca,
		append([]string{"KUBECONFIG=" + o.kubeconfig, "POLICY_FILE=calico-legacy"}, env...)...)
}

func (o oldCluster) startReady(t *testing.T, env ...string) *testenv.Daemon {
	t.Helper()
	d := o.start(t, env...)
	must.OK(t, d.WaitReady(t.Context()))
	return d
}

// newPod creates a running pod with a token that does not name it.
func (o oldCluster) newPod(t *testing.T, c calico.Component) testenv.Pod {
	t.Helper()
	return o.newPodAt(t, c, shared.NextIP())
}

func (o oldCluster) newPodAt(t *testing.T, c calico.Component, ip string) testenv.Pod {
	t.Helper()
	spec := testenv.PodSpec{Namespace: c.Namespace, ServiceAccount: c.ServiceAccount,
		Name: fmt.Sprintf("%s-old-%d", c.ServiceAccount, numbers.Add(1)), IPs: []string{ip}}
	made := must.Get(shared.Cluster.Pod(t.Context(), spec))(t)
	token := must.Get(shared.Cluster.UnboundToken(t.Context(), c.Namespace, c.ServiceAccount))(t)
	return must.Get(testenv.PodWith(made, o.api.Config(token)))(t)
}

// submitOld submits the request as v1beta1. An empty signer name is left out.
func submitOld(t *testing.T, client kubernetes.Interface,
	request *certificatesv1.CertificateSigningRequest,
) *certificatesv1beta1.CertificateSigningRequest {
	t.Helper()
	text := must.Get(json.Marshal(request))(t)
	old := &certificatesv1beta1.CertificateSigningRequest{}
	must.OK(t, json.Unmarshal(text, old))
	if request.Spec.SignerName == "" {
		old.Spec.SignerName = nil
	}
	requests := client.CertificatesV1beta1().CertificateSigningRequests()
	return must.Get(requests.Create(t.Context(), old, metav1.CreateOptions{}))(t)
}

// askOld submits the request of the init container as v1beta1.
func askOld(t *testing.T, p testenv.Pod,
	asking calico.InitContainer) *certificatesv1beta1.CertificateSigningRequest {
	t.Helper()
	return submitOld(t, p.Client, must.Get(asking.Object())(t))
}

// end waits for the end of a request, as the cluster stores it.
func end(t *testing.T, name string) (*certificatesv1.CertificateSigningRequest, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return calico.Wait(ctx, shared.Cluster.Client(), name)
}

// requireOldCertificate waits until the pod can read its certificate as v1beta1.
func requireOldCertificate(t *testing.T, p testenv.Pod, name string, asking calico.InitContainer) {
	t.Helper()
	csr := must.Get(end(t, name))(t)
	requireOpenSSL(t, ca, requireIssued(t, csr, asking))
	old, err := p.Client.CertificatesV1beta1().CertificateSigningRequests().Get(t.Context(), name,
		metav1.GetOptions{})
	must.OK(t, err)
	if !slices.Equal(old.Status.Certificate, csr.Status.Certificate) {
		t.Errorf("%s: the pod reads %q", name, old.Status.Certificate)
	}
}

func TestV1beta1EachComponentGetsItsOwnNamesAlone(t *testing.T) {
	old := newOldCluster(t, legacyapi.Options{})
	d := old.startReady(t)
	for _, who := range components {
		for _, whose := range components {
			p := old.newPod(t, who)
			asking := p.InitContainer(whose)
			made := askOld(t, p, asking)
			if who.ServiceAccount == whose.ServiceAccount {
				requireOldCertificate(t, p, made.Name, asking)
				continue
			}
			_, err := end(t, made.Name)
			requireRefused(t, err, certificatesv1.CertificateDenied, "NameNotAllowed",
				whose.DNSNames[0])
		}
	}
	if log := d.Log(); !strings.Contains(log, `"api":"certificates.k8s.io/v1beta1"`) {
		t.Errorf("the log does not say that the API is v1beta1:\n%s", log)
	}
}

// An address is only accepted if a running pod of the requester's own service account has it.
func TestV1beta1AddressOfNoPodOfItsOwnIsWaitedFor(t *testing.T) {
	old := newOldCluster(t, legacyapi.Options{})
	d := old.startReady(t)
	asker, other := old.newPod(t, node), old.newPod(t, typha)

	asking := asker.InitContainer(node)
	asking.Pod = other.Pod // whose address is asked for
	made := askOld(t, asker, asking)
	ip := other.Status.PodIP
	waitLog(t, d,
		"a live pod of the service account calico-system/calico-node with the IP address "+ip)
	// This request is newer, and is served.
	p := old.newPod(t, node)
	later := p.InitContainer(node)
	requireOldCertificate(t, p, askOld(t, p, later).Name, later)
	requireUntouched(t, made)

	old.newPodAt(t, node, ip) // on the host's network both have one address
	requireOldCertificate(t, asker, made.Name, asking)
}

func TestV1beta1ForeignRequestIsLeftAlone(t *testing.T) {
	old := newOldCluster(t, legacyapi.Options{})
	old.startReady(t)
	p := old.newPod(t, node)
	foreign := p.InitContainer(node)
	foreign.SignerName, foreign.SecretName = "example.com/other", "foreign"
	made := askOld(t, p, foreign)
	own := p.InitContainer(node)
	requireOldCertificate(t, p, askOld(t, p, own).Name, own) // newer, and served
	requireUntouched(t, made)
}

// before118 returns a cluster without signer names. It stores requests with the signer name that
// hsm-signer serves, since the real server needs one.
func before118(t *testing.T) oldCluster {
	t.Helper()
	return newOldCluster(t, legacyapi.Options{Before118: true, SignerName: testenv.SignerName})
}

// askUnset submits the request of the init container without a signer name.
func askUnset(t *testing.T, p testenv.Pod,
	asking calico.InitContainer) *certificatesv1beta1.CertificateSigningRequest {
	t.Helper()
	asking.SignerName = ""
	return askOld(t, p, asking)
}

// Before 1.18 all signers share the requests without a signer name. With UNSET_SIGNER_NAME=accept
// hsm-signer grants or denies those of Calico's service accounts, and ignores all others.
func TestBefore118UnsetSignerNameIsAccepted(t *testing.T) {
	old := before118(t)
	// so that requests are served in order
	d := old.startReady(t, "UNSET_SIGNER_NAME=accept", "WORKERS=1")
	strangers := []*certificatesv1beta1.CertificateSigningRequest{old.askAsKubelet(t),
		old.askAsDefault(t)}

	impostor := old.newPod(t, node)
	_, err := end(t, askUnset(t, impostor, impostor.InitContainer(typha)).Name)
	requireRefused(t, err, certificatesv1.CertificateDenied, "NameNotAllowed", "typha-server")

	for _, c := range components {
		p := old.newPod(t, c)
		asking := p.InitContainer(c)
		requireOldCertificate(t, p, askUnset(t, p, asking).Name, asking)
	}
	for _, made := range strangers {
		requireUntouched(t, made)
		if events := eventsOn(t, made.Name); len(events) > 0 {
			t.Errorf("there are events on %s: %v", made.Name, events)
		}
	}
	requireNoFaults(t, d)
}

// Without the setting nothing is changed. Such a server cannot select by signer name, so hsm-signer
// is not ready, and reports why.
func TestBefore118UnsetSignerNameIsIgnored(t *testing.T) {
	old := before118(t)
	p := old.newPod(t, node)
	made := []*certificatesv1beta1.CertificateSigningRequest{
		askUnset(t, p, p.InitContainer(node)), old.askAsKubelet(t), old.askAsDefault(t),
	}
	d := old.start(t)
	must.OK(t, d.WaitNotReady(t.Context(), "field label not supported: spec.signerName"))
	for _, one := range made {
		requireUntouched(t, one)
	}
	if !d.Running() {
		t.Errorf("hsm-signer has ended; its log:\n%s", d.Log())
	}
}

// check fails if run would never become ready, and passes otherwise.
func TestCheckBefore118(t *testing.T) {
	old := before118(t)
	for setting, c := range map[string]struct {
		code  int
		words string
	}{
		"ignore": {2, "set UNSET_SIGNER_NAME=accept"},
		"accept": {0, "ok       API version                        certificates.k8s.io/v1beta1\n"},
	} {
		env := []string{"KUBECONFIG=" + old.kubeconfig, "POLICY_FILE=calico-legacy",
			"UNSET_SIGNER_NAME=" + setting}
		requireCheck(t, env, c.code, c.words)
	}
}

// askAsKubelet submits the request of a kubelet for its client certificate.
func (o oldCluster) askAsKubelet(t *testing.T) *certificatesv1beta1.CertificateSigningRequest {
	t.Helper()
	node := calico.Component{SecretName: "csr", DNSNames: []string{"node-1"},
		CommonName: "system:node:node-1"}
	config := o.api.Config(shared.Cluster.Config().BearerToken)
	config.Impersonate = rest.ImpersonationConfig{UserName: "system:node:node-1",
		Groups: []string{"system:nodes"}}
	kubelet := must.Get(testenv.PodWith(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "kubelet"},
		Status:     corev1.PodStatus{PodIP: shared.NextIP()},
	}, config))(t)
	asking := kubelet.InitContainer(node)
	asking.SignerName = ""
	request := must.Get(asking.Object())(t)
	request.Spec.Usages = []certificatesv1.KeyUsage{
		certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment,
		certificatesv1.UsageClientAuth,
	}
	return submitOld(t, kubelet.Client, request)
}

// askAsDefault submits a request for one of Calico's names as a service account that is not
// Calico's.
func (o oldCluster) askAsDefault(t *testing.T) *certificatesv1beta1.CertificateSigningRequest {
	t.Helper()
	p := o.newPod(t, calico.Component{Namespace: "default", ServiceAccount: "default"})
	return askUnset(t, p, p.InitContainer(node))
}

// The control plane is upgraded to 1.22 while hsm-signer runs: v1beta1 disappears, and hsm-signer
// continues with v1.
func TestV1beta1Disappears(t *testing.T) {
	old := newOldCluster(t, legacyapi.Options{})
	d := old.startReady(t)
	p := old.newPod(t, node)
	asking := p.InitContainer(node)
	requireOldCertificate(t, p, askOld(t, p, asking).Name, asking)

	old.api.Upgrade()
	later := old.newPod(t, node)
	asking = later.InitContainer(node)
	requireIssued(t, must.Get(end(t, submit(t, later, asking).Name))(t), asking)
	must.OK(t, d.WaitReady(t.Context()))
	if log := d.Log(); !strings.Contains(log, `"api":"certificates.k8s.io/v1"`) ||
		strings.Contains(log, `"@level":"error"`) {
		t.Errorf("it did not continue with v1, or there were faults:\n%s", log)
	}
}

// Where the cluster lacks the API of pod certificates, certificate requests are answered, and
// /readyz and check name what is missing, until the cluster has it.
func TestV1beta1WithoutPodCertificates(t *testing.T) {
	must.OK(t, shared.AllowPods(t.Context()))
	old := newOldCluster(t, legacyapi.Options{})
	env := []string{withPolicy(t, strings.Replace(rotationPolicy, "/calico-node]",
		"/calico-node], pod: address", 1)), "POD_CERTIFICATES=true",
		"TRUST_DOMAIN=" + podTrustDomain}
	const missing = "the API server has no PodCertificateRequest"
	d := old.start(t, env...)
	must.OK(t, d.WaitNotReady(t.Context(), "[-] requests: "+missing))
	waitLog(t, d, "the requests of a kind are not served; others are")
	p := old.newPod(t, node)
	asking := p.InitContainer(node)
	requireOldCertificate(t, p, askOld(t, p, asking).Name, asking)
	command(t, ca, append(env, "KUBECONFIG="+old.kubeconfig), "check").prints(t, 2,
		"failed   API of pod certificates            "+missing)

	old.api.Upgrade()
	must.OK(t, d.WaitReady(t.Context()))
}
