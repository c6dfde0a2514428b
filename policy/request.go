package policy

import (
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"time"

	"hsm-signer/policy/pkcs10"
)

// A Submission is a certificate request as the API server holds it. What the requester can write
// freely next to the request itself decides nothing: its labels and annotations are not part of it,
// and its name is for the record alone.
//
// Its Requester, or what stands in for it, must be proved by the API server: fields that no client
// can set, or that admission checks. A kind of request without such fields must not be served,
// since any client would choose whose names it gets.
type Submission struct {
	UID        string // of the API object
	Name       string // of the API object, NAME or NAMESPACE/NAME; no rule sees it
	SignerName string // empty only on clusters before Kubernetes 1.18
	Requester  Requester
	PEM        []byte        // spec.request
	Usages     []Usage       // spec.usages
	Lifetime   time.Duration // spec.expirationSeconds; 0 when none was asked for
	Age        time.Duration // since metadata.creationTimestamp
	// ObjectFault is why no answer can be written to the API object; empty if one can.
	ObjectFault string
	// PodCertificate is what a PodCertificateRequest says in addition; nil: it is another kind.
	PodCertificate *PodCertificate
}

// A Request is a Submission, read once. It is not safe for concurrent use.
type Request struct {
	Submission

	parsed bool
	asked  *pkcs10.Request // nil when it could not be read at all
	faults []pkcs10.Fault
}

// NewRequest returns the request of a submission. It parses nothing yet: parsing is expensive, and
// is done only if a rule applies to the requester.
func NewRequest(s Submission) *Request { return &Request{Submission: s} }

// parse parses the PKCS#10 request, once. Its faults become reasons of the verdict.
func (r *Request) parse() {
	if !r.parsed {
		if r.PodCertificate != nil {
			r.asked, r.faults = r.PodCertificate.parse()
		} else {
			r.asked, r.faults = pkcs10.Parse(r.PEM)
		}
		r.parsed = true
	}
}

// sha256 is of the request in DER, in hex; empty when it could not be read.
func (r *Request) sha256() string {
	r.parse()
	if r.asked == nil {
		return ""
	}
	return hex.EncodeToString(r.asked.SHA256[:])
}

// publicKeySHA256 is of the key's SubjectPublicKeyInfo in DER, in lower-case hex; empty when the
// request could not be read.
func (r *Request) publicKeySHA256() string {
	if r.asked == nil {
		return ""
	}
	return hex.EncodeToString(r.asked.KeySHA256[:])
}

// A Requester is who made the request, as the API server authenticated it (spec.username, uid,
// groups and extra, which no client can set). The journal records it in this form.
type Requester struct {
	Username string              `json:"username"`
	UID      string              `json:"uid,omitempty"`
	Groups   []string            `json:"groups,omitempty"`
	Extra    map[string][]string `json:"extra,omitempty"` // names the pod of a bound token
}

// A ServiceAccount names a service account.
type ServiceAccount struct{ Namespace, Name string }

// String returns NAMESPACE/NAME.
func (a ServiceAccount) String() string { return a.Namespace + "/" + a.Name }

// Keys of [Requester.Extra] that the API server sets for a token that is bound to a pod. See
// "Additional metadata in pod bound tokens" in the Kubernetes documentation of service accounts.
const (
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"
)

// isDNSLabel reports whether a name has the shape of a DNS label, as names of namespaces have.
func isDNSLabel(name string) bool { return hasShape(name, 63, "-") }

// isDNSSubdomain reports whether a name has the shape of DNS labels with dots between them, as most
// names in Kubernetes have.
func isDNSSubdomain(name string) bool { return hasShape(name, 253, "-.") }

// hasShape reports whether a name has at most so many lower-case letters and digits, and, except at
// its ends, the marks. Each request is compared a dozen times, which a regular expression made a
// tenth of the cost of a decision.
func hasShape(name string, most int, marks string) bool {
	for i := range len(name) {
		c := name[i]
		inside := i > 0 && i < len(name)-1
		if ('a' > c || c > 'z') && ('0' > c || c > '9') &&
			(!inside || strings.IndexByte(marks, c) < 0) {
			return false
		}
	}
	return 0 < len(name) && len(name) <= most
}

// serviceAccountPrefix begins the username of every service account, and of no one else.
const serviceAccountPrefix = "system:serviceaccount:"

// allAccountsGroup is the group of every service account; with a colon and a namespace behind it,
// of those of the namespace.
const allAccountsGroup = "system:serviceaccounts"

// ServiceAccount derives the service account from the username and requires the groups
// that the API server gives with it.
func (r Requester) ServiceAccount() (ServiceAccount, bool) {
	rest, ok := strings.CutPrefix(r.Username, serviceAccountPrefix)
	if !ok {
		return ServiceAccount{}, false
	}
	namespace, name, ok := strings.Cut(rest, ":")
	if !ok || !isDNSLabel(namespace) || !isDNSSubdomain(name) ||
		!slices.Contains(r.Groups, allAccountsGroup) ||
		!slices.Contains(r.Groups, allAccountsGroup+":"+namespace) {
		return ServiceAccount{}, false
	}
	return ServiceAccount{namespace, name}, true
}

// Bound returns the requester with a token that is bound to the pod, and says which node that is on
// where it is on one; it is for explaining what would be answered.
func (r Requester) Bound(pod Pod) Requester {
	extra := maps.Clone(r.Extra)
	if extra == nil {
		extra = map[string][]string{}
	}
	extra[extraPodName], extra[extraPodUID] = []string{pod.Name}, []string{pod.UID}
	if pod.Node != "" {
		extra[extraNodeName] = []string{pod.Node}
	}
	r.Extra = extra
	return r
}

// BoundPod returns the name and the UID of the pod that the requester's token is bound to, and
// false when it names none.
func (r Requester) BoundPod() (name, uid string, ok bool) {
	pod, ok := r.pod()
	return pod.name, pod.uid, ok
}

// boundPod is the pod that the requester's token is bound to.
type boundPod struct{ name, uid, node string }

// pod returns what the token says of its pod; each of name and UID must have exactly one value.
func (r Requester) pod() (boundPod, bool) {
	name, uid, node := r.Extra[extraPodName], r.Extra[extraPodUID], r.Extra[extraNodeName]
	if len(name) != 1 || len(uid) != 1 || len(node) > 1 || uid[0] == "" ||
		!isDNSSubdomain(name[0]) {
		return boundPod{}, false
	}
	b := boundPod{name: name[0], uid: uid[0]}
	if len(node) == 1 {
		b.node = node[0]
	}
	return b, true
}

func (r Requester) describe() string {
	if account, ok := r.ServiceAccount(); ok {
		return "the service account " + account.String()
	}
	return "the user " + pkcs10.Quote(r.Username)
}
