package kube

import (
	"bytes"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/types"
)

// An Origin says where the certificate on a request of ours comes from.
type Origin string

// Every Origin there is.
const (
	Own        Origin = "own"             // it was made here, and is recorded
	Elsewhere  Origin = "another_journal" // the CA has signed it for another journal: a former one, or that of another controller
	Unrecorded Origin = "unrecorded"      // the CA has signed it, it has one of our serial numbers, and there is no record of it
	Foreign    Origin = "foreign"         // the CA has not signed it
)

// known is the certificate of a request, and its origin.
type known struct {
	chain  []byte
	origin Origin
}

// originOf finds out where the certificate of a request comes from.
func (c *Controller) originOf(csr *certificatesv1.CertificateSigningRequest) (Origin, error) {
	made, err := c.Issuer.Made(string(csr.UID), csr.Status.Certificate)
	if err != nil || made {
		return Own, err
	}
	switch byCA, ours := c.Issuer.Signed(csr.Status.Certificate); {
	case !byCA:
		return Foreign, nil
	case ours:
		return Unrecorded, nil
	}
	return Elsewhere, nil
}

// lookAtCertificates finds out where every certificate on a request of ours comes from, once for each, and tells of
// those that ought not to be.
func (c *Controller) lookAtCertificates(all map[types.UID]*certificatesv1.CertificateSigningRequest) {
	before, counts := c.origins, map[Origin]int{}
	c.origins = make(map[types.UID]known, len(before))
	for uid, csr := range all {
		chain := csr.Status.Certificate
		if len(chain) == 0 || csr.Spec.SignerName == "" || !c.serves(csr) { // without a signer name it may be anyone's
			continue
		}
		now, was := before[uid]
		if !was || !bytes.Equal(now.chain, chain) {
			origin, err := c.originOf(csr)
			if err != nil {
				c.Logger.Warn("it cannot be told where a certificate comes from; it is looked at again", "request", csr.Name, "uid", csr.UID, "error", err)
				continue
			}
			now = known{chain, origin}
			c.strange(csr, origin)
		}
		c.origins[uid] = now
		counts[now.origin]++
	}
	c.Observer.Certificates(counts)
}
