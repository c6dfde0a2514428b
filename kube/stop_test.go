package kube

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/kube/csr"
)

// hanging is an API server that answers nobody before they give up.
type hanging struct{ csr.Client }

func (hanging) Get(ctx context.Context, _ string,
	_ metav1.GetOptions) (*certificatesv1.CertificateSigningRequest, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// What is in work when the process is asked to end is finished, but not waited for longer than a
// supervisor waits.
func TestStopWaitsForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, add := withStore(t, &remembering{}, func() bool { return true })
		defer c.events.broadcaster.Shutdown()
		apiOf(c).Client = hanging{}
		// which is read again
		add("u", "", condition(certificatesv1.CertificateApproved, corev1.ConditionTrue))
		c.queue.Add(key{"u", "u"})
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		time.AfterFunc(time.Second, cancel)
		c.workUntil(ctx)
		if took := time.Since(began); took != time.Second+drainTimeout {
			t.Errorf("it took %s", took)
		}
	})
}
