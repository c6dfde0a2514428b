package kube

import (
	"context"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/cache"
)

// reconcileInterval is the time between two looks at what is unfinished.
const reconcileInterval = 10 * time.Second

// reconcile finds out what became of what was begun: a request may have been deleted, or have taken its
// certificate just before this process was killed.
func (c *Controller) reconcile(ctx context.Context) {
	wait.UntilWithContext(ctx, c.reconcileOnce, reconcileInterval)
}

func (c *Controller) reconcileOnce(ctx context.Context) {
	unfinished := c.Issuer.Unfinished() // before the requests, so that none of them is later
	all, complete := c.requests.Load().all()
	if !complete || c.leader.fence() != nil {
		c.Observer.Certificates(nil)
		return
	}
	for _, uid := range unfinished {
		if err := c.resolve(ctx, uid, all[types.UID(uid)]); err != nil {
			c.Logger.Error("what became of a request could not be noted", "uid", uid, "error", err)
		}
	}
	c.lookAtCertificates(all)
}

// resolve notes what became of a request; csr is nil when it is gone.
func (c *Controller) resolve(ctx context.Context, uid string, csr *certificatesv1.CertificateSigningRequest) error {
	switch {
	case csr == nil:
		return c.Issuer.Orphaned(ctx, uid, "the request is gone")
	case len(csr.Status.Certificate) > 0:
		made, err := c.Issuer.Made(uid, csr.Status.Certificate)
		switch {
		case err != nil:
			return err
		case made:
			return c.Issuer.Published(ctx, uid)
		}
		return c.Issuer.Orphaned(ctx, uid, "the request has a certificate that is not this one")
	case stateOf(csr) == done:
		return c.Issuer.Orphaned(ctx, uid, "the request was denied or has failed")
	}
	c.enqueue(csr)
	return nil
}

// all returns every request that is known, by UID, and whether that is all there are.
func (r *requests) all() (map[types.UID]*certificatesv1.CertificateSigningRequest, bool) {
	all := map[types.UID]*certificatesv1.CertificateSigningRequest{}
	for _, store := range r.stores {
		for _, object := range store.List() {
			if csr, ok := object.(*certificatesv1.CertificateSigningRequest); ok {
				all[csr.UID] = csr
			}
		}
	}
	return all, !slices.ContainsFunc(r.synced, func(synced cache.InformerSynced) bool { return !synced() })
}
