package journal

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// A Phase is how far a rotation of the CA has come.
type Phase string

// The phases of a rotation.
const (
	PhaseNone      Phase = "none"      // there is none: it has ended, or was taken back
	PhaseAnnounced Phase = "announced" // clients get both roots; the former CA signs
	PhaseTrusted   Phase = "trusted"   // all clients trust both; the former CA signs
	PhaseSigning   Phase = "signing"   // the new CA signs
	PhaseRetired   Phase = "retired"   // the new CA signs; the former root is withdrawn
)

// Phases are all of them, in their order.
func Phases() []Phase {
	return []Phase{PhaseNone, PhaseAnnounced, PhaseTrusted, PhaseSigning, PhaseRetired}
}

// A Rotation says that the rotation of the CA has come to a phase. It holds the certificates of
// both CAs, so that whoever reads the journal later can verify what each has signed.
type Rotation struct {
	Phase           Phase  `json:"phase"`
	From            Hash   `json:"from"`            // of the former CA's SubjectPublicKeyInfo in DER
	To              Hash   `json:"to"`              // of the new CA's
	FromCertificate []byte `json:"fromCertificate"` // DER
	ToCertificate   []byte `json:"toCertificate"`   // DER
	Why             string `json:"why,omitempty"`   // why a person forced the step
	// Since is when the step was decided on, by the clock of the process that led then.
	Since time.Time `json:"since,omitzero"`
}

// NewRotation returns the line for a step of the rotation from one CA to the other.
func NewRotation(phase Phase, from, to *x509.Certificate, why string) Rotation {
	return Rotation{Phase: phase, From: keyHash(from), To: keyHash(to), FromCertificate: from.Raw,
		ToCertificate: to.Raw, Why: why}
}

// keyHash names a CA by its key.
func keyHash(ca *x509.Certificate) Hash { return sha256.Sum256(ca.RawSubjectPublicKeyInfo) }

// Kind is [KindRotation].
func (Rotation) Kind() Kind { return KindRotation }

func (r Rotation) check() error {
	if !slices.Contains(Phases(), r.Phase) {
		return fmt.Errorf("%q is not a phase of a rotation", r.Phase)
	}
	cas, err := r.Certificates()
	switch {
	case err != nil:
		return err
	case keyHash(cas[0]) != r.From || keyHash(cas[1]) != r.To:
		return fmt.Errorf("the rotation is from the key %s to %s, but its certificates are of "+
			"other keys", r.From, r.To)
	case r.From == r.To:
		return fmt.Errorf("the rotation is from the key %s to itself", r.From)
	}
	return nil
}

// Certificates returns the certificates of the former and of the new CA.
func (r Rotation) Certificates() ([]*x509.Certificate, error) {
	var cas []*x509.Certificate
	for _, der := range [][]byte{r.FromCertificate, r.ToCertificate} {
		ca, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("the CA's certificate cannot be read: %w", err)
		}
		cas = append(cas, ca)
	}
	return cas, nil
}

// Rotation returns the last line of its kind on the disk; nil if there is none.
func (j *Writer) Rotation() *Rotation {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.ledger.rotation
}

// A RotatedCA is one that [VerifyOptions] do not name: its certificate is in the journal, in a line
// about its rotation with one that they name, or with another RotatedCA.
type RotatedCA struct {
	Subject      string `json:"subject"`
	SHA256       Hash   `json:"sha256"`       // of its certificate in DER
	Certificates int    `json:"certificates"` // that it has signed

	cert *x509.Certificate
}

// rotatedCAs returns the CAs that rotations connect with the known ones.
func rotatedCAs(known []*x509.Certificate, all []Rotation) (more []RotatedCA) {
	keys := map[Hash]bool{}
	for _, ca := range known {
		keys[keyHash(ca)] = true
	}
	for range all { // each pass follows one more rotation, in whatever order they are
		for _, r := range all {
			cas, err := r.Certificates()
			if err != nil || keys[r.From] == keys[r.To] {
				continue
			}
			other := cas[0]
			if keys[r.From] {
				other = cas[1]
			}
			keys[r.From], keys[r.To] = true, true
			more = append(more, RotatedCA{Subject: other.Subject.String(),
				SHA256: sha256.Sum256(other.Raw), cert: other})
		}
	}
	return more
}

// rotations reads the lines of the kind rotation. What is wrong with the journal is found when all
// of it is verified.
func rotations(dir string) (all []Rotation) {
	count, _ := countFiles(dir)
	e := &end{light: true}
	for e.number < count {
		e.number, e.lines, e.size = e.number+1, 0, 0
		if e.readFile(dir, reader{line: func(l Line, at place, _ Hash) error {
			if l.Kind() != KindRotation {
				return nil
			}
			raw, err := readLineAt(filePath(dir, at.file), int64(at.offset))
			if err != nil {
				return err
			}
			whole, err := parseLine(raw)
			if r, is := whole.Entry.(Rotation); is && err == nil {
				all = append(all, r)
			}
			return err
		}}) != nil {
			break
		}
	}
	return all
}
