package rotation

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/internal/must"
	"hsm-signer/issuer"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// The roots that are published when a rotation enters the phase trusted are kept, until that time
// begins again.
func TestRootsOfTrusted(t *testing.T) {
	root := issuer.Anchors{fixture.NewCA(t).Certificate}
	facts := good()
	facts.Roots = NewRootSet(root)
	s, refusal := at(Announced).Take(Wish{Step: Trust}, facts)
	if refusal != nil || s.Roots != facts.Roots {
		t.Fatalf("%+v, %v", s, refusal)
	}
	read, err := Read(map[string]string{StateKey: Encode(s)})
	if err != nil || read != s {
		t.Errorf("it is read as %+v, %v", read, err)
	}
	facts.Roots, facts.Now = "", facts.Now.Add(time.Hour)
	if s, refusal = s.Take(Wish{Step: Sign}, facts); refusal != nil || s.Roots != NewRootSet(root) {
		t.Errorf("%+v, %v", s, refusal)
	}
	for _, want := range []RootSet{NewRootSet(root), ""} {
		facts.Now = facts.Now.Add(time.Hour)
		if s, refusal = s.Take(Wish{Step: Back}, facts); refusal != nil || s.Roots != want {
			t.Errorf("back: %+v, %v; want %q", s, refusal, want)
		}
	}
	s.Roots = NewRootSet(root)
	for _, wrong := range []RootSet{s.Roots, "x", s.Roots + ","} {
		state := at(Signing)
		if state.Roots = wrong; wrong == s.Roots {
			state = s
		}
		if _, err := Read(map[string]string{StateKey: Encode(state)}); err == nil {
			t.Errorf("%s: the roots %q are read", state.Phase, wrong)
		}
	}
}

// Pods have the time of the API server. If its clock is ahead, one that was created before the
// phase trusted must not seem to be later.
func TestTrustedBeginsByTheLaterClock(t *testing.T) {
	for ahead, want := range map[time.Duration]time.Duration{
		-time.Minute: 0, 0: 0, time.Minute: time.Minute,
	} {
		facts := good()
		facts.Ahead = ahead
		s, refusal := at(Announced).Take(Wish{Step: Trust}, facts)
		if refusal != nil || !s.Trusted.Equal(facts.Now.Add(want)) || !s.Changed.Equal(facts.Now) {
			t.Errorf("%s ahead: %+v, %v", ahead, s, refusal)
		}
	}
}

// From the phase trusted on, the next CA needs a root that was published when that began.
func TestCheckRoots(t *testing.T) {
	old, fresh, key := fixture.NewCA(t), fixture.NewCA(t), pkcs10test.NewKey(t)
	below := func(root fixture.CA) *issuer.CA {
		cert := fixture.Certify(t, &x509.Certificate{
			SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "Next CA"},
			NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
			IsCA: true, BasicConstraintsValid: true, SubjectKeyId: []byte{2},
		}, root.Certificate, key.Public(), root.Key)
		return must.Value(issuer.ParseCA(issuer.Chain{cert}.PEM()))(t)
	}
	one := issuer.Anchors{old.Certificate}
	two := issuer.Anchors{old.Certificate, fresh.Certificate}
	keys := Keys{former, below(old).KeySHA256()}
	for name, c := range map[string]struct {
		phase Phase
		known issuer.Anchors
		roots issuer.Anchors
		by    fixture.CA
		ok    bool
		sign  bool
		do    string
	}{
		"announced":                    {Announced, nil, two, fresh, true, true, ""},
		"a root of then":               {Signing, one, two, old, true, true, ""},
		"a newer root":                 {Signing, one, two, fresh, false, false, "certificate back"},
		"a newer root, not signing":    {Trusted, one, two, fresh, false, true, "back to announced"},
		"a newer root, retired":        {Retired, one, two, fresh, false, false, "back to announced"},
		"two roots of then":            {Signing, two, two, fresh, true, true, ""},
		"a root that was taken away":   {Signing, two, one, fresh, false, false, "1 of the roots"},
		"the first roots":              {Signing, nil, one, old, false, false, "unset NEXT_"},
		"no roots any more":            {Signing, one, nil, old, false, false, "into NEXT_TRUST"},
		"never any roots":              {Signing, nil, nil, old, true, true, ""},
		"the roots of the former CA":   {None, nil, two, fresh, true, true, ""},
		"trusted, and a root of then ": {Trusted, one, two, old, true, true, ""},
	} {
		s := at(c.phase)
		s.To, s.Roots = keys.Next, NewRootSet(c.known)
		to := below(c.by)
		err := s.CheckRoots(keys, Roots{Next: c.roots}, to)
		if (err == nil) != c.ok || err != nil && !(strings.Contains(err.Error(),
			"trusted began, at 2026-11-29T13:00:00Z") && strings.Contains(err.Error(), c.do)) {
			t.Errorf("%s: %v", name, err)
		}
		sign := s.MaySign(keys, Roots{Next: c.roots}, func([32]byte) *issuer.CA { return to })
		if (sign == nil) != c.sign {
			t.Errorf("%s: it may sign: %v", name, sign)
		}
	}
	s := at(Signing)
	s.To, s.Roots = keys.Next, NewRootSet(one)
	swapped := Keys{CA: keys.Next, Next: former}
	if err := s.CheckRoots(swapped, Roots{Next: one}, below(old)); err == nil ||
		!strings.Contains(err.Error(), "back into TRUST_BUNDLE_FILE") {
		t.Errorf("with the CAs the other way round: %v", err)
	}
	s = at(Retired)
	s.To, s.Roots = keys.Next, NewRootSet(one)
	after := Keys{CA: keys.Next}
	if err := s.MaySign(after, Roots{CA: two}, func([32]byte) *issuer.CA {
		return below(fresh)
	}); err != nil {
		t.Errorf("after the rotation: %v", err)
	}
}
