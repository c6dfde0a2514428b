package main

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"hsm-signer/hsm"
)

func newCACheckpointKeyCommand() *cobra.Command {
	settings := slices.Concat(tokenSettings, settingsNamed("CHECKPOINT_KEY_LABEL", "CHECKPOINT_KEY_ID"))
	var keyType, out string
	command := &cobra.Command{
		Use:   "create-checkpoint-key",
		Short: "Make a key in the token that signs checkpoints of the journal",
		Long: `Has the token make a key that never leaves it, beside the CA's, for checkpoints of the journal,
and writes its public half into a file: for CHECKPOINT_PUBLIC_KEY_FILE, and for who verifies them. Nothing
is overwritten.`,
		Example: `  CHECKPOINT_KEY_LABEL=calico-checkpoints hsm-signer ca create-checkpoint-key --out checkpoint.pub`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, faults := readConfig(cmd, settings)
			c.requireToken(faults)
			if c.checkpoints.key.Label == "" && len(c.checkpoints.key.ID) == 0 {
				faults.missing("CHECKPOINT_KEY_LABEL", "is not set, nor is CHECKPOINT_KEY_ID: one of them must name the key to make", "CHECKPOINT_KEY_ID")
			}
			if !slices.Contains(hsm.KeyTypes(), keyType) {
				faults.addf("--key-type", "%q is not one of %s", keyType, strings.Join(hsm.KeyTypes(), ", "))
			}
			requireNew("--out", out, faults)
			if err := faults.err(); err != nil {
				return err
			}
			c.token.Key = c.checkpoints.key
			return createCheckpointKey(cmd.Context(), c, keyType, out, cmd.OutOrStdout())
		},
	}
	addFlags(command, settings)
	command.Flags().StringVar(&keyType, "key-type", "ecdsa-p256", "type of the key: "+strings.Join(hsm.KeyTypes(), ", "))
	command.Flags().StringVar(&out, "out", "checkpoint.pub", "file for the public half; it must not exist yet")
	return command
}

func createCheckpointKey(ctx context.Context, c *config, keyType, file string, out io.Writer) error {
	pair, token, err := newKey(ctx, c, keyType)
	if err != nil {
		return err
	}
	text, err := publicKeyPEM(pair.Public)
	if err != nil {
		return err
	}
	if err := writeNew(file, text); err != nil {
		return fmt.Errorf("the private %s was made, but its public half could not be written: %w; here it is, to be saved by hand:\n%s", pair.ID, err, text)
	}
	sum, err := keyFingerprint(pair.Public)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "Key for checkpoints created\n  file           %s\n  public key     %s (SHA-256)\n  key            %s (%s), in the token labelled %q, serial number %s\n",
		file, sum, pair.ID, pair.Type, token.Label, token.Serial)
	return err
}

func encodeBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
