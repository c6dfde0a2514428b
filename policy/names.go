package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"hsm-signer/policy/pkcs10"
)

// A nameSource is an entry of a rule's list of names.
type nameSource interface {
	// allows reports whether the requester may have the name.
	allows(name string, requester ServiceAccount) bool
	// describe lists the names, for an operator.
	describe(requester ServiceAccount) []string
	// derives reports whether the names depend on the requester, and so may be shown to it.
	derives() bool
}

// text is a name that is written in the rule, in which {namespace} and {serviceAccount} stand for
// the requester's.
type text string

func (t text) allows(name string, requester ServiceAccount) bool {
	expanded, ok := t.expand(requester)
	return ok && name == expanded && (string(t) == expanded || !isReserved(name))
}

func (t text) describe(requester ServiceAccount) []string {
	if expanded, ok := t.expand(requester); ok {
		return []string{expanded}
	}
	return nil
}

func (t text) derives() bool { return strings.Contains(string(t), "{") }

// expand answers false when the requester has nothing to derive the name from: it is no service
// account, or one whose name has dots where those part the labels of a DNS name, so that it could
// reach beyond its own.
func (t text) expand(requester ServiceAccount) (string, bool) {
	if !t.derives() {
		return string(t), true
	}
	isURI := strings.Contains(string(t), "://")
	if requester == (ServiceAccount{}) || !isURI && strings.Contains(requester.Name, ".") {
		return "", false
	}
	return strings.NewReplacer(placeNamespace, requester.Namespace, placeAccount,
		requester.Name).Replace(string(t)), true
}

// What stands in a text for the requester's own.
const (
	placeNamespace = "{namespace}"
	placeAccount   = "{serviceAccount}"
	// placeTrustDomain is replaced when the policy is loaded, and is the same for everybody.
	placeTrustDomain = "{trustDomain}"
)

// checkText says what is wrong with a text, of which check knows the syntax. A placeholder fills
// all between two separators, so that no value of it reaches into another's: in a URI, where the
// name of a service account may have dots, between two slashes; and there it stands in the path,
// not in the host, which is a DNS name.
func checkText(t text, check func(string) string) string {
	separators, plain := "./@", string(t)
	if _, rest, isURI := strings.Cut(plain, "://"); isURI {
		separators = "/"
		if host, _, _ := strings.Cut(rest, "/"); strings.Contains(host, "{") {
			return "has a placeholder in its host; only the path may have any"
		}
	}
	for _, place := range []string{placeNamespace, placeAccount} {
		for part := range strings.FieldsFuncSeq(plain, func(r rune) bool {
			return strings.ContainsRune(separators, r)
		}) {
			if strings.Contains(part, place) && part != place {
				return "has " + place +
					" next to other characters; it must stand alone between two of " + separators
			}
		}
	}
	plain = strings.NewReplacer(placeNamespace, "x", placeAccount, "x").Replace(plain)
	if strings.ContainsAny(plain, "{}") {
		return "has a placeholder other than {namespace}, {serviceAccount} and {trustDomain}"
	}
	return check(plain)
}

// service is a service under each name that the cluster's DNS gives it.
type service struct {
	name, namespace string // namespace: the requester's if empty
	clusterDomain   string
}

func (s service) allows(name string, requester ServiceAccount) bool {
	written := s.namespace != "" || s.name == name
	return slices.Contains(s.describe(requester), name) && (written || !isReserved(name))
}

func (s service) derives() bool { return s.namespace == "" }

// String is the service as a policy has it.
func (s service) String() string { return "service: " + s.name }

func (s service) describe(requester ServiceAccount) []string {
	namespace := cmp.Or(s.namespace, requester.Namespace)
	if namespace == "" {
		return nil // the requester is no service account, and so in no namespace
	}
	inNamespace := s.name + "." + namespace
	return []string{s.name, inNamespace, inNamespace + ".svc",
		inNamespace + ".svc." + s.clusterDomain}
}

// pattern is a name in which "*" stands for one whole label, and "**", as the first
// label, for one or more.
type pattern string

func (p pattern) describe(ServiceAccount) []string { return []string{string(p)} }

func (p pattern) derives() bool { return false }

func (p pattern) allows(name string, _ ServiceAccount) bool {
	if isReserved(name) || strings.HasPrefix(name, "*") {
		return false
	}
	want, labels := strings.Split(string(p), "."), strings.Split(name, ".")
	if want[0] == "**" {
		if len(labels) < len(want) {
			return false
		}
		want, labels = want[1:], labels[len(labels)-len(want)+1:]
	}
	return slices.EqualFunc(want, labels, func(w, label string) bool {
		return w == "*" || w == label
	})
}

// isReserved reports whether a name is one that must be written out: the API server's own (the
// service kubernetes in the namespace default), a wildcard over it, and this host's.
func isReserved(name string) bool {
	// RFC 6761, section 6.3
	return isAPIServers(name) || name == "localhost" || strings.HasSuffix(name, ".localhost") ||
		name == "localhost.localdomain"
}

// isAPIServers reports whether a name is the API server's own, or a wildcard over it.
func isAPIServers(name string) bool {
	if rest, wildcard := strings.CutPrefix(name, "*."); wildcard {
		name = "kubernetes." + rest
	}
	return name == "kubernetes" || name == "kubernetes.default" ||
		strings.HasPrefix(name, "kubernetes.default.")
}

// checkPattern says what is wrong with a pattern, or nothing. Its labels that are no wildcards
// are those of a DNS name.
func checkPattern(p string) string {
	if !strings.Contains(p, "*") {
		return "has no wildcard; write it as a name"
	}
	labels := strings.Split(p, ".")
	if isReserved(strings.ReplaceAll(strings.ReplaceAll(p, "**", "x"), "*", "x")) {
		return "could match nothing but names that must be written out: those of the API server " +
			"and of this host"
	}
	for i, label := range labels {
		switch {
		case label == "**" && i > 0:
			return "has ** behind the first label"
		case label == "*" || label == "**":
			labels[i] = "x"
		case strings.Contains(label, "*"):
			return "has a wildcard that is not a whole label"
		}
	}
	return pkcs10.CheckDNSName(strings.Join(labels, "."))
}

func anyAllows(sources []nameSource, name string, requester ServiceAccount) bool {
	return slices.ContainsFunc(sources, func(s nameSource) bool {
		return s.allows(name, requester)
	})
}

func describeAll(sources []nameSource, requester ServiceAccount) []string {
	var all []string
	for _, source := range sources {
		all = append(all, source.describe(requester)...)
	}
	return all
}

// ownNames says, for the requester, which names are derived from itself, and nothing when there are
// none. What else the rule allows is not for it to read.
func ownNames(sources []nameSource, requester ServiceAccount) string {
	const most = 8
	own := describeAll(slices.DeleteFunc(slices.Clone(sources), func(s nameSource) bool {
		return !s.derives()
	}), requester)
	switch {
	case len(own) == 0:
		return ""
	case len(own) > most:
		own = append(own[:most], "and more")
	}
	return "; its own are " + strings.Join(own, ", ")
}

// addresses are the IP addresses that a rule allows.
type addresses struct {
	pod      bool // the requester's pod's own
	literals []netip.Addr
	patterns []netip.Prefix

	forbidden []netip.Addr // known to be something else's, and so no pod's
}

// allow reports whether the rule itself names the address. It must name special ones explicitly.
func (a addresses) allow(ip netip.Addr) bool {
	return slices.Contains(a.literals, ip) ||
		!a.isForbidden(ip) && !isForFutureUse(ip) &&
			slices.ContainsFunc(a.patterns, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// isForbidden reports whether no pod may have the address: a special one, or one that is known to
// be something else's.
func (a addresses) isForbidden(ip netip.Addr) bool {
	return isSpecial(ip) || slices.Contains(a.forbidden, ip)
}

// any reports whether there is any address that could be allowed.
func (a addresses) any() bool { return a.pod || len(a.literals)+len(a.patterns) > 0 }

func (a addresses) describe(pod *Pod) []string {
	var all []string
	if a.pod && pod != nil {
		all = texts(pod.IPs)
	}
	return slices.Concat(all, texts(a.literals), texts(a.patterns))
}

// texts turns values into strings.
func texts[T interface{ String() string }](values []T) []string {
	all := make([]string, 0, len(values))
	for _, value := range values {
		all = append(all, value.String())
	}
	return all
}

// isSpecial reports whether an address can never be a pod's own: loopback, link-local, multicast,
// broadcast, unspecified, or one that leads elsewhere than it seems to: a cloud's metadata or
// credential service, or an IPv4 address within an IPv6 one.
func isSpecial(ip netip.Addr) bool {
	return within(special, netip.PrefixFrom(ip, ip.BitLen())) || isISATAP(ip)
}

var special = prefixes("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "224.0.0.0/4",
	"255.255.255.255/32",
	"::/128", "::1/128", "fe80::/10", "ff00::/8", // RFC 6890, RFC 4291
	// Metadata and credential services: Alibaba, Azure; AWS (all of its local services), Google,
	// Linode, Oracle (169.254.0.0/16 within IPv6), Scaleway.
	"100.100.100.200/32", "168.63.129.16/32",
	"fd00:ec2::/32", "fd20:ce::254/128", "fd00:a9fe:a9fe::1/128", "fd00:c1::a9fe:0/112",
	"fd00:42::42/128",
	// IPv4 within IPv6: compatible and mapped (RFC 4291), translated (RFC 2765), NAT64 (RFC 6052,
	// RFC 8215), Teredo (RFC 4380), 6to4 (RFC 3056).
	"::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32",
	"2002::/16")

// isISATAP reports whether the interface identifier holds an IPv4 address, under whatever prefix
// (RFC 5214, section 6.1).
func isISATAP(ip netip.Addr) bool {
	b := ip.As16()
	return ip.Is6() && b[8]&^0x02 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe
}

// isForFutureUse reports whether an address is of those that were reserved, and that some clouds
// give to pods anyway.
func isForFutureUse(ip netip.Addr) bool {
	return within(futureUse,
		netip.PrefixFrom(ip, ip.BitLen()))
}

var futureUse = prefixes("240.0.0.0/4") // RFC 1112, section 4

// within reports whether one of the prefixes holds all of the other.
func within(outer []netip.Prefix, inner netip.Prefix) bool {
	return slices.ContainsFunc(outer, func(p netip.Prefix) bool {
		return p.Bits() <= inner.Bits() && p.Contains(inner.Addr())
	})
}

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}
