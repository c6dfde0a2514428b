package setting

import (
	"errors"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/util/validation"

	"hsm-signer/cmd/hsm-signer/internal/trustedfile"
	"hsm-signer/policy/strictyaml"
)

// FileVariable names the file with the settings of several CAs.
const FileVariable = "CONFIG_FILE"

var fileRules = trustedfile.Rules{Limit: 1 << 20, Stake: "who signs what"}

// A Layout says which settings there are, and where CONFIG_FILE may have each. One that is neither
// shared nor inherited differs for each CA.
type Layout struct {
	Known     []string          // all that the file may have
	Shared    []string          // by the CAs: they are below common alone
	Inherited []string          // of which common may have the default
	Forbidden map[string]string // variables that the file must not have, with what to do instead
}

// common names the part of CONFIG_FILE that is no CA's.
const common = "common"

// A section is what CONFIG_FILE says of one CA, or of all.
type section struct {
	name   string
	values map[string]string // by variable
}

// A file is what CONFIG_FILE says.
type file struct {
	layout Layout
	common section
	cas    []section // in the order of the file
}

// readFile reads CONFIG_FILE, and adds what is wrong with its form to the faults.
func readFile(path string, l Layout, faults *Faults) file {
	text, err := fileRules.Read(path)
	if err != nil {
		faults.Add(FileVariable, err)
		return file{layout: l}
	}
	p := fileParser{layout: l, faults: faults}
	return p.parse(text)
}

// A fileParser collects what is wrong with the form of a file.
type fileParser struct {
	layout Layout
	faults *Faults
}

func (p fileParser) wrong(at *yaml.Node, format string, args ...any) {
	p.faults.Addf(FileVariable, "line %d: "+format, append([]any{at.Line}, args...)...)
}

func (p fileParser) parse(text []byte) (f file) {
	f.layout = p.layout
	var document yaml.Node
	if err := strictyaml.Decode(text, &document); err != nil {
		p.faults.Add(FileVariable, err)
		if !errors.Is(err, strictyaml.ErrDocuments) {
			return f
		}
	}
	f.common.name = common
	p.entries(document.Content[0], "the file", func(key, value *yaml.Node) {
		switch key.Value {
		case common:
			f.common = p.section(common, value)
		case "cas":
			p.entries(value, "cas", func(name, ca *yaml.Node) {
				if faults := validation.IsDNS1123Label(name.Value); len(faults) > 0 {
					p.wrong(name, "%q cannot be the name of a CA: %s", name.Value, faults[0])
					return
				}
				f.cas = append(f.cas, p.section(name.Value, ca))
			})
		default:
			p.wrong(key, "unknown key %q: write common and cas", key.Value)
		}
	})
	if len(f.cas) == 0 && len(*p.faults) == 0 {
		p.faults.Addf(FileVariable, "has no CA: write at least one below cas")
	}
	return f
}

// entries calls f for each key of a mapping and its value.
func (p fileParser) entries(node *yaml.Node, what string, f func(key, value *yaml.Node)) {
	if node.Kind != yaml.MappingNode {
		p.wrong(node, "%s is not a mapping, such as \"KEY: value\"", what)
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		switch {
		case key.Kind != yaml.ScalarNode:
			p.wrong(key, "%s: a key is not a text", what)
		case seen[key.Value]:
			p.wrong(key, "%s has the key %s twice", what, key.Value)
		default:
			seen[key.Value] = true
			f(key, value)
		}
	}
}

// section parses the settings of a CA, or of all.
func (p fileParser) section(name string, node *yaml.Node) section {
	s := section{name, map[string]string{}}
	p.entries(node, name, func(key, value *yaml.Node) {
		if !p.place(name, key) {
			return
		}
		if value.Kind != yaml.ScalarNode || value.Tag == "!!null" || value.Value == "" {
			p.wrong(value, "%s: %s needs a value, as in a variable: a text or a number", name,
				key.Value)
			return
		}
		s.values[key.Value] = value.Value
	})
	return s
}

// place reports whether the key is a setting that may be in this section.
func (p fileParser) place(name string, key *yaml.Node) bool {
	variable, l := key.Value, p.layout
	forbidden, shared := l.Forbidden[variable], slices.Contains(l.Shared, variable)
	switch {
	case forbidden != "":
		p.wrong(key, "%s: %s", name, forbidden)
	case !slices.Contains(l.Known, variable):
		p.wrong(key, "%s: there is no setting %q; the nearest is %s", name, variable,
			Nearest(variable, l.Known))
	case name != common && shared:
		p.wrong(key, "%s: %s belongs to the whole process: write it below common", name, variable)
	case name == common && !shared && !slices.Contains(l.Inherited, variable):
		p.wrong(key, "common: %s differs for each CA: write it below each of cas", variable)
	default:
		return true
	}
	return false
}

// dropShared forgets the settings of the process.
func (f file) dropShared() {
	for _, variable := range f.layout.Shared {
		delete(f.common.values, variable)
	}
}

// find returns the CA of that name. Without a name it returns the only one.
func (f file) find(name string, faults *Faults) (section, bool) {
	var names []string
	for _, ca := range f.cas {
		if ca.name == name || name == "" && len(f.cas) == 1 {
			return ca, true
		}
		names = append(names, ca.name)
	}
	switch {
	case len(f.cas) == 0: // the faults say why
	case name == "":
		faults.Addf("--ca", "is not set: name a CA of CONFIG_FILE: %s", strings.Join(names, ", "))
	default:
		faults.Addf("--ca", "CONFIG_FILE has no CA %q: it has %s", name, strings.Join(names, ", "))
	}
	return section{}, false
}

// requireNoOther adds a fault for each setting that is given in the environment or as a flag, and
// belongs in CONFIG_FILE.
func (f file) requireNoOther(variables []string, given Source, faults *Faults) {
	for _, variable := range variables {
		_, twice := f.common.values[variable]
		switch shared := slices.Contains(f.layout.Shared, variable); {
		case given(variable) == "" || variable == FileVariable || shared && !twice:
		case shared:
			faults.Addf(variable, "is set, and CONFIG_FILE sets the same: set it once")
		default:
			faults.Addf(variable, "is set outside CONFIG_FILE, which has the settings of each CA: "+
				"write it there")
		}
	}
}

// outside returns the source of what may be set outside CONFIG_FILE: settings that the CAs share.
func (f file) outside(given Source) Source {
	return func(variable string) string {
		if _, inCommon := f.common.values[variable]; inCommon ||
			!slices.Contains(f.layout.Shared, variable) {
			return ""
		}
		return given(variable)
	}
}
