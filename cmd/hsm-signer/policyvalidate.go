package main

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"hsm-signer/issuer"
	"hsm-signer/policy"
)

// A policyReport is what is wrong with one policy file, and one line of the output in JSON.
type policyReport struct {
	File     string    `json:"file"`
	Verdict  string    `json:"verdict"` // valid or invalid
	Rules    []string  `json:"rules"`   // their names, empty if invalid
	Mistakes []finding `json:"mistakes"`
	Warnings []finding `json:"warnings"`
}

// A finding is a mistake or a warning.
type finding struct {
	Line    int    `json:"line,omitempty"` // 0: it concerns the whole file
	Message string `json:"message"`
}

func (f finding) String() string {
	if f.Line > 0 {
		return fmt.Sprintf("line %d: %s", f.Line, f.Message)
	}
	return f.Message
}

func newPolicyValidateCommand() *cobra.Command {
	settings := settingsNamed("CLUSTER_DOMAIN", "CERTIFICATE_LIFETIME", "CA_CERT_FILE")
	var output string
	command := &cobra.Command{
		Use:   "validate FILE…",
		Short: "Check policy files, offline",
		Long: `Lists every mistake in a policy with its line, and the warnings that "check" gives. It needs
neither a cluster nor a token, so it fits a CI. Who owns the file is not checked here: "run"
and "check" do that.

Output: text, or json, one line for each file:
{"file","verdict","rules","mistakes":[{"line","message"}],"warnings":[{"message"}]} with the
verdict "valid" or "invalid". Exit code 0 when all are valid, whatever the warnings; 2 when
any is not; 1 when a file cannot be read.

With CA_CERT_FILE a rule of which the CA can issue nothing is a mistake too; without it, a note on
standard error says that the CA's constraints were not checked.`,
		Example: `  hsm-signer policy validate mine.yaml
  hsm-signer policy validate mine.yaml --output json | jq -r '.warnings[].message'
  kubectl get configmap policy -o jsonpath='{.data.policy\.yaml}' | hsm-signer policy validate /dev/stdin`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeFiles,
		RunE: func(cmd *cobra.Command, files []string) error {
			c, faults := readConfig(cmd, settings)
			c.anyPolicy = true
			requireOutput(output, faults)
			ca := c.loadOptionalCA(faults)
			if err := faults.err(); err != nil {
				return err
			}
			c.noteCA(cmd.ErrOrStderr())
			return c.validateAll(files, ca, output, cmd.OutOrStdout())
		},
	}
	addFlags(command, settings)
	command.Flags().StringVarP(&output, "output", "o", "text", "text, or json: one line for each file")
	return command
}

// completeFiles offers files, and the built-in policies.
func completeFiles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return policy.BuiltInNames(), cobra.ShellCompDirectiveDefault
}

// validateAll goes on after a file that cannot be read.
func (c *config) validateAll(files []string, ca *issuer.CA, output string, out io.Writer) error {
	var faults []error
	invalid := false
	for _, file := range files {
		c.policyFile = file
		text, err := c.readPolicy()
		if err != nil {
			faults = append(faults, err)
			continue
		}
		v := c.validate(text, ca)
		invalid = invalid || v.Verdict == "invalid"
		if err := v.print(output, out); err != nil {
			return err
		}
	}
	switch {
	case len(faults) > 0:
		return errors.Join(faults...)
	case invalid:
		return &exitError{exitRefused, errors.New("not every policy is valid")}
	}
	return nil
}

func (c *config) validate(text []byte, ca *issuer.CA) policyReport {
	v := policyReport{File: c.policyFile, Verdict: "valid", Rules: []string{}, Mistakes: []finding{}, Warnings: []finding{}}
	p, err := policy.Parse(text, policy.Options{ClusterDomain: c.clusterDomain, MaxLifetime: c.lifetime})
	if err != nil {
		v.Verdict, v.Mistakes = "invalid", mistakesIn(err)
		return v
	}
	warnings, err := lintRules(ca, p)
	if err != nil {
		v.Verdict, v.Mistakes = "invalid", mistakesIn(err)
		return v
	}
	v.Rules = p.Rules()
	for _, warning := range warnings {
		v.Warnings = append(v.Warnings, finding{Message: warning})
	}
	return v
}

// lineOfMistake is how a mistake names its line.
var lineOfMistake = regexp.MustCompile(`^(.*?)(?:yaml: )?line ([0-9]+): `)

// mistakesIn returns each mistake of a policy that could not be parsed.
func mistakesIn(err error) []finding {
	messages := []string{err.Error()}
	var mistakes policy.Mistakes
	joined, isJoined := err.(interface{ Unwrap() []error })
	switch {
	case errors.As(err, &mistakes):
		messages = mistakes
	case isJoined: // one for each rule
		messages = nil
		for _, one := range joined.Unwrap() {
			messages = append(messages, one.Error())
		}
	}
	all := make([]finding, 0, len(messages))
	for _, message := range messages {
		var f finding
		if m := lineOfMistake.FindStringSubmatch(message); m != nil {
			f.Line, _ = strconv.Atoi(m[2])
			message = m[1] + message[len(m[0]):]
		}
		f.Message = message
		all = append(all, f)
	}
	return all
}

func (v policyReport) print(output string, out io.Writer) error {
	if output == "json" {
		return printJSON(out, v)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %s, ", v.File, v.Verdict)
	if v.Verdict == "valid" {
		fmt.Fprintf(&text, "%s, %s\n", plural(len(v.Rules), "rule"), plural(len(v.Warnings), "warning"))
	} else {
		fmt.Fprintf(&text, "%s\n", plural(len(v.Mistakes), "mistake"))
	}
	for _, f := range v.Mistakes {
		fmt.Fprintf(&text, "  %s\n", f)
	}
	for _, f := range v.Warnings {
		fmt.Fprintf(&text, "  warning: %s\n", f)
	}
	_, err := io.WriteString(out, harmless(text.String()))
	return err
}

// plural is a number of things.
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
