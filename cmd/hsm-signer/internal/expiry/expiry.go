// Package expiry knows which pods will outlive their certificates, or have.
//
// Duty: Calico renews nothing: a pod asks once, when it starts, and loses its connections when its
// certificate ends. So this finds the pods that live with a certificate that ends soon or has
// ended, who owns the pod, and the command that restarts it. The metrics, the status page and
// "audit list
// --expiring" all show what it finds.
//
// Contract: it reads, and changes nothing. What was issued, and published, is read from the
// journal, who lives from the API server. A certificate of which the journal does not know whether
// it was published counts as published. Of several certificates that a pod got for the same signer
// and name of the request, only the newest counts. One that has ended is looked for 30 days longer.
// A pod is found by the UID in the token that it asked with; where tokens name no pod, by service
// account and address, and it must be older than its certificate. Of what others asked for, it is
// not known who has it.
package expiry

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
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

// A Certificate was published, or may have been. It holds what the journal says about its holder.
type Certificate struct {
	// all that the journal has; nil in what a [Watch] reports, which would need much memory
	Issued    *journal.Issued
	Requester string
	Signer    string
	Request   string // name of the API object, which the requester chose
	Account   policy.ServiceAccount
	PodName   string // of the token that it was asked for with; empty where tokens name no pod
	PodUID    string
	Addresses []netip.Addr // where tokens name no pod
	SignedAt  time.Time
	NotBefore time.Time
	NotAfter  time.Time
}

// certificateOf reads what the journal knows.
func certificateOf(i *journal.Issued) Certificate {
	c := Certificate{
		Issued: i, Requester: i.Requester.Username, Signer: i.Signer, Request: i.Name,
		SignedAt: i.SignedAt, NotBefore: i.NotBefore, NotAfter: i.NotAfter,
	}
	requester := i.Requester
	account, ok := requester.ServiceAccount()
	if !ok {
		return c
	}
	c.Account = account
	if name, uid, bound := requester.BoundPod(); bound {
		c.PodName, c.PodUID = name, uid
		return c
	}
	cert, err := x509.ParseCertificate(i.Signed)
	if err != nil {
		return c
	}
	for _, ip := range cert.IPAddresses {
		if address, ok := netip.AddrFromSlice(net.IP(ip)); ok {
			c.Addresses = append(c.Addresses, address.Unmap())
		}
	}
	return c
}

// OfPod reports whether a pod asked for it, as far as the journal knows.
func (c Certificate) OfPod() bool { return c.PodUID != "" || len(c.Addresses) > 0 }

// Ended reports whether the certificate has: a pod that lives with it has lost its connections, or
// loses them.
func (c Certificate) Ended(now time.Time) bool { return !now.Before(c.NotAfter) }

// A Term tells which certificates end soon enough to be spoken of at a time; those that have ended
// are among them.
type Term func(c Certificate, now time.Time) bool

// Soon is the term where nobody names another, and that of the alerts: within 30 days, or in the
// last third of the lifetime when that is shorter.
func Soon(c Certificate, now time.Time) bool {
	return c.NotAfter.Sub(now) < min(soon, c.NotAfter.Sub(c.NotBefore)/3)
}

// Within is the term of a time that somebody names.
func Within(d time.Duration) Term {
	return func(c Certificate, now time.Time) bool { return c.NotAfter.Sub(now) < d }
}

// holds names what the certificate is for: a later one of the same pod takes its place.
func (c Certificate) holds() string {
	return fmt.Sprintf("%q %s %s %q %q", c.Requester, c.PodUID, c.Addresses, c.Signer, c.Request)
}

// heldBy reports whether the pod is the one that asked for the certificate.
func (c Certificate) heldBy(pod kube.LivePod) bool {
	if c.PodUID != "" {
		return pod.UID == c.PodUID
	}
	has := func(a netip.Addr) bool { return slices.Contains(pod.IPs, a) }
	return pod.ServiceAccount == c.Account.Name && slices.ContainsFunc(c.Addresses, has) &&
		!pod.Created.After(c.SignedAt)
}

// Days are the bounds by which valid certificates are counted.
var Days = [...]int{1, 7, 30, 90, 365}

// A census is what the journal says at a time.
type census struct {
	valid  int
	within [len(Days)]int // of the valid ones, those that end within so many days
	// the newest of each holder, if it ends soon, or ended lately; the earliest first
	ending []Certificate
}

// scan goes through the journal. What the term covers at the time until is held; whole: with all
// that the journal has of it.
func scan(dir string, now, until time.Time, term Term, whole bool) (census, error) {
	var c census
	ending, unsure := map[string]Certificate{}, map[string]Certificate{}
	for issued, err := range journal.List(dir, journal.Filter{ExpiresAfter: now.Add(-dark)}) {
		if err != nil {
			return census{}, err
		}
		if !issued.MayBeHeld() {
			continue
		}
		c.count(issued, now)
		if issued.OfPod() {
			continue // kubelet renews it
		}
		cert := certificateOf(issued)
		if !whole {
			cert.Issued = nil
		}
		if issued.State != journal.IsPublished { // these come last, whenever they were signed
			if term(cert, until) {
				unsure[cert.holds()] = newer(unsure[cert.holds()], cert)
			}
			continue
		}
		if delete(ending, cert.holds()); term(cert, until) {
			ending[cert.holds()] = cert
		}
	}
	if err := dropReplaced(dir, unsure, now); err != nil {
		return census{}, err
	}
	maps.Copy(ending, unsure)
	c.ending = slices.SortedFunc(maps.Values(ending), func(a, b Certificate) int {
		return cmp.Or(a.NotAfter.Compare(b.NotAfter), strings.Compare(a.Request, b.Request))
	})
	return c, nil
}

// newer returns the certificate that was signed later.
func newer(a, b Certificate) Certificate {
	if a.SignedAt.After(b.SignedAt) {
		return a
	}
	return b
}

// dropReplaced removes the certificates that a published one has replaced: it was signed later, for
// the same holder. There are few to look for, or none.
func dropReplaced(dir string, unsure map[string]Certificate, now time.Time) error {
	if len(unsure) == 0 {
		return nil
	}
	for issued, err := range journal.List(dir, journal.Filter{ExpiresAfter: now.Add(-dark)}) {
		if err != nil {
			return err
		}
		if issued.OfPod() {
			continue
		}
		holds := certificateOf(issued).holds()
		if issued.State == journal.IsPublished && issued.SignedAt.After(unsure[holds].SignedAt) {
			delete(unsure, holds)
		}
	}
	return nil
}

func (c *census) count(i *journal.Issued, now time.Time) {
	if now.Before(i.NotBefore) || now.After(i.NotAfter) {
		return
	}
	c.valid++
	if i.OfPod() {
		return // its end says nothing
	}
	for n, days := range Days {
		if i.NotAfter.Sub(now) <= time.Duration(days)*day {
			c.within[n]++
		}
	}
}
