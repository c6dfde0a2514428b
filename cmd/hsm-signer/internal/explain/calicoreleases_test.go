package explain

import (
	"crypto/x509/pkix"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hsm-signer/internal/must"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// The release branches of Calico's operator, release-v1.36 to release-v1.44. Those ship Calico 3.29
// to 3.33 and Calico Enterprise from 3.20 on.
const firstRelease, lastRelease = 36, 44

// A calicoPod is what one of Calico's pods asks for, as the operator's source has it.
type calicoPod struct {
	account     string // of the pod, as NAMESPACE/NAME
	rule        string // the rule that must grant it
	commonName  string // the first of the names if empty
	names       []string
	first, last int // the releases that ask for it
}

// servicesNames returns the names of services, each given as NAME/NAMESPACE.
func servicesNames(services ...string) (names []string) {
	for _, one := range services {
		name, namespace, _ := strings.Cut(one, "/")
		inNamespace := name + "." + namespace
		names = append(names, name, inNamespace, inNamespace+".svc",
			inNamespace+".svc.cluster.local")
	}
	return names
}

// with returns a name followed by the names of services.
func with(name string, services ...string) []string {
	return append([]string{name}, servicesNames(services...)...)
}

// openSourcePods ask on every cluster, enterprisePods on those with Calico Enterprise.
var openSourcePods = []calicoPod{
	{"calico-system/calico-node", "calico-node", "", with("typha-client"), 36, 44},
	{"calico-system/calico-typha", "calico-typha", "", with("typha-server"), 36, 44},
	{"calico-apiserver/calico-apiserver", "calico-apiserver-3.30", "",
		servicesNames("calico-api/calico-apiserver"), 36, 38},
	{"calico-system/calico-apiserver", "calico-apiserver", "",
		servicesNames("calico-api/calico-system"), 39, 44},
}

var enterprisePods = []calicoPod{
	{"calico-system/calico-node", "calico-node-metrics", "",
		servicesNames("calico-node-metrics/calico-system"), 36, 44},
	{"calico-system/calico-typha", "calico-typha-noncluster-host", "",
		with("typha-server-noncluster-host"), 38, 44},
	{"calico-system/calico-kube-controllers", "calico-kube-controllers-metrics", "",
		servicesNames("calico-kube-controllers-metrics/calico-system"), 36, 44},
	{"calico-system/calico-kube-controllers", "calico-kube-controllers-waf-webhook", "",
		servicesNames("tigera-waf-webhook/calico-system"), 43, 44},
	{"tigera-system/tigera-apiserver", "tigera-apiserver", "",
		servicesNames("tigera-api/tigera-system"), 36, 38},
	{"tigera-dpi/tigera-dpi", "tigera-dpi", "", with("typha-client"), 36, 44},

	{"tigera-manager/tigera-manager", "tigera-manager", "", with("localhost"), 36, 39},
	{"tigera-manager/tigera-manager", "tigera-manager", "",
		with("localhost", "tigera-manager/tigera-manager"), 40, 40},
	{"tigera-manager/tigera-manager", "tigera-manager", "",
		servicesNames("tigera-manager/tigera-manager"), 36, 40},
	{"tigera-manager/tigera-manager", "calico-manager-linseed", "",
		servicesNames("tigera-linseed/tigera-elasticsearch"), 36, 40},
	{"calico-system/calico-manager", "calico-manager", "",
		with("localhost", "calico-manager/calico-system", "tigera-manager/tigera-manager"), 41, 44},
	{"calico-system/calico-manager", "calico-manager-internal", "",
		servicesNames("calico-manager/calico-system", "tigera-manager/tigera-manager"), 41, 44},
	{"calico-system/calico-manager", "calico-manager-linseed", "",
		servicesNames("tigera-linseed/tigera-elasticsearch"), 41, 44},

	{"tigera-elasticsearch/tigera-elasticsearch", "tigera-elasticsearch", "",
		servicesNames("tigera-secure-es-http/tigera-elasticsearch"), 36, 44},
	{"tigera-elasticsearch/tigera-secure-es-gateway", "tigera-secure-es-gateway", "",
		servicesNames("tigera-secure-es-http/tigera-elasticsearch",
			"tigera-secure-es-gateway-http/tigera-elasticsearch"), 36, 44},
	{"tigera-elasticsearch/tigera-elasticsearch-metrics", "tigera-elasticsearch-metrics", "",
		servicesNames("tigera-elasticsearch-metrics/tigera-elasticsearch"), 36, 44},
	{"tigera-elasticsearch/tigera-linseed", "tigera-linseed", "",
		servicesNames("tigera-linseed/tigera-elasticsearch"), 36, 44},
	{"tigera-elasticsearch/tigera-linseed", "tigera-linseed-token", "",
		with("tigera-secure-linseed-token-tls"), 36, 44},
	{"tigera-kibana/tigera-kibana", "tigera-kibana", "tigera-secure-es-http",
		servicesNames("tigera-secure-kb-http/tigera-kibana"), 36, 44},
	{"tigera-fluentd/fluentd-node", "fluentd-node", "", with("tigera-fluentd-prometheus-tls"),
		36, 38},
	{"tigera-fluentd/fluentd-node", "fluentd-node", "",
		with("tigera-fluentd-prometheus-tls", "fluentd-http-input/tigera-fluentd"), 39, 43},
	{"calico-system/calico-fluent-bit", "calico-fluent-bit", "",
		with("calico-fluent-bit-tls", "calico-fluent-bit-http-input/calico-system"), 44, 44},
	{"tigera-prometheus/prometheus", "prometheus", "",
		servicesNames("prometheus-http-api/tigera-prometheus"), 36, 44},
	{"tigera-prometheus/prometheus", "prometheus-client", "",
		with("calico-node-prometheus-client-tls"), 36, 44},

	{"tigera-compliance/tigera-compliance-controller", "tigera-compliance", "", with("localhost"),
		36, 43},
	{"tigera-compliance/tigera-compliance-reporter", "tigera-compliance", "", with("localhost"),
		36, 43},
	{"tigera-compliance/tigera-compliance-snapshotter", "tigera-compliance", "", with("localhost"),
		36, 43},
	{"tigera-compliance/tigera-compliance-benchmarker", "tigera-compliance", "", with("localhost"),
		36, 43},
	{"tigera-compliance/tigera-compliance-server", "tigera-compliance-server", "",
		servicesNames("compliance/tigera-compliance"), 36, 43},

	{"tigera-dex/tigera-dex", "tigera-dex", "", servicesNames("tigera-dex/tigera-dex"), 36, 44},
	{"tigera-packetcapture/tigera-packetcapture", "tigera-packetcapture", "",
		servicesNames("tigera-packetcapture/tigera-packetcapture"), 36, 44},
	{"tigera-intrusion-detection/intrusion-detection-controller", "intrusion-detection-controller",
		"", servicesNames("intrusion-detection-tls/tigera-intrusion-detection"), 36, 44},
	{"tigera-policy-recommendation/tigera-policy-recommendation", "tigera-policy-recommendation",
		"", with("policy-recommendation-tls"), 36, 39},
	{"calico-system/tigera-policy-recommendation", "tigera-policy-recommendation", "",
		with("policy-recommendation-tls"), 40, 44},
}

// request writes what the pod asks for to a file: the subject and the extensions of Calico's init
// container.
func (pod calicoPod) request(t *testing.T, dir string) string {
	t.Helper()
	subject := pkix.Name{
		Country: []string{"US"}, Province: []string{"California"},
		Locality:     []string{"San Francisco"},
		Organization: []string{"Tigera"}, OrganizationalUnit: []string{"Engineering"},
		CommonName: pod.subject(),
	}
	text := pkcs10test.Request{Subject: subject, DNSNames: pod.names,
		IPs: []netip.Addr{netip.MustParseAddr("10.65.0.7")}}.PEM(t)
	file := filepath.Join(dir, "request.csr")
	must.OK(t, os.WriteFile(file, text, 0o600))
	return file
}

func (pod calicoPod) subject() string {
	if pod.commonName != "" {
		return pod.commonName
	}
	return pod.names[0]
}

// verdict is what "policy explain" prints of the pod's request.
func (pod calicoPod) verdict(t *testing.T, profile, file string) string {
	t.Helper()
	out, stderr, _ := command(t, "policy", "explain", file, "--policy", profile, "--pod", "p-1",
		"--pod-ip", "10.65.0.7",
		"--as", "system:serviceaccount:"+strings.Replace(pod.account, "/", ":", 1))
	return strings.TrimPrefix(out, file+": ") + stderr
}

// Each release of Calico gets every certificate that its pods ask for, and no rule is without a
// release that needs it.
func TestEveryReleaseCalico(t *testing.T) {
	needed := map[string]bool{}
	for release := firstRelease; release <= lastRelease; release++ {
		t.Run("v1."+strconv.Itoa(release), func(t *testing.T) {
			for profile, pods := range map[string][]calicoPod{"calico": openSourcePods,
				"calico-enterprise": slices.Concat(openSourcePods, enterprisePods)} {
				for _, pod := range pods {
					if release < pod.first || release > pod.last {
						continue
					}
					needed[profile+" "+pod.rule] = true
					names := "DNS:" + strings.Join(pod.names, ", DNS:")
					want := "granted by rule " + pod.rule + ": CN=" + strconv.Quote(pod.subject()) +
						", " + names + ", IP:10.65.0.7;"
					if got := pod.verdict(t, profile,
						pod.request(t, t.TempDir())); !strings.HasPrefix(got, want) {
						t.Errorf("%s: %s asks for %v: %s", profile, pod.account, pod.names, got)
					}
				}
			}
		})
	}
	for _, profile := range []string{"calico", "calico-enterprise"} {
		text, _ := policy.BuiltIn(profile)
		p, err := policy.Parse(text, policy.Options{ClusterDomain: "cluster.local"})
		must.OK(t, err)
		for _, rule := range p.Rules() {
			if !needed[profile+" "+rule] {
				t.Errorf("%s: no release needs the rule %s", profile, rule)
			}
		}
	}
}
