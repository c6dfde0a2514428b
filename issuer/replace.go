package issuer

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// replaceableBy returns nil if another certificate of the same CA may take the place of this one
// while the service runs: the same name and key identifier, and no constraint less.
func (c *CA) replaceableBy(fresh *CA) error {
	const restart = "to use it, start hsm-signer again"
	switch {
	case !bytes.Equal(c.cert.RawSubject, fresh.cert.RawSubject):
		return fmt.Errorf("it is of another CA, %s and not %s: to change the CA, start "+
			"hsm-signer again", fresh.cert.Subject, c.cert.Subject)
	case !bytes.Equal(c.cert.SubjectKeyId, fresh.cert.SubjectKeyId):
		return fmt.Errorf("its subjectKeyIdentifier is %x and not %x, which issued certificates "+
			"refer to; %s", fresh.cert.SubjectKeyId, c.cert.SubjectKeyId, restart)
	}
	now := ConstraintsOf(fresh.cert).PathLength
	if before := ConstraintsOf(c.cert).PathLength; before != NoPathLength &&
		(now == NoPathLength || now > before) {
		return fmt.Errorf("it loses a constraint: the path length of %d; %s", before, restart)
	}
	for _, cert := range c.chain() {
		before := ConstraintsOf(cert)
		kept := func(other Constraints) bool { return other.asStrictAs(before) }
		if !slices.ContainsFunc(fresh.constraints(), kept) &&
			!(before.Permitted.empty() && before.Excluded.empty()) {
			return fmt.Errorf("it loses a constraint of %s: permitted are %s, excluded are %s; %s",
				cert.Subject, before.Permitted, before.Excluded, restart)
		}
	}
	return nil
}

// constraints returns those of each certificate of the chain.
func (c *CA) constraints() []Constraints {
	var all []Constraints
	for _, cert := range c.chain() {
		all = append(all, ConstraintsOf(cert))
	}
	return all
}

// asStrictAs reports whether the constraints permit no name that the others do not.
func (c Constraints) asStrictAs(other Constraints) bool {
	return c.Permitted.within(other.Permitted) && other.Excluded.in(c.Excluded)
}

// within reports whether a set of permitted names allows nothing that the other does not. A kind of
// which none is listed is not restricted.
func (s NameSpace) within(other NameSpace) bool {
	limits := func(theirs, ours int) bool { return theirs == 0 || ours > 0 }
	return limits(len(other.DNSDomains), len(s.DNSDomains)) &&
		limits(len(other.IPRanges), len(s.IPRanges)) &&
		limits(len(other.Others), len(s.Others)) && s.restricted(other).in(other)
}

// restricted returns the names of the kinds that the other set restricts.
func (s NameSpace) restricted(other NameSpace) NameSpace {
	if len(other.DNSDomains) == 0 {
		s.DNSDomains = nil
	}
	if len(other.IPRanges) == 0 {
		s.IPRanges = nil
	}
	if len(other.Others) == 0 {
		s.Others = nil
	}
	return s
}

// in reports whether each name of the set is in the other.
func (s NameSpace) in(other NameSpace) bool {
	for _, domain := range s.DNSDomains {
		if !slices.ContainsFunc(other.DNSDomains, func(o string) bool {
			return o == "" || strings.EqualFold(domain, o) ||
				strings.HasSuffix(strings.ToLower(domain),
					"."+strings.ToLower(strings.TrimPrefix(o, ".")))
		}) {
			return false
		}
	}
	for _, prefix := range s.IPRanges {
		if !slices.ContainsFunc(other.IPRanges, func(o netip.Prefix) bool {
			return o.Bits() <= prefix.Bits() && o.Contains(prefix.Addr())
		}) {
			return false
		}
	}
	for _, name := range s.Others {
		if !slices.Contains(other.Others, name) {
			return false
		}
	}
	return true
}
