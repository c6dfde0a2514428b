// Package clientset is the client of the API server.
//
// Duty: read and write the objects that hsm-signer uses, and ask which API the server has.
//
// Contract: [Interface] lists everything that hsm-signer does to objects of each resource, and no
// other call can be made. The calls are those of client-go's own Clientset. That one links every
// API group of Kubernetes, which would make the program a third larger.
package clientset

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
)

// An Interface is what [Clientset] does. An empty namespace stands for all of them.
type Interface interface {
	Pods(namespace string) Pods
	ServiceAccounts(namespace string) ServiceAccounts
	Services(namespace string) Lister[*corev1.ServiceList]
	Nodes() Getter[*corev1.Node]
	Namespaces() Getter[*corev1.Namespace]
	ReplicaSets(namespace string) Getter[*appsv1.ReplicaSet]
	Leases(namespace string) Leases
	Events() record.EventSink
	SelfSubjectAccessReviews() Creator[*authorizationv1.SelfSubjectAccessReview]
	CertificateSigningRequests() Requests[*certificatesv1.CertificateSigningRequest,
		*certificatesv1.CertificateSigningRequestList]
	CertificateSigningRequestsV1beta1() Requests[*certificatesv1beta1.CertificateSigningRequest,
		*certificatesv1beta1.CertificateSigningRequestList]
	ClusterTrustBundles() ClusterTrustBundles
	ConfigMaps(namespace string) ConfigMaps
	// PodCertificates makes calls on PodCertificateRequests, of v1 or v1beta1: their objects
	// differ.
	PodCertificates(version string) rest.Interface

	// HasResource reports whether the server has the resource in this version of its group.
	HasResource(ctx context.Context, groupVersion, resource string) (bool, error)
	// ServerVersion returns the version of the server.
	ServerVersion(ctx context.Context) (*version.Info, error)
	// GetJSON returns what the server has at a path, as JSON.
	GetJSON(ctx context.Context, path string) ([]byte, error)
}

// A Clientset calls the API server.
type Clientset struct {
	core, apps, coordination, authorization, certificates, certificatesV1beta1 rest.Interface
}

var _ Interface = (*Clientset)(nil)

// New returns a client that sends its calls through the HTTP client.
func New(config *rest.Config, through *http.Client) (*Clientset, error) {
	c := &Clientset{}
	for group, client := range map[schema.GroupVersion]*rest.Interface{
		corev1.SchemeGroupVersion:              &c.core,
		appsv1.SchemeGroupVersion:              &c.apps,
		coordinationv1.SchemeGroupVersion:      &c.coordination,
		authorizationv1.SchemeGroupVersion:     &c.authorization,
		certificatesv1.SchemeGroupVersion:      &c.certificates,
		certificatesv1beta1.SchemeGroupVersion: &c.certificatesV1beta1,
	} {
		config := rest.CopyConfig(config)
		config.GroupVersion, config.APIPath = &group, "/apis"
		if group == corev1.SchemeGroupVersion {
			config.APIPath = "/api"
		}
		config.NegotiatedSerializer = codecs.WithoutConversion()
		one, err := rest.RESTClientForConfigAndClient(config, through)
		if err != nil {
			return nil, err
		}
		*client = one
	}
	return c, nil
}

// Pods implements [Interface].
func (c *Clientset) Pods(namespace string) Pods {
	return listed[corev1.Pod, corev1.PodList](c.core, "pods", namespace)
}

// ServiceAccounts implements [Interface].
func (c *Clientset) ServiceAccounts(namespace string) ServiceAccounts {
	return serviceAccounts{objects[corev1.ServiceAccount](c.core, "serviceaccounts", namespace)}
}

// Services implements [Interface].
func (c *Clientset) Services(namespace string) Lister[*corev1.ServiceList] {
	return listed[corev1.Service, corev1.ServiceList](c.core, "services", namespace)
}

// Nodes implements [Interface].
func (c *Clientset) Nodes() Getter[*corev1.Node] {
	return objects[corev1.Node](c.core, "nodes", "")
}

// Namespaces implements [Interface].
func (c *Clientset) Namespaces() Getter[*corev1.Namespace] {
	return objects[corev1.Namespace](c.core, "namespaces", "")
}

// ReplicaSets implements [Interface].
func (c *Clientset) ReplicaSets(namespace string) Getter[*appsv1.ReplicaSet] {
	return objects[appsv1.ReplicaSet](c.apps, "replicasets", namespace)
}

// Leases implements [Interface].
func (c *Clientset) Leases(namespace string) Leases {
	return objects[coordinationv1.Lease](c.coordination, "leases", namespace)
}

// Events implements [Interface].
func (c *Clientset) Events() record.EventSink { return events{c.core} }

// SelfSubjectAccessReviews implements [Interface].
func (c *Clientset) SelfSubjectAccessReviews() Creator[*authorizationv1.SelfSubjectAccessReview] {
	return objects[authorizationv1.SelfSubjectAccessReview](c.authorization,
		"selfsubjectaccessreviews", "")
}

// CertificateSigningRequests implements [Interface].
func (c *Clientset) CertificateSigningRequests() Requests[*certificatesv1.CertificateSigningRequest,
	*certificatesv1.CertificateSigningRequestList] {
	return requestsOf[certificatesv1.CertificateSigningRequest,
		certificatesv1.CertificateSigningRequestList](c.certificates)
}

// CertificateSigningRequestsV1beta1 implements [Interface].
func (c *Clientset) CertificateSigningRequestsV1beta1() Requests[
	*certificatesv1beta1.CertificateSigningRequest,
	*certificatesv1beta1.CertificateSigningRequestList] {
	return requestsOf[certificatesv1beta1.CertificateSigningRequest,
		certificatesv1beta1.CertificateSigningRequestList](c.certificatesV1beta1)
}

// PodCertificates implements [Interface].
func (c *Clientset) PodCertificates(version string) rest.Interface {
	if version == certificatesv1beta1.SchemeGroupVersion.Version {
		return c.certificatesV1beta1
	}
	return c.certificates
}

// ClusterTrustBundles implements [Interface].
func (c *Clientset) ClusterTrustBundles() ClusterTrustBundles {
	return objects[certificatesv1.ClusterTrustBundle](c.certificates, "clustertrustbundles", "")
}

// ConfigMaps implements [Interface].
func (c *Clientset) ConfigMaps(namespace string) ConfigMaps {
	return objects[corev1.ConfigMap](c.core, "configmaps", namespace)
}

// HasResource implements [Interface].
func (c *Clientset) HasResource(ctx context.Context, groupVersion, resource string) (bool, error) {
	text, err := c.GetJSON(ctx, "/apis/"+groupVersion)
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, err
	}
	var list metav1.APIResourceList
	if err := json.Unmarshal(text, &list); err != nil {
		return false, fmt.Errorf("read the resources of %s: %w", groupVersion, err)
	}
	return slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool {
		return r.Name == resource
	}), nil
}

// ServerVersion implements [Interface].
func (c *Clientset) ServerVersion(ctx context.Context) (*version.Info, error) {
	text, err := c.GetJSON(ctx, "/version")
	if err != nil {
		return nil, err
	}
	info := &version.Info{}
	if err := json.Unmarshal(text, info); err != nil {
		return nil, fmt.Errorf("read the version of the API server: %w", err)
	}
	return info, nil
}

// GetJSON implements [Interface].
func (c *Clientset) GetJSON(ctx context.Context, path string) ([]byte, error) {
	return c.core.Get().AbsPath(path).SetHeader("Accept", "application/json").DoRaw(ctx)
}
