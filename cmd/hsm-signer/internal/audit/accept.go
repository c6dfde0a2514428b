package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/rollback"
	"hsm-signer/issuer/journal"
)

func newAuditAcceptCommand() *cobra.Command {
	settings := config.Named("CA_CERT_FILE", "STATE_DIR")
	var text string
	command := &cobra.Command{
		Use:   "accept-rollback [DIR]",
		Short: "Accept that the journal lacks a line that a witness has seen",
		Long: `Lets hsm-signer continue with the journal in DIR (by default STATE_DIR) although a
witness (the lease or WITNESS_FILE) has a head that the journal lacks: its end was cut off, or an
older copy replaced it. The journal records this permanently. Find out why it happened first: the
certificates in the lost lines exist without a record, and their requests may get a second one.

/readyz and the log name the head. A running hsm-signer continues within seconds.`,
		Example: `  hsm-signer audit accept-rollback --head SEQ:SHA256`,
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, faults := config.Read(cmd, settings)
			ca := c.LoadCA(faults)
			head, err := journal.ParseHead(text)
			if err == nil && head.Seq == 0 {
				err = errors.New("no line has the number 0")
			}
			faults.Add("--head", err)
			if err := faults.Err(); err != nil {
				return err
			}
			options := journal.Options{Version: buildinfo.Version(), CA: ca.Certificate()}
			return acceptRollback(cmd.Context(), stateDir(c, args), head, options,
				cmd.OutOrStdout())
		},
	}
	config.AddFlags(command, settings)
	config.AddCAFlags(command)
	command.Flags().StringVar(&text, "head", "", "head that a witness has and the journal lacks, "+
		"SEQ:SHA256")
	return command
}

// acceptRollback records that a head is missing, in the journal itself or through the process that
// has it open.
func acceptRollback(ctx context.Context, dir string, head journal.Head, o journal.Options,
	out io.Writer) error {
	if _, err := os.Stat(dir); err != nil { // a typo would create a new journal
		return err
	}
	if journal.Locked(dir) {
		if err := rollback.HandOver(dir, head); err != nil {
			return fmt.Errorf("tell the process that has the journal open: %w", err)
		}
		_, err := fmt.Fprintf(out, "hsm-signer is running, and records within seconds that %s is "+
			"missing: see /readyz\n", head)
		return err
	}
	j, err := journal.Open(dir, o)
	if err != nil {
		return err
	}
	err = rollback.Record(ctx, j, head)
	if err := errors.Join(err, j.Close()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "the journal %s records that %s is missing\n", j.ID(), head)
	return err
}
