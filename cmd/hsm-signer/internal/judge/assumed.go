package judge

import (
	"strings"
	"time"

	"hsm-signer/policy"
)

// AssumedUID is the UID of a pod that was given none.
const AssumedUID = "assumed"

// WithPod returns the request of a requester whose token is bound to a live pod of its service
// account, and the facts that a look-up of this pod would find.
func WithPod(s policy.Submission, pod policy.Pod) (*policy.Request, policy.Facts) {
	s.Requester = s.Requester.Bound(pod)
	account, _ := s.Requester.ServiceAccount()
	pod.Namespace, pod.ServiceAccount = account.Namespace, account.Name
	request := policy.NewRequest(s)
	query, _ := request.PodQuery()
	return request, query.Found(pod)
}

// WithoutPod returns the request, and the facts of a look-up that finds no pod.
func WithoutPod(s policy.Submission) (*policy.Request, policy.Facts) {
	request := policy.NewRequest(s)
	query, _ := request.PodQuery()
	return request, query.Found()
}

// ForPod returns a request for a pod certificate, and the facts of a look-up that finds everything
// as the request says.
func ForPod(s policy.Submission) (*policy.Request, policy.Facts) {
	request := policy.NewRequest(s)
	query, _ := request.PodQuery()
	return request, query.Found(s.PodCertificate.Pod)
}

// CalicoUsages are the usages that Calico's pods request. They are the default.
var CalicoUsages = []string{"server auth", "client auth", "digital signature", "key agreement",
	"key encipherment"}

// AssumedAge is the age of a request that is not in the cluster: too old for the grace of new
// requests, and young enough to wait for facts.
const AssumedAge = time.Minute

// GroupsOf returns the groups that the API server gives every user, and every service account.
func GroupsOf(username string) []string {
	groups := []string{"system:authenticated"}
	if rest, ok := strings.CutPrefix(username, "system:serviceaccount:"); ok {
		namespace, _, _ := strings.Cut(rest, ":")
		groups = append(groups, "system:serviceaccounts", "system:serviceaccounts:"+namespace)
	}
	return groups
}
