package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"hsm-signer/policy/pkcs10"
)

// compile turns the text into what decides, and finds every mistake on the way.
func (f *file) compile(o Options, found *problems) ([]rule, Budget) {
	if f.Version.value != 1 && !f.Version.bad {
		found.add(f.Version.at, "version: must be 1")
	}
	if f.Defaults.Name.at > 0 {
		found.add(f.Defaults.Name.at, "defaults: have no name")
	}
	if len(f.Rules) == 0 {
		found.add(0, "rules: there are none, so nothing would ever be granted")
	}
	reserved := compileReserved(f.ReservedGroups, found)
	rules, texts := make([]rule, 0, len(f.Rules)), make([]fileRule, 0, len(f.Rules))
	byName, byText := map[string]bool{}, map[string]string{}
	for i, text := range f.Rules {
		text.inherit(&f.Defaults)
		compiled := (&compiler{fileRule: &text, Options: o, found: found}).compile()
		compiled.reservedGroups = reserved
		switch {
		case compiled.name == "":
			found.add(cmp.Or(text.Name.at, text.at), "rules[%d]: has no name", i)
		case byName[compiled.name]:
			found.add(text.Name.at, "rules[%d]: the name %q is taken by an earlier rule", i,
				compiled.name)
		}
		if earlier, same := byText[compiled.canonical()]; same {
			found.add(text.Name.at,
				"rules[%d]: %q says the same as %q, so it would never decide anything", i,
				compiled.name, earlier)
		}
		byName[compiled.name], byText[compiled.canonical()] = true, compiled.name
		rules, texts = append(rules, compiled), append(texts, text)
	}
	budget := f.Budget.compile(found)
	budget.compileRules(rules, texts, found)
	return rules, budget
}

// compileReserved returns the groups that no kept subject may hold, in addition to the built-in
// ones.
func compileReserved(groups []line[string], found *problems) []string {
	var all []string
	for _, group := range groups {
		prefix, _ := strings.CutSuffix(group.value, "*")
		if prefix != strings.TrimSpace(prefix) || prefix == "" || strings.Contains(prefix, "*") {
			found.add(group.at, "reservedGroups: %q is empty, has a * elsewhere than at its end, "+
				"or has blanks around it", group.value)
		}
		all = append(all, group.value)
	}
	return all
}

// inherit takes over from the defaults what the rule does not say itself.
func (r *fileRule) inherit(defaults *fileRule) {
	list := func(own *[]line[string], other []line[string]) {
		if *own == nil {
			*own = other
		}
	}
	one := func(own *line[string], other line[string]) {
		if own.at == 0 {
			*own = other
		}
	}
	if r.From.ServiceAccounts == nil && r.From.Users == nil {
		r.From.ServiceAccounts, r.From.Users = defaults.From.ServiceAccounts, defaults.From.Users
	}
	list(&r.From.Groups, defaults.From.Groups) // they narrow, so they stand for themselves
	list(&r.From.Annotations, defaults.From.Annotations)
	if r.From.Extra == nil {
		r.From.Extra = defaults.From.Extra
	}
	one(&r.From.Pod, defaults.From.Pod)
	if r.From.PodCertificates.at == 0 {
		r.From.PodCertificates = defaults.From.PodCertificates
	}
	if r.From.PodCertificates.value {
		list(&r.Grant.PodNames, defaults.Grant.PodNames)
	} else {
		r.inheritNames(defaults)
	}
	list(&r.Grant.URIs, defaults.Grant.URIs)
	list(&r.Grant.Keys, defaults.Grant.Keys)
	list(&r.Grant.Usages, defaults.Grant.Usages)
	one(&r.Grant.MaxLifetime, defaults.Grant.MaxLifetime)
	one(&r.Grant.DefaultLifetime, defaults.Grant.DefaultLifetime)
	r.Conditions = slices.Concat(defaults.Conditions, r.Conditions)
	one(&r.Budget.Reserve, defaults.Budget.Reserve)
	one(&r.Budget.Limit, defaults.Budget.Limit)
	one(&r.Budget.PerNamespace, defaults.Budget.PerNamespace)
}

// inheritNames takes over what only a rule for requests with names has.
func (r *fileRule) inheritNames(defaults *fileRule) {
	own, other := &r.Grant, &defaults.Grant
	if own.CommonNames == nil {
		own.CommonNames = other.CommonNames
	}
	if own.DNSNames == nil {
		own.DNSNames = other.DNSNames
	}
	if own.IPAddresses == nil {
		own.IPAddresses = other.IPAddresses
	}
	if own.EmailAddresses == nil {
		own.EmailAddresses = other.EmailAddresses
	}
	if own.Subject.at == 0 {
		own.Subject = other.Subject
	}
}

// A compiler compiles one rule.
type compiler struct {
	*fileRule
	Options
	found *problems
}

// wrong notes a mistake in a field of the rule; at 0, it stands where the rule has its name, or
// begins.
func (c *compiler) wrong(at int, field, format string, args ...any) {
	detail := field + ": " + fmt.Sprintf(format, args...)
	if at > 0 && c.found.repeats(at, detail) {
		return // a mistake in the defaults shows in each rule
	}
	c.found.add(cmp.Or(at, c.Name.at, c.at), "rule %q: %s", c.Name.value, detail)
}

func (c *compiler) compile() rule {
	if fault := unprintable(c.Name.value, 63); fault != "" {
		c.wrong(0, "name", "%s", fault)
	}
	compiled := rule{
		name:        c.Name.value,
		from:        c.compileFrom(),
		commonNames: c.compileNames("grant.commonNames", c.Grant.CommonNames),
		dnsNames:    c.compileNames("grant.dnsNames", c.Grant.DNSNames),
		ips:         c.compileIPs(),
		uris:        c.compileTexts("grant.uris", c.Grant.URIs, pkcs10.CheckURI),
		emails: c.compileTexts("grant.emailAddresses", c.Grant.EmailAddresses,
			pkcs10.CheckEmailAddress),
		podNames:    c.compilePodNames(),
		keepSubject: c.compileSubject(),
		keys:        compileWords(c, "grant.keys", c.Grant.Keys, pkcs10.KeyTypes()),
		usages:      compileWords(c, "grant.usages", c.Grant.Usages, Usages()),
		conditions:  c.compileConditions(),

		clusterDomain: c.ClusterDomain,
	}
	compiled.maxLifetime, compiled.defaultLifetime = c.compileLifetimes()
	c.checkPodCertificates(&compiled)
	c.checkUse(&compiled)
	return compiled
}

func (c *compiler) compileFrom() from {
	compiled := from{pod: podBound, extra: map[string][]string{},
		podCertificates: c.From.PodCertificates.value,
		annotations:     c.compilePlain("from.annotations", c.From.Annotations)}
	if len(c.From.ServiceAccounts)+len(c.From.Users)+len(c.From.Groups) == 0 {
		c.wrong(0, "from.serviceAccounts", "name at least one, or users, or groups")
	}
	for _, text := range c.From.ServiceAccounts {
		namespace, name, _ := strings.Cut(text.value, "/")
		if namespace != "*" && !isDNSLabel(namespace) || name != "*" && !isDNSSubdomain(name) {
			c.wrong(text.at, "from.serviceAccounts", "%q is not of the form NAMESPACE/NAME, "+
				"where * stands for any of either", text.value)
		}
		compiled.accounts = append(compiled.accounts, ServiceAccount{namespace, name})
	}
	for _, text := range c.From.Users {
		prefix, _ := strings.CutSuffix(text.value, "*")
		if text.value == "" || strings.Contains(prefix, "*") {
			c.wrong(text.at, "from.users", "%q is empty or has a * elsewhere than at its end",
				text.value)
		}
		compiled.users = append(compiled.users, text.value)
	}
	compiled.groups = c.compilePlain("from.groups", c.From.Groups)
	for _, key := range slices.Sorted(maps.Keys(c.From.Extra)) {
		compiled.extra[key] = c.compilePlain("from.extra", c.From.Extra[key])
	}
	c.compilePod(&compiled)
	return compiled
}

// compilePlain reads words that stand for themselves.
func (c *compiler) compilePlain(field string, words []line[string]) []string {
	var all []string
	for _, word := range words {
		if word.value == "" || strings.Contains(word.value, "*") {
			c.wrong(word.at, field, "%q is empty or has a *, which stands for nothing here",
				word.value)
		}
		all = append(all, word.value)
	}
	return all
}

func (c *compiler) compilePod(compiled *from) {
	if text := c.From.Pod; text.at > 0 {
		compiled.pod = podBinding(text.value)
		if !slices.Contains(podBindings, compiled.pod) {
			c.wrong(text.at, "from.pod", "%q is not known; write bound, address or none",
				text.value)
		}
	}
	people := slices.ContainsFunc(compiled.users, func(user string) bool {
		return !mayBeServiceAccount(user)
	})
	if (len(compiled.accounts) == 0 || people) && compiled.pod != podNone {
		c.wrong(c.From.Pod.at, "from.pod",
			"only service accounts have pods; write none, in a rule for users alone")
	}
}

func (c *compiler) compileNames(field string, names []fileName) []nameSource {
	var sources []nameSource
	wrong := func(at int, name, fault string) {
		if fault != "" {
			c.wrong(at, field, "%q %s", name, fault)
		}
	}
	for _, name := range names {
		switch {
		case name.pattern.at > 0:
			if field == "grant.commonNames" {
				wrong(name.at, name.pattern.value, "is a pattern; common names must be written "+
					"out, or be one of the DNS names")
			}
			wrong(name.pattern.at, name.pattern.value, checkPattern(name.pattern.value))
			sources = append(sources, pattern(name.pattern.value))
		case name.service.at > 0:
			if !isDNSLabel(name.service.value) {
				wrong(name.service.at, name.service.value, "is not the name of a service")
			}
			if name.namespace.at > 0 && !isDNSLabel(name.namespace.value) {
				wrong(name.namespace.at, name.namespace.value, "is not the name of a namespace")
			}
			sources = append(sources,
				service{name.service.value, name.namespace.value, c.ClusterDomain})
		default:
			sources = append(sources, c.compileText(field, name.line, pkcs10.CheckPresentedDNSName))
		}
	}
	return sources
}

func (c *compiler) compileTexts(field string, texts []line[string],
	check func(string) string) []nameSource {
	var sources []nameSource
	for _, one := range texts {
		sources = append(sources, c.compileText(field, one, check))
	}
	return sources
}

func (c *compiler) compileText(field string, one line[string], check func(string) string) text {
	if strings.Contains(one.value, placeTrustDomain) {
		if c.TrustDomain == "" {
			c.wrong(one.at, field, "%q has %s, and TRUST_DOMAIN is not set: set it to the SPIFFE "+
				"trust domain of the cluster, such as example.com", one.value, placeTrustDomain)
			return text(one.value)
		}
		one.value = strings.ReplaceAll(one.value, placeTrustDomain, c.TrustDomain)
	}
	if fault := checkText(text(one.value), check); fault != "" {
		c.wrong(one.at, field, "%q %s", one.value, fault)
	}
	return text(one.value)
}

func (c *compiler) compileIPs() addresses {
	compiled := addresses{forbidden: c.ForbiddenAddresses}
	for _, text := range c.Grant.IPAddresses {
		ip, errIP := netip.ParseAddr(text.value)
		prefix, errPrefix := netip.ParsePrefix(text.value)
		switch {
		case text.value == "pod":
			compiled.pod = true
		case errIP == nil && ip.Zone() == "":
			compiled.literals = append(compiled.literals, ip.Unmap())
		case errPrefix == nil && within(slices.Concat(special, futureUse), prefix):
			c.wrong(text.at, "grant.ipAddresses", "%q holds special addresses alone, which are "+
				"granted only where they are written out", text.value)
		case errPrefix == nil && prefix == prefix.Masked():
			compiled.patterns = append(compiled.patterns, prefix)
		default:
			c.wrong(text.at, "grant.ipAddresses", "%q is not known; write pod, for the pod's "+
				"own, an address, or a prefix such as 10.0.0.0/8", text.value)
		}
	}
	return compiled
}

func (c *compiler) compileSubject() (keep bool) {
	text := c.Grant.Subject
	if text.at > 0 && text.value != "rebuilt" && text.value != "kept" {
		c.wrong(text.at, "grant.subject",
			"%q is not known; write rebuilt, for the common name alone, or kept", text.value)
	}
	return text.value == "kept"
}

// compileWords reads a list of words of which each must be one of those known.
func compileWords[T ~string](c *compiler, field string, texts []line[string], known []T) []T {
	words := make([]T, 0, len(texts))
	if len(texts) == 0 {
		c.wrong(0, field, "name at least one of: %s", strings.Join(strs(known), ", "))
	}
	for _, text := range texts {
		if !slices.Contains(known, T(text.value)) {
			c.wrong(text.at, field, "%q is not known or not allowed; choose from: %s", text.value,
				strings.Join(strs(known), ", "))
		}
		words = append(words, T(text.value))
	}
	return words
}

// compileLifetimes returns the longest lifetime, and the one for requests without one.
func (c *compiler) compileLifetimes() (most, byDefault time.Duration) {
	most = min(c.MaxLifetime,
		c.compileLifetime("grant.maxLifetime", c.Grant.MaxLifetime, c.MaxLifetime))
	byDefault = c.compileLifetime("grant.defaultLifetime", c.Grant.DefaultLifetime, most)
	if text := c.Grant.DefaultLifetime; c.Grant.MaxLifetime.at > 0 && text.at > 0 &&
		byDefault > most {
		c.wrong(text.at, "grant.defaultLifetime", "%q is longer than the most that is granted, %s",
			text.value, most)
	}
	return most, min(byDefault, most)
}

func (c *compiler) compileLifetime(field string, text line[string],
	unsaid time.Duration) time.Duration {
	if text.at == 0 {
		return unsaid
	}
	d, err := ParseDuration(text.value)
	if err != nil || d < MinLifetime {
		c.wrong(text.at, field, "%q is not a duration of at least %s, such as 12h or 30d",
			text.value, MinLifetime)
		return unsaid
	}
	return d
}

func (c *compiler) compileConditions() []condition {
	var compiled []condition
	for i, text := range c.Conditions {
		field := fmt.Sprintf("conditions[%d]", i)
		if text.That.value == "" || text.Message.value == "" {
			c.wrong(cmp.Or(text.That.at, text.Message.at), field, "needs both: that, an "+
				"expression in CEL, and message, which says what it asks for")
			compiled = append(compiled, condition{})
			continue
		}
		if fault := unprintable(text.Message.value, 256); fault != "" {
			c.wrong(text.Message.at, field, "message %s", fault)
		}
		one, err := compileCondition(text.That.value, text.Message.value)
		if err != nil {
			c.wrong(text.That.at, field, "%s", strings.ReplaceAll(err.Error(), "\n", " "))
		}
		compiled = append(compiled, one)
	}
	return compiled
}

// unprintable says what is wrong with a text that is shown to requesters and in terminals, or
// nothing.
func unprintable(text string, most int) string {
	if len(text) > most || strings.ContainsFunc(text, func(r rune) bool {
		return r < ' ' || r > '~'
	}) {
		return fmt.Sprintf("%q is longer than %d bytes or has characters other than those of "+
			"printable ASCII", text, most)
	}
	return ""
}

// MinLifetime is the shortest lifetime that the Kubernetes API lets one ask for
// (CertificateSigningRequest, spec.expirationSeconds).
const MinLifetime = 600 * time.Second
