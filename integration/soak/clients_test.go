package soak

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/load"
	"hsm-signer/integration/must"
)

// An interruption happens to hsm-signer when half of the clients watch.
type interruption struct {
	name string
	// start starts the signer, and returns the function that interrupts it.
	start func(t *testing.T, s *fixture) (middle func())
}

// The first of the interruptions is none.
var interruptions = []interruption{
	{"nothing", func(t *testing.T, s *fixture) func() {
		s.signer(t).startReady(t)
		return func() {}
	}},
	{"kill -9", func(t *testing.T, s *fixture) func() {
		one := s.signer(t)
		first := one.startReady(t)
		return func() {
			must.OK(t, first.Kill())
			one.startReady(t)
		}
	}},
	{"leader change", func(t *testing.T, s *fixture) func() {
		p := newPair(t, s)
		leader := p.leader(t)
		return func() {
			must.OK(t, p.daemons[leader].Kill())
			p.takeover(t, leader)
		}
	}},
}

// Clients like Calico's request certificates. When half of them watch, hsm-signer is killed or the
// leader changes. Clients that arrive within a second lose some of their watches even without a
// signer, so the figure is what an interruption adds. Clients that arrive one by one must lose
// none.
func TestClients(t *testing.T) {
	clients, rounds := of(20, 300), of(1, 3)
	r := begin(t, 24,
		"300 clients, 15 ms per event, on a fresh API server: 20 a second, and within a second; "+
			"in their middle kill -9, or the leader is killed",
		"lost at 20 a second 0; within a second: added by an interruption, median ≤ 6 or within "+
			"the spread of "+
			"the runs without one; every request issued")
	within := map[string][]float64{}
	for round := range rounds {
		for _, i := range interruptions {
			lost := i.lost(t, clients, time.Second/time.Duration(clients))
			within[i.name] = append(within[i.name], float64(lost))
			if round > 0 || !full { // the short form has too few clients for another rate
				continue
			}
			lost = i.lost(t, clients, time.Second/20)
			r.measured("%d at 20 a second, %s: lost %d", clients, i.name, lost)
			r.must(lost == 0)
		}
	}
	calm := within[interruptions[0].name]
	for _, i := range interruptions[1:] {
		var added []float64
		for round, lost := range within[i.name] {
			added = append(added, lost-calm[round])
		}
		r.measured("%d within a second, %s: lost %v, without it %v; added %v",
			clients, i.name, within[i.name], calm, added)
		slices.Sort(added)
		r.must(added[len(added)/2] <= max(6, slices.Max(calm)-slices.Min(calm)))
	}
}

// lost runs clients with the interruption, and returns how many were lost. Every request must get
// its certificate. The API server must have closed the watch of every lost client.
func (i interruption) lost(t *testing.T, clients int, every time.Duration) (lost int) {
	t.Helper()
	t.Run(fmt.Sprintf("%s/every %s", i.name, every), func(t *testing.T) {
		s := ownFixture(t)
		pods, err := s.LoadPods(t.Context(), node(), clients)
		must.OK(t, err)
		middle := i.start(t, s)
		plan := load.Plan{PerEvent: 15 * time.Millisecond, Every: every,
			Ended: s.Kubelet(t.Context(), pods, t.Error)}
		report, err := load.RunAmid(t.Context(), pods, plan, middle)
		must.OK(t, err)
		closed, err := load.Terminated(t.Context(), s.Cluster.Client())
		must.OK(t, err)
		if lost = report.Lost; report.Broken > 0 || lost > closed {
			t.Errorf("%s; the API server closed %d watches; errors: %v", report, closed,
				report.Errors)
		}
		t.Logf("%s; the API server closed %d watches", report, closed)
		s.requireAllIssued(t, clients)
	})
	return lost
}

// requireAllIssued waits until all requests of the cluster, which must be this many, have
// certificates.
func (s *fixture) requireAllIssued(t *testing.T, requests int) {
	t.Helper()
	must.Eventually(t, "all certificates", func(ctx context.Context) (bool, error) {
		list, err := s.Cluster.Requests().List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		issued := 0
		for i := range list.Items {
			if len(list.Items[i].Status.Certificate) > 0 {
				issued++
			}
		}
		return issued == requests && len(list.Items) == requests, nil
	})
}
