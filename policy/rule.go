package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"hsm-signer/policy/pkcs10"
)

// A rule says who may ask, and for what. It is the compiled form of an entry
// under "rules" in a policy file.
type rule struct {
	name        string
	from        from
	commonNames []nameSource // empty: one of the names asked for
	dnsNames    []nameSource
	podIPs      bool
	keys        []pkcs10.KeyType
	usages      []Usage
	lifetime    time.Duration
}

// from says whom a rule speaks of.
type from struct {
	accounts []ServiceAccount
	pod      podBinding
}

// podBinding says how a requester proves to be a live pod of its service account.
type podBinding string

const (
	// podBound: its token is bound to the pod and names it.
	podBound podBinding = "bound"
	// podAddress: its token names no pod (clusters before Kubernetes 1.22); a live
	// pod of the service account has the IP address that is asked for.
	podAddress podBinding = "address"
)

func (f from) speaksOf(r *Request) bool {
	account, ok := r.Requester.ServiceAccount()
	return ok && slices.Contains(f.accounts, account)
}

// A nameSource gives the names that a rule allows to a requester.
type nameSource interface {
	names(requester ServiceAccount) []string
}

// literal is a name that is written in the rule.
type literal string

func (l literal) names(ServiceAccount) []string { return []string{string(l)} }

// service is a service under each name that the cluster's DNS gives it.
type service struct {
	name, namespace string // namespace: the requester's if empty
	clusterDomain   string
}

func (s service) names(requester ServiceAccount) []string {
	inNamespace := s.name + "." + cmp.Or(s.namespace, requester.Namespace)
	return []string{s.name, inNamespace, inNamespace + ".svc", inNamespace + ".svc." + s.clusterDomain}
}

func allNames(sources []nameSource, requester ServiceAccount) []string {
	var all []string
	for _, source := range sources {
		all = append(all, source.names(requester)...)
	}
	return all
}

// A finding is what one rule has to say of one request: granted when it has
// neither reasons nor anything missing.
type finding struct {
	rule    *rule
	reasons []Reason
	missing string
}

func (f *finding) better(than *finding) bool {
	if len(f.reasons) != len(than.reasons) {
		return len(f.reasons) < len(than.reasons)
	}
	return f.missing == "" && than.missing != ""
}

func (f *finding) refuse(code Code, field string, allowed []string, format string, args ...any) {
	f.reasons = append(f.reasons, Reason{
		Code: code, Rule: f.rule.name, Field: field, Message: fmt.Sprintf(format, args...), Allowed: allowed,
	})
}

// judge collects every reason for which the rule does not grant the request.
// The rule must speak of the requester.
func (u *rule) judge(r *Request) finding {
	f := finding{rule: u}
	account, _ := r.Requester.ServiceAccount()
	pod := u.judgePod(r, account, &f)
	u.judgeNames(r, account, &f)
	u.judgeIPs(r, pod, &f)
	u.judgeKey(r, &f)
	u.judgeUsages(r, &f)
	return f
}

// judgePod returns the live pod that asks, or nil when it is missing or there is
// a reason against it. A token that names its pod binds, whatever the rule says.
func (u *rule) judgePod(r *Request, account ServiceAccount, f *finding) *Pod {
	bound, ok := r.Requester.pod()
	switch {
	case ok:
		return judgeBoundPod(r, bound, account, f)
	case u.from.pod == podAddress:
		return judgePodByAddress(r, account, f)
	}
	f.refuse(PodNotVerified, "requester", nil, "must use a token that is bound to its pod: the request carries no single %s and %s", extraPodName, extraPodUID)
	return nil
}

func judgeBoundPod(r *Request, bound boundPod, account ServiceAccount, f *finding) *Pod {
	if len(r.Pods) == 0 {
		f.missing = "the pod " + account.Namespace + "/" + bound.name
		return nil
	}
	pod := &r.Pods[0]
	fault := pod.faultAs(account)
	switch {
	case fault != "":
	case pod.UID != bound.uid:
		fault = "has another UID than the requester's token: it is a later pod of the same name"
	case bound.node != "" && pod.Node != bound.node:
		fault = "runs on another node than the requester's token says"
	default:
		return pod
	}
	f.refuse(PodNotVerified, "pod", nil, "%s %s", pod.Name, fault)
	return nil
}

func judgePodByAddress(r *Request, account ServiceAccount, f *finding) *Pod {
	if len(r.asked.IPAddresses) != 1 {
		f.refuse(PodNotVerified, "request.subjectAltName", nil, "must hold exactly one IP address, the pod's own, since the requester's token names no pod")
		return nil
	}
	for i := range r.Pods {
		if slices.Contains(r.Pods[i].IPs, r.asked.IPAddresses[0]) && r.Pods[i].faultAs(account) == "" {
			return &r.Pods[i]
		}
	}
	f.missing = "a live pod of the service account " + account.String() + " with the IP address " + r.asked.IPAddresses[0].String()
	return nil
}

// faultAs says why the pod is not a live one of the service account, or nothing.
func (p *Pod) faultAs(account ServiceAccount) string {
	switch {
	case p.Namespace != account.Namespace || p.ServiceAccount != account.Name:
		return "does not run as " + account.String()
	case p.Deleting:
		return "is being deleted"
	case p.Finished:
		return "has finished"
	}
	return ""
}

func (u *rule) judgeNames(r *Request, account ServiceAccount, f *finding) {
	allowed := allNames(u.dnsNames, account)
	for _, name := range r.asked.DNSNames {
		if !slices.Contains(allowed, name) {
			f.refuse(NameNotAllowed, "request.dnsNames", allowed, "%s is not a name of %s", pkcs10.Quote(name), account)
		}
	}
	if len(r.asked.DNSNames) == 0 && len(r.asked.IPAddresses) == 0 {
		f.refuse(NameNotAllowed, "request.subjectAltName", allowed, "is missing; ask for at least one DNS name or IP address")
	}
	cn := r.asked.CommonName
	if cn == "" {
		return
	}
	if len(u.commonNames) > 0 {
		if own := allNames(u.commonNames, account); !slices.Contains(own, cn) {
			f.refuse(NameNotAllowed, "request.commonName", own, "%s is not a common name of %s", pkcs10.Quote(cn), account)
		}
		return
	}
	if !slices.Contains(allowed, cn) || !slices.Contains(r.asked.DNSNames, cn) {
		f.refuse(NameNotAllowed, "request.commonName", allowed, "%s must be one of the requested DNS names, and a name of %s", pkcs10.Quote(cn), account)
	}
}

func (u *rule) judgeIPs(r *Request, pod *Pod, f *finding) {
	asked := r.asked.IPAddresses
	switch {
	case len(asked) == 0:
		return
	case !u.podIPs:
		f.refuse(NameNotAllowed, "request.ipAddresses", nil, "are not allowed by this rule")
		return
	case pod == nil:
		return // said by judgePod
	case len(pod.IPs) == 0:
		f.missing = "the IP address of the pod " + pod.Namespace + "/" + pod.Name
		return
	}
	for _, ip := range asked {
		switch {
		case slices.Contains(pod.IPs, ip) && !isSpecial(ip):
		case r.Age < addressGrace && !isSpecial(ip):
			f.missing = "the pod " + pod.Namespace + "/" + pod.Name + " to have the IP address " + ip.String()
		default:
			f.refuse(NameNotAllowed, "request.ipAddresses", addrStrings(pod.IPs), "%s is not an address of the pod %s", ip, pod.Name)
		}
	}
}

// addressGrace is for pods whose sandbox was made anew, as after the reboot of
// their node: kubelet tells the container its new address a moment before it tells the API
// server.
const addressGrace = 10 * time.Second

// isSpecial tells whether an address can never be a pod's own: loopback,
// link-local (where cloud metadata services live), multicast, unspecified.
func isSpecial(ip netip.Addr) bool {
	return !ip.IsGlobalUnicast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

func addrStrings(ips []netip.Addr) []string {
	texts := make([]string, 0, len(ips))
	for _, ip := range ips {
		texts = append(texts, ip.String())
	}
	return texts
}

func (u *rule) judgeKey(r *Request, f *finding) {
	if r.asked.Key != "" && !slices.Contains(u.keys, r.asked.Key) {
		f.refuse(KeyNotAllowed, "request.publicKey", strs(u.keys), "is of the type %s; allowed are %s", r.asked.Key, strings.Join(strs(u.keys), ", "))
	}
}

func (u *rule) judgeUsages(r *Request, f *finding) {
	const most = 32
	if len(r.Usages) == 0 || len(r.Usages) > most {
		f.refuse(UsageNotAllowed, "spec.usages", strs(u.usages), "has %d entries; 1 to %d are allowed", len(r.Usages), most)
		return
	}
	for _, usage := range r.Usages {
		if !slices.Contains(u.usages, usage) {
			f.refuse(UsageNotAllowed, "spec.usages", strs(u.usages), "asks for %s; allowed are %s", pkcs10.Quote(string(usage)), strings.Join(strs(u.usages), ", "))
		}
	}
	if r.asked.Key != "" && !slices.ContainsFunc(fitUsages(r.Usages, r.asked.Key), isKeyUsage) {
		// A certificate without the extension keyUsage may be used for anything.
		f.refuse(UsageNotAllowed, "spec.usages", nil, "has no key usage that a key of the type %s can serve; ask for %q, say", r.asked.Key, DigitalSignature)
	}
}

// lifetimeFor returns the lifetime to grant: what was asked, but not more than the rule allows.
func (u *rule) lifetimeFor(asked time.Duration) time.Duration {
	if asked <= 0 {
		return u.lifetime
	}
	return min(asked, u.lifetime)
}

// strs turns typed words into strings.
func strs[T ~string](words []T) []string {
	texts := make([]string, 0, len(words))
	for _, word := range words {
		texts = append(texts, string(word))
	}
	return texts
}
