package audit

import (
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/terminal"
	"hsm-signer/issuer/journal"
)

// A shownView is one line of "audit show --output json".
type shownView struct {
	issuedView
	History []eventView `json:"history"`
}

// An eventView is one line of the journal about the certificate.
type eventView struct {
	Kind journal.Kind `json:"kind"`
	Seq  uint64       `json:"seq"` // of the line
	Time time.Time    `json:"time"`
	Why  string       `json:"why,omitempty"`
	Lost string       `json:"lost,omitempty"` // of a rollback: the head that is missing
}

func newAuditShowCommand() *cobra.Command {
	settings := config.Named("STATE_DIR")
	var output string
	command := &cobra.Command{
		Use:   "show SERIAL|REQUEST [DIR]",
		Short: "Show everything the journal has about one certificate",
		Long: `Shows everything that the journal in DIR (by default STATE_DIR) has about one
certificate: the requester, the rule that granted it, its outcome with the time, and the
certificate itself.

SERIAL is the serial number in hex, as openssl prints it: with or without colons, in upper or lower
case. REQUEST is the UID or the name of the CertificateSigningRequest. A name can be reused, and a
request whose certificate was orphaned can get another one: every match is shown.

Names, serial number and validity come from the certificate. The command verifies the chain, but no
signatures: use "audit verify" for that.

Exit code 1 if nothing matches.`,
		Example: `  hsm-signer audit show calico-node-7k2xw
  hsm-signer audit show "$(openssl x509 -in node.crt -noout -serial)"
  hsm-signer audit show calico-node-7k2xw --output json | jq .history`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, faults := config.Read(cmd, settings)
			faults.RequireOutput(output)
			if strings.TrimSpace(args[0]) == "" {
				faults.Addf("SERIAL|REQUEST", "is empty: give a serial number, or the UID or "+
					"the name of a request")
			}
			if err := faults.Err(); err != nil {
				return err
			}
			s := &auditShow{wanted: strings.TrimSpace(args[0]), dir: stateDir(c, args[1:])}
			s.serial = serialNumber(s.wanted)
			return s.show(output, cmd.OutOrStdout())
		},
	}
	config.AddFlags(command, settings)
	config.AddCAFlags(command)
	command.Flags().StringVarP(&output, "output", "o", "text", "text, or json: one line each")
	return command
}

// auditShow finds certificates in one journal.
type auditShow struct {
	wanted string
	serial string // wanted as a serial number; empty if it is none
	dir    string

	certificates int        // that the journal has
	id           journal.ID // of the journal, which its serial numbers begin with
}

// serialNumber returns a serial number in the form of the journal, or "" if the text is none.
func serialNumber(text string) string {
	text = strings.ReplaceAll(strings.TrimPrefix(text, "serial="), ":", "")
	if text == "" || len(text) > 64 || strings.Trim(text, "0123456789abcdefABCDEF") != "" {
		return ""
	}
	number, _ := new(big.Int).SetString(text, 16)
	return journal.FormatSerial(number)
}

func (s *auditShow) show(output string, out io.Writer) error {
	shown := 0
	for i, err := range journal.Find(s.dir, s.matches) {
		if err != nil {
			return listFault(s.dir, err)
		}
		view := shownViewOf(i)
		if output == "json" {
			err = terminal.PrintJSON(out, view)
		} else {
			_, err = io.WriteString(out, view.text(shown > 0))
		}
		if err != nil {
			return err
		}
		shown++
	}
	if shown == 0 {
		return s.nothing()
	}
	return nil
}

func (s *auditShow) matches(i *journal.Intent) bool {
	s.certificates++
	if len(i.Serial) > 8 {
		s.id = journal.ID(strings.ToLower(i.Serial[:8]))
	}
	return i.UID == s.wanted || i.Name == s.wanted || s.serial != "" && i.Serial == s.serial
}

// nothing returns the error if no certificate matches.
func (s *auditShow) nothing() error {
	if len(s.serial) == 40 && s.id != "" && !s.id.Carries(s.serial) {
		return fmt.Errorf("show the certificate %s: the journal in %s does not have it: its "+
			"serial number begins with the id of another journal, %s, and this one is %s; look "+
			"in the STATE_DIR of each other hsm-signer, and in the archive",
			s.serial, s.dir, strings.ToLower(s.serial[:8]), s.id)
	}
	return fmt.Errorf("show %s: none of the %d certificates in the journal in %s has this "+
		"serial number, request UID or request name; list them with \"hsm-signer audit list\", "+
		"look in the STATE_DIR of each other hsm-signer, and look in refusals.log for a request "+
		"that was refused",
		terminal.OneLine(s.wanted), s.certificates, s.dir)
}

func shownViewOf(i *journal.Issued) shownView {
	view := shownView{issuedView: viewOf(i)}
	for _, e := range i.History {
		event := eventView{Kind: e.Kind, Seq: e.Seq, Time: e.Time, Why: e.Why}
		if e.Kind == journal.KindRollback {
			event.Lost = e.Lost.String()
		}
		view.History = append(view.History, event)
	}
	return view
}

// stateMeans explains the states.
var stateMeans = map[string]string{
	"intended":    "it may have been signed, and is not published",
	"signed":      "it may have been published; assume that the client holds it",
	"published":   "the API server has it",
	"orphaned":    "it was abandoned, and no client got it",
	"unconfirmed": "the API server may have it; assume that the client holds it",
}

// text returns one field a line, and the certificate in PEM.
func (v shownView) text(another bool) string {
	var b strings.Builder
	line := func(field,
		value string) {
		fmt.Fprintf(&b, "%-15s %s\n", field, terminal.OneLine(value))
	}
	if another {
		b.WriteString("\n")
	}
	line("request", v.Name)
	line("UID", v.UID)
	line("signer", v.Signer)
	line("requester", v.Requester.Username)
	if v.Requester.UID != "" {
		line("requester UID", v.Requester.UID)
	}
	for _, group := range v.Requester.Groups {
		line("group", group)
	}
	for _, key := range slices.Sorted(maps.Keys(v.Requester.Extra)) {
		for _, value := range v.Requester.Extra[key] {
			line("extra", key+"="+value)
		}
	}
	line("rule", v.Rule)
	line("policy hash", v.PolicyHash)
	line("request SHA-256", v.RequestSHA256)
	for _, name := range v.Names {
		line("name", name)
	}
	line("serial", v.Serial)
	line("not before", terminal.LocalTime(v.NotBefore))
	line("not after", terminal.LocalTime(v.NotAfter))
	line("state", v.State+": "+stateMeans[v.State])
	for _, e := range v.History {
		line(string(e.Kind), e.String())
	}
	if v.Certificate == nil {
		line("certificate", "its signature is not in the journal")
		return b.String()
	}
	b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.Certificate}))
	return b.String()
}

// String returns when it happened, and why.
func (e eventView) String() string {
	text := fmt.Sprintf("%s, line %d", terminal.LocalTime(e.Time), e.Seq)
	switch {
	case e.Why != "":
		text += ": " + e.Why
	case e.Lost != "":
		text += ": someone accepted that the line " + e.Lost + " is missing; lines about this " +
			"certificate may be missing too"
	}
	return text
}
