package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"hsm-signer/policy/pkcs10"
)

// A rule says who may ask, and for what. It is the compiled form of an entry under "rules" in a
// policy file.
type rule struct {
	name        string
	from        from
	commonNames []nameSource // empty: one of the names asked for
	dnsNames    []nameSource
	ips         addresses
	uris        []nameSource
	emails      []nameSource
	podNames    []podName // of pod certificates, in addition
	keepSubject bool
	// no kept subject holds one of them; "*" at the end stands for any ending
	reservedGroups  []string
	keys            []pkcs10.KeyType
	usages          []Usage
	maxLifetime     time.Duration
	defaultLifetime time.Duration // when none is asked for
	conditions      []condition
	clusterDomain   string
}

// A finding is what one rule has to say of one request: granted when it has neither reasons nor
// anything missing.
type finding struct {
	rule    *rule
	reasons []Reason
	missing string
	pod     *Pod // the live pod that asks, where one is known
	names   podNames
}

func (f *finding) better(than *finding) bool {
	if len(f.reasons) != len(than.reasons) {
		return len(f.reasons) < len(than.reasons)
	}
	return f.missing == "" && than.missing != ""
}

func (f *finding) refuse(code Code, field string, allowed []string, format string, args ...any) {
	f.reasons = append(f.reasons, Reason{
		Code: code, Rule: f.rule.name, Field: field, Message: fmt.Sprintf(format, args...),
		Allowed: allowed,
	})
}

// patience is how old a request may become while a fact is missing. What a pod lacks then, it
// will not come to have: the one who asked has long given up.
const patience = 10 * time.Minute

// wait notes a fact that is missing and may still come.
func (f *finding) wait(r *Request, field, missing string) {
	if r.Age > patience {
		f.refuse(PodNotVerified, field, nil, "did not appear within %.0f minutes: %s",
			patience.Minutes(), missing)
		return
	}
	f.missing = missing
}

// judge collects every reason for which the rule does not grant the request. The rule must apply to
// the requester. A request with faults is refused in any case, and its pod was not looked up: what
// depends on the pod is not judged.
func (u *rule) judge(r *Request, facts Facts) finding {
	f := finding{rule: u}
	if r.PodCertificate != nil {
		u.judgePodCertificate(r, facts, &f)
		return f
	}
	account, _ := r.Requester.ServiceAccount()
	known := len(r.faults) == 0
	if known {
		f.pod = u.judgePod(r, account, facts.pods, &f)
	}
	u.judgeNames(r, account, &f)
	if known {
		u.judgeIPs(r, f.pod, &f)
	}
	u.judgeSubject(r, &f)
	u.judgeKey(r, &f)
	u.judgeUsages(r, &f)
	if known && f.missing == "" { // a condition sees all facts, or waits with them
		u.judgeConditions(r, account, f.pod, &f)
	}
	return f
}

// judgePod returns the live pod that asks, or nil when it is missing or there is a reason against
// it. Where a rule asks for a pod, a token that names its pod binds.
func (u *rule) judgePod(r *Request, account ServiceAccount, pods []Pod, f *finding) *Pod {
	bound, ok := r.Requester.pod()
	switch {
	case u.from.pod != podNone && account == (ServiceAccount{}):
		f.refuse(PodNotVerified, "requester", nil, "must be a service account of the cluster, in "+
			"its groups %s and %s:NAMESPACE", allAccountsGroup, allAccountsGroup)
		return nil
	case ok && u.from.pod == podNone:
		return judgeBoundPod(pods, bound, account, &finding{rule: u}) // for its addresses alone
	case ok:
		return judgeBoundPod(pods, bound, account, f)
	case u.from.pod == podAddress:
		return judgePodByAddress(r, account, pods, f)
	case u.from.pod == podNone:
		return nil
	}
	f.refuse(PodNotVerified, "requester", nil, "must use a token that is bound to its pod: the "+
		"request carries no single %s and %s", extraPodName, extraPodUID)
	return nil
}

func judgeBoundPod(pods []Pod, bound boundPod, account ServiceAccount, f *finding) *Pod {
	if len(pods) == 0 { // it was there before the token that names it
		f.refuse(PodNotVerified, "pod", nil, "%s is gone", bound.name)
		return nil
	}
	pod := &pods[0]
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

func judgePodByAddress(r *Request, account ServiceAccount, pods []Pod, f *finding) *Pod {
	if len(r.asked.IPAddresses) != 1 {
		f.refuse(PodNotVerified, "request.subjectAltName", nil, "must hold exactly one IP "+
			"address, the pod's own, since the requester's token names no pod")
		return nil
	}
	for i := range pods {
		if slices.Contains(pods[i].IPs, r.asked.IPAddresses[0]) && pods[i].faultAs(account) == "" {
			return &pods[i]
		}
	}
	f.wait(r, "pod",
		"a live pod of the service account "+account.String()+" with the IP address "+
			r.asked.IPAddresses[0].String())
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
	asked := 0
	for _, kind := range []struct {
		field, noun string
		asked       []string
		sources     []nameSource
	}{
		{"request.dnsNames", "name", r.asked.DNSNames, u.dnsNames},
		{"request.uris", "URI", r.asked.URIs, u.uris},
		{"request.emailAddresses", "email address", r.asked.EmailAddresses, u.emails},
	} {
		asked += len(kind.asked)
		own := ownNames(kind.sources, account)
		for _, name := range kind.asked {
			if !anyAllows(kind.sources, name, account) {
				f.refuse(NameNotAllowed, kind.field, describeAll(kind.sources, account),
					"%s is not a %s of %s%s", pkcs10.Quote(name), kind.noun,
					r.Requester.describe(), own)
				own = "" // it is enough to say it once
			}
		}
	}
	if asked+len(r.asked.IPAddresses) == 0 {
		f.refuse(NameNotAllowed, "request.subjectAltName", describeAll(u.dnsNames, account),
			"is missing; ask for at least one name or IP address")
	}
	u.judgeCommonName(r, account, f)
}

// judgeCommonName requires a common name that the rule writes out or derives, or one of the DNS
// names that were asked for, in any case.
func (u *rule) judgeCommonName(r *Request, account ServiceAccount, f *finding) {
	cn := r.asked.CommonName
	switch {
	case cn == "":
	case len(u.commonNames) > 0:
		if !anyAllows(u.commonNames, cn, account) {
			f.refuse(NameNotAllowed, "request.commonName", describeAll(u.commonNames, account),
				"%s is not a common name of %s%s", pkcs10.Quote(cn), r.Requester.describe(),
				ownNames(u.commonNames, account))
		}
	case !anyAllows(u.dnsNames, strings.ToLower(cn), account) ||
		!slices.Contains(r.asked.DNSNames, strings.ToLower(cn)):
		f.refuse(NameNotAllowed, "request.commonName", describeAll(u.dnsNames, account),
			"%s must be one of the requested DNS names, and a name of %s", pkcs10.Quote(cn),
			r.Requester.describe())
	}
}

func (u *rule) judgeIPs(r *Request, pod *Pod, f *finding) {
	for _, ip := range r.asked.IPAddresses {
		if !u.ips.allow(ip) {
			u.judgePodIP(r, ip, pod, f)
		}
	}
}

// judgePodIP judges an address that the rule itself does not name.
func (u *rule) judgePodIP(r *Request, ip netip.Addr, pod *Pod, f *finding) {
	switch {
	case !u.ips.pod || u.ips.isForbidden(ip):
		f.refuse(NameNotAllowed, "request.ipAddresses", u.ips.describe(pod),
			"%s is not allowed by this rule", ip)
	case pod == nil:
		if u.from.pod == podNone {
			f.refuse(NameNotAllowed, "request.ipAddresses", u.ips.describe(pod),
				"%s is allowed only to the live pod that has it, and the requester is not one", ip)
		} // otherwise judgePod has said it
	case slices.Contains(pod.IPs, ip):
	case len(pod.IPs) == 0:
		f.wait(r, "request.ipAddresses", "the IP address of the pod "+pod.Namespace+"/"+pod.Name)
	case r.Age < addressGrace:
		f.wait(r, "request.ipAddresses",
			"the pod "+pod.Namespace+"/"+pod.Name+" to have the IP address "+ip.String())
	default:
		f.refuse(NameNotAllowed, "request.ipAddresses", u.ips.describe(pod),
			"%s is not an address of the pod %s, which has %s", ip, pod.Name,
			strings.Join(texts(pod.IPs), ", "))
	}
}

// addressGrace is for pods whose sandbox was recreated, as after the reboot of their node: kubelet
// tells the container its new address a moment before it tells the API server.
const addressGrace = 10 * time.Second

func (u *rule) judgeKey(r *Request, f *finding) {
	if r.asked.Key != "" && !slices.Contains(u.keys, r.asked.Key) {
		f.refuse(KeyNotAllowed, "request.publicKey", strs(u.keys),
			"is of the type %s, which the rule does not allow", r.asked.Key)
	}
}

func (u *rule) judgeUsages(r *Request, f *finding) {
	const most = 32
	if len(r.Usages) == 0 || len(r.Usages) > most {
		f.refuse(UsageNotAllowed, "spec.usages", strs(u.usages),
			"has %d entries; 1 to %d are allowed", len(r.Usages), most)
		return
	}
	for _, usage := range r.Usages {
		if !slices.Contains(u.usages, usage) {
			f.refuse(UsageNotAllowed, "spec.usages", strs(u.usages),
				"asks for %s, which the rule does not allow", pkcs10.Quote(string(usage)))
		}
	}
	if r.asked.Key == "" {
		return
	}
	fitting := fitUsages(r.Usages, r.asked.Key)
	if !slices.ContainsFunc(fitting, isKeyUsage) {
		// A certificate without the extension keyUsage may be used for anything.
		f.refuse(UsageNotAllowed, "spec.usages", nil,
			"has no key usage that a key of the type %s can serve; ask for %q, say", r.asked.Key,
			DigitalSignature)
		return
	}
	for _, usage := range unserved(fitting) {
		f.refuse(UsageNotAllowed, "spec.usages", nil, "asks for %q with a key of the type %s, "+
			"and for none of the key usages that it needs: %s; ask for %q, say",
			string(usage), r.asked.Key, strings.Join(strs(servedBy[usage]), ", "), DigitalSignature)
	}
}

// commonNameFor returns the common name to certify: as a DNS name where it must be one.
func (u *rule) commonNameFor(asked string) string {
	if len(u.commonNames) > 0 {
		return asked
	}
	return strings.ToLower(asked)
}

// lifetimeFor returns the lifetime to grant: what was asked, but not more than the rule allows.
func (u *rule) lifetimeFor(asked time.Duration) time.Duration {
	if asked <= 0 {
		return u.defaultLifetime
	}
	return min(asked, u.maxLifetime)
}

// strs turns typed words into strings.
func strs[T ~string](words []T) []string {
	texts := make([]string, 0, len(words))
	for _, word := range words {
		texts = append(texts, string(word))
	}
	return texts
}
