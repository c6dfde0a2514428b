// Package check holds the "check" command: it checks every precondition of "run", says what to do
// about each failure, and changes nothing.
package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/judge"
	"hsm-signer/cmd/hsm-signer/internal/logging"
	"hsm-signer/cmd/hsm-signer/internal/service"
	"hsm-signer/cmd/hsm-signer/internal/terminal"
	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/kube"
	"hsm-signer/kube/access"
	"hsm-signer/policy"
)

// A checkLine is the printed result of one precondition.
type checkLine struct {
	CA     string `json:"ca,omitempty"` // in CONFIG_FILE
	Check  string `json:"check"`
	Result string `json:"result"` // ok, note, warning, failed or skipped
	Detail string `json:"detail,omitempty"`
}

func NewCommand() *cobra.Command {
	settings := slices.Concat(config.ServiceSettings, config.TokenSettings, config.LogSettings)
	var output string
	var tryPIN bool
	command := &cobra.Command{
		Use:   "check",
		Short: "Check every precondition of \"run\", one line each",
		Long: `Checks everything that "run" needs, and says what to do about each failure. It
changes nothing. It tries the PIN once, but not if the token reports a wrong PIN since the last
login: tokens lock after a few. --try-pin forces the try.

Each line begins with its result:
  ok       it holds
  note     it holds; there is something to know
  warning  it holds, but needs your attention
  failed   it does not hold; "run" would not work, or not for all requests
  skipped  not checked: an earlier check failed, or a permission is missing

The last line counts the results. With --output json there is no such line: each line is one
check, {"check","result","detail"}. With CONFIG_FILE every CA is checked, and each line names its
CA, in JSON as "ca".

Exit code 0 if nothing failed, 2 if something did, 3 if that is the PIN.`,
		Example: `  hsm-signer check
  hsm-signer check --output json | jq -r 'select(.result == "failed") | .check + ": " + .detail'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, faults := config.ReadProcess(cmd, settings)
			faults.RequireOutput(output)
			for _, ca := range p.CAs {
				ca.Config.ForOwner = true
			}
			services := service.LoadAll(p, faults, nil)
			if err := faults.Err(); err != nil {
				return err
			}
			level := max(p.LogLevel, hclog.Warn) // the lines below say the rest
			logging.New(level, p.LogFormat, cmd.ErrOrStderr())
			return check(cmd.Context(), services, tryPIN,
				newCheckPrinter(output, cmd.OutOrStdout()), cmd.ErrOrStderr())
		},
	}
	config.AddFlags(command, settings)
	command.Flags().StringVarP(&output, "output", "o", "text", "text or json, one line each")
	command.Flags().BoolVar(&tryPIN, "try-pin", false, "try the PIN even if a wrong one was tried "+
		"after the last login")
	return command
}

// check checks the preconditions of each CA, and prints each result as soon as it is known.
func check(ctx context.Context, services []*service.Service, tryPIN bool, printer *checkPrinter,
	errs io.Writer) error {
	var failed, pin bool
	for _, s := range services {
		checkOne(ctx, s, pinTries{tryPIN, &pin}, func(name, detail string, err error) {
			line := lineOf(name, detail, err)
			line.CA = s.Name
			failed = failed || line.Result == "failed" || errors.Is(err, errSkipped)
			pin = pin || errors.Is(err, hsm.ErrPIN)
			printer.line(line)
		}, errs)
	}
	printer.summary()
	switch {
	case pin:
		return exit.With(exit.PIN, errors.New("the PIN is not usable: correct it before you try "+
			"again: tokens lock after a few tries"))
	case failed:
		return exit.With(exit.Refused, errors.New("not every precondition holds"))
	}
	return nil
}

// checkOne checks the preconditions of one CA.
func checkOne(ctx context.Context, s *service.Service, pins pinTries, report reporter,
	errs io.Writer) {
	if s.Mode != kube.Shadow {
		checkKeys(ctx, s, pins, report, errs)
	}
	checkState(s.Config, report)
	checkFiles(s.Config, report)
	checkCluster(ctx, s, report)
	checkPolicy(s.CA, s.Policy, report)
}

// errSkipped marks a precondition that was not checked, because an earlier one does not hold.
var errSkipped = errors.New("not checked: an earlier check failed")

// errUnread marks what may not be read, and need not be.
var errUnread = errors.New("not read")

// errWarning marks what holds but needs attention.
var errWarning = errors.New("warning")

// errNote marks what is worth knowing and no reason for concern.
var errNote = errors.New("note")

type reporter func(name, detail string, err error)

// pinTries says whether PINs may be tried: none after one was refused, since it may be another
// token's too, and tokens lock after a few tries.
type pinTries struct {
	afterWrong bool  // also after a wrong one that the token reports
	refused    *bool // one was refused
}

// checkKeys checks the CA and its key, and of a rotation the next CA and its key.
func checkKeys(ctx context.Context, s *service.Service, pins pinTries, report reporter,
	errs io.Writer) {
	checkToken(ctx, s, pins, report, errs)
	checkCA(s.CA, "CA_CERT_FILE", report)
	if s.Next == nil {
		return
	}
	next := func(name, detail string, err error) { report("next CA: "+name, detail, err) }
	checkSteps(ctx, s.Next.Token, s.Next.CA, nil, pins, next, errs)
	checkCA(s.Next.CA, "NEXT_CA_CERT_FILE", next)
}

func checkToken(ctx context.Context, s *service.Service, pins pinTries, report reporter,
	errs io.Writer) {
	var checkpoint *hsm.CheckpointKey
	key, err := s.Key(nil) // nothing is recorded: a process that runs may have the journal open
	if err == nil {
		checkpoint, err = s.CheckpointKey(key)
	}
	if err != nil { // was reported when the configuration was loaded
		report("token", "", err)
		return
	}
	checkSteps(ctx, s.Token, s.CA, checkpoint, pins, report, errs)
}

// checkSteps checks the key of a CA in its token.
func checkSteps(ctx context.Context, token hsm.Config, ca *issuer.CA,
	checkpoint *hsm.CheckpointKey, pins pinTries, report reporter, errs io.Writer) {
	if *pins.refused {
		report("token", "", errSkipped)
		return
	}
	options := hsm.CheckOptions{TryPIN: pins.afterWrong, Checkpoint: checkpoint}
	var steps []hsm.Step
	terminal.ShowProgress(errs, "asking the token", func() {
		steps = hsm.Check(ctx, token, ca.Certificate().PublicKey, options)
	})
	for _, step := range steps {
		switch {
		case step.Skipped:
			step.Err = errSkipped
		case step.Warning:
			step.Err = errWarning
		}
		report(step.Name, step.Detail, step.Err)
	}
}

// checkCA checks the dates. The rest of the certificate was checked when it was loaded.
func checkCA(ca *issuer.CA, variable string, report reporter) {
	const name = "CA certificate"
	cert := ca.Certificate()
	report(name, fmt.Sprintf("%s, valid until %s", cert.Subject, terminal.LocalTime(cert.NotAfter)),
		ca.ValidAt(time.Now()))
	if !ca.HasRoot() {
		report(name, "the root is not in "+variable+", so the chain was verified only up to its "+
			"last certificate: append the root, which is never sent", errWarning)
	}
}

// serverTimeout bounds all calls of one kind to the API server.
const serverTimeout = 10 * time.Second

func checkCluster(ctx context.Context, s *service.Service, report reporter) {
	versionCtx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	server, err := s.Client.ServerVersion(versionCtx)
	checkCredential(s.Credential.Expiries(), time.Now(), report) // a plugin has run by now
	address := s.Credential.Server()
	if err != nil {
		report("API server", "",
			fmt.Errorf("%s does not respond: %w; check KUBECONFIG", address, err))
		return
	}
	report("API server", address+", Kubernetes "+server.GitVersion, nil)
	version, err := s.Requests().Check(ctx)
	report("API version", version, err)
	if s.PodCertificates {
		checkPods(ctx, s, report)
	}
	if s.Anchors != nil {
		checkTrustBundle(ctx, s, report)
	}
	checkPermissions(ctx, s, report)
	checkRequests(ctx, s, report)
	state := checkRotation(ctx, s, report)
	checkInstallation(ctx, s, trustedCAs(s, state), report)
	checkNamespaces(ctx, s, report)
}

// checkPods checks what the certificates of pods need in addition: the API, and a clock that is
// near enough.
func checkPods(ctx context.Context, s *service.Service, report reporter) {
	api, err := s.PodRequests().Find(ctx)
	if err != nil {
		report("API of pod certificates", "", err)
		return
	}
	report("API of pod certificates", api.Version(), nil)
	report("clock of the API server", "", s.Clock.Fault())
	checkHeld(ctx, s, report)
}

// checkPermissions asks the API server for each permission that "run" uses.
func checkPermissions(ctx context.Context, s *service.Service, report reporter) {
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	for _, permission := range s.Permissions() {
		lacking, err := permission.Missing(ctx, access.Reviews{Client: s.Client})
		all := len(lacking) == 1 && lacking[0].String() == permission.String()
		switch {
		case err != nil || len(lacking) == 0:
			report("may "+permission.String(), "", err)
		case all:
			report("may "+permission.String(), "", fmt.Errorf("not allowed: grant it to the "+
				"service account, as %s does", permission.Manifest()))
		}
		for _, in := range lacking {
			if !all {
				report("may "+in.String(), "not allowed in this namespace, but in others of the "+
					"policy: its requests cannot be served; bind the ClusterRole "+
					"hsm-signer-pods in it, as deploy/components/pods-of-policy does, unless it "+
					"does not exist", errWarning)
			}
		}
	}
}

// checkNamespaces checks that the namespaces in the policy's rules exist. It needs "get" of
// namespaces, and nothing else does.
func checkNamespaces(ctx context.Context, s *service.Service, report reporter) {
	const name = "namespaces of the policy"
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	rules := s.Policy.Namespaces()
	var there, unread, missing []string
	for _, namespace := range slices.Sorted(maps.Keys(rules)) {
		_, err := s.Client.Namespaces().Get(ctx, namespace, metav1.GetOptions{})
		switch {
		case apierrors.IsForbidden(err):
			unread = append(unread, namespace)
		case apierrors.IsNotFound(err):
			missing = append(missing, namespace)
		case err != nil:
			report(name, "", fmt.Errorf("read the namespace %s: %w", namespace, err))
		default:
			there = append(there, namespace)
		}
	}
	for _, namespace := range missing {
		if len(there) > 0 && forEarlierCalico(s.PolicyFile, rules[namespace]) {
			report(name, fmt.Sprintf("%s does not exist, which is right unless your Calico is "+
				"an earlier release: whoever creates it gets what the rule %s grants; to "+
				"prevent that: kubectl create namespace %s",
				namespace, strings.Join(rules[namespace], ", "), namespace), errNote)
			continue
		}
		report(name, fmt.Sprintf("%s does not exist, and whoever creates it gets what the rules "+
			"%s grant: create it yourself, empty, or remove the rules",
			namespace, strings.Join(rules[namespace], ", ")), errWarning)
	}
	if len(there) > 0 {
		report(name, strings.Join(there, ", "), nil)
	}
	if len(unread) > 0 {
		report(name, fmt.Sprintf("may not be read: %s; check that each exists (kubectl get "+
			"namespaces), because whoever creates a missing one gets what its rules grant; or "+
			"allow \"get namespaces\" to have it checked", strings.Join(unread, ", ")), errUnread)
	}
}

// checkPolicy reports the policy, and warns of rules that are as wide as they can be.
func checkPolicy(ca *issuer.CA, p *policy.Policy, report reporter) {
	report("policy", fmt.Sprintf("%d rules, hash %.12s; %s", len(p.Rules()), p.Hash(), p.Budget()),
		nil)
	warnings, err := judge.LintRules(ca, p)
	if err != nil { // was reported when the configuration was loaded
		report("policy", "", err)
	}
	for _, warning := range warnings {
		report("policy", warning, errWarning)
	}
}

func lineOf(name, detail string, err error) checkLine {
	switch {
	case errors.Is(err, errNote):
		return checkLine{Check: name, Result: "note", Detail: detail}
	case errors.Is(err, errWarning):
		return checkLine{Check: name, Result: "warning", Detail: detail}
	case errors.Is(err, errUnread):
		return checkLine{Check: name, Result: "skipped", Detail: detail}
	case errors.Is(err, errSkipped):
		return checkLine{Check: name, Result: "skipped", Detail: err.Error()}
	case err != nil:
		return checkLine{Check: name, Result: "failed", Detail: err.Error()}
	}
	return checkLine{Check: name, Result: "ok", Detail: detail}
}

// A checkPrinter prints the lines, and in text a summary.
type checkPrinter struct {
	out   io.Writer
	json  bool
	count map[string]int // by result
}

func newCheckPrinter(output string, out io.Writer) *checkPrinter {
	return &checkPrinter{out, output == "json", map[string]int{}}
}

func (p *checkPrinter) line(line checkLine) {
	p.count[line.Result]++
	if p.json {
		_ = terminal.PrintJSON(p.out, line)
		return
	}
	name := line.Check
	if line.CA != "" {
		name = line.CA + ": " + name
	}
	text := fmt.Sprintf("%-8s %-34s %s", line.Result, name, line.Detail)
	fmt.Fprintln(p.out, terminal.Escape(strings.TrimRight(text, " ")))
}

// summary prints the counts. In JSON there is none: every line has the same shape.
func (p *checkPrinter) summary() {
	if p.json {
		return
	}
	text := fmt.Sprintf("%d ok, %d failed", p.count["ok"], p.count["failed"])
	for _, c := range []struct{ result, thing string }{{"warning", "warning"}, {"note", "note"}} {
		if n := p.count[c.result]; n > 0 {
			text += ", " + terminal.Plural(n, c.thing)
		}
	}
	if n := p.count["skipped"]; n > 0 {
		text += fmt.Sprintf(", %d skipped", n)
	}
	fmt.Fprintf(p.out, "\nsummary: %s\n", text)
}

// countRequests returns the number of requests in the cluster, of all signers.
func countRequests(ctx context.Context, s *service.Service) (int, error) {
	api, err := s.Requests().Find(ctx)
	if err != nil {
		return 0, err
	}
	return api.Count(ctx)
}

// checkRequests reports the number of requests in the cluster.
func checkRequests(ctx context.Context, s *service.Service, report reporter) {
	const name = "requests in the cluster"
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	n, err := countRequests(ctx, s)
	switch crowded := config.AdviseCleanUp(n); {
	case err != nil:
		detail := fmt.Sprintf("unknown; thousands would slow clients down: %v", err)
		report(name, detail, errUnread)
	case crowded != "":
		report(name, crowded, errWarning)
	default:
		report(name, fmt.Sprintf("%d, of all signers", n), nil)
	}
}
