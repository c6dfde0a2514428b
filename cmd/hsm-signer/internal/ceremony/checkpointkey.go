package ceremony

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/fingerprint"
	"hsm-signer/hsm"
)

func newCACheckpointKeyCommand() *cobra.Command {
	settings := slices.Concat(config.TokenSettings,
		config.Named("CHECKPOINT_KEY_LABEL", "CHECKPOINT_KEY_ID"))
	var keyType, out string
	command := &cobra.Command{
		Use:   "create-checkpoint-key",
		Short: "Create a key in the token that signs checkpoints of the journal",
		Long: `Creates a second key in the token, which never leaves it, for checkpoints of the
journal. Writes its public half to a file, for CHECKPOINT_PUBLIC_KEY_FILE and for everyone who
verifies checkpoints. Nothing is
overwritten.`,
		Example: `  CHECKPOINT_KEY_LABEL=calico-checkpoints \
      hsm-signer ca create-checkpoint-key --out checkpoint.pub`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, faults := config.Read(cmd, settings)
			c.RequireToken(faults)
			if c.Checkpoints.Key.Label == "" && len(c.Checkpoints.Key.ID) == 0 {
				faults.Missing("CHECKPOINT_KEY_LABEL", "is not set, and neither is "+
					"CHECKPOINT_KEY_ID: name the new key by one of them", "CHECKPOINT_KEY_ID")
			}
			if !slices.Contains(hsm.KeyTypes(), keyType) {
				faults.Addf("--key-type", "%q is not one of %s", keyType,
					strings.Join(hsm.KeyTypes(), ", "))
			}
			requireNew("--out", out, faults)
			if err := faults.Err(); err != nil {
				return err
			}
			c.Token.Key = c.Checkpoints.Key
			return createCheckpointKey(cmd.Context(), c, keyType, out, cmd.OutOrStdout())
		},
	}
	config.AddFlags(command, settings)
	config.AddCAFlags(command)
	command.Flags().StringVar(&keyType, "key-type", "ecdsa-p256",
		"type of the key: "+strings.Join(hsm.KeyTypes(), ", "))
	command.Flags().StringVar(&out, "out", "checkpoint.pub", "file for the public half; it must "+
		"not exist")
	return command
}

func createCheckpointKey(ctx context.Context, c *config.Config, keyType, file string,
	out io.Writer) error {
	pair, token, err := newKey(ctx, c, keyType)
	if err != nil {
		return err
	}
	text, err := publicKeyPEM(pair.Public)
	if err != nil {
		return err
	}
	if err := writeNew(file, text); err != nil {
		return fmt.Errorf("the private %s was created, but its public half could not be "+
			"written: %w; save it by hand:\n%s", pair.ID, err, text)
	}
	sum, err := fingerprint.OfKey(pair.Public)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "Key for checkpoints created\n  file           %s\n  public key     "+
		"%s (SHA-256)\n  key            %s (%s), in the token labelled %q, serial number %s\n",
		file, sum, pair.ID, pair.Type, token.Label, token.Serial)
	return err
}

// publicKeyPEM returns the public key in PEM.
func publicKeyPEM(public crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), err
}
