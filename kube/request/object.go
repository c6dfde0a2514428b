package request

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

// DiscoveryTimeout bounds one [Kind.Find].
const DiscoveryTimeout = 10 * time.Second

// Selectors returns the field selectors of the requests of each signer name, for an API that has
// the field spec.signerName.
func Selectors(signerNames []string) []string {
	var selectors []string
	for _, name := range signerNames {
		selectors = append(selectors, fields.OneTermEqualSelector("spec.signerName", name).String())
	}
	return selectors
}

// mostMeta is how much of annotations, labels, and what else is in the metadata is kept, in bytes.
const mostMeta = 16 << 10

// TrimmedMeta returns the metadata that a sync needs.
func TrimmedMeta(o metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: o.Namespace, Name: o.Name, UID: o.UID,
		ResourceVersion: o.ResourceVersion, CreationTimestamp: o.CreationTimestamp,
	}
}

// Trim takes from the metadata what a sync does not need, and reports whether the object is
// [Object.Truncated] by that, or may be too large to be written: its stored size is in bytes.
func Trim(o *metav1.ObjectMeta, storedSize int) (truncated bool) {
	o.ManagedFields = nil
	if truncated = !HasRoom(storedSize, RoomForAnswer) || o.Size() > mostMeta; truncated {
		*o = TrimmedMeta(*o)
	}
	return truncated
}

// Unchanged returns the condition that an object is still as it was read.
func Unchanged(o metav1.ObjectMeta) *metav1.Preconditions {
	return &metav1.Preconditions{UID: &o.UID, ResourceVersion: &o.ResourceVersion}
}
