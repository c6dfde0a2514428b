package journal

import (
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsm-signer/internal/must"
)

// rotated makes a journal in which the CA is rotated, with a certificate of each, and closes it.
func rotated(t *testing.T, o Options) (dir string, from, to *testCA) {
	t.Helper()
	from, to, dir = newCA(t), newCA(t), filepath.Join(t.TempDir(), "state")
	o.CA, o.Next = from.cert, to.cert
	j := open(t, dir, o)
	issue(t, from, j, "one")
	if j.Rotation() != nil {
		t.Error("there is a rotation")
	}
	for _, phase := range []Phase{PhaseAnnounced, PhaseTrusted, PhaseSigning} {
		put(t, j, NewRotation(phase, from.cert, to.cert, ""))
		if r := j.Rotation(); r == nil || r.Phase != phase {
			t.Errorf("%+v; want %s", r, phase)
		}
	}
	issue(t, to, j, "two")
	put(t, j, NewRotation(PhaseRetired, from.cert, to.cert, "all pods were restarted"))
	closeNow(t, j)
	return dir, from, to
}

// The journal takes certificates of both CAs, and remembers the phase after a restart, also when
// the line is in a file that is not read any more.
func TestRotationIsKnownAfterARestart(t *testing.T) {
	for name, size := range map[string]int64{"one file": 0, "many files": 1} {
		t.Run(name, func(t *testing.T) {
			ago := 4 * time.Hour // files of the last hour are always read
			now := func() time.Time { return time.Now().Add(-ago) }
			dir, from, to := rotated(t, Options{FileSize: size, now: now})
			for ; ago >= 0; ago -= 2 * time.Hour {
				j := open(t, dir, Options{CA: from.cert, FileSize: size, now: now})
				put(t, j, aProbe) // in the next file
				r := j.Rotation()
				if r == nil || r.Phase != PhaseRetired || r.From != keyHash(from.cert) ||
					r.To != keyHash(to.cert) || r.Why != "all pods were restarted" {
					t.Fatalf("%+v", r)
				}
				closeNow(t, j)
			}
			j := open(t, dir, Options{CA: from.cert}) // the next CA is not configured
			intent, signed, _ := to.lines(t, j.ID(), "three", time.Hour)
			put(t, j, intent)
			if err := j.Append(t.Context(), signed); !errors.Is(err, ErrConflict) {
				t.Errorf("a certificate of a CA that is not configured: %v", err)
			}
		})
	}
}

// A verifier that has the certificate of one of the CAs finds the other in the journal, and reports
// it. One that has neither takes nothing.
func TestVerifyFindsTheOtherCA(t *testing.T) {
	dir, from, to := rotated(t, Options{FileSize: 2000})
	for name, c := range map[string]struct {
		known []*x509.Certificate
		other *testCA
	}{
		"both": {[]*x509.Certificate{to.cert, from.cert}, nil},
		"to":   {[]*x509.Certificate{to.cert}, from},
		"from": {[]*x509.Certificate{from.cert}, to},
	} {
		s, err := Verify(dir, VerifyOptions{CAs: c.known})
		if err != nil || s.Counts.Signed != 2 || s.Counts.Rotations != 4 {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
		if c.other == nil && len(s.RotatedCAs) == 0 {
			continue
		}
		if len(s.RotatedCAs) != 1 || s.RotatedCAs[0].Certificates != 1 ||
			!s.RotatedCAs[0].cert.Equal(c.other.cert) {
			t.Errorf("%s: %+v", name, s.RotatedCAs)
		}
	}
	stranger := []*x509.Certificate{newCA(t).cert}
	if s, err := Verify(dir, VerifyOptions{CAs: stranger}); err == nil ||
		!strings.Contains(err.Error(), "is not signed by the CA") || len(s.RotatedCAs) > 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

// Rotations lead from one CA to the next, whichever of them is known.
func TestRotationsAreFollowed(t *testing.T) {
	a, b, c, d := newCA(t), newCA(t), newCA(t), newCA(t)
	all := []Rotation{NewRotation(PhaseRetired, a.cert, b.cert, ""),
		NewRotation(PhaseRetired, b.cert, c.cert, "")}
	for _, known := range []*testCA{a, b, c} {
		if more := rotatedCAs([]*x509.Certificate{known.cert}, all); len(more) != 2 {
			t.Errorf("%+v", more)
		}
	}
	if more := rotatedCAs([]*x509.Certificate{d.cert}, all); len(more) != 0 {
		t.Errorf("%+v", more)
	}
}

// A line about a rotation names its CAs by the keys of the certificates that it holds.
func TestRotationIsChecked(t *testing.T) {
	from, to := newCA(t), newCA(t)
	j := open(t, t.TempDir(), Options{CA: from.cert, Next: to.cert})
	good := NewRotation(PhaseAnnounced, from.cert, to.cert, "")
	for words, change := range map[string]func(*Rotation){
		"is not a phase":    func(r *Rotation) { r.Phase = "soon" },
		"of other keys":     func(r *Rotation) { r.To = r.From },
		"cannot be read":    func(r *Rotation) { r.ToCertificate = nil },
		"to itself":         func(r *Rotation) { r.To, r.ToCertificate = r.From, r.FromCertificate },
		"are of other keys": func(r *Rotation) { r.From, r.To = r.To, r.From },
	} {
		bad := good
		change(&bad)
		if err := j.Append(t.Context(), bad); !errors.Is(err, ErrConflict) ||
			!strings.Contains(err.Error(), words) {
			t.Errorf("%v; want %q", err, words)
		}
	}
	put(t, j, good)
}

// The line that opens the journal names both CAs.
func TestOpenedNamesTheNextCA(t *testing.T) {
	dir, from, to := rotated(t, Options{})
	text := string(must.Value(os.ReadFile(filePath(dir, 1)))(t))
	first, _, _ := strings.Cut(text, "\n")
	if !strings.Contains(first, `"caSHA256":"`+hash(from.cert.Raw)+`"`) ||
		!strings.Contains(first, `"nextCASHA256":"`+hash(to.cert.Raw)+`"`) {
		t.Error(first)
	}
}
