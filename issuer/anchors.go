package issuer

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// Anchors are certificates for clients to trust: the roots of a CA, and during a change of the CA
// those before and after it.
type Anchors []*x509.Certificate

// maxAnchors is the longest PEM text that a ClusterTrustBundle holds (MaxTrustBundleSize in
// k8s.io/kubernetes/pkg/apis/certificates).
const maxAnchors = 1 << 20

// ParseAnchors reads PEM. It refuses what a ClusterTrustBundle cannot hold
// (ClusterTrustBundleSpec, trustBundle): certificates of others than CAs, duplicates, and more than
// 1 MiB.
func ParseAnchors(text []byte) (Anchors, error) {
	certs, err := parseCertificates(text)
	if err != nil {
		return nil, err
	}
	for i, cert := range certs {
		if !cert.BasicConstraintsValid || !cert.IsCA {
			return nil, fmt.Errorf("certificate %d (%s) is not a CA's: basicConstraints must say "+
				"CA:TRUE", i+1, cert.Subject)
		}
		for j, other := range certs[:i] {
			if bytes.Equal(cert.Raw, other.Raw) {
				return nil, fmt.Errorf("certificates %d and %d (%s) are the same: remove one",
					j+1, i+1, cert.Subject)
			}
		}
	}
	anchors := Anchors(certs)
	if n := len(anchors.PEM()); n > maxAnchors {
		return nil, fmt.Errorf("the certificates take %d bytes, and a ClusterTrustBundle holds "+
			"%d: remove some", n, maxAnchors)
	}
	return anchors, nil
}

// With returns these certificates and the others, each once.
func (a Anchors) With(others Anchors) (Anchors, error) {
	all := slices.Clone(a)
	for _, cert := range others {
		if !slices.ContainsFunc(a, cert.Equal) {
			all = append(all, cert)
		}
	}
	return ParseAnchors([]byte(all.PEM()))
}

// PEM returns the certificates in their order, one block each, without headers and comments.
func (a Anchors) PEM() string {
	return string(Chain(a).PEM())
}

// Trust returns nil if clients that trust the anchors, and nothing else, accept what the CA issues
// while both are within their dates.
func (a Anchors) Trust(ca *CA) error {
	if slices.ContainsFunc(a, ca.alsoHas) {
		return nil
	}
	roots, above := x509.NewCertPool(), x509.NewCertPool()
	for _, cert := range a {
		roots.AddCert(undated(cert))
	}
	for _, cert := range ca.above {
		above.AddCert(undated(cert))
	}
	_, err := undated(ca.cert).Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: above, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("clients that trust these %d certificate(s) do not trust the CA %s: "+
			"%w; add its root", len(a), ca.cert.Subject, err)
	}
	return nil
}

// undated returns the certificate as if it were valid now. A certificate outside its dates would
// end the verification before its issuer is looked for.
func undated(cert *x509.Certificate) *x509.Certificate {
	now, always := time.Now(), *cert
	always.NotBefore, always.NotAfter = now.Add(-time.Hour), now.Add(time.Hour)
	return &always
}
