package request

import (
	"context"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
)

// Served reports whether the API server has the resource in a version, given as GROUP/VERSION.
func Served(
	ctx context.Context, d discovery.ServerResourcesInterfaceWithContext, version, resource string,
) (bool, error) {
	resources, err := d.ServerResourcesForGroupVersionWithContext(ctx, version)
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, err
	}
	return slices.ContainsFunc(resources.APIResources, func(r metav1.APIResource) bool {
		return r.Name == resource
	}), nil
}
