// Package explain holds "policy explain", which prints the verdict on requests in files or in the
// cluster, with every reason. It writes nothing to the cluster.
package explain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/judge"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/cmd/hsm-signer/internal/terminal"
	"hsm-signer/kube"
	"hsm-signer/kube/csr"
	"hsm-signer/kube/podcert"
	"hsm-signer/kube/request"
	"hsm-signer/policy"
)

// assumed holds what the user's flags say about a request that its file does not.
type assumed struct {
	policyFile string
	signer     string
	as         string
	groups     []string
	pod        string
	podUID     string
	podNode    string
	podIPs     []string
	podHost    bool
	usages     []string
	live       []string
	output     string
}

func NewCommand() *cobra.Command {
	settings := config.Named("POLICY_FILE", "BLOCKED_KEYS_FILE", "CLUSTER_DOMAIN",
		"TRUST_DOMAIN", "CERTIFICATE_LIFETIME", "KUBECONFIG", "CA_CERT_FILE")
	var a assumed
	command := &cobra.Command{
		Use:   "explain FILE…",
		Short: "Print the policy's verdict on requests, and why",
		Long: `Prints the verdict on a PKCS#10 request (PEM or DER), on each
CertificateSigningRequest and PodCertificateRequest in a file (YAML or JSON, also several documents
or a List, as "kubectl get csr -o yaml" prints), or with --live on one in the cluster. It writes
nothing to the cluster. If a file has several requests, each gets its own line and is named FILE#1,
FILE#2 and so on.

Flags supply what is not in a file: the requester (--as), its live pod (--pod, --pod-uid,
--pod-node, --pod-ip, --pod-host-network) and the usages. They apply to every request, except that a
PodCertificateRequest says all of this itself: it is judged as if its pod was as it says.

With CA_CERT_FILE the verdict includes what the CA and the CAs above it permit. Without it their
constraints are not checked, and a note on standard error reports it.

Output json is one line for each request:
{"file","verdict","reasons":[{"rule","field","message"}]}. Exit code 0 if all are granted, 2 if
any is not, 1 on an error.`,
		Example: `  hsm-signer policy explain tls.csr \
      --as system:serviceaccount:calico-system:calico-typha --pod calico-typha-1 \
      --pod-ip 10.65.0.7 --usages "server auth,client auth,digital signature"
  kubectl get csr -o yaml | hsm-signer policy explain --output json /dev/stdin
  hsm-signer policy explain --live typha-certs:calico-typha-1
  kubectl get podcertificaterequests -A -o yaml |
      hsm-signer policy explain --policy mine.yaml /dev/stdin`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, files []string) error {
			c, faults := config.Read(cmd, settings)
			c.PolicyFile, c.AnyPolicy = cmp.Or(a.policyFile, c.PolicyFile), true
			p := c.LoadPolicy(faults)
			pods := a.check(faults)
			if len(files)+len(a.live) == 0 {
				faults.Addf("FILE", "is missing: name a file with a request, or a request in "+
					"the cluster with --live")
			}
			explainer := &explainer{policy: judge.New(c, p, faults, cmd.ErrOrStderr()), assumed: a,
				pods: pods, out: cmd.OutOrStdout()}
			if len(a.live) > 0 {
				explainer.live = liveVerdicts(c, explainer.policy, faults)
			}
			if err := faults.Err(); err != nil {
				return err
			}
			return explainer.explainAll(cmd.Context(), files)
		},
	}
	config.AddFlags(command, settings)
	config.AddCAFlags(command)
	a.addFlags(command)
	return command
}

func (a *assumed) addFlags(command *cobra.Command) {
	flags := command.Flags()
	flags.StringVar(&a.policyFile, "policy", "", "the same as --policy-file")
	flags.StringVar(&a.signer, "signer", "", "signer name of the request")
	flags.StringVar(&a.as, "as", "", "username of the requester; the groups of a service account "+
		"are added")
	flags.StringArrayVar(&a.groups, "as-group", nil, "a group of the requester (may be repeated)")
	flags.StringVar(&a.pod, "pod", "", "the live pod that the requester's token is bound to")
	flags.StringVar(&a.podUID, "pod-uid", "", "the UID of the pod")
	flags.StringVar(&a.podNode, "pod-node", "", "the node that the pod runs on")
	flags.StringSliceVar(&a.podIPs, "pod-ip", nil, "the IP addresses of the pod")
	flags.BoolVar(&a.podHost, "pod-host-network", false, "the pod uses the network of its node")
	flags.StringSliceVar(&a.usages, "usages", nil, "the usages (spec.usages), comma-separated; by "+
		"default, for a bare PKCS#10, those of Calico")
	flags.StringArrayVar(&a.live, "live", nil, "name of a CertificateSigningRequest in the "+
		"cluster, or NAMESPACE/NAME of a PodCertificateRequest (may be repeated)")
	flags.StringVarP(&a.output, "output", "o", "text", "text, or json: one line each")
}

// check returns the IP addresses of the pod.
func (a assumed) check(faults *setting.Faults) []netip.Addr {
	faults.RequireOutput(a.output)
	if len(a.podIPs) > 0 && a.pod == "" {
		faults.Addf("--pod-ip", "needs --pod, the pod that has it")
	}
	if a.podNode != "" && a.pod == "" {
		faults.Addf("--pod-node", "needs --pod, the pod on this node")
	}
	if a.podHost && a.pod == "" {
		faults.Addf("--pod-host-network", "needs --pod, the pod that has it")
	}
	var ips []netip.Addr
	for _, text := range a.podIPs {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			faults.Addf("--pod-ip", "%q is not an IP address", text)
		}
		ips = append(ips, ip)
	}
	return ips
}

// An explainer prints verdicts.
type explainer struct {
	policy  kube.Decider
	assumed assumed
	pods    []netip.Addr
	live    func(ctx context.Context, name string) (policy.Verdict, error)
	out     io.Writer
}

// liveVerdicts returns a function that decides on a request in the cluster.
func liveVerdicts(c *config.Config, d kube.Decider, faults *setting.Faults) func(context.Context,
	string) (policy.Verdict, error) {
	client, _ := c.LoadClient(faults, nil)
	return func(ctx context.Context, name string) (policy.Verdict, error) {
		var kind request.Kind = csr.Kind{Client: client}
		if strings.Contains(name, "/") {
			kind = podcert.Kind{Client: client}
		}
		return kube.Judge(ctx, client, kind, d, name)
	}
}

// explainAll prints a verdict on each request. It continues after an error.
func (e *explainer) explainAll(ctx context.Context, files []string) error {
	var faults []error
	refused := false
	one := func(name string, verdict policy.Verdict, err error) {
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", name, err))
			return
		}
		refused = !e.print(name, verdict) || refused
	}
	for _, file := range files {
		e.fromFile(file, one)
	}
	for _, name := range e.assumed.live {
		verdict, err := e.live(ctx, name)
		one(name, verdict, err)
	}
	switch {
	case len(faults) > 0:
		return errors.Join(faults...)
	case refused:
		return exit.With(exit.Refused, errors.New("not every request would be granted"))
	}
	return nil
}

// fromFile decides on each request in the file. If there are several, each is named by its
// position, and in text by its own name too.
func (e *explainer) fromFile(file string,
	one func(name string, verdict policy.Verdict, err error)) {
	requests, err := readRequestFile(file)
	if err != nil {
		one(file, nil, err)
	}
	for i, request := range requests {
		name := file
		if len(requests) > 1 {
			name = fmt.Sprintf("%s#%d", file, i+1)
			if e.assumed.output != "json" && request.name != "" {
				name += " (" + terminal.OneLine(request.name) + ")"
			}
		}
		if request.err != nil {
			one(name, nil, request.err)
			continue
		}
		one(name, e.decide(request.submission), nil)
	}
}

// decide returns the verdict on a request, completed by the flags.
func (e *explainer) decide(submission policy.Submission) policy.Verdict {
	submission = e.assume(submission)
	if submission.PodCertificate != nil {
		return e.policy.Decide(judge.ForPod(submission))
	}
	if e.assumed.pod == "" {
		return e.policy.Decide(judge.WithoutPod(submission))
	}
	return e.policy.Decide(judge.WithPod(submission, policy.Pod{
		Name: e.assumed.pod, UID: cmp.Or(e.assumed.podUID,
			judge.AssumedUID), Node: e.assumed.podNode,
		IPs: e.pods, HostNetwork: e.assumed.podHost,
	}))
}

// assume completes a request by the flags, which win.
func (e *explainer) assume(s policy.Submission) policy.Submission {
	a := e.assumed
	s.Age = judge.AssumedAge
	s.SignerName = cmp.Or(a.signer, s.SignerName)
	if s.PodCertificate != nil {
		return s // it says the rest itself
	}
	usages := a.usages
	if len(usages) == 0 && len(s.Usages) == 0 {
		usages = judge.CalicoUsages
	}
	if len(usages) > 0 {
		s.Usages = nil
		for _, usage := range usages {
			s.Usages = append(s.Usages, policy.Usage(strings.TrimSpace(usage)))
		}
	}
	if a.as != "" {
		s.Requester = policy.Requester{Username: a.as,
			Groups: append(judge.GroupsOf(a.as), a.groups...)}
	}
	return s
}

// explanation is one line of the output in JSON.
type explanation struct {
	File    string          `json:"file"`
	Verdict string          `json:"verdict"` // granted, refused or waiting
	Reasons []policy.Reason `json:"reasons"`
}

// print prints the verdict, and reports whether the request would be granted.
func (e *explainer) print(name string, verdict policy.Verdict) bool {
	x := explanation{File: name, Verdict: "refused", Reasons: []policy.Reason{}}
	var grant string
	switch v := verdict.(type) {
	case *policy.Grant:
		x.Verdict = "granted"
		grant = fmt.Sprintf(" by rule %s: %s; %v; for %s", v.Rule(), strings.Join(v.Names(), ", "),
			v.Usages(), v.Lifetime())
	case *policy.Refusal:
		x.Reasons = v.Reasons
	case *policy.Waiting:
		x.Verdict = "waiting"
		x.Reasons = []policy.Reason{{Code: policy.PodNotVerified, Rule: v.Rule, Field: "pod",
			Message: "waiting for " + v.Missing}}
	}
	if e.assumed.output == "json" {
		_ = terminal.PrintJSON(e.out, x) // as for text: nobody reads on after an error
		return x.Verdict == "granted"
	}
	// the cluster's objects are in it
	fmt.Fprintf(e.out, "%s\n", terminal.EscapeLine(name+": "+x.Verdict+grant))
	for _, reason := range x.Reasons {
		fmt.Fprintf(e.out, "  %s\n", terminal.EscapeLine(reason.String()))
	}
	return x.Verdict == "granted"
}
