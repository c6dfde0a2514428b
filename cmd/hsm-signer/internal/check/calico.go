package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"hsm-signer/cmd/hsm-signer/internal/service"
	"hsm-signer/issuer"
	"hsm-signer/policy"
)

// installationPath is where Calico's operator keeps its only Installation.
const installationPath = "/apis/operator.tigera.io/v1/installations/default"

// certificateManagement is the part of Calico's Installation about certificates
// (operator.tigera.io/v1).
type certificateManagement struct {
	CACert             []byte `json:"caCert"` // PEM, what its pods trust
	SignerName         string `json:"signerName"`
	KeyAlgorithm       string `json:"keyAlgorithm"`
	SignatureAlgorithm string `json:"signatureAlgorithm"`
}

// checkInstallation checks that Calico names this signer and trusts these CAs. It needs "get" of
// installations, and nothing else does.
func checkInstallation(ctx context.Context, s *service.Service, cas []*issuer.CA,
	report reporter) {
	const name = "Calico's Installation"
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	text, err := s.Client.GetJSON(ctx, installationPath)
	var installation struct {
		Spec struct {
			CertificateManagement *certificateManagement `json:"certificateManagement"`
		} `json:"spec"`
	}
	switch {
	case apierrors.IsNotFound(err):
		report(name, "there is none in this cluster (operator.tigera.io, default)", errUnread)
		return
	case apierrors.IsForbidden(err):
		report(name, "may not be read; to have it checked, allow \"get "+
			"installations.operator.tigera.io\", as deploy/base/rbac.yaml does", errUnread)
		return
	case err == nil:
		err = json.Unmarshal(text, &installation)
	}
	m := installation.Spec.CertificateManagement
	switch {
	case err != nil:
		report(name, "", fmt.Errorf("read it: %w", err))
	case m == nil:
		report(name, "has no certificateManagement, so Calico sends no requests; \"hsm-signer ca "+
			"show\" prints what to add", errWarning)
	default:
		report(name, fmt.Sprintf("names the signer %s and the CA", m.SignerName),
			errors.Join(m.checkSigner(s.SignerNames), m.checkAlgorithms(), m.checkCAs(cas)))
		if slow := m.slowKey(); slow != "" {
			report(name, slow, errWarning)
		}
	}
}

// keysInTime is how many of five init containers of Calico made a key of the algorithm in time, if
// not all did.
var keysInTime = map[string]int{"RSAWithSize4096": 3, "RSAWithSize8192": 0}

// slowKey returns a warning about a key that takes too long to make, or "".
func (m *certificateManagement) slowKey() string {
	n, slow := keysInTime[m.KeyAlgorithm]
	if !slow {
		return ""
	}
	return fmt.Sprintf("spec.certificateManagement.keyAlgorithm is %s: Calico's init containers "+
		"have 10m of CPU and 90 seconds, and in a trial %d of 5 finished in time; use "+
		"ECDSAWithCurve256 with ECDSAWithSHA256",
		m.KeyAlgorithm, n)
}

// earlierRelease matches the names of built-in rules for earlier releases of Calico.
var earlierRelease = regexp.MustCompile(`-[0-9]+\.[0-9]+$`)

// forEarlierCalico reports whether all the rules are built-in ones for earlier releases of Calico.
func forEarlierCalico(policyFile string, rules []string) bool {
	_, builtIn := policy.BuiltIn(policyFile)
	return builtIn &&
		!slices.ContainsFunc(rules,
			func(rule string) bool { return !earlierRelease.MatchString(rule) })
}

func (m *certificateManagement) checkSigner(served []string) error {
	if slices.Contains(served, m.SignerName) {
		return nil
	}
	return fmt.Errorf("spec.certificateManagement.signerName is %q, but SIGNER_NAME is %s: "+
		"nobody answers Calico's requests; use the same name in both",
		m.SignerName, strings.Join(served, ","))
}

// checkAlgorithms returns an error for a key of one kind with a signature of another, with which
// Calico's init container fails before it sends a request. The API accepts them.
func (m *certificateManagement) checkAlgorithms() error {
	if strings.HasPrefix(m.KeyAlgorithm, "ECDSA") == strings.HasPrefix(m.SignatureAlgorithm,
		"ECDSA") {
		return nil
	}
	return fmt.Errorf("spec.certificateManagement: a key of %q cannot sign with %q (empty is "+
		"RSA): Calico's pods fail before they send a request; use ECDSAWithCurve256 with "+
		"ECDSAWithSHA256",
		m.KeyAlgorithm, m.SignatureAlgorithm)
}

// checkCAs returns an error unless clients that trust caCert trust what these CAs issue.
func (m *certificateManagement) checkCAs(cas []*issuer.CA) error {
	if len(cas) == 0 {
		return nil
	}
	trusted, err := issuer.ReadChain(m.CACert)
	if err != nil {
		return fmt.Errorf("spec.certificateManagement.caCert: %w", err)
	}
	for _, ca := range cas {
		if !ca.AnchoredIn(trusted) {
			return fmt.Errorf("spec.certificateManagement.caCert holds neither the certificate of "+
				"the CA %s nor one above it: Calico's pods would not trust each other; "+
				"\"hsm-signer ca show\" prints what to add", ca.Certificate().Subject)
		}
	}
	return nil
}
