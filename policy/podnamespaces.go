package policy

import (
	"slices"
	"strings"
)

// PodNamespaces returns the namespaces in which the pods of requesters may be that a rule speaks
// of. It returns false if they may be in any, since a rule names service accounts by a pattern, or
// anybody.
func (p *Policy) PodNamespaces() (namespaces []string, bounded bool) {
	for _, r := range p.rules {
		if !r.from.boundsNamespaces() {
			return nil, false
		}
		namespaces = append(namespaces, r.from.namespaces()...)
	}
	slices.Sort(namespaces)
	return slices.Compact(namespaces), true
}

// boundsNamespaces reports whether every service account that the rule names is in a namespace
// that it writes out.
func (f from) boundsNamespaces() bool {
	if len(f.accounts)+len(f.users) == 0 { // one of the groups is enough
		return len(f.groups) > 0 && !slices.ContainsFunc(f.groups, func(g string) bool {
			return !strings.HasPrefix(g, allAccountsGroup+":")
		})
	}
	if slices.ContainsFunc(f.accounts, func(a ServiceAccount) bool { return a.Namespace == "*" }) {
		return false
	}
	return !slices.ContainsFunc(f.users, func(user string) bool {
		prefix, open := strings.CutSuffix(user, "*")
		rest, ofAccounts := strings.CutPrefix(prefix, serviceAccountPrefix)
		_, _, whole := strings.Cut(rest, ":")
		return open && (ofAccounts && !whole || strings.HasPrefix(serviceAccountPrefix, prefix))
	})
}
