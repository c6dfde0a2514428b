package config

import (
	"os"

	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/cmd/hsm-signer/internal/trustedfile"
)

// ResolveStateDir replaces STATE_DIR by the directory that it leads to, once: systemd's DynamicUser
// makes it a symbolic link. Only root and this user may be able to put another in its place.
func (c *Config) ResolveStateDir(faults *setting.Faults) {
	real, err := trustedfile.ResolveDir(c.StateDir, c.StateUser())
	if err != nil {
		faults.Add("STATE_DIR", err)
		return
	}
	c.StateDir = real
}

// StateUser returns the user who must own STATE_DIR: this one. Root may check it for its owner.
func (c *Config) StateUser() int {
	if info, err := os.Stat(c.StateDir); err == nil && c.ForOwner && os.Geteuid() == 0 {
		return trustedfile.OwnerOf(info)
	}
	return os.Geteuid()
}
