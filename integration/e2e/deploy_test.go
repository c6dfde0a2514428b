package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/demo"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// someCertificate looks like the file of a CA's certificate.
const someCertificate = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"

// overlays are those of deploy/overlays, with the files that users add to them.
var overlays = map[string]map[string]string{
	"softhsm":     nil,
	"network-hsm": {"ca.crt": someCertificate, "client.conf": "server = 192.0.2.10"},
	"p11-kit":     {"ca.crt": someCertificate},
}

// kubectl runs the test environment's kubectl as the admin.
func kubectl(t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context()) // it is used in clean-up too
	bin := must.Get(testenv.Binaries(ctx, nil))(t)
	var out, errs strings.Builder
	cmd := exec.CommandContext(ctx, bin.Kubectl, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+shared.Cluster.Kubeconfig())
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), errs.String()
}

// apply applies the manifests until the end of the test.
func apply(t *testing.T, manifests string) {
	t.Helper()
	file := tempFile(t, "manifests.yaml", manifests)
	must.OK(t, shared.Cluster.Apply(t.Context(), []byte(manifests)))
	t.Cleanup(func() { kubectl(t, "delete", "--ignore-not-found", "-f", file) })
}

// deployment copies deploy, with the files that users add to the overlay, and returns the directory
// of the overlay.
func deployment(t *testing.T, overlay string, edit func(kustomization string) string) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "deploy")
	must.OK(t, os.CopyFS(root, os.DirFS("../../deploy")))
	dir := filepath.Join(root, "overlays", overlay)
	for name, text := range overlays[overlay] {
		must.OK(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	file := filepath.Join(dir, "kustomization.yaml")
	text := must.Get(os.ReadFile(file))(t)
	must.OK(t, os.WriteFile(file, []byte(edit(string(text))), 0o600))
	return dir
}

func asItIs(kustomization string) string { return kustomization }

// with adds components of deploy/components to the overlay.
func with(components ...string) func(kustomization string) string {
	list := "components:\n"
	for _, name := range components {
		list += "  - ../../components/" + name + "\n"
	}
	return func(kustomization string) string {
		return strings.Replace(kustomization, "components:\n", list, 1)
	}
}

// The API server accepts every overlay, in a dry run and then permanently. The namespace's Pod
// Security standard admits the pod without a warning.
func TestOverlaysAreTakenByTheAPIServer(t *testing.T) {
	for overlay := range overlays {
		for kind, edit := range map[string]func(string) string{"": asItIs,
			" with the node's network": with("host-network")} {
			t.Run(overlay+kind, func(t *testing.T) {
				defer clearVolumes(t)
				dir := deployment(t, overlay, edit)
				for _, how := range []string{"--dry-run=server", "--dry-run=none"} {
					_, warnings := kubectl(t, "apply", "--server-side", "--force-conflicts", "-k",
						dir, how)
					if warnings != "" && kind == "" {
						t.Errorf("kubectl apply %s: %s", how, warnings)
					}
				}
				requireAdmitted(t)
			})
		}
	}
}

// clearVolumes removes the volumes: another overlay has different ones with the same names. No
// controller removes their finalizers here.
func clearVolumes(t *testing.T) {
	t.Helper()
	ctx, api := context.WithoutCancel(t.Context()), shared.Cluster.Client().CoreV1()
	volumes := must.Get(api.PersistentVolumes().List(ctx, metav1.ListOptions{}))(t)
	for _, v := range volumes.Items {
		v.Finalizers = nil
		_, err := api.PersistentVolumes().Update(ctx, &v, metav1.UpdateOptions{})
		must.OK(t, errors.Join(err,
			api.PersistentVolumes().Delete(ctx, v.Name, metav1.DeleteOptions{})))
	}
	claims := api.PersistentVolumeClaims("hsm-signer")
	claimed := must.Get(claims.List(ctx, metav1.ListOptions{}))(t)
	for _, c := range claimed.Items {
		c.Finalizers = nil
		_, err := claims.Update(ctx, &c, metav1.UpdateOptions{})
		must.OK(t, errors.Join(err, claims.Delete(ctx, c.Name, metav1.DeleteOptions{})))
	}
}

// requireAdmitted creates the StatefulSet's pod, as its controller would.
func requireAdmitted(t *testing.T) {
	t.Helper()
	api := shared.Cluster.Client()
	set := must.Get(api.AppsV1().StatefulSets("hsm-signer").Get(t.Context(), "hsm-signer",
		metav1.GetOptions{}))(t)
	pod := testenv.PodOf(set)
	made, err := api.CoreV1().Pods("hsm-signer").Create(t.Context(), pod, metav1.CreateOptions{})
	must.OK(t, err)
	must.OK(t, shared.Cluster.DeletePod(t.Context(), made))
	if made.Spec.Priority == nil || *made.Spec.Priority < 1_000_000_000 {
		t.Errorf("the pod's priority is %v", made.Spec.Priority)
	}
	// The standard is in force: the same pod as root is not admitted, unless the namespace gave it
	// up.
	if pod.Spec.HostNetwork {
		return
	}
	pod.Spec.SecurityContext.RunAsNonRoot = new(bool)
	if _, err := api.CoreV1().Pods("hsm-signer").Create(t.Context(), pod,
		metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "restricted") {
		t.Errorf("a pod that may run as root: %v", err)
	}
}

// With the component hsm-signer may read pods only in the policy's namespaces. That is enough to be
// ready, to pass check, and to issue.
func TestPodsAreReadInTheNamespacesOfThePolicy(t *testing.T) {
	must.OK(t, shared.Cluster.EnsureNamespace(t.Context(), node.Namespace))
	text, _ := kubectl(t, "kustomize", deployment(t, "softhsm", with("pods-of-policy")))
	var rights, bindings []string
	for _, object := range strings.Split(text, "\n---\n") {
		switch {
		case strings.Contains(object, "kind: RoleBinding\n"):
			bindings = append(bindings, object)
		case !strings.Contains(object, "kind: ClusterRole\n"):
			continue
		}
		rights = append(rights, object)
	}
	file := filepath.Join(t.TempDir(), "bindings.yaml")
	must.OK(t, os.WriteFile(file, []byte(strings.Join(bindings, "\n---\n")), 0o600))
	must.OK(t, shared.Cluster.Apply(t.Context(), []byte(strings.Join(rights, "\n---\n"))))
	t.Cleanup(func() { // the others have the rights of the base
		kubectl(t, "delete", "--ignore-not-found", "-f", file)
		base, err := os.ReadFile("../../deploy/base/rbac.yaml")
		must.OK(t, errors.Join(err, shared.Cluster.Apply(context.WithoutCancel(t.Context()), base)))
	})
	for namespace, want := range map[string]bool{node.Namespace: true, "default": false,
		"": false} {
		if may(t, "hsm-signer", authorizationv1.ResourceAttributes{Verb: "get", Resource: "pods",
			Namespace: namespace}) != want {
			t.Errorf("pods of the namespace %q: %t", namespace, !want)
		}
	}
	startReady(t, ca)
	requireIssues(t)
	checked := command(t, ca, nil, "check").stdout // the exit code depends on the test's cluster
	if strings.Contains(checked, "failed   may get pods") ||
		!strings.Contains(checked, "warning  may get pods in calico-apiserver") {
		t.Errorf("check says: %s", checked)
	}
}

// withMonitoring adds alerts, dashboard and scraping to the overlay.
func withMonitoring(kustomization string) string {
	return with("../monitoring")(kustomization) + "transformers: [../../monitoring/installation]\n"
}

// An overlay with the component has the objects of Prometheus' operator and the dashboard, and is
// otherwise the same.
func TestMonitoringIsAComponent(t *testing.T) {
	for overlay := range overlays {
		without, _ := kubectl(t, "kustomize", deployment(t, overlay, asItIs))
		with, _ := kubectl(t, "kustomize", deployment(t, overlay, withMonitoring))
		for _, object := range strings.Split(with, "\n---\n") {
			if !strings.Contains(without,
				strings.TrimSpace(object)) != (strings.Contains(object, "kind: PodMonitor") ||
				strings.Contains(object, "kind: PrometheusRule") ||
				strings.Contains(object, "name: hsm-signer-dashboard")) {
				t.Errorf("%s: with the component it has:\n%s", overlay, object)
			}
		}
		if strings.Count(with, "apiVersion: monitoring.coreos.com/v1") != 4 {
			t.Errorf("%s lacks what the component should add", overlay)
		}
	}
}

// The signer name is written once, and so is that of its trust bundle. hsm-signer uses the lease
// that its role names.
func TestOverlaySaysItsNamesOnce(t *testing.T) {
	for overlay := range overlays {
		dir := deployment(t, overlay, func(k string) string {
			return with("trust-bundle")(strings.Replace(k, "SIGNER_NAME=example.com/calico",
				"SIGNER_NAME=pki.example.org/mine", 1))
		})
		text, _ := kubectl(t, "kustomize", dir)
		const own = "  resourceNames:\n  - pki.example.org/mine\n"
		for _, want := range []string{own + "  resources:\n  - signers\n  verbs:\n  - approve\n",
			own + "  resources:\n  - signers\n  verbs:\n  - attest\n",
			"  resourceNames:\n  - pki.example.org:mine:hsm-signer\n",
			"SIGNER_NAME: pki.example.org/mine\n", "  resourceNames:\n  - hsm-signer\n"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s lacks %q", overlay, want)
			}
		}
		for _, former := range []string{"example.com/calico", "example.com:calico"} {
			if strings.Contains(text, former) {
				t.Errorf("%s has the example's %s still", overlay, former)
			}
		}
	}
}

// hsm-signer passes the demonstration with only the rights that the overlay gives its service
// account. check names each permission that is removed.
func TestRightsOfTheOverlaySuffice(t *testing.T) {
	defer clearVolumes(t)
	kubectl(t, "apply", "--server-side", "--force-conflicts", "-k",
		deployment(t, "softhsm", asItIs))
	lease := []string{"LEADER_ELECT=true", "LEASE_NAMESPACE=hsm-signer"}
	requireCheck(t, lease, 0)
	startReady(t, ca, lease...)
	d := demo.Demo{
		Cluster: shared.Cluster, SignerName: testenv.SignerName, CACert: ca.CertFile,
		Dir: t.TempDir(),
	}
	must.OK(t, demo.Judge(demo.NewScreen(os.Stdout), must.Get(d.AskAll(t.Context()))(t)))
	// What every service account may do here, as Calico's may, would hide what hsm-signer's may
	// not.
	restrictRequests(t)
	permissions := must.Get(shared.Cluster.Permissions(t.Context()))(t)
	for _, p := range permissions {
		t.Run(p.String(), func(t *testing.T) {
			must.OK(t, p.Revoke(t.Context()))
			defer func() { must.OK(t, p.Restore(t.Context())) }()
			if p.Optional {
				requireCheck(t, lease, 0)
				return
			}
			requireNamed(t, lease, p.String())
		})
	}
}

// restrictRequests allows only the service accounts of the first component's namespace to create
// and read requests, until the end of the test.
func restrictRequests(t *testing.T) {
	t.Helper()
	must.OK(t, shared.Cluster.AllowRequests(t.Context(), node.Namespace))
	t.Cleanup(func() { must.OK(t, shared.Cluster.AllowRequests(context.Background(), "")) })
}

// requireNamed waits until check reports this permission, and no other, as missing.
func requireNamed(t *testing.T, env []string, permission string) {
	t.Helper()
	want := "may " + permission
	var failed []string
	must.Eventually(t, "check to name "+want, func(ctx context.Context) (bool, error) {
		stdout, stderr, code := shared.Command(ctx, ca, env, "check", "--output", "json")
		failed = nil
		for line := range strings.Lines(stdout) {
			var l struct{ Check, Result string }
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				return false, fmt.Errorf("%w in %s%s", err, stdout, stderr)
			}
			if l.Result == "failed" {
				failed = append(failed, l.Check)
			}
		}
		return code == 2 && len(failed) == 1 && failed[0] == want, nil
	})
}

// may reports whether a service account of hsm-signer's namespace may do this.
func may(t *testing.T, account string, act authorizationv1.ResourceAttributes) bool {
	t.Helper()
	review := must.Get(shared.Cluster.Client().AuthorizationV1().SubjectAccessReviews().Create(
		t.Context(), &authorizationv1.SubjectAccessReview{
			Spec: authorizationv1.SubjectAccessReviewSpec{
				User: "system:serviceaccount:hsm-signer:" + account, ResourceAttributes: &act,
			},
		}, metav1.CreateOptions{}))(t)
	return review.Status.Allowed
}
