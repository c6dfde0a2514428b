package config

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/issuer"
	"hsm-signer/policy"
)

// errUnsetNeedsUnbound is why some policies do not fit UNSET_SIGNER_NAME=accept: every request of
// such a cluster would be denied permanently.
var errUnsetNeedsUnbound = errors.New("UNSET_SIGNER_NAME is accept, for clusters before 1.18, " +
	"whose tokens name no pod, but every rule of the policy requires that (pod: bound): use " +
	"calico-legacy, or pod: address")

// errNoRuleForPods is why some policies do not fit POD_CERTIFICATES: every pod would be denied.
var errNoRuleForPods = errors.New("POD_CERTIFICATES is true, and no rule of the policy is for " +
	"pod certificates: use the built-in policy pods, or add a rule with podCertificates: true " +
	"(docs/pods.md)")

// LoadPolicy returns the policy, and adds what is wrong with it to the faults.
func (c *Config) LoadPolicy(faults *setting.Faults) *policy.Policy {
	var blocked *policy.BlockedKeys
	keys, err := c.readBlockedKeys()
	if err == nil {
		blocked, err = c.parseBlockedKeys(keys)
	}
	faults.Add("BLOCKED_KEYS_FILE", err)
	text, err := c.ReadPolicy()
	if err != nil {
		faults.Add("POLICY_FILE", err)
		return nil
	}
	p, err := c.ParsePolicy(text, blocked)
	// The policy is checked against these: if one is wrong, so may be the result.
	if !faults.Has("CLUSTER_DOMAIN", "CERTIFICATE_LIFETIME", "UNSET_SIGNER_NAME", "TRUST_DOMAIN",
		"POD_CERTIFICATES") {
		faults.Add("POLICY_FILE", err)
	}
	return p
}

// ReadPolicy returns the text of the policy.
func (c *Config) ReadPolicy() ([]byte, error) {
	if text, builtIn := policy.BuiltIn(c.PolicyFile); builtIn {
		return text, nil
	}
	return readPolicyFile(c.PolicyFile, c.AnyPolicy)
}

// ParsePolicy parses the text of a policy. It returns an error if the policy does not fit the rest
// of the configuration.
func (c *Config) ParsePolicy(text []byte, blocked *policy.BlockedKeys) (*policy.Policy, error) {
	p, err := policy.Parse(text, policy.Options{
		ClusterDomain: c.ClusterDomain, MaxLifetime: c.Lifetime,
		ForbiddenAddresses: c.serviceAddresses(), BlockedKeys: blocked,
		TrustDomain: c.TrustDomain,
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", c.PolicyFile, err)
	case c.AcceptUnset && !p.TakesUnboundTokens():
		return nil, errUnsetNeedsUnbound
	case c.PodCertificates && !p.ForPodCertificates():
		return nil, errNoRuleForPods
	}
	return p, nil
}

// serviceAddresses returns the ClusterIP of Service default/kubernetes if it is known without
// another permission: kubelet sets it in the environment of every container.
// KUBERNETES_SERVICE_HOST does not count: manifests replace it by the address of a control-plane
// node, which a pod on the node's network has too.
func (c *Config) serviceAddresses() []netip.Addr {
	address, err := netip.ParseAddr(os.Getenv("KUBERNETES_PORT_443_TCP_ADDR"))
	if !c.inServedCluster() || err != nil {
		return nil
	}
	return []netip.Addr{address.Unmap()}
}

// LoadCA returns the CA of CA_CERT_FILE, which must be set.
func (c *Config) LoadCA(faults *setting.Faults) *issuer.CA {
	if c.CACertFile == "" {
		faults.Addf("CA_CERT_FILE", "is not set: name the PEM file with the CA's certificate; "+
			"\"hsm-signer ca create\" creates one")
		return nil
	}
	return readCA("CA_CERT_FILE", c.CACertFile, faults)
}

// readCA returns the CA in a file that the variable names; nil if it cannot be used.
func readCA(variable, path string, faults *setting.Faults) *issuer.CA {
	text, err := CARules.Read(path)
	if err != nil {
		faults.Add(variable, err)
		return nil
	}
	ca, err := issuer.ParseCA(text)
	if err != nil {
		faults.Addf(variable, "%s: %v", path, err)
		return nil
	}
	return ca
}

// LoadOptionalCA returns the CA of CA_CERT_FILE, or a generic one if that is not set.
func (c *Config) LoadOptionalCA(faults *setting.Faults) *issuer.CA {
	if c.CACertFile != "" {
		return c.LoadCA(faults)
	}
	ca, err := issuer.GenericCA()
	faults.Add("CA_CERT_FILE", err)
	return ca
}

// LoadRoots returns the certificates of TRUST_BUNDLE_FILE; nil if that is not set. It does not
// require them to trust the CA.
func (c *Config) LoadRoots(faults *setting.Faults) issuer.Anchors {
	if c.TrustBundleFile == "" {
		return nil
	}
	return readRoots("TRUST_BUNDLE_FILE", c.TrustBundleFile, faults)
}

// readRoots returns the certificates in a file that the variable names; nil if it has a mistake.
func readRoots(variable, path string, faults *setting.Faults) issuer.Anchors {
	text, err := CARules.Read(path)
	if err != nil {
		faults.Add(variable, err)
		return nil
	}
	anchors, err := issuer.ParseAnchors(text)
	if err != nil {
		faults.Addf(variable, "%s: %v", path, err)
	}
	return anchors
}

// ReadChain reads a file of certificates, the CA's first. variable names the file in faults.
func ReadChain(variable, path string, faults *setting.Faults) issuer.Chain {
	text, err := os.ReadFile(path)
	if err != nil {
		faults.Add(variable, err)
		return nil
	}
	chain, err := issuer.ReadChain(text)
	if err != nil {
		faults.Addf(variable, "%s: %v", path, err)
	}
	return chain
}

// ReadPublicKey reads a PEM file with one public key.
func ReadPublicKey(path string) (crypto.PublicKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("%s holds no PEM block of the type PUBLIC KEY", path)
	}
	return x509.ParsePKIXPublicKey(block.Bytes)
}
