package monitoring_test

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"sigs.k8s.io/yaml"
)

// podMaker is the object whose pods a PodMonitor must select.
type podMaker struct {
	Kind     string
	Metadata struct{ Namespace string }
	Spec     struct {
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     struct {
				Containers []struct{ Ports []struct{ Name string } }
			}
		}
	}
}

// Each PodMonitor selects its pods and their port with /metrics.
func TestPodMonitorsFindThePods(t *testing.T) {
	for monitor, pods := range map[string]struct{ file, kind string }{
		"podmonitor.yaml":      {"base/statefulset.yaml", "StatefulSet"},
		"podmonitor-heal.yaml": {"components/heal/deployment.yaml", "Deployment"},
	} {
		text, err := os.ReadFile("../../deploy/" + pods.file)
		if err != nil {
			t.Fatal(err)
		}
		var maker podMaker
		first, _, _ := strings.Cut(string(text), "\n---\n")
		if err := yaml.Unmarshal([]byte(first), &maker); err != nil || maker.Kind != pods.kind {
			t.Fatalf("a %s: %v", maker.Kind, err)
		}
		requireFinds(t, "../../deploy/monitoring/"+monitor, maker)
	}
}

func requireFinds(t *testing.T, file string, maker podMaker) {
	t.Helper()
	var monitor monitoringv1.PodMonitor
	read(t, file, &monitor)
	pod := maker.Spec.Template
	if monitor.APIVersion != operatorAPI || monitor.Kind != "PodMonitor" ||
		monitor.Namespace != maker.Metadata.Namespace {
		t.Errorf("a %s %s in %s", monitor.APIVersion, monitor.Kind, monitor.Namespace)
	}
	if selected := monitor.Spec.Selector; len(selected.MatchLabels) == 0 ||
		len(selected.MatchExpressions) > 0 ||
		!maps.Equal(selected.MatchLabels, pod.Metadata.Labels) {
		t.Errorf("%s selects %v; the pods have %v", file, selected, pod.Metadata.Labels)
	}
	if len(monitor.Spec.PodMetricsEndpoints) != 1 {
		t.Fatalf("%s: %d endpoints", file, len(monitor.Spec.PodMetricsEndpoints))
	}
	endpoint := monitor.Spec.PodMetricsEndpoints[0]
	ports := pod.Spec.Containers[0].Ports
	if endpoint.Port == nil ||
		!slices.ContainsFunc(ports,
			func(p struct{ Name string }) bool { return p.Name == *endpoint.Port }) ||
		endpoint.Path != "/metrics" {
		t.Errorf("%s scrapes %+v; the pod has the ports %v", file, endpoint, ports)
	}
}
