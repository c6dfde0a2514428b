package rotate

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	coordinationv1 "k8s.io/api/coordination/v1"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/expiry"
	"hsm-signer/cmd/hsm-signer/internal/rotation"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/cmd/hsm-signer/internal/terminal"
	"hsm-signer/cmd/hsm-signer/internal/witness"
	"hsm-signer/issuer"
)

// keysOf returns the keys of the CAs that the configuration names, and adds what is wrong to the
// faults.
func keysOf(c *config.Config, faults *setting.Faults) (k rotation.Keys) {
	if ca := c.LoadCA(faults); ca != nil {
		k.CA = ca.KeySHA256()
	}
	if next := c.LoadNextCA(faults); next != nil {
		k.Next = next.KeySHA256()
	}
	return k
}

// configured is what the configuration says of both CAs.
type configured struct {
	ca, next *issuer.CA // next is nil if it is not configured, or its file has a mistake
	roots    rotation.Roots
	faults   setting.Faults // of the files of the next CA
	refused  string         // what the process says of the file of the next CA; empty: it is in use
}

// casOf loads what the configuration names, and adds what is wrong to the faults. A file of the
// next CA may have a mistake: a replica that runs has what the file held before.
func casOf(c *config.Config, faults *setting.Faults) (own configured) {
	own.ca, own.roots.CA = c.LoadCA(faults), c.LoadRoots(faults)
	own.next, own.roots.Next = c.LoadNextCA(&own.faults), c.LoadNextRoots(&own.faults)
	return own
}

// inUse reports whether a process has what the files hold, as far as is known.
func (c configured) inUse() bool { return len(c.faults) == 0 && c.refused == "" }

// all returns the CAs that are configured.
func (c configured) all() []*issuer.CA {
	if c.next == nil {
		return []*issuer.CA{c.ca}
	}
	return []*issuer.CA{c.ca, c.next}
}

// of returns the CA with the key; nil if it is not configured.
func (c configured) of(key [sha256.Size]byte) *issuer.CA {
	for _, ca := range c.all() {
		if ca.KeySHA256() == key {
			return ca
		}
	}
	return nil
}

func newStatusCommand() *cobra.Command {
	settings := config.Named("KUBECONFIG", "LEASE_NAMESPACE", "LEASE_NAME", "CA_CERT_FILE",
		"TRUST_BUNDLE_FILE", "NEXT_CA_CERT_FILE", "NEXT_TRUST_BUNDLE_FILE", "STATE_DIR",
		"LISTEN_ADDRESS")
	var output string
	command := &cobra.Command{
		Use:   "status",
		Short: "Show the phase, and which certificates of each CA are in use",
		Long: `Shows the phase as the lease has it, and what the journal in STATE_DIR knows of the
certificates of both CAs: how many are in use (valid, and the pod lives), when the last one ends,
and which pods with one were created before both CAs were trusted. Each replica's journal knows only
what that replica has signed: run this command in each.

If a file of the next CA is refused, it says why. It asks the hsm-signer at LISTEN_ADDRESS.`,
		Example: `  hsm-signer ca rotate status
  kubectl -n hsm-signer exec hsm-signer-0 -- hsm-signer ca rotate status`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, faults := config.Read(cmd, settings)
			faults.RequireOutput(output)
			own := casOf(c, faults)
			t := open(c, faults)
			if err := faults.Err(); err != nil {
				return err
			}
			var unasked error
			if own.next != nil || len(own.faults) > 0 {
				own.refused, unasked = askRefused(cmd.Context(), c)
			}
			v, err := t.view(cmd.Context(), c.StateDir, own)
			if err != nil {
				return err
			}
			v.setRefused(own.refused, unasked)
			return v.print(output, cmd.OutOrStdout())
		},
	}
	config.AddFlags(command, settings)
	config.AddCAFlags(command)
	command.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return command
}

// A view is what "status" shows.
type view struct {
	State    rotation.State `json:"state"`
	Fault    string         `json:"fault,omitempty"`   // why the state cannot be used
	Refused  []string       `json:"refused,omitempty"` // files of the next CA, and why
	Leader   string         `json:"leader,omitempty"`
	CAs      []caView       `json:"cas"`
	Unknown  string         `json:"unknown,omitempty"` // why something is not known
	Early    []string       `json:"early"`             // pods, with the commands that restart them
	Journals []journalView  `json:"journals"`
}

// A caView is one CA of the configuration.
type caView struct {
	Variable string       `json:"variable"`
	Subject  string       `json:"subject"`
	Key      rotation.Key `json:"key"`
	NotAfter time.Time    `json:"notAfter"`
	Signs    bool         `json:"signs"`
	InUse    int          `json:"inUse"`
	Last     time.Time    `json:"last,omitzero"` // the end of the last certificate
}

// A journalView is a journal of this or another replica, as the lease has it.
type journalView struct {
	ID    string    `json:"id"`
	Place string    `json:"place"`
	Time  time.Time `json:"time"` // when its replica last led
}

// view returns how the rotation stands.
func (t *target) view(ctx context.Context, dir string, own configured) (*view, error) {
	found, err := t.get(ctx)
	if err != nil {
		return nil, err
	}
	v := &view{Leader: leader(found), Refused: own.faults}
	var keys rotation.Keys
	var certs []*x509.Certificate
	for n, ca := range own.all() {
		cert := ca.Certificate()
		certs = append(certs, cert)
		v.CAs = append(v.CAs, caView{Variable: "CA_CERT_FILE", Subject: cert.Subject.String(),
			Key: rotation.KeyOf(cert), NotAfter: cert.NotAfter.UTC()})
		if keys.CA = v.CAs[0].Key; n > 0 {
			v.CAs[n].Variable, keys.Next = "NEXT_CA_CERT_FILE", v.CAs[n].Key
		}
	}
	v.setState(found, keys, own)
	usage, err := expiry.FindUsage(ctx, dir, t.client, time.Now(), certs, v.State.Trusted)
	if err != nil {
		v.Unknown = err.Error()
		return v, nil
	}
	v.setUsage(usage)
	return v, nil
}

// setState takes over what the lease says.
func (v *view) setState(l *coordinationv1.Lease, keys rotation.Keys, own configured) {
	var err error
	if v.State, err = rotation.Read(l.Annotations); err == nil && own.inUse() {
		err = v.State.MaySign(keys, own.roots, own.of)
	}
	if err != nil {
		v.Fault = err.Error()
	}
	for n := range v.CAs {
		v.CAs[n].Signs = err == nil && v.CAs[n].Key == v.State.Signer(keys)
	}
	for _, j := range witness.Journals(l.Annotations) {
		v.Journals = append(v.Journals, journalView{string(j.ID), j.Place, j.Time})
	}
}

// setRefused takes over what the process says of the file of the next CA's certificate, or why that
// is not known. That replaces what this command has found in the file.
func (v *view) setRefused(said string, err error) {
	switch {
	case err != nil:
		err = fmt.Errorf("whether it refuses a file of the next CA: %w", err)
		v.Unknown = strings.TrimPrefix(v.Unknown+"; "+err.Error(), "; ")
	case said != "":
		v.Refused = append(slices.DeleteFunc(v.Refused, func(fault string) bool {
			return strings.HasPrefix(fault, "NEXT_CA_CERT_FILE: ")
		}), said)
	}
}

// setUsage takes over what the journal knows.
func (v *view) setUsage(usage expiry.Usage) {
	for n, of := range usage.Of {
		v.CAs[n].InUse, v.CAs[n].Last = of.Live, of.Last.UTC()
	}
	for _, early := range usage.Early {
		v.Early = append(v.Early, early.String())
	}
	if usage.Fault != nil {
		v.Unknown = usage.Fault.Error()
	}
}

func (v *view) print(output string, out io.Writer) error {
	if output == "json" {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(v)
	}
	_, err := io.WriteString(out, terminal.Escape(v.String()))
	return err
}

// String returns the view for people.
func (v *view) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "phase      %s\n", v.State)
	if v.Fault != "" {
		fmt.Fprintf(&text, "FAULT      %s\n", v.Fault)
	}
	for _, refused := range v.Refused {
		fmt.Fprintf(&text, "REFUSED    %s\n", refused)
	}
	if v.Leader == "" {
		text.WriteString("leader     none\n")
	} else {
		fmt.Fprintf(&text, "leader     %s\n", v.Leader)
	}
	for _, ca := range v.CAs {
		fmt.Fprintf(&text, "\n%s: %s\n  key          %s\n  valid until  %s\n  signs        %t\n"+
			"  in use       %s of live pods, as this journal knows%s\n", ca.Variable, ca.Subject,
			ca.Key, terminal.LocalTime(ca.NotAfter), ca.Signs,
			terminal.Plural(ca.InUse, "certificate"), lastOf(ca.Last))
	}
	if v.Unknown != "" {
		fmt.Fprintf(&text, "\nNOT KNOWN  %s\n", v.Unknown)
	}
	if len(v.Early) > 0 {
		fmt.Fprintf(&text, "\nPods that were created before %s, and how to restart them:\n",
			v.State.Trusted.Format(time.RFC3339))
	}
	for _, early := range v.Early {
		fmt.Fprintf(&text, "  %s\n", early)
	}
	text.WriteString("\nJournals of the replicas that have led:\n")
	for _, j := range v.Journals {
		fmt.Fprintf(&text, "  %s  %s, last at %s\n", j.ID, j.Place, terminal.LocalTime(j.Time))
	}
	return text.String()
}

func lastOf(last time.Time) string {
	if last.IsZero() {
		return ""
	}
	return "; the last one ends at " + terminal.LocalTime(last)
}
