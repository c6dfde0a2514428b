package lease

import (
	"context"
	"fmt"
	"maps"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"hsm-signer/kube/apifault"
)

// annotatedLeases adds the candidate's annotations to each write of a lease, and shows it those
// that are read.
type annotatedLeases struct {
	coordinationclient.LeasesGetter
	candidate Candidate
}

// Leases is client-go's.
func (a annotatedLeases) Leases(namespace string) coordinationclient.LeaseInterface {
	return annotatedLease{a.LeasesGetter.Leases(namespace), a.candidate}
}

type annotatedLease struct {
	coordinationclient.LeaseInterface
	candidate Candidate
}

// Get reads the lease, and shows its annotations.
func (a annotatedLease) Get(
	ctx context.Context, name string, o metav1.GetOptions,
) (*coordinationv1.Lease, error) {
	lease, err := a.LeaseInterface.Get(ctx, name, o)
	if err != nil {
		return lease, err
	}
	if err := a.candidate.Heard(lease.Annotations); err != nil {
		return nil, fmt.Errorf("the lease %s is not taken: %w", name, err)
	}
	return lease, nil
}

// Create makes the lease, with the annotations.
func (a annotatedLease) Create(
	ctx context.Context, lease *coordinationv1.Lease, o metav1.CreateOptions,
) (*coordinationv1.Lease, error) {
	a.annotate(lease)
	return a.LeaseInterface.Create(ctx, lease, o)
}

// Update writes the lease, with the annotations.
func (a annotatedLease) Update(
	ctx context.Context, lease *coordinationv1.Lease, o metav1.UpdateOptions,
) (*coordinationv1.Lease, error) {
	a.annotate(lease)
	updated, err := a.LeaseInterface.Update(ctx, lease, o)
	if apifault.TooLarge(err) { // somebody has filled it up, so that nobody could lead
		lease.Labels, lease.OwnerReferences, lease.Finalizers = nil, nil, nil
		updated, err = a.LeaseInterface.Update(ctx, lease, o)
	}
	return updated, err
}

func (a annotatedLease) annotate(lease *coordinationv1.Lease) {
	said := a.candidate.Annotations()
	if lease.Annotations == nil {
		lease.Annotations = map[string]string{}
	}
	maps.Copy(lease.Annotations, said)
	for name, value := range said {
		if value == "" {
			delete(lease.Annotations, name)
		}
	}
}
