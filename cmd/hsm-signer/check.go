package main

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

	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

// A checkLine is one precondition, as it is printed.
type checkLine struct {
	Check  string `json:"check"`
	Result string `json:"result"` // ok, note, warning, failed or skipped
	Detail string `json:"detail,omitempty"`
}

func newCheckCommand() *cobra.Command {
	settings := slices.Concat(serviceSettings, tokenSettings, logSettings)
	var output string
	var tryPIN bool
	command := &cobra.Command{
		Use:   "check",
		Short: "Check every precondition of \"run\", one line each",
		Long: `Checks everything that "run" needs, and says what to do about each failure. It changes nothing.
It tries the PIN once, and not at all if the token reports a wrong try since the last login:
tokens lock after a few. --try-pin tries it all the same.

Each line begins with its result:
  ok       it holds
  note     it holds; there is something to know
  warning  it holds, but look at it
  failed   it does not hold; "run" would not work, or not for all requests
  skipped  not checked: an earlier check failed, or a permission is missing

The last line counts the results. With --output json there is no such line: each line is one
check, {"check","result","detail"}.

Exit code 0 if nothing failed, 2 if something did, 3 if that is the PIN.`,
		Example: `  hsm-signer check
  hsm-signer check --output json | jq -r 'select(.result == "failed") | .check + ": " + .detail'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, faults := readConfig(cmd, settings)
			if output != "text" && output != "json" {
				faults.addf("--output", "%q is neither text nor json", output)
			}
			c.forOwner = true
			p := c.loadParts(faults)
			if err := faults.err(); err != nil {
				return err
			}
			c.logLevel = max(c.logLevel, hclog.Warn) // the lines below say the rest
			newLogger(c, cmd.ErrOrStderr())
			return check(cmd.Context(), c, p, tryPIN, newCheckPrinter(output, cmd.OutOrStdout()), cmd.ErrOrStderr())
		},
	}
	addFlags(command, settings)
	command.Flags().StringVarP(&output, "output", "o", "text", "text or json, one line each")
	command.Flags().BoolVar(&tryPIN, "try-pin", false, "try the PIN although a wrong one was tried after the last login")
	return command
}

// check goes through the preconditions and prints each as soon as it is known.
func check(ctx context.Context, c *config, p *parts, tryPIN bool, printer *checkPrinter, errs io.Writer) error {
	var failed, pin bool
	report := func(name, detail string, err error) {
		line := lineOf(name, detail, err)
		failed = failed || line.Result == "failed" || errors.Is(err, errSkipped)
		pin = pin || errors.Is(err, hsm.ErrPIN)
		printer.line(line)
	}
	if c.mode != kube.Shadow {
		checkToken(ctx, c, p, tryPIN, report, errs)
		checkCA(p.ca, report)
	}
	c.checkState(report)
	c.checkFiles(report)
	checkCluster(ctx, c, p, report)
	checkPolicy(p.ca, p.policy, report)
	printer.summary()
	switch {
	case pin:
		return &exitError{exitPIN, errors.New("the PIN will not do: correct it before you try again, since tokens lock after a few tries")}
	case failed:
		return &exitError{exitRefused, errors.New("not every precondition holds")}
	}
	return nil
}

// errSkipped stands for a precondition that was not looked at, since an earlier one does not hold.
var errSkipped = errors.New("not looked at: what comes before does not hold")

// errUnread marks what may not be looked at, and need not be.
var errUnread = errors.New("not read")

// errWarning marks what holds and yet must not go unseen.
var errWarning = errors.New("warning")

// errNote marks what is worth knowing, and is no reason for concern.
var errNote = errors.New("note")

type reporter func(name, detail string, err error)

func checkToken(ctx context.Context, c *config, p *parts, tryPIN bool, report reporter, errs io.Writer) {
	unrecorded := c.token
	unrecorded.BeforeProbe = nil // the journal is not touched: a process that runs may have it open
	var steps []hsm.Step
	options := hsm.CheckOptions{TryPIN: tryPIN}
	if p.checkpoints != nil {
		options.Other, options.OtherAs = p.checkpoints.key, "checkpoint key"
	}
	progressing(errs, "asking the token", func() { steps = hsm.Check(ctx, unrecorded, p.ca.Certificate().PublicKey, options) })
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

// checkCA looks at the dates; that the certificate is a CA's was checked when it
// was loaded.
func checkCA(ca *issuer.CA, report reporter) {
	const name = "CA certificate"
	cert := ca.Certificate()
	report(name, fmt.Sprintf("%s, valid until %s", cert.Subject, localTime(cert.NotAfter)), ca.ValidAt(time.Now()))
	if !ca.HasRoot() {
		report(name, "the root is not in CA_CERT_FILE, so the chain was verified up to its last certificate only: append the root, which is never sent", errWarning)
	}
}

// serverTimeout bounds the questions of one kind to the API server.
const serverTimeout = 10 * time.Second

func checkCluster(ctx context.Context, c *config, p *parts, report reporter) {
	versionCtx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	server, err := p.client.Discovery().ServerVersionWithContext(versionCtx)
	if err != nil {
		report("API server", "", fmt.Errorf("%s does not answer: %w; see KUBECONFIG", p.server, err))
		return
	}
	report("API server", p.server+", Kubernetes "+server.GitVersion, nil)
	api, err := kube.APIVersion(ctx, p.client)
	if err == nil {
		err = kube.CheckSignerNames(ctx, p.client, c.signerNames, c.acceptUnset)
	}
	report("API version", api, err)
	checkPermissions(ctx, c, p, report)
	checkRequests(ctx, p, report)
	checkInstallation(ctx, c, p, report)
	checkNamespaces(ctx, c, p, report)
}

// checkPermissions asks the API server for each permission that "run" uses.
func checkPermissions(ctx context.Context, c *config, p *parts, report reporter) {
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	for _, permission := range c.permissions(p) {
		lacking, err := permission.Missing(ctx, p.client)
		all := len(lacking) == 1 && lacking[0].String() == permission.String()
		switch {
		case err != nil || len(lacking) == 0:
			report("may "+permission.String(), "", err)
		case all:
			report("may "+permission.String(), "", fmt.Errorf("not allowed: grant it to the service account, as %s does", permission.Manifest()))
		}
		for _, in := range lacking {
			if !all {
				report("may "+in.String(), "not allowed there, but in other namespaces of the policy: requests from there cannot be served; bind the ClusterRole hsm-signer-pods there, as deploy/components/pods-of-policy does, unless the namespace does not exist", errWarning)
			}
		}
	}
}

// podNamespaces are the namespaces in which a policy needs pods to be read; nil: in all.
func podNamespaces(p *policy.Policy) []string {
	namespaces, bounded := p.PodNamespaces()
	if !bounded {
		return nil
	}
	return namespaces
}

// checkNamespaces looks whether the namespaces that the policy's rules write out are there. It needs "get" of namespaces,
// which is the only use of that permission.
func checkNamespaces(ctx context.Context, c *config, p *parts, report reporter) {
	const name = "namespaces of the policy"
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	rules := p.policy.Namespaces()
	var there, unread, missing []string
	for _, namespace := range slices.Sorted(maps.Keys(rules)) {
		_, err := p.client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
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
		if len(there) > 0 && c.forEarlierCalico(rules[namespace]) {
			report(name, fmt.Sprintf("%s does not exist, which is right unless your Calico is an earlier release: "+
				"keep others from making it, and with it asking by the rule %s, with: kubectl create namespace %s",
				namespace, strings.Join(rules[namespace], ", "), namespace), errNote)
			continue
		}
		report(name, fmt.Sprintf("%s does not exist, and whoever may make it gets what the rules %s grant: make it yourself, empty, or take them out", namespace, strings.Join(rules[namespace], ", ")), errWarning)
	}
	if len(there) > 0 {
		report(name, strings.Join(there, ", "), nil)
	}
	if len(unread) > 0 {
		report(name, fmt.Sprintf("may not be read: %s; see that each is there (kubectl get namespaces), since whoever may make one gets what its rules grant, or allow \"get namespaces\" to have it checked", strings.Join(unread, ", ")), errUnread)
	}
}

// checkPolicy says what is in force, and loudly what is as wide as it can be.
func checkPolicy(ca *issuer.CA, p *policy.Policy, report reporter) {
	report("policy", fmt.Sprintf("%d rules, hash %.12s; %s", len(p.Rules()), p.Hash(), p.Budget()), nil)
	warnings, err := lintRules(ca, p)
	if err != nil { // a fault of the configuration, where it was loaded
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

// A checkPrinter prints the lines, and in text a summary of them.
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
		_ = printJSON(p.out, line)
		return
	}
	text := fmt.Sprintf("%-8s %-34s %s", line.Result, line.Check, line.Detail)
	fmt.Fprintln(p.out, harmless(strings.TrimRight(text, " ")))
}

// summary counts the lines. In JSON there is none: every line there has the same shape.
func (p *checkPrinter) summary() {
	if p.json {
		return
	}
	text := fmt.Sprintf("%d ok, %d failed", p.count["ok"], p.count["failed"])
	for _, c := range []struct{ result, thing string }{{"warning", "warning"}, {"note", "note"}} {
		if n := p.count[c.result]; n > 0 {
			text += ", " + plural(n, c.thing)
		}
	}
	if n := p.count["skipped"]; n > 0 {
		text += fmt.Sprintf(", %d skipped", n)
	}
	fmt.Fprintf(p.out, "\nsummary: %s\n", text)
}
