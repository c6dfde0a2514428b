package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/transport"

	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/issuer/journal"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

// parts are what the configuration names, loaded and checked but not yet in touch with the
// token or the API server. A shadow has no key and no issuer; its CA is a generic one
// unless CA_CERT_FILE is set.
type parts struct {
	metrics *metrics
	policy  *policy.Policy
	ca      *issuer.CA
	key     *hsm.Key
	journal *keptJournal
	issuer  *issuer.Issuer

	checkpoints *checkpointer // nil: none are wanted
	witness     *witness
	lease       *kube.Lease // nil: no election
	client      *kubernetes.Clientset
	server      string // the API server's address
}

// errUnsetNeedsUnbound: all requests of such a cluster would be denied for good.
var errUnsetNeedsUnbound = errors.New("UNSET_SIGNER_NAME is accept, for clusters before 1.18, whose tokens name no pod; but every rule of the policy wants them to (pod: bound): use calico-legacy, or pod: address")

// loadParts loads everything and adds what is wrong to the faults.
func (c *config) loadParts(faults *configFaults) *parts {
	p := &parts{metrics: newMetrics()}
	p.policy = c.loadPolicy(faults)
	if c.acceptUnset && c.mode == kube.Wait {
		faults.addf("UNSET_SIGNER_NAME", "is accept, and APPROVE is false: before 1.18 the controller manager signs whatever is approved, so the certificate must come before the approval; let hsm-signer approve")
	}
	if len(c.signerNames) == 0 {
		faults.missing("SIGNER_NAME", "is not set: name the signer to serve, such as example.com/calico; it is what Calico's Installation names as signerName")
	}
	c.checkCleanUp(faults)
	c.resolveStateDir(faults)
	switch {
	case faults.has("APPROVE"): // so whether a token is needed is not known
		p.ca = c.loadOptionalCA(faults)
	case c.mode == kube.Shadow:
		_, err := takePIN() // there is no use for it
		faults.add("PKCS11_PIN", err)
		faults.add("STATE_DIR", requireOwn(c.stateDir))
		p.ca = c.loadOptionalCA(faults)
	default:
		c.loadSigning(p, faults)
	}
	c.checkRules(p.policy, p.ca, faults)
	p.lease = c.requireLease(faults)
	p.client, p.server = c.loadClient(faults, p.metrics.countCalls)
	return p
}

// loadSigning loads what only those who sign need: the token, its key and the CA.
func (c *config) loadSigning(p *parts, faults *configFaults) {
	c.requireToken(faults)
	c.requireKey(faults)
	if p.ca = c.loadCA(faults); p.ca != nil {
		var err error
		public := p.ca.Certificate().PublicKey
		c.token.Signature = issuer.SignerOpts(c.algorithm, public)
		p.journal = newKeptJournal(c.stateDir, journal.Options{
			Version: version(), CA: p.ca.Certificate(), MaxRequests: c.maxRequests, MaxUnfinished: c.maxUnfinished,
		})
		p.witness = newWitness(p.journal, c.witnessFile)
		c.token.BeforeProbe = p.journal.probe
		if p.key, err = hsm.NewKey(c.token, public); err != nil {
			faults.add("CA_CERT_FILE", err)
		} else {
			p.issuer, err = issuer.New(p.ca, stoppedKey{timedKey{p.key, p.metrics.signed}, p.journal.rolledBack}, c.algorithm, p.journal)
			faults.add("SIGNATURE_ALGORITHM", err)
			p.checkpoints = c.loadCheckpoints(p, faults)
			p.witness.key = p.checkpoints
		}
	}
}

// loadPolicy returns the policy, and adds what is wrong with it to the faults.
func (c *config) loadPolicy(faults *configFaults) *policy.Policy {
	var blocked *policy.BlockedKeys
	keys, err := c.readBlockedKeys()
	if err == nil {
		blocked, err = c.parseBlockedKeys(keys)
	}
	faults.add("BLOCKED_KEYS_FILE", err)
	text, err := c.readPolicy()
	if err != nil {
		faults.add("POLICY_FILE", err)
		return nil
	}
	p, err := c.parsePolicy(text, blocked)
	// The policy is judged by these; where one is wrong, so may be what is found.
	if !faults.has("CLUSTER_DOMAIN", "CERTIFICATE_LIFETIME", "UNSET_SIGNER_NAME") {
		faults.add("POLICY_FILE", err)
	}
	return p
}

// readPolicy returns the text of the policy.
func (c *config) readPolicy() ([]byte, error) {
	if text, builtIn := policy.BuiltIn(c.policyFile); builtIn {
		return text, nil
	}
	return readPolicyFile(c.policyFile, c.anyPolicy)
}

func (c *config) parsePolicy(text []byte, blocked *policy.BlockedKeys) (*policy.Policy, error) {
	p, err := policy.Parse(text, policy.Options{ClusterDomain: c.clusterDomain, MaxLifetime: c.lifetime, ForbiddenAddresses: c.serviceAddresses(), BlockedKeys: blocked})
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", c.policyFile, err)
	case c.acceptUnset && !p.TakesUnboundTokens():
		return nil, errUnsetNeedsUnbound
	}
	return p, nil
}

func (c *config) loadCA(faults *configFaults) *issuer.CA {
	if c.caCertFile == "" {
		faults.addf("CA_CERT_FILE", "is not set: name the PEM file with the CA's certificate; \"hsm-signer ca create\" makes one")
		return nil
	}
	text, err := caRules.Read(c.caCertFile)
	if err != nil {
		faults.add("CA_CERT_FILE", err)
		return nil
	}
	ca, err := issuer.ParseCA(text)
	if err != nil {
		faults.addf("CA_CERT_FILE", "%s: %v", c.caCertFile, err)
		return nil
	}
	return ca
}

// serviceAddresses are the ClusterIP of Service default/kubernetes, where it is known without asking for
// a right: kubelet writes it into the environment of every container. KUBERNETES_SERVICE_HOST is not
// taken for it: manifests replace that by the address of a control-plane node, which is a pod's own on
// the network of that node.
func (c *config) serviceAddresses() []netip.Addr {
	address, err := netip.ParseAddr(os.Getenv("KUBERNETES_PORT_443_TCP_ADDR"))
	if !c.inServedCluster() || err != nil {
		return nil
	}
	return []netip.Addr{address.Unmap()}
}

// loadClient reads how to reach the API server. There is no limit on the client's
// side: pacing is left to the server's flow control and to the number of workers. Every call goes through what wrap
// returns, when it is given.
func (c *config) loadClient(faults *configFaults, wrap transport.WrapperFunc) (*kubernetes.Clientset, string) {
	kubeConfig, err := c.clientConfig()
	if err != nil {
		faults.add("KUBECONFIG", err)
		return nil, ""
	}
	kubeConfig.QPS = -1
	kubeConfig.UserAgent = "hsm-signer/" + version()
	kubeConfig.ContentType = "application/vnd.kubernetes.protobuf"
	kubeConfig.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	kubeConfig.Wrap(wrap)
	client, err := kubernetes.NewForConfig(kubeConfig)
	if err != nil {
		faults.add("KUBECONFIG", err)
		return nil, ""
	}
	return client, kubeConfig.Host
}
