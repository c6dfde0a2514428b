package config

import (
	"time"

	"hsm-signer/hsm"
)

// Checkpoints is what the configuration says of the checkpoints of the journal.
type Checkpoints struct {
	Key           hsm.KeyID
	PublicKeyFile string
	Interval      time.Duration
}

// Wanted reports whether checkpoints are configured.
func (c Checkpoints) Wanted() bool {
	return c.Key.Label != "" || len(c.Key.ID) > 0 || c.PublicKeyFile != ""
}

func readCheckpointKeyID(c *Config, v string) (err error) {
	c.Checkpoints.Key.ID, err = parseKeyID(v)
	return err
}
