package policy

import "net/netip"

// A Pod is what the API server says of a live pod.
type Pod struct {
	Namespace, Name, UID string
	ServiceAccount       string
	Node                 string
	IPs                  []netip.Addr
	HostNetwork          bool // its addresses are its node's
	Finished             bool // its phase is Succeeded or Failed
	Deleting             bool // it has a deletion timestamp
	Mirror               bool // it mirrors a static pod of its node
	// Started: its volumes were mounted, so it has had everything that they need.
	Started bool

	// The UIDs of its service account and of its node; empty if there is none of that name now, or
	// the query has no [PodQuery.Identity].
	ServiceAccountUID, NodeUID string

	// Services are those that select it; nil if they were not looked up ([PodQuery.Services]).
	Services            []Service
	Hostname, Subdomain string // as its spec has them
}

// A PodQuery selects the pods that a decision depends on: the one called Name, or, if Name is
// empty, all pods of the service account that have the IP address.
type PodQuery struct {
	Namespace      string
	Name           string
	ServiceAccount string
	IP             netip.Addr
	// Identity: the UIDs of the service account and of the node are to be looked up too.
	Identity bool
	// Services: the Services that select the pods are to be looked up too.
	Services bool
}

// PodQuery returns the query to look up before [Policy.Decide], whatever the policy; see
// [Policy.PodQuery]. It returns false if the decision depends on no pod. It parses the request.
func (r *Request) PodQuery() (PodQuery, bool) {
	account, ok := r.Requester.ServiceAccount()
	if !ok {
		return PodQuery{}, false
	}
	if r.parse(); r.asked == nil || len(r.faults) > 0 {
		return PodQuery{}, false // it is refused whatever the pod is
	}
	if claim := r.PodCertificate; claim != nil {
		return PodQuery{Namespace: claim.Pod.Namespace, Name: claim.Pod.Name, Identity: true}, true
	}
	if pod, ok := r.Requester.pod(); ok {
		return PodQuery{Namespace: account.Namespace, Name: pod.name}, true
	}
	if len(r.asked.IPAddresses) != 1 {
		return PodQuery{}, false
	}
	return PodQuery{
		Namespace: account.Namespace, ServiceAccount: account.Name, IP: r.asked.IPAddresses[0],
	}, true
}

// Facts are what a look-up found. Only [PodQuery.Found] makes them, so "not looked up" and "no such
// pod" are different values. The zero value says that nothing was looked up.
type Facts struct {
	query PodQuery // the one that was looked up
	pods  []Pod
}

// Found returns the facts of a look-up: the pods that the query selects, none if there are none.
// They must have been read after the request was.
func (q PodQuery) Found(pods ...Pod) Facts { return Facts{query: q, pods: pods} }

// PodStarted reports whether a pod was found, and its volumes were mounted.
func (f Facts) PodStarted() bool { return len(f.pods) > 0 && f.pods[0].Started }

// answer reports whether the facts are what the request's query found, or the request has no query.
func (f Facts) answer(r *Request) bool {
	query, needed := r.PodQuery()
	query.Services = f.query.Services // a rule that needs them waits for them
	return !needed || f.query == query
}
