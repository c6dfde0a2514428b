package setting

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// A CA has the settings of one CA.
type CA struct {
	Name   string // in CONFIG_FILE; empty: there is no such file
	given  Source // what counts of flags and environment
	own    section
	common section
	layout Layout
}

// Value returns a setting; "" if it is not set. own is false if common of CONFIG_FILE has it, or
// nothing has it.
func (c CA) Value(variable string) (value string, own bool) {
	if value := c.given(variable); value != "" {
		return value, true
	}
	if value, own := c.own.values[variable]; own {
		return value, true
	}
	return c.common.values[variable], false
}

// Report adds the faults of the CA to those of its process, each with the name of the section of
// CONFIG_FILE that has the value. A fault of what the CAs share is added once.
func (c CA) Report(own Faults, process *Faults) {
	for _, fault := range own {
		variable, _, _ := strings.Cut(fault, ": ")
		_, isOwn := c.own.values[variable]
		_, inCommon := c.common.values[variable]
		switch shared := slices.Contains(c.layout.Shared, variable); {
		case inCommon && !isOwn:
			fault = common + ": " + fault
		case !shared:
			fault = c.own.name + ": " + fault
		}
		if !slices.Contains(*process, fault) {
			*process = append(*process, fault)
		}
	}
}

// caFlag names a CA of CONFIG_FILE.
const caFlag = "ca"

// ownProcess marks the flag of a command that is a process of its own.
const ownProcess = "hsm-signer/own-process"

// AddCAFlag gives a command that is about one CA the flag with which [ReadCA] finds it in
// CONFIG_FILE. A command that is a process of its own ignores what the CAs share there, such as
// credential and addresses.
func AddCAFlag(command *cobra.Command, isProcess bool) {
	command.Flags().String(caFlag, "", "name of the CA in CONFIG_FILE, if that has several")
	if isProcess {
		command.Flags().Lookup(caFlag).Annotations = map[string][]string{ownProcess: nil}
	}
}

// ReadCA reads the settings with these variables for one CA. A command with the flag of [AddCAFlag]
// reads them from CONFIG_FILE, if there is one, and a flag wins over the file. found is false if
// the file has no such CA, which is one of the faults then.
func ReadCA(command *cobra.Command, l Layout, variables []string) (ca CA, found bool,
	faults *Faults) {
	given, flag := Given(command), command.Flags().Lookup(caFlag)
	ca, faults = CA{given: given}, &Faults{}
	if flag == nil {
		return ca, true, faults
	}
	path, name := given(FileVariable), flag.Value.String()
	switch {
	case path == "" && name == "":
		return ca, true, faults
	case path == "":
		faults.Addf("--"+caFlag, "names a CA of CONFIG_FILE, which is not set")
		return ca, false, faults
	}
	f := readFile(path, l, faults)
	if _, own := flag.Annotations[ownProcess]; own {
		f.dropShared()
	}
	section, found := f.find(name, faults)
	if !found {
		return ca, false, faults
	}
	flagged := func(variable string) bool { return Flagged(command, variable) }
	f.requireNoOther(slices.DeleteFunc(slices.Clone(variables), flagged), given, faults)
	outside := f.outside(given)
	return f.ca(section, func(variable string) string {
		if flagged(variable) {
			return given(variable)
		}
		return outside(variable)
	}), true, faults
}

// ca returns the CA of a section.
func (f file) ca(s section, given Source) CA {
	return CA{Name: s.name, given: given, own: s, common: f.common, layout: f.layout}
}

// A Process has the settings of each CA of CONFIG_FILE, and of what they share.
type Process struct {
	Shared CA // without a name
	CAs    []CA
}

// ReadProcess reads the settings with these variables for each CA of CONFIG_FILE, and adds what is
// wrong with the form of the file to the faults. It returns nil if there is no such file.
func ReadProcess(command *cobra.Command, l Layout, variables []string, faults *Faults) *Process {
	given := Given(command)
	path := given(FileVariable)
	if path == "" {
		return nil
	}
	f := readFile(path, l, faults)
	f.requireNoOther(variables, given, faults)
	p := &Process{Shared: f.ca(section{name: common}, f.outside(given))}
	p.Shared.Name = ""
	for _, s := range f.cas {
		p.CAs = append(p.CAs, f.ca(s, f.outside(given)))
	}
	return p
}
