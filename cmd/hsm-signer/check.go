package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"hsm-signer/hsm"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

// A checkLine is one precondition, as it is printed.
type checkLine struct {
	Check  string `json:"check"`
	Result string `json:"result"` // ok, failed or skipped
	Detail string `json:"detail,omitempty"`
}

func newCheckCommand() *cobra.Command {
	settings := slices.Concat(serviceSettings, tokenSettings, logSettings)
	var output string
	command := &cobra.Command{
		Use:   "check",
		Short: "Check every precondition of \"run\", one line each",
		Long: `Goes through everything that "run" needs, in the order in which one would ask, and
says what to do where something is missing. It changes nothing, and tries the PIN once.
Exit code 0 only when all holds, 2 when something does not, 3 when that is the PIN.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, faults := readConfig(cmd, settings)
			c.requireToken(faults)
			c.requireKey(faults)
			if output != "text" && output != "json" {
				faults.addf("--output", "%q is neither text nor json", output)
			}
			p := c.loadParts(faults)
			if err := faults.err(); err != nil {
				return err
			}
			c.logLevel = max(c.logLevel, 4) // warnings and errors: the lines below say the rest
			newLogger(c, cmd.ErrOrStderr())
			return check(cmd.Context(), c, p, printerFor(output, cmd.OutOrStdout()))
		},
	}
	addFlags(command, settings)
	command.Flags().StringVarP(&output, "output", "o", "text", "text or json, one line each")
	return command
}

// check goes through the preconditions and prints each.
func check(ctx context.Context, c *config, p *parts, print func(checkLine)) error {
	var failed, pin bool
	for _, line := range slices.Concat(checkToken(ctx, c, p, &pin), checkCA(ctx, p), checkCluster(ctx, c, p), checkPolicy(p.policy)) {
		failed = failed || line.Result != "ok"
		print(line)
	}
	switch {
	case pin:
		return &exitError{exitPIN, errors.New("the PIN will not do: correct it before you try again, since tokens lock after a few tries")}
	case failed:
		return &exitError{exitRefused, errors.New("not every precondition holds")}
	}
	return nil
}

func checkToken(ctx context.Context, c *config, p *parts, pin *bool) []checkLine {
	var lines []checkLine
	for _, step := range hsm.Check(ctx, c.token, p.ca.Certificate().PublicKey) {
		*pin = *pin || errors.Is(step.Err, hsm.ErrPIN)
		line := lineOf(step.Name, step.Detail, step.Err)
		if step.Skipped {
			line.Result = "skipped"
		}
		lines = append(lines, line)
	}
	return lines
}

// checkCA looks at the dates; that the certificate is a CA's was checked when it
// was loaded.
func checkCA(_ context.Context, p *parts) []checkLine {
	cert := p.ca.Certificate()
	detail := fmt.Sprintf("%s, valid until %s", cert.Subject, cert.NotAfter.Format(time.RFC3339))
	return []checkLine{lineOf("CA certificate", detail, p.ca.ValidAt(time.Now()))}
}

func checkCluster(ctx context.Context, c *config, p *parts) []checkLine {
	server, err := p.client.Discovery().ServerVersion()
	if err != nil {
		return []checkLine{lineOf("API server", "", fmt.Errorf("%s does not answer: %w; see KUBECONFIG", p.server, err))}
	}
	lines := []checkLine{lineOf("API server", p.server+", Kubernetes "+server.GitVersion, nil)}
	api, err := kube.APIVersion(p.client)
	lines = append(lines, lineOf("API version", api, err))
	return append(lines, checkPermissions(ctx, c, p.client)...)
}

// checkPermissions asks the API server for each permission that "run" uses.
func checkPermissions(ctx context.Context, c *config, client kubernetes.Interface) []checkLine {
	var lines []checkLine
	for _, permission := range kube.Permissions(c.signerNames, c.approve) {
		allowed, err := permission.Allowed(ctx, client)
		if err == nil && !allowed {
			err = errors.New("not allowed: grant it to the service account, as deploy/rbac.yaml does")
		}
		lines = append(lines, lineOf("may "+permission.String(), "", err))
	}
	return lines
}

func checkPolicy(p *policy.Policy) []checkLine {
	return []checkLine{lineOf("policy", fmt.Sprintf("%d rules (%s), hash %.12s", len(p.Rules()), strings.Join(p.Rules(), ", "), p.Hash()), nil)}
}

func lineOf(name, detail string, err error) checkLine {
	if err != nil {
		return checkLine{Check: name, Result: "failed", Detail: err.Error()}
	}
	return checkLine{Check: name, Result: "ok", Detail: detail}
}

// printerFor returns how a line is printed.
func printerFor(output string, w io.Writer) func(checkLine) {
	if output == "json" {
		encoder := json.NewEncoder(w)
		return func(line checkLine) { _ = encoder.Encode(line) }
	}
	return func(line checkLine) {
		fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("%-8s %-34s %s", line.Result, line.Check, line.Detail), " "))
	}
}
