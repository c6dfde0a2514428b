package issuer

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/asn1"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"hsm-signer/issuer/journal"
	"hsm-signer/policy"
)

// Why a prepared certificate is not issued.
var (
	ErrNotPrepared = errors.New("issuer: nothing was prepared")
	ErrIssued      = errors.New("issuer: it was issued before: prepare it again")
)

// A Prepared is a certificate that has passed everything but the signature. Only [Issuer.Prepare]
// makes one, and [Prepared.Issue] works once.
type Prepared struct {
	once *preparation // shared by every copy, so that a copy is spent with its original
}

type preparation struct {
	issuer    *Issuer
	authority *Authority // whose CA the certificate names, and whose key signs it
	grant     *policy.Grant
	linted    *linted        // what is to be signed
	record    journal.Record // what the journal had when it was prepared, and is used
	// former is what the journal had of a pod's request, and is given up; nil: nothing is.
	former *journal.Record
	spent  atomic.Bool
}

// Prepare does everything that precedes the signature: it spends the grant, requires the CA, the
// journal and the key to be ready, looks the request up in the journal, counts it in the budget,
// makes the expensive checks of its key, and lints the certificate with a throwaway key. It returns
// exactly one of
//   - the prepared certificate;
//   - a verdict that takes the grant's place: a [*policy.Refusal] if the certificate can never be
//     issued, or [*policy.Waiting] if a budget is spent;
//   - an error: a fault that may pass. Decide again, and try again with the new grant.
//
// If the journal has the request already, the same certificate is prepared again, also if another
// CA has signed it before [Issuer.SignWith]. An intent of such a CA without a signature is given
// up, and a new certificate is prepared. If the certificate no longer fits the grant, the refusal has
// the code [policy.FormerCertificate]; a pod gets another one, and the former is given up.
func (i *Issuer) Prepare(
	ctx context.Context, grant *policy.Grant,
) (*Prepared, policy.Verdict, error) {
	if err := grant.Redeem(); err != nil {
		return nil, nil, err
	}
	authority := i.authorities.inForce.Load()
	if err := i.ready(ctx, authority); err != nil {
		return nil, nil, err
	}
	record, err := i.journal.Lookup(grant.RequestUID())
	if err != nil {
		return nil, nil, fmt.Errorf("journal: %w", err)
	}
	if record.State == journal.Unknown { // otherwise it was counted before
		i.budget.begin(i.journal.Recent(), i.now()) // the journal is open: it is ready
		if over := i.budget.reserve(grant, i.now()); over != nil {
			return nil, &policy.Waiting{Rule: grant.Rule(), Missing: over.String(),
				Budget: over}, nil
		}
	}
	if refusal := grant.CheckKey(); refusal != nil {
		return nil, refusal, nil
	}
	once := &preparation{issuer: i, authority: authority, grant: grant, record: record}
	refusal, err := once.lint()
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("certificate for request %s: %w", grant.RequestUID(), err)
	case refusal != nil:
		return nil, refusal, nil
	}
	return &Prepared{once}, nil, nil
}

// lint makes the certificate with the throwaway key: the one that the journal has, or else a new
// one. It returns a refusal if it can never be issued.
func (p *preparation) lint() (refusal *policy.Refusal, err error) {
	i := p.issuer
	switch {
	case p.record.State == journal.Unknown:
		p.linted, refusal, err = i.lintNew(p.authority, p.grant)
	case !p.grant.OfPod():
		return p.lintFormer()
	default:
		p.linted, err = i.lintFormerOfPod(p.authority, p.grant, p.record)
		if p.linted == nil && err == nil {
			return p.lintAgain()
		}
	}
	return refusal, err
}

// lintFormer makes the certificate that the journal has for the request. What another CA has signed
// stays the request's, with the chain of that CA. What another CA was to sign, it must not sign any
// more: then a new one is made.
func (p *preparation) lintFormer() (refusal *policy.Refusal, err error) {
	if of := p.issuer.authorities.of(p.record.Intent.TBS); of != nil && of != p.authority {
		switch {
		case p.record.State == journal.Intended:
			return p.lintAgain()
		case p.record.Certificate != nil:
			p.authority = of
		}
	}
	p.linted, refusal, err = p.issuer.lintFormer(p.authority, p.grant, p.record)
	return refusal, err
}

// lintAgain makes a new certificate with the throwaway key instead of the one that the journal has,
// which is to be given up.
func (p *preparation) lintAgain() (refusal *policy.Refusal, err error) {
	former := p.record
	p.record, p.former = journal.Record{}, &former
	p.linted, refusal, err = p.issuer.lintNew(p.authority, p.grant)
	return refusal, err
}

// lintNew makes a new certificate with the throwaway key.
func (i *Issuer) lintNew(a *Authority, grant *policy.Grant) (*linted, *policy.Refusal, error) {
	serial, err := i.journal.ID().NewSerial()
	if err != nil {
		return nil, nil, fmt.Errorf("serial number: %w", err)
	}
	template, err := newTemplate(a.CA, grant, serial, i.now())
	if err != nil {
		return nil, nil, err
	}
	template.SignatureAlgorithm = a.Algorithm
	linted, findings := a.CA.linter.issue(template, grant.PublicKey())
	return linted, refusalOf(grant, findings), nil
}

// lintFormer makes the certificate that the journal has for the request, and requires the same
// bytes: those of the journal come from a disk. It compares the lifetime without the clock, which
// may have been set.
func (i *Issuer) lintFormer(
	a *Authority, grant *policy.Grant, record journal.Record,
) (*linted, *policy.Refusal, error) {
	if record.State == journal.IsOrphaned && record.Certificate == nil {
		return nil, formerCertificate(grant, "was given up before it was signed"), nil
	}
	former, err := journal.ParseTBS(record.Intent.TBS)
	if err != nil {
		return nil, nil, fmt.Errorf("journal: %w", err)
	}
	switch lifetime := former.NotAfter.Sub(former.NotBefore); {
	case lifetime > grant.Lifetime()+Backdate || grant.OfPod() && lifetime > grant.Lifetime():
		return nil, formerCertificate(grant, "is valid for %s, and %s is granted now",
			lifetime, grant.Lifetime()), nil
	case !i.now().Before(former.NotAfter):
		expired := former.NotAfter.Format(time.RFC3339)
		return nil, formerCertificate(grant, "has expired at %s", expired), nil
	}
	template, err := newTemplate(a.CA, grant, former.SerialNumber, i.now())
	if err != nil {
		return nil, nil, err
	}
	template.SignatureAlgorithm = a.Algorithm
	template.NotBefore, template.NotAfter = former.NotBefore, former.NotAfter
	again, findings := a.CA.linter.issue(template, grant.PublicKey())
	switch {
	case len(findings) > 0:
		why := refusalOf(grant, findings).Message()
		return nil, formerCertificate(grant, "can no longer be issued: %s", why), nil
	case !bytes.Equal(again.TBS.FullBytes, record.Intent.TBS):
		return nil, formerCertificate(grant, "is not the one that is granted now"), nil
	}
	return again, nil, nil
}

// formerCertificate refuses a request that has a certificate in the journal which no longer fits.
func formerCertificate(grant *policy.Grant, format string, args ...any) *policy.Refusal {
	return &policy.Refusal{
		PolicyHash: grant.PolicyHash(), RequestSHA256: grant.RequestSHA256(),
		Reasons: []policy.Reason{{
			Code: policy.FormerCertificate, Rule: grant.Rule(), Field: fieldRequest,
			Message: "has an earlier certificate, which " + fmt.Sprintf(format, args...) +
				"; create a new request",
		}},
	}
}

// Issue signs the prepared certificate and returns it with its chain in PEM, leaf first, without
// the root. It writes the intent, has the CA's key sign exactly those bytes, verifies the signature
// and records the certificate. Nothing is signed if the policy or the CA was replaced meanwhile
// ([policy.ErrGrantStale]), the context has ended, or the journal is not ready. If the journal has
// the certificate already, Issue returns that. An error is a fault that may pass: prepare again.
func (p *Prepared) Issue(ctx context.Context) ([]byte, error) {
	if p == nil || p.once == nil {
		return nil, ErrNotPrepared
	}
	return p.once.issue(ctx)
}

func (p *preparation) issue(ctx context.Context) ([]byte, error) {
	if err := p.check(ctx); err != nil {
		return nil, err
	}
	if p.record.Certificate != nil {
		return p.authority.CA.chainOf(p.record.Certificate), nil
	}
	uid := p.grant.RequestUID()
	p.issuer.signing.Store(uid, true)
	defer p.issuer.signing.Delete(uid)
	if err := p.intend(ctx); err != nil {
		return nil, fmt.Errorf("journal: %w; nothing was signed", err)
	}
	signed, err := p.sign(ctx)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate for request %s: %w", uid, err)
	}
	// Not with the caller's context: what was signed must be recorded.
	writing, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	if err := p.issuer.journal.Append(writing, signed); err != nil {
		return nil, fmt.Errorf("journal: %w; the certificate for request %s is not published "+
			"before it is "+
			"written", err, uid)
	}
	p.issuer.recent.add(uid, signed.Certificate)
	return p.authority.CA.chainOf(signed.Certificate), nil
}

// check spends the preparation, and returns an error if it must not be used now.
func (p *preparation) check(ctx context.Context) error {
	switch {
	case !p.spent.CompareAndSwap(false, true):
		return ErrIssued
	case !p.issuer.authorities.has(p.authority, p.record.Certificate == nil):
		return fmt.Errorf("%w: the CA, or its certificate, was replaced", policy.ErrGrantStale)
	}
	if err := p.grant.InForce(); err != nil {
		return err
	}
	if err := inTime(ctx); err != nil {
		return err
	}
	if err := p.issuer.journal.Ready(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// intend writes what is about to be signed. If the journal had an intent when the certificate was
// prepared, it must still be open: nobody gives it up from now on.
func (p *preparation) intend(ctx context.Context) error {
	if p.record.State == journal.Intended {
		now, err := p.issuer.journal.Lookup(p.grant.RequestUID())
		if err == nil && now.State != journal.Intended {
			err = fmt.Errorf("the intent for request %s is %s", p.grant.RequestUID(), now.State)
		}
		return err
	}
	if err := inTime(ctx); err != nil {
		return err
	}
	grant := p.grant
	if err := p.giveUpFormer(ctx); err != nil {
		return err
	}
	return p.issuer.journal.Append(ctx, journal.Intent{
		UID: grant.RequestUID(), Name: grant.RequestName(), Signer: grant.SignerName(),
		Requester: grant.Requester(), RequestSHA256: grant.RequestSHA256(),
		Rule: grant.Rule(), PolicyHash: grant.PolicyHash(), Names: grant.Names(),
		Serial: journal.FormatSerial(p.linted.serial), TBS: p.linted.TBS.FullBytes,
		Anew: p.former != nil,
	})
}

// sign has the CA's key sign the bytes that were linted, and verifies the signature.
func (p *preparation) sign(ctx context.Context) (journal.Signed, error) {
	a, tbs := p.authority, p.linted.TBS
	opts := SignerOpts(a.Algorithm, a.Key.Public())
	digest := tbs.FullBytes
	if hash := opts.HashFunc(); hash != 0 { // Ed25519 signs the bytes themselves
		h := hash.New()
		h.Write(digest)
		digest = h.Sum(nil)
	}
	if err := inTime(ctx); err != nil {
		return journal.Signed{}, err
	}
	signature, err := a.Key.Signer(ctx).Sign(rand.Reader, digest, opts)
	if err != nil {
		return journal.Signed{}, err
	}
	bits := asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}
	der, err := asn1.Marshal(certificate{tbs, p.linted.Algorithm, bits})
	if err != nil {
		return journal.Signed{}, err
	}
	return journal.NewSigned(p.grant.RequestUID(), der, a.CA.cert)
}

// writeTimeout bounds the wait for the journal's disk after a signature.
const writeTimeout = 30 * time.Second

// inTime returns nil until the context's deadline. A context may not know yet that it has ended:
// this process may have stood still.
func inTime(ctx context.Context) error {
	if deadline, bounded := ctx.Deadline(); bounded && !time.Now().Before(deadline) {
		return context.DeadlineExceeded
	}
	return ctx.Err()
}
