package policy

import (
	"slices"

	"hsm-signer/policy/pkcs10"
)

// A podName is a kind of DNS names that a pod has by what else is in its namespace
// (grant.podNames).
type podName string

const (
	// podServices are the names of each Service that selects the pod.
	podServices podName = "services"
	// podHostname is the pod's own name, which DNS has below a headless Service.
	podHostname podName = "hostname"
)

// A Service is one that selects a pod.
type Service struct {
	Name     string
	Headless bool // DNS has the hostnames of its pods
}

// liveNames returns the DNS names of these kinds that the pod has. Each ends with its namespace and
// "svc": shorter ones, which search lists also resolve, may be another namespace's or a public
// domain.
func (p *Pod) liveNames(kinds []podName, clusterDomain string) []string {
	var all []string
	add := func(name string) {
		name += "." + p.Namespace + ".svc"
		if !isReserved(name) {
			all = append(all, name, name+"."+clusterDomain)
		}
	}
	for _, s := range p.Services {
		if slices.Contains(kinds, podServices) {
			add(s.Name)
		}
		if slices.Contains(kinds, podHostname) && s.Headless && s.Name == p.Subdomain &&
			p.Hostname != "" {
			add(p.Hostname + "." + s.Name)
		}
	}
	return all
}

// judgePodNames adds the names that the live pod has. A pod that has none yet may come to have
// some.
func (u *rule) judgePodNames(f *finding) {
	if f.pod.Services == nil {
		f.missing = "a look-up of the Services that select the pod " + f.pod.Name
		return
	}
	for _, name := range f.pod.liveNames(u.podNames, u.clusterDomain) {
		if !slices.Contains(f.names.dnsNames, name) {
			f.names.dnsNames = append(f.names.dnsNames, name)
		}
	}
	switch n := len(f.names.dnsNames) + len(f.names.uris); {
	case n == 0:
		f.missing = "a Service that selects the pod " + f.pod.Name
	case n > pkcs10.MaxNames:
		f.refuse(NameNotAllowed, "grant.podNames", nil, "gives %d names; a certificate has %d at "+
			"most", n, pkcs10.MaxNames)
	}
}

// compilePodNames returns the kinds of names, of which there may be none.
func (c *compiler) compilePodNames() []podName {
	if len(c.Grant.PodNames) == 0 {
		return nil
	}
	return compileWords(c, "grant.podNames", c.Grant.PodNames, []podName{podServices, podHostname})
}

// podNameShapes are the names that pods may have, with "*" for what depends on the pod.
func (u *rule) podNameShapes() []string {
	if len(u.podNames) == 0 {
		return nil
	}
	anyPod := Pod{Namespace: "*", Hostname: "*", Subdomain: "*", Services: []Service{{"*", true}}}
	return anyPod.liveNames(u.podNames, u.clusterDomain)
}

// PodQuery returns the query to look up before [Policy.Decide], with the Services of the pod if a
// rule that applies needs them. It returns false if the decision depends on no pod. A request to
// which no rule applies is not even parsed, except one for a pod certificate: its claim to be for
// that pod is checked first.
func (p *Policy) PodQuery(r *Request) (PodQuery, bool) {
	if r.PodCertificate == nil && !p.appliesTo(r) {
		return PodQuery{}, false
	}
	query, needed := r.PodQuery()
	query.Services = needed && slices.ContainsFunc(p.rules, func(u rule) bool {
		return len(u.podNames) > 0 && u.from.appliesTo(r)
	})
	return query, needed
}

// NeedsServices reports whether a rule depends on the Services of pods.
func (p *Policy) NeedsServices() bool {
	return slices.ContainsFunc(p.rules, func(u rule) bool { return len(u.podNames) > 0 })
}
