package kube

import (
	"context"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"hsm-signer/kube/lease"
)

// A Permission is one thing that a [Controller] must be allowed to do.
type Permission struct {
	attributes authorizationv1.ResourceAttributes
	// within are namespaces in which it is enough to have the permission; empty: it is needed in all.
	within []string
}

// Permissions lists what a controller of these signer names needs in a mode, and with a lease. Pods are
// read in these namespaces; nil: in all.
func Permissions(signerNames []string, mode Mode, of *lease.Lease, podNamespaces []string) []Permission {
	const group, requests = "certificates.k8s.io", "certificatesigningrequests"
	var all []Permission
	add := func(a authorizationv1.ResourceAttributes) { all = append(all, Permission{attributes: a}) }
	for _, verb := range []string{"get", "list", "watch"} {
		add(authorizationv1.ResourceAttributes{Verb: verb, Group: group, Resource: requests})
	}
	for _, verb := range []string{"get", "list"} {
		all = append(all, Permission{authorizationv1.ResourceAttributes{Verb: verb, Resource: "pods"}, podNamespaces})
	}
	if mode == Shadow {
		return all
	}
	add(authorizationv1.ResourceAttributes{Verb: "update", Group: group, Resource: requests, Subresource: "status"})
	for _, name := range signerNames {
		add(authorizationv1.ResourceAttributes{Verb: "sign", Group: group, Resource: "signers", Name: name})
	}
	for _, verb := range []string{"create", "patch"} {
		add(authorizationv1.ResourceAttributes{Verb: verb, Resource: "events", Namespace: eventNamespace})
	}
	if of != nil {
		for _, verb := range []string{"get", "create", "update"} {
			name := of.Name
			if verb == "create" { // which knows no name
				name = ""
			}
			add(authorizationv1.ResourceAttributes{Verb: verb, Group: "coordination.k8s.io", Resource: "leases", Namespace: of.Namespace, Name: name})
		}
	}
	if mode == Wait {
		return all
	}
	add(authorizationv1.ResourceAttributes{Verb: "update", Group: group, Resource: requests, Subresource: "approval"})
	for _, name := range signerNames {
		add(authorizationv1.ResourceAttributes{Verb: "approve", Group: group, Resource: "signers", Name: name})
	}
	return all
}

// CleanUpPermission is what a controller needs beside [Permissions] to delete finished requests.
// RBAC cannot restrict it to a signer's requests.
func CleanUpPermission() Permission {
	return Permission{attributes: authorizationv1.ResourceAttributes{
		Verb: "delete", Group: "certificates.k8s.io", Resource: "certificatesigningrequests",
	}}
}

// optional reports whether requests are answered without the permission as well as with it.
func (p Permission) optional() bool { return p.attributes == CleanUpPermission().attributes }

// Manifest is the file or directory of this project that grants the permission.
func (p Permission) Manifest() string {
	if p.optional() {
		return "deploy/components/clean-up"
	}
	return "deploy/base/rbac.yaml"
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

// Missing asks the API server what the client lacks of the permission: nothing, all of it, or the
// permission in some of the namespaces where it is enough.
func (p Permission) Missing(ctx context.Context, client kubernetes.Interface) ([]Permission, error) {
	return p.missing(ctx, func(ctx context.Context, p Permission) (bool, error) { return p.allowed(ctx, client) })
}

type askFunc func(ctx context.Context, p Permission) (allowed bool, err error)

func (p Permission) missing(ctx context.Context, ask askFunc) ([]Permission, error) {
	if allowed, err := ask(ctx, p); err != nil || allowed {
		return nil, err
	}
	var missing []Permission
	for _, namespace := range p.within {
		in := Permission{attributes: p.attributes}
		in.attributes.Namespace = namespace
		allowed, err := ask(ctx, in)
		if err != nil {
			return nil, err
		}
		if !allowed {
			missing = append(missing, in)
		}
	}
	if len(missing) == len(p.within) { // it was granted nowhere
		return []Permission{p}, nil
	}
	return missing, nil
}

// allowed asks by a SelfSubjectAccessReview.
func (p Permission) allowed(ctx context.Context, client kubernetes.Interface) (bool, error) {
	review := &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &p.attributes},
	}
	answer, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	return answer.Status.Allowed, nil
}
