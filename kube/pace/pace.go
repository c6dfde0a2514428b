// Package pace decides when the next answer may be written, so that slow watchers keep up.
//
// Duty: while Calico's init container waits for its certificate, it watches every request of the
// cluster with a hundredth of a CPU. An API server that has more events to send than it can closes
// watches. A client whose watch is closed exits with success and without a certificate. So while
// many such clients wait, answers are held back until the API server has sent what it has to send.
//
// Contract: a [Pacer] decides only when a request is answered, never how. A few clients, or a
// steady stream of them, are answered at once. Requests that must wait are released oldest first,
// and none waits much longer than [Patience]. A Pacer remembers only open requests and who made
// them. It is safe for concurrent use. docs/decisions/0010-answers-are-paced.md compares the
// alternatives.
package pace

import (
	"container/heap"
	"context"
	"maps"
	"math"
	"sync"
	"time"
)

// Patience is the age at which requests are answered although answers are held back. Calico's
// clients give up after 90 seconds, some of which they need for their key.
const Patience = 30 * time.Second

// PerEvent is how long one event of a watch takes a client with a hundredth of a CPU, at most.
const PerEvent = 15 * time.Millisecond

const (
	few            = 10               // clients for which nothing is held back
	sendsPerAnswer = 2                // to each client: the approval and the certificate
	longestRead    = 30 * time.Second // of the requests that were there before its own
	memory         = 10 * time.Second // after the last known client, others are still assumed
)

// Options say how fast answers are written. The zero value adapts to the clients.
type Options struct {
	Unlimited bool // admits every answer at once
	Rate      int  // if positive, the answers a second, whoever watches
}

// A Pacer admits answers to requests, which have keys of type K.
type Pacer[K comparable] struct {
	options Options
	release func(K)
	wake    chan struct{} // of size 1: there is something to release

	mu       sync.Mutex
	capacity capacity
	open     map[K]*entry[K]
	clients  map[string]int       // open requests of each client, apart from unwatched ones
	readers  map[string]time.Time // answered clients, and when they reach their answer
	watched  int                  // open requests that are known to be watched
	seen     time.Time            // when one was last known
	last     time.Time            // when a request was last admitted
	underway int                  // answers that are being written: admitted requests
	waiting  queue[K]
}

// An entry is one open request.
type entry[K comparable] struct {
	key      K
	client   string // who made it
	created  time.Time
	reads    time.Time // until then the client reads requests that were there before its own
	watch    watch
	admitted bool
	index    int // in waiting; -1: it is not
}

// watch says what is known about a client.
type watch int

const (
	unknown   watch = iota // its pod was not read yet
	watched                // it watches for its answer
	unwatched              // it does not
)

// New returns a Pacer. Its [Pacer.Run] calls release for each request that had to wait and may now
// be answered. Release must not call the Pacer.
func New[K comparable](o Options, release func(K)) *Pacer[K] {
	return &Pacer[K]{
		options: o, release: release, wake: make(chan struct{}, 1), capacity: newCapacity(o.Rate),
		open: map[K]*entry[K]{}, clients: map[string]int{}, readers: map[string]time.Time{},
	}
}

// Asked notes an open request that client made, and how many requests exist. It does nothing for a
// request that it knows. A client counts once, however many requests it makes.
func (p *Pacer[K]) Asked(key K, client string, created time.Time, existing int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[key] != nil {
		return
	}
	now := time.Now()
	reads := created.Add(min(time.Duration(existing)*PerEvent, longestRead))
	p.open[key] = &entry[K]{key: key, client: client, created: created, reads: reads, index: -1}
	p.clients[client]++
	if p.options.Rate == 0 && now.Sub(created) < recent {
		p.capacity.created(now, p.watchers(now), p.clients[client] == 1)
	}
}

// Gone forgets a request that was answered or deleted.
func (p *Pacer[K]) Gone(key K) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.open[key]
	if e == nil {
		return
	}
	if e.watch != unwatched && e.reads.After(time.Now()) {
		p.readers[e.client] = e.reads
	}
	p.see(e, unwatched)
	delete(p.open, key)
	p.conclude(e)
	if e.index >= 0 {
		heap.Remove(&p.waiting, e.index)
	}
}

// Admit reports whether the request may be answered now. If not, [Pacer.Run] releases it later. An
// admission lasts until [Pacer.Tried] or [Pacer.Gone].
func (p *Pacer[K]) Admit(key K) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.admit(p.open[key], time.Now())
}

// Watched notes whether a client watches for the answer to the request, and how long the API server
// took to report that. It reports whether the request may still be answered now; see [Pacer.Admit].
func (p *Pacer[K]) Watched(key K, by bool, took time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, e := time.Now(), p.open[key]
	p.capacity.took(now, took)
	if e == nil {
		return true
	}
	if !by {
		p.see(e, unwatched)
		return true
	}
	p.see(e, watched)
	return p.admit(e, now)
}

// Tried ends an admission: the request is still open.
func (p *Pacer[K]) Tried(key K) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.open[key]; e != nil {
		p.conclude(e)
	}
}

// conclude ends an admission, so that another answer may be written.
func (p *Pacer[K]) conclude(e *entry[K]) {
	if !e.admitted {
		return
	}
	e.admitted = false
	if p.underway--; p.waiting.Len() > 0 {
		p.wakeRun()
	}
}

// wakeRun has [Pacer.Run] look for what may be released.
func (p *Pacer[K]) wakeRun() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// room reports whether another answer may be written at the same time.
func (p *Pacer[K]) room() bool {
	return p.options.Rate > 0 || p.underway < p.capacity.atOnce()
}

// admit reports whether the request may be answered now, and otherwise has it wait.
func (p *Pacer[K]) admit(e *entry[K], now time.Time) bool {
	if e == nil {
		return true
	}
	if e.index >= 0 {
		return false
	}
	if p.options.Unlimited || p.options.Rate == 0 && p.watchers(now) < few {
		return true // and not admitted, since its price may change when its pod has been read
	}
	switch {
	case e.admitted && (!p.capacity.holds(now) || now.Sub(e.created) > Patience):
		return true
	case e.admitted:
		p.conclude(e)
		p.capacity.spend(now, -p.price(now))
	case p.waiting.Len() == 0 && p.room() && p.capacity.wait(now) <= 0:
		p.grant(e, now)
		return true
	}
	heap.Push(&p.waiting, e)
	p.wakeRun()
	return false
}

// grant admits the request at its price.
func (p *Pacer[K]) grant(e *entry[K], now time.Time) {
	e.admitted = true
	p.underway++
	p.last = now
	p.capacity.spend(now, p.price(now))
}

// price is what one answer costs: with a fixed rate one unit, otherwise its sends.
func (p *Pacer[K]) price(now time.Time) float64 {
	if p.options.Rate > 0 {
		return 1
	}
	return float64(sendsPerAnswer * p.watchers(now))
}

// watchers is the number of clients that get each event. Once one client is known to watch, so does
// every other of which the contrary is not known.
func (p *Pacer[K]) watchers(now time.Time) int {
	maps.DeleteFunc(p.readers, func(_ string, until time.Time) bool { return now.After(until) })
	if p.watched == 0 && now.Sub(p.seen) > memory {
		return 0
	}
	return len(p.clients) + len(p.readers)
}

// see notes what is known about the client of a request.
func (p *Pacer[K]) see(e *entry[K], now watch) {
	before := e.watch
	if e.watch = now; before == now {
		return
	}
	if before == watched {
		p.watched--
		p.seen = time.Now()
	}
	if now == watched {
		p.watched++
	}
	switch unwatched {
	case now:
		if p.clients[e.client]--; p.clients[e.client] == 0 {
			delete(p.clients, e.client)
		}
	case before:
		p.clients[e.client]++
	}
}

// Run releases requests that wait, until the context ends.
func (p *Pacer[K]) Run(ctx context.Context) {
	for {
		var due <-chan time.Time
		if wait := p.releaseDue(); wait > 0 {
			due = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-due:
		}
	}
}

// releaseDue releases the requests that may be answered now. It returns how long the next one must
// wait; 0 if there is none.
func (p *Pacer[K]) releaseDue() time.Duration {
	for {
		key, wait, due := p.next()
		if !due {
			return wait
		}
		p.release(key)
	}
}

// next admits the oldest request that waits, if it is due. Otherwise it returns how long that one
// must wait; 0 if there is none.
func (p *Pacer[K]) next() (key K, wait time.Duration, due bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting.Len() == 0 {
		return key, 0, false
	}
	now, oldest := time.Now(), p.waiting[0]
	if wait = p.patience(oldest, now); p.room() {
		wait = min(wait, p.capacity.wait(now))
	}
	if wait > 0 {
		return key, wait, false
	}
	heap.Pop(&p.waiting)
	p.grant(oldest, now)
	return oldest.key, 0, true
}

// patience is how long the oldest request may wait if all that wait are to be answered in time.
func (p *Pacer[K]) patience(oldest *entry[K], now time.Time) time.Duration {
	if p.options.Rate > 0 {
		return math.MaxInt64
	}
	left := max(0, Patience-now.Sub(oldest.created))
	return left/time.Duration(p.waiting.Len()) - now.Sub(p.last)
}
