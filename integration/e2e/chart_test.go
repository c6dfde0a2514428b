package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

const chart = "../../deploy/chart/hsm-signer"

// newHelm returns Helm as the admin of the cluster.
func newHelm(t *testing.T) *testenv.Helm {
	t.Helper()
	h, err := testenv.NewHelm(t.Context(), shared.Cluster.Kubeconfig(), t.TempDir(), os.Stderr)
	must.OK(t, err)
	return h
}

func helm(t *testing.T, h *testenv.Helm, args ...string) string {
	t.Helper()
	out, err := h.Run(context.WithoutCancel(t.Context()), args...) // it is used in clean-up too
	must.OK(t, err)
	return out
}

// chartModes returns the files of values in the chart, by name: one for each way to install it.
func chartModes(t *testing.T) map[string]string {
	t.Helper()
	files := must.Get(filepath.Glob(chart + "/examples/*.yaml"))(t)
	modes := map[string]string{}
	for _, file := range files {
		modes[strings.TrimSuffix(filepath.Base(file), ".yaml")] = file
	}
	if len(modes) < 6 {
		t.Fatalf("%d files of values", len(modes))
	}
	return modes
}

// customKind defines a kind of resource without its schema.
func customKind(group, kind, scope string) string {
	return fmt.Sprintf(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %[3]ss.%[1]s}
spec:
  group: %[1]s
  scope: %[4]s
  names: {kind: %[2]s, listKind: %[2]sList, plural: %[3]ss, singular: %[3]s}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`, group, kind, strings.ToLower(kind), scope)
}

// installOperatorKinds adds the kinds of Prometheus' operator that the chart has, until the end of
// the test. The tests of integration/monitoring apply their schemas.
func installOperatorKinds(t *testing.T) {
	t.Helper()
	const group = "monitoring.coreos.com"
	apply(t, customKind(group, "PodMonitor", "Namespaced")+"---"+
		customKind(group, "PrometheusRule", "Namespaced"))
	kubectl(t, "wait", "--for=condition=Established", "--timeout=60s", "crd",
		"podmonitors.monitoring.coreos.com", "prometheusrules.monitoring.coreos.com")
}

// chartNamespace creates a namespace that admits what the standard admits.
func chartNamespace(t *testing.T, name, standard string) {
	t.Helper()
	must.OK(t, shared.Cluster.EnsureNamespace(t.Context(), name))
	kubectl(t, "label", "--overwrite", "namespace", name,
		"pod-security.kubernetes.io/enforce="+standard, "pod-security.kubernetes.io/warn="+standard)
}

// Helm's linter finds nothing in any mode, and the API server accepts every object of it without a
// warning. The restricted Pod Security standard admits the pods, except in the node's network.
func TestChartIsTakenByTheAPIServer(t *testing.T) {
	h := newHelm(t)
	installOperatorKinds(t)
	must.OK(t, shared.Cluster.EnsureNamespace(t.Context(), "calico-system"))
	for mode, values := range chartModes(t) {
		t.Run(mode, func(t *testing.T) {
			standard := "restricted"
			if mode == "host-network" {
				standard = "privileged"
			}
			chartNamespace(t, "charted", standard)
			args := []string{chart, "--namespace", "charted", "--values", values}
			if opposites[mode].files != nil {
				args = append(args, filesOf(mode, deployment(t, mode, asItIs))...)
			}
			helm(t, h, append([]string{"lint", "--strict"}, args...)...)
			text := helm(t, h, append([]string{"template", "signer"}, args...)...)
			rendered := filepath.Join(t.TempDir(), "rendered.yaml")
			must.OK(t, os.WriteFile(rendered, []byte(text), 0o600))
			_, warnings := kubectl(t, "apply", "--server-side", "--dry-run=server", "-f", rendered)
			if warnings != "" {
				t.Errorf("kubectl apply: %s", warnings)
			}
		})
	}
}

// Values that install something else than what was meant are refused, with the reason.
func TestChartRefusesMistakes(t *testing.T) {
	h := newHelm(t)
	values := chartModes(t)["network-hsm"]
	certificate := "ca.certificate=" + tempFile(t, "ca.crt", someCertificate)
	for set, want := range map[string]string{
		"replcas=3":                             "additional properties 'replcas' not allowed",
		"signerNames=null":                      "signerNames",
		"signerNames[0]=kubernetes.io/kubelet":  "/signerNames/0",
		"image.digest=":                         "image: set image.digest",
		"image.digest=latest":                   "/image/digest",
		"ca.certificate=":                       "ca: no CA certificate",
		"ca.certificate=a certificate":          "ca.certificate: this is no certificate in PEM",
		"ca.configMap=other":                    "certificate and configMap are both set",
		"hsm.module=libpkcs11.so":               "/hsm/module",
		"environment.PKCS11_PIN=secret":         "PKCS11_PIN",
		"pin.secret=":                           "pin: no PIN",
		"podSecurityContext.runAsNonRoot=false": "/podSecurityContext/runAsNonRoot",
		"replicas=3":                            "state.localVolumes: 2 volumes for 3 replicas",
		"heal.podNamespaces=[]":                 "/heal/podNamespaces",
	} {
		args := []string{"template", "signer", chart, "--values", values, "--set", set}
		if !strings.HasPrefix(set, "ca.certificate=") { // a file wins
			args = append(args, "--set-file", certificate)
		}
		_, err := h.Run(t.Context(), args...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--set %s: want %q: %v", set, want, err)
		}
	}
}

// With several CAs the pod has their configuration, of which hsm-signer misses only the files of an
// installation, and the role names the lease of each.
func TestChartInstallsSeveralCAs(t *testing.T) {
	h := newHelm(t)
	values := chartModes(t)["several"]
	all := objects(t, helm(t, h, "template", "hsm-signer", chart, "--values", values))
	environment := all["ConfigMap default hsm-signer-environment"].(map[string]any)["data"]
	want := map[string]any{"LISTEN_ADDRESS": ":8080",
		"CONFIG_FILE": "/etc/hsm-signer/config/config.yaml"}
	if !reflect.DeepEqual(environment, want) {
		t.Errorf("the environment is %v", environment)
	}
	role := must.Get(json.Marshal(all["Role default hsm-signer-lease"]))(t)
	if want := `"resourceNames":["hsm-signer-calico","hsm-signer-pods"]`; !strings.Contains(
		string(role), want) {
		t.Errorf("the role %s lacks %s", role, want)
	}
	data := all["ConfigMap default hsm-signer-config"].(map[string]any)["data"].(map[string]any)
	file := tempFile(t, "config.yaml", data["config.yaml"].(string))
	said := command(t, testenv.CA{}, configuredBy(file), "check").complains(t, 4, "has 4 error(s)")
	if strings.Count(said, "/etc/hsm-signer: no such file or directory\n") != 4 {
		t.Error(said)
	}
	for set, want := range map[string]string{
		"hsm.module=/p11.so":  "hsm: module and tokenLabel are of one CA",
		"heal.enabled=true":   "heal: it is for one CA",
		"configuration=a: [":  "configuration: it is no YAML",
		"signerNames={a.b/c}": "and signerNames grants the rights for [a.b/c]",
		"configuration=":      "hsm.module: no library",
	} {
		_, err := h.Run(t.Context(), "template", "signer", chart, "--values", values, "--set", set)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--set %s: want %q: %v", set, want, err)
		}
	}
}

// An upgrade changes what is installed, a rollback restores it, and nothing remains afterwards but
// the volumes, which hold the journals. Two releases of one name in two namespaces do not collide.
func TestChartIsInstalledUpgradedAndRolledBack(t *testing.T) {
	h := newHelm(t)
	values := chartModes(t)["network-hsm"]
	certificate := "ca.certificate=" + tempFile(t, "ca.crt", someCertificate)
	defer clearVolumes(t)
	for _, namespace := range []string{"charted-a", "charted-b"} {
		chartNamespace(t, namespace, "restricted")
		helm(t, h, "install", "signer", chart, "--namespace", namespace, "--values", values,
			"--set-file", certificate)
	}
	setting := func(name string) string {
		environment := must.Get(shared.Cluster.Client().CoreV1().ConfigMaps("charted-a").Get(
			t.Context(), "signer-hsm-signer-environment", metav1.GetOptions{}))(t)
		return environment.Data[name]
	}
	helm(t, h, "upgrade", "signer", chart, "--namespace", "charted-a", "--values", values,
		"--set-file", certificate, "--set", "environment.LOG_LEVEL=debug,cleanUp.enabled=true")
	if level := setting("LOG_LEVEL"); level != "debug" {
		t.Errorf("after the upgrade LOG_LEVEL is %q", level)
	}
	roles := shared.Cluster.Client().RbacV1().ClusterRoles()
	if _, err := roles.Get(t.Context(), "charted-a-signer-hsm-signer-clean-up",
		metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	helm(t, h, "rollback", "signer", "1", "--namespace", "charted-a")
	if level := setting("LOG_LEVEL"); level != "" {
		t.Errorf("after the rollback LOG_LEVEL is %q", level)
	}
	all := must.Get(roles.List(t.Context(), metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/instance=signer"}))(t)
	var names []string
	for _, role := range all.Items {
		names = append(names, role.Name)
	}
	if want := []string{"charted-a-signer-hsm-signer",
		"charted-b-signer-hsm-signer"}; !slices.Equal(names, want) {
		t.Errorf("the ClusterRoles are %v; want %v", names, want)
	}
	for _, namespace := range []string{"charted-a", "charted-b"} {
		helm(t, h, "uninstall", "signer", "--namespace", namespace)
		kept, _ := kubectl(t, "get", "persistentvolumes", "-l", "app.kubernetes.io/instance=signer",
			"-o", "name")
		if !strings.Contains(kept, namespace+"-signer-hsm-signer-state-0") {
			t.Errorf("after the removal from %s there are the volumes %s", namespace, kept)
		}
	}
}
