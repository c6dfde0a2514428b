// Package policytest holds "policy test", which runs a user's own test cases against a policy.
package policytest

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/judge"
	"hsm-signer/kube"
	"hsm-signer/policy"
	"hsm-signer/policy/strictyaml"
)

// A testFile holds cases of a user's own policy tests. docs/policy.md explains it.
type testFile struct {
	Cases []testCase `yaml:"cases"`
}

// A testCase is a request and its expected verdict.
type testCase struct {
	Name   string `yaml:"name"`
	Signer string `yaml:"signer"` // optional: the signer name that is asked
	// username; a service account's groups are added
	As     string   `yaml:"as"`
	Groups []string `yaml:"groups"` // more groups
	// optional: more of what the API server says about the requester
	Extra map[string][]string `yaml:"extra"`
	// optional: the live pod that the token is bound to
	Pod         *testPod     `yaml:"pod"`
	CommonName  string       `yaml:"commonName"`  // optional: the first of the DNS names
	DNSNames    []string     `yaml:"dnsNames"`    //
	IPAddresses []netip.Addr `yaml:"ipAddresses"` //
	URIs        []string     `yaml:"uris"`
	Emails      []string     `yaml:"emailAddresses"`
	Key         string       `yaml:"key"`      // optional: ecdsa-p256
	Usages      []string     `yaml:"usages"`   // optional: those that Calico asks for
	Lifetime    string       `yaml:"lifetime"` // optional: none is asked for
	// optional: it is a PodCertificateRequest, for whose pod the rule names all
	PodCertificate bool              `yaml:"podCertificate"`
	Annotations    map[string]string `yaml:"annotations"` // optional, with podCertificate
	// optional: all names of the certificate, as "policy explain" prints them
	Names  []string `yaml:"names"`
	Expect string   `yaml:"expect"` // granted, refused or waiting
	Rule   string   `yaml:"rule"`   // optional: the rule that grants
	Reason string   `yaml:"reason"` // optional: the reason of the denial
}

type testPod struct {
	Name        string       `yaml:"name"`
	Node        string       `yaml:"node"`        // optional
	IPAddresses []netip.Addr `yaml:"ipAddresses"` // optional: none yet
	HostNetwork bool         `yaml:"hostNetwork"` // optional
	// optional, with podCertificate: the Services that select it; the one called as the subdomain
	// is headless
	Services  []string `yaml:"services"`
	Hostname  string   `yaml:"hostname"`
	Subdomain string   `yaml:"subdomain"`
}

func NewCommand() *cobra.Command {
	settings := config.Named("POLICY_FILE", "BLOCKED_KEYS_FILE", "CLUSTER_DOMAIN",
		"TRUST_DOMAIN",
		"CERTIFICATE_LIFETIME", "CA_CERT_FILE")
	var policyFile, output string
	command := &cobra.Command{
		Use:   "test [DIR|FILE…]",
		Short: "Run your own tests of a policy",
		Long: `Runs test cases against a policy: who requests what, and the expected verdict.
Cases are read from the files, and from every *.yaml and *.yml file in the directories, except
policies. Without arguments it runs the cases in the current directory. docs/policy.md shows how
to write cases.

With CA_CERT_FILE the CA's constraints are checked too; without it, a note on standard error says
that they were not.

Output: text; json, one line for each case: {"file","case","result","message"} with the
result "passed", "failed" or "fault"; or junit, one XML report, for Jenkins and GitLab.
Exit code 0 if all pass, 2 if any does not, 1 on an error.`,
		Example: `  hsm-signer policy test tests/ --policy mine.yaml
  hsm-signer policy test tests/ --policy mine.yaml --output junit > report.xml`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, faults := config.Read(cmd, settings)
			c.PolicyFile, c.AnyPolicy = cmp.Or(policyFile, c.PolicyFile), true
			decider := judge.New(c, c.LoadPolicy(faults), faults, cmd.ErrOrStderr())
			faults.RequireOutput(output, "junit")
			if len(args) == 0 {
				args = testFilesHere(faults)
			}
			if err := faults.Err(); err != nil {
				return err
			}
			return testPolicy(decider, args, output, cmd.OutOrStdout())
		},
	}
	config.AddFlags(command, settings)
	config.AddCAFlags(command)
	command.Flags().StringVar(&policyFile, "policy", "", "the same as --policy-file")
	command.Flags().StringVarP(&output, "output", "o", "text", "text, json (one line for each "+
		"case) or junit")
	_ = command.RegisterFlagCompletionFunc("output",
		cobra.FixedCompletions([]string{"text", "json", "junit"}, cobra.ShellCompDirectiveDefault))
	return command
}

// testPolicy runs every case in the files and directories. It is an error if there is none.
func testPolicy(d kube.Decider, places []string, output string, out io.Writer) error {
	files, err := testFilesIn(places)
	if err != nil {
		return err
	}
	keys := testKeys{}
	var results []caseResult
	for _, file := range files {
		cases, err := readTestFile(file)
		if err != nil {
			results = append(results,
				caseResult{File: file, Result: caseFault, Message: err.Error()})
		}
		for _, c := range cases {
			started := time.Now()
			difference, err := c.run(d, keys)
			r := caseResult{File: file, Case: c.Name, Result: casePassed, Message: difference}
			switch r.took = time.Since(started); {
			case err != nil:
				r.Result, r.Message = caseFault, err.Error()
			case difference != "":
				r.Result = caseFailed
			}
			results = append(results, r)
		}
	}
	return errors.Join(printResults(results, output, out), outcomeOf(results, places))
}

func readTestFile(name string) ([]testCase, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var file testFile
	if err := strictyaml.Decode(text, &file); err != nil {
		return nil, err
	}
	for i, c := range file.Cases {
		if c.Name == "" || c.Expect != "granted" && c.Expect != "refused" && c.Expect != "waiting" {
			return nil, fmt.Errorf("cases[%d] (%q): needs a name, and \"expect\": granted, "+
				"refused or waiting", i, c.Name)
		}
		if (c.Rule != "" || c.Names != nil) && c.Expect != "granted" ||
			c.Reason != "" && c.Expect != "refused" {
			return nil, fmt.Errorf("cases[%d] (%q): \"rule\" and \"names\" are for granted "+
				"requests, \"reason\" for refused ones", i, c.Name)
		}
		if c.Annotations != nil && !c.PodCertificate {
			return nil, fmt.Errorf("cases[%d] (%q): only requests for pod certificates have "+
				"\"annotations\"; set podCertificate: true", i, c.Name)
		}
	}
	return file.Cases, nil
}

// run returns how the verdict differs from the expected one, or "".
func (c testCase) run(d kube.Decider, keys testKeys) (difference string, err error) {
	request, facts, err := c.request(keys)
	if err != nil {
		return "", err
	}
	switch v := d.Decide(request, facts).(type) {
	case *policy.Grant:
		if c.Expect != "granted" || c.Rule != "" && c.Rule != v.Rule() {
			return fmt.Sprintf("granted by rule %s; expected: %s", v.Rule(), c.expectation()), nil
		}
		if c.Names != nil && !slices.Equal(slices.Sorted(slices.Values(c.Names)),
			slices.Sorted(slices.Values(v.Names()))) {
			return fmt.Sprintf("granted with the names %s; expected: %s",
				strings.Join(v.Names(), ", "), strings.Join(c.Names, ", ")), nil
		}
	case *policy.Refusal:
		if c.Expect != "refused" || c.Reason != "" && c.Reason != string(v.Code()) {
			return fmt.Sprintf("refused (%s): %s; expected: %s", v.Code(), v, c.expectation()), nil
		}
	case *policy.Waiting:
		if c.Expect != "waiting" {
			return fmt.Sprintf("waiting for %s; expected: %s", v.Missing, c.expectation()), nil
		}
	}
	return "", nil
}

func (c testCase) expectation() string {
	if detail := cmp.Or(c.Rule, c.Reason); detail != "" {
		return c.Expect + " (" + detail + ")"
	}
	return c.Expect
}
