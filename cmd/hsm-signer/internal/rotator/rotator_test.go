package rotator

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"maps"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/expiry"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/cmd/hsm-signer/internal/rotation"
	"hsm-signer/internal/must"
	"hsm-signer/issuer"
	"hsm-signer/issuer/journal"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// switched is an issuer that only remembers which CA signs.
type switched struct {
	cas   map[rotation.Key]*issuer.CA
	signs rotation.Key
}

func (s *switched) SignWith(key [sha256.Size]byte) error {
	if s.cas[key] == nil {
		return issuer.ErrUnknownKey
	}
	s.signs = key
	return nil
}

func (s *switched) CAOf(key [sha256.Size]byte) *issuer.CA { return s.cas[key] }

// newCA returns a CA of its own name.
func newCA(t *testing.T, name string) *issuer.CA {
	t.Helper()
	text, err := issuer.SelfSign(issuer.CAProfile{Subject: pkix.Name{CommonName: name},
		Lifetime: 10000 * time.Hour}, pkcs10test.NewKey(t))
	must.OK(t, err)
	return must.Value(issuer.ParseCA(text))(t)
}

// replica is a process of an installation.
type replica struct {
	*Rotator
	issuer  *switched
	journal *openJournal
	usage   expiry.Usage
	others  []string
	ahead   time.Duration
	roots   rotation.Roots
	events  []string
	leads   bool
}

// openJournal is a journal that may refuse lines.
type openJournal struct {
	writer *journal.Writer
	fault  error
}

func (j *openJournal) Writer() *journal.Writer { return j.writer }

func (j *openJournal) Append(ctx context.Context, e journal.Entry) error {
	if j.fault != nil {
		return j.fault
	}
	return j.writer.Append(ctx, e)
}

// cluster is a lease and the CAs of an installation.
type cluster struct {
	former, next *issuer.CA
	lease        map[string]string // nil: there is none
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	return &cluster{former: newCA(t, "former"), next: newCA(t, "next"),
		lease: map[string]string{}}
}

// replica returns a process with these CAs and the journal in a directory.
func (c *cluster) replica(t *testing.T, dir string, ca, next *issuer.CA) *replica {
	t.Helper()
	o := journal.Options{Version: "test", CA: ca.Certificate()}
	keys := rotation.Keys{CA: ca.KeySHA256()}
	is := &switched{cas: map[rotation.Key]*issuer.CA{keys.CA: ca}, signs: keys.CA}
	if next != nil {
		o.Next, keys.Next = next.Certificate(), next.KeySHA256()
		is.cas[keys.Next] = next
	}
	w, err := journal.Open(filepath.Join(dir, "state"), o)
	must.OK(t, err)
	t.Cleanup(func() { _ = w.Close() })
	r := &replica{issuer: is, journal: &openJournal{writer: w}, leads: true,
		usage: expiry.Usage{At: time.Now(), Of: make([]expiry.InUse, 2)}}
	r.Rotator = New(Config{
		Keys: keys, Elected: true, Issuer: is, Journal: r.journal, Lifetime: time.Hour,
		Proved: func(context.Context) error { return nil },
		Usage: func(context.Context, []*x509.Certificate, time.Time) (expiry.Usage, error) {
			return r.usage, nil
		},
		Others: func() []string { return r.others },
		Ahead:  func() time.Duration { return r.ahead },
		Logger: hclog.NewNullLogger(),
	})
	r.Connect(r, r)
	return r
}

// Leads is [Controller]'s.
func (r *replica) Leads() bool { return r.leads }

// Holds is [Bundle]'s.
func (r *replica) Holds(context.Context) error { return nil }

// Roots is [Bundle]'s.
func (r *replica) Roots() rotation.Roots { return r.roots }

// Warn is [Controller]'s.
func (r *replica) Warn(reason, message string) { r.events = append(r.events, reason+": "+message) }

// hear has the replica read the lease.
func (c *cluster) hear(r *replica) error { return r.Heard(maps.Clone(c.lease)) }

// renew has the replica, which leads, write the lease, as the election does.
func (c *cluster) renew(t *testing.T, r *replica) {
	t.Helper()
	must.OK(t, c.hear(r))
	for name, text := range r.Annotations() {
		if c.lease[name] = text; text == "" {
			delete(c.lease, name)
		}
	}
	r.Written(maps.Clone(c.lease))
}

// order has the replica, which leads, carry out an order, and returns the answer.
func (c *cluster) order(t *testing.T, r *replica, o rotation.Order) rotation.Answer {
	t.Helper()
	o.ID, o.By, o.At = "order-"+string(o.Step)+time.Now().String(), "test", time.Now()
	c.lease[rotation.OrderKey] = rotation.Encode(o)
	must.OK(t, c.hear(r))
	r.look(t.Context())
	c.renew(t, r)
	answer, is := rotation.ReadAnswer(c.lease)
	if _, waits := c.lease[rotation.OrderKey]; !is || waits || answer.ID != o.ID {
		t.Fatalf("%s has no answer: %v", o.Step, c.lease)
	}
	return answer
}

// take orders a step that must be taken.
func (c *cluster) take(t *testing.T, r *replica, o rotation.Order, want rotation.Phase) {
	t.Helper()
	answer := c.order(t, r, o)
	state, err := rotation.Read(c.lease)
	must.OK(t, err)
	last := r.journal.writer.Rotation()
	if answer.Refused != "" || answer.Phase != want || state.Current() != want || last == nil ||
		last.Phase != journal.Phase(want) || r.Fault() != nil {
		t.Fatalf("%s: %+v; the lease says %s, the journal %+v; fault: %v", o.Step, answer, state,
			last, r.Fault())
	}
}

// requireSigns requires that the CA signs.
func (r *replica) requireSigns(t *testing.T, ca *issuer.CA) {
	t.Helper()
	if r.issuer.signs != ca.KeySHA256() || r.Fault() != nil {
		t.Errorf("the key %s signs; want that of %s; fault: %v", r.issuer.signs.Short(),
			ca.Certificate().Subject, r.Fault())
	}
}

// A whole rotation: the leader takes the steps, and the other replica follows what the lease says.
func TestRotation(t *testing.T) {
	c, dir := newCluster(t), t.TempDir()
	leader := c.replica(t, dir, c.former, c.next)
	standby := c.replica(t, t.TempDir(), c.former, c.next)
	if leader.Fault() == nil {
		t.Error("it would sign before it has read the lease")
	}
	c.renew(t, leader)
	leader.requireSigns(t, c.former)
	for _, s := range []struct {
		order rotation.Order
		phase rotation.Phase
		signs *issuer.CA
	}{
		{rotation.Order{Step: rotation.Announce}, rotation.Announced, c.former},
		{rotation.Order{Step: rotation.Back}, rotation.None, c.former},
		{rotation.Order{Step: rotation.Announce}, rotation.Announced, c.former},
		{rotation.Order{Step: rotation.Trust}, rotation.Trusted, c.former},
		{rotation.Order{Step: rotation.Back}, rotation.Announced, c.former},
		{rotation.Order{Step: rotation.Trust}, rotation.Trusted, c.former},
		{rotation.Order{Step: rotation.Sign}, rotation.Signing, c.next},
		{rotation.Order{Step: rotation.Back}, rotation.Trusted, c.former},
		{rotation.Order{Step: rotation.Sign}, rotation.Signing, c.next},
		{rotation.Order{Step: rotation.Retire, Force: true, Reason: "r"}, rotation.Retired, c.next},
		{rotation.Order{Step: rotation.Back}, rotation.Signing, c.next},
		{rotation.Order{Step: rotation.Retire, Force: true, Reason: "r"}, rotation.Retired, c.next},
	} {
		c.take(t, leader, s.order, s.phase)
		must.OK(t, c.hear(standby))
		leader.requireSigns(t, s.signs)
		standby.requireSigns(t, s.signs)
		if last := standby.journal.writer.Rotation(); last.Phase != journal.Phase(s.phase) {
			t.Errorf("%s: the other journal says %s", s.phase, last.Phase)
		}
	}
	if len(leader.events) != 12 || len(standby.events) != 0 ||
		!strings.Contains(leader.events[11], "CARotation: the CA's rotation: retired since") {
		t.Errorf("events: %q, %q", leader.events, standby.events)
	}
	after := c.replica(t, t.TempDir(), c.next, nil)
	must.OK(t, c.hear(after))
	after.requireSigns(t, c.next)
	must.OK(t, leader.journal.writer.Close())
	if err := c.replica(t, dir, c.next, nil).Heard(nil); err != nil {
		t.Errorf("a lease that was deleted after the rotation: %v", err)
	}
}

// The phase trusted begins by the API server's clock if that is ahead: pods have its time.
func TestTrustedBeginsByTheClockOfPods(t *testing.T) {
	c := newCluster(t)
	r := c.replica(t, t.TempDir(), c.former, c.next)
	c.renew(t, r)
	c.take(t, r, rotation.Order{Step: rotation.Announce}, rotation.Announced)
	r.ahead = time.Hour
	c.take(t, r, rotation.Order{Step: rotation.Trust}, rotation.Trusted)
	answer := c.order(t, r, rotation.Order{Step: rotation.Sign})
	if !strings.Contains(answer.Refused, "ROTATION_TRUST_TIME") {
		t.Errorf("an hour ahead: %+v", answer)
	}
}

// A refused order changes nothing, and neither does one that only asks.
func TestRefusedOrder(t *testing.T) {
	c := newCluster(t)
	r := c.replica(t, t.TempDir(), c.former, c.next)
	r.TrustTime = time.Hour
	c.renew(t, r)
	answer := c.order(t, r, rotation.Order{Step: rotation.Announce, DryRun: true})
	if answer.Refused != "" || answer.Phase != rotation.None || c.lease[rotation.StateKey] != "" {
		t.Errorf("%+v; the lease says %v", answer, c.lease)
	}
	c.take(t, r, rotation.Order{Step: rotation.Announce}, rotation.Announced)
	c.take(t, r, rotation.Order{Step: rotation.Trust}, rotation.Trusted)
	r.usage.Early = make([]expiry.Early, 1)
	r.others = []string{"0123abcd"}
	answer = c.order(t, r, rotation.Order{Step: rotation.Sign})
	for _, want := range []string{"the phase stays trusted", "ROTATION_TRUST_TIME", "caCert once",
		"--checked 0123abcd"} {
		if !strings.Contains(answer.Refused, want) {
			t.Errorf("%q is missing: %s", want, answer.Refused)
		}
	}
	r.requireSigns(t, c.former)
	c.lease[rotation.OrderKey] = rotation.Encode(rotation.Order{ID: "old", Step: rotation.Back,
		At: time.Now().Add(-time.Hour)})
	c.renew(t, r)
	r.look(t.Context())
	c.renew(t, r)
	if answer, _ := rotation.ReadAnswer(c.lease); answer.ID != "old" ||
		!strings.Contains(answer.Refused, "too long ago") || answer.Phase != rotation.Trusted {
		t.Errorf("an old order: %+v", answer)
	}
}

// What was decided is dropped when the order is withdrawn, or another replica has led meanwhile.
func TestDecisionIsDropped(t *testing.T) {
	for name, change := range map[string]func(*testing.T, *cluster, *replica){
		"withdrawn": func(_ *testing.T, c *cluster, _ *replica) {
			delete(c.lease, rotation.OrderKey)
		},
		"carried out by another": func(t *testing.T, c *cluster, other *replica) {
			other.look(t.Context())
			c.renew(t, other)
		},
	} {
		c := newCluster(t)
		r := c.replica(t, t.TempDir(), c.former, c.next)
		other := c.replica(t, t.TempDir(), c.former, c.next)
		c.renew(t, r)
		c.lease[rotation.OrderKey] = rotation.Encode(rotation.Order{ID: "o",
			Step: rotation.Announce, At: time.Now()})
		must.OK(t, c.hear(r))
		must.OK(t, c.hear(other))
		r.look(t.Context())
		change(t, c, other)
		before := maps.Clone(c.lease)
		c.renew(t, r)
		if !maps.Equal(c.lease, before) {
			t.Errorf("%s: the lease says %v; before %v", name, c.lease, before)
		}
	}
}

// A replica that does not lead carries out no order.
func TestOnlyTheLeaderCarriesOut(t *testing.T) {
	c := newCluster(t)
	r := c.replica(t, t.TempDir(), c.former, c.next)
	r.leads = false
	c.lease[rotation.OrderKey] = rotation.Encode(rotation.Order{ID: "o", Step: rotation.Announce,
		At: time.Now()})
	must.OK(t, c.hear(r))
	if r.look(t.Context()); len(r.Annotations()) > 0 {
		t.Errorf("it would write %v", r.Annotations())
	}
}

// inSigning returns a cluster whose rotation is in the phase signing, and the directory of a
// journal that has it.
func inSigning(t *testing.T) (*cluster, *replica, string) {
	t.Helper()
	c, dir := newCluster(t), t.TempDir()
	r := c.replica(t, dir, c.former, c.next)
	c.renew(t, r)
	c.take(t, r, rotation.Order{Step: rotation.Announce}, rotation.Announced)
	c.take(t, r, rotation.Order{Step: rotation.Trust}, rotation.Trusted)
	c.take(t, r, rotation.Order{Step: rotation.Sign}, rotation.Signing)
	return c, r, dir
}

// A replica that lacks a CA of the phase, or that cannot read it, neither leads nor signs.
func TestReplicaThatDoesNotFit(t *testing.T) {
	c, r, _ := inSigning(t)
	for name, replica := range map[string]*replica{
		"only the former CA": c.replica(t, t.TempDir(), c.former, nil),
		"only the next CA":   c.replica(t, t.TempDir(), c.next, nil),
		"another CA":         c.replica(t, t.TempDir(), newCA(t, "another"), nil),
	} {
		if err := c.hear(replica); err == nil || replica.Fault() == nil ||
			!strings.Contains(err.Error(), "CA_CERT_FILE") {
			t.Errorf("%s: %v; fault: %v", name, err, replica.Fault())
		}
	}
	good := c.lease[rotation.StateKey]
	c.lease[rotation.StateKey] = strings.Replace(good, "signing", "sining", 1)
	if err := c.hear(r); err == nil || r.Fault() == nil || len(r.Annotations()) > 0 {
		t.Errorf("a malformed annotation: %v; fault: %v; it would write %v", err, r.Fault(),
			r.Annotations())
	}
	c.lease[rotation.StateKey] = good
	must.OK(t, c.hear(r))
	r.requireSigns(t, c.next)
}

// below returns the CA of a key, certified by a root.
func below(t *testing.T, root fixture.CA, key crypto.PublicKey) *issuer.CA {
	t.Helper()
	cert := fixture.Certify(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "Next CA"},
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign, IsCA: true,
		BasicConstraintsValid: true, SubjectKeyId: []byte{2},
	}, root.Certificate, key, root.Key)
	return must.Value(issuer.ParseCA(issuer.Chain{cert}.PEM()))(t)
}

// A root of the next CA that is added by a restart, after the phase trusted was entered, does not
// count until the phase begins again: the step to signing is refused, in signing the replica does
// not sign, and no other certificate is taken while it runs.
func TestRootThatIsAddedLate(t *testing.T) {
	c, key := newCluster(t), pkcs10test.NewKey(t).Public()
	old, late := fixture.NewCA(t), fixture.NewCA(t)
	one, two := issuer.Anchors{old.Certificate}, issuer.Anchors{old.Certificate, late.Certificate}
	start := func(dir string, by fixture.CA, roots issuer.Anchors) *replica {
		r := c.replica(t, dir, c.former, below(t, by, key))
		r.roots.Next = roots
		return r
	}
	r := start(t.TempDir(), old, one)
	c.renew(t, r)
	c.take(t, r, rotation.Order{Step: rotation.Announce}, rotation.Announced)
	c.take(t, r, rotation.Order{Step: rotation.Trust}, rotation.Trusted)
	dir := t.TempDir()
	again := start(dir, late, two)
	must.OK(t, c.hear(again))
	answer := c.order(t, again, rotation.Order{Step: rotation.Sign})
	if !strings.Contains(answer.Refused, "sign needs: a root of the next CA that clients have had "+
		"time to trust") {
		t.Errorf("%+v", answer)
	}
	must.OK(t, again.journal.writer.Close())

	r.roots.Next = two // it is the same root for this certificate
	must.OK(t, c.hear(r))
	c.take(t, r, rotation.Order{Step: rotation.Sign}, rotation.Signing)
	again = start(dir, late, two)
	if err := c.hear(again); err == nil || again.Fault() == nil ||
		!strings.Contains(err.Error(), "put the former certificate back") ||
		again.issuer.signs != c.former.KeySHA256() {
		t.Errorf("it would sign under a root that is newer: %v; fault: %v", err, again.Fault())
	}
	replaced := false
	replace := func(*issuer.CA) error { replaced = true; return nil }
	if err := r.Replace(below(t, late, key), replace); err == nil || replaced {
		t.Error("a certificate of a newer root is taken")
	}
	if err := r.Replace(below(t, old, key), replace); err != nil || !replaced {
		t.Errorf("a certificate of a root of then is not taken: %v", err)
	}

	c.take(t, r, rotation.Order{Step: rotation.Back}, rotation.Trusted)
	c.take(t, r, rotation.Order{Step: rotation.Back}, rotation.Announced)
	c.take(t, r, rotation.Order{Step: rotation.Trust}, rotation.Trusted)
	c.take(t, r, rotation.Order{Step: rotation.Sign}, rotation.Signing)
	must.OK(t, c.hear(again))
	again.requireSigns(t, again.issuer.CAOf(again.Keys.Next))
}

// A phase that is not in the journal is not followed.
func TestPhaseIsRecordedFirst(t *testing.T) {
	c, _, _ := inSigning(t)
	r := c.replica(t, t.TempDir(), c.former, c.next)
	r.journal.fault = errors.New("the disk is full")
	if err := c.hear(r); err == nil || r.issuer.signs != c.former.KeySHA256() || r.Fault() == nil {
		t.Errorf("%v; %s signs; fault: %v", err, r.issuer.signs.Short(), r.Fault())
	}
	r.journal.fault = nil
	must.OK(t, c.hear(r))
	r.requireSigns(t, c.next)
}

// A lease with an earlier step than the journal, as after a restore of etcd, is not followed.
func TestLeaseIsRolledBack(t *testing.T) {
	c := newCluster(t)
	r := c.replica(t, t.TempDir(), c.former, c.next)
	c.renew(t, r)
	var states []string
	for _, o := range []rotation.Order{{Step: rotation.Announce}, {Step: rotation.Back},
		{Step: rotation.Announce}, {Step: rotation.Trust}, {Step: rotation.Sign}} {
		c.order(t, r, o)
		states = append(states, c.lease[rotation.StateKey])
	}
	for n, state := range states {
		c.lease[rotation.StateKey] = state
		if err := c.hear(r); (err == nil) != (n == len(states)-1) || (err == nil) !=
			(r.Fault() == nil) || err != nil && !strings.Contains(err.Error(), "an earlier step") {
			t.Errorf("%s: %v; fault: %v", state, err, r.Fault())
		}
	}
	r.requireSigns(t, c.next)
}

// A replica that has missed a step and the step back does not follow an earlier lease with that
// step, just as the other replicas do not.
func TestLeaseIsRolledBackToAMissedStep(t *testing.T) {
	c := newCluster(t)
	r, away := c.replica(t, t.TempDir(), c.former, c.next), c.replica(t, t.TempDir(), c.former,
		c.next)
	c.renew(t, r)
	c.take(t, r, rotation.Order{Step: rotation.Announce}, rotation.Announced)
	c.take(t, r, rotation.Order{Step: rotation.Trust}, rotation.Trusted)
	must.OK(t, c.hear(away))
	c.take(t, r, rotation.Order{Step: rotation.Sign}, rotation.Signing)
	missed := c.lease[rotation.StateKey]
	c.take(t, r, rotation.Order{Step: rotation.Back}, rotation.Trusted)
	must.OK(t, c.hear(away))
	c.lease[rotation.StateKey] = missed
	if err := c.hear(away); err == nil || away.issuer.signs != c.former.KeySHA256() {
		t.Errorf("%v; %s signs", err, away.issuer.signs.Short())
	}
}

// A replica that is killed when the lease has a step, and before its journal has, follows the lease
// after its start, as others do; its journal has the step before the other CA can sign.
func TestKilledBetweenLeaseAndJournal(t *testing.T) {
	c, dir := newCluster(t), t.TempDir()
	r := c.replica(t, dir, c.former, c.next)
	c.renew(t, r)
	c.take(t, r, rotation.Order{Step: rotation.Announce}, rotation.Announced)
	c.take(t, r, rotation.Order{Step: rotation.Trust}, rotation.Trusted)
	r.journal.fault = errors.New("killed")
	c.order(t, r, rotation.Order{Step: rotation.Sign})
	if last := r.journal.writer.Rotation(); last.Phase != journal.PhaseTrusted ||
		r.issuer.signs != c.former.KeySHA256() || r.Fault() == nil {
		t.Errorf("the journal says %s; %s signs; fault: %v", last.Phase, r.issuer.signs.Short(),
			r.Fault())
	}
	must.OK(t, r.journal.writer.Close())
	for name, dir := range map[string]string{"again": dir, "another": t.TempDir()} {
		started := c.replica(t, dir, c.former, c.next)
		if started.issuer.signs != c.former.KeySHA256() || started.Fault() == nil {
			t.Errorf("%s: it could sign before it has read the lease", name)
		}
		must.OK(t, c.hear(started))
		started.requireSigns(t, c.next)
		if last := started.journal.writer.Rotation(); last == nil ||
			last.Phase != journal.PhaseSigning {
			t.Errorf("%s: the journal says %+v", name, last)
		}
	}
}

// A lease that is deleted while replicas run gets the phase back. After that, the journal shows
// that it is lost, until a person has restored it.
func TestLeaseIsDeleted(t *testing.T) {
	c, r, dir := inSigning(t)
	c.lease = map[string]string{}
	c.renew(t, r)
	if state, err := rotation.Read(c.lease); err != nil || state.Phase != rotation.Signing {
		t.Errorf("the lease says %v, %v", state, err)
	}
	r.heardAt = time.Now().Add(-memory)
	if err := r.Heard(nil); err == nil || r.Fault() == nil {
		t.Error("a replica that has not read the lease for long writes what it remembers")
	}
	must.OK(t, r.journal.writer.Close())
	c.lease = nil
	again := c.replica(t, dir, c.former, c.next)
	if err := again.Heard(nil); err == nil || again.Fault() == nil ||
		!strings.Contains(err.Error(), "in the phase signing") ||
		!strings.Contains(err.Error(), "ca rotate restore") {
		t.Errorf("%v; fault: %v", err, again.Fault())
	}
	again.Elected = false
	if err := again.Fault(); err == nil || !strings.Contains(err.Error(), "LEADER_ELECT=true") {
		t.Errorf("without an election: %v", err)
	}
	again.Elected = true
	state, err := rotation.Restored(rotation.Signing, again.Keys, "", time.Now(), "r")
	must.OK(t, err)
	c.lease = map[string]string{rotation.StateKey: rotation.Encode(state)}
	must.OK(t, c.hear(again))
	again.requireSigns(t, c.next)
	if fresh := c.replica(t, t.TempDir(), c.former, nil); fresh.Heard(nil) != nil {
		t.Error("without a rotation, a missing lease is a fault")
	}
}
