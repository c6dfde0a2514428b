// Package audit holds the "audit" commands, which verify and list what the journal records. Only
// accept-rollback changes the journal.
package audit

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/cmd/hsm-signer/internal/terminal"
	"hsm-signer/issuer/journal"
)

func NewCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "audit",
		Short: "Verify and read the journal of signed certificates",
		Long: `Verifies and reads the journal of signed certificates, also while hsm-signer runs.
Only
accept-rollback changes the journal.`,
	}
	command.AddCommand(newAuditVerifyCommand(), newAuditListCommand(), newAuditShowCommand(),
		newAuditAcceptCommand())
	return command
}

// AuditVerify holds the flags of "audit verify".
type AuditVerify struct {
	formerCAs     []string
	witnessed     []string
	CheckpointKey string
	maxUnvouched  string
	output        string

	Limit time.Duration // how old lines may be that no checkpoint covers
}

func newAuditVerifyCommand() *cobra.Command {
	settings := config.Named("CA_CERT_FILE", "NEXT_CA_CERT_FILE", "STATE_DIR",
		"CHECKPOINT_INTERVAL")
	var a AuditVerify
	command := &cobra.Command{
		Use:   "verify [DIR]",
		Short: "Verify every line of the journal",
		Long: `Verifies every line of the journal in DIR (by default STATE_DIR):
  - each line has the hash of the one before, and none is missing;
  - names, serial number, validity and key are those of the to-be-signed certificate;
  - each certificate was made for its intent, and is signed by the CA;
  - no request and no serial number has two certificates.

Only the chain of hashes protects the rest of a line, such as the requester and the rule. Whoever
can write the journal can compute the chain again, unless something vouches for it.
--checkpoint-key verifies the checkpoints. It fails if none covers the journal, or if its end has
not been covered for --max-unvouched. --witness names a head that someone has kept, SEQ:SHA256 as
"audit verify" prints it, and detects an end that was cut off.

Exit code 0 if all is right, 2 if not; then the first wrong line is named.`,
		Example: `  hsm-signer audit verify
  hsm-signer audit verify /backup/hsm-signer --ca-cert-file ca.crt --witness SEQ:SHA256`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, faults := config.Read(cmd, settings)
			options := a.options(c, faults)
			faults.RequireOutput(a.output)
			if err := faults.Err(); err != nil {
				return err
			}
			return a.verify(stateDir(c, args), options, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	config.AddFlags(command, settings)
	config.AddCAFlags(command)
	flags := command.Flags()
	flags.StringArrayVar(&a.formerCAs, "former-ca", nil, "PEM file with the certificate of an "+
		"earlier CA (may be repeated)")
	flags.StringArrayVar(&a.witnessed, "witness", nil, "head that someone has kept, SEQ:SHA256 "+
		"(may be repeated)")
	flags.StringVar(&a.CheckpointKey, "checkpoint-key", "", "PEM file with the public checkpoint "+
		"key; without it the signatures of checkpoints are not verified")
	flags.StringVar(&a.maxUnvouched, "max-unvouched", "", "with --checkpoint-key: how old lines "+
		"may be that no checkpoint covers (by default twice CHECKPOINT_INTERVAL)")
	flags.StringVarP(&a.output, "output", "o", "text", "text or json")
	return command
}

func stateDir(c *config.Config, args []string) string {
	if len(args) > 0 {
		return args[0]
	}
	return c.StateDir
}

// options returns the options of the verification. It adds mistakes to the faults.
func (a *AuditVerify) options(c *config.Config, faults *setting.Faults) journal.VerifyOptions {
	var o journal.VerifyOptions
	if ca := c.LoadCA(faults); ca != nil {
		o.CAs = append(o.CAs, ca.Certificate())
	}
	if next := c.LoadNextCA(faults); next != nil {
		o.CAs = append(o.CAs, next.Certificate())
	}
	for _, file := range a.formerCAs {
		if chain := config.ReadChain("--former-ca", file, faults); len(chain) > 0 {
			o.CAs = append(o.CAs, chain[0])
		}
	}
	for _, text := range a.witnessed {
		head, err := journal.ParseHead(text)
		faults.Add("--witness", err)
		o.Witnessed = append(o.Witnessed, head)
	}
	if a.CheckpointKey != "" {
		var err error
		o.CheckpointKey, err = config.ReadPublicKey(a.CheckpointKey)
		faults.Add("--checkpoint-key", err)
	}
	if a.Limit = 2 * c.Checkpoints.Interval; a.maxUnvouched != "" {
		faults.Add("--max-unvouched", setting.Duration(a.maxUnvouched, time.Second, &a.Limit))
	}
	return o
}

func (a *AuditVerify) verify(dir string, o journal.VerifyOptions, out, errs io.Writer) error {
	var clear func()
	o.Progress, clear = showProgress(errs, terminal.TakesControls(errs), time.Now())
	summary, err := journal.Verify(dir, o)
	clear()
	var wrong *journal.Fault
	switch {
	case errors.As(err, &wrong):
		return exit.With(exit.Refused, fmt.Errorf("the journal in %s is wrong: %w", dir, wrong))
	case err != nil:
		return err
	}
	if err := a.print(dir, summary, len(o.Witnessed) > 0, out); err != nil {
		return err
	}
	if err := a.Vouched(summary, time.Now()); err != nil {
		return exit.With(exit.Refused, fmt.Errorf("the journal in %s: %w", dir, err))
	}
	if summary.Torn > 0 && !journal.Locked(dir) {
		return exit.With(exit.Refused, fmt.Errorf("the journal in %s ends with %d bytes that "+
			"are no whole line, as after a power cut: hsm-signer moves them to a separate file "+
			"when it starts; compare the head with that of a witness", dir, summary.Torn))
	}
	return nil
}

// showProgress returns a function that shows progress on a terminal once it takes a while, and one
// that clears it.
func showProgress(w io.Writer, shows bool, began time.Time) (progress func(read, total int64),
	clear func()) {
	shown := false
	progress = func(read, total int64) {
		if shows && time.Since(began) >= terminal.QuietFor {
			shown = true
			fmt.Fprintf(w, "\rverifying: %d of %d MiB ", read>>20, total>>20)
		}
	}
	return progress, func() {
		if shown {
			fmt.Fprint(w, terminal.EraseLine)
		}
	}
}

// Vouched returns an error if checkpoints are verified and do not cover the journal, or have not
// covered its end for longer than the limit.
func (a *AuditVerify) Vouched(s journal.Summary, now time.Time) error {
	const forger = "whoever can write STATE_DIR may have changed them, or removed the checkpoints"
	switch age := now.Sub(s.VouchedAt); {
	case a.CheckpointKey == "":
		return nil
	case s.Checkpointed.Seq == 0:
		return errors.New("no checkpoint covers any of its lines: " + forger)
	case s.Unvouched > 0 && age > a.Limit:
		return fmt.Errorf("no checkpoint covers its last %d lines, since %s, which is longer "+
			"than %s (--max-unvouched): %s",
			s.Unvouched, s.VouchedAt.Format(time.RFC3339), a.Limit, forger)
	}
	return nil
}

func (a *AuditVerify) print(dir string, s journal.Summary, witnessed bool, out io.Writer) error {
	if a.output == "json" {
		return terminal.PrintJSON(out, s)
	}
	n, checkpointed := s.Counts, "whose signatures were not verified (--checkpoint-key)"
	switch {
	case n.Checkpoints == 0:
		checkpointed = "so none vouches for the journal"
	case s.Checkpointed.Seq > 0:
		checkpointed = "which vouch for all up to " + s.Checkpointed.String()
	}
	_, err := fmt.Fprintf(out, `journal          %s in %s, %d file(s)
requests         %d, of which %d are published, %d were orphaned, `+
		`%d are unconfirmed, %d are unfinished
certificates     %d
test signatures  %d
checkpoints      %d, %s
head             %s
every line is right up to the head
names, serial number, validity and key of each line are those of the to-be-signed certificate
requester, rule, request hash and outcome are protected by the chain alone; %s
`, s.Journal, dir, s.Files, n.Intents, n.Published, n.Orphaned, n.Unconfirmed, s.Unfinished,
		n.Signed, n.Probes, n.Checkpoints, checkpointed, s.Head,
		vouchers(s, witnessed))
	for _, ca := range s.RotatedCAs {
		if err == nil && ca.Certificates > 0 {
			_, err = fmt.Fprintf(out, "%d certificates are signed by %s, whose certificate is in "+
				"the lines of the kind %s alone; compare its SHA-256 with yours, or name it "+
				"(--former-ca): %s\n", ca.Certificates, terminal.OneLine(ca.Subject),
				journal.KindRotation, ca.SHA256)
		}
	}
	if err == nil && n.Rollbacks > 0 {
		_, err = fmt.Fprintf(out, "%d times someone accepted that a line seen by a witness is "+
			"missing (lines of the kind %s)\n", n.Rollbacks, journal.KindRollback)
	}
	return err
}

// vouchers names what vouches for the chain.
func vouchers(s journal.Summary, witnessed bool) string {
	var by []string
	if s.Checkpointed.Seq > 0 {
		by = append(by, "checkpoints")
	}
	if witnessed {
		by = append(by, "witnesses")
	}
	switch {
	case len(by) == 0:
		return "nothing vouches for the chain (--checkpoint-key, --witness)"
	case s.Unvouched > 0:
		return fmt.Sprintf("%s vouch for the chain, except its last %d lines",
			strings.Join(by, " and "), s.Unvouched)
	}
	return strings.Join(by, " and ") + " vouch for the chain"
}
