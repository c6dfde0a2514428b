package policy

import (
	"fmt"
	"slices"
	"strings"

	"hsm-signer/policy/pkcs10"
)

// checkUse finds what makes a rule useless: that it, or a part of it, could never grant anything.
func (c *compiler) checkUse(u *rule) {
	if len(u.dnsNames)+len(u.uris)+len(u.emails)+len(u.podNames) == 0 && !u.ips.any() {
		c.wrong(0, "grant", "names nothing that one could ask for; add dnsNames, ipAddresses, "+
			"uris or emailAddresses")
	}
	if u.from.pod == podAddress && !u.ips.any() {
		c.wrong(0, "grant.ipAddresses",
			"is empty, but from.pod: address wants one to be asked for; write pod")
	}
	if !u.from.mayBeServiceAccounts() {
		c.checkUsers(u)
	}
	if !u.from.anyInGroups() {
		c.wrong(c.From.Groups[0].at, "from.groups", "no requester that the rule names is in any "+
			"of %s, so it would never grant anything", strings.Join(u.from.groups, ", "))
	}
	for i, source := range u.commonNames {
		if t, isText := source.(text); isText && !t.derives() && len(t) > pkcs10.MaxCommonName {
			c.wrong(c.Grant.CommonNames[i].at, "grant.commonNames",
				"%q is longer than the %d bytes that a common name may have", t,
				pkcs10.MaxCommonName)
		}
	}
	for _, key := range u.keys {
		if len(u.usages) > 0 && !slices.ContainsFunc(fitUsages(u.usages, key), isKeyUsage) {
			c.wrong(0, "grant.keys", "%s serves none of the rule's key usages, so it would never "+
				"be granted; add the usage %q", key, DigitalSignature)
		}
	}
	if unservable := u.unservable(); len(unservable) > 0 && len(u.keys) > 0 &&
		!slices.ContainsFunc(u.usages, u.servable) {
		c.wrong(0, "grant.usages", "no key type of the rule can have %s with the rule's key "+
			"usages, so it would never be granted; add the usage %q",
			unservable[0].usage, DigitalSignature)
	}
	for i, one := range u.conditions {
		if one.constant {
			c.wrong(c.Conditions[i].That.at, fmt.Sprintf("conditions[%d]", i),
				"does not depend on the request, so it allows everything or nothing")
		}
	}
}

// An impossible is an extended key usage that a rule allows and never grants with a type of key.
type impossible struct {
	usage Usage
	key   pkcs10.KeyType
}

// unservable lists the combinations of extended key usage and key that the rule's key usages rule
// out.
func (u *rule) unservable() []impossible {
	var all []impossible
	for _, key := range u.keys {
		for _, usage := range unserved(fitUsages(u.usages, key)) {
			all = append(all, impossible{usage, key})
		}
	}
	return all
}

// servable reports whether a usage is an extended key usage that one of the rule's keys can have.
func (u *rule) servable(usage Usage) bool {
	return !isKeyUsage(usage) && slices.ContainsFunc(u.keys, func(key pkcs10.KeyType) bool {
		return !slices.Contains(unserved(fitUsages(u.usages, key)), usage)
	})
}

// warnOfUsages reports combinations of usage and key that are never granted.
func (u *rule) warnOfUsages() []string {
	var all []string
	for _, one := range u.unservable() {
		all = append(all, fmt.Sprintf("%q is never granted with a key of the type %s: the rule "+
			"allows none of the key usages that it needs (%s)",
			string(one.usage), one.key, strings.Join(strs(servedBy[one.usage]), ", ")))
	}
	return all
}

// checkUsers finds what can be derived from service accounts alone.
func (c *compiler) checkUsers(u *rule) {
	const why = "derives from a service account, and the rule names none"
	if u.ips.pod {
		c.wrong(0, "grant.ipAddresses", "pod %s", why)
	}
	for _, names := range []struct {
		field   string
		sources []nameSource
	}{
		{"grant.commonNames", u.commonNames}, {"grant.dnsNames", u.dnsNames},
		{"grant.uris", u.uris}, {"grant.emailAddresses", u.emails},
	} {
		for _, source := range names.sources {
			if len(source.describe(ServiceAccount{})) == 0 {
				c.wrong(0, names.field, "%q %s", source, why)
			}
		}
	}
}

// mayBeServiceAccounts reports whether a service account could be among a rule's requesters.
func (f from) mayBeServiceAccounts() bool {
	return len(f.accounts) > 0 || len(f.users) == 0 ||
		slices.ContainsFunc(f.users, mayBeServiceAccount)
}

// mayBeServiceAccount reports whether an entry of users matches any service account.
func mayBeServiceAccount(user string) bool {
	prefix, open := strings.CutSuffix(user, "*")
	return strings.HasPrefix(user, serviceAccountPrefix) ||
		open && strings.HasPrefix(serviceAccountPrefix, prefix)
}

// anyInGroups reports whether anybody whom the accounts and users of a rule name could be in one of
// its groups. The API server puts every service account into three groups and others into none of
// these but the first: system:authenticated, system:serviceaccounts and
// system:serviceaccounts:NAMESPACE.
func (f from) anyInGroups() bool {
	if len(f.groups) == 0 || len(f.accounts)+len(f.users) == 0 {
		return true
	}
	return slices.ContainsFunc(f.groups, func(group string) bool {
		namespace, ofNamespace := strings.CutPrefix(group, allAccountsGroup+":")
		switch {
		case ofNamespace:
			return slices.ContainsFunc(f.users, mayBeServiceAccount) ||
				slices.ContainsFunc(f.accounts, func(a ServiceAccount) bool {
					return a.Namespace == "*" || a.Namespace == namespace
				})
		case group == allAccountsGroup:
			return f.mayBeServiceAccounts()
		case group == "system:unauthenticated":
			return slices.ContainsFunc(f.users, func(user string) bool {
				return matchesUser(user, "system:anonymous")
			})
		}
		return true
	})
}

// canonical is a text that two rules share when they differ in nothing but their names.
func (u *rule) canonical() string {
	anonymous := *u
	anonymous.name, anonymous.conditions = "", nil
	text := fmt.Sprintf("%#v", anonymous)
	for _, c := range u.conditions {
		text += "\n" + c.text
	}
	return text
}

// Warnings says which rules are so wide that it must not go unseen, although it may be meant.
func (p *Policy) Warnings() []string {
	var all []string
	for i := range p.rules {
		u := &p.rules[i]
		for _, warning := range slices.Concat(u.warnOfWidth(p.clusterDomain), u.warnOfProof(),
			u.warnOfNames(), u.warnOfUsages()) {
			all = append(all, "rule "+u.name+": "+warning)
		}
	}
	return all
}

// warnOfWidth says that anyone may ask, or that any name may be asked for.
func (u *rule) warnOfWidth(clusterDomain string) []string {
	if u.from.podCertificates {
		return u.warnOfPods()
	}
	anyone, anyName := u.from.anyone(), u.anyName(clusterDomain)
	switch {
	case anyone != "" && anyName != "":
		return []string{fmt.Sprintf("ANYONE (%s) may have ANY name (%s)", anyone, anyName)}
	case anyone != "":
		return []string{fmt.Sprintf("anyone may ask (%s)", anyone)}
	case anyName != "":
		return []string{fmt.Sprintf("any name may be asked for (%s)", anyName)}
	}
	return nil
}

// warnOfProof says who is taken at less than their pod's word.
func (u *rule) warnOfProof() (all []string) {
	if u.from.pod == podNone && u.from.mayBeServiceAccounts() && u.from.anyone() == "" {
		all = append(all, "service accounts need not be live pods (from.pod: none), so whoever "+
			"holds or may make a token of theirs can ask")
	}
	if u.from.pod == podAddress {
		all = append(all, "one pod of a service account can ask in another's name (from.pod: "+
			"address); this is for clusters before Kubernetes 1.22")
	}
	for _, account := range u.from.accounts {
		if account.Namespace == "*" && account.Name != "*" {
			all = append(all,
				"who may make a namespace may ask (from.serviceAccounts: "+account.String()+")")
		}
	}
	for _, user := range u.from.users {
		rest, ofAccounts := strings.CutPrefix(user, serviceAccountPrefix)
		if ofAccounts && rest != "*" && strings.HasSuffix(rest, "*") &&
			!strings.Contains(rest, ":") {
			all = append(all,
				"it applies to every namespace with this prefix (from.users: "+user+")")
		}
	}
	return all
}

// warnOfNames says which names are the API server's, or not the requester's alone.
func (u *rule) warnOfNames() (all []string) {
	if u.keepSubject {
		all = append(all, "the requester chooses the rest of its subject (grant.subject: kept); "+
			"servers that map the organisation to a group trust what it writes there")
	}
	for _, source := range slices.Concat(u.commonNames, u.dnsNames, u.uris, u.emails) {
		t, isText := source.(text)
		s, isService := source.(service)
		switch {
		case isService && s.name == "kubernetes":
			all = append(all, fmt.Sprintf("%s has names of the API server", s))
		case isService && s.derives() && u.from.manyNamespaces():
			all = append(all,
				fmt.Sprintf("service accounts in several namespaces share the name %s (%s)",
					s.name, s))
		case !isText:
		case isAPIServers(string(t)):
			all = append(all, fmt.Sprintf("%s is a name of the API server", t))
		case strings.Contains(string(t), placeAccount) &&
			!strings.Contains(string(t), placeNamespace) && u.from.manyNamespaces():
			all = append(all, fmt.Sprintf("service accounts of the same name in several "+
				"namespaces share %s, which has no %s", t, placeNamespace))
		}
	}
	return all
}

// manyNamespaces reports whether a rule names service accounts in more than one namespace.
func (f from) manyNamespaces() bool {
	return len(f.accounts) == 0 || slices.ContainsFunc(f.accounts, func(a ServiceAccount) bool {
		return a.Namespace == "*" || a.Namespace != f.accounts[0].Namespace
	})
}

// Namespaces are those of the service accounts that rules write out, each with the names of its
// rules. Whoever may make a missing one gets what those rules grant.
func (p *Policy) Namespaces() map[string][]string {
	rules := map[string][]string{}
	for _, r := range p.rules {
		for _, namespace := range r.from.namespaces() {
			rules[namespace] = append(rules[namespace], r.name)
		}
	}
	return rules
}

// namespaces are those that a rule writes out, each once.
func (f from) namespaces() []string {
	var all []string
	for _, account := range f.accounts {
		if account.Namespace != "*" {
			all = append(all, account.Namespace)
		}
	}
	for _, user := range f.users {
		rest, ofAccounts := strings.CutPrefix(user, serviceAccountPrefix)
		if namespace, _, whole := strings.Cut(rest, ":"); ofAccounts && whole {
			all = append(all, namespace)
		}
	}
	for _, group := range f.groups {
		if namespace, ofNamespace := strings.CutPrefix(group, allAccountsGroup+":"); ofNamespace &&
			len(f.accounts)+len(f.users) == 0 {
			all = append(all, namespace)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// anyone returns what in a rule applies to everybody, or of every service account, or nothing.
func (f from) anyone() string {
	if len(f.groups) > 0 && !slices.ContainsFunc(f.groups, everybodysGroup) || len(f.extra) > 0 {
		return ""
	}
	for _, user := range f.users {
		if prefix, open := strings.CutSuffix(user, "*"); open &&
			strings.HasPrefix(serviceAccountPrefix, prefix) {
			return "from.users: " + user
		}
	}
	switch {
	case slices.Contains(f.accounts, ServiceAccount{"*", "*"}):
		return "from.serviceAccounts: */*"
	case len(f.accounts)+len(f.users) == 0:
		return "from.groups: " + strings.Join(f.groups, ", ")
	}
	return ""
}

// everybodysGroup reports whether everybody, or every service account, is in the group.
func everybodysGroup(group string) bool {
	return slices.Contains([]string{"system:authenticated", "system:unauthenticated",
		allAccountsGroup}, group)
}

// anyName returns what in a rule allows more names of a kind than anyone should have, or nothing.
func (u *rule) anyName(clusterDomain string) string {
	for _, source := range u.dnsNames {
		if p, ok := source.(pattern); ok && p.wide(clusterDomain) {
			return fmt.Sprintf("grant.dnsNames: %s", p)
		}
	}
	for _, prefix := range u.ips.patterns {
		if least := map[bool]int{true: 8, false: 16}[prefix.Addr().Is4()]; prefix.Bits() < least {
			return fmt.Sprintf("grant.ipAddresses: %s", prefix)
		}
	}
	return ""
}

// wide reports whether a pattern leaves hardly a label fixed, or none but those of all services.
func (p pattern) wide(clusterDomain string) bool {
	var fixed []string
	for label := range strings.SplitSeq(string(p), ".") {
		if strings.Trim(label, "*") != "" {
			fixed = append(fixed, label)
		}
	}
	rest := strings.Join(fixed, ".")
	return len(fixed) <= 1 || rest == "svc."+clusterDomain || rest == clusterDomain
}
