package issuer

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"

	"hsm-signer/issuer/journal"
	"hsm-signer/policy"
)

// A Journal remembers what is signed, so that one request has one certificate, whatever happens in
// between. [journal.Journal] is one.
type Journal interface {
	// Ready answers nil when the journal takes a new request.
	Ready() error
	// ID begins the serial numbers of the journal.
	ID() journal.ID
	// Lookup tells what is known of a request.
	Lookup(uid string) (journal.Record, error)
	// Unpublished lists what is neither published nor orphaned.
	Unpublished() []journal.Record
	// Recent lists what was about to be signed in the hour before the journal was opened.
	Recent() []journal.Recent
	// Append answers nil when the entry is on the disk.
	Append(ctx context.Context, e journal.Entry) error
}

// known returns what the journal knows of the grant's request, and the certificate as it was to be signed
// then. A [*policy.NotCovered] says that the grant does not cover it any more.
func (i *Issuer) known(grant *policy.Grant) (journal.Record, *certificate, error) {
	record, err := i.journal.Lookup(grant.RequestUID())
	if err != nil {
		return record, nil, fmt.Errorf("journal: %w", err)
	}
	switch {
	case record.State == journal.Unknown:
		return record, nil, nil
	case record.State == journal.IsOrphaned && record.Certificate == nil:
		return record, nil, policy.NotCoveredf("it was given up before it was signed")
	}
	again, err := i.lintAgain(grant, record.Intent.TBS)
	return record, again, err
}

// lintAgain makes the certificate that was to be signed before, and requires the same bytes: the
// ones that are read back come from a disk. How long the certificate may be valid is compared without the clock,
// which may have been set.
func (i *Issuer) lintAgain(grant *policy.Grant, tbs []byte) (*certificate, error) {
	ca := i.CA()
	template, err := i.template(ca, grant)
	if err != nil {
		return nil, err
	}
	former, err := parseTBS(tbs)
	if err != nil {
		return nil, fmt.Errorf("the journal's certificate for request %s: %w", grant.RequestUID(), err)
	}
	switch lifetime := former.NotAfter.Sub(former.NotBefore); {
	case lifetime > grant.Lifetime()+Backdate:
		return nil, policy.NotCoveredf("it is valid for %s, and %s is granted now", lifetime, grant.Lifetime())
	case !i.now().Before(former.NotAfter):
		return nil, policy.NotCoveredf("it has expired at %s", former.NotAfter.Format(time.RFC3339))
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = former.SerialNumber, former.NotBefore, former.NotAfter
	again, findings := ca.linter.issue(template, grant.PublicKey())
	switch {
	case len(findings) > 0:
		return nil, policy.NotCoveredf("it cannot be issued any more: %s", refusalOf(grant, findings).Message())
	case !bytes.Equal(again.TBS.FullBytes, tbs):
		return nil, policy.NotCoveredf("it is another one than is granted now")
	}
	return again, nil
}

// parseTBS reads a certificate that has no signature.
func parseTBS(tbs []byte) (*x509.Certificate, error) {
	var parts []asn1.RawValue
	if rest, err := asn1.Unmarshal(tbs, &parts); err != nil || len(rest) > 0 || len(parts) < 3 {
		return nil, fmt.Errorf("it cannot be read")
	}
	const algorithm = 2 // version, serial number, signature (RFC 5280, section 4.1)
	der, err := asn1.Marshal(certificate{asn1.RawValue{FullBytes: tbs}, parts[algorithm], asn1.BitString{}})
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// intend writes what is about to be signed.
func (i *Issuer) intend(ctx context.Context, grant *policy.Grant, c *certificate) error {
	former, err := parseTBS(c.TBS.FullBytes)
	if err != nil {
		return err
	}
	if err := inTime(ctx); err != nil {
		return err
	}
	err = i.journal.Append(ctx, journal.Intent{
		UID: grant.RequestUID(), Name: grant.RequestName(), Signer: grant.SignerName(), Requester: grant.Requester(),
		RequestSHA256: grant.RequestSHA256(), Rule: grant.Rule(), PolicyHash: grant.PolicyHash(), Names: grant.Names(),
		Serial: journal.FormatSerial(former.SerialNumber), TBS: c.TBS.FullBytes,
	})
	if err != nil {
		return fmt.Errorf("journal: %w; nothing was signed", err)
	}
	return nil
}

// unfinishedAfter is how old an intent is that its first turn cannot be at any more.
const unfinishedAfter = 2 * time.Minute

// Unfinished lists the requests that have an intent or a certificate of a while ago, or of an
// earlier process, and of which it is not known what became: UID, name and signer name of each.
func (i *Issuer) Unfinished() []policy.Submission {
	var begun []policy.Submission
	for _, record := range i.journal.Unpublished() {
		if record.Inherited || i.now().Sub(record.Intended) > unfinishedAfter {
			begun = append(begun, policy.Submission{UID: record.Intent.UID, Name: record.Intent.Name, SignerName: record.Intent.Signer})
		}
	}
	return begun
}

// Made tells whether the first certificate in PEM is the one that the journal has for the request.
func (i *Issuer) Made(uid string, chain []byte) (bool, error) {
	record, err := i.journal.Lookup(uid)
	if err != nil {
		return false, fmt.Errorf("journal: %w", err)
	}
	block, _ := pem.Decode(chain)
	return block != nil && record.Certificate != nil && bytes.Equal(block.Bytes, record.Certificate), nil
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

// Signed tells whether the CA has signed the first certificate in PEM, and whether its serial number is one of
// this journal's.
func (i *Issuer) Signed(chain []byte) (byCA, ours bool) {
	block, _ := pem.Decode(chain)
	if block == nil {
		return false, false
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	ca := i.CA().cert
	if err != nil || !bytes.Equal(cert.RawIssuer, ca.RawSubject) || cert.CheckSignatureFrom(ca) != nil {
		return false, false
	}
	return true, i.journal.ID().Carries(journal.FormatSerial(cert.SerialNumber))
}

// Orphaned writes that the request will not take its certificate any more, unless that, or what became of it,
// is known already. While the certificate is being signed it writes nothing: ask again.
func (i *Issuer) Orphaned(ctx context.Context, uid, why string) error {
	if _, busy := i.signing.Load(uid); busy {
		return nil
	}
	record, err := i.journal.Lookup(uid)
	if err == nil && (record.State == journal.Intended || record.State == journal.HasCertificate) {
		err = i.journal.Append(ctx, journal.Orphaned{UID: uid, Serial: record.Intent.Serial, Why: why})
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
	if _, busy := i.signing.Load(uid); busy || err == nil && record.State != journal.HasCertificate {
		return i.Orphaned(ctx, uid, why)
	}
	if err == nil {
		err = i.journal.Append(ctx, journal.Unconfirmed{UID: uid, Serial: record.Intent.Serial, Why: why})
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

// newSerial returns a positive number of 20 bytes at most (RFC 5280, section 4.1.2.2) that no other
// journal has: it begins with this one's ID, and 128 random bits follow.
func (i *Issuer) newSerial() (*big.Int, error) {
	serial, err := i.journal.ID().NewSerial()
	if err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	return serial, nil
}
