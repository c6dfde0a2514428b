package issuer

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	"hsm-signer/issuer/journal"
	"hsm-signer/policy"
)

// A Journal remembers what is signed, so that one request has one certificate, whatever happens in
// between. [journal.Journal] is one.
type Journal interface {
	// Ready returns nil if the journal takes a new request.
	Ready() error
	// ID begins the serial numbers of the journal.
	ID() journal.ID
	// Lookup returns what is known of a request.
	Lookup(uid string) (journal.Record, error)
	// Unpublished lists what is neither published nor orphaned.
	Unpublished() []journal.Record
	// Recent lists what was about to be signed in the hour before the journal was opened.
	Recent() []journal.Recent
	// Append returns nil if the entry is on the disk.
	Append(ctx context.Context, e journal.Entry) error
}

// unfinishedAfter is the age of an intent from which its first sync must have ended.
const unfinishedAfter = 2 * time.Minute

// Unfinished returns the requests whose outcome is unknown: those with an intent or a certificate
// that an earlier process wrote or that is older than two minutes. Each has UID, name and signer
// name.
func (i *Issuer) Unfinished() []policy.Submission {
	var unfinished []policy.Submission
	for _, record := range i.journal.Unpublished() {
		if record.Inherited || i.now().Sub(record.Intended) > unfinishedAfter {
			unfinished = append(unfinished,
				policy.Submission{UID: record.Intent.UID, Name: record.Intent.Name,
					SignerName: record.Intent.Signer})
		}
	}
	return unfinished
}

// Made reports whether the first certificate in PEM is the one that the journal has for the
// request. The first look at a certificate of this process reads nothing from the disk.
func (i *Issuer) Made(uid string, chain []byte) (bool, error) {
	if block, _ := pem.Decode(chain); block != nil && i.recent.take(uid, block.Bytes) {
		return true, nil
	}
	record, err := i.journal.Lookup(uid)
	if err != nil {
		return false, fmt.Errorf("journal: %w", err)
	}
	block, _ := pem.Decode(chain)
	return block != nil && record.Certificate != nil &&
		bytes.Equal(block.Bytes, record.Certificate), nil
}

// Delivered reports whether the journal says that the API server took the first certificate in PEM
// for the request.
func (i *Issuer) Delivered(uid string, chain []byte) (bool, error) {
	record, err := i.journal.Lookup(uid)
	if err != nil {
		return false, fmt.Errorf("journal: %w", err)
	}
	block, _ := pem.Decode(chain)
	return record.State == journal.IsPublished && block != nil &&
		bytes.Equal(block.Bytes, record.Certificate), nil
}

// NeverIssued reports whether the journal has no certificate for the request and expects none: it
// does not know the request, or the request was given up.
func (i *Issuer) NeverIssued(uid string) (bool, error) {
	record, err := i.journal.Lookup(uid)
	if err != nil {
		return false, fmt.Errorf("journal: %w", err)
	}
	return record.State == journal.Unknown || record.State == journal.IsOrphaned, nil
}

// Signed reports whether one of the CAs has signed the first certificate in PEM, and whether its
// serial number is one of this journal's.
func (i *Issuer) Signed(chain []byte) (byCA, ours bool) {
	block, _ := pem.Decode(chain)
	if block == nil {
		return false, false
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || !i.authorities.signed(cert) {
		return false, false
	}
	return true, i.journal.ID().Carries(journal.FormatSerial(cert.SerialNumber))
}

// Orphaned writes that the request will not take its certificate any more, unless that, or what
// became of it, is known already. While the certificate is being signed it writes nothing: ask
// again.
func (i *Issuer) Orphaned(ctx context.Context, uid, why string) error {
	if _, busy := i.signing.Load(uid); busy {
		return nil
	}
	record, err := i.journal.Lookup(uid)
	if err == nil && (record.State == journal.Intended || record.State == journal.HasCertificate) {
		err = i.journal.Append(ctx,
			journal.Orphaned{UID: uid, Serial: record.Intent.Serial, Why: why})
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// Unconfirmed records that nobody can find out any more whether the request took its certificate.
// Without a certificate in the journal nothing was published: then it is an orphan.
func (i *Issuer) Unconfirmed(ctx context.Context, uid, why string) error {
	record, err := i.journal.Lookup(uid)
	if _, busy := i.signing.Load(uid); busy ||
		err == nil && record.State != journal.HasCertificate {
		return i.Orphaned(ctx, uid, why)
	}
	if err == nil {
		err = i.journal.Append(ctx,
			journal.Unconfirmed{UID: uid, Serial: record.Intent.Serial, Why: why})
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// Published writes that the API server took the request's certificate.
func (i *Issuer) Published(ctx context.Context, uid string) error {
	record, err := i.journal.Lookup(uid)
	if err == nil {
		err = i.journal.Append(ctx, journal.Published{UID: uid, Serial: record.Intent.Serial})
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}
