package pace

import (
	"math"
	"time"
)

// A Reason says why answers are written as fast as they are.
type Reason string

// Every Reason there is.
const (
	ReasonUnlimited Reason = "unlimited"        // by Options
	ReasonFixed     Reason = "fixed"            // by Options
	ReasonFew       Reason = "few clients"      // so nothing is held back
	ReasonWatchers  Reason = "many clients"     // each answer is an event to all of them
	ReasonArrivals  Reason = "many new clients" // requests arrive too fast to answer any
	ReasonSlow      Reason = "slow API server"  // its calls take much longer than usual
)

// A State is how a [Pacer] stands.
type State struct {
	Rate    float64 // answers a second; +Inf: no limit
	Reason  Reason
	Waiting int // requests that are held back
	Clients int // that watch, as far as is known
}

// State returns how the Pacer stands now.
func (p *Pacer[K]) State() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	s := State{Rate: math.Inf(1), Waiting: p.waiting.Len(), Clients: p.watchers(now)}
	switch {
	case p.options.Unlimited:
		s.Reason = ReasonUnlimited
	case p.options.Rate > 0:
		s.Rate, s.Reason = float64(p.options.Rate), ReasonFixed
	case s.Clients < few:
		s.Reason = ReasonFew
	case !p.capacity.holds(now):
		s.Rate, s.Reason = p.capacity.rate/p.price(now), ReasonWatchers
	case p.capacity.slow:
		s.Rate, s.Reason = 0, ReasonSlow
	default:
		s.Rate, s.Reason = 0, ReasonArrivals
	}
	return s
}
