package kube

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"hsm-signer/internal/must"
	"hsm-signer/kube/csr"
	"hsm-signer/kube/request"
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

// listed is an API whose requests are listed before they are watched.
type listed struct{ *csr.API }

func (listed) ListsFirst() bool { return true }

// lateKind is a kind of request whose API the cluster may lack.
type lateKind struct {
	request.Kind
	namespaced bool
	served     atomic.Bool
}

func (k *lateKind) Named(name string) bool { return strings.Contains(name, "/") == k.namespaced }

func (k *lateKind) Find(context.Context) (request.API, error) {
	if !k.served.Load() {
		return nil, request.NoAPI("the API server lacks it")
	}
	return listed{&csr.API{Kind: csr.Kind{SignerNames: []string{"a.b/c"}},
		Client: watched{}}}, nil
}

// A kind of request whose API the cluster lacks keeps no other one from being watched. It is
// reported, and found when the cluster gets it; so is one that the cluster loses.
func TestKindWithoutAPI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, late := &lateKind{}, &lateKind{namespaced: true}
		first.served.Store(true)
		c := New(Config{Kind: request.Kinds{first, late}, Logger: hclog.NewNullLogger()})
		defer c.queue.ShutDown()
		defer c.events.broadcaster.Shutdown()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		defer func() { cancel(); <-ended }()
		api, err := c.findAPI(ctx)
		must.OK(t, err)
		go func() { defer close(ended); c.keepWatching(ctx, api, func() {}) }()
		for _, served := range []bool{false, true} {
			late.served.Store(served)
			<-time.After(missingInterval + 2*rediscoverAfter)
			synctest.Wait()
			if err := c.Ready(); c.watched() != nil || (err == nil) != served || err != nil &&
				err.Error() != "the API server lacks it" {
				t.Errorf("served %t: %v; %v", served, err, c.watched())
			}
			if stores := len(c.requests.Load().stores); stores != 1 && !served ||
				stores != 2 && served {
				t.Errorf("served %t: %d stores", served, stores)
			}
		}
	})
}

// oneRequest is an API server with one request.
type oneRequest struct{ watched }

func (oneRequest) List(
	context.Context, metav1.ListOptions,
) (*certificatesv1.CertificateSigningRequestList, error) {
	return &certificatesv1.CertificateSigningRequestList{Items: []certificatesv1.
		CertificateSigningRequest{{ObjectMeta: metav1.ObjectMeta{Name: "one", UID: "1"}}}}, nil
}

// When the versions of the API are looked for again, the same requests are listed again. Their
// number, which slows answers down, stays the same.
func TestRequestsAreCountedOnceWhenTheyAreWatchedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Config{Kind: csr.Kind{}, Logger: hclog.NewNullLogger()})
		defer c.queue.ShutDown()
		defer c.events.broadcaster.Shutdown()
		for range 2 {
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = c.watchWhileServed(ctx, &requests{API: listed{&csr.API{
					Kind: csr.Kind{SignerNames: []string{"a.b/c"}}, Client: oneRequest{}}}}, func() {})
			}()
			synctest.Wait()
			cancel()
			<-ended
			if n := c.known.Load(); n != 1 {
				t.Errorf("%d requests are known", n)
			}
		}
	})
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
