package config

import (
	"crypto/rand"
	"fmt"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/kube"
	"hsm-signer/kube/lease"
)

// NamespaceFile holds the namespace of the pod that this runs in.
const NamespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// election is what the configuration says of it.
type election struct {
	wanted          string // true, false, or empty: true in a pod
	namespace, name string
}

// RequireLease returns the lease with its defaults, or nil if there is no election.
func (c *Config) RequireLease(faults *setting.Faults) *lease.Lease {
	e := c.election
	if c.Mode == kube.Shadow || faults.Has("LEADER_ELECT", "APPROVE") || e.wanted == "false" ||
		e.wanted == "" && !c.inServedCluster() {
		return nil
	}
	namespace := c.leaseNamespace(faults)
	host, err := os.Hostname()
	faults.Add("LEADER_ELECT", err)
	identity := host + "_" + rand.Text()[:8]
	return &lease.Lease{Namespace: namespace, Name: e.name, Identity: identity}
}

func readElection(c *Config, v string) error {
	c.election.wanted = v
	return setting.OneOf(v, "true", "false")
}

func readLeaseNamespace(c *Config, v string) error {
	if len(validation.IsDNS1123Label(v)) > 0 {
		return fmt.Errorf("%q is not the name of a namespace", v)
	}
	c.election.namespace = v
	return nil
}

func readLeaseName(c *Config, v string) error {
	if len(validation.IsDNS1123Subdomain(v)) > 0 {
		return fmt.Errorf("%q is not the name of a lease, such as hsm-signer", v)
	}
	c.election.name = v
	return nil
}

// LeaseToRead returns the lease that a command reads and writes, without taking part in the
// election.
func (c *Config) LeaseToRead(faults *setting.Faults) lease.Lease {
	return lease.Lease{Namespace: c.leaseNamespace(faults), Name: c.election.name}
}

// leaseNamespace returns the namespace of the lease: the one that is set, or the pod's own.
func (c *Config) leaseNamespace(faults *setting.Faults) string {
	if c.election.namespace != "" {
		return c.election.namespace
	}
	text, err := os.ReadFile(NamespaceFile)
	if err != nil {
		faults.Missing("LEASE_NAMESPACE", "is not set, and this is not a pod, whose own "+
			"would be the default: name a namespace in which hsm-signer may keep a lease, "+
			"or set LEADER_ELECT=false")
	}
	return strings.TrimSpace(string(text))
}
