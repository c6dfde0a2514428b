package journal

import (
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"time"
)

// Issued is a certificate that was issued, or that may have been signed and was given up. Names,
// serial number and validity are those of the certificate, or of its to-be-signed bytes if it has
// no signature; the rest is what the intent says.
type Issued struct {
	Intent
	// [HasCertificate], [IsPublished], [IsOrphaned] or [IsUnconfirmed]; see [Find]
	State     State
	SignedAt  time.Time // when the line with the certificate was written; zero when there is none
	NotBefore time.Time
	NotAfter  time.Time
	// the certificate, DER; nil of an orphan whose signature is not in the journal
	Signed  []byte
	History []Event // only from [Find]
}

// MayBeHeld reports whether the client may hold the certificate: it was published, or was signed
// and nobody knows whether it was.
func (i *Issued) MayBeHeld() bool {
	return i.Signed != nil && i.State != IsOrphaned
}

// A Filter chooses certificates. The zero one takes all.
type Filter struct {
	ExpiresAfter  time.Time // NotAfter is this time or later
	ExpiresBefore time.Time // NotAfter is before this time; zero: no limit
}

func (f Filter) takes(i *Issued) bool {
	return !i.NotAfter.Before(f.ExpiresAfter) &&
		(f.ExpiresBefore.IsZero() || i.NotAfter.Before(f.ExpiresBefore))
}

// errEnough ends the reading when nobody listens any more.
var errEnough = errors.New("enough")

// List goes through the certificates that were issued: those that were published, in that order,
// and then the others, with all that were orphaned. A line that is wrong ends it with an error; it
// verifies the chain, and not the signatures. Like [Verify] it can be used while the journal is
// written. It remembers only what is not published.
func List(dir string, f Filter) iter.Seq2[*Issued, error] {
	return func(yield func(*Issued, error) bool) {
		l := &lister{filter: f, yield: yield, open: map[string]*Issued{}}
		l.read(dir, l.line)
	}
}

type lister struct {
	filter   Filter
	unsigned bool // certificates that are only intended are handed over too
	yield    func(*Issued, error) bool
	open     map[string]*Issued
	// UIDs, as they come; those that are open no more are left out from time to time
	order []string
}

// read hands each line of the journal over, and then yields what is still open.
func (l *lister) read(dir string, line func(Line) error) {
	_, err := replay(dir, reader{line: func(read Line, _ place, _ Hash) error {
		return line(read)
	}})
	if err == nil {
		err = l.remaining()
	}
	if err != nil && !errors.Is(err, errEnough) {
		l.yield(nil, err)
	}
}

func (l *lister) line(line Line) error {
	switch e := line.Entry.(type) {
	case Intent:
		return l.intent(e)
	case Signed:
		return l.signed(e, line.Time)
	case Published:
		i := l.open[e.UID]
		if i == nil { // it was published before
			return nil
		}
		delete(l.open, e.UID)
		i.State = IsPublished
		return l.give(i)
	case Orphaned:
		return l.orphaned(e)
	case Unconfirmed:
		if i := l.open[e.UID]; i != nil {
			i.State = IsUnconfirmed
		}
	}
	return nil
}

func (l *lister) intent(e Intent) error {
	if former := l.open[e.UID]; l.given(former) { // an orphan, whose request gets a new one
		if err := l.give(former); err != nil {
			return err
		}
	}
	l.open[e.UID] = &Issued{Intent: e, State: Intended}
	l.order = append(l.order, e.UID)
	l.tidy()
	return nil
}

func (l *lister) signed(e Signed, at time.Time) error {
	i := l.open[e.UID]
	if i == nil {
		return fmt.Errorf("a certificate without an intent, for the request %s", e.UID)
	}
	cert, err := x509.ParseCertificate(e.Certificate)
	if err != nil {
		return err
	}
	i.State, i.SignedAt, i.Signed = HasCertificate, at, e.Certificate
	return i.says(cert)
}

func (l *lister) orphaned(e Orphaned) error {
	i := l.open[e.UID]
	if i == nil {
		return nil
	}
	i.State = IsOrphaned
	if i.Signed != nil {
		if e.mayBeDelivered() {
			i.State = IsUnconfirmed
		}
		return nil
	}
	cert, err := ParseTBS(i.TBS)
	if err != nil {
		return err
	}
	return i.says(cert)
}

// says takes over what the certificate says.
func (i *Issued) says(cert *x509.Certificate) (err error) {
	i.Serial = FormatSerial(cert.SerialNumber)
	i.NotBefore, i.NotAfter = cert.NotBefore, cert.NotAfter
	i.Names, _, err = namesOf(cert, i.Intent)
	return err
}

// given reports whether the certificate is one to hand over.
func (l *lister) given(i *Issued) bool {
	return i != nil && (l.unsigned || i.Signed != nil || i.State == IsOrphaned)
}

// give hands over a certificate that the filter takes.
func (l *lister) give(i *Issued) error {
	if l.filter.takes(i) && !l.yield(i, nil) {
		return errEnough
	}
	return nil
}

// remaining gives the certificates that were not published.
func (l *lister) remaining() error {
	for _, uid := range l.order {
		if i := l.open[uid]; l.given(i) {
			delete(l.open, uid)
			if err := l.give(i); err != nil {
				return err
			}
		}
	}
	return nil
}

// tidy keeps the order as short as what is open.
func (l *lister) tidy() {
	if len(l.order) < 2*len(l.open)+1024 {
		return
	}
	var open []string
	for _, uid := range l.order {
		if l.open[uid] != nil {
			open = append(open, uid)
		}
	}
	l.order = open
}
