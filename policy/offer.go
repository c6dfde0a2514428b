package policy

import (
	"net/netip"
	"slices"
	"strings"

	"hsm-signer/policy/pkcs10"
)

// An Offer is what one rule can grant, as far as its text says it.
type Offer struct {
	Rule string
	// DNSNames, and hosts of EmailAddresses, have a "*" for a label that depends on the requester
	// or the request, and a "**" for one or more.
	DNSNames       []string
	URIs           []string
	EmailAddresses []string
	IPAddresses    []netip.Prefix
	PodAddresses   bool // the rule grants those of the requester's pod
	Keys           []pkcs10.KeyType

	usages []Usage
}

// Usages returns all usages of the rule that a key of this type can have.
func (o Offer) Usages(key pkcs10.KeyType) []Usage {
	fitting := fitUsages(o.usages, key)
	idle := unserved(fitting)
	return slices.DeleteFunc(fitting, func(u Usage) bool { return slices.Contains(idle, u) })
}

// Offers returns what the rules can grant.
func (p *Policy) Offers() []Offer {
	offers := make([]Offer, 0, len(p.rules))
	for i := range p.rules {
		u := &p.rules[i]
		offer := Offer{
			Rule: u.name, DNSNames: append(shapes(u.dnsNames), u.podNameShapes()...),
			URIs:           shapes(u.uris),
			EmailAddresses: shapes(u.emails),
			IPAddresses:    slices.Clone(u.ips.patterns), PodAddresses: u.ips.pod,
			Keys: slices.Clone(u.keys), usages: u.usages,
		}
		for _, ip := range u.ips.literals {
			offer.IPAddresses = append(offer.IPAddresses, netip.PrefixFrom(ip, ip.BitLen()))
		}
		offers = append(offers, offer)
	}
	return offers
}

// shapes lists the names with "*" for what depends on the requester or the request.
func shapes(sources []nameSource) []string {
	var all []string
	for _, source := range sources {
		t, isText := source.(text)
		if !isText {
			all = append(all, source.describe(ServiceAccount{Namespace: "*"})...)
			continue
		}
		all = append(all, t.shape())
	}
	return all
}

// shape has a "*" for a placeholder in a DNS name or in the host of an email address, and an "x"
// for one in the path of a URI or in a mailbox.
func (t text) shape() string {
	before, host := "", string(t)
	if at := strings.LastIndex(host, "@"); at >= 0 {
		before, host = host[:at+1], host[at+1:]
	}
	if strings.Contains(host, "://") {
		before, host = host, ""
	}
	return fillPlaces(before, "x") + fillPlaces(host, "*")
}

func fillPlaces(s, with string) string {
	return strings.NewReplacer(placeNamespace, with, placeAccount, with).Replace(s)
}
