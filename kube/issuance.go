package kube

import (
	"bytes"

	"k8s.io/apimachinery/pkg/types"

	"hsm-signer/kube/request"
)

// An Issuance says who issued the certificate on a request of ours.
type Issuance string

// Every Issuance there is.
const (
	// Own is by this issuer, and recorded.
	Own Issuance = "own"
	// OtherJournal is by the CA, for a former journal or for that of another controller.
	OtherJournal Issuance = "another_journal"
	// Unrecorded is by the CA, with one of our serial numbers, and there is no record of it.
	Unrecorded Issuance = "unrecorded"
	// Foreign is not by the CA.
	Foreign Issuance = "foreign"
)

// known is the certificate of a request, and who issued it.
type known struct {
	chain    []byte
	issuance Issuance
}

// issuanceOf finds out where the certificate of a request comes from.
func (c *Controller) issuanceOf(r request.Object) (Issuance, error) {
	made, err := c.Issuer.Made(string(r.GetUID()), r.Certificate())
	if err != nil || made {
		return Own, err
	}
	switch byCA, ours := c.Issuer.Signed(r.Certificate()); {
	case !byCA:
		return Foreign, nil
	case ours:
		return Unrecorded, nil
	}
	return OtherJournal, nil
}

// countCertificates finds out who issued each certificate on a request of ours, once for each, and
// reports the numbers. It warns of certificates that ought not to be there.
func (c *Controller) countCertificates(all map[types.UID]request.Object) {
	before, counts := c.certificates, map[Issuance]int{}
	c.certificates = make(map[types.UID]known, len(all))
	for uid, r := range all {
		chain := r.Certificate()
		if len(chain) == 0 || r.Signer() == "" || !c.serves(r) {
			continue // without a signer name it may be anyone's
		}
		now, was := before[uid]
		if !was || !bytes.Equal(now.chain, chain) {
			issuance, err := c.issuanceOf(r)
			if err != nil {
				c.Logger.Warn("the issuer of a certificate is unknown; retrying",
					"request", nameOf(r), "uid", r.GetUID(), "error", err)
				continue
			}
			now = known{chain, issuance}
			c.warnUnexpected(r, issuance)
		}
		c.certificates[uid] = now
		counts[now.issuance]++
	}
	c.sinks.Report(Census{counts})
}

// warnUnexpected warns of a certificate that ought not to be on a request of ours.
func (c *Controller) warnUnexpected(r request.Object, issuance Issuance) {
	object, log := r.Reference(), c.Logger.With("request", nameOf(r), "uid", r.GetUID())
	switch issuance {
	case Foreign:
		log.Error("a request has a certificate that the CA has not signed: who else may " +
			"update the status of these requests, and sign for this signer?")
		c.events.warn(object, "ForeignCertificate",
			"the certificate of this request was not made by this signer")
	case Unrecorded:
		log.Error("a request has a certificate that the CA has signed, with a serial number of " +
			"this journal, which does not have it: the journal was cut or set back, or the CA's " +
			"key was used without it")
		c.events.warn(object, "UnrecordedCertificate",
			"the certificate of this request is signed by the CA, and the journal does not have it")
	case OtherJournal:
		log.Info("a request has a certificate that the CA has signed for another journal")
	}
}
