package config

import (
	"cmp"

	"github.com/spf13/cobra"
)

// caFlag names a CA of CONFIG_FILE.
const caFlag = "ca"

// AddCAFlags gives a command that is about one CA the flags with which [Read] reads its settings
// from CONFIG_FILE.
func AddCAFlags(command *cobra.Command) {
	if command.Flags().Lookup(fileSetting.flagName()) == nil {
		AddFlags(command, []Setting{fileSetting})
	}
	command.Flags().String(caFlag, "", "name of the CA in CONFIG_FILE, if that has several")
}

// ownProcess marks the flag of a command that is a process of its own.
const ownProcess = "hsm-signer/own-process"

// AddCAFlagsOfProcess is [AddCAFlags] for a command that is a process of its own. It ignores the
// settings of CONFIG_FILE that belong to the process of the CAs, such as credential and addresses.
func AddCAFlagsOfProcess(command *cobra.Command) {
	AddCAFlags(command)
	command.Flags().Lookup(caFlag).Annotations = map[string][]string{ownProcess: nil}
}

// readOneOfFile reads the settings of one CA from CONFIG_FILE. A flag wins over the file. It
// returns nil if the command has no such flags, or there is no such file.
func readOneOfFile(command *cobra.Command, settings []Setting) (*Config, *Faults) {
	flag := command.Flags().Lookup(caFlag)
	if flag == nil {
		return nil, nil
	}
	value, name, faults := given(command), flag.Value.String(), &Faults{}
	path := value(fileSetting)
	if path == "" && name == "" {
		return nil, nil
	}
	var file configFile
	var ca section
	found := false
	if path == "" {
		faults.Addf("--"+caFlag, "names a CA of CONFIG_FILE, which is not set")
	} else {
		file = readFile(path, faults)
		if _, own := flag.Annotations[ownProcess]; own {
			file.dropProcess()
		}
		ca, found = file.find(name, faults)
	}
	if !found {
		c, _ := read(settings, value)
		return c, faults
	}
	flagged := func(s Setting) bool { return command.Flags().Changed(s.flagName()) }
	file.requireNoOther(settings, func(s Setting) string {
		if flagged(s) {
			return ""
		}
		return value(s)
	}, faults)
	c, own := readMember(settings, file, ca, func(s Setting) string {
		if flagged(s) {
			return value(s)
		}
		return file.outside(s, value)
	})
	*faults = append(*faults, *own...)
	return c, faults
}

// readMember reads the settings of a CA of the file: what is given, or else what the file has.
func readMember(settings []Setting, file configFile, ca section,
	given func(Setting) string) (*Config, *Faults) {
	c, faults := read(settings, func(s Setting) string {
		return cmp.Or(given(s), file.value(ca, s))
	})
	c.Name = ca.name
	c.requireNoPIN(faults)
	c.applyURI(faults, false)
	return c, faults
}
