package pace

import (
	"math"
	"time"
)

// The unit of work is a send: one event to one client. An API server with 100 to 300 watches
// sustains about 20,000 a second on two cores that it shares with etcd and the clients.
const (
	firstSends = 8_000                 // a second, to begin with
	mostSends  = 128_000               // a second
	growth     = 1.02                  // with each call that took no longer than usual
	burst      = 10 * time.Millisecond // whose sends may be spent at once
	mostDebt   = 10 * time.Second

	pause = 250 * time.Millisecond // after a sign that the API server has too much to do
	// for slow calls: clients that get no answer are a load, too
	longestHold  = 5 * time.Second
	mostArrivals = 150                    // requests a second that are no such sign
	window       = 100 * time.Millisecond // that they are counted in
	// so old, a request may still be on its way to the clients
	recent = 2 * time.Second
	// more than this above four times the usual is such a sign
	slack = 25 * time.Millisecond
)

// A capacity estimates how much the API server can take. Sends that others cause are a debt that is
// waited for. Slow calls, and requests that arrive very fast, show that it has too much to do.
type capacity struct {
	fixed    bool    // a unit is an answer, and nothing is estimated
	rate     float64 // units a second
	debt     float64 // units that are outstanding; negative: what may be spent at once
	settled  time.Time
	held     time.Time // until then nothing is to be spent
	slow     bool      // why: a call took too long; otherwise requests arrive fast
	busy     time.Time // when calls began to take too long; zero: they do not
	usual    least
	arrivals float64 // in the last window, about
	arrived  time.Time
}

func newCapacity(rate int) capacity {
	if rate > 0 {
		return capacity{fixed: true, rate: float64(rate)}
	}
	return capacity{rate: firstSends}
}

// created notes that a request was created just now, by a new client or not, which the API server
// tells so many clients.
func (c *capacity) created(now time.Time, watchers int, newClient bool) {
	c.spend(now, float64(watchers))
	c.debt = min(c.debt, c.rate*mostDebt.Seconds())
	if !newClient {
		return
	}
	c.arrivals = c.arrivals*math.Exp(-now.Sub(c.arrived).Seconds()/window.Seconds()) + 1
	c.arrived = now
	if c.arrivals > mostArrivals*window.Seconds() && watchers > 0 {
		c.rate = firstSends
		c.hold(now, false)
	}
}

// took notes how long one call of the API server took.
func (c *capacity) took(now time.Time, took time.Duration) {
	if c.fixed || took <= 0 {
		return
	}
	if took <= 4*c.usual.of(now, took)+slack {
		c.rate = min(c.rate*growth, mostSends)
		c.busy = time.Time{}
		return
	}
	c.rate = max(c.rate/2, firstSends)
	switch {
	case c.busy.IsZero():
		c.busy = now
	case now.Sub(c.busy) > 2*longestHold:
		c.busy = now
	case now.Sub(c.busy) > longestHold:
		return
	}
	c.hold(now, true)
}

func (c *capacity) hold(now time.Time, slow bool) { c.held, c.slow = now.Add(pause), slow }

// atOnce returns how many answers may be written at the same time: one at first. The API server's
// buffer for a watch holds 20 events, so a few answers at once overrun a watch that has to wait for
// the processor.
func (c *capacity) atOnce() int { return int(c.rate / firstSends) }

// holds reports whether nothing is to be spent now.
func (c *capacity) holds(now time.Time) bool { return c.held.After(now) }

// spend takes units, or gives them back.
func (c *capacity) spend(now time.Time, units float64) {
	c.settle(now)
	c.debt += units
}

// wait returns how long to wait before anything is spent; 0 or less: not at all.
func (c *capacity) wait(now time.Time) time.Duration {
	c.settle(now)
	return max(time.Duration(c.debt/c.rate*float64(time.Second)), c.held.Sub(now))
}

// settle takes from the debt what has been worked off.
func (c *capacity) settle(now time.Time) {
	c.debt = max(c.debt-c.rate*now.Sub(c.settled).Seconds(), -c.rate*burst.Seconds())
	c.settled = now
}

// A least is the shortest duration of the last minutes.
type least struct {
	before, current time.Duration // of the last span and of this; 0: none
	since           time.Time
}

const span = 5 * time.Minute

// of returns the shortest duration, d included.
func (l *least) of(now time.Time, d time.Duration) time.Duration {
	if now.Sub(l.since) > span {
		l.before, l.current, l.since = l.current, d, now
	}
	l.current = min(l.current, d)
	if l.before == 0 {
		return l.current
	}
	return min(l.before, l.current)
}
