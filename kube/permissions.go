package kube

import (
	"context"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// A Permission is one thing that a [Controller] must be allowed to do.
type Permission struct {
	attributes authorizationv1.ResourceAttributes
}

// Permissions lists what a controller of these signer names needs; approving
// only when it approves.
func Permissions(signerNames []string, approve bool) []Permission {
	const group, requests = "certificates.k8s.io", "certificatesigningrequests"
	var all []Permission
	add := func(verb, group, resource, subresource, name string) {
		all = append(all, Permission{authorizationv1.ResourceAttributes{
			Verb: verb, Group: group, Resource: resource, Subresource: subresource, Name: name,
		}})
	}
	addIn := func(namespace, verb, resource string) {
		all = append(all, Permission{authorizationv1.ResourceAttributes{Namespace: namespace, Verb: verb, Resource: resource}})
	}
	for _, verb := range []string{"get", "list", "watch"} {
		add(verb, group, requests, "", "")
	}
	add("update", group, requests, "status", "")
	if approve {
		add("update", group, requests, "approval", "")
	}
	for _, name := range signerNames {
		add("sign", group, "signers", "", name)
		if approve {
			add("approve", group, "signers", "", name)
		}
	}
	add("get", "", "pods", "", "")
	add("list", "", "pods", "", "")
	addIn(eventNamespace, "create", "events")
	addIn(eventNamespace, "patch", "events")
	return all
}

// String says the permission the way kubectl auth can-i takes it.
func (p Permission) String() string {
	s := p.attributes.Verb + " " + p.attributes.Resource
	if p.attributes.Subresource != "" {
		s += "/" + p.attributes.Subresource
	}
	if p.attributes.Name != "" {
		s += " " + p.attributes.Name
	}
	if p.attributes.Namespace != "" {
		s += " in " + p.attributes.Namespace
	}
	return s
}

// Allowed asks the API server whether the client has the permission
// (SelfSubjectAccessReview).
func (p Permission) Allowed(ctx context.Context, client kubernetes.Interface) (bool, error) {
	review := &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &p.attributes},
	}
	answer, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	return answer.Status.Allowed, nil
}
