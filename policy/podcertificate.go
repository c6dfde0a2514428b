package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"hsm-signer/policy/pkcs10"
)

// A PodCertificate is what a PodCertificateRequest says in addition to a [Submission]. kubelet
// makes it for a pod of its node, and whoever else may create one can write anything into it, so it
// is compared with the live pod before anything is granted.
type PodCertificate struct {
	Stub []byte // spec.stubPKCS10Request, DER
	// Key and Proof are spec.pkixPublicKey and spec.proofOfPossession, which v1beta1 has and
	// kubelets before 1.36 write instead of a stub.
	Key, Proof []byte
	// Pod is who the certificate is for, as the request says: its namespace, name and UID, its
	// service account and its node, each with its UID.
	Pod         Pod
	Annotations map[string]string // spec.unverifiedUserAnnotations
}

// Requester returns whom the request names, in the form of a service account with a token that is
// bound to its pod. It is nobody's proof: see [PodCertificate].
func (c *PodCertificate) Requester() Requester {
	account := ServiceAccount{c.Pod.Namespace, c.Pod.ServiceAccount}
	r := Requester{
		Username: serviceAccountPrefix + account.Namespace + ":" + account.Name,
		UID:      c.Pod.ServiceAccountUID,
		Groups: []string{allAccountsGroup, allAccountsGroup + ":" + account.Namespace,
			"system:authenticated"},
	}
	return r.Bound(c.Pod)
}

// decidePod answers a request for a pod certificate. What is wrong with the request itself is
// refused at once. The rules decide only when the request is known to be for the live pod.
func (p *Policy) decidePod(r *Request, facts Facts) Verdict {
	refusal := &Refusal{PolicyHash: p.hash, RequestSHA256: r.sha256()}
	if r.ObjectFault != "" {
		refusal.Reasons = append(refusal.Reasons, tooLarge(r.ObjectFault))
	}
	for _, fault := range r.faults {
		if fault.UnknownKey != "" {
			refusal.Reasons = append(refusal.Reasons, p.unsupportedKey(r, fault.UnknownKey))
		} else {
			refusal.Reasons = append(refusal.Reasons, invalid(fault))
		}
	}
	if len(refusal.Reasons) > 0 {
		return refusal
	}
	if !facts.answer(r) {
		return &Waiting{Missing: "a look-up of the pod " + r.PodCertificate.name()}
	}
	forged, missing := r.PodCertificate.verify(facts)
	switch {
	case forged != nil:
		refusal.Reasons = []Reason{*forged}
		return refusal
	case missing != "":
		return &Waiting{Missing: missing}
	case !p.appliesTo(r):
		refusal.Reasons = []Reason{p.unknownRequester(r)}
		return refusal
	}
	if reason, blocked := p.blocked.refuse(r); blocked {
		refusal.Reasons = append(refusal.Reasons, reason)
	}
	finding := p.judge(r, facts)
	refusal.Reasons = append(refusal.Reasons, finding.reasons...)
	switch {
	case len(refusal.Reasons) > 0:
		return refusal
	case finding.missing != "":
		return &Waiting{Rule: finding.rule.name, Missing: finding.missing}
	}
	return p.grant(r, finding)
}

// parse reads the key.
func (c *PodCertificate) parse() (*pkcs10.Request, []pkcs10.Fault) {
	if len(c.Key)+len(c.Proof) == 0 {
		return pkcs10.ParseStub(c.Stub)
	}
	asked, faults := pkcs10.ParseKey(c.Key, c.Proof, c.Pod.UID)
	if len(c.Stub) > 0 {
		faults = append(faults, pkcs10.Fault{Field: "request", Message: "has two keys: use " +
			"spec.stubPKCS10Request alone"})
	}
	return asked, faults
}

// keyField is where the request has its key.
func (c *PodCertificate) keyField() string {
	if len(c.Key) > 0 {
		return "spec.pkixPublicKey"
	}
	return "spec.stubPKCS10Request"
}

// name returns NAMESPACE/NAME of the pod.
func (c *PodCertificate) name() string { return c.Pod.Namespace + "/" + c.Pod.Name }

// verify compares what the request says with the live pod. It returns a reason for what no lag of
// the API server or kubelet explains; and what is missing if that may pass: kubelet asks again.
// A request for a pod that does not exist is never granted.
func (c *PodCertificate) verify(facts Facts) (*Reason, string) {
	name := c.name()
	if len(facts.pods) == 0 {
		return nil, "the pod " + name + ", which does not exist"
	}
	live := &facts.pods[0]
	forged := func(field, format string, args ...any) (*Reason, string) {
		return &Reason{Code: PodNotVerified, Rule: ruleClosedWorld, Field: field,
			Message: fmt.Sprintf(format, args...)}, ""
	}
	switch {
	case live.UID != c.Pod.UID:
		return nil, "the pod " + name + " with the UID of the request; it has another"
	case live.ServiceAccount != c.Pod.ServiceAccount:
		return forged("spec.serviceAccountName", "is not the service account of the pod %s", name)
	case live.Node != "" && live.Node != c.Pod.Node:
		return forged("spec.nodeName", "is not the node of the pod %s", name)
	case live.Mirror:
		return forged("spec.podName", "names the mirror of a static pod, which has no service "+
			"account and gets no certificate")
	}
	return nil, c.missing(live)
}

// missing returns what the live pod, which has the UID of the request, lacks.
func (c *PodCertificate) missing(live *Pod) string {
	name := c.name()
	switch {
	case live.Node == "":
		return "the node of the pod " + name + ", which has none yet"
	case live.Finished || live.Deleting:
		return "a live pod " + name + "; it has finished or is being deleted"
	case live.ServiceAccountUID == "" || live.ServiceAccountUID != c.Pod.ServiceAccountUID:
		return fmt.Sprintf("the service account %s/%s with the UID of the request",
			c.Pod.Namespace, c.Pod.ServiceAccount)
	case live.NodeUID == "" || live.NodeUID != c.Pod.NodeUID:
		return "the node " + c.Pod.Node + " with the UID of the request"
	}
	return ""
}

// podNames are the names that a rule gives to a pod.
type podNames struct{ dnsNames, uris []string }

// judgePodCertificate collects every reason for which the rule does not grant a pod certificate.
// The request has no faults, and is for the live pod.
func (u *rule) judgePodCertificate(r *Request, facts Facts, f *finding) {
	account, _ := r.Requester.ServiceAccount()
	f.pod = &facts.pods[0]
	for _, key := range slices.Sorted(maps.Keys(r.PodCertificate.Annotations)) {
		if !slices.Contains(u.from.annotations, key) {
			f.refuse(InvalidAnnotations, "spec.unverifiedUserAnnotations", u.from.annotations,
				"has the key %s, which the rule does not name", pkcs10.Quote(key))
		}
	}
	if !slices.Contains(u.keys, r.asked.Key) {
		f.refuse(UnsupportedKeyType, r.PodCertificate.keyField(), nil,
			"has a key of the type %s; %s", pkcs10.Quote(apiKeyType(r.asked.Key)),
			supported(u.keys))
	}
	if r.Lifetime < MinPodLifetime {
		f.refuse(InvalidRequest, "spec.maxExpirationSeconds", nil, "is less than %s",
			MinPodLifetime)
	}
	f.names.dnsNames = u.derive(u.dnsNames, "grant.dnsNames", account, f)
	f.names.uris = u.derive(u.uris, "grant.uris", account, f)
	if len(u.podNames) > 0 {
		u.judgePodNames(f)
	}
	if len(f.reasons) == 0 && f.missing == "" {
		u.judgeConditions(r, account, f.pod, f)
	}
}

// derive returns the names of the sources for a service account. One that the account must not
// have is a reason to refuse.
func (u *rule) derive(sources []nameSource, field string, account ServiceAccount,
	f *finding) []string {
	var names []string
	for _, source := range sources {
		derived := source.describe(account)
		if len(derived) == 0 {
			f.refuse(NameNotAllowed, field, nil, "has a name that cannot be derived from the "+
				"service account %s", account)
		}
		for _, name := range derived {
			if !source.allows(name, account) {
				f.refuse(NameNotAllowed, field, nil, "would give %s, which is reserved",
					pkcs10.Quote(name))
			}
			names = append(names, name)
		}
	}
	return names
}

// MinPodLifetime is the shortest lifetime of a pod's certificate (PodCertificateRequest,
// spec.maxExpirationSeconds).
const MinPodLifetime = time.Hour

// apiKeyTypes are the types of key that the API has (PodCertificateRequest,
// spec.stubPKCS10Request), with its names for them.
var apiKeyTypes = map[pkcs10.KeyType]string{
	pkcs10.RSA3072: "RSA3072", pkcs10.RSA4096: "RSA4096", pkcs10.ECDSAP256: "ECDSAP256",
	pkcs10.ECDSAP384: "ECDSAP384", pkcs10.ECDSAP521: "ECDSAP521", pkcs10.Ed25519: "ED25519",
}

// apiKeyType returns the API's name for a type of key, or ours if the API has no such type.
func apiKeyType(key pkcs10.KeyType) string {
	if name, known := apiKeyTypes[key]; known {
		return name
	}
	return string(key)
}

// supported lists types of key in the words of a pod's volume.
func supported(keys []pkcs10.KeyType) string {
	var names []string
	for _, key := range keys {
		if name, known := apiKeyTypes[key]; known && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return "supported as keyType are " + strings.Join(names, ", ")
}

// unsupportedKey refuses a key of a type that is never certified, and lists those of the rules that
// apply to the requester.
func (p *Policy) unsupportedKey(r *Request, described string) Reason {
	var keys []pkcs10.KeyType
	for i := range p.rules {
		if p.rules[i].from.appliesTo(r) {
			keys = append(keys, p.rules[i].keys...)
		}
	}
	return Reason{Code: UnsupportedKeyType, Rule: ruleClosedWorld,
		Field:   r.PodCertificate.keyField(),
		Message: "has " + described + "; " + supported(keys)}
}

// checkPodCertificates finds what a rule for pod certificates must not say, and what only such a
// rule may say.
func (c *compiler) checkPodCertificates(u *rule) {
	if !u.from.podCertificates {
		if len(u.from.annotations) > 0 {
			c.wrong(c.From.Annotations[0].at, "from.annotations",
				"only requests for pod certificates have them; set from.podCertificates: true")
		}
		if len(u.podNames) > 0 {
			c.wrong(c.Grant.PodNames[0].at, "grant.podNames", "only pod certificates have names "+
				"without asking for them; set from.podCertificates: true")
		}
		return
	}
	const field = "from.podCertificates"
	for _, key := range []struct {
		name string
		said bool
	}{
		{"from.users", len(u.from.users) > 0}, {"from.groups", len(u.from.groups) > 0},
		{"from.extra", len(u.from.extra) > 0}, {"from.pod", u.from.pod != podBound},
		{"grant.commonNames", len(u.commonNames) > 0}, {"grant.ipAddresses", u.ips.any()},
		{"grant.emailAddresses", len(u.emails) > 0}, {"grant.subject", u.keepSubject},
	} {
		if key.said {
			c.wrong(0, field, "is true, and %s has no meaning then; leave it out", key.name)
		}
	}
	for _, source := range u.dnsNames {
		if p, is := source.(pattern); is {
			c.wrong(0, "grant.dnsNames", "%q is a pattern, and a pod is given names without "+
				"asking for them; write the name", p)
		}
	}
	for i, key := range u.keys {
		if _, known := apiKeyTypes[key]; !known {
			c.wrong(c.Grant.Keys[i].at, "grant.keys", "%s is no type of key that a pod's volume "+
				"can have", key)
		}
	}
	if u.maxLifetime < MinPodLifetime {
		c.wrong(c.Grant.MaxLifetime.at, "grant.maxLifetime", "a pod's certificate lives for %s at "+
			"least, and this rule or CERTIFICATE_LIFETIME allows %s", MinPodLifetime,
			u.maxLifetime)
	}
	if text := c.Grant.DefaultLifetime; text.at > 0 {
		c.wrong(text.at, "grant.defaultLifetime",
			"every request for a pod certificate says its own; leave it out")
	}
}

// warnOfPods says what in a rule for pod certificates must not go unseen.
func (u *rule) warnOfPods() (all []string) {
	if len(u.from.annotations) > 0 {
		all = append(all, "whoever makes the pod, and whoever holds its node's credential, "+
			"chooses the annotations "+strings.Join(u.from.annotations, ", ")+
			" (from.annotations)")
	}
	if len(u.podNames) > 0 {
		all = append(all, "whoever may label pods, or write Services, in a namespace of the rule "+
			"gives its pods the names of Services there (grant.podNames)")
	}
	for _, source := range slices.Concat(u.dnsNames, u.uris) {
		if !source.derives() && (u.from.manyNamespaces() || u.from.manyAccounts()) {
			all = append(all, fmt.Sprintf("every service account that the rule names gets %s",
				strings.Join(source.describe(ServiceAccount{}), ", ")))
		}
	}
	return all
}

// manyAccounts reports whether a rule names more than one service account.
func (f from) manyAccounts() bool {
	return len(f.accounts) > 1 || slices.ContainsFunc(f.accounts, func(a ServiceAccount) bool {
		return a.Name == "*"
	})
}
