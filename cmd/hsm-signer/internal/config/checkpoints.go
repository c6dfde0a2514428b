package config

import (
	"time"

	"hsm-signer/hsm"
)

// checkpoints is what the configuration says of them.
type checkpoints struct {
	Key           hsm.KeyID
	publicKeyFile string
	Interval      time.Duration
}

// wanted reports whether checkpoints are configured.
func (c checkpoints) wanted() bool {
	return c.Key.Label != "" || len(c.Key.ID) > 0 || c.publicKeyFile != ""
}

func readCheckpointKeyID(c *Config, v string) (err error) {
	c.Checkpoints.Key.ID, err = parseKeyID(v)
	return err
}
