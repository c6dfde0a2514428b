package rotation

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Step leads from one phase to another.
type Step string

// The steps.
const (
	Announce Step = "announce" // none, or retired after the change of CA_CERT_FILE → announced
	Trust    Step = "trust"    // announced → trusted
	Sign     Step = "sign"     // trusted → signing
	Retire   Step = "retire"   // signing → retired
	Back     Step = "back"     // to the phase before
)

// Steps are all of them.
var Steps = []Step{Announce, Trust, Sign, Retire, Back}

// target returns the phase that the step leads to; that of Back depends on the state.
func (s Step) target() Phase {
	return map[Step]Phase{Announce: Announced, Trust: Trusted, Sign: Signing, Retire: Retired}[s]
}

// A Wish is what an operator wants.
type Wish struct {
	Step     Step
	Reason   string   // required with Force
	Force    bool     // against the guard, where that is possible
	Journals []string // of other replicas, whose certificates the operator has checked
}

// Facts are what the guards of a step depend on. A fact that is not known is an error there, and
// keeps the guard closed.
type Facts struct {
	Now       time.Time
	Ahead     time.Duration // of the API server's clock, which dates pods; negative: it is behind
	Keys      Keys
	TrustTime time.Duration // how long both CAs must have been trusted
	Lifetime  time.Duration // the longest that a certificate may have
	Proved    error         // why the key of the next CA cannot sign now
	Published error         // why the roots of both CAs are not published
	Roots     RootSet       // of the next CA, that are published
	Rooted    error         // why clients may not trust the next CA yet
	Live      Live
	Ends      map[Key]time.Time // of the CAs' certificates
}

// Live is what is known of the certificates in use.
type Live struct {
	Fault error // why it is not known
	// Early are live pods with a certificate that were created before both CAs were trusted, with
	// the commands that restart them.
	Early []string
	// Last is the end of the last certificate of each CA, as far as this journal knows.
	Last map[Key]time.Time
	// Others are journals of other replicas that may have certificates in use.
	Others []string
}

// NeedsLive reports whether the guard of the step in this state depends on [Live].
func (s State) NeedsLive(step Step) bool {
	return step == Sign || step == Retire ||
		step == Back && s.Current() == Announced && !s.Withdrawn.IsZero()
}

// A Missing is what keeps a guard closed.
type Missing struct {
	What  string    `json:"what"`
	Until time.Time `json:"until,omitzero"` // when it is there by itself; zero: never
}

// A Refusal says why a step was not taken.
type Refusal struct {
	Step    Step
	Phase   Phase // as it stays
	Missing []Missing
}

// Error names everything that is missing.
func (r *Refusal) Error() string {
	var all []string
	for _, m := range r.Missing {
		text := m.What
		if !m.Until.IsZero() {
			text += " (until " + m.Until.UTC().Format(time.RFC3339) + ")"
		}
		all = append(all, text)
	}
	return fmt.Sprintf("the phase stays %s; %s needs: %s", r.Phase, r.Step,
		strings.Join(all, "; "))
}

// Take returns the state after the step, or a [*Refusal].
func (s State) Take(w Wish, f Facts) (State, *Refusal) {
	next, missing := s.after(w, f)
	if len(missing) == 0 {
		next.Reason, next.Forced, next.Changed = w.Reason, false, f.Now.UTC().Round(0)
		missing = s.guard(w, next, f)
		if len(missing) > 0 && w.Force && s.forcible(w.Step) {
			next.Forced = true
			missing = nil
			if w.Reason == "" {
				missing = []Missing{{What: "a reason, since it is forced"}}
			}
		}
	}
	if len(missing) == 0 {
		if err := next.Fits(f.Keys); err != nil {
			missing = []Missing{{What: err.Error()}}
		} else if err := next.check(); err != nil || !next.Changed.After(s.Changed) {
			missing = []Missing{{What: "a clock that goes forward: the last step was at " +
				s.Changed.UTC().Format(time.RFC3339)}}
		}
	}
	if len(missing) > 0 {
		return s, &Refusal{Step: w.Step, Phase: s.Current(), Missing: missing}
	}
	return next, nil
}

// after returns the state after the step, whatever its guard says. Only the order is checked.
func (s State) after(w Wish, f Facts) (State, []Missing) {
	if w.Step == Back {
		return s.before(f.Now)
	}
	next, now := s, f.Now.UTC().Round(0) // without the monotonic reading
	next.Phase = w.Step.target()
	switch before := slices.Index(Phases, next.Phase) - 1; {
	case before < 0:
		return s, []Missing{{What: fmt.Sprintf("a step; %q is none", w.Step)}}
	case w.Step == Announce:
		if s.Ongoing(f.Keys) {
			return s, []Missing{{What: "the phase none"}}
		}
		return State{Phase: Announced, From: f.Keys.CA, To: f.Keys.Next, Announced: now}, nil
	case s.Current() != Phases[before]:
		return s, []Missing{{What: "the phase " + string(Phases[before])}}
	}
	switch w.Step {
	case Trust:
		next.Trusted, next.Roots = now.Add(max(0, f.Ahead)), f.Roots
	case Sign:
		next.Signing, next.Withdrawn = now, time.Time{}
	case Retire:
		next.Retired = now
	}
	return next, nil
}

// before returns the state one step back.
func (s State) before(now time.Time) (State, []Missing) {
	next := s
	switch s.Current() {
	case Announced:
		return State{Phase: None, From: s.From, To: s.To}, nil
	case Trusted:
		next.Phase, next.Trusted, next.Roots = Announced, time.Time{}, ""
	case Signing:
		next.Phase, next.Signing = Trusted, time.Time{}
		next.Withdrawn = now.UTC().Round(0)
	case Retired:
		next.Phase, next.Retired = Signing, time.Time{}
	default:
		return s, []Missing{{What: "a rotation; there is none"}}
	}
	return next, nil
}

// forcible reports whether a reason replaces the guard of the step: only of one that ends the
// publication of roots.
func (s State) forcible(step Step) bool {
	return step == Retire || step == Back && s.Current() == Announced
}

// guard returns what is missing for a step whose order is right.
func (s State) guard(w Wish, next State, f Facts) []Missing {
	switch {
	case w.Step == Announce:
		return announceGuard(next, f)
	case w.Step == Trust:
		return published(f)
	case w.Step == Sign:
		return append(append(published(f), s.trustedGuard(f)...), s.signGuard(w, f)...)
	case w.Step == Retire:
		return ended("the former CA", s.From, s.Signing, f)
	case s.Current() == Announced && !s.Withdrawn.IsZero():
		return ended("the next CA", s.To, s.Withdrawn, f)
	}
	return nil
}

func announceGuard(next State, f Facts) []Missing {
	switch {
	case f.Keys.Next == Key{}:
		return []Missing{{What: "the next CA: set NEXT_CA_CERT_FILE"}}
	case next.From == next.To:
		return []Missing{{What: "another key: CA_CERT_FILE and NEXT_CA_CERT_FILE have the same"}}
	case f.Proved != nil:
		return []Missing{{What: "a test signature of the next CA's key: " + f.Proved.Error()}}
	}
	return nil
}

func published(f Facts) []Missing {
	if f.Published == nil {
		return nil
	}
	return []Missing{{What: "the published roots of both CAs: " + f.Published.Error()}}
}

// trustedGuard requires that both CAs have been trusted for long enough.
func (s State) trustedGuard(f Facts) []Missing {
	var all []Missing
	if until := s.Trusted.Add(f.TrustTime); f.Now.Before(until) {
		all = append(all, Missing{What: fmt.Sprintf("the phase trusted for %s "+
			"(ROTATION_TRUST_TIME)", f.TrustTime), Until: until})
	}
	if f.Rooted != nil {
		all = append(all, Missing{What: "a root of the next CA that clients have had time to " +
			"trust: " + f.Rooted.Error()})
	}
	return all
}

// signGuard requires that no live pod knows only the former CA.
func (s State) signGuard(w Wish, f Facts) []Missing {
	var all []Missing
	if f.Proved != nil {
		all = append(all, Missing{What: "a test signature of the next CA's key: " +
			f.Proved.Error()})
	}
	if f.Live.Fault != nil {
		return append(all, Missing{What: "the certificates in use: " + f.Live.Fault.Error()})
	}
	if n := len(f.Live.Early); n > 0 {
		all = append(all, Missing{What: fmt.Sprintf("no live pod that was created before %s, "+
			"since each reads caCert once; restart %d: %s",
			s.Trusted.UTC().Format(time.RFC3339), n, some(f.Live.Early))})
	}
	var unchecked []string
	for _, other := range f.Live.Others {
		if !slices.Contains(w.Journals, other) {
			unchecked = append(unchecked, other)
		}
	}
	if len(unchecked) > 0 {
		all = append(all, Missing{What: fmt.Sprintf("the certificates of other replicas, which "+
			"this one does not know; check each, and name their journals: --checked %s",
			strings.Join(unchecked, ","))})
	}
	return all
}

// slack is for what was being signed when the CA changed, and for clocks.
const slack = 10 * time.Minute

// ended requires that no certificate of a CA is valid any more: it signed until a time.
func ended(name string, key Key, until time.Time, f Facts) []Missing {
	if f.Live.Fault != nil {
		return []Missing{{What: "the certificates in use: " + f.Live.Fault.Error()}}
	}
	end := until.Add(f.Lifetime + slack)
	if last := f.Live.Last[key]; last.After(end) {
		end = last
	}
	if ca, known := f.Ends[key]; known && ca.Before(end) {
		end = ca
	}
	if !f.Now.Before(end) {
		return nil
	}
	return []Missing{{What: "the end of the last certificate of " + name, Until: end}}
}

// some joins the first of the texts.
func some(texts []string) string {
	const most = 5
	text := strings.Join(texts[:min(len(texts), most)], ", ")
	if more := len(texts) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
