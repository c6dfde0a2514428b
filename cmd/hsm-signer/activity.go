package main

import (
	"slices"
	"sync"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/terminal"
	"hsm-signer/kube"
)

const (
	outcomesKept = 50 // requests, each with its last outcome
	minutesKept  = 60
	longestText  = 600 // bytes of one text of an outcome
)

// activity remembers what happened lately, for the status page. It is safe for concurrent use.
type activity struct {
	mu     sync.Mutex
	recent []kube.Outcome // the latest last
	issued [minutesKept]int
	minute int64 // since 1970, of the last entry

	origins  map[kube.Origin]int // of the certificates in the cluster; nil: not known
	requests int                 // in the cluster; 0: not known
}

// Ended notes how a sync ended. A request has one entry, with what came of it last.
func (a *activity) Ended(o kube.Outcome) {
	for _, text := range []*string{&o.Name, &o.Requester, &o.Reason} {
		*text = terminal.OneLine((*text)[:min(len(*text), longestText)])
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.recent = slices.DeleteFunc(a.recent, func(before kube.Outcome) bool { return before.UID == o.UID })
	a.recent = append(a.recent, o)
	a.recent = a.recent[max(0, len(a.recent)-outcomesKept):]
	a.advance(o.At)
	if o.Result == kube.ResultIssued {
		a.issued[minutesKept-1]++
	}
}

// advance makes the last entry that of the time.
func (a *activity) advance(now time.Time) {
	minute := now.Unix() / 60
	passed := min(max(minute-a.minute, 0), minutesKept)
	if passed > 0 {
		copy(a.issued[:], a.issued[passed:])
		clear(a.issued[minutesKept-passed:])
		a.minute = minute
	}
}

// last returns the outcomes, the latest first, and how many certificates were issued in each of the last
// minutes, the latest last.
func (a *activity) last(now time.Time) ([]kube.Outcome, []int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.advance(now)
	recent := slices.Clone(a.recent)
	slices.Reverse(recent)
	return recent, slices.Clone(a.issued[:])
}

// Certificates notes how many certificates there are of each origin.
func (a *activity) Certificates(origins map[kube.Origin]int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.origins = origins
}

// strange is the number of certificates on requests of our signers that were not made here, nor by the CA for another journal.
func (a *activity) strange() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.origins[kube.Foreign] + a.origins[kube.Unrecorded]
}

// observers are all that a controller tells what happens.
type observers struct {
	*metrics
	*activity
}

// Certificates tells both how many certificates there are of each origin.
func (o observers) Certificates(origins map[kube.Origin]int) {
	o.metrics.Certificates(origins)
	o.activity.Certificates(origins)
}
