package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
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
		Name  line[string] `yaml:"name"`
		From  fileFrom     `yaml:"from"`
		Grant fileGrant    `yaml:"grant"`
	}
	fileFrom struct {
		ServiceAccounts []line[string] `yaml:"serviceAccounts"` // NAMESPACE/NAME
		Pod             line[string]   `yaml:"pod"`             // bound (default) or address
	}
	fileGrant struct {
		CommonNames []fileName     `yaml:"commonNames"` // optional; without it, one of the DNS names asked for
		DNSNames    []fileName     `yaml:"dnsNames"`
		IPAddresses []line[string] `yaml:"ipAddresses"` // "pod": the pod's own
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

// fileName is a name, or a mapping with the key "service" and perhaps "namespace".
type fileName struct {
	line[string]
	service   bool
	namespace line[string] // of the service; without it, the requester's
}

func (n *fileName) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind != yaml.MappingNode {
		return n.line.UnmarshalYAML(node)
	}
	n.service = true
	fields := map[string]*line[string]{"service": &n.line, "namespace": &n.namespace}
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
	if n.line.at == 0 {
		return nameFault(node.Line)
	}
	return nil
}

func nameFault(at int) error {
	return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: a name is a text, or a mapping with the key \"service\" and perhaps the key \"namespace\", each once", at)}}
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
	inherit(&r.From.ServiceAccounts, defaults.From.ServiceAccounts)
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
}

func (r *fileRule) compile(o Options, found *problems) rule {
	return rule{
		name:        r.Name.value,
		from:        r.compileFrom(found),
		commonNames: r.compileNames("commonNames", r.Grant.CommonNames, o, found),
		dnsNames:    r.compileNames("dnsNames", r.Grant.DNSNames, o, found),
		podIPs:      r.compileIPs(found),
		keys:        compileWords(r, "keys", r.Grant.Keys, pkcs10.KeyTypes(), found),
		usages:      compileWords(r, "usages", r.Grant.Usages, Usages(), found),
		lifetime:    r.compileLifetime(o, found),
	}
}

func (r *fileRule) compileFrom(found *problems) from {
	compiled := from{pod: podBound}
	if len(r.From.ServiceAccounts) == 0 {
		found.add(r.Name.at, "rule %q: from.serviceAccounts: name at least one", r.Name.value)
	}
	for _, text := range r.From.ServiceAccounts {
		namespace, name, _ := strings.Cut(text.value, "/")
		if !dnsLabel.MatchString(namespace) || !dnsSubdomain.MatchString(name) {
			found.add(text.at, "rule %q: from.serviceAccounts: %q is not of the form NAMESPACE/NAME", r.Name.value, text.value)
		}
		compiled.accounts = append(compiled.accounts, ServiceAccount{namespace, name})
	}
	if text := r.From.Pod; text.at > 0 {
		compiled.pod = podBinding(text.value)
		if compiled.pod != podBound && compiled.pod != podAddress {
			found.add(text.at, "rule %q: from.pod: %q is not known; write bound or address", r.Name.value, text.value)
		}
	}
	return compiled
}

func (r *fileRule) compileNames(field string, texts []fileName, o Options, found *problems) []nameSource {
	var sources []nameSource
	for _, text := range texts {
		if fault := pkcs10.CheckDNSName(text.value); fault != "" {
			found.add(text.at, "rule %q: grant.%s: %q %s", r.Name.value, field, text.value, fault)
		}
		if text.namespace.at > 0 && !dnsLabel.MatchString(text.namespace.value) {
			found.add(text.namespace.at, "rule %q: grant.%s: %q is not the name of a namespace", r.Name.value, field, text.namespace.value)
		}
		if text.service {
			sources = append(sources, service{text.value, text.namespace.value, o.ClusterDomain})
		} else {
			sources = append(sources, literal(text.value))
		}
	}
	return sources
}

func (r *fileRule) compileIPs(found *problems) bool {
	for _, text := range r.Grant.IPAddresses {
		if text.value != "pod" {
			found.add(text.at, "rule %q: grant.ipAddresses: %q is not known; write pod, for the pod's own", r.Name.value, text.value)
		}
	}
	return len(r.Grant.IPAddresses) > 0
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

// MinLifetime is the shortest lifetime that the Kubernetes API lets one ask for
// (CertificateSigningRequest, spec.expirationSeconds).
const MinLifetime = 600 * time.Second
