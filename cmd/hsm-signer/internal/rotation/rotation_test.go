package rotation

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"hsm-signer/internal/must"
)

var (
	now     = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	former  = Key{1}
	next    = Key{2}
	another = Key{3}
	both    = Keys{former, next}
)

// good are facts with which every guard is open, a long time after now.
func good() Facts {
	return Facts{Now: now.Add(1000 * time.Hour), Keys: both, TrustTime: time.Hour,
		Lifetime: 24 * time.Hour}
}

// at returns the state in a phase whose steps were taken an hour apart, the first one now.
func at(phase Phase) State {
	s := State{Phase: phase, From: former, To: next}
	for i, t := range []*time.Time{&s.Announced, &s.Trusted, &s.Signing, &s.Retired} {
		if Phases[i] == phase {
			break
		}
		*t = now.Add(time.Duration(i) * time.Hour)
	}
	return s
}

// A whole rotation, and each step back, with every guard open.
func TestSteps(t *testing.T) {
	for _, c := range []struct {
		from State
		step Step
		want Phase
	}{
		{State{}, Announce, Announced}, {at(None), Announce, Announced},
		{at(Announced), Trust, Trusted}, {at(Trusted), Sign, Signing},
		{at(Signing), Retire, Retired}, {at(Retired), Back, Signing},
		{at(Signing), Back, Trusted}, {at(Trusted), Back, Announced}, {at(Announced), Back, None},
	} {
		got, refusal := c.from.Take(Wish{Step: c.step}, good())
		if refusal != nil || got.Phase != c.want {
			t.Errorf("%s, %s: %s, %v", c.from.Current(), c.step, got.Phase, refusal)
			continue
		}
		read, err := Read(map[string]string{StateKey: Encode(got)})
		if err != nil || !reflect.DeepEqual(read, got) {
			t.Errorf("%s, %s: it is read as %+v, %v; want %+v", c.from.Current(), c.step, read, err,
				got)
		}
	}
}

// The states that each step leads to are steps, whatever is wished.
func TestOnlyOneStepAtATime(t *testing.T) {
	allowed := map[Phase]Step{None: Announce, Announced: Trust, Trusted: Sign, Signing: Retire}
	for _, phase := range Phases {
		for _, step := range append(Steps, "leap") {
			if step == allowed[phase] || step == Back && phase != None {
				continue
			}
			s := at(phase)
			got, refusal := s.Take(Wish{Step: step, Force: true, Reason: "r"}, good())
			if refusal == nil || !reflect.DeepEqual(got, s) {
				t.Errorf("%s, %s: %+v, %v", phase, step, got, refusal)
			}
		}
	}
}

func TestGuards(t *testing.T) {
	fault := errors.New("cannot be read")
	withdrawn := at(Announced)
	withdrawn.Withdrawn = now
	for name, c := range map[string]struct {
		from  State
		wish  Wish
		facts func(*Facts)
		says  string // empty: the step is taken
		until time.Time
	}{
		"no next CA": {State{}, Wish{Step: Announce}, func(f *Facts) { f.Keys.Next = Key{} },
			"set NEXT_CA_CERT_FILE", time.Time{}},
		"the same key": {State{}, Wish{Step: Announce}, func(f *Facts) { f.Keys.Next = former },
			"have the same", time.Time{}},
		"no test signature": {State{}, Wish{Step: Announce},
			func(f *Facts) { f.Proved = fault }, "test signature of the next CA's key: cannot",
			time.Time{}},
		"the rotation before is not over": {at(Retired), Wish{Step: Announce},
			func(f *Facts) { f.Keys = Keys{former, next} }, "needs: the phase none", time.Time{}},
		"the rotation before is over": {at(Retired), Wish{Step: Announce},
			func(f *Facts) { f.Keys = Keys{next, another} }, "", time.Time{}},
		"trusted before it is published": {at(Announced), Wish{Step: Trust},
			func(f *Facts) { f.Published = fault }, "the published roots of both CAs: cannot",
			time.Time{}},
		"just in time": {at(Trusted), Wish{Step: Sign},
			func(f *Facts) { f.Now = now.Add(2 * time.Hour) }, "", time.Time{}},
		"not trusted for long enough": {at(Trusted), Wish{Step: Sign},
			func(f *Facts) { f.Now = now.Add(2*time.Hour - time.Second) },
			"the phase trusted for 1h0m0s (ROTATION_TRUST_TIME) (until 2026-11-29T14:00:00Z)",
			now.Add(2 * time.Hour)},
		"which nothing forces": {at(Trusted), Wish{Step: Sign, Force: true, Reason: "r"},
			func(f *Facts) { f.Now = now.Add(90 * time.Minute) }, "the phase trusted for",
			now.Add(2 * time.Hour)},
		"a root that is newer": {at(Trusted), Wish{Step: Sign, Force: true, Reason: "r"},
			func(f *Facts) { f.Rooted = fault }, "a root of the next CA that clients have had " +
				"time to trust: cannot be read", time.Time{}},
		"no longer published": {at(Trusted), Wish{Step: Sign},
			func(f *Facts) { f.Published = fault }, "published roots", time.Time{}},
		"the next key is away": {at(Trusted), Wish{Step: Sign},
			func(f *Facts) { f.Proved = fault }, "test signature", time.Time{}},
		"it is not known who lives": {at(Trusted), Wish{Step: Sign},
			func(f *Facts) { f.Live.Fault = fault }, "the certificates in use: cannot be read",
			time.Time{}},
		"pods that know one CA": {at(Trusted), Wish{Step: Sign}, func(f *Facts) {
			f.Live.Early = []string{"1", "2", "3", "4", "5", "6", "7"}
		}, "no live pod that was created before 2026-11-29T13:00:00Z, since each reads caCert " +
			"once; restart 7: 1, 2, 3, 4, 5 and 2 more", time.Time{}},
		"pods of another replica": {at(Trusted), Wish{Step: Sign, Journals: []string{"a"}},
			func(f *Facts) { f.Live.Others = []string{"a", "b", "c"} }, "--checked b,c",
			time.Time{}},
		"pods of another replica, checked": {at(Trusted),
			Wish{Step: Sign, Journals: []string{"a", "b"}},
			func(f *Facts) { f.Live.Others = []string{"a", "b"} }, "", time.Time{}},
		"certificates of the former CA, anyone's": {at(Signing), Wish{Step: Retire},
			func(f *Facts) { f.Now = now.Add(26 * time.Hour) },
			"the end of the last certificate of the former CA",
			now.Add(26*time.Hour + slack)},
		"certificates of the former CA, that this journal has": {at(Signing), Wish{Step: Retire},
			func(f *Facts) { f.Live.Last = map[Key]time.Time{former: f.Now.Add(time.Hour)} },
			"the former CA", now.Add(1001 * time.Hour)},
		"the former CA has ended": {at(Signing), Wish{Step: Retire}, func(f *Facts) {
			f.Now = now.Add(3 * time.Hour)
			f.Ends = map[Key]time.Time{former: f.Now}
		}, "", time.Time{}},
		"the end is not known": {at(Signing), Wish{Step: Retire},
			func(f *Facts) { f.Live.Fault = fault }, "the certificates in use", time.Time{}},
		"forced": {at(Signing), Wish{Step: Retire, Force: true, Reason: "the key is stolen"},
			func(f *Facts) { f.Now = now.Add(3 * time.Hour) }, "", time.Time{}},
		"forced without a reason": {at(Signing), Wish{Step: Retire, Force: true},
			func(f *Facts) { f.Now = now.Add(3 * time.Hour) }, "a reason", time.Time{}},
		"back with certificates of the next CA": {withdrawn, Wish{Step: Back},
			func(f *Facts) { f.Now = now.Add(time.Hour) },
			"the end of the last certificate of the next CA", now.Add(24*time.Hour + slack)},
		"which a reason forces": {withdrawn, Wish{Step: Back, Force: true, Reason: "r"},
			func(f *Facts) { f.Now = now.Add(time.Hour) }, "", time.Time{}},
		"back, when they have ended": {withdrawn, Wish{Step: Back}, func(*Facts) {}, "",
			time.Time{}},
		"back without the former CA": {at(Retired), Wish{Step: Back},
			func(f *Facts) { f.Keys = Keys{CA: next} }, "this process lacks the CA with the key 01",
			time.Time{}},
		"a clock that was set back": {at(Announced), Wish{Step: Trust},
			func(f *Facts) { f.Now = now.Add(-time.Hour) }, "a clock that goes forward",
			time.Time{}},
	} {
		facts := good()
		c.facts(&facts)
		got, refusal := c.from.Take(c.wish, facts)
		if c.says == "" {
			if refusal != nil || got.Phase == c.from.Phase || got.Forced != c.wish.Force {
				t.Errorf("%s: %+v, %v", name, got, refusal)
			}
			continue
		}
		if refusal == nil || !strings.Contains(refusal.Error(), c.says) ||
			!reflect.DeepEqual(got, c.from) {
			t.Errorf("%s: %v; want %q", name, refusal, c.says)
			continue
		}
		if last := refusal.Missing[len(refusal.Missing)-1]; !last.Until.Equal(c.until) {
			t.Errorf("%s: until %s; want %s", name, last.Until, c.until)
		}
	}
}

// After a step back from signing, the next CA's certificates are remembered until it is withdrawn.
func TestBackFromSigningIsRemembered(t *testing.T) {
	facts := good()
	s := at(Signing)
	for _, want := range []Phase{Trusted, Announced} {
		var refusal *Refusal
		if s, refusal = s.Take(Wish{Step: Back}, facts); refusal != nil || s.Phase != want ||
			!s.Withdrawn.Equal(good().Now) {
			t.Fatalf("%+v, %v; want %s", s, refusal, want)
		}
		if _, refusal = s.Take(Wish{Step: Trust}, facts); refusal == nil {
			t.Errorf("%s: a step is taken at the time of the one before", want)
		}
		facts.Now = facts.Now.Add(time.Second)
	}
	if _, refusal := s.Take(Wish{Step: Back}, facts); refusal == nil {
		t.Error("the roots of a CA are withdrawn whose certificates are in use")
	}
	again, refusal := at(Trusted), (*Refusal)(nil)
	again.Withdrawn = now
	again.Changed = now
	if again, refusal = again.Take(Wish{Step: Sign}, facts); refusal != nil ||
		!again.Withdrawn.IsZero() || !again.Trusted.Equal(now.Add(time.Hour)) {
		t.Errorf("%+v, %v", again, refusal)
	}
}

// Which key signs and which roots are published, before and after the change of the configuration.
func TestWhatFollowsFromThePhase(t *testing.T) {
	after := Keys{CA: next}
	for _, c := range []struct {
		state             State
		keys              Keys
		signs             Key
		rootsOf, rootsToo bool
		fits              bool
		ongoing           bool
	}{
		{State{}, both, former, true, false, true, false},
		{State{}, Keys{CA: former}, former, true, false, true, false},
		{at(None), Keys{CA: another}, another, true, false, true, false},
		{at(Announced), both, former, true, true, true, true},
		{at(Trusted), both, former, true, true, true, true},
		{at(Trusted), Keys{next, former}, former, true, true, true, true},
		{at(Trusted), Keys{CA: former}, former, true, true, false, true},
		{at(Signing), both, next, true, true, true, true},
		{at(Signing), after, next, true, true, false, true},
		{at(Retired), both, next, false, true, true, true},
		{at(Retired), after, next, true, false, true, false},
		{at(Retired), Keys{next, another}, next, true, false, true, false},
		{at(Retired), Keys{CA: former}, next, false, true, false, true},
		{at(Retired), Keys{CA: another}, next, false, true, false, true},
	} {
		roots, too := c.state.Publishes(c.keys)
		if got := c.state.Signer(c.keys); got != c.signs || roots != c.rootsOf ||
			too != c.rootsToo || (c.state.Fits(c.keys) == nil) != c.fits ||
			c.state.Ongoing(c.keys) != c.ongoing {
			t.Errorf("%s with %v: %s signs, roots %t and %t, fits %v, ongoing %t; want %+v",
				c.state.Current(), c.keys, got, roots, too, c.state.Fits(c.keys),
				c.state.Ongoing(c.keys), c)
		}
	}
}

// What hsm-signer does not write is not read.
func TestWrongAnnotations(t *testing.T) {
	good := Encode(at(Signing))
	for name, text := range map[string]string{
		"nothing": "", "no JSON": "signing", "another type": `[1]`, "null": "null", "two": good + good,
		"an unknown key":   strings.Replace(good, `"phase"`, `"more":1,"phase"`, 1),
		"an unknown phase": strings.Replace(good, "signing", "Signing", 1),
		"no CA":            strings.Replace(good, next.String(), strings.Repeat("0", 64), 1),
		"a short hash":     strings.Replace(good, next.String(), "02", 1),
		"one CA twice":     strings.Replace(good, next.String(), former.String(), 1),
		"a time too many":  strings.Replace(good, `"phase":"signing"`, `"phase":"trusted"`, 1),
		"a time too few":   strings.Replace(good, `"phase":"signing"`, `"phase":"retired"`, 1),
		"times in another order": strings.Replace(good, "2026-11-29T14:00:00Z",
			"2026-11-29T12:59:59Z", 1),
	} {
		if s, err := Read(map[string]string{StateKey: text}); err == nil || s != (State{}) ||
			!strings.Contains(err.Error(), "ca rotate restore") {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	if s, err := Read(map[string]string{"of/another": "x"}); err != nil || s != (State{}) {
		t.Errorf("a lease that says nothing: %+v, %v", s, err)
	}
}

func TestOrders(t *testing.T) {
	order := Order{ID: "i", Step: Sign, By: "b", At: now, Journals: []string{"a"}}
	read, is, err := ReadOrder(map[string]string{OrderKey: Encode(order)})
	if !is || err != nil || !reflect.DeepEqual(read, order) {
		t.Errorf("%+v, %t, %v", read, is, err)
	}
	if _, is, err := ReadOrder(nil); is || err != nil {
		t.Errorf("none: %t, %v", is, err)
	}
	for name, change := range map[string]func(*Order){
		"no id": func(o *Order) { o.ID = "" }, "no step": func(o *Order) { o.Step = "leap" },
		"a long reason": func(o *Order) { o.Reason = strings.Repeat("x", maxReason+1) },
		"several lines": func(o *Order) { o.Reason = "a\nb" },
		"a control":     func(o *Order) { o.Reason = "\x1b[2J" },
	} {
		wrong := order
		change(&wrong)
		if _, is, err := ReadOrder(map[string]string{OrderKey: Encode(wrong)}); !is || err == nil {
			t.Errorf("%s: %t, %v", name, is, err)
		}
	}
	for age, stale := range map[time.Duration]bool{0: false, orderAge: false, -orderAge: false,
		orderAge + 1: true, -orderAge - 1: true} {
		if order.Stale(now.Add(age)) != stale {
			t.Errorf("stale after %s: %t", age, !stale)
		}
	}
	answer, is := ReadAnswer(map[string]string{AnswerKey: Encode(Answer{ID: "i", Phase: Signing})})
	if !is || answer.ID != "i" || answer.Phase != Signing {
		t.Errorf("%+v, %t", answer, is)
	}
}

// What an operator confirms has every guard begin again.
func TestRestored(t *testing.T) {
	for _, phase := range Phases {
		s, err := Restored(phase, both, "", now, "r")
		must.OK(t, err)
		read, err := Read(map[string]string{StateKey: Encode(s)})
		if err != nil || read != s || s.Current() != phase {
			t.Errorf("%s: %+v, %v", phase, read, err)
		}
		if phase != None && !s.Since().Equal(now) {
			t.Errorf("%s since %s", phase, s.Since())
		}
	}
	if _, err := Restored(Signing, Keys{CA: former}, "", now, "r"); err == nil {
		t.Error("a phase with one CA is restored")
	}
	if _, err := Restored("leap", both, "", now, "r"); err == nil {
		t.Error("an unknown phase is restored")
	}
	s, err := Restored(Announced, both, "", now, "r")
	must.OK(t, err)
	if _, refusal := s.Take(Wish{Step: Back}, Facts{Now: now, Keys: both}); refusal == nil {
		t.Error("the roots of a CA are withdrawn that may have signed")
	}
}
