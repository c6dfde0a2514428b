package config

import (
	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/pin"
	"hsm-signer/cmd/hsm-signer/internal/setting"
)

// A Process is the configuration of a process: of its CAs, and of what they share. The embedded
// Config is that of what they share. Without CONFIG_FILE it is also that of the only CA.
type Process struct {
	*Config
	CAs []Member
}

// A Member is a CA of a process.
type Member struct {
	Config *Config
	Faults *setting.Faults // of this CA; see [Process.Report]
	ca     setting.CA
}

// ReadProcess reads the settings of each CA: those in CONFIG_FILE, or else the flags and the
// environment, for one CA. The faults are about single values, and about the form of the file.
func ReadProcess(command *cobra.Command, settings []Setting) (*Process, *setting.Faults) {
	faults := &setting.Faults{}
	file := setting.ReadProcess(command, layout(), variables(settings), faults)
	if file == nil {
		c, faults := Read(command, settings)
		return &Process{Config: c, CAs: []Member{{Config: c, Faults: faults}}}, faults
	}
	if given, err := pin.Take(); err != nil || given != "" {
		faults.Addf(pin.Variable, "is set, and CONFIG_FILE too: name a PKCS11_PIN_FILE for each CA")
	}
	shared, own := read(settings, file.Shared)
	file.Shared.Report(*own, faults)
	p := &Process{Config: shared}
	for _, ca := range file.CAs {
		c, own := readOne(settings, ca, false)
		p.CAs = append(p.CAs, Member{c, own, ca})
	}
	return p, faults
}

// Report adds the faults of each CA to those of the process.
func (p *Process) Report(faults *setting.Faults) {
	for _, m := range p.CAs {
		if m.Faults != faults { // without CONFIG_FILE they are the same
			m.ca.Report(*m.Faults, faults)
		}
	}
}
