package e2e

import (
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/must"
)

// Every overlay with the component is taken by the API server, and the pod that comes of it is
// admitted by the restricted standard. It has neither the PIN nor the journal, and the network of
// its node only where hsm-signer has it.
func TestHealIsAComponent(t *testing.T) {
	must.OK(t, shared.Cluster.EnsureNamespace(t.Context(), "calico-system"))
	for overlay := range overlays {
		for kind, edit := range map[string]func(string) string{"": with("heal"),
			" with the node's network": with("heal", "host-network")} {
			t.Run(overlay+kind, func(t *testing.T) {
				defer clearVolumes(t)
				_, warnings := kubectl(t, "apply", "--server-side", "--force-conflicts", "-k",
					deployment(t, overlay, edit))
				if warnings != "" && kind == "" {
					t.Errorf("kubectl apply: %s", warnings)
				}
				made := must.Get(shared.Cluster.Client().AppsV1().Deployments("hsm-signer").
					Get(t.Context(), "hsm-signer-heal", metav1.GetOptions{}))(t)
				requireHealPod(t, made, kind != "")
			})
		}
	}
}

func requireHealPod(t *testing.T, made *appsv1.Deployment, hostNetwork bool) {
	t.Helper()
	spec := made.Spec.Template.Spec
	if *made.Spec.Replicas != 1 ||
		made.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType {
		t.Errorf("%d replicas, strategy %s", *made.Spec.Replicas, made.Spec.Strategy.Type)
	}
	if len(spec.Volumes) > 0 || len(spec.Containers[0].EnvFrom) > 0 {
		t.Errorf("it has the volumes %v and the variables of %v", spec.Volumes,
			spec.Containers[0].EnvFrom)
	}
	for _, variable := range spec.Containers[0].Env {
		if strings.HasPrefix(variable.Name, "PKCS11") || strings.Contains(variable.Name, "STATE") {
			t.Errorf("it has the variable %s", variable.Name)
		}
	}
	if spec.HostNetwork != hostNetwork {
		t.Errorf("the network of its node: %t", spec.HostNetwork)
	}
	pods := shared.Cluster.Client().CoreV1().Pods("hsm-signer")
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "hsm-signer-heal-0",
		Labels: made.Spec.Template.Labels}, Spec: spec}
	created := must.Get(pods.Create(t.Context(), pod, metav1.CreateOptions{}))(t)
	must.OK(t, shared.Cluster.DeletePod(t.Context(), created))
}

// Its service account may do what heal needs, and nothing else.
func TestRightsOfHeal(t *testing.T) {
	startHealer(t)
	for _, c := range []struct {
		verb, group, resource, namespace string
		want                             bool
	}{
		{"list", "certificates.k8s.io", "certificatesigningrequests", "", true},
		{"watch", "certificates.k8s.io", "certificatesigningrequests", "", true},
		{"delete", "certificates.k8s.io", "certificatesigningrequests", "", false},
		{"sign", "certificates.k8s.io", "signers", "", false},
		{"approve", "certificates.k8s.io", "signers", "", false},
		{"get", "", "pods", "calico-system", true},
		{"list", "", "pods", "calico-system", true},
		{"delete", "", "pods", "calico-system", true},
		{"create", "", "events", "calico-system", true},
		{"create", "", "pods", "calico-system", false},
		{"deletecollection", "", "pods", "calico-system", false},
		{"delete", "", "pods", "kube-system", false},
		{"get", "", "pods", "hsm-signer", false},
		{"get", "", "secrets", "hsm-signer", false},
		{"get", "", "secrets", "calico-system", false},
		{"get", "coordination.k8s.io", "leases", "hsm-signer", false},
	} {
		act := authorizationv1.ResourceAttributes{Verb: c.verb, Group: c.group,
			Resource: c.resource, Namespace: c.namespace}
		if may(t, "hsm-signer-heal", act) != c.want {
			t.Errorf("%s %s in %q: allowed is %t", c.verb, c.resource, c.namespace, !c.want)
		}
	}
}
