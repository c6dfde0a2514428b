package policy

import (
	_ "embed"
	"strings"
)

//go:embed builtin/calico.yaml
var calico string

//go:embed builtin/pods.yaml
var pods string

// enterpriseRules follow those of calico in calico-enterprise.
//
//go:embed builtin/calico-enterprise.rules
var enterpriseRules string

// legacyHead stands in calico-legacy for what stands above "version:" in calico.
const legacyHead = `# The same as "calico" for clusters whose tokens do not name their pod
# (Kubernetes before 1.22). The requester proves to be a live pod by
# asking for exactly one IP address which a live pod of its service account has.
# That is weaker: one pod can ask in the name of another of its service account, and the
# budget is the service account's alone.
`

// calicoLegacy returns the text of calico with the other head and the other binding.
func calicoLegacy() string {
	_, rest, _ := strings.Cut(calico, "\nversion:")
	before, rest, _ := strings.Cut(rest, "    pod: bound")
	_, after, _ := strings.Cut(rest, "\n") // the comment behind it
	return legacyHead + "version:" + before + "    pod: address\n" + after
}

// BuiltIn returns the text of a built-in policy, and false when there is none of that name.
// [BuiltInNames] lists them.
func BuiltIn(name string) ([]byte, bool) {
	switch name {
	case "calico":
		return []byte(calico), true
	case "calico-enterprise":
		return []byte(calico + enterpriseRules), true
	case "calico-legacy":
		return []byte(calicoLegacy()), true
	case "pods":
		return []byte(pods), true
	}
	return nil, false
}

// BuiltInNames lists the built-in policies: "calico" for the open-source components and
// "calico-enterprise" for all, on clusters whose tokens name their pod (Kubernetes 1.22 and later);
// "calico-legacy" for the open-source components on older clusters. Enterprise is apart since it
// names namespaces that open-source clusters do not have: anyone who could make one of those would
// be given its names ([Policy.Namespaces] lists them). "pods" is for pod certificates.
func BuiltInNames() []string {
	return []string{"calico", "calico-enterprise", "calico-legacy", "pods"}
}
