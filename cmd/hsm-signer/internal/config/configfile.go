package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/util/validation"

	"hsm-signer/cmd/hsm-signer/internal/pin"
	"hsm-signer/cmd/hsm-signer/internal/trustedfile"
	"hsm-signer/policy/strictyaml"
)

// fileVariable names the file with the settings of several CAs.
const fileVariable = "CONFIG_FILE"

var fileRules = trustedfile.Rules{Limit: 1 << 20, Stake: "who signs what"}

// Where a setting may be in CONFIG_FILE. One that is in neither list differs for each CA: it says
// what the CA is, where its key is, or what it grants, and no default can be right for two of them.
var (
	// processWide are the settings that the CAs share.
	processWide = []string{"KUBECONFIG", "LISTEN_ADDRESS", "STATUS_ADDRESS", "ALLOWED_HOSTS",
		"LOG_LEVEL", "LOG_FORMAT"}
	// inherited are the settings of which common may have a default.
	inherited = []string{"STATE_DIR", "LEASE_NAME", "LEASE_NAMESPACE", "LEADER_ELECT", "APPROVE",
		"BLOCKED_KEYS_FILE", "CLUSTER_DOMAIN", "TRUST_DOMAIN", "CERTIFICATE_LIFETIME",
		"POD_REFUSAL_DELAY", "DELETE_FINISHED_AFTER", "WORKERS", "ANSWER_RATE",
		"PKCS11_MAX_SESSIONS", "PKCS11_TIMEOUT", "JOURNAL_MAX_REQUESTS", "JOURNAL_MAX_UNFINISHED",
		"CHECKPOINT_INTERVAL"}
)

// allSettings are those that CONFIG_FILE may have.
func allSettings() []Setting {
	return slices.DeleteFunc(slices.Concat(ServiceSettings, TokenSettings, LogSettings),
		func(s Setting) bool { return s.Env == fileVariable })
}

// common names the part of CONFIG_FILE that is no CA's.
const common = "common"

// A section is what CONFIG_FILE says of one CA, or of all.
type section struct {
	name   string
	values map[string]string // by variable
}

// A configFile is what CONFIG_FILE says.
type configFile struct {
	common section
	cas    []section // in the order of the file
}

// readFile reads CONFIG_FILE, and adds what is wrong with its form to the faults.
func readFile(path string, faults *Faults) configFile {
	text, err := fileRules.Read(path)
	if err != nil {
		faults.Add(fileVariable, err)
		return configFile{}
	}
	p := fileParser{faults: faults}
	return p.parse(text)
}

// A fileParser collects what is wrong with the form of a file.
type fileParser struct{ faults *Faults }

func (p fileParser) wrong(at *yaml.Node, format string, args ...any) {
	p.faults.Addf(fileVariable, "line %d: "+format, append([]any{at.Line}, args...)...)
}

func (p fileParser) parse(text []byte) (f configFile) {
	var document yaml.Node
	if err := strictyaml.Decode(text, &document); err != nil {
		p.faults.Add(fileVariable, err)
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
		p.faults.Addf(fileVariable, "has no CA: write at least one below cas")
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
	variable, known := key.Value, []string{}
	for _, s := range allSettings() {
		known = append(known, s.Env)
	}
	shared := slices.Contains(processWide, variable)
	switch {
	case variable == pin.Variable:
		p.wrong(key, "%s: this file holds no PIN: use PKCS11_PIN_FILE, or pin-source in PKCS11_URI",
			name)
	case !slices.Contains(known, variable):
		p.wrong(key, "%s: there is no setting %q; the nearest is %s", name, variable,
			nearest(variable, known))
	case name != common && shared:
		p.wrong(key, "%s: %s belongs to the whole process: write it below common", name, variable)
	case name == common && !shared && !slices.Contains(inherited, variable):
		p.wrong(key, "common: %s differs for each CA: write it below each of cas", variable)
	default:
		return true
	}
	return false
}

// value returns a setting of a CA, from common if the CA does not have it. By default each CA has a
// directory below STATE_DIR, and a lease whose name begins with LEASE_NAME.
func (f configFile) value(ca section, s Setting) string {
	if value, own := ca.values[s.Env]; own {
		return value
	}
	value := f.common.values[s.Env]
	if value == "" {
		value = s.Fallback
	}
	switch s.Env {
	case "STATE_DIR":
		return filepath.Join(value, ca.name)
	case "LEASE_NAME":
		return value + "-" + ca.name
	}
	return value
}

// dropProcess forgets the settings of the process.
func (f configFile) dropProcess() {
	for _, variable := range processWide {
		delete(f.common.values, variable)
	}
}

// find returns the CA of that name. Without a name it returns the only one.
func (f configFile) find(name string, faults *Faults) (section, bool) {
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
func (f configFile) requireNoOther(settings []Setting, given func(Setting) string,
	faults *Faults) {
	for _, s := range settings {
		_, twice := f.common.values[s.Env]
		switch shared := slices.Contains(processWide, s.Env); {
		case given(s) == "" || s.Env == fileVariable || shared && !twice:
		case shared:
			faults.Addf(s.Env, "is set, and CONFIG_FILE sets the same: set it once")
		default:
			faults.Addf(s.Env, "is set outside CONFIG_FILE, which has the settings of each CA: "+
				"write it there")
		}
	}
}

// outside returns a setting that may be set outside CONFIG_FILE: one that the CAs share.
func (f configFile) outside(s Setting, given func(Setting) string) string {
	if _, inCommon := f.common.values[s.Env]; inCommon || !slices.Contains(processWide, s.Env) {
		return ""
	}
	return given(s)
}

// requireNoPIN adds a fault if the URI of a file has a PIN.
func (c *Config) requireNoPIN(faults *Faults) {
	if c.uri != nil && c.uri.PINValue != "" {
		faults.Add(pin.URIVariable, fmt.Errorf("has a pin-value, and CONFIG_FILE holds no PIN: "+
			"use pin-source"))
	}
}
