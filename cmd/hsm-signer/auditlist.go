package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/expiry"
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
	Pod           *podView          `json:"pod,omitempty"`         // with --expiring
}

// A podView is the pod that asked for a certificate.
type podView struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name,omitempty"`  // empty where tokens name no pod and none is found
	Lives     *bool  `json:"lives,omitempty"` // not known where the cluster cannot be read
	Owner     string `json:"owner,omitempty"` // its kind, namespace and name
	Restart   string `json:"restart,omitempty"`
}

// String is for the table.
func (p *podView) String() string {
	text := p.Namespace + "/" + cmp.Or(p.Name, "?")
	if p.Lives != nil {
		text += map[bool]string{true: " (lives)", false: " (gone)"}[*p.Lives]
	}
	return text
}

func newAuditListCommand() *cobra.Command {
	settings := settingsNamed("STATE_DIR", "KUBECONFIG")
	var l auditList
	command := &cobra.Command{
		Use:   "list [DIR]",
		Short: "List the certificates that were issued",
		Long: `Lists the certificates in the journal in DIR (by default STATE_DIR): to whom, for which names, until
when. Those that were published come first, in that order. Orphans were given up: nobody got them, as far
as the journal knows. It verifies the chain, and not the signatures: that is "audit verify".

With --expiring it also names the pod that asked. Nothing renews its certificate: a pod asks once, when it
starts. Where the cluster can be read (KUBECONFIG, or in a pod; "get" and "list" of pods, and "get" of replicasets
to know Deployments), it says whether the pod still lives, and the command that restarts it.`,
		Example: `  hsm-signer audit list
  hsm-signer audit list --expiring 30d
  hsm-signer audit list --expiring 30d --output json | jq -r .pod.restart | sort -u`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, faults := readConfig(cmd, settings)
			l.prepare(c, faults)
			if err := faults.err(); err != nil {
				return err
			}
			l.dir, l.out, l.errs = stateDir(c, args), cmd.OutOrStdout(), cmd.ErrOrStderr()
			if l.output == "json" {
				return l.json(cmd.Context())
			}
			return l.text(cmd.Context())
		},
	}
	addFlags(command, settings)
	command.Flags().StringVar(&l.expiring, "expiring", "", "only those that are valid now and expire within this time, such as 30d or 12h")
	command.Flags().StringVarP(&l.output, "output", "o", "text", "text, or json: one line each")
	return command
}

// auditList is what is listed, as the user names it.
type auditList struct {
	expiring, output string
	filter           journal.Filter
	holders          *expiry.Holders // nil where the cluster is not looked at
	dir              string
	out, errs        io.Writer
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

// prepare reads what the user wants, and adds what is wrong to the faults.
func (l *auditList) prepare(c *config, faults *configFaults) {
	var err error
	l.filter, err = expiringWithin(l.expiring, time.Now())
	faults.add("--expiring", err)
	requireOutput(l.output, faults)
	if l.expiring != "" && (c.kubeconfig != "" || os.Getenv("KUBERNETES_SERVICE_HOST") != "") {
		if client, _ := c.loadClient(faults, nil); client != nil {
			l.holders = expiry.NewHolders(client)
		}
	}
}

// all goes through the certificates, each with what is known of its pod.
func (l *auditList) all(ctx context.Context, give func(*journal.Issued, *podView) error) error {
	blind := map[string]bool{}
	for i, err := range journal.List(l.dir, l.filter) {
		if err != nil {
			return listFault(l.dir, err)
		}
		var pod *podView
		if l.expiring != "" {
			var fault error
			if pod, fault = l.podOf(ctx, i); fault != nil && !blind[fault.Error()] {
				blind[fault.Error()] = true
				fmt.Fprintf(l.errs, "hsm-signer: which pods still live is not known: %v\n", fault)
			}
		}
		if err := give(i, pod); err != nil {
			return err
		}
	}
	return nil
}

// podOf finds the pod of a certificate, as far as that can be known; nil when it was no pod's.
func (l *auditList) podOf(ctx context.Context, i *journal.Issued) (*podView, error) {
	c, ok := expiry.CertificateOf(i)
	if !ok {
		return nil, nil
	}
	view := &podView{Namespace: c.Account.Namespace, Name: c.PodName}
	if l.holders == nil {
		return view, nil
	}
	pod, lives, err := l.holders.Of(ctx, c)
	if err != nil {
		return view, err
	}
	view.Lives = &lives
	if lives {
		view.Name, view.Owner, view.Restart = pod.Name, pod.Owner.String(), pod.Restart()
	}
	return view, nil
}

func (l *auditList) json(ctx context.Context) error {
	encoder := json.NewEncoder(l.out)
	return l.all(ctx, func(i *journal.Issued, pod *podView) error {
		return encoder.Encode(issuedView{
			Serial: i.Serial, State: i.State.String(), UID: i.UID, Name: i.Name, Signer: i.Signer, Requester: i.Requester,
			RequestSHA256: i.RequestSHA256, Rule: i.Rule, PolicyHash: i.PolicyHash, Names: i.Names,
			SignedAt: i.SignedAt, NotBefore: i.NotBefore, NotAfter: i.NotAfter, Certificate: i.Signed, Pod: pod,
		})
	})
}

// text prints a table, and below it what to do.
func (l *auditList) text(ctx context.Context) error {
	table := tabwriter.NewWriter(l.out, 0, 0, 2, ' ', 0)
	columns := []string{"EXPIRES", "STATE", "REQUEST", "REQUESTER", "SERIAL", "NAMES"}
	if l.expiring != "" {
		columns = slices.Insert(columns, 4, "POD")
	}
	fmt.Fprintln(table, strings.Join(columns, "\t"))
	var restart []string
	err := l.all(ctx, func(i *journal.Issued, pod *podView) error {
		fields := []string{localTime(i.NotAfter), i.State.String(), i.Name, i.Requester.Username, i.Serial, strings.Join(i.Names, " ")}
		if l.expiring != "" {
			fields = slices.Insert(fields, 4, "")
		}
		if pod != nil {
			fields[4] = pod.String()
			if pod.Restart != "" && !slices.Contains(restart, pod.Restart) {
				restart = append(restart, pod.Restart)
			}
		}
		for n := range fields {
			fields[n] = onOneLine(fields[n])
		}
		_, err := fmt.Fprintln(table, strings.Join(fields, "\t"))
		return err
	})
	if err := errors.Join(err, table.Flush()); err != nil || len(restart) == 0 {
		return err
	}
	_, err = fmt.Fprintf(l.out, "\nNothing renews these certificates. Restart the pods that live before they end:\n  %s\n", strings.Join(restart, "\n  "))
	return err
}

func listFault(dir string, err error) error {
	return fmt.Errorf("the journal in %s cannot be read on (\"audit verify\" says more): %w", dir, err)
}

// onOneLine escapes what would change the table or the terminal.
func onOneLine(text string) string {
	quoted := strconv.QuoteToGraphic(text)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}
