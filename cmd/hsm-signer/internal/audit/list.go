package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/expiry"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/cmd/hsm-signer/internal/terminal"
	"hsm-signer/issuer/journal"
	"hsm-signer/kube/clientset"
	"hsm-signer/policy"
)

// An issuedView is one line of "audit list --output json".
type issuedView struct {
	Serial        string           `json:"serial"` // as openssl writes it
	State         string           `json:"state"`  // signed, published, orphaned or unconfirmed
	UID           string           `json:"uid"`    // of the request
	Name          string           `json:"name"`   // of the request
	Signer        string           `json:"signer"`
	Requester     policy.Requester `json:"requester"`
	RequestSHA256 string           `json:"requestSHA256"`
	Rule          string           `json:"rule"`
	PolicyHash    string           `json:"policyHash"`
	Names         []string         `json:"names"`
	SignedAt      time.Time        `json:"signedAt,omitzero"`
	NotBefore     time.Time        `json:"notBefore"`
	NotAfter      time.Time        `json:"notAfter"`
	// DER, base64; missing for an orphan that may not have been signed
	Certificate []byte `json:"certificate,omitempty"`
	Ended       bool   `json:"ended,omitempty"` // with --expiring: it has expired
	// with --expiring; missing if the journal names none
	Pod *podView `json:"pod,omitempty"`
}

// A podView is the pod that asked for a certificate. Node, Evidence and Strong are there with
// --stuck.
type podView struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name,omitempty"`  // empty if tokens name no pod and none is found
	Lives     *bool  `json:"lives,omitempty"` // true; missing if the cluster cannot be read
	Owner     string `json:"owner,omitempty"` // its kind, namespace and name
	Restart   string `json:"restart,omitempty"`
	Node      string `json:"node,omitempty"`
	Evidence  string `json:"evidence,omitempty"` // that it runs without its certificate
	// an init container ended before its certificate was there
	Strong bool `json:"strong,omitempty"`
}

// String is for the table.
func (p *podView) String() string {
	switch {
	case p == nil:
		return "unknown"
	case p.Lives == nil:
		return p.Namespace + "/" + cmp.Or(p.Name, "?") + " (unknown whether it lives)"
	}
	return p.Namespace + "/" + p.Name + " (lives)"
}

func newAuditListCommand() *cobra.Command {
	settings := config.Named("STATE_DIR", "KUBECONFIG")
	var l auditList
	command := &cobra.Command{
		Use:   "list [DIR]",
		Short: "List the certificates that were issued",
		Long: `Lists the certificates in the journal in DIR (by default STATE_DIR): the requester,
the names and the expiry. Published certificates come first, in the order of their publication.
Orphans were abandoned, and no client got them. A client may hold a certificate that is signed or
unconfirmed: assume that one does. The command verifies the chain, but no signatures: use "audit
verify" for that.

With --expiring it lists live pods whose newest certificate for a signer and name expires within
the time, or has expired in the last 30 days. Nothing renews it: a pod requests its certificate
once, when it starts. "soon" is the limit of the alerts and the status page: 30 days, or the last
third of a shorter lifetime. The live pods and the commands that restart them are read from the
cluster (KUBECONFIG, or in a pod; "get" and "list" of pods, and "get" of replicasets for
Deployments). If the cluster cannot be read, every certificate that may belong to such a pod is
listed. Certificates whose pod the journal does not name are always listed.

With --stuck it lists pods that run without the certificate that was issued to them, the evidence,
and the command that deletes each of them, so that its successor requests again. All init
containers of such a pod ended with 0, no main container has been ready or running for 60 seconds,
and at least one is waiting or ended with an error. This needs the cluster, as above, and tokens
that name their pod.`,
		Example: `  hsm-signer audit list
  hsm-signer audit list --expiring soon
  hsm-signer audit list --stuck
  hsm-signer audit list --expiring 60d --output json | jq -r '.pod.restart // empty' | sort -u`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, faults := config.Read(cmd, settings)
			l.prepare(c, faults)
			if err := faults.Err(); err != nil {
				return err
			}
			l.dir, l.out, l.errs = stateDir(c, args), cmd.OutOrStdout(), cmd.ErrOrStderr()
			if l.stuck {
				return l.listStuck(cmd.Context())
			}
			if l.output == "json" {
				return l.json(cmd.Context())
			}
			return l.text(cmd.Context())
		},
	}
	config.AddFlags(command, settings)
	config.AddCAFlags(command)
	l.addFlags(command)
	return command
}

func (l *auditList) addFlags(command *cobra.Command) {
	flags := command.Flags()
	flags.StringVar(&l.expiring, "expiring", "", "only those of live pods whose certificate has "+
		"expired, or expires within this time: soon, or such as 30d or 12h")
	flags.BoolVar(&l.stuck, "stuck", false, "only those of pods that run without the certificate "+
		"that was issued to them")
	flags.StringVarP(&l.output, "output", "o", "text", "text, or json: one line each")
}

// auditList holds the flags of "audit list".
type auditList struct {
	expiring, output string
	stuck            bool
	term             expiry.Term         // nil: all certificates
	client           clientset.Interface // nil where the cluster is not looked at
	dir              string
	out, errs        io.Writer
}

// termOf parses a time such as 30d or 12h, or "soon". It returns nil for "", which means all
// certificates.
func termOf(text string) (expiry.Term, error) {
	switch text {
	case "":
		return nil, nil
	case "soon":
		return expiry.Soon, nil
	}
	within, err := policy.ParseDuration(text)
	if err != nil || within <= 0 {
		return nil, fmt.Errorf("%q is neither soon nor a time, such as 30d, 2w or 12h", text)
	}
	return expiry.Within(within), nil
}

// prepare checks the flags, and adds mistakes to the faults.
func (l *auditList) prepare(c *config.Config, faults *setting.Faults) {
	var err error
	l.term, err = termOf(l.expiring)
	faults.Add("--expiring", err)
	faults.RequireOutput(l.output)
	switch {
	case l.stuck && l.expiring != "":
		faults.Addf("--stuck", "is set, and so is --expiring: set only one of them")
	case l.stuck: // without the cluster nothing is known
		if client, _ := c.LoadClient(faults, nil); client != nil {
			l.client = client
		}
	}
	if l.expiring != "" && (c.Kubeconfig != "" || os.Getenv("KUBERNETES_SERVICE_HOST") != "") {
		if client, _ := c.LoadClient(faults, nil); client != nil {
			l.client = client
		}
	}
}

// all calls give for each certificate that is wanted.
func (l *auditList) all(ctx context.Context, give func(issuedView) error) error {
	if l.term != nil {
		return l.allExpiring(ctx, give)
	}
	for i, err := range journal.List(l.dir, journal.Filter{}) {
		if err != nil {
			return listFault(l.dir, err)
		}
		if err := give(viewOf(i)); err != nil {
			return err
		}
	}
	return nil
}

// allExpiring calls give for the certificates of live pods, and then for those of unknown pods.
func (l *auditList) allExpiring(ctx context.Context, give func(issuedView) error) error {
	now := time.Now()
	found, err := expiry.Find(ctx, l.dir, l.client, now, l.term)
	if err != nil {
		return listFault(l.dir, err)
	}
	if found.Fault != nil {
		fmt.Fprintf(l.errs, "hsm-signer: it is not known which pods still live: %v\n", found.Fault)
	}
	var views []issuedView
	for _, e := range found.Pods {
		lives := true
		views = append(views, expiringView(e.Certificate, now, &podView{
			Namespace: e.Pod.Namespace, Name: e.Pod.Name, Lives: &lives,
			Owner: e.Pod.Owner.String(), Restart: e.Pod.Restart(),
		}))
	}
	for _, c := range found.Unknown {
		var pod *podView
		if c.OfPod() {
			pod = &podView{Namespace: c.Account.Namespace, Name: c.PodName}
		}
		views = append(views, expiringView(c, now, pod))
	}
	for _, view := range views {
		if err := give(view); err != nil {
			return err
		}
	}
	return nil
}

func expiringView(c expiry.Certificate, now time.Time, pod *podView) issuedView {
	view := viewOf(c.Issued)
	view.Pod, view.Ended = pod, c.Ended(now)
	return view
}

func viewOf(i *journal.Issued) issuedView {
	return issuedView{
		Serial: i.Serial, State: i.State.String(), UID: i.UID, Name: i.Name, Signer: i.Signer,
		Requester:     i.Requester,
		RequestSHA256: i.RequestSHA256, Rule: i.Rule, PolicyHash: i.PolicyHash, Names: i.Names,
		SignedAt: i.SignedAt, NotBefore: i.NotBefore, NotAfter: i.NotAfter, Certificate: i.Signed,
	}
}

func (l *auditList) json(ctx context.Context) error {
	return l.all(ctx, func(view issuedView) error { return terminal.PrintJSON(l.out, view) })
}

// text prints a table, and below it the commands.
func (l *auditList) text(ctx context.Context) error {
	table := tabwriter.NewWriter(l.out, 0, 0, 2, ' ', 0)
	columns := []string{"EXPIRES", "STATE", "REQUEST", "REQUESTER", "SERIAL", "NAMES"}
	if l.term != nil {
		columns = slices.Insert(columns, 4, "POD")
	}
	fmt.Fprintln(table, strings.Join(columns, "\t"))
	var commands restarts
	err := l.all(ctx, func(view issuedView) error {
		fields := []string{terminal.LocalTime(view.NotAfter), view.State, view.Name,
			view.Requester.Username, view.Serial, strings.Join(view.Names, " ")}
		if l.term != nil {
			fields = slices.Insert(fields, 4, view.Pod.String())
			if fields[1] = "ends"; view.Ended {
				fields[1] = "ENDED"
			}
			commands.add(view)
		}
		for n := range fields {
			fields[n] = terminal.OneLine(fields[n])
		}
		_, err := fmt.Fprintln(table, strings.Join(fields, "\t"))
		return err
	})
	if err := errors.Join(err, table.Flush()); err != nil {
		return err
	}
	return commands.print(l.out)
}

// restarts are commands that restart pods.
type restarts struct{ now, soon []string }

// add adds a live pod. Those whose certificates have expired come first.
func (r *restarts) add(view issuedView) {
	switch {
	case view.Pod == nil || view.Pod.Restart == "" ||
		slices.Contains(slices.Concat(r.now, r.soon), view.Pod.Restart):
	case view.Ended:
		r.now = append(r.now, view.Pod.Restart)
	default:
		r.soon = append(r.soon, view.Pod.Restart)
	}
}

func (r *restarts) print(out io.Writer) error {
	for _, part := range []struct {
		what     string
		commands []string
	}{
		{"The certificates of these pods have expired, and their connections fail. Restart them " +
			"now:", r.now},
		{"Nothing renews these certificates. Restart the pods before they expire:", r.soon},
	} {
		if len(part.commands) > 0 {
			if _, err := fmt.Fprintf(out, "\n%s\n  %s\n", part.what,
				strings.Join(part.commands, "\n  ")); err != nil {
				return err
			}
		}
	}
	return nil
}

func listFault(dir string, err error) error {
	return fmt.Errorf("the journal in %s cannot be read further (\"audit verify\" says more): %w",
		dir, err)
}
