package soak

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// A batch is a set of requests of one pod, valid ones unless spoil changes them. It talks to the
// API server directly, even if the signer talks to it through a proxy.
type batch struct {
	pod   testenv.Pod
	admin kubernetes.Interface
	// returns the object to create
	spoil func(number int, asking *calico.InitContainer) (*certificatesv1.CertificateSigningRequest,
		error)

	mu     sync.Mutex
	number int
	asked  map[types.UID]asked
}

// An asked request was created.
type asked struct {
	name string
	at   time.Time
}

// newBatch creates the pod. Its requests are deleted when the test ends.
func (s *fixture) newBatch(t *testing.T) *batch {
	t.Helper()
	pod, err := s.NewPod(t.Context(), node(), s.NextIP())
	must.OK(t, err)
	config := s.Cluster.Config()
	config.ContentType = "application/vnd.kubernetes.protobuf"
	admin, err := kubernetes.NewForConfig(config)
	must.OK(t, err)
	t.Cleanup(func() { must.OK(t, s.Cluster.DeleteRequests(context.Background())) })
	return &batch{pod: pod, admin: admin, asked: map[types.UID]asked{}, spoil: good}
}

// good changes nothing.
func good(_ int, asking *calico.InitContainer) (*certificatesv1.CertificateSigningRequest, error) {
	return asking.Object()
}

// askOne creates a request.
func (c *batch) askOne(ctx context.Context) (*certificatesv1.CertificateSigningRequest, error) {
	asking := c.pod.InitContainer(node())
	c.mu.Lock()
	c.number++
	number := c.number
	c.mu.Unlock()
	asking.SecretName = fmt.Sprintf("batch-%d", number)
	csr, err := c.spoil(number, &asking)
	if err != nil {
		return nil, err
	}
	at := time.Now()
	csr, err = c.pod.Requests().Create(ctx, csr, metav1.CreateOptions{})
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.asked[csr.UID] = asked{csr.Name, at}
	}
	return csr, err
}

// ask creates this many requests, several at a time.
func (c *batch) ask(t *testing.T, requests int) {
	const askers = 8
	numbers := make(chan int)
	var group sync.WaitGroup
	for range askers {
		group.Go(func() {
			for range numbers {
				c.try(t)
			}
		})
	}
	for i := range requests {
		numbers <- i
	}
	close(numbers)
	group.Wait()
}

// try creates a request. It does not count if the API server was too busy: it may or may not exist.
func (c *batch) try(t *testing.T) {
	_, err := c.askOne(t.Context())
	switch {
	case apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err) ||
		apierrors.IsInternalError(err):
		t.Logf("not created: %v", err)
	case err != nil:
		t.Error(err)
	}
}

// keepAsking creates requests at this rate until the caller calls stop.
func (c *batch) keepAsking(t *testing.T, perSecond int) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		ticker := time.NewTicker(time.Second / time.Duration(perSecond))
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			group.Go(func() { c.try(t) }) // so that a slow request delays no other
		}
	})
	return func() {
		cancel()
		group.Wait()
	}
}

// waitForSize waits until this many requests were created.
func (c *batch) waitForSize(t *testing.T, requests int) {
	t.Helper()
	must.Eventually(t, fmt.Sprintf("%d requests", requests), func(context.Context) (bool, error) {
		return c.size() >= requests, nil
	})
}

// size returns how many requests were created.
func (c *batch) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.asked)
}

// requests returns the requests of the batch as they are now, by UID.
func (c *batch) requests(
	ctx context.Context) (map[types.UID]*certificatesv1.CertificateSigningRequest, error) {
	list, err := c.admin.CertificatesV1().CertificateSigningRequests().List(ctx,
		metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ours := map[types.UID]*certificatesv1.CertificateSigningRequest{}
	for i := range list.Items {
		if csr := &list.Items[i]; c.asked[csr.UID].name != "" {
			ours[csr.UID] = csr
		}
	}
	return ours, nil
}

// lost returns the names of the requests that have no certificate or no approval.
func (c *batch) lost(ctx context.Context) ([]string, error) {
	now, err := c.requests(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	all := maps.Clone(c.asked)
	c.mu.Unlock()
	var lost []string
	for uid, made := range all {
		if csr := now[uid]; csr == nil || len(csr.Status.Certificate) == 0 ||
			!has(csr, certificatesv1.CertificateApproved) {
			lost = append(lost, made.name)
		}
	}
	return lost, nil
}

func has(csr *certificatesv1.CertificateSigningRequest,
	kind certificatesv1.RequestConditionType) bool {
	for _, c := range csr.Status.Conditions {
		if c.Type == kind && c.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

// waitForAll waits until every request has its certificate, and returns how long that took. It
// gives up if no certificate is issued for a long time.
func (c *batch) waitForAll(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	least, since := c.size()+1, began
	var lost []string
	err := wait.PollUntilContextCancel(t.Context(), 200*time.Millisecond, true,
		func(ctx context.Context) (bool, error) {
			now, err := c.lost(ctx)
			if err != nil {
				now = lost // the API server may be away for a moment
			}
			if lost = now; err == nil && len(lost) < least {
				least, since = len(lost), time.Now()
			}
			if time.Since(since) > patience {
				return false, fmt.Errorf("none was issued for %s", patience)
			}
			return err == nil && len(lost) == 0, nil
		})
	if err != nil {
		t.Errorf("%d of %d requests are lost, such as %v: %v", len(lost), c.size(),
			lost[:min(len(lost), 5)], err)
	}
	return time.Since(began)
}
