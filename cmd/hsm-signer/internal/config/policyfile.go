package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"hsm-signer/cmd/hsm-signer/internal/pin"
	"hsm-signer/cmd/hsm-signer/internal/trustedfile"
	"hsm-signer/policy"
)

// The rules for the files that the configuration names.
var (
	policyRules     = trustedfile.Rules{Limit: 4 << 20, Stake: "what is signed"}
	blockedRules    = trustedfile.Rules{Limit: 4 << 20, Stake: "which keys are blocked"}
	CARules         = trustedfile.Rules{Limit: 4 << 20, Stake: "who signs"}
	pinRules        = trustedfile.Rules{Limit: pin.Longest, Stake: "which PIN the token is given"}
	kubeconfigRules = trustedfile.Rules{Limit: 16 << 20, Stake: "which API server is believed"}
)

// readPolicyFile returns the text of a policy. If nothing is signed by it, anyone may own the file.
func readPolicyFile(path string, anyone bool) ([]byte, error) {
	rules := policyRules
	rules.Anyone = anyone
	text, err := rules.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%q is neither a file nor a built-in policy (%s)", path,
			strings.Join(policy.BuiltInNames(), ", "))
	}
	return text, err
}

// policySources are what a policy is made of, as bytes that change when any of it does.
type policySources struct {
	Policy      []byte
	BlockedKeys []byte // nil if no file is named
}

// readBlockedKeys returns the text of the file with blocked keys; nil if none is named.
func (c *Config) readBlockedKeys() ([]byte, error) {
	if c.BlockedKeysFile == "" {
		return nil, nil
	}
	rules := blockedRules
	rules.Anyone = c.AnyPolicy
	return rules.Read(c.BlockedKeysFile)
}

// ReadPolicySources returns all that the policy is made of, for [Config.ParsePolicySources].
func (c *Config) ReadPolicySources() ([]byte, error) {
	var all policySources
	var err error
	if all.Policy, err = c.ReadPolicy(); err != nil {
		return nil, err
	}
	if all.BlockedKeys, err = c.readBlockedKeys(); err != nil {
		return nil, fmt.Errorf("BLOCKED_KEYS_FILE: %w", err)
	}
	return json.Marshal(all)
}

func (c *Config) ParsePolicySources(text []byte) (*policy.Policy, error) {
	var all policySources
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, err
	}
	blocked, err := c.parseBlockedKeys(all.BlockedKeys)
	if err != nil {
		return nil, fmt.Errorf("BLOCKED_KEYS_FILE: %w", err)
	}
	return c.ParsePolicy(all.Policy, blocked)
}

func (c *Config) parseBlockedKeys(text []byte) (*policy.BlockedKeys, error) {
	if c.BlockedKeysFile == "" {
		return nil, nil
	}
	blocked, err := policy.ParseBlockedKeys(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.BlockedKeysFile, err)
	}
	return blocked, nil
}

// secret returns the rules for a file that others must not read. In a pod it is only a warning if
// they can: the default mode of a Secret's files lets everyone read them.
func (c *Config) secret(rules trustedfile.Rules, warn func(error)) trustedfile.Rules {
	rules.Exposed = func(err error) error {
		if !c.InPod {
			return err
		}
		warn(err)
		return nil
	}
	return rules
}

// warnOf returns a function that adds a warning about a variable to the configuration's.
func (c *Config) warnOf(variable string) func(error) {
	return func(err error) {
		text := fmt.Sprintf("%s: %v; for a Secret's volume, set defaultMode: 0440", variable, err)
		if !slices.Contains(c.Warnings, text) {
			c.Warnings = append(c.Warnings, text)
		}
	}
}
