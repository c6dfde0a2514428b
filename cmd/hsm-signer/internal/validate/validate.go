// Package validate holds "policy validate", which lists every mistake in policy files, offline.
package validate

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/cli"
	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/judge"
	"hsm-signer/cmd/hsm-signer/internal/terminal"
	"hsm-signer/issuer"
	"hsm-signer/policy"
)

// A policyReport is the result for one policy file, and one line of the JSON output.
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

func NewCommand() *cobra.Command {
	settings := config.Named("CLUSTER_DOMAIN", "TRUST_DOMAIN", "CERTIFICATE_LIFETIME",
		"CA_CERT_FILE")
	var output string
	command := &cobra.Command{
		Use:   "validate FILE…",
		Short: "Check policy files, offline",
		Long: `Lists every mistake in a policy with its line, and the warnings that "check" gives.
It needs neither a cluster nor a token, so it fits a CI. It does not check who owns the file:
"run" and "check" do that.

Output: text, or json, one line for each file:
{"file","verdict","rules","mistakes":[{"line","message"}],"warnings":[{"message"}]} with the
verdict "valid" or "invalid". Exit code 0 if all are valid, whatever the warnings; 2 if any is
not; 1 if a file cannot be read.

With CA_CERT_FILE a rule is a mistake too if the CA can issue nothing that it grants. Without it
a note on standard error says that the CA's constraints were not checked.`,
		Example: `  hsm-signer policy validate mine.yaml
  hsm-signer policy validate mine.yaml --output json | jq -r '.warnings[].message'
  kubectl get configmap policy -o jsonpath='{.data.policy\.yaml}' |
      hsm-signer policy validate /dev/stdin`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: cli.CompletePolicies,
		RunE: func(cmd *cobra.Command, files []string) error {
			c, faults := config.Read(cmd, settings)
			c.AnyPolicy = true
			faults.RequireOutput(output)
			ca := c.LoadOptionalCA(faults)
			if err := faults.Err(); err != nil {
				return err
			}
			judge.NoteCA(c, cmd.ErrOrStderr())
			return validateAll(c, files, ca, output, cmd.OutOrStdout())
		},
	}
	config.AddFlags(command, settings)
	config.AddCAFlags(command)
	command.Flags().StringVarP(&output, "output", "o", "text", "text, or json: one line for "+
		"each file")
	return command
}

// validateAll continues after a file that cannot be read.
func validateAll(c *config.Config, files []string, ca *issuer.CA, output string,
	out io.Writer) error {
	var faults []error
	invalid := false
	for _, file := range files {
		c.PolicyFile = file
		text, err := c.ReadPolicy()
		if err != nil {
			faults = append(faults, err)
			continue
		}
		v := validate(c, text, ca)
		invalid = invalid || v.Verdict == "invalid"
		if err := v.print(output, out); err != nil {
			return err
		}
	}
	switch {
	case len(faults) > 0:
		return errors.Join(faults...)
	case invalid:
		return exit.With(exit.Refused, errors.New("not every policy is valid"))
	}
	return nil
}

func validate(c *config.Config, text []byte, ca *issuer.CA) policyReport {
	v := policyReport{File: c.PolicyFile, Verdict: "valid", Rules: []string{},
		Mistakes: []finding{}, Warnings: []finding{}}
	p, err := policy.Parse(text,
		policy.Options{ClusterDomain: c.ClusterDomain, MaxLifetime: c.Lifetime})
	if err != nil {
		v.Verdict, v.Mistakes = "invalid", mistakesIn(err)
		return v
	}
	warnings, err := judge.LintRules(ca, p)
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

// lineOfMistake matches the line in a mistake.
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
		return terminal.PrintJSON(out, v)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %s, ", v.File, v.Verdict)
	if v.Verdict == "valid" {
		fmt.Fprintf(&text, "%s, %s\n", terminal.Plural(len(v.Rules), "rule"),
			terminal.Plural(len(v.Warnings), "warning"))
	} else {
		fmt.Fprintf(&text, "%s\n", terminal.Plural(len(v.Mistakes), "mistake"))
	}
	for _, f := range v.Mistakes {
		fmt.Fprintf(&text, "  %s\n", f)
	}
	for _, f := range v.Warnings {
		fmt.Fprintf(&text, "  warning: %s\n", f)
	}
	_, err := io.WriteString(out, terminal.Escape(text.String()))
	return err
}
