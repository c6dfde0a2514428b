package e2e

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"hsm-signer/integration/must"
)

// opposites are the overlays, with the files of values that install the same.
var opposites = map[string]struct {
	files   map[string]string // of the values, whose content is in the overlay's directory
	renamed []string          // pairs: volumes and claims in the overlay, in the chart
}{
	"network-hsm": {
		map[string]string{`ca.certificate`: "ca.crt", `hsm.config.client\.conf`: "client.conf"}, nil},
	"p11-kit": {
		map[string]string{`ca.certificate`: "ca.crt"},
		[]string{`claimName: hsm$`, `claimName: hsm-signer-hsm`, `hsm-signer-socket`,
			`hsm-signer-hsm`, `^(  (?:  )?name:) hsm$`, `$1 hsm-signer-hsm`}},
	"softhsm": {
		map[string]string{`hsm.config.softhsm\.conf`: "softhsm.conf",
			`hsm.config.ceremony\.sh`: "ceremony.sh"},
		[]string{`claimName: token$`, `claimName: hsm-signer-token`, `^(  (?:  )?name:) token$`,
			`$1 hsm-signer-token`}},
}

// filesOf returns the arguments of Helm for the files in the overlay's directory.
func filesOf(overlay, dir string) (args []string) {
	for value, file := range opposites[overlay].files {
		args = append(args, "--set-file", value+"="+filepath.Join(dir, file))
	}
	return args
}

// everything adds each component that an overlay can have.
func everything(kustomization string) string {
	return with("heal", "clean-up", "pod-certificates", "trust-bundle", "pods-of-policy",
		"host-network")(withMonitoring(kustomization))
}

// The chart and kustomize install the same objects, apart from labels and from names that the test
// lists.
func TestChartInstallsWhatKustomizeDoes(t *testing.T) {
	h := newHelm(t)
	for overlay, opposite := range opposites {
		for kind, variant := range map[string]struct {
			edit func(string) string
			set  string
		}{
			"": {asItIs, ""},
			" with ConfigMaps": {with("trust-bundle-configmaps"),
				"trustBundle.enabled=true,trustBundle.namespaces={default}"},
			" with everything": {everything, "monitoring.enabled=true,heal.enabled=true," +
				"cleanUp.enabled=true,podCertificates.enabled=true," +
				"trustBundle.enabled=true,podNamespaces={calico-system},hostNetwork=true"},
		} {
			t.Run(overlay+kind, func(t *testing.T) {
				dir := deployment(t, overlay, variant.edit)
				args := []string{"template", "hsm-signer", chart, "--namespace", "hsm-signer",
					"--values", chartModes(t)[overlay], "--set", variant.set}
				args = append(args, filesOf(overlay, dir)...)
				text, _ := kubectl(t, "kustomize", dir)
				want := objects(t, renamed(text, opposite.renamed))
				delete(want, "Namespace  hsm-signer") // Helm's --create-namespace makes it
				requireSame(t, objects(t, helm(t, h, args...)), want)
			})
		}
	}
}

// renamed replaces the names in what kustomize prints, and removes the hashes of generated names.
func renamed(text string, pairs []string) string {
	text = regexp.MustCompile(`(?m)(name: [a-z-]+)-[2456789bcdfghkmt]{10}$`).ReplaceAllString(text,
		"$1")
	for pair := range slices.Chunk(pairs, 2) {
		text = regexp.MustCompile("(?m)"+pair[0]).ReplaceAllString(text, pair[1])
	}
	return text
}

// objects returns the objects by kind, namespace and name, without what may differ: labels,
// annotations, and the order of lists whose elements have names.
func objects(t *testing.T, text string) map[string]any {
	t.Helper()
	all := map[string]any{}
	for document := range strings.SplitSeq(text, "\n---\n") {
		var object map[string]any
		must.OK(t, yaml.Unmarshal([]byte(document), &object))
		if object == nil {
			continue
		}
		metadata := object["metadata"].(map[string]any)
		namespace, _ := metadata["namespace"].(string)
		name := object["kind"].(string) + " " + namespace + " " + metadata["name"].(string)
		if all[name] != nil {
			t.Errorf("two objects are %s", name)
		}
		all[name] = normalize(object)
	}
	return all
}

// normalize removes what may differ.
func normalize(value any) any {
	switch v := value.(type) {
	case map[string]any:
		delete(v, "labels")
		delete(v, "annotations")
		delete(v, "app.kubernetes.io/instance")
		for key := range v {
			v[key] = normalize(v[key])
		}
		if len(v) == 0 {
			return nil
		}
	case []any:
		for i := range v {
			v[i] = normalize(v[i])
		}
		slices.SortStableFunc(v, func(a, b any) int {
			return strings.Compare(elementName(a), elementName(b))
		})
	}
	return value
}

// elementName returns the name of a list's element, or nothing.
func elementName(element any) string {
	object, _ := element.(map[string]any)
	name, _ := object["name"].(string)
	path, _ := object["mountPath"].(string)
	return name + path
}

func requireSame(t *testing.T, got, want map[string]any) {
	t.Helper()
	names := slices.Sorted(maps.Keys(got))
	if wanted := slices.Sorted(maps.Keys(want)); !slices.Equal(names, wanted) {
		t.Errorf("the chart has\n%s\nand kustomize\n%s", strings.Join(names, "\n"),
			strings.Join(wanted, "\n"))
	}
	for name, object := range got {
		a, errA := json.MarshalIndent(object, "", " ")
		b, errB := json.MarshalIndent(want[name], "", " ")
		if errA != nil || errB != nil || want[name] != nil && string(a) != string(b) {
			t.Errorf("%s: the chart has\n%s\nand kustomize\n%s", name, a, b)
		}
	}
}
