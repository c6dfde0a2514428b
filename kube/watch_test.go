package kube

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"hsm-signer/kube/csr"
)

// watched is an API server of which each watch is established.
type watched struct{ csr.Client }

// Watch establishes a watch.
func (watched) Watch(context.Context, metav1.ListOptions) (watch.Interface, error) {
	return watch.NewEmptyWatch(), nil
}

// List lists no requests.
func (watched) List(
	context.Context, metav1.ListOptions,
) (*certificatesv1.CertificateSigningRequestList, error) {
	return &certificatesv1.CertificateSigningRequestList{}, nil
}

// After a watch has ended before its time nothing continues from where it was: etcd may have been
// set back, and a watch from a version that is yet to come is silent.
func TestAllIsListedAnewAfterAWatchThatWasCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lw := listerWatcher(&csr.API{Client: watched{}}, "", func(error) {}).(apiListWatch)
		const lasts = 300 // seconds
		watching := func(version string) error {
			_, err := lw.WatchWithContext(t.Context(),
				metav1.ListOptions{ResourceVersion: version, TimeoutSeconds: new(int64(lasts))})
			return err
		}
		for name, anew := range map[string]func() error{
			"by a watch": func() error { return watching("") },
			"by a list": func() error {
				_, err := lw.ListWithContext(t.Context(), metav1.ListOptions{})
				return errors.Join(err, watching("1"))
			},
		} {
			if err := anew(); err != nil {
				t.Errorf("all is listed %s: %v", name, err)
			}
			<-time.After(lasts * time.Second)
			if err := watching("7"); err != nil {
				t.Errorf("after a watch that ended in its time: %v", err)
			}
			<-time.After(time.Second)
			for range 2 {
				if err := watching("7"); !apierrors.IsResourceExpired(err) {
					t.Errorf("after one that was cut: %v", err)
				}
			}
			if err := anew(); err != nil {
				t.Errorf("all is listed anew %s: %v", name, err)
			}
			<-time.After(lasts * time.Second)
		}
	})
}
