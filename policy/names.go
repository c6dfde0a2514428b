package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"hsm-signer/policy/pkcs10"
)

// A nameSource is an entry of a rule's list of names.
type nameSource interface {
	// allows tells whether the requester may have the name.
	allows(name string, requester ServiceAccount) bool
	// describe lists the names, for an operator.
	describe(requester ServiceAccount) []string
}

// literal is a name that is written in the rule.
type literal string

func (l literal) allows(name string, _ ServiceAccount) bool { return name == string(l) }
func (l literal) describe(ServiceAccount) []string          { return []string{string(l)} }

// service is a service under each name that the cluster's DNS gives it.
type service struct {
	name, namespace string // namespace: the requester's if empty
	clusterDomain   string
}

func (s service) allows(name string, requester ServiceAccount) bool {
	return slices.Contains(s.describe(requester), name)
}

func (s service) describe(requester ServiceAccount) []string {
	namespace := cmp.Or(s.namespace, requester.Namespace)
	if namespace == "" {
		return nil // the requester is no service account, and so in no namespace
	}
	inNamespace := s.name + "." + namespace
	return []string{s.name, inNamespace, inNamespace + ".svc", inNamespace + ".svc." + s.clusterDomain}
}

// pattern is a name in which "*" stands for one whole label, and "**", as the first
// label, for one or more.
type pattern string

func (p pattern) describe(ServiceAccount) []string { return []string{string(p)} }

func (p pattern) allows(name string, _ ServiceAccount) bool {
	if isReserved(name) {
		return false
	}
	want, labels := strings.Split(string(p), "."), strings.Split(name, ".")
	if want[0] == "**" {
		if len(labels) < len(want) {
			return false
		}
		want, labels = want[1:], labels[len(labels)-len(want)+1:]
	}
	return slices.EqualFunc(want, labels, func(w, label string) bool { return w == "*" || w == label })
}

// isReserved tells whether a name is one that a pattern never allows: the API server's own (the
// service kubernetes in the namespace default), and this host's.
func isReserved(name string) bool {
	return name == "localhost" || name == "kubernetes" || name == "kubernetes.default" || strings.HasPrefix(name, "kubernetes.default.")
}

// checkPattern says what is wrong with a pattern, or nothing. Its labels that are no wildcards
// are those of a DNS name.
func checkPattern(p string) string {
	labels := strings.Split(p, ".")
	for i, label := range labels {
		switch {
		case label == "**" && i > 0:
			return "has ** behind the first label"
		case label == "*" || label == "**":
			labels[i] = "x"
		case strings.Contains(label, "*"):
			return "has a wildcard that is not a whole label"
		}
	}
	return pkcs10.CheckDNSName(strings.Join(labels, "."))
}

func anyAllows(sources []nameSource, name string, requester ServiceAccount) bool {
	return slices.ContainsFunc(sources, func(s nameSource) bool { return s.allows(name, requester) })
}

func describeAll(sources []nameSource, requester ServiceAccount) []string {
	var all []string
	for _, source := range sources {
		all = append(all, source.describe(requester)...)
	}
	return all
}

// addresses are the IP addresses that a rule allows.
type addresses struct {
	pod      bool // the requester's pod's own
	literals []netip.Addr
	patterns []netip.Prefix
}

// allow tells whether the rule itself names the address. Special ones it must name outright.
func (a addresses) allow(ip netip.Addr) bool {
	return slices.Contains(a.literals, ip) ||
		!isSpecial(ip) && slices.ContainsFunc(a.patterns, func(p netip.Prefix) bool { return p.Contains(ip) })
}

func (a addresses) describe(pod *Pod) []string {
	var all []string
	if a.pod && pod != nil {
		all = texts(pod.IPs)
	}
	return slices.Concat(all, texts(a.literals), texts(a.patterns))
}

// texts turns values into strings.
func texts[T interface{ String() string }](values []T) []string {
	all := make([]string, 0, len(values))
	for _, value := range values {
		all = append(all, value.String())
	}
	return all
}

// isSpecial tells whether an address can never be a pod's own: loopback,
// link-local (where cloud metadata services live), multicast, broadcast, unspecified.
func isSpecial(ip netip.Addr) bool {
	return !ip.IsGlobalUnicast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
