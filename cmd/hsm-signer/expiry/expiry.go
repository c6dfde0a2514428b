// Package expiry knows which pods will outlive their certificates.
//
// Duty: Calico renews nothing: a pod asks once, when it starts, and goes dark when its certificate ends.
// So this finds the certificates that end soon and whose pod still lives, who owns the pod, and the
// command that restarts it.
//
// Contract: it reads, and changes nothing. What was issued is read from the journal, who lives from the
// API server. A pod is found by the UID in the token that it asked with; where tokens name no pod, by
// service account and address, and it must be older than its certificate. Of several certificates of one
// pod for the same thing, the newest counts.
package expiry

import (
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"hsm-signer/issuer/journal"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

const day = 24 * time.Hour

// soon is how long before its end a certificate is spoken of, where its lifetime is long.
const soon = 30 * day

// dark is for how long after its end a certificate is looked for: by then somebody has noticed.
const dark = 30 * day

// A Certificate is one that a pod asked for.
type Certificate struct {
	Serial    string // as openssl writes it
	Request   string // name of the API object, which the requester chose
	Account   policy.ServiceAccount
	PodName   string // of the token that it was asked for with; empty where tokens name no pod
	PodUID    string
	Addresses []netip.Addr
	SignedAt  time.Time
	NotBefore time.Time
	NotAfter  time.Time
}

// CertificateOf reads what the journal knows; false when it was no pod's, so that nothing can be told
// of who lives with it.
func CertificateOf(i *journal.Issued) (Certificate, bool) {
	requester := policy.Requester(i.Requester)
	account, ok := requester.ServiceAccount()
	if !ok {
		return Certificate{}, false
	}
	c := Certificate{
		Serial: i.Serial, Request: i.Name, Account: account,
		SignedAt: i.SignedAt, NotBefore: i.NotBefore, NotAfter: i.NotAfter,
	}
	if name, uid, bound := requester.BoundPod(); bound {
		c.PodName, c.PodUID = name, uid
		return c, true
	}
	cert, err := x509.ParseCertificate(i.Signed)
	if err != nil {
		return Certificate{}, false
	}
	for _, ip := range cert.IPAddresses {
		if address, ok := netip.AddrFromSlice(net.IP(ip)); ok {
			c.Addresses = append(c.Addresses, address.Unmap())
		}
	}
	return c, len(c.Addresses) > 0
}

// EndsSoon tells whether the certificate has ended, or will within 30 days, or is in the last third of
// its lifetime when that is shorter.
func (c Certificate) EndsSoon(now time.Time) bool {
	return c.NotAfter.Sub(now) < min(soon, c.NotAfter.Sub(c.NotBefore)/3)
}

// holds names what the certificate is for: a later one of the same pod takes its place.
func (c Certificate) holds() string {
	return fmt.Sprintf("%s %s %s %s", c.Account, c.PodUID, c.Addresses, c.Request)
}

// heldBy tells whether the pod is the one that asked for the certificate.
func (c Certificate) heldBy(pod kube.LivePod) bool {
	if c.PodUID != "" {
		return pod.UID == c.PodUID
	}
	has := func(a netip.Addr) bool { return slices.Contains(pod.IPs, a) }
	return pod.ServiceAccount == c.Account.Name && slices.ContainsFunc(c.Addresses, has) && !pod.Created.After(c.SignedAt)
}

// Within are the bounds, in days, by which valid certificates are counted.
var Within = [...]int{1, 7, 30, 90, 365}

// A census is what the journal says at a time.
type census struct {
	valid  int
	within [len(Within)]int // of the valid ones, those that end within so many days
	ending []Certificate    // those of pods that end soon, or ended lately
}

// scan goes through the journal. What ends soon at the time until is held.
func scan(dir string, now, until time.Time) (census, error) {
	var c census
	ending := map[string]Certificate{}
	for issued, err := range journal.List(dir, journal.Filter{ExpiresAfter: now.Add(-dark)}) {
		if err != nil {
			return census{}, err
		}
		if issued.State != journal.IsPublished { // it may still be, and then is seen the next time
			continue
		}
		c.count(issued, now)
		cert, ok := CertificateOf(issued)
		if !ok {
			continue
		}
		if delete(ending, cert.holds()); cert.EndsSoon(until) {
			ending[cert.holds()] = cert
		}
	}
	for _, cert := range ending {
		c.ending = append(c.ending, cert)
	}
	slices.SortFunc(c.ending, func(a, b Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	return c, nil
}

func (c *census) count(i *journal.Issued, now time.Time) {
	if now.Before(i.NotBefore) || now.After(i.NotAfter) {
		return
	}
	c.valid++
	for n, days := range Within {
		if i.NotAfter.Sub(now) <= time.Duration(days)*day {
			c.within[n]++
		}
	}
}
