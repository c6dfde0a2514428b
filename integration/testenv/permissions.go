package testenv

import (
	"context"
	"errors"
	"fmt"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A Permission is one verb on one resource in a role of hsm-signer.
type Permission struct {
	Verb, Resource string
	Optional       bool // without it hsm-signer reports less, and is ready

	object string // the only object that it is for; empty: all
	rule   int    // of the role
	role   *role
}

// A role is a Role of hsm-signer, or its ClusterRole.
type role struct {
	namespace string
	rules     []rbacv1.PolicyRule
	write     func(context.Context, []rbacv1.PolicyRule) error
}

// String returns the permission as check prints it.
func (p Permission) String() string {
	text := p.Verb + " " + p.Resource
	if p.object != "" {
		text += " " + p.object
	}
	if p.role.namespace != "" {
		text += " in " + p.role.namespace
	}
	return text
}

// Permissions returns the permissions of hsm-signer's roles, as they are in the cluster.
func (c *Cluster) Permissions(ctx context.Context) (all []Permission, err error) {
	roles := []*role{c.clusterRole(ctx, "hsm-signer", &err)}
	for _, name := range [][2]string{{"hsm-signer", "hsm-signer-lease"},
		{metav1.NamespaceDefault, "hsm-signer-events"}} {
		roles = append(roles, c.role(ctx, name[0], name[1], &err))
	}
	if err != nil {
		return nil, fmt.Errorf("roles of hsm-signer: %w", err)
	}
	for _, role := range roles {
		for i, rule := range role.rules {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					p := Permission{Verb: verb, Resource: resource, rule: i, role: role,
						Optional: resource == "replicasets" || resource == "installations"}
					if len(rule.ResourceNames) > 0 {
						p.object = rule.ResourceNames[0]
					}
					all = append(all, p)
				}
			}
		}
	}
	return all, nil
}

func (c *Cluster) clusterRole(ctx context.Context, name string, err *error) *role {
	api := c.client.RbacV1().ClusterRoles()
	found, failed := api.Get(ctx, name, metav1.GetOptions{})
	*err = errors.Join(*err, failed)
	write := func(ctx context.Context, rules []rbacv1.PolicyRule) error {
		changed := found.DeepCopy()
		changed.Rules, changed.ResourceVersion = rules, ""
		_, err := api.Update(ctx, changed, metav1.UpdateOptions{})
		return err
	}
	return &role{"", found.Rules, write}
}

func (c *Cluster) role(ctx context.Context, namespace, name string, err *error) *role {
	api := c.client.RbacV1().Roles(namespace)
	found, failed := api.Get(ctx, name, metav1.GetOptions{})
	*err = errors.Join(*err, failed)
	write := func(ctx context.Context, rules []rbacv1.PolicyRule) error {
		changed := found.DeepCopy()
		changed.Rules, changed.ResourceVersion = rules, ""
		_, err := api.Update(ctx, changed, metav1.UpdateOptions{})
		return err
	}
	return &role{namespace, found.Rules, write}
}

// Revoke removes the permission from its role, which keeps the others.
func (p Permission) Revoke(ctx context.Context) error {
	var rules []rbacv1.PolicyRule
	for i, rule := range p.role.rules {
		for _, resource := range rule.Resources {
			for _, verb := range rule.Verbs {
				if i == p.rule && resource == p.Resource && verb == p.Verb {
					continue
				}
				one := *rule.DeepCopy()
				one.Resources, one.Verbs = []string{resource}, []string{verb}
				rules = append(rules, one)
			}
		}
	}
	return p.role.write(ctx, rules)
}

// Restore writes the role of the permission as it was.
func (p Permission) Restore(ctx context.Context) error { return p.role.write(ctx, p.role.rules) }
