package expiry

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"hsm-signer/issuer/journal"
	"hsm-signer/kube"
	"hsm-signer/kube/clientset"
)

// InUse is which valid certificates of one CA are in use, as far as one journal knows.
type InUse struct {
	// Live are those whose pod lives. Of those that nothing renews, only the newest of each holder
	// counts.
	Live    int
	Unknown int       // those of others than pods, of which it is not known who has them
	Last    time.Time // the end of the last one, whoever has it; zero: none is valid
}

// Usage is which certificates are in use at a time.
type Usage struct {
	At    time.Time
	Of    []InUse // of each CA, in the order in which they were named
	Early []Early // pods with a certificate that were created before the time, by name
	Fault error   // why it is not known which pods live; the numbers are too small then
	// PodsFault is that of pods that asked by CertificateSigningRequests.
	PodsFault error
}

// An Early pod has a certificate that nothing renews, and was created before a time.
type Early struct{ Pod kube.LivePod }

// String names the pod, and the command that restarts it.
func (e Early) String() string {
	return fmt.Sprintf("%s/%s (%s)", e.Pod.Namespace, e.Pod.Name, e.Pod.Restart())
}

// FindUsage reads the journal in dir, and looks which pods live. Early are those that were created
// before a time: their certificates may be later, since an init container can run again.
func FindUsage(ctx context.Context, dir string, client clientset.Interface, now time.Time,
	cas []*x509.Certificate, before time.Time) (Usage, error) {
	c := usageCount{holders: &holders{client: client, namespaces: map[string]namespace{}},
		cas: cas, usage: Usage{At: now, Of: make([]InUse, len(cas))}, newest: map[string]inUse{}}
	for issued, err := range journal.List(dir, journal.Filter{ExpiresAfter: now}) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return Usage{}, fmt.Errorf("the journal in %s: %w", dir, err)
		}
		if issued.MayBeHeld() {
			c.add(ctx, issued)
		}
	}
	return c.result(before), nil
}

// usageCount counts certificates as they come.
type usageCount struct {
	holders *holders
	cas     []*x509.Certificate
	usage   Usage
	newest  map[string]inUse // of each holder that lives, of what nothing renews
	faults  []error
}

// inUse is a certificate in use.
type inUse struct {
	ca   int
	cert Certificate
	pod  kube.LivePod
}

// add counts a certificate that is valid, and that somebody may hold.
func (c *usageCount) add(ctx context.Context, issued *journal.Issued) {
	ca := issuedBy(issued.Signed, c.cas)
	if ca < 0 {
		return
	}
	of := &c.usage.Of[ca]
	if issued.NotAfter.After(of.Last) {
		of.Last = issued.NotAfter
	}
	cert := certificateOf(issued)
	if !cert.OfPod() {
		of.Unknown++
		return
	}
	pod, lives, err := c.holders.of(ctx, cert)
	switch {
	case err != nil:
		c.fault(err, issued.OfPod())
	case !lives:
	case issued.OfPod():
		of.Live++
	default:
		cert.Issued = nil
		if former, is := c.newest[cert.holds()]; !is || cert.SignedAt.After(former.cert.SignedAt) {
			c.newest[cert.holds()] = inUse{ca, cert, pod}
		}
	}
}

// fault notes why it is not known whether a pod lives.
func (c *usageCount) fault(err error, renewed bool) {
	if !slices.Contains(c.faults, err) {
		c.faults = append(c.faults, err)
	}
	if !renewed {
		c.usage.PodsFault = err
	}
}

// result returns what was counted.
func (c *usageCount) result(before time.Time) Usage {
	u := c.usage
	before = before.Truncate(time.Second) // the API server's times have whole seconds
	u.Fault = errors.Join(c.faults...)
	for _, one := range c.newest {
		u.Of[one.ca].Live++
		if one.pod.Created.Before(before) {
			u.Early = append(u.Early, Early{one.pod})
		}
	}
	slices.SortFunc(u.Early, func(a, b Early) int {
		return strings.Compare(a.String(), b.String())
	})
	u.Early = slices.CompactFunc(u.Early, func(a, b Early) bool { return a.Pod.UID == b.Pod.UID })
	return u
}

// issuedBy returns which of the CAs has issued a certificate in DER, by the key identifier and the
// name in it; -1 if none has. The journal verifies signatures.
func issuedBy(der []byte, cas []*x509.Certificate) int {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return -1
	}
	return slices.IndexFunc(cas, func(ca *x509.Certificate) bool {
		return bytes.Equal(cert.RawIssuer, ca.RawSubject) &&
			bytes.Equal(cert.AuthorityKeyId, ca.SubjectKeyId)
	})
}
