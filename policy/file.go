package policy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"hsm-signer/policy/pkcs10"
)

// The text of a policy, as a user writes it. Every key is known: an unknown one
// is an error. docs/policy.md explains the language by example.
type (
	file struct {
		Version  line[int]  `yaml:"version"`
		Defaults fileRule   `yaml:"defaults"` // optional: what rules say that do not say otherwise
		Rules    []fileRule `yaml:"rules"`
	}
	fileRule struct {
		Name       line[string]    `yaml:"name"`
		From       fileFrom        `yaml:"from"`
		Grant      fileGrant       `yaml:"grant"`
		Conditions []fileCondition `yaml:"conditions"` // optional: all must be true
	}
	fileCondition struct {
		That    line[string] `yaml:"that"`    // CEL
		Message line[string] `yaml:"message"` // what the requester reads when it is not met
	}
	fileFrom struct {
		ServiceAccounts []line[string] `yaml:"serviceAccounts"` // NAMESPACE/NAME; "*" for any of either
		Users           []line[string] `yaml:"users"`           // usernames; "*" at the end for any ending
		Groups          []line[string] `yaml:"groups"`          // optional: at least one of them
		Pod             line[string]   `yaml:"pod"`             // bound (default), address or none
	}
	fileGrant struct {
		CommonNames []fileName     `yaml:"commonNames"` // optional; without it, one of the DNS names asked for
		DNSNames    []fileName     `yaml:"dnsNames"`
		IPAddresses []line[string] `yaml:"ipAddresses"` // "pod": the pod's own; an address; a prefix
		Keys        []line[string] `yaml:"keys"`
		Usages      []line[string] `yaml:"usages"`
		MaxLifetime line[string]   `yaml:"maxLifetime"` // optional: a Go duration
	}
)

// line is a scalar and the line that it stands on.
type line[T any] struct {
	value T
	at    int
}

func (l *line[T]) UnmarshalYAML(node *yaml.Node) error {
	l.at = node.Line
	return node.Decode(&l.value)
}

// fileName is a name, or a mapping with the key "service" and perhaps "namespace", or with the
// key "pattern".
type fileName struct {
	line[string]     // literally this
	service, pattern line[string]
	namespace        line[string] // of the service; without it, the requester's
}

func (n *fileName) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind != yaml.MappingNode {
		return n.line.UnmarshalYAML(node)
	}
	n.at = node.Line
	fields := map[string]*line[string]{"service": &n.service, "namespace": &n.namespace, "pattern": &n.pattern}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		field, ok := fields[key.Value]
		if !ok || field.at > 0 {
			return nameFault(key.Line)
		}
		if err := field.UnmarshalYAML(value); err != nil {
			return err
		}
	}
	if (n.service.at > 0) == (n.pattern.at > 0) || n.pattern.at > 0 && n.namespace.at > 0 {
		return nameFault(node.Line)
	}
	return nil
}

func nameFault(at int) error {
	return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: a name is a text, or a mapping with the key \"service\" and perhaps the key \"namespace\", or with the key \"pattern\" alone, each once", at)}}
}

// problems collects what is wrong with a policy's text.
type problems []string

func (p *problems) add(at int, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	if at > 0 {
		message = fmt.Sprintf("line %d: %s", at, message)
	}
	if !slices.Contains(*p, message) { // a mistake in the defaults shows in each rule
		*p = append(*p, message)
	}
}

func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return fmt.Errorf("the policy has %d mistake(s):\n  %s", len(p), strings.Join(p, "\n  "))
}

// Parse compiles the text of a policy, whole: the error lists every mistake with its
// line.
func Parse(text []byte, o Options) (*Policy, error) {
	var f file
	var found problems
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&f); err != nil && !found.addTypeErrors(err) {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the policy is empty; write at least \"version: 1\" and one rule")
		}
		return nil, fmt.Errorf("the policy is not YAML: %w", err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		found.add(0, "the file holds more than one YAML document; write one")
	}
	rules := f.compile(o, &found)
	if err := found.err(); err != nil {
		return nil, err
	}
	return &Policy{rules: rules, hash: hashOf(text, o)}, nil
}

var unknownField = regexp.MustCompile(`field (\S+) not found in type \S+`)

// addTypeErrors takes over the mistakes that the YAML library found, and tells whether the
// text could be read apart from them.
func (p *problems) addTypeErrors(err error) bool {
	var wrong *yaml.TypeError
	if !errors.As(err, &wrong) {
		return false
	}
	for _, message := range wrong.Errors {
		p.add(0, "%s", unknownField.ReplaceAllString(message, `unknown key "$1"`))
	}
	return true
}

func (f *file) compile(o Options, found *problems) []rule {
	if f.Version.value != 1 {
		found.add(f.Version.at, "version: must be 1")
	}
	if f.Defaults.Name.at > 0 {
		found.add(f.Defaults.Name.at, "defaults: have no name")
	}
	if len(f.Rules) == 0 {
		found.add(0, "rules: there are none, so nothing would ever be granted")
	}
	rules := make([]rule, 0, len(f.Rules))
	for i, text := range f.Rules {
		text.inherit(&f.Defaults)
		compiled := text.compile(o, found)
		switch {
		case compiled.name == "":
			found.add(text.Name.at, "rules[%d]: has no name", i)
		case slices.ContainsFunc(rules, func(other rule) bool { return other.name == compiled.name }):
			found.add(text.Name.at, "rules[%d]: the name %q is taken by an earlier rule", i, compiled.name)
		}
		rules = append(rules, compiled)
	}
	return rules
}

// inherit takes over from the defaults what the rule does not say itself.
func (r *fileRule) inherit(defaults *fileRule) {
	inherit := func(own *[]line[string], other []line[string]) {
		if *own == nil {
			*own = other
		}
	}
	if r.From.ServiceAccounts == nil && r.From.Users == nil {
		r.From.ServiceAccounts, r.From.Users = defaults.From.ServiceAccounts, defaults.From.Users
	}
	inherit(&r.From.Groups, defaults.From.Groups) // they narrow, so they stand for themselves
	inherit(&r.Grant.IPAddresses, defaults.Grant.IPAddresses)
	inherit(&r.Grant.Keys, defaults.Grant.Keys)
	inherit(&r.Grant.Usages, defaults.Grant.Usages)
	if r.From.Pod.at == 0 {
		r.From.Pod = defaults.From.Pod
	}
	if r.Grant.CommonNames == nil {
		r.Grant.CommonNames = defaults.Grant.CommonNames
	}
	if r.Grant.DNSNames == nil {
		r.Grant.DNSNames = defaults.Grant.DNSNames
	}
	if r.Grant.MaxLifetime.at == 0 {
		r.Grant.MaxLifetime = defaults.Grant.MaxLifetime
	}
	r.Conditions = slices.Concat(defaults.Conditions, r.Conditions)
}

func (r *fileRule) compile(o Options, found *problems) rule {
	return rule{
		name:        r.Name.value,
		from:        r.compileFrom(found),
		commonNames: r.compileNames("commonNames", r.Grant.CommonNames, o, found),
		dnsNames:    r.compileNames("dnsNames", r.Grant.DNSNames, o, found),
		ips:         r.compileIPs(found),
		keys:        compileWords(r, "keys", r.Grant.Keys, pkcs10.KeyTypes(), found),
		usages:      compileWords(r, "usages", r.Grant.Usages, Usages(), found),
		lifetime:    r.compileLifetime(o, found),
		conditions:  r.compileConditions(found),
	}
}

func (r *fileRule) compileFrom(found *problems) from {
	compiled := from{pod: podBound}
	if len(r.From.ServiceAccounts)+len(r.From.Users)+len(r.From.Groups) == 0 {
		found.add(r.Name.at, "rule %q: from.serviceAccounts: name at least one, or users, or groups", r.Name.value)
	}
	for _, text := range r.From.ServiceAccounts {
		namespace, name, _ := strings.Cut(text.value, "/")
		if namespace != "*" && !dnsLabel.MatchString(namespace) || name != "*" && !dnsSubdomain.MatchString(name) {
			found.add(text.at, "rule %q: from.serviceAccounts: %q is not of the form NAMESPACE/NAME, where * stands for any of either", r.Name.value, text.value)
		}
		compiled.accounts = append(compiled.accounts, ServiceAccount{namespace, name})
	}
	compiled.users = r.compileTexts("users", r.From.Users, found)
	compiled.groups = r.compileTexts("groups", r.From.Groups, found)
	if text := r.From.Pod; text.at > 0 {
		compiled.pod = podBinding(text.value)
		if !slices.Contains(podBindings, compiled.pod) {
			found.add(text.at, "rule %q: from.pod: %q is not known; write bound, address or none", r.Name.value, text.value)
		}
	}
	if len(compiled.accounts) == 0 && compiled.pod != podNone {
		found.add(r.Name.at, "rule %q: from.pod: only service accounts have pods; write none", r.Name.value)
	}
	return compiled
}

// compileTexts reads users or groups; a "*" may stand at the end of a user only.
func (r *fileRule) compileTexts(field string, texts []line[string], found *problems) []string {
	var all []string
	for _, text := range texts {
		plain := text.value
		if field == "users" {
			plain, _ = strings.CutSuffix(plain, "*")
		}
		if text.value == "" || strings.Contains(plain, "*") {
			found.add(text.at, "rule %q: from.%s: %q is empty or has a * elsewhere than at the end of a user", r.Name.value, field, text.value)
		}
		all = append(all, text.value)
	}
	return all
}

func (r *fileRule) compileNames(field string, texts []fileName, o Options, found *problems) []nameSource {
	var sources []nameSource
	wrong := func(at int, text, fault string) {
		if fault != "" {
			found.add(at, "rule %q: grant.%s: %q %s", r.Name.value, field, text, fault)
		}
	}
	for _, text := range texts {
		switch {
		case text.pattern.at > 0:
			if field == "commonNames" {
				wrong(text.at, text.pattern.value, "is a pattern; common names must be written out, or be one of the DNS names")
			}
			wrong(text.pattern.at, text.pattern.value, checkPattern(text.pattern.value))
			sources = append(sources, pattern(text.pattern.value))
		case text.service.at > 0:
			wrong(text.service.at, text.service.value, pkcs10.CheckDNSName(text.service.value))
			if text.namespace.at > 0 && !dnsLabel.MatchString(text.namespace.value) {
				wrong(text.namespace.at, text.namespace.value, "is not the name of a namespace")
			}
			sources = append(sources, service{text.service.value, text.namespace.value, o.ClusterDomain})
		default:
			wrong(text.at, text.value, pkcs10.CheckDNSName(text.value))
			sources = append(sources, literal(text.value))
		}
	}
	return sources
}

func (r *fileRule) compileIPs(found *problems) addresses {
	var compiled addresses
	for _, text := range r.Grant.IPAddresses {
		ip, errIP := netip.ParseAddr(text.value)
		prefix, errPrefix := netip.ParsePrefix(text.value)
		switch {
		case text.value == "pod":
			compiled.pod = true
		case errIP == nil && ip.Zone() == "":
			compiled.literals = append(compiled.literals, ip.Unmap())
		case errPrefix == nil && prefix == prefix.Masked():
			compiled.patterns = append(compiled.patterns, prefix)
		default:
			found.add(text.at, "rule %q: grant.ipAddresses: %q is not known; write pod, for the pod's own, an address, or a prefix such as 10.0.0.0/8", r.Name.value, text.value)
		}
	}
	return compiled
}

// compileWords reads a list of words of which each must be one of those known.
func compileWords[T ~string](r *fileRule, field string, texts []line[string], known []T, found *problems) []T {
	words := make([]T, 0, len(texts))
	if len(texts) == 0 {
		found.add(r.Name.at, "rule %q: grant.%s: name at least one of: %s", r.Name.value, field, strings.Join(strs(known), ", "))
	}
	for _, text := range texts {
		if !slices.Contains(known, T(text.value)) {
			found.add(text.at, "rule %q: grant.%s: %q is not known or not allowed; choose from: %s", r.Name.value, field, text.value, strings.Join(strs(known), ", "))
		}
		words = append(words, T(text.value))
	}
	return words
}

func (r *fileRule) compileLifetime(o Options, found *problems) time.Duration {
	text := r.Grant.MaxLifetime
	if text.at == 0 {
		return o.MaxLifetime
	}
	d, err := time.ParseDuration(text.value)
	if err != nil || d < MinLifetime {
		found.add(text.at, "rule %q: grant.maxLifetime: %q is not a duration of at least %s, such as 8760h", r.Name.value, text.value, MinLifetime)
	}
	return min(d, o.MaxLifetime)
}

func (r *fileRule) compileConditions(found *problems) []condition {
	var compiled []condition
	for i, text := range r.Conditions {
		if text.That.value == "" || text.Message.value == "" {
			found.add(cmp.Or(text.That.at, text.Message.at, r.Name.at), "rule %q: conditions[%d]: needs both: that, an expression in CEL, and message, which says what it asks for", r.Name.value, i)
			continue
		}
		c, err := compileCondition(text.That.value, text.Message.value)
		if err != nil {
			found.add(text.That.at, "rule %q: conditions[%d]: %s", r.Name.value, i, strings.ReplaceAll(err.Error(), "\n", " "))
		}
		compiled = append(compiled, c)
	}
	return compiled
}

// MinLifetime is the shortest lifetime that the Kubernetes API lets one ask for
// (CertificateSigningRequest, spec.expirationSeconds).
const MinLifetime = 600 * time.Second
