package soak

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/integration/must"
)

// A batch is a set of requests of one kind. It talks to the API server directly, even if the signer
// talks to it through a proxy.
type batch struct {
	kind kind

	mu     sync.Mutex
	number int
	asked  map[types.UID]asked
}

// A kind of request is what a batch is of: it creates requests, and reads their answers.
type kind interface {
	// create creates a request. Each has another number.
	create(ctx context.Context, number int) (metav1.Object, error)
	// list returns all requests of the kind in the cluster.
	list(ctx context.Context) ([]metav1.Object, error)
	// answer returns the answer that the request shows.
	answer(request any) answer
	// informer watches all requests of the kind.
	informer() cache.SharedIndexInformer
}

// An answer is what a request shows of its answer.
type answer struct {
	name       string
	conditions int
	chain      []byte // PEM
	issued     bool   // with all that belongs to it
	refused    bool   // forever
}

// isOneOf reports whether the answer is one of these certificates, in DER.
func (a answer) isOneOf(made [][]byte) bool {
	block, _ := pem.Decode(a.chain)
	return block != nil && slices.ContainsFunc(made, func(der []byte) bool {
		return bytes.Equal(der, block.Bytes)
	})
}

// An asked request was created.
type asked struct {
	name string
	at   time.Time
}

func newBatch(k kind) *batch { return &batch{kind: k, asked: map[types.UID]asked{}} }

// askOne creates a request.
func (c *batch) askOne(ctx context.Context) (metav1.Object, error) {
	c.mu.Lock()
	c.number++
	number := c.number
	c.mu.Unlock()
	at := time.Now()
	request, err := c.kind.create(ctx, number)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.asked[request.GetUID()] = asked{request.GetName(), at}
	}
	return request, err
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

// answers returns the answers to the requests of the batch as they are now, by UID.
func (c *batch) answers(ctx context.Context) (map[types.UID]answer, error) {
	all, err := c.kind.list(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ours := map[types.UID]answer{}
	for _, request := range all {
		if c.asked[request.GetUID()].name != "" {
			ours[request.GetUID()] = c.kind.answer(request)
		}
	}
	return ours, nil
}

// lost returns the names of the requests that were not issued a certificate.
func (c *batch) lost(ctx context.Context) ([]string, error) {
	now, err := c.answers(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var lost []string
	for uid, made := range c.asked {
		if !now[uid].issued {
			lost = append(lost, made.name)
		}
	}
	return lost, nil
}

// refused returns the names of the requests that are refused.
func (c *batch) refused(ctx context.Context) (refused []string, err error) {
	now, err := c.answers(ctx)
	for _, answer := range now {
		if answer.refused {
			refused = append(refused, answer.name)
		}
	}
	return refused, err
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
