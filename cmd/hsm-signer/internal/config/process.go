//go:build cgo

package config

import (
	"cmp"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/client-go/transport"

	"hsm-signer/cmd/hsm-signer/internal/pin"
	"hsm-signer/kube/lease"
)

// A Process is the configuration of a process: of its CAs, and of what they share. The embedded
// Config is that of what they share. Without CONFIG_FILE it is also that of the only CA.
type Process struct {
	*Config
	cas    []member
	common section // of CONFIG_FILE
}

// A member is a CA of a process.
type member struct {
	config *Config
	faults *Faults
	own    section // of CONFIG_FILE
}

// CAs returns the configuration of each CA.
func (p *Process) CAs() (all []*Config) {
	for _, m := range p.cas {
		all = append(all, m.config)
	}
	return all
}

// ReadProcess reads the settings of each CA: those in CONFIG_FILE, or else the flags and the
// environment, for one CA. The faults are about single values, and about the form of the file.
func ReadProcess(command *cobra.Command, settings []Setting) (*Process, *Faults) {
	value := given(command)
	path := value(fileSetting)
	if path == "" {
		c, faults := Read(command, settings)
		return &Process{Config: c, cas: []member{{config: c, faults: faults}}}, faults
	}
	faults := &Faults{}
	file := readFile(path, faults)
	file.requireNoOther(settings, value, faults)
	if given, err := pin.Take(); err != nil || given != "" {
		faults.Addf(pin.Variable, "is set, and CONFIG_FILE too: name a PKCS11_PIN_FILE for each CA")
	}
	p := &Process{common: file.common}
	var own *Faults
	p.Config, own = read(settings, func(s Setting) string {
		return cmp.Or(file.outside(s, value), file.common.values[s.Env])
	})
	p.report(member{faults: own, own: section{name: common}}, faults)
	for _, ca := range file.cas {
		c, own := readMember(settings, file, ca,
			func(s Setting) string { return file.outside(s, value) })
		p.cas = append(p.cas, member{c, own, ca})
	}
	return p, faults
}

// Load loads everything that the configuration names, for each CA, and adds what is wrong to the
// faults. The calls of a CA to the API server go through what wrap returns for it, unless wrap is
// nil.
func (p *Process) Load(faults *Faults, wrap func(ca string) transport.WrapperFunc) []*Service {
	var all []*Service
	for _, m := range p.cas {
		var wrapper transport.WrapperFunc
		if wrap != nil {
			wrapper = wrap(m.config.Name)
		}
		all = append(all, m.config.LoadService(m.faults, wrapper))
	}
	if len(p.cas) == 1 && p.cas[0].faults == faults { // from the environment
		return all
	}
	requireApart(all, func(i int) *Faults { return p.cas[i].faults })
	for _, m := range p.cas {
		p.report(m, faults)
	}
	return all
}

// report adds the faults of a CA, each with the name of the section that has the value. A fault of
// what the CAs share is reported once.
func (p *Process) report(m member, faults *Faults) {
	for _, fault := range *m.faults {
		variable, _, _ := strings.Cut(fault, ": ")
		_, own := m.own.values[variable]
		_, inCommon := p.common.values[variable]
		switch shared := slices.Contains(processWide, variable); {
		case inCommon && !own:
			fault = common + ": " + fault
		case !shared:
			fault = m.own.name + ": " + fault
		}
		if !slices.Contains(*faults, fault) {
			*faults = append(*faults, fault)
		}
	}
}

// requireApart adds a fault for everything that two CAs must not have in common.
func requireApart(all []*Service, faults func(i int) *Faults) {
	for i, s := range all {
		for _, other := range all[:i] {
			s.requireApartFrom(other, faults(i))
		}
	}
}

func (s *Service) requireApartFrom(other *Service, faults *Faults) {
	same := func(variable, value, others string) {
		if value != "" && value == others {
			faults.Addf(variable, "is %s, and so is that of %s: each CA needs its own", value,
				other.Name)
		}
	}
	for _, name := range s.SignerNames {
		if slices.Contains(other.SignerNames, name) {
			faults.Addf("SIGNER_NAME", "has %s, and so has that of %s: both would answer its "+
				"requests", name, other.Name)
		}
	}
	if s.AcceptUnset && other.AcceptUnset {
		faults.Addf("UNSET_SIGNER_NAME", "is accept, and so is that of %s: both would answer the "+
			"same requests", other.Name)
	}
	same("STATE_DIR", s.StateDir, other.StateDir)
	same("WITNESS_FILE", cleaned(s.WitnessFile), cleaned(other.WitnessFile))
	same("LEASE_NAME", nameOf(s.Lease), nameOf(other.Lease))
	for _, pair := range [][2]*Service{{s, other}, {other, s}} {
		signer, checked := pair[0], pair[1]
		if signer.CA != nil && checked.CheckpointPublic != nil &&
			signer.CA.Matches(checked.CheckpointPublic) == nil {
			faults.Addf("CHECKPOINT_KEY_LABEL", "of %s names the key of the CA %s: checkpoints "+
				"need their own key", checked.Name, signer.Name)
		}
	}
}

func cleaned(path string) string {
	if path == "" {
		return ""
	}
	return filepath.Clean(path)
}

func nameOf(l *lease.Lease) string {
	if l == nil {
		return ""
	}
	return l.Namespace + "/" + l.Name
}
