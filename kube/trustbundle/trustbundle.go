// Package trustbundle publishes the trust anchors of signers, which kubelet mounts into pods.
//
// Duty: keep objects with exactly the configured certificates: a ClusterTrustBundle for each
// signer, linked to it by name, or, in clusters that do not serve those, a ConfigMap in each of
// some namespaces. Create what is missing, and correct what differs.
//
// Contract: only the ClusterTrustBundles named by [Name] are written, and only ConfigMaps that this
// package has created; others are left alone. The caller decides who publishes and when, and
// repeats it.
package trustbundle

import (
	"context"
	"errors"
	"fmt"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/kube/clientset"
)

// ErrNotServed says that the API server does not serve certificates.k8s.io/v1 ClusterTrustBundle.
var ErrNotServed = errors.New("the API server does not serve ClusterTrustBundles of " +
	"certificates.k8s.io/v1, which Kubernetes 1.37 and later do: set TRUST_BUNDLE_NAMESPACES to " +
	"publish ConfigMaps instead, or unset TRUST_BUNDLE_FILE")

// Name returns the name of the signer's ClusterTrustBundle. The API requires that it begins with
// the signer's name, with a colon in place of the slash (ClusterTrustBundleSpec, signerName).
func Name(signer string) string { return strings.ReplaceAll(signer, "/", ":") + ":hsm-signer" }

// A Place is where the anchors of an installation are published: [Bundles] or [ConfigMaps].
type Place interface {
	// Publish has the place hold these anchors, in PEM as [issuer.Anchors.PEM] writes it. The error
	// names each object that does not hold them afterwards.
	Publish(ctx context.Context, anchors string) error
	// Holds returns nil if the place holds these anchors, and otherwise an error that names each
	// object that does not. It writes nothing. An error is [ErrNotServed], [ErrForeign], of the API
	// server, or an [ErrOutdated] that publishing corrects.
	Holds(ctx context.Context, anchors string) error
	// String says what the objects are, for people.
	String() string
}

// ErrOutdated says that an object is missing or holds other anchors.
var ErrOutdated = errors.New("does not hold the certificates of TRUST_BUNDLE_FILE")

// Bundles publishes a ClusterTrustBundle for each signer.
type Bundles struct {
	Client  clientset.Interface
	Signers []string
}

func (b Bundles) String() string { return "ClusterTrustBundles" }

// Publish implements [Place].
func (b Bundles) Publish(ctx context.Context, anchors string) error {
	return b.each(func(signer string) error {
		return publish(ctx, b.Client.ClusterTrustBundles(), signer, anchors)
	})
}

// Holds implements [Place].
func (b Bundles) Holds(ctx context.Context, anchors string) error {
	served, err := b.Client.HasResource(ctx, certificatesv1.SchemeGroupVersion.String(),
		"clustertrustbundles")
	switch {
	case err != nil:
		return err
	case !served:
		return ErrNotServed
	}
	return b.each(func(signer string) error {
		bundle, err := b.Client.ClusterTrustBundles().Get(ctx, Name(signer), metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && bundle.Spec.TrustBundle != anchors {
			return ErrOutdated
		}
		return err
	})
}

// each calls the function for each signer.
func (b Bundles) each(call func(signer string) error) error {
	return each(b.Signers, func(signer string) string {
		return "ClusterTrustBundle " + Name(signer)
	}, call)
}

// each calls the function for each of all, and has its errors name the object that each stands for.
func each(all []string, object func(of string) string, call func(of string) error) error {
	var faults []error
	for _, of := range all {
		if err := call(of); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", object(of), err))
		}
	}
	return errors.Join(faults...)
}

func publish(ctx context.Context, bundles clientset.ClusterTrustBundles, signer,
	anchors string) error {
	bundle, err := bundles.Get(ctx, Name(signer), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return create(ctx, bundles, signer, anchors)
	case err != nil:
		return err
	case bundle.Spec.TrustBundle == anchors:
		return nil
	}
	bundle = bundle.DeepCopy()
	bundle.Spec.TrustBundle = anchors
	_, err = bundles.Update(ctx, bundle, metav1.UpdateOptions{})
	return err
}

func create(ctx context.Context, bundles clientset.ClusterTrustBundles, signer,
	anchors string) error {
	_, err := bundles.Create(ctx, &certificatesv1.ClusterTrustBundle{
		ObjectMeta: metav1.ObjectMeta{Name: Name(signer)},
		Spec: certificatesv1.ClusterTrustBundleSpec{
			SignerName: signer, TrustBundle: anchors,
		},
	}, metav1.CreateOptions{})
	if apierrors.IsNotFound(err) { // of a resource that is served, creation finds nothing missing
		return ErrNotServed
	}
	return err
}
