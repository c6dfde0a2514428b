package kube

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/policy/pkcs10"
)

const megabyte = 1 << 20

func request(signer string,
	change func(
		*certificatesv1.CertificateSigningRequest)) *certificatesv1.CertificateSigningRequest {
	csr := &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "u", ResourceVersion: "7",
			Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"}},
		Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: signer, Username: "me",
			Request: []byte("r")},
	}
	if change != nil {
		change(csr)
	}
	return csr
}

// Whatever a requester puts into a request, what is kept of it is small, and what a sync needs of
// it is there.
func TestOnlyWhatIsNeededIsKept(t *testing.T) {
	c := &Controller{Config: Config{SignerNames: []string{"example.com/a"}, Mode: Approve}}
	big := strings.Repeat("x", megabyte)
	for name, csr := range map[string]*certificatesv1.CertificateSigningRequest{
		"annotations": request("example.com/a", func(r *certificatesv1.CertificateSigningRequest) {
			r.Annotations["x"] = big
		}),
		"labels": request("example.com/a", func(r *certificatesv1.CertificateSigningRequest) {
			r.Labels["x"] = big
		}),
		"finalizers": request("example.com/a", func(r *certificatesv1.CertificateSigningRequest) {
			r.Finalizers = []string{big}
		}),
		"fields": request("example.com/a", func(r *certificatesv1.CertificateSigningRequest) {
			r.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: big}}
		}),
		"request": request("example.com/a", func(r *certificatesv1.CertificateSigningRequest) {
			r.Spec.Request = []byte(big)
		}),
		"another's": request("example.com/b", func(r *certificatesv1.CertificateSigningRequest) {
			r.Spec.Request = []byte(big)
		}),
		"done": request("example.com/a", func(r *certificatesv1.CertificateSigningRequest) {
			r.Spec.Request, r.Status.Certificate = []byte(big), []byte("c")
			r.Status.Conditions = append(r.Status.Conditions,
				condition(certificatesv1.CertificateApproved, corev1.ConditionTrue))
		}),
	} {
		was, inMeta := stateOf(csr),
			name == "annotations" || name == "labels" || name == "finalizers"
		kept := any(csr)
		for range 2 {
			var err error
			if kept, err = c.trim(kept); err != nil {
				t.Fatal(err)
			}
			csr = requestIn(kept)
			truncated := kept.(*stored).truncated
			if csr.Size() > 2*pkcs10.MaxPEM || csr.Name != "n" || csr.UID != "u" ||
				csr.ResourceVersion != "7" || stateOf(csr) != was || truncated != inMeta {
				t.Errorf("%s: %d bytes are kept; truncated: %t; %+v", name, csr.Size(), truncated,
					csr.ObjectMeta)
			}
		}
		if name == "request" &&
			!(len(csr.Spec.Request) > pkcs10.MaxPEM &&
				bytes.HasPrefix([]byte(big), csr.Spec.Request) && csr.Labels["a"] == "b") {
			t.Errorf("of a long request %d bytes are kept, which would not be refused, or labels "+
				"are lost: %v", len(csr.Spec.Request), csr.Labels)
		}
	}
	small, want := request("example.com/a", nil), request("example.com/a", nil)
	if kept, err := c.trim(small); err != nil ||
		!reflect.DeepEqual(kept, &stored{CertificateSigningRequest: want}) {
		t.Errorf("an ordinary request was changed: %+v, %v", kept, err)
	}
}

// The API server takes a name of 400 KiB. Such a request is left alone, little of it is kept, and
// nothing of it when it is deleted.
func TestLongNameIsLeftAlone(t *testing.T) {
	for _, mode := range []Mode{Approve, Shadow} {
		c := &Controller{Config: Config{SignerNames: []string{"example.com/a"}, AcceptUnset: true,
			Mode: mode, Logger: hclog.NewNullLogger()}}
		long := func() *certificatesv1.CertificateSigningRequest {
			return request("example.com/a", func(r *certificatesv1.CertificateSigningRequest) {
				r.Name = strings.Repeat("x", megabyte)
			})
		}
		m, _ := c.newStore(nil)
		m.added, m.updated, m.deleted = func(any) {}, func(any, any) {}, func(any) {}
		if err := errors.Join(m.Add(long()), m.Update(long())); err != nil {
			t.Fatal(err)
		}
		kept := m.List()
		if len(kept) != 1 || requestIn(kept[0]).Size() > 1<<10 || c.serves(requestIn(kept[0])) {
			t.Errorf("%s: %d are kept: %.300v", mode, len(kept), kept)
		}
		if err := m.Delete(long()); err != nil || len(m.List()) > 0 {
			t.Errorf("%s: %d are left: %v", mode, len(m.List()), err)
		}
	}
}
