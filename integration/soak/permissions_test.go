package soak

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"hsm-signer/integration/faultproxy"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// A permission is one verb on one resource in a role of deploy/base/rbac.yaml.
type permission struct {
	namespace, role string // without a namespace: a ClusterRole
	verb, resource  string
}

func (p permission) String() string { return p.verb + " " + p.resource }

// without returns the rules without the permission.
func (p permission) without(rules []rbacv1.PolicyRule) []rbacv1.PolicyRule {
	var kept []rbacv1.PolicyRule
	for _, rule := range rules {
		for _, resource := range rule.Resources {
			one := *rule.DeepCopy()
			one.Resources = []string{resource}
			if resource == p.resource {
				one.Verbs = slices.DeleteFunc(one.Verbs,
					func(verb string) bool { return verb == p.verb })
			}
			if len(one.Verbs) > 0 {
				kept = append(kept, one)
			}
		}
	}
	return kept
}

// optional are the resources that hsm-signer does not need. With them it reports more.
var optional = []string{"replicasets", "installations"}

// permissionsOf returns the permissions of a role that hsm-signer needs to be ready.
func permissionsOf(namespace, role string, rules []rbacv1.PolicyRule) []permission {
	var all []permission
	for _, rule := range rules {
		for _, resource := range rule.Resources {
			for _, verb := range rule.Verbs {
				if !slices.Contains(optional, resource) {
					all = append(all, permission{namespace, role, verb, resource})
				}
			}
		}
	}
	return all
}

// permissions returns the permissions that hsm-signer needs.
func permissions(t *testing.T, client kubernetes.Interface) []permission {
	t.Helper()
	cluster, err := client.RbacV1().ClusterRoles().Get(t.Context(), "hsm-signer",
		metav1.GetOptions{})
	must.OK(t, err)
	all := permissionsOf("", cluster.Name, cluster.Rules)
	for namespace, name := range map[string]string{"hsm-signer": "hsm-signer-lease",
		"default": "hsm-signer-events"} {
		role, err := client.RbacV1().Roles(namespace).Get(t.Context(), name, metav1.GetOptions{})
		must.OK(t, err)
		all = append(all, permissionsOf(namespace, name, role.Rules)...)
	}
	return all
}

// take removes the permission from its role.
func (p permission) take(ctx context.Context, client kubernetes.Interface) error {
	if p.namespace == "" {
		role, err := client.RbacV1().ClusterRoles().Get(ctx, p.role, metav1.GetOptions{})
		if err != nil {
			return err
		}
		role.Rules = p.without(role.Rules)
		_, err = client.RbacV1().ClusterRoles().Update(ctx, role, metav1.UpdateOptions{})
		return err
	}
	role, err := client.RbacV1().Roles(p.namespace).Get(ctx, p.role, metav1.GetOptions{})
	if err != nil {
		return err
	}
	role.Rules = p.without(role.Rules)
	_, err = client.RbacV1().Roles(p.namespace).Update(ctx, role, metav1.UpdateOptions{})
	return err
}

// Each permission is removed in turn while requests arrive.
func TestPermissionsAreTakenAway(t *testing.T) {
	r := begin(t, 19, "each permission that is needed taken away in turn, and given back",
		"not ready, says which, no hot loop")
	proxy, through := shared.proxied(t)
	s := shared.signer(t, through, "LEADER_ELECT=true", "LEASE_NAMESPACE=hsm-signer")
	d := s.startReady(t)
	c := shared.newBatch(t)
	rbac, err := os.ReadFile(filepath.Join("..", "..", "deploy", "base", "rbac.yaml"))
	must.OK(t, err)
	giveBack := func(ctx context.Context) error { return shared.Cluster.Apply(ctx, rbac) }
	t.Cleanup(func() {
		if err := giveBack(context.Background()); err != nil {
			t.Error(err)
		}
	})
	requestersAreCalicos(t)
	all := permissions(t, shared.Cluster.Client())
	busiest, busiestWithout := 0.0, ""
	all = all[:of(min(3, len(all)), len(all))]
	for _, p := range all {
		must.OK(t, p.take(t.Context(), shared.Cluster.Client()))
		if err := d.WaitNotReady(t.Context(), p.String()); err != nil {
			t.Errorf("without %s: %v", p, err)
		}
		c.ask(t, 2)
		if rate := callRate(t, proxy, of(time.Second, 10*time.Second)); rate > busiest {
			busiest, busiestWithout = rate, p.String()
		}
		must.OK(t, giveBack(t.Context()))
		must.OK(t, d.WaitReady(t.Context()))
	}
	c.waitForAll(t)
	requireNoneRefused(t, c)
	must.OK(t, d.Shutdown())
	s.account(t).requireWhole(t, c)
	const hot = 50 // calls a second; retries of two requests make a few
	if busiest > hot {
		t.Errorf("%.0f calls a second without %s", busiest, busiestWithout)
	}
	r.measured("%d permissions, each named by /readyz while it was missing; ready again when "+
		"it was back", len(all))
	r.measured("at most %.1f API calls a second meanwhile, with two open requests (without %q)",
		busiest, busiestWithout)
	r.measured("%d requests, all issued afterwards, none refused", c.size())
}

// callRate returns how many calls a second pass the proxy, measured over the interval.
func callRate(t *testing.T, p *faultproxy.Proxy, interval time.Duration) float64 {
	t.Helper()
	before, began := p.Calls(), time.Now()
	select {
	case <-time.After(interval):
	case <-t.Context().Done():
	}
	return float64(p.Calls()-before) / time.Since(began).Seconds()
}

// requestersAreCalicos limits access to certificate requests to Calico's service accounts until the
// end of the test. Otherwise hsm-signer's account could read them without its own roles.
func requestersAreCalicos(t *testing.T) {
	t.Helper()
	bindings := shared.Cluster.Client().RbacV1().ClusterRoleBindings()
	set := func(ctx context.Context, group string) error {
		binding, err := bindings.Get(ctx, testenv.RequesterRole, metav1.GetOptions{})
		if err != nil {
			return err
		}
		binding.Subjects[0].Name = group
		_, err = bindings.Update(ctx, binding, metav1.UpdateOptions{})
		return err
	}
	must.OK(t, set(t.Context(), "system:serviceaccounts:"+node().Namespace))
	t.Cleanup(func() {
		if err := set(context.Background(), "system:serviceaccounts"); err != nil {
			t.Error(err)
		}
	})
}

// requireNoneRefused requires that no fault led to a refusal.
func requireNoneRefused(t *testing.T, c *batch) {
	t.Helper()
	now, err := c.requests(t.Context())
	must.OK(t, err)
	var refused []string
	for _, csr := range now {
		if has(csr, certificatesv1.CertificateDenied) ||
			has(csr, certificatesv1.CertificateFailed) {
			refused = append(refused, csr.Name)
		}
	}
	if len(refused) > 0 {
		t.Error(fmt.Errorf("refused: %s", strings.Join(refused, ", ")))
	}
}
