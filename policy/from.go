package policy

import (
	"maps"
	"slices"
	"strings"
)

// from says to which requesters a rule applies: anyone in one of the accounts or users, or anyone
// at all where the rule names groups alone; and in one of the groups where it names any, and with
// one of the values of each extra.
type from struct {
	accounts []ServiceAccount // "*" stands for any namespace, or for any name
	users    []string         // a "*" at the end stands for any ending
	groups   []string
	extra    map[string][]string
	pod      podBinding
	// podCertificates: it applies to pod certificates, and to nothing else.
	podCertificates bool
	// annotations are the keys that a pod certificate's request may have.
	annotations []string
}

// podBinding says how a requester proves to be a live pod of its service account.
type podBinding string

const (
	// podBound: its token is bound to the pod and names it.
	podBound podBinding = "bound"
	// podAddress: its token names no pod (clusters before Kubernetes 1.22); a live pod of the
	// service account has the IP address that is asked for.
	podAddress podBinding = "address"
	// podNone: it need not be a pod.
	podNone podBinding = "none"
)

var podBindings = []podBinding{podBound, podAddress, podNone}

func (f from) appliesTo(r *Request) bool {
	if f.podCertificates != (r.PodCertificate != nil) {
		return false
	}
	named := len(f.accounts)+len(f.users) == 0
	if account, ok := r.Requester.ServiceAccount(); ok {
		named = named || slices.ContainsFunc(f.accounts, func(a ServiceAccount) bool {
			return a.matches(account)
		})
	}
	named = named || slices.ContainsFunc(f.users, func(u string) bool {
		return matchesUser(u, r.Requester.Username)
	})
	return named && (len(f.groups) == 0 || anyOf(f.groups, r.Requester.Groups)) &&
		f.extraAppliesTo(r)
}

func (f from) extraAppliesTo(r *Request) bool {
	for key, values := range f.extra {
		if !anyOf(values, r.Requester.Extra[key]) {
			return false
		}
	}
	return true
}

// anyOf reports whether any of the wanted values is there.
func anyOf(wanted, there []string) bool {
	return slices.ContainsFunc(wanted, func(w string) bool { return slices.Contains(there, w) })
}

// matches reports whether a, in which "*" stands for any, names the account.
func (a ServiceAccount) matches(account ServiceAccount) bool {
	return (a.Namespace == "*" || a.Namespace == account.Namespace) &&
		(a.Name == "*" || a.Name == account.Name)
}

func matchesUser(want, username string) bool {
	prefix, open := strings.CutSuffix(want, "*")
	return want == username || open && strings.HasPrefix(username, prefix)
}

// describe lists the rule's requesters.
func (f from) describe() []string {
	all := slices.Concat(texts(f.accounts), f.users)
	for _, group := range f.groups {
		all = append(all, "group "+group)
	}
	for _, key := range slices.Sorted(maps.Keys(f.extra)) {
		all = append(all, "extra "+key+" "+strings.Join(f.extra[key], " or "))
	}
	return all
}
