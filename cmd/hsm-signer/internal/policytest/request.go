package policytest

import (
	"cmp"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net"
	"net/url"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/judge"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10"
)

// request returns what the case requests, and the facts that it states.
func (c testCase) request(keys testKeys) (*policy.Request, policy.Facts, error) {
	der, err := c.pkcs10(keys)
	if err != nil {
		return nil, policy.Facts{}, err
	}
	submission := policy.Submission{
		PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
		Age: judge.AssumedAge, SignerName: c.Signer,
		Requester: policy.Requester{Username: c.As,
			Groups: append(judge.GroupsOf(c.As), c.Groups...), Extra: c.Extra},
	}
	if c.Lifetime != "" {
		if submission.Lifetime, err = policy.ParseDuration(c.Lifetime); err != nil {
			return nil, policy.Facts{}, err
		}
	}
	if c.PodCertificate {
		return c.podRequest(submission, der)
	}
	if c.Usages == nil {
		c.Usages = judge.CalicoUsages
	}
	for _, usage := range c.Usages {
		submission.Usages = append(submission.Usages, policy.Usage(usage))
	}
	if c.Pod == nil {
		request, facts := judge.WithoutPod(submission)
		return request, facts, nil
	}
	request, facts := judge.WithPod(submission, policy.Pod{
		Name: c.Pod.Name, UID: judge.AssumedUID, Node: c.Pod.Node, IPs: c.Pod.IPAddresses,
		HostNetwork: c.Pod.HostNetwork,
	})
	return request, facts, nil
}

// podRequest returns the request for the certificate of a pod, with what kubelet adds, and the
// facts that the pod is as the request says. Without a pod there is none.
func (c testCase) podRequest(s policy.Submission, stub []byte) (*policy.Request, policy.Facts,
	error) {
	account, is := s.Requester.ServiceAccount()
	if !is {
		return nil, policy.Facts{}, fmt.Errorf("as: %q is not a service account, as a pod has one",
			c.As)
	}
	live := cmp.Or(c.Pod, &testPod{Name: "assumed"})
	s.PodCertificate = &policy.PodCertificate{Stub: stub, Annotations: c.Annotations,
		Pod: policy.Pod{
			Namespace: account.Namespace, Name: live.Name, UID: judge.AssumedUID,
			ServiceAccount: account.Name, ServiceAccountUID: judge.AssumedUID,
			Node: cmp.Or(live.Node, "assumed"), NodeUID: judge.AssumedUID,
			IPs: live.IPAddresses, HostNetwork: live.HostNetwork, Services: []policy.Service{},
			Hostname: live.Hostname, Subdomain: live.Subdomain,
		}}
	for _, name := range live.Services {
		pod := &s.PodCertificate.Pod
		pod.Services = append(pod.Services, policy.Service{Name: name,
			Headless: name == live.Subdomain})
	}
	s.Requester = s.PodCertificate.Requester()
	s.Lifetime = cmp.Or(s.Lifetime, defaultPodLifetime)
	judged := judge.ForPod
	if c.Pod == nil {
		judged = judge.WithoutPod
	}
	request, facts := judged(s)
	return request, facts, nil
}

// defaultPodLifetime is what the API server sets if a pod's volume does not say
// (maxExpirationSeconds).
const defaultPodLifetime = 24 * time.Hour

// pkcs10 returns the PKCS#10 request of the case in DER.
func (c testCase) pkcs10(keys testKeys) ([]byte, error) {
	key, err := keys.get(pkcs10.KeyType(cmp.Or(c.Key, string(pkcs10.ECDSAP256))))
	if err != nil {
		return nil, err
	}
	template := &x509.CertificateRequest{DNSNames: c.DNSNames, EmailAddresses: c.Emails,
		Subject: pkix.Name{CommonName: c.CommonName}}
	if c.CommonName == "" && len(c.DNSNames) > 0 {
		template.Subject.CommonName = c.DNSNames[0]
	}
	for _, text := range c.URIs {
		uri, err := url.Parse(text)
		if err != nil {
			return nil, err
		}
		template.URIs = append(template.URIs, uri)
	}
	for _, ip := range c.IPAddresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
	}
	return x509.CreateCertificateRequest(rand.Reader, template, key)
}

// testKeys keeps a key of each type.
type testKeys map[pkcs10.KeyType]crypto.Signer

func (k testKeys) get(kind pkcs10.KeyType) (key crypto.Signer, err error) {
	if key := k[kind]; key != nil {
		return key, nil
	}
	if key, err = kind.Generate(); err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	k[kind] = key
	return key, nil
}
