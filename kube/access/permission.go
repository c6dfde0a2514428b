// Package access knows what a controller must be allowed to do, and what it lacks of that.
//
// Duty: list the permissions that a use needs, ask the API server which of them are missing, and
// watch that while a controller runs.
//
// Contract: nothing is tried to find out whether it is permitted; the API server is asked by
// SelfSubjectAccessReviews. What it does not answer leaves things as they are.
package access

import (
	"context"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/kube/clientset"
	"hsm-signer/kube/lease"
	"hsm-signer/kube/trustbundle"
)

// EventNamespace is where the API server keeps Events on objects without a namespace, such as
// certificate requests.
const EventNamespace = metav1.NamespaceDefault

const (
	group    = "certificates.k8s.io"
	requests = "certificatesigningrequests"
	podReqs  = "podcertificaterequests"
	bundles  = "clustertrustbundles"

	configMaps = "configmaps"
)

// A Use says what a controller does, and so what it needs.
type Use struct {
	SignerNames   []string
	PodNamespaces []string     // in which pods are read; nil: in all
	Answers       bool         // it writes certificates and refusals; a shadow does not
	Approves      bool         // it approves what it grants
	Lease         *lease.Lease // nil: there is no election
	Deletes       bool         // it deletes finished requests
	// PodCertificates: it serves pod certificate requests too.
	PodCertificates bool
	Services        bool // the policy depends on the Services of pods
	TrustBundles    bool // it publishes a ClusterTrustBundle for each signer
	// ConfigMaps are the namespaces in which it publishes a ConfigMap with trust anchors.
	ConfigMaps []string
}

// A Permission is one thing that a controller must be allowed to do.
type Permission struct {
	attributes authorizationv1.ResourceAttributes
	// within are namespaces in which it is enough to have the permission; empty: it is needed in
	// all.
	within []string
}

// Permissions lists what the use needs.
func (u Use) Permissions() []Permission {
	all := u.reads()
	if u.Answers {
		all = append(all, u.writes()...)
	}
	if u.Answers && u.Approves {
		all = append(all, permission("update", group, requests+"/approval"))
		all = append(all, u.ofSigners("approve")...)
	}
	if u.Deletes {
		all = append(all, deletion)
	}
	if u.PodCertificates {
		all = append(all, u.forPods()...)
	}
	if u.TrustBundles {
		all = append(all, u.forBundles()...)
	}
	for _, namespace := range u.ConfigMaps {
		all = append(all, inNamespace("", configMaps, namespace, trustbundle.ConfigMap)...)
	}
	return all
}

// inNamespace lists what is needed to keep one object of a namespace.
func inNamespace(group, resource, namespace, name string) []Permission {
	var all []Permission
	for _, verb := range []string{"get", "create", "update"} {
		p := permission(verb, group, resource)
		p.attributes.Namespace = namespace
		if verb != "create" { // which knows no name
			p.attributes.Name = name
		}
		all = append(all, p)
	}
	return all
}

// forBundles lists what the ClusterTrustBundles of the signers need.
func (u Use) forBundles() []Permission {
	all := u.ofSigners("attest")
	for _, name := range u.SignerNames {
		for _, verb := range []string{"get", "create", "update"} {
			p := permission(verb, group, bundles)
			if verb != "create" { // which knows no name
				p.attributes.Name = trustbundle.Name(name)
			}
			all = append(all, p)
		}
	}
	return all
}

// forPods lists what pod certificate requests need in addition.
func (u Use) forPods() []Permission {
	var all []Permission
	for _, verb := range []string{"get", "list", "watch"} {
		all = append(all, permission(verb, group, podReqs))
	}
	all = append(all, permission("get", "", "serviceaccounts"), permission("get", "", "nodes"))
	if u.Services {
		all = append(all, permission("list", "", "services"))
	}
	if u.Answers {
		all = append(all, permission("update", group, podReqs+"/status"))
	}
	return all
}

func (u Use) reads() []Permission {
	var all []Permission
	for _, verb := range []string{"get", "list", "watch"} {
		all = append(all, permission(verb, group, requests))
	}
	for _, verb := range []string{"get", "list"} {
		pods := permission(verb, "", "pods")
		pods.within = u.PodNamespaces
		all = append(all, pods)
	}
	return all
}

func (u Use) writes() []Permission {
	all := append([]Permission{permission("update", group, requests+"/status")},
		u.ofSigners("sign")...)
	for _, verb := range []string{"create", "patch"} {
		events := permission(verb, "", "events")
		events.attributes.Namespace = EventNamespace
		all = append(all, events)
	}
	if u.Lease == nil {
		return all
	}
	return append(all, inNamespace("coordination.k8s.io", "leases", u.Lease.Namespace,
		u.Lease.Name)...)
}

// ofSigners returns the permission to do something in the name of each signer.
func (u Use) ofSigners(verb string) []Permission {
	var all []Permission
	for _, name := range u.SignerNames {
		p := permission(verb, group, "signers")
		p.attributes.Name = name
		all = append(all, p)
	}
	return all
}

// permission returns one on a resource, or, with a slash, on a subresource.
func permission(verb, group, resource string) Permission {
	resource, subresource, _ := strings.Cut(resource, "/")
	return Permission{attributes: authorizationv1.ResourceAttributes{
		Verb: verb, Group: group, Resource: resource, Subresource: subresource,
	}}
}

// deletion is the permission to delete finished requests. RBAC cannot restrict it to a signer's.
var deletion = permission("delete", group, requests)

// deletes reports whether the permission is for deleting finished requests.
func (p Permission) deletes() bool { return p.attributes == deletion.attributes }

// ofBundle reports whether the permission is for publishing trust anchors.
func (p Permission) ofBundle() bool {
	return p.attributes.Resource == bundles || p.attributes.Verb == "attest" || p.ofConfigMap()
}

func (p Permission) ofConfigMap() bool { return p.attributes.Resource == configMaps }

// optional reports whether requests are answered without the permission as well as with it.
func (p Permission) optional() bool { return p.deletes() || p.ofBundle() }

// needed reports whether no request can be answered without the permission. Events are not needed
// for that, and without the lease there is nothing to do anyway.
func (p Permission) needed() bool {
	return p.attributes.Resource != "events" && p.attributes.Resource != "leases" && !p.optional()
}

// Manifest is the file or directory of this project that grants the permission.
func (p Permission) Manifest() string {
	switch {
	case p.deletes():
		return "deploy/components/clean-up"
	case p.ofConfigMap():
		return "deploy/components/trust-bundle-configmaps"
	case p.ofBundle():
		return "deploy/components/trust-bundle"
	case p.attributes.Resource == podReqs || p.attributes.Resource == "nodes" ||
		p.attributes.Resource == "services" ||
		p.attributes.Resource == "serviceaccounts":
		return "deploy/components/pod-certificates"
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

// A Reviewer says what is permitted. [Reviews] is one.
type Reviewer interface {
	Allowed(ctx context.Context, p Permission) (bool, error)
}

// Reviews asks the API server by SelfSubjectAccessReviews.
type Reviews struct{ Client clientset.Interface }

// Allowed is [Reviewer]'s.
func (r Reviews) Allowed(ctx context.Context, p Permission) (bool, error) {
	review := &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &p.attributes},
	}
	answer, err := r.Client.SelfSubjectAccessReviews().Create(ctx, review,
		metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	return answer.Status.Allowed, nil
}

// Missing returns what is lacking of the permission: nothing, all of it, or the permission in some
// of the namespaces where it is enough.
func (p Permission) Missing(ctx context.Context, r Reviewer) ([]Permission, error) {
	if allowed, err := r.Allowed(ctx, p); err != nil || allowed {
		return nil, err
	}
	var missing []Permission
	for _, namespace := range p.within {
		in := Permission{attributes: p.attributes}
		in.attributes.Namespace = namespace
		allowed, err := r.Allowed(ctx, in)
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
