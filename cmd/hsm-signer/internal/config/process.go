package config

import (
	"cmp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/pin"
)

// A Process is the configuration of a process: of its CAs, and of what they share. The embedded
// Config is that of what they share. Without CONFIG_FILE it is also that of the only CA.
type Process struct {
	*Config
	CAs    []Member
	common section // of CONFIG_FILE
}

// A Member is a CA of a process.
type Member struct {
	Config *Config
	Faults *Faults // of this CA; see [Process.Report]
	own    section // of CONFIG_FILE
}

// ReadProcess reads the settings of each CA: those in CONFIG_FILE, or else the flags and the
// environment, for one CA. The faults are about single values, and about the form of the file.
func ReadProcess(command *cobra.Command, settings []Setting) (*Process, *Faults) {
	value := given(command)
	path := value(fileSetting)
	if path == "" {
		c, faults := Read(command, settings)
		return &Process{Config: c, CAs: []Member{{Config: c, Faults: faults}}}, faults
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
	p.report(Member{Faults: own, own: section{name: common}}, faults)
	for _, ca := range file.cas {
		c, own := readMember(settings, file, ca,
			func(s Setting) string { return file.outside(s, value) })
		p.CAs = append(p.CAs, Member{c, own, ca})
	}
	return p, faults
}

// Report adds the faults of each CA to those of the process.
func (p *Process) Report(faults *Faults) {
	if len(p.CAs) == 1 && p.CAs[0].Faults == faults { // from the environment
		return
	}
	for _, m := range p.CAs {
		p.report(m, faults)
	}
}

// report adds the faults of a CA, each with the name of the section that has the value. A fault of
// what the CAs share is reported once.
func (p *Process) report(m Member, faults *Faults) {
	for _, fault := range *m.Faults {
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
