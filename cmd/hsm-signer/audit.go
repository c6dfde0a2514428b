package main

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hsm-signer/issuer/journal"
)

func newAuditCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "audit",
		Short: "Verify and read the journal of what was signed",
		Long: `Verifies and reads the journal of what was signed. hsm-signer may run meanwhile. Only accept-rollback
changes the journal.`,
	}
	command.AddCommand(newAuditVerifyCommand(), newAuditListCommand(), newAuditShowCommand(), newAuditAcceptCommand())
	return command
}

// auditVerify is what is verified against, as the user names it.
type auditVerify struct {
	formerCAs     []string
	witnessed     []string
	checkpointKey string
	maxUnvouched  string
	output        string

	limit time.Duration // how old lines may be that no checkpoint vouches for
}

func newAuditVerifyCommand() *cobra.Command {
	settings := settingsNamed("CA_CERT_FILE", "STATE_DIR", "CHECKPOINT_INTERVAL")
	var a auditVerify
	command := &cobra.Command{
		Use:   "verify [DIR]",
		Short: "Verify every line of the journal",
		Long: `Goes through the journal in DIR (by default STATE_DIR) and verifies that each line holds the hash of
the one before, that none is missing, that names, serial number, validity and key are those of the
to-be-signed certificate, that each certificate was made for its intent and is signed by the CA, and
that no request and no serial number has two.

The rest of a line, such as the requester and the rule, is protected by the chain alone. Whoever can write
the journal can compute the chain again, unless something vouches for it: --checkpoint-key verifies the
checkpoints, and fails if none covers the journal or if its end has not been covered for --max-unvouched.
--witness names a head that somebody has kept, SEQ:SHA256 as "audit verify" prints it, and shows an end
that was cut off.

Exit code 0 if all is right, 2 if not: the first line that is wrong is named.`,
		Example: `  hsm-signer audit verify
  hsm-signer audit verify /backup/hsm-signer --ca-cert-file ca.crt --witness SEQ:SHA256`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, faults := readConfig(cmd, settings)
			options := a.options(c, faults)
			requireOutput(a.output, faults)
			if err := faults.err(); err != nil {
				return err
			}
			return a.verify(stateDir(c, args), options, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	addFlags(command, settings)
	flags := command.Flags()
	flags.StringArrayVar(&a.formerCAs, "former-ca", nil, "PEM file with the certificate of a CA that signed before this one (may be repeated)")
	flags.StringArrayVar(&a.witnessed, "witness", nil, "head that someone else has kept, SEQ:SHA256 (may be repeated)")
	flags.StringVar(&a.checkpointKey, "checkpoint-key", "", "PEM file with the public key that signs checkpoints; without it their signatures are not verified")
	flags.StringVar(&a.maxUnvouched, "max-unvouched", "", "with --checkpoint-key: how old the end of the journal may be that no checkpoint covers (by default twice CHECKPOINT_INTERVAL)")
	flags.StringVarP(&a.output, "output", "o", "text", "text or json")
	return command
}

func stateDir(c *config, args []string) string {
	if len(args) > 0 {
		return args[0]
	}
	return c.stateDir
}

func requireOutput(output string, faults *configFaults) {
	if output != "text" && output != "json" {
		faults.addf("--output", "%q is neither text nor json", output)
	}
}

// options reads what the user names, and adds what is wrong to the faults.
func (a *auditVerify) options(c *config, faults *configFaults) journal.VerifyOptions {
	var o journal.VerifyOptions
	if ca := c.loadCA(faults); ca != nil {
		o.CAs = append(o.CAs, ca.Certificate())
	}
	for _, file := range a.formerCAs {
		if chain := readChain("--former-ca", file, faults); len(chain) > 0 {
			o.CAs = append(o.CAs, chain[0])
		}
	}
	for _, text := range a.witnessed {
		head, err := journal.ParseHead(text)
		faults.add("--witness", err)
		o.Witnessed = append(o.Witnessed, head)
	}
	if a.checkpointKey != "" {
		var err error
		o.CheckpointKey, err = readPublicKey(a.checkpointKey)
		faults.add("--checkpoint-key", err)
	}
	if a.limit = 2 * c.checkpoints.interval; a.maxUnvouched != "" {
		faults.add("--max-unvouched", readDuration(a.maxUnvouched, time.Second, &a.limit))
	}
	return o
}

func readPublicKey(path string) (crypto.PublicKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("%s holds no PEM block of the type PUBLIC KEY", path)
	}
	return x509.ParsePKIXPublicKey(block.Bytes)
}

func (a *auditVerify) verify(dir string, o journal.VerifyOptions, out, errs io.Writer) error {
	var clear func()
	o.Progress, clear = showProgress(errs, takesControls(errs), time.Now())
	summary, err := journal.Verify(dir, o)
	clear()
	var wrong *journal.Fault
	switch {
	case errors.As(err, &wrong):
		return &exitError{exitRefused, fmt.Errorf("the journal in %s is wrong: %w", dir, wrong)}
	case err != nil:
		return err
	}
	if err := a.print(dir, summary, len(o.Witnessed) > 0, out); err != nil {
		return err
	}
	if err := a.vouched(summary, time.Now()); err != nil {
		return &exitError{exitRefused, fmt.Errorf("the journal in %s: %w", dir, err)}
	}
	if summary.Torn > 0 && !journal.Locked(dir) {
		return &exitError{exitRefused, fmt.Errorf("the journal in %s ends with %d bytes that are no whole line, as a power cut leaves them: hsm-signer moves them into a file of their own when it starts; compare the head with what a witness has", dir, summary.Torn)}
	}
	return nil
}

// showProgress returns what shows progress on a terminal, when it takes longer than one likes to wait, and what takes
// that away again.
func showProgress(w io.Writer, terminal bool, began time.Time) (progress func(read, total int64), clear func()) {
	shown := false
	progress = func(read, total int64) {
		if terminal && time.Since(began) >= quietFor {
			shown = true
			fmt.Fprintf(w, "\rverifying: %d of %d MiB ", read>>20, total>>20)
		}
	}
	return progress, func() {
		if shown {
			fmt.Fprint(w, eraseLine)
		}
	}
}

// vouched returns an error if checkpoints are verified and do not cover the journal, or have not covered its
// end for longer than the limit.
func (a *auditVerify) vouched(s journal.Summary, now time.Time) error {
	const forger = "whoever can write STATE_DIR may have changed them, or removed the checkpoints"
	switch age := now.Sub(s.VouchedAt); {
	case a.checkpointKey == "":
		return nil
	case s.Checkpointed.Seq == 0:
		return errors.New("no checkpoint covers any of its lines: " + forger)
	case s.Unvouched > 0 && age > a.limit:
		return fmt.Errorf("no checkpoint covers its last %d lines, since %s, which is longer than %s (--max-unvouched): %s",
			s.Unvouched, s.VouchedAt.Format(time.RFC3339), a.limit, forger)
	}
	return nil
}

func (a *auditVerify) print(dir string, s journal.Summary, witnessed bool, out io.Writer) error {
	if a.output == "json" {
		return printJSON(out, s)
	}
	n, checkpointed := s.Counts, "whose signatures were not verified (--checkpoint-key)"
	switch {
	case n.Checkpoints == 0:
		checkpointed = "so none vouches for the journal"
	case s.Checkpointed.Seq > 0:
		checkpointed = "which vouch for all up to " + s.Checkpointed.String()
	}
	_, err := fmt.Fprintf(out, `journal          %s in %s, %d file(s)
requests         %d, of which %d are published, %d were orphaned, %d are unconfirmed, %d are unfinished
certificates     %d
test signatures  %d
checkpoints      %d, %s
head             %s
every line is right up to the head
names, serial number, validity and key of each line are those of the to-be-signed certificate
requester, rule, request hash and outcome are protected by the chain alone; %s
`, s.Journal, dir, s.Files, n.Intents, n.Published, n.Orphaned, n.Unconfirmed, s.Unfinished, n.Signed, n.Probes, n.Checkpoints, checkpointed, s.Head,
		vouchers(s, witnessed))
	if err == nil && n.Rollbacks > 0 {
		_, err = fmt.Fprintf(out, "%d times somebody accepted that a line which a witness has seen is missing (lines of the kind %s)\n", n.Rollbacks, journal.KindRollback)
	}
	return err
}

// vouchers says what vouches for the chain.
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
		return fmt.Sprintf("%s vouch for the chain, but for its last %d lines", strings.Join(by, " and "), s.Unvouched)
	}
	return strings.Join(by, " and ") + " vouch for the chain"
}
