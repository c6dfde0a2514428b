package trustbundle

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/kube/clientset"
)

const (
	// ConfigMap is the name of the ConfigMap in each namespace.
	ConfigMap = "hsm-signer-trust-bundle"
	// configMapKey is its only key, as in the ConfigMap kube-root-ca.crt.
	configMapKey = "ca.crt"
	// signersAnnotation marks a ConfigMap that this package has created. It holds the signers, with
	// commas in between.
	signersAnnotation = "hsm-signer/trust-bundle-of"
)

// ErrForeign says that a ConfigMap is not this installation's.
var ErrForeign = errors.New("was not created for this signer, so it stays as it is: delete it to " +
	"have the trust anchors published there, or take its namespace out of TRUST_BUNDLE_NAMESPACES")

// ConfigMaps publishes a ConfigMap in each of the namespaces.
type ConfigMaps struct {
	Client     clientset.Interface
	Namespaces []string
	Signers    []string // whose anchors they are
}

func (c ConfigMaps) String() string { return "ConfigMaps " + ConfigMap }

// Publish implements [Place].
func (c ConfigMaps) Publish(ctx context.Context, anchors string) error {
	return c.each(func(namespace string) error {
		found, err := c.find(ctx, namespace, anchors)
		switch {
		case apierrors.IsNotFound(err):
			return c.create(ctx, namespace, anchors)
		case !errors.Is(err, ErrOutdated):
			return err
		}
		found = found.DeepCopy()
		found.Data, found.BinaryData = map[string]string{configMapKey: anchors}, nil
		_, err = c.Client.ConfigMaps(namespace).Update(ctx, found, metav1.UpdateOptions{})
		return err
	})
}

// Holds implements [Place].
func (c ConfigMaps) Holds(ctx context.Context, anchors string) error {
	return c.each(func(namespace string) error {
		_, err := c.find(ctx, namespace, anchors)
		if apierrors.IsNotFound(err) {
			return ErrOutdated
		}
		return err
	})
}

// each calls the function for each namespace.
func (c ConfigMaps) each(call func(namespace string) error) error {
	return each(c.Namespaces, func(namespace string) string {
		return "ConfigMap " + namespace + "/" + ConfigMap
	}, call)
}

// find returns the ConfigMap of a namespace, with ErrOutdated if it does not hold the anchors.
func (c ConfigMaps) find(ctx context.Context, namespace, anchors string) (*corev1.ConfigMap,
	error) {
	found, err := c.Client.ConfigMaps(namespace).Get(ctx, ConfigMap, metav1.GetOptions{})
	switch want := map[string]string{configMapKey: anchors}; {
	case err != nil:
		return nil, err
	case !c.own(found):
		return nil, ErrForeign
	case !maps.Equal(found.Data, want) || len(found.BinaryData) > 0:
		return found, ErrOutdated
	}
	return found, nil
}

// own reports whether the ConfigMap was created for one of the signers.
func (c ConfigMaps) own(found *corev1.ConfigMap) bool {
	of := strings.Split(found.Annotations[signersAnnotation], ",")
	return slices.ContainsFunc(c.Signers, func(s string) bool { return slices.Contains(of, s) })
}

func (c ConfigMaps) create(ctx context.Context, namespace, anchors string) error {
	_, err := c.Client.ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: ConfigMap, Namespace: namespace,
			Annotations: map[string]string{signersAnnotation: strings.Join(c.Signers, ",")}},
		Data: map[string]string{configMapKey: anchors},
	}, metav1.CreateOptions{})
	return err
}
