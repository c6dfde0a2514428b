package policy_test

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10"
)

// livePod is the pod of the tests, with all that a look-up finds.
func livePod() policy.Pod {
	return policy.Pod{Namespace: "shop", Name: "web-0", UID: "pod-uid", ServiceAccount: "web.v1",
		Node: "node-1", ServiceAccountUID: "account-uid", NodeUID: "node-uid"}
}

// stub returns the request of a key alone, or of the template.
func stub(t *testing.T, key pkcs10.KeyType, template x509.CertificateRequest) []byte {
	t.Helper()
	private, err := key.Generate()
	must.OK(t, err)
	return must.Value(x509.CreateCertificateRequest(rand.Reader, &template, private))(t)
}

// podSubmission is what kubelet asks for the live pod.
func podSubmission(t *testing.T) policy.Submission {
	return podSubmissionWith(stub(t, pkcs10.ECDSAP256, x509.CertificateRequest{}))
}

func podSubmissionWith(der []byte) policy.Submission {
	claim := &policy.PodCertificate{Stub: der, Pod: livePod()}
	return policy.Submission{UID: "1", Name: "shop/req-1", SignerName: "example.com/pods",
		Requester: claim.Requester(), Lifetime: 24 * time.Hour, PodCertificate: claim}
}

// decideOn decides with the live pod that there is, or without one.
func decideOn(p *policy.Policy, s policy.Submission, live ...policy.Pod) policy.Verdict {
	r := policy.NewRequest(s)
	query, _ := r.PodQuery()
	return p.Decide(r, query.Found(live...))
}

func TestPodGetsItsSPIFFEIDAlone(t *testing.T) {
	p := builtIn(t, "pods")
	for _, key := range []pkcs10.KeyType{pkcs10.RSA3072, pkcs10.RSA4096, pkcs10.ECDSAP256,
		pkcs10.ECDSAP384, pkcs10.ECDSAP521, pkcs10.Ed25519} {
		s := podSubmissionWith(stub(t, key, x509.CertificateRequest{}))
		g, granted := decideOn(p, s, livePod()).(*policy.Grant)
		if !granted {
			t.Fatalf("%s: %v", key, decideOn(p, s, livePod()))
		}
		want := []string{"URI:spiffe://example.org/ns/shop/sa/web.v1"}
		if !slices.Equal(g.Names(), want) || !g.OfPod() || g.Lifetime() != 24*time.Hour {
			t.Errorf("%s: %q for %s", key, g.Names(), g.Lifetime())
		}
	}
}

// What a request says is compared with the live pod. Only what no lag explains is refused.
func TestForgedPodCertificates(t *testing.T) {
	p := builtIn(t, "pods")
	type claim = policy.PodCertificate
	for name, c := range map[string]struct {
		forge func(c *claim, live *policy.Pod)
		want  policy.Code // empty: it stays open
	}{
		"the pod's UID":     {func(c *claim, _ *policy.Pod) { c.Pod.UID = "x" }, ""},
		"the account's UID": {func(c *claim, _ *policy.Pod) { c.Pod.ServiceAccountUID = "x" }, ""},
		"the node's UID":    {func(c *claim, _ *policy.Pod) { c.Pod.NodeUID = "x" }, ""},
		"no UID of the account": {func(c *claim, live *policy.Pod) {
			c.Pod.ServiceAccountUID, live.ServiceAccountUID = "", ""
		}, ""},
		"no UID of the node": {func(c *claim, live *policy.Pod) {
			c.Pod.NodeUID, live.NodeUID = "", ""
		}, ""},
		"the account": {func(c *claim, _ *policy.Pod) { c.Pod.ServiceAccount = "admin" },
			policy.PodNotVerified},
		"the node": {func(c *claim, _ *policy.Pod) { c.Pod.Node = "node-2" },
			policy.PodNotVerified},
		"the account, of another UID": {func(c *claim, _ *policy.Pod) {
			c.Pod.ServiceAccount, c.Pod.UID = "admin", "x"
		}, ""},
		"a mirror": {func(_ *claim, live *policy.Pod) { live.Mirror = true },
			policy.PodNotVerified},
		"a pod without a node": {func(_ *claim, live *policy.Pod) { live.Node = "" }, ""},
		"a finished pod":       {func(_ *claim, live *policy.Pod) { live.Finished = true }, ""},
		"a deleted pod":        {func(_ *claim, live *policy.Pod) { live.Deleting = true }, ""},
		"an annotation": {func(c *claim, _ *policy.Pod) {
			c.Annotations = map[string]string{"example.com/san": "admin"}
		}, policy.InvalidAnnotations},
	} {
		s, live := podSubmission(t), livePod()
		c.forge(s.PodCertificate, &live)
		s.Requester = s.PodCertificate.Requester()
		switch v := decideOn(p, s, live).(type) {
		case *policy.Grant:
			t.Errorf("%s: granted", name)
		case *policy.Waiting:
			if c.want != "" {
				t.Errorf("%s: waits for %s", name, v.Missing)
			}
		case *policy.Refusal:
			if v.Code() != c.want || v.Final() != (c.want == policy.PodNotVerified) {
				t.Errorf("%s: refused (final: %t): %s", name, v.Final(), v)
			}
		}
	}
	if v, waits := decideOn(p, podSubmission(t)).(*policy.Waiting); !waits {
		t.Errorf("without a pod: %v", v)
	}
	r := policy.NewRequest(podSubmission(t))
	if v, waits := p.Decide(r, policy.Facts{}).(*policy.Waiting); !waits {
		t.Errorf("without a look-up: %v", v)
	}
}

// A stub holds a key that its requester has, and nothing else.
func TestStubHoldsTheKeyAlone(t *testing.T) {
	p := builtIn(t, "pods")
	key := stub(t, pkcs10.ECDSAP256, x509.CertificateRequest{})
	broken := slices.Clone(key)
	broken[len(broken)-1] ^= 1
	const unsupported = policy.UnsupportedKeyType
	for name, c := range map[string]struct {
		der  []byte
		want policy.Code
		says string
	}{
		"a subject": {stub(t, pkcs10.ECDSAP256, x509.CertificateRequest{
			Subject: pkix.Name{CommonName: "admin"}}), policy.InvalidRequest, "must be empty"},
		"a name": {stub(t, pkcs10.ECDSAP256, x509.CertificateRequest{
			DNSNames: []string{"kubernetes"}}), policy.InvalidRequest, "must be empty"},
		"a broken proof": {broken, policy.InvalidRequest, "does not verify"},
		"nothing":        {[]byte{}, policy.InvalidRequest, "is not a PKCS#10 request"},
		"more behind it": {append(slices.Clone(key), 0), policy.InvalidRequest, "not a PKCS#10"},
		"a type no rule has": {stub(t, pkcs10.RSA2048, x509.CertificateRequest{}), unsupported,
			"supported as keyType are ECDSAP256, ECDSAP384, ECDSAP521, ED25519, RSA3072, RSA4096"},
		"ML-DSA": {mlDSA(t, key), unsupported, "supported as keyType are ECDSAP256"},
	} {
		refusal, refused := decideOn(p, podSubmissionWith(c.der), livePod()).(*policy.Refusal)
		if !refused || refusal.Code() != c.want || !strings.Contains(refusal.Message(), c.says) {
			t.Errorf("%s: %v", name, refusal)
		}
	}
}

// keyAndProof is what kubelet before 1.36 writes for the pod instead of a stub.
func keyAndProof(t *testing.T, private crypto.Signer, podUID string) *policy.PodCertificate {
	t.Helper()
	key, err := x509.MarshalPKIXPublicKey(private.Public())
	must.OK(t, err)
	message, options := []byte(podUID), crypto.SignerOpts(crypto.Hash(0))
	if _, is := private.(ed25519.PrivateKey); !is {
		digest := sha256.Sum256(message)
		message, options = digest[:], crypto.SHA256
	}
	if _, is := private.(*rsa.PrivateKey); is {
		options = &rsa.PSSOptions{Hash: crypto.SHA256}
	}
	proof, err := private.Sign(rand.Reader, message, options)
	must.OK(t, err)
	return &policy.PodCertificate{Key: key, Proof: proof, Pod: livePod()}
}

// A key of v1beta1 counts as that of a stub does, with a proof that signs the pod's UID.
func TestKeyWithProof(t *testing.T) {
	p := builtIn(t, "pods")
	newKey := func(kind pkcs10.KeyType) crypto.Signer {
		private, err := kind.Generate()
		must.OK(t, err)
		return private
	}
	decide := func(claim *policy.PodCertificate) policy.Verdict {
		s := podSubmissionWith(nil)
		s.PodCertificate = claim
		return decideOn(p, s, livePod())
	}
	for _, kind := range []pkcs10.KeyType{pkcs10.RSA3072, pkcs10.RSA4096, pkcs10.ECDSAP256,
		pkcs10.ECDSAP384, pkcs10.ECDSAP521, pkcs10.Ed25519} {
		private := newKey(kind)
		g, granted := decide(keyAndProof(t, private, livePod().UID)).(*policy.Grant)
		public, is := private.Public().(interface{ Equal(crypto.PublicKey) bool })
		if !granted || !is || !public.Equal(g.PublicKey()) {
			t.Errorf("%s: %v", kind, decide(keyAndProof(t, private, livePod().UID)))
		}
		if v := decide(keyAndProof(t, private, "other")); !isRefusal(v, policy.InvalidRequest) {
			t.Errorf("%s, with the proof of another pod: %v", kind, v)
		}
	}
	good := keyAndProof(t, newKey(pkcs10.ECDSAP256), livePod().UID)
	for name, c := range map[string]struct {
		forge func(c *policy.PodCertificate)
		want  policy.Code
	}{
		"two keys": {func(c *policy.PodCertificate) {
			c.Stub = stub(t, pkcs10.ECDSAP256, x509.CertificateRequest{})
		}, policy.InvalidRequest},
		"no proof": {func(c *policy.PodCertificate) { c.Proof = nil }, policy.InvalidRequest},
		"no key":   {func(c *policy.PodCertificate) { c.Key = nil }, policy.InvalidRequest},
		"more behind the key": {func(c *policy.PodCertificate) {
			c.Key = append(slices.Clone(c.Key), 0)
		}, policy.InvalidRequest},
		"a long proof": {func(c *policy.PodCertificate) { c.Proof = make([]byte, 1<<20) },
			policy.InvalidRequest},
		"a type no rule has": {func(c *policy.PodCertificate) {
			*c = *keyAndProof(t, newKey(pkcs10.RSA2048), livePod().UID)
		}, policy.UnsupportedKeyType},
	} {
		claim := *good
		c.forge(&claim)
		if v := decide(&claim); !isRefusal(v, c.want) {
			t.Errorf("%s: %v", name, v)
		}
	}
}

// mlDSA returns the request with the identifier of ML-DSA-44 (2.16.840.1.101.3.4.3.17) for that of
// its key, which Go does not know.
func mlDSA(t *testing.T, der []byte) []byte {
	t.Helper()
	// ecPublicKey and prime256v1, and as many bytes of ML-DSA-44 with an unknown parameter.
	before := []byte{0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
		0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}
	after := []byte{0x30, 0x13, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x03, 0x11,
		0x04, 0x06, 0, 0, 0, 0, 0, 0}
	at := strings.Index(string(der), string(before))
	if at < 0 || len(before) != len(after) {
		t.Fatal("no key on P-256")
	}
	return slices.Concat(der[:at], after, der[at+len(before):])
}

// Rules for pod certificates and rules for other requests never apply to each other's.
func TestKindsOfRequestsAreApart(t *testing.T) {
	const rule = `version: 1
rules:
  - name: other
    from: {serviceAccounts: ["*/*"]%s}
    grant:
      dnsNames: [a]
      keys: [ecdsa-p256]
      usages: [digital signature]
`
	csrs := parse(t, strings.Replace(rule, "%s", "", 1))
	pods := parse(t, strings.Replace(rule, "%s", ", podCertificates: true", 1))
	s := podSubmission(t)
	if v := decideOn(csrs, s, livePod()); !isRefusal(v, policy.RequesterNotAllowed) {
		t.Errorf("a rule for CSRs: %v", v)
	}
	if _, granted := decideOn(pods, s, livePod()).(*policy.Grant); !granted {
		t.Errorf("a rule for pods: %v", decideOn(pods, s, livePod()))
	}
	s.PodCertificate = nil
	if v := decideOn(pods, s, livePod()); !isRefusal(v, policy.RequesterNotAllowed) {
		t.Errorf("a rule for pods, and a CSR: %v", v)
	}
}

func isRefusal(v policy.Verdict, code policy.Code) bool {
	refusal, refused := v.(*policy.Refusal)
	return refused && refusal.Code() == code
}

// A rule names the annotations that a request may have. They change nothing that is certified.
func TestAnnotationsThatARuleNames(t *testing.T) {
	p := parse(t, `version: 1
rules:
  - name: tenants
    from:
      podCertificates: true
      serviceAccounts: [shop/web.v1]
      annotations: [example.com/tenant]
    grant:
      uris: ["spiffe://example.org/ns/{namespace}/sa/{serviceAccount}"]
      keys: [ecdsa-p256]
      usages: [digital signature]
    conditions:
      - that: 'request.annotations["example.com/tenant"] == "a"'
        message: the tenant is a
`)
	if got := p.Warnings(); len(got) != 1 || !strings.Contains(got[0], "example.com/tenant") {
		t.Errorf("warnings: %q", got)
	}
	for tenant, granted := range map[string]bool{"a": true, "b": false} {
		s := podSubmission(t)
		s.PodCertificate.Annotations = map[string]string{"example.com/tenant": tenant}
		g, is := decideOn(p, s, livePod()).(*policy.Grant)
		if is != granted {
			t.Errorf("%s: %v", tenant, decideOn(p, s, livePod()))
		}
		if is && !slices.Equal(g.Names(), []string{"URI:spiffe://example.org/ns/shop/sa/web.v1"}) {
			t.Errorf("%s: %q", tenant, g.Names())
		}
	}
}

// What a rule for pod certificates cannot mean is a mistake.
func TestMistakesInRulesForPods(t *testing.T) {
	const pods, keys = "from: {podCertificates: true, serviceAccounts: ['*/*']}",
		"keys: [ecdsa-p256], usages: [digital signature]"
	for text, want := range map[string]string{
		pods + "\n    grant: {uris: ['spiffe://a/x'], maxLifetime: 30m, " + keys + "}": "lives for 1h0m0s at least",
		pods + "\n    grant: {uris: ['spiffe://a/x'], keys: [rsa-2048], " +
			"usages: [digital signature]}": "no type of key",
		pods + "\n    grant: {uris: ['spiffe://{trustDomain}/x'], " + keys + "}": "TRUST_DOMAIN is not set",
		pods + "\n    grant: {dnsNames: [{pattern: '*.a'}], " + keys + "}":       "is a pattern",
		pods + "\n    grant: {ipAddresses: [pod], " + keys + "}":                 "grant.ipAddresses has no meaning",
		"from: {podCertificates: true, serviceAccounts: ['*/*'], groups: [a]}\n" +
			"    grant: {uris: ['spiffe://a/x'], " + keys + "}": "from.groups has no meaning",
		"from: {serviceAccounts: ['*/*'], annotations: [a/b]}\n" +
			"    grant: {dnsNames: [a], " + keys + "}": "only requests for pod certificates",
		"from: {serviceAccounts: ['*/*']}\n" +
			"    grant: {podNames: [services], " + keys + "}": "only pod certificates have names",
		pods + "\n    grant: {podNames: [labels], " + keys + "}": "choose from: services, hostname",
	} {
		_, err := policy.Parse([]byte("version: 1\nrules:\n  - name: a\n    "+text+"\n"),
			policy.Options{ClusterDomain: "cluster.local", MaxLifetime: 24 * time.Hour})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v\nwant %s", text, err, want)
		}
	}
}

// A rule gives a pod the names of the Services that select it, and its own name below a headless
// one, when they are known. Those of the API server are nobody's.
func TestNamesOfServices(t *testing.T) {
	const rules = `version: 1
rules:
  - name: services
    from: {podCertificates: true, serviceAccounts: ["*/*"]}
    grant: {podNames: [%s], keys: [ecdsa-p256], usages: [digital signature]}
`
	const services, both = "services", "services, hostname"
	web, sets := policy.Service{Name: "web"}, policy.Service{Name: "sets", Headless: true}
	many := make([]policy.Service, 51)
	for i := range many {
		many[i].Name = fmt.Sprintf("s-%d", i)
	}
	for name, c := range map[string]struct {
		kinds, namespace string
		services         []policy.Service
		want             []string // empty: not granted
		says             string
	}{
		"one": {services, "shop", []policy.Service{web},
			[]string{"web.shop.svc", "web.shop.svc.cluster.local"}, ""},
		"a headless one": {both, "shop", []policy.Service{web, sets}, []string{"web.shop.svc",
			"web.shop.svc.cluster.local", "sets.shop.svc", "sets.shop.svc.cluster.local",
			"web-0.sets.shop.svc", "web-0.sets.shop.svc.cluster.local"}, ""},
		"its own name alone": {"hostname", "shop", []policy.Service{web, sets},
			[]string{"web-0.sets.shop.svc", "web-0.sets.shop.svc.cluster.local"}, ""},
		"its subdomain is not headless": {"hostname", "shop", []policy.Service{{Name: "sets"}}, nil,
			"a Service that selects the pod"},
		"none":          {both, "shop", []policy.Service{}, nil, "a Service that selects the pod"},
		"not looked up": {both, "shop", nil, nil, "a look-up of the Services"},
		"the API server": {services, "default", []policy.Service{{Name: "kubernetes"}}, nil,
			"a Service that selects the pod"},
		"too many": {services, "shop", many, nil, "gives 102 names"},
	} {
		p := parse(t, fmt.Sprintf(rules, c.kinds))
		s := podSubmission(t)
		s.PodCertificate.Pod.Namespace = c.namespace
		s.Requester = s.PodCertificate.Requester()
		live := s.PodCertificate.Pod
		live.Services, live.Hostname, live.Subdomain = c.services, "web-0", "sets"
		r := policy.NewRequest(s)
		query, _ := p.PodQuery(r)
		v := p.Decide(r, query.Found(live))
		grant, granted := v.(*policy.Grant)
		waiting, _ := v.(*policy.Waiting)
		refusal, _ := v.(*policy.Refusal)
		switch {
		case !query.Services || !p.NeedsServices():
			t.Errorf("%s: Services are not looked up", name)
		case granted != (c.want != nil) || granted && !slices.Equal(grant.DNSNames(), c.want):
			t.Errorf("%s: %v", name, v)
		case waiting != nil && !strings.Contains(waiting.Missing, c.says),
			refusal != nil && !strings.Contains(refusal.String(), c.says):
			t.Errorf("%s: %v", name, v)
		}
	}
	if query, _ := builtIn(t, "pods").PodQuery(
		policy.NewRequest(podSubmission(t))); query.Services {
		t.Error("Services are looked up for nothing")
	}
	if w := parse(t, fmt.Sprintf(rules, both)).Warnings(); len(w) == 0 ||
		!strings.Contains(w[0], "may label pods") {
		t.Errorf("warnings: %q", w)
	}
}
