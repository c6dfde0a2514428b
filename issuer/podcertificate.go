package issuer

import (
	"context"
	"fmt"

	"hsm-signer/issuer/journal"
	"hsm-signer/policy"
)

// lintFormerOfPod makes the certificate again that the journal has for the request of a pod. It
// returns nil if the certificate cannot be published any more and was not published, so another one
// may be made: the API server has refused it, it is too old, or it no longer fits the grant. A
// pod's request is not refused for that: kubelet would never ask again.
func (i *Issuer) lintFormerOfPod(
	a *Authority, grant *policy.Grant, record journal.Record,
) (*linted, error) {
	if record.State == journal.IsOrphaned {
		return nil, nil
	}
	former, err := journal.ParseTBS(record.Intent.TBS)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	again, refusal, err := i.lintFormer(a, grant, record)
	age := i.now().Sub(former.NotBefore)
	switch {
	case err != nil:
		return nil, err
	case refusal == nil && age >= 0 && age <= PodBackdate+podWindow:
		return again, nil
	case record.State == journal.IsPublished || record.State == journal.IsUnconfirmed:
		return nil, fmt.Errorf("the journal says that the certificate %s of this request was, or "+
			"may have been, published; kubelet will create another request", record.Intent.Serial)
	}
	return nil, nil
}

// giveUpFormer writes that the former certificate of a request will not be published, if there is
// one and the journal does not know it yet. It is a pod's, and the API server takes it no more, or
// it was never signed; so the request gets no second one.
func (p *preparation) giveUpFormer(ctx context.Context) error {
	if p.former == nil {
		return nil
	}
	uid, j := p.grant.RequestUID(), p.issuer.journal
	now, err := j.Lookup(uid)
	switch {
	case err != nil || now.State == journal.IsOrphaned:
		return err
	case now.State != p.former.State:
		return fmt.Errorf("the certificate for request %s is %s", uid, now.State)
	}
	why := "it could not be published in time, and is issued again"
	if !p.grant.OfPod() {
		why = "the CA has changed before it was signed, and it is issued again"
	}
	return j.Append(ctx, journal.Orphaned{UID: uid, Serial: now.Intent.Serial, Why: why})
}
