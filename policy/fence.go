package policy

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// checkUse finds what makes a rule useless: that it, or a part of it, could never grant anything.
func (c *compiler) checkUse(u *rule) {
	if len(u.dnsNames)+len(u.uris)+len(u.emails) == 0 && !u.ips.any() {
		c.wrong(0, "grant", "names nothing that one could ask for; add dnsNames, ipAddresses, uris or emailAddresses")
	}
	if u.from.pod == podAddress && !u.ips.any() {
		c.wrong(0, "grant.ipAddresses", "is empty, but from.pod: address wants one to be asked for; write pod")
	}
	if !u.from.mayBeServiceAccounts() {
		c.checkUsers(u)
	}
	for _, key := range u.keys {
		if len(u.usages) > 0 && !slices.ContainsFunc(fitUsages(u.usages, key), isKeyUsage) {
			c.wrong(0, "grant.keys", "%s serves none of the rule's key usages, so it would never be granted; add the usage %q", key, DigitalSignature)
		}
	}
	for i, one := range u.conditions {
		if one.constant {
			c.wrong(c.Conditions[i].That.at, fmt.Sprintf("conditions[%d]", i), "does not depend on the request, so it allows everything or nothing")
		}
	}
}

// checkUsers finds what can be derived from service accounts alone.
func (c *compiler) checkUsers(u *rule) {
	const why = "derives from a service account, and the rule speaks of none"
	if u.ips.pod {
		c.wrong(0, "grant.ipAddresses", "pod %s", why)
	}
	for field, sources := range map[string][]nameSource{
		"grant.commonNames": u.commonNames, "grant.dnsNames": u.dnsNames, "grant.uris": u.uris, "grant.emailAddresses": u.emails,
	} {
		for _, source := range sources {
			if len(source.describe(ServiceAccount{})) == 0 {
				c.wrong(0, field, "%q %s", source, why)
			}
		}
	}
}

// mayBeServiceAccounts tells whether a service account could be among those whom a rule speaks of.
func (f from) mayBeServiceAccounts() bool {
	return len(f.accounts) > 0 || len(f.users) == 0 || slices.ContainsFunc(f.users, func(user string) bool {
		prefix, open := strings.CutSuffix(user, "*")
		return strings.HasPrefix(user, serviceAccountPrefix) || open && strings.HasPrefix(serviceAccountPrefix, prefix)
	})
}

// same tells whether two rules differ in nothing but their names.
func (u *rule) same(other *rule) bool {
	a, b := *u, *other
	a.name, b.name = "", ""
	a.conditions, b.conditions = nil, nil
	return reflect.DeepEqual(a, b) && slices.EqualFunc(u.conditions, other.conditions, func(x, y condition) bool { return x.text == y.text })
}

// Warnings says which rules are as wide as they can be. That may be meant, but it must not go
// unseen.
func (p *Policy) Warnings() []string {
	var all []string
	for i := range p.rules {
		u := &p.rules[i]
		anyone, anyName := u.from.anyone(), u.anyName()
		say := func(format string, args ...any) {
			all = append(all, fmt.Sprintf("rule %s: ", u.name)+fmt.Sprintf(format, args...))
		}
		switch {
		case anyone != "" && anyName != "":
			say("ANYONE (%s) may have ANY name (%s)", anyone, anyName)
		case anyone != "":
			say("anyone may ask (%s)", anyone)
		case anyName != "":
			say("any name may be asked for (%s)", anyName)
		}
		if u.from.pod == podNone && len(u.from.accounts) > 0 {
			say("the service accounts need not be live pods (from.pod: none), so whoever holds or may make a token of theirs can ask")
		}
		if u.keepSubject {
			say("the requester chooses its subject beside the common name (grant.subject: kept); whoever takes the organisation for a group is told what it says there")
		}
	}
	return all
}

// anyone returns what in a rule speaks of everybody, or nothing.
func (f from) anyone() string {
	if len(f.groups) > 0 && !slices.ContainsFunc(f.groups, everybodysGroup) || len(f.extra) > 0 {
		return ""
	}
	switch {
	case slices.Contains(f.users, "*"):
		return "from.users: *"
	case slices.Contains(f.accounts, ServiceAccount{"*", "*"}):
		return "from.serviceAccounts: */*"
	case len(f.accounts)+len(f.users) == 0:
		return "from.groups: " + strings.Join(f.groups, ", ")
	}
	return ""
}

// everybodysGroup tells whether everybody, or every service account, is in the group.
func everybodysGroup(group string) bool {
	return slices.Contains([]string{"system:authenticated", "system:unauthenticated", "system:serviceaccounts"}, group)
}

// anyName returns what in a rule allows every name of a kind, or nothing.
func (u *rule) anyName() string {
	for _, source := range u.dnsNames {
		if p, ok := source.(pattern); ok && (p == "**" || p == "*") {
			return fmt.Sprintf("grant.dnsNames: %s", p)
		}
	}
	for _, prefix := range u.ips.patterns {
		if prefix.Bits() == 0 {
			return fmt.Sprintf("grant.ipAddresses: %s", prefix)
		}
	}
	return ""
}
