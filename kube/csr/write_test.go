package csr

import (
	"context"
	"reflect"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// writes is an API server that keeps what is written.
type writes struct {
	Client
	sent *certificatesv1.CertificateSigningRequest
}

func (w *writes) UpdateApproval(_ context.Context, _ string,
	csr *certificatesv1.CertificateSigningRequest, _ metav1.UpdateOptions,
) (*certificatesv1.CertificateSigningRequest, error) {
	w.sent = csr
	return csr.DeepCopy(), nil
}

func (w *writes) UpdateStatus(_ context.Context, csr *certificatesv1.CertificateSigningRequest,
	_ metav1.UpdateOptions) (*certificatesv1.CertificateSigningRequest, error) {
	w.sent = csr
	return csr.DeepCopy(), nil
}

// A write sends the whole object except for its managed fields, with the UID and the version that
// were read, and changes nothing of what others may read.
func TestAWriteSendsTheObjectThatWasRead(t *testing.T) {
	const approved, denied, failed = certificatesv1.CertificateApproved,
		certificatesv1.CertificateDenied, certificatesv1.CertificateFailed
	type kind = certificatesv1.RequestConditionType
	for name, c := range map[string]struct {
		before, after []kind
		certificate   string
		write         func(r *Request) error
	}{
		"approve": {nil, []kind{approved}, "", func(r *Request) error {
			_, err := r.Approve(t.Context(), "R", "m")
			return err
		}},
		"publish": {[]kind{approved}, []kind{approved}, "chain", func(r *Request) error {
			_, err := r.Publish(t.Context(), []byte("chain"))
			return err
		}},
		"deny": {nil, []kind{denied}, "", func(r *Request) error {
			return r.Refuse(t.Context(), "R", "m")
		}},
		"fail": {[]kind{approved}, []kind{approved, failed}, "", func(r *Request) error {
			return r.Refuse(t.Context(), "R", "m")
		}},
	} {
		csr := newRequest("example.com/a", func(r *certificatesv1.CertificateSigningRequest) {
			r.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}
			// with room for one more, which must not be written to
			r.Status.Conditions = make([]certificatesv1.CertificateSigningRequestCondition, 0, 2)
			for _, kind := range c.before {
				r.Status.Conditions = append(r.Status.Conditions, condition(kind, "True"))
			}
		})
		server, former := &writes{}, csr.DeepCopy()
		r := (&API{Client: server}).Whole(csr)
		if err := c.write(r); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		spare := csr.Status.Conditions[:len(c.before)+1][len(c.before)]
		if !reflect.DeepEqual(csr, former) || spare.Type != "" {
			t.Errorf("%s changed the object: %+v, %+v", name, csr, spare)
		}
		var kinds []kind
		for _, condition := range server.sent.Status.Conditions {
			kinds = append(kinds, condition.Type)
		}
		want := former.DeepCopy()
		want.ManagedFields, want.Status = nil, server.sent.Status
		if !reflect.DeepEqual(server.sent, want) || !reflect.DeepEqual(kinds, c.after) ||
			string(server.sent.Status.Certificate) != c.certificate {
			t.Errorf("%s sent %+v", name, server.sent)
		}
	}
}
