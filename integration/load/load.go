// Package load runs many clients that request certificates, like the pods of a whole cluster.
//
// Duty: run clients that behave like Calico's init container, at a rate or all at once, and report
// the outcome of each. The pod matters, not the request: a client whose watch the API server closes
// exits with success and without files, and its pod stays broken.
//
// Contract: to an API server and a signer a client looks like Calico's. It has its own connection,
// speaks JSON, creates its request, watches every request of the cluster without a selector, and
// gives up after 90 seconds. It sleeps for a set time on each event, so that hundreds of clients
// leave the machine to the measured programs. It differs from Calico's client in two ways: its key
// is given, and it decodes no event but its own.
package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"hsm-signer/integration/calico"
)

// A Pod requests a certificate.
type Pod struct {
	Asking calico.InitContainer
	Config *rest.Config // the pod's own way to the API server
}

// A Plan says how the clients run.
type Plan struct {
	// PerEvent is how long a client needs for each event of its watch. With 10m of CPU Calico's
	// needs between 3 and 15 ms.
	PerEvent time.Duration
	// Every is the time between one client's start and the next; zero starts all at once.
	Every time.Duration
	// AtOnce is the most clients that run at the same time; zero sets no limit.
	AtOnce int
	// Attempts is how often a client that ran into its timer starts over, as kubelet starts it;
	// zero and 1 mean once.
	Attempts int
	// Timeout ends one attempt; zero means [calico.Timeout].
	Timeout time.Duration
	// Watching, if not nil, is called each time a client's watch has started.
	Watching func()
	// Ended, if not nil, is called after the last attempt of the client of pods[i].
	Ended func(i int, outcome Outcome, issued bool)
}

// An Outcome is the outcome of one pod.
type Outcome int

// All outcomes.
const (
	Succeeded Outcome = iota // it has its certificate within the first attempt's timeout
	Lost                     // its watch ended early: the container ended well, without files
	Late                     // the timeout ended the first attempt, whatever a later one brought
	Broken                   // the API server refused a call, or could not be reached
)

// outcomes are the names of the outcomes.
var outcomes = []string{Succeeded: "succeeded", Lost: "lost", Late: "late", Broken: "broken"}

// String returns the outcome's name.
func (o Outcome) String() string { return outcomes[o] }

// parseOutcome returns the outcome of that name.
func parseOutcome(name string) (Outcome, error) {
	if i := slices.Index(outcomes, name); i >= 0 {
		return Outcome(i), nil
	}
	return Broken, fmt.Errorf("%q is no outcome; there are %q", name, outcomes)
}

// A Report counts the outcomes of one run.
type Report struct {
	Succeeded, Lost, Late, Broken int

	// Issued counts the pods that have a certificate in the end, those of later attempts too.
	Issued int
	// P50, P99 and Max are of the time that those that succeeded took, each from its own start.
	P50, P99, Max time.Duration
	// Errors holds one error of each Broken pod.
	Errors []error
}

// String returns the report as one line.
func (r Report) String() string {
	return fmt.Sprintf("succeeded %d, lost %d, late %d, broken %d, issued %d; p50 %s, p99 "+
		"%s, max %s",
		r.Succeeded, r.Lost, r.Late, r.Broken, r.Issued,
		r.P50.Round(time.Millisecond), r.P99.Round(time.Millisecond), r.Max.Round(time.Millisecond))
}

// Run runs a client for each pod, as the plan says, and returns when all have ended.
func Run(ctx context.Context, pods []Pod, plan Plan) Report {
	results := make([]result, len(pods))
	began := time.Now()
	var group errgroup.Group
	group.SetLimit(cmp.Or(plan.AtOnce, -1))
	for i, pod := range pods {
		if spend(ctx, time.Until(began.Add(time.Duration(i)*plan.Every))) != nil {
			results[i] = result{outcome: Broken, err: ctx.Err()}
			continue
		}
		group.Go(func() error {
			results[i] = pod.ask(ctx, plan)
			if plan.Ended != nil {
				plan.Ended(i, results[i].outcome, results[i].issued)
			}
			return nil
		})
	}
	_ = group.Wait() // the outcomes are in results
	return report(results)
}

// RunAmid is Run that calls middle when half of the clients watch. It returns an error, and does
// not call middle, if the clients end before.
func RunAmid(ctx context.Context, pods []Pod, plan Plan, middle func()) (Report, error) {
	done, watching := make(chan Report, 1), make(chan struct{}, len(pods))
	plan.Watching = func() { watching <- struct{}{} }
	go func() { done <- Run(ctx, pods, plan) }()
	for range len(pods) / 2 {
		select {
		case <-watching:
		case r := <-done:
			return r, fmt.Errorf("the clients ended before half of them watched: %s; errors: %v", r,
				r.Errors)
		}
	}
	middle()
	return <-done, nil
}

// A result is the result of one pod.
type result struct {
	outcome Outcome
	issued  bool
	took    time.Duration
	err     error
}

// ask runs the pod's client, and again if its timer expires and attempts are left.
func (p Pod) ask(ctx context.Context, plan Plan) (r result) {
	for attempt := range max(1, plan.Attempts) {
		began := time.Now()
		err := p.askOnce(ctx, plan)
		r.took, r.issued = time.Since(began), err == nil
		switch {
		case attempt > 0: // the first attempt has decided the outcome
		case err == nil:
			r.outcome = Succeeded
		case errors.Is(err, errWatchEnded):
			r.outcome = Lost
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			r.outcome = Late
		default:
			r.outcome, r.err = Broken, err
		}
		if r.outcome != Late || r.issued || errors.Is(err, errWatchEnded) {
			return r
		}
	}
	return r
}

func (p Pod) askOnce(ctx context.Context, plan Plan) error {
	timeout := plan.Timeout
	if timeout == 0 {
		timeout = calico.Timeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := newClient(p.Config, p.Asking, plan)
	if err != nil {
		return err
	}
	return c.run(ctx)
}

func report(results []result) (r Report) {
	var took []time.Duration
	for _, one := range results {
		switch one.outcome {
		case Succeeded:
			r.Succeeded++
			took = append(took, one.took)
		case Lost:
			r.Lost++
		case Late:
			r.Late++
		case Broken:
			r.Broken++
			r.Errors = append(r.Errors, one.err)
		}
		if one.issued {
			r.Issued++
		}
	}
	if slices.Sort(took); len(took) > 0 {
		r.P50, r.P99, r.Max = quantile(took, 50), quantile(took, 99), took[len(took)-1]
	}
	return r
}

// quantile returns the smallest of the sorted times that this percentage does not exceed.
func quantile(sorted []time.Duration, percent int) time.Duration {
	return sorted[(len(sorted)*percent+99)/100-1]
}
