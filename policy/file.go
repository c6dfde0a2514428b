package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"hsm-signer/policy/strictyaml"
)

// The text of a policy, as a user writes it. Every key is known: an unknown one is an error.
// docs/policy.md explains the language by example.
type (
	file struct {
		Version  line[int]  `yaml:"version"`
		Budget   fileBudget `yaml:"budget"`   // optional
		Defaults fileRule   `yaml:"defaults"` // optional: what rules say that do not say otherwise
		Rules    []fileRule `yaml:"rules"`

		// optional: no kept subject holds one; "*" at the end for any ending
		ReservedGroups []line[string] `yaml:"reservedGroups"`
	}
	fileBudget struct { // certificates in an hour
		Total line[int] `yaml:"total"`
		// a number, or a share of the total
		PerNamespace      line[string] `yaml:"perNamespace"`
		PerServiceAccount line[string] `yaml:"perServiceAccount"` // a share of the total: "50%"
		PerPod            line[int]    `yaml:"perPod"`
	}
	fileRuleBudget struct { // each a number, or a share of the total
		Reserve      line[string] `yaml:"reserve"`
		Limit        line[string] `yaml:"limit"`
		PerNamespace line[string] `yaml:"perNamespace"`
	}
	fileRule struct {
		Name       line[string]    `yaml:"name"`
		From       fileFrom        `yaml:"from"`
		Grant      fileGrant       `yaml:"grant"`
		Conditions []fileCondition `yaml:"conditions"` // optional: all must be true
		Budget     fileRuleBudget  `yaml:"budget"`     // optional

		at int // the line on which it begins
	}
	fileCondition struct {
		That    line[string] `yaml:"that"`    // CEL
		Message line[string] `yaml:"message"` // what the requester reads when it is not met
	}
	fileFrom struct {
		// NAMESPACE/NAME; "*" for any of either
		ServiceAccounts []line[string] `yaml:"serviceAccounts"`
		// usernames; "*" at the end for any ending
		Users []line[string] `yaml:"users"`
		// optional: at least one of them
		Groups []line[string] `yaml:"groups"`
		// optional: for each key at least one of its values
		Extra map[string][]line[string] `yaml:"extra"`
		// bound (default), address or none
		Pod line[string] `yaml:"pod"`
		// optional: true for pod certificates (PodCertificateRequest), and nothing else
		PodCertificates line[bool] `yaml:"podCertificates"`
		// optional: keys of unverifiedUserAnnotations that a pod certificate's request may have
		Annotations []line[string] `yaml:"annotations"`
	}
	fileGrant struct {
		// optional; without it, one of the DNS names asked for
		CommonNames []fileName `yaml:"commonNames"`
		DNSNames    []fileName `yaml:"dnsNames"`
		// "pod": the pod's own; an address; a prefix
		IPAddresses    []line[string] `yaml:"ipAddresses"`
		URIs           []line[string] `yaml:"uris"`
		EmailAddresses []line[string] `yaml:"emailAddresses"`
		Subject        line[string]   `yaml:"subject"` // rebuilt (default) or kept
		// optional, for pod certificates: services, hostname
		PodNames []line[string] `yaml:"podNames"`
		Keys     []line[string] `yaml:"keys"`
		Usages   []line[string] `yaml:"usages"`
		// optional: a duration, see ParseDuration
		MaxLifetime line[string] `yaml:"maxLifetime"`
		// optional: when none is asked for; without it, the most
		DefaultLifetime line[string] `yaml:"defaultLifetime"`
	}
)

// line is a scalar and the line that it stands on.
type line[T any] struct {
	value T
	at    int
	bad   bool // it has another type
}

func (l *line[T]) UnmarshalYAML(node *yaml.Node) error {
	l.at = node.Line
	err := node.Decode(&l.value)
	l.bad = err != nil
	return err
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
	fields := map[string]*line[string]{"service": &n.service, "namespace": &n.namespace,
		"pattern": &n.pattern}
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
	return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: a name is a text, or a mapping "+
		"with the key \"service\" and perhaps the key \"namespace\", or with the key \"pattern\" "+
		"alone, each once", at)}}
}

// problems collects what is wrong with a policy's text.
type problems struct {
	all  []string
	seen map[string]bool // by line and text
}

func (p *problems) add(at int, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	if at > 0 {
		message = fmt.Sprintf("line %d: %s", at, message)
	}
	p.all = append(p.all, message)
}

// repeats reports whether the same was noted of the same line before.
func (p *problems) repeats(at int, detail string) bool {
	key := fmt.Sprint(at, detail)
	before := p.seen[key]
	if p.seen == nil {
		p.seen = map[string]bool{}
	}
	p.seen[key] = true
	return before
}

func (p *problems) err() error {
	if len(p.all) == 0 {
		return nil
	}
	return Mistakes(p.all)
}

// Mistakes is an error that lists everything that is wrong with a policy: most begin with
// "line N: ".
type Mistakes []string

func (m Mistakes) Error() string {
	return fmt.Sprintf("the policy has %d mistake(s):\n  %s", len(m), strings.Join(m, "\n  "))
}

// checkValues finds keys and entries without a value, and empty lists: what was emptied by mistake
// must not be taken for what was never said. Where users are emptied, a rule would apply to all in
// its groups.
func (p *problems) checkValues(node *yaml.Node) {
	inMapping := node.Kind == yaml.MappingNode
	for i, child := range node.Content {
		isNull := child.Kind == yaml.ScalarNode && child.Tag == "!!null"
		isEmpty := (child.Kind == yaml.SequenceNode || child.Kind == yaml.MappingNode) &&
			len(child.Content) == 0
		switch {
		case inMapping && i%2 == 0:
			if isNull { // the YAML library would pass over it, and over what stands under it
				p.add(child.Line, "a key has no name")
			}
		case inMapping && isNull:
			p.add(child.Line, "the key %q has no value; write one, or leave the key out",
				node.Content[i-1].Value)
		case inMapping && isEmpty:
			p.add(child.Line, "the key %q is empty; write an entry, or leave the key out",
				node.Content[i-1].Value)
		case node.Kind == yaml.SequenceNode && isNull:
			p.add(child.Line, "an entry of a list has no value")
		}
		p.checkValues(child)
	}
}

// Parse compiles the text of a policy, whole: the error lists every mistake with its
// line (see [Mistakes]).
func Parse(text []byte, o Options) (*Policy, error) {
	var f file
	var found problems
	var tree yaml.Node
	if err := yaml.Unmarshal(text, &tree); err != nil {
		return nil, fmt.Errorf("the policy is not YAML: %w", err)
	}
	found.checkValues(&tree)
	if err := found.decode(text, &f); err != nil {
		return nil, err
	}
	f.findRules(&tree)
	rules, budget := f.compile(o, &found)
	if err := found.err(); err != nil {
		return nil, err
	}
	return &Policy{rules: rules, budget: budget, hash: hashOf(text, o),
		clusterDomain: o.ClusterDomain, blocked: o.BlockedKeys}, nil
}

// findRules notes for each rule on which line it begins. The tree is of the same text.
func (f *file) findRules(tree *yaml.Node) {
	var lines struct{ Rules []yaml.Node }
	if tree.Decode(&lines) != nil {
		return // which is noted already
	}
	// which is no rule
	lines.Rules = slices.DeleteFunc(lines.Rules, func(n yaml.Node) bool {
		return n.Kind == yaml.ScalarNode
	})
	for i := range min(len(f.Rules), len(lines.Rules)) {
		f.Rules[i].at = lines.Rules[i].Line
	}
}

// decode decodes the text into the file and collects every mistake. An error says that the text
// cannot be decoded at all.
func (p *problems) decode(text []byte, into *file) error {
	err := strictyaml.Decode(text, into)
	var mistakes strictyaml.Mistakes
	isMistakes, several := errors.As(err, &mistakes), errors.Is(err, strictyaml.ErrDocuments)
	switch {
	case errors.Is(err, strictyaml.ErrEmpty):
		return errors.New("the policy is empty; write at least \"version: 1\" and one rule")
	case err != nil && !isMistakes && !several:
		return fmt.Errorf("the policy: %w", err)
	}
	p.all = append(p.all, mistakes...)
	if several {
		p.add(0, "the file holds more than one YAML document; write one")
	}
	return nil
}
