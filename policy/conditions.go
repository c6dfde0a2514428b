package policy

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/google/cel-go/cel"
	celast "github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/ext"
)

// A condition is a user's own thought on a request, in the Common Expression Language.
type condition struct {
	text     string
	message  string
	constant bool // it depends on nothing
	program  cel.Program
}

// What a condition sees. There are no labels and no annotations, which are the requester's to
// write, except those of pod certificates that the rule names.
type (
	celRequest struct {
		SignerName     string              `cel:"signerName"`
		Subject        map[string][]string `cel:"subject"` // by type, as in "O"
		CommonName     string              `cel:"commonName"`
		DNSNames       []string            `cel:"dnsNames"`
		IPAddresses    []string            `cel:"ipAddresses"`
		URIs           []string            `cel:"uris"`
		EmailAddresses []string            `cel:"emailAddresses"`
		Key            string              `cel:"key"`
		// of the SubjectPublicKeyInfo, in lower-case hex
		KeySHA256 string   `cel:"publicKeySHA256"`
		Usages    []string `cel:"usages"`
		Lifetime  int64    `cel:"lifetime"` // in seconds, as it would be granted
		// of a pod certificate's request, those that the rule names (from.annotations)
		Annotations map[string]string `cel:"annotations"`
	}
	celRequester struct {
		Username string              `cel:"username"`
		Groups   []string            `cel:"groups"`
		Extra    map[string][]string `cel:"extra"`
		// empty when it is no service account
		Namespace string `cel:"namespace"`
		// empty when it is no service account
		ServiceAccount string `cel:"serviceAccount"`
	}
	celPod struct {
		Name        string   `cel:"name"` // empty when no pod is known
		UID         string   `cel:"uid"`
		Node        string   `cel:"node"`
		IPAddresses []string `cel:"ipAddresses"`
		HostNetwork bool     `cel:"hostNetwork"` // its addresses are its node's
	}
)

// conditionCost bounds the work of one condition, in CEL's units.
const conditionCost = 100_000

// celEnv declares what a condition sees, so that a wrong field is a mistake of the
// policy and not a surprise.
var celEnv = sync.OnceValues(func() (*cel.Env, error) {
	return cel.NewEnv(
		ext.NativeTypes(ext.ParseStructTags(true), reflect.TypeFor[celRequest](),
			reflect.TypeFor[celRequester](), reflect.TypeFor[celPod]()),
		cel.Variable("request", cel.ObjectType("policy.celRequest")),
		cel.Variable("requester", cel.ObjectType("policy.celRequester")),
		cel.Variable("pod", cel.ObjectType("policy.celPod")),
	)
})

// compileCondition returns the condition, or what is wrong with its text.
func compileCondition(text, message string) (condition, error) {
	env, err := celEnv()
	if err != nil {
		return condition{}, fmt.Errorf("CEL environment: %w", err)
	}
	ast, issues := env.Compile(text)
	if issues.Err() != nil {
		return condition{}, issues.Err()
	}
	if ast.OutputType() != cel.BoolType {
		return condition{}, fmt.Errorf("gives a %s; it must be true or false", ast.OutputType())
	}
	program, err := env.Program(ast, cel.CostLimit(conditionCost))
	constant := !slices.ContainsFunc(slices.Collect(maps.Values(ast.NativeRep().ReferenceMap())),
		func(r *celast.ReferenceInfo) bool {
			// and not a variable of its own
			return slices.Contains([]string{"request", "requester", "pod"}, r.Name)
		})
	return condition{text: text, message: message, constant: constant, program: program}, err
}

// judgeConditions refuses what a condition does not say true of. One that cannot be
// evaluated, or costs too much, refuses too.
func (u *rule) judgeConditions(r *Request, account ServiceAccount, pod *Pod, f *finding) {
	if len(u.conditions) == 0 {
		return
	}
	request := r.forCEL(u.lifetimeFor(r.Lifetime))
	if claim := r.PodCertificate; claim != nil {
		request.DNSNames, request.URIs = f.names.dnsNames, f.names.uris
		request.Usages, request.Annotations = strs(u.usages), claim.Annotations
	}
	seen := map[string]any{"request": request,
		"requester": r.Requester.forCEL(account), "pod": pod.forCEL()}
	for i, c := range u.conditions {
		value, _, err := c.program.Eval(seen)
		field := fmt.Sprintf("conditions[%d]", i)
		switch {
		case err != nil:
			f.refuse(ConditionNotMet, field, []string{c.text}, "cannot be evaluated")
		case value.Value() != true:
			f.refuse(ConditionNotMet, field, []string{c.text}, "is not met: %s", c.message)
		}
	}
}

func (r *Request) forCEL(lifetime time.Duration) celRequest {
	subject := map[string][]string{}
	for _, attribute := range r.asked.Subject {
		subject[attribute.Name] = append(subject[attribute.Name], attribute.Value)
	}
	return celRequest{
		SignerName:     r.SignerName,
		Subject:        subject,
		CommonName:     r.asked.CommonName,
		DNSNames:       r.asked.DNSNames,
		IPAddresses:    texts(r.asked.IPAddresses),
		URIs:           r.asked.URIs,
		EmailAddresses: r.asked.EmailAddresses,
		Key:            string(r.asked.Key),
		KeySHA256:      r.publicKeySHA256(),
		Usages:         strs(r.Usages),
		Lifetime:       int64(lifetime.Seconds()),
	}
}

func (r Requester) forCEL(account ServiceAccount) celRequester {
	return celRequester{Username: r.Username, Groups: r.Groups, Extra: r.Extra,
		Namespace: account.Namespace, ServiceAccount: account.Name}
}

func (p *Pod) forCEL() celPod {
	if p == nil {
		return celPod{}
	}
	return celPod{Name: p.Name, UID: p.UID, Node: p.Node, IPAddresses: texts(p.IPs),
		HostNetwork: p.HostNetwork}
}
