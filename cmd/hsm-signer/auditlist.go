package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"hsm-signer/issuer/journal"
)

// An issuedView is one line of "audit list --output json".
type issuedView struct {
	Serial        string            `json:"serial"` // as openssl writes it
	State         string            `json:"state"`  // signed, published or orphaned
	UID           string            `json:"uid"`    // of the request
	Name          string            `json:"name"`   // of the request
	Signer        string            `json:"signer"`
	Requester     journal.Requester `json:"requester"`
	RequestSHA256 string            `json:"requestSHA256"`
	Rule          string            `json:"rule"`
	PolicyHash    string            `json:"policyHash"`
	Names         []string          `json:"names"`
	SignedAt      time.Time         `json:"signedAt,omitzero"`
	NotBefore     time.Time         `json:"notBefore"`
	NotAfter      time.Time         `json:"notAfter"`
	Certificate   []byte            `json:"certificate,omitempty"` // DER, base64; missing where an orphan is not known to have been signed
}

func newAuditListCommand() *cobra.Command {
	settings := settingsNamed("STATE_DIR")
	var expiring, output string
	command := &cobra.Command{
		Use:   "list [DIR]",
		Short: "List the certificates that were issued",
		Long: `Lists the certificates in the journal in DIR (by default STATE_DIR): to whom, for which names, until
when. Those that were published come first, in that order. Orphans were given up: nobody got them, as far
as the journal knows. It verifies the chain, and not the
signatures: that is "audit verify".`,
		Example: "  hsm-signer audit list --expiring 30d",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, faults := readConfig(cmd, settings)
			filter, err := expiringWithin(expiring, time.Now())
			faults.add("--expiring", err)
			requireOutput(output, faults)
			if err := faults.err(); err != nil {
				return err
			}
			if output == "json" {
				return listJSON(stateDir(c, args), filter, cmd.OutOrStdout())
			}
			return listText(stateDir(c, args), filter, cmd.OutOrStdout())
		},
	}
	addFlags(command, settings)
	command.Flags().StringVar(&expiring, "expiring", "", "only those that are valid now and expire within this time, such as 30d or 12h")
	command.Flags().StringVarP(&output, "output", "o", "text", "text, or json: one line each")
	return command
}

// expiringWithin reads a time such as 30d or 12h; an empty one takes all certificates.
func expiringWithin(text string, now time.Time) (journal.Filter, error) {
	if text == "" {
		return journal.Filter{}, nil
	}
	within, err := time.ParseDuration(text)
	if days, is := strings.CutSuffix(text, "d"); is {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16)
		within = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || within <= 0 {
		return journal.Filter{}, fmt.Errorf("%q is not a time, such as 30d or 12h", text)
	}
	return journal.Filter{ExpiresAfter: now, ExpiresBefore: now.Add(within)}, nil
}

func listJSON(dir string, filter journal.Filter, out io.Writer) error {
	encoder := json.NewEncoder(out)
	for i, err := range journal.List(dir, filter) {
		if err != nil {
			return listFault(dir, err)
		}
		err := encoder.Encode(issuedView{
			Serial: i.Serial, State: i.State.String(), UID: i.UID, Name: i.Name, Signer: i.Signer, Requester: i.Requester,
			RequestSHA256: i.RequestSHA256, Rule: i.Rule, PolicyHash: i.PolicyHash, Names: i.Names,
			SignedAt: i.SignedAt, NotBefore: i.NotBefore, NotAfter: i.NotAfter, Certificate: i.Signed,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func listText(dir string, filter journal.Filter, out io.Writer) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "EXPIRES\tSTATE\tREQUEST\tREQUESTER\tSERIAL\tNAMES")
	for i, err := range journal.List(dir, filter) {
		if err != nil {
			return listFault(dir, err)
		}
		fields := []string{i.NotAfter.UTC().Format(time.RFC3339), i.State.String(), i.Name, i.Requester.Username, i.Serial, strings.Join(i.Names, " ")}
		for n := range fields {
			fields[n] = onOneLine(fields[n])
		}
		fmt.Fprintln(table, strings.Join(fields, "\t"))
	}
	return table.Flush()
}

func listFault(dir string, err error) error {
	return fmt.Errorf("the journal in %s cannot be read on (\"audit verify\" says more): %w", dir, err)
}

// onOneLine escapes what would change the table or the terminal.
func onOneLine(text string) string {
	quoted := strconv.QuoteToGraphic(text)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}
