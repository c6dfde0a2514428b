package rotator

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/expiry"
	"hsm-signer/cmd/hsm-signer/internal/rotation"
)

// usageInterval is the time between two counts of the certificates in use, each of which reads the
// whole journal.
const usageInterval = time.Hour

// A Count is how many certificates of each CA are in use, as far as this journal knows.
type Count struct {
	At       time.Time // zero: not counted yet
	CA, Next int
	Early    int   // pods with a certificate, created before both CAs were trusted
	Fault    error // why the numbers may be too small
}

// Count is the latest one; without a next CA, and before the first, it is zero.
func (r *Rotator) Count() Count { return r.count.Load() }

// Watch counts the certificates in use of both CAs until the context ends. Without a next CA it
// only waits.
func (r *Rotator) Watch(ctx context.Context) error {
	var due time.Time
	var phase rotation.Phase
	for {
		if s, _ := r.State(); r.Keys.Next != (rotation.Key{}) && r.Journal.Writer() != nil &&
			(!time.Now().Before(due) || s.Current() != phase) {
			r.take(ctx, s)
			due, phase = time.Now().Add(usageInterval), s.Current()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(interval):
		}
	}
}

// take counts.
func (r *Rotator) take(ctx context.Context, s rotation.State) {
	cas := []*x509.Certificate{r.Issuer.CAOf(r.Keys.CA).Certificate(),
		r.Issuer.CAOf(r.Keys.Next).Certificate()}
	usage, err := r.Usage(ctx, cas, s.Trusted)
	if err != nil {
		former := r.count.Load()
		former.Fault = err
		r.count.Swap(former)
		return
	}
	r.count.Swap(Count{At: usage.At, CA: usage.Of[0].Live, Next: usage.Of[1].Live,
		Early: len(usage.Early), Fault: usage.Fault})
}

// live returns which certificates are in use, for the guards.
func (r *Rotator) live(ctx context.Context, s rotation.State) rotation.Live {
	from, to := r.Issuer.CAOf(s.From), r.Issuer.CAOf(s.To)
	if from == nil || to == nil { // the step is refused anyway
		return rotation.Live{Fault: errors.New("one of the two CAs is not configured")}
	}
	usage, err := r.Usage(ctx, []*x509.Certificate{from.Certificate(), to.Certificate()},
		s.Trusted)
	if err != nil {
		return rotation.Live{Fault: err}
	}
	return LiveOf(usage, s, r.Others())
}

// LiveOf returns what a count of the certificates of the two CAs of a rotation says.
func LiveOf(usage expiry.Usage, s rotation.State, others []string) rotation.Live {
	live := rotation.Live{Fault: usage.PodsFault, Others: others,
		Last: map[rotation.Key]time.Time{s.From: usage.Of[0].Last, s.To: usage.Of[1].Last}}
	for _, early := range usage.Early {
		live.Early = append(live.Early, early.String())
	}
	return live
}

// Facts describe for people how the rotation stands; there are none without a rotation and without
// a next CA.
func (r *Rotator) Facts() []string {
	var facts []string
	if summary := r.Summary(); summary != "" {
		facts = append(facts, summary)
	}
	if r.Keys.Next != (rotation.Key{}) {
		facts = append(facts, r.Count().String())
	}
	return facts
}

// String describes the count for people.
func (c Count) String() string {
	if c.At.IsZero() {
		return "certificates in use: not counted yet"
	}
	text := fmt.Sprintf("certificates in use: %d of CA_CERT_FILE, %d of NEXT_CA_CERT_FILE", c.CA,
		c.Next)
	if c.Early > 0 {
		text += fmt.Sprintf("; pods that may know only one CA: %d", c.Early)
	}
	if c.Fault != nil {
		text += fmt.Sprintf("; incomplete: %v", c.Fault)
	}
	return text
}
