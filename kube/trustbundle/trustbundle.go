// Package trustbundle publishes the trust anchors of signers as ClusterTrustBundles, which kubelet
// mounts into pods.
//
// Duty: keep one object for each signer, linked to it by name, with exactly the configured
// certificates: create it if it is missing, and correct it if it differs.
//
// Contract: only the objects named by [Name] are written; other bundles of the same signer are left
// alone. The caller decides who publishes and when, and repeats it.
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
	"certificates.k8s.io/v1, which Kubernetes 1.37 and later do: unset TRUST_BUNDLE_FILE")

// Name returns the name of the signer's ClusterTrustBundle. The API requires that it begins with
// the signer's name, with a colon in place of the slash (ClusterTrustBundleSpec, signerName).
func Name(signer string) string { return strings.ReplaceAll(signer, "/", ":") + ":hsm-signer" }

// Publish gives each signer's ClusterTrustBundle these anchors, in PEM as the API takes it. It
// returns an error for the signers whose bundle does not hold them afterwards, and an
// [ErrNotServed] if no bundle can.
func Publish(ctx context.Context, bundles clientset.ClusterTrustBundles, signers []string,
	anchors string) error {
	var faults []error
	for _, signer := range signers {
		if err := publish(ctx, bundles, signer, anchors); err != nil {
			faults = append(faults, fmt.Errorf("ClusterTrustBundle %s: %w", Name(signer), err))
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
