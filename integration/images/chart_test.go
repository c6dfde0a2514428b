package images_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

const chart = root + "/deploy/chart/hsm-signer"

// The pod that the chart renders issues certificates: first as a trial, whose init container holds
// the ceremony, and then with the CA in a ConfigMap and the PIN in a Secret, on the same token and
// journal. Its kubelet is this test.
func TestChartsPodIssuesCertificates(t *testing.T) {
	needsEngine(t,
		"the pod of the Helm chart, with its own environment, volumes, user and security context, "+
			"becomes ready and issues certificates")
	softhsm := image + "-softhsm"
	run(t, nil, "make", "image", warm(t), "IMAGE="+softhsm, "PACKAGES=softhsm2")
	c := newChartCluster(t)
	node := map[string]string{} // its directories, as the comments of the values say
	for _, volume := range []string{"token", "state"} {
		node[volume] = filepath.Join(t.TempDir(), volume)
		run(t, nil, "install", "-d", "-m", "0700", "-o", "65532", "-g", "65532", node[volume])
	}
	const overlay = root + "/deploy/overlays/softhsm/"
	trial := []string{"--values", chart + "/examples/softhsm.yaml", "--set", "image.repository=" +
		softhsm, "--set-file", `hsm.config.softhsm\.conf=` + overlay + "softhsm.conf",
		"--set-file", `hsm.config.ceremony\.sh=` + overlay + "ceremony.sh"}
	t.Run("trial", func(t *testing.T) { c.issues(t, node, trial...) })

	run(t, []string{"KUBECONFIG=" + c.Kubeconfig()}, c.kubectl, "-n", "hsm-signer", "create",
		"secret", "generic", "hsm-signer-pin", "--from-file="+filepath.Join(node["token"], "pin"))
	t.Run("secret", func(t *testing.T) {
		c.issues(t, node, append(trial, "--set", "pin.secret=hsm-signer-pin,hsm.initContainers=null,"+
			"environment.PKCS11_PIN_FILE=/etc/hsm-signer/pin/pin,"+
			"environment.CA_CERT_FILE=/etc/hsm-signer/ca/ca.crt", "--set-file",
			"ca.certificate="+filepath.Join(node["token"], "ca.crt"))...)
	})
}

// A chartCluster is an API server with Helm and kubectl, that containers can reach.
type chartCluster struct {
	*testenv.Cluster
	helm    *testenv.Helm
	kubectl string
	asked   int64 // pods that asked so far
}

func newChartCluster(t *testing.T) *chartCluster {
	t.Helper()
	cluster := newCluster(t, "--bind-address=0.0.0.0")
	helm := must.Get(testenv.NewHelm(t.Context(), cluster.Kubeconfig(), t.TempDir(), os.Stderr))(t)
	bin := must.Get(testenv.Binaries(t.Context(), nil))(t)
	must.OK(t, cluster.EnsureNamespace(t.Context(), "hsm-signer"))
	run(t, []string{"KUBECONFIG=" + cluster.Kubeconfig()}, bin.Kubectl, "label", "namespace",
		"hsm-signer", "pod-security.kubernetes.io/enforce=restricted")
	return &chartCluster{Cluster: cluster, helm: helm, kubectl: bin.Kubectl}
}

// issues installs the chart, or upgrades it, runs its pod, and requests a certificate.
func (c *chartCluster) issues(t *testing.T, node map[string]string, values ...string) {
	must.Get(c.helm.Run(t.Context(), append([]string{"upgrade", "--install", "hsm-signer", chart,
		"--namespace", "hsm-signer"}, values...)...))(t)
	pod := c.schedule(t)
	k := newKubelet(t, c.Cluster, pod, node)
	container := k.start()
	spec := pod.Spec.Containers[0]
	for _, probe := range []*corev1.Probe{spec.StartupProbe, spec.LivenessProbe,
		spec.ReadinessProbe} {
		k.probe(container, probe)
	}
	c.asked++
	must.OK(t, typhaAsks(t.Context(), c.Cluster, c.asked))
	if out := run(t, nil, "docker", "exec", container, "hsm-signer", "audit", "verify"); !strings.
		Contains(out, fmt.Sprintf("requests         %d, of which %[1]d are published", c.asked)) {
		t.Errorf("%d pods asked, and the journal says\n%s", c.asked, out)
	}
	run(t, nil, "docker", "exec", container, "hsm-signer", "check")
}

// schedule creates the first pod of the StatefulSet, as its controller would. The end of the test
// deletes it.
func (c *chartCluster) schedule(t *testing.T) *corev1.Pod {
	t.Helper()
	set := must.Get(c.Client().AppsV1().StatefulSets("hsm-signer").Get(t.Context(), "hsm-signer",
		metav1.GetOptions{}))(t)
	pod := must.Get(c.Client().CoreV1().Pods("hsm-signer").Create(t.Context(), testenv.PodOf(set),
		metav1.CreateOptions{}))(t)
	t.Cleanup(func() { must.OK(t, c.DeletePod(context.WithoutCancel(t.Context()), pod)) })
	return pod
}
