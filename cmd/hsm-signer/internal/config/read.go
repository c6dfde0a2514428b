package config

import (
	"errors"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/pin"
	"hsm-signer/cmd/hsm-signer/internal/setting"
)

// AddCAFlags gives a command that is about one CA the flags with which [Read] reads its settings
// from CONFIG_FILE.
func AddCAFlags(command *cobra.Command) {
	addFileFlag(command)
	setting.AddCAFlag(command, false)
}

// AddCAFlagsOfProcess is [AddCAFlags] for a command that is a process of its own. It ignores the
// settings of CONFIG_FILE that belong to the process of the CAs, such as credential and addresses.
func AddCAFlagsOfProcess(command *cobra.Command) {
	addFileFlag(command)
	setting.AddCAFlag(command, true)
}

func addFileFlag(command *cobra.Command) {
	if command.Flags().Lookup(setting.FlagName(setting.FileVariable)) == nil {
		AddFlags(command, []Setting{fileSetting})
	}
}

// Read reads the settings of a command for one CA: from its flags and the environment, or from
// CONFIG_FILE if the command has the flags of [AddCAFlags]. The faults are about single values; the
// command adds those about what it requires.
func Read(command *cobra.Command, settings []Setting) (*Config, *setting.Faults) {
	ca, found, faults := setting.ReadCA(command, layout(), variables(settings))
	if !found { // the faults say why
		c, _ := read(settings, ca)
		return c, faults
	}
	c, own := readOne(settings, ca, setting.Flagged(command, pin.URIVariable))
	*faults = append(*faults, *own...)
	return c, faults
}

// readOne reads the settings of a CA. uriFlagged says that a flag gives the PKCS#11 URI.
func readOne(settings []Setting, ca setting.CA, uriFlagged bool) (*Config, *setting.Faults) {
	c, faults := read(settings, ca)
	c.Name = ca.Name
	if ca.Name != "" {
		c.requireNoPIN(faults)
	}
	c.applyURI(faults, uriFlagged && ca.Name == "")
	return c, faults
}

// read reads the values of the settings.
func read(settings []Setting, ca setting.CA) (*Config, *setting.Faults) {
	c, faults := &Config{InPod: inPod()}, &setting.Faults{}
	for _, s := range settings {
		value := valueOf(ca, s)
		if value == "" {
			continue
		}
		if err := s.read(c, value); err != nil {
			faults.Add(s.Env, err)
			if s.Fallback != "" { // so that the mistake is reported once
				_ = s.read(c, s.Fallback)
			}
		}
	}
	return c, faults
}

// requireNoPIN adds a fault if the URI of a file has a PIN.
func (c *Config) requireNoPIN(faults *setting.Faults) {
	if c.uri != nil && c.uri.PINValue != "" {
		faults.Add(pin.URIVariable, errors.New("has a pin-value, and CONFIG_FILE holds no PIN: "+
			"use pin-source"))
	}
}
