package overview

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

// Activity remembers what a controller reported lately. It is safe for concurrent use.
type Activity struct {
	mu     sync.Mutex
	recent []kube.Outcome // the latest last
	issued [minutesKept]int
	minute int64 // since 1970, of the last entry

	certificates map[kube.Issuance]int // in the cluster; nil: not known
	requests     int                   // in the cluster; 0: not known
}

// Report is [kube.Sink]'s.
func (a *Activity) Report(r kube.Report) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch r := r.(type) {
	case kube.Outcome:
		a.add(r)
	case kube.Census:
		a.certificates = r.Certificates
	case kube.RequestCount:
		a.requests = r.Requests
	}
}

// add keeps an outcome: a request has one entry, with its last. The caller must hold mu.
func (a *Activity) add(o kube.Outcome) {
	for _, text := range []*string{&o.Name, &o.Requester, &o.Reason} {
		*text = terminal.OneLine((*text)[:min(len(*text), longestText)])
	}
	o.Verdict = nil // it holds the whole request
	a.recent = slices.DeleteFunc(a.recent,
		func(before kube.Outcome) bool { return before.UID == o.UID })
	a.recent = append(a.recent, o)
	a.recent = a.recent[max(0, len(a.recent)-outcomesKept):]
	a.advance(o.At)
	if o.Result == kube.ResultIssued {
		a.issued[minutesKept-1]++
	}
}

// advance makes the last entry that of the time.
func (a *Activity) advance(now time.Time) {
	minute := now.Unix() / 60
	passed := min(max(minute-a.minute, 0), minutesKept)
	if passed > 0 {
		copy(a.issued[:], a.issued[passed:])
		clear(a.issued[minutesKept-passed:])
		a.minute = minute
	}
}

// last returns the outcomes, the latest first, and how many certificates were issued in each of the
// last minutes, the latest last.
func (a *Activity) last(now time.Time) ([]kube.Outcome, []int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.advance(now)
	recent := slices.Clone(a.recent)
	slices.Reverse(recent)
	return recent, slices.Clone(a.issued[:])
}

// unexpected is the number of certificates on requests of our signers that were made neither here
// nor by the CA for another journal.
func (a *Activity) unexpected() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.certificates[kube.Foreign] + a.certificates[kube.Unrecorded]
}

// requestCount is the number of requests in the cluster; 0 if it is not known.
func (a *Activity) requestCount() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests
}
