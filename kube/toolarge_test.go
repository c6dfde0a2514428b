package kube

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	"hsm-signer/internal/must"
	"hsm-signer/kube/csr"
	"hsm-signer/kube/request"
	"hsm-signer/policy"
)

// storing is an API server with one request. It refuses writes as refuse says.
type storing struct {
	csr.Client
	object *certificatesv1.CertificateSigningRequest
	refuse func(subresource string) error
	writes int
	reads  int // of the one request
}

func (s *storing) Get(context.Context, string,
	metav1.GetOptions) (*certificatesv1.CertificateSigningRequest, error) {
	s.reads++
	return s.object.DeepCopy(), nil
}

// List returns the request.
func (s *storing) List(
	context.Context, metav1.ListOptions,
) (*certificatesv1.CertificateSigningRequestList, error) {
	return &certificatesv1.CertificateSigningRequestList{
		Items: []certificatesv1.CertificateSigningRequest{*s.object.DeepCopy()},
	}, nil
}

func (s *storing) UpdateApproval(_ context.Context, _ string,
	made *certificatesv1.CertificateSigningRequest,
	_ metav1.UpdateOptions) (*certificatesv1.CertificateSigningRequest, error) {
	return s.update("approval", made)
}

func (s *storing) UpdateStatus(_ context.Context, made *certificatesv1.CertificateSigningRequest,
	_ metav1.UpdateOptions) (*certificatesv1.CertificateSigningRequest, error) {
	return s.update("status", made)
}

func (s *storing) update(subresource string,
	made *certificatesv1.CertificateSigningRequest) (*certificatesv1.CertificateSigningRequest,
	error) {
	s.writes++
	if err := s.refuse(subresource); err != nil {
		return nil, err
	}
	s.object = made.DeepCopy()
	return made, nil
}

// outcomes keeps the outcomes that a controller reports.
type outcomes struct{ all []Outcome }

func (o *outcomes) Report(r Report) {
	if outcome, is := r.(Outcome); is {
		o.all = append(o.all, outcome)
	}
}

// count returns how many outcomes have the result.
func (o *outcomes) count(result Result) int {
	n := 0
	for _, outcome := range o.all {
		if outcome.Result == result {
			n++
		}
	}
	return n
}

const trusting = `
version: 1
rules:
  - name: me
    from: {users: [me], pod: none}
    grant: {dnsNames: [a.example.com], keys: [ecdsa-p256], usages: [digital signature, server auth]}
`

// granted returns a request that the policy grants, with so many bytes in its labels.
func granted(t *testing.T, labels int) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.OK(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{DNSNames: []string{"a.example.com"}}, key)
	must.OK(t, err)
	return newCSR("example.com/a", func(made *certificatesv1.CertificateSigningRequest) {
		made.Spec.Request = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
		made.Spec.Usages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature,
			certificatesv1.UsageServerAuth}
		made.CreationTimestamp = metav1.Now()
		made.Labels["x"] = strings.Repeat("x", labels)
	})
}

var (
	errBody = apierrors.NewRequestEntityTooLargeError("limit is 3145728")
	errEtcd = apierrors.NewInternalError(errors.New("etcdserver: request is too large"))
)

// A request that cannot be written is refused once: no fault, no second try, nothing signed. One
// that only its certificate does not fit into ends as refused.
func TestWhatCannotBeWrittenIsLeftAlone(t *testing.T) {
	const full = request.MostStored - 2*request.RoomForRefusal
	always := func(err error) func(string) error { return func(string) error { return err } }
	for name, c := range map[string]struct {
		labels  int
		refuse  func(string) error
		writes  int // in two turns of the first version of the object
		refused bool
		told    string
	}{
		"has room":                  {100, always(nil), 2, false, "published"},
		"no room for a certificate": {full, always(nil), 1, true, ""},
		"no room at all":            {request.MostStored, always(nil), 0, true, ""},
		"smaller limit of the API server": {100, always(errBody), 2, true,
			"orphaned: the request is too large to take it"},
		"smaller limit of etcd": {100, always(errEtcd), 2, true,
			"orphaned: the request is too large to take it"},
		"smaller limit, that of a denial": {full, always(errEtcd), 1, true, ""},
		"smaller limit, approval fits": {100, func(s string) error {
			return map[string]error{"status": errEtcd}[s]
		}, 3, true, "orphaned: the request is too large to take it"},
		"smaller limit, certificate alone": {100, certificateIsTooLarge(), 3, true,
			"orphaned: the request is too large to take it"},
		"smaller limit, as by a server of 1.18": {100,
			always(&apierrors.StatusError{ErrStatus: metav1.Status{Code: 500,
				Message: "etcdserver: request is too large"}}), 2, true,
			"orphaned: the request is too large to take it"},
	} {
		t.Run(name, func(t *testing.T) {
			issuer := &remembering{told: map[string]string{}}
			controller, _ := withStore(t, issuer, func() bool { return true })
			p, err := policy.Parse([]byte(trusting),
				policy.Options{ClusterDomain: "cluster.local", MaxLifetime: time.Hour})
			must.OK(t, err)
			kept, events := &outcomes{}, record.NewFakeRecorder(16)
			controller.Decider, controller.events.recorder = p, events
			controller.sinks = sinks{kept, controller.events}
			server := &storing{object: granted(t, c.labels), refuse: c.refuse}
			api := apiOf(controller)
			api.Client = server
			look := func() {
				page, err := api.List(t.Context(), metav1.ListOptions{})
				if err == nil {
					err = controller.requests.Load().stores[0].Update(page.Items[0])
				}
				must.OK(t, err)
				controller.serve(t.Context(), t.Context(), key{"n", "u"})
			}
			look()
			look()
			if server.writes != c.writes || kept.count(ResultFault) != 0 ||
				controller.queue.NumRequeues(key{"n", "u"}) != 0 {
				t.Errorf("%d writes (want %d), %d faults, %d retries", server.writes, c.writes,
					kept.count(ResultFault), controller.queue.NumRequeues(key{"n", "u"}))
			}
			if want := map[bool]int{true: 1}[c.refused]; kept.count(ResultRefused) != want ||
				len(events.Events) != want || tooLargeIn(kept.all) != want {
				t.Errorf("%d refused, %d events, %d too large; want %d of each",
					kept.count(ResultRefused), len(events.Events), tooLargeIn(kept.all), want)
			}
			if want := map[bool]int{true: 1}[!c.refused]; kept.count(ResultIssued) != want ||
				len(kept.all) != 1 {
				t.Errorf("%d issued, want %d; of %d outcomes", kept.count(ResultIssued), want,
					len(kept.all))
			}
			if issuer.told["u"] != c.told {
				t.Errorf("the issuer was told %q; want %q", issuer.told["u"], c.told)
			}
		})
	}
}

// certificateIsTooLarge refuses what holds a certificate, the second write, and nothing after it.
func certificateIsTooLarge() func(string) error {
	writes := 0
	return func(string) error {
		if writes++; writes == 2 {
			return errEtcd
		}
		return nil
	}
}

// tooLargeIn counts the refusals of objects that are too large.
func tooLargeIn(all []Outcome) int {
	n := 0
	for _, outcome := range all {
		if refusal, is := outcome.Verdict.(*policy.Refusal); is &&
			refusal.Code() == policy.ObjectTooLarge {
			n++
		}
	}
	return n
}

// What is remembered is bounded, and an object that has changed is read again.
func TestIgnoredIsBounded(t *testing.T) {
	var i unwritable
	for n := range 2 * mostUnwritable {
		if !i.add(types.UID(fmt.Sprint(n)), "1") {
			t.Fatalf("%d was there", n)
		}
	}
	if len(i.versions) != mostUnwritable || len(i.order) != mostUnwritable {
		t.Errorf("%d and %d are remembered", len(i.versions), len(i.order))
	}
	object := newCSR("", nil)
	last := (&csr.API{}).Whole(object)
	last.UID, last.ResourceVersion = types.UID(fmt.Sprint(2*mostUnwritable-1)), "1"
	if i.add(last.UID, "1") || !i.has(last) {
		t.Error("the last is not remembered")
	}
	if last.ResourceVersion = "2"; i.has(last) {
		t.Error("it is remembered although it has changed")
	}
}
