package csr

import (
	"bytes"
	"context"
	"reflect"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"hsm-signer/internal/must"
	"hsm-signer/policy/pkcs10"
)

const megabyte = 1 << 20

func newRequest(signer string,
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
	api := &API{Kind: Kind{SignerNames: []string{"example.com/a"}}}
	big := strings.Repeat("x", megabyte)
	for name, csr := range map[string]*certificatesv1.CertificateSigningRequest{
		"annotations": newRequest("example.com/a",
			func(r *certificatesv1.CertificateSigningRequest) { r.Annotations["x"] = big }),
		"labels": newRequest("example.com/a",
			func(r *certificatesv1.CertificateSigningRequest) { r.Labels["x"] = big }),
		"finalizers": newRequest("example.com/a",
			func(r *certificatesv1.CertificateSigningRequest) { r.Finalizers = []string{big} }),
		"fields": newRequest("example.com/a", func(r *certificatesv1.CertificateSigningRequest) {
			r.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: big}}
		}),
		"request": newRequest("example.com/a", func(r *certificatesv1.CertificateSigningRequest) {
			r.Spec.Request = []byte(big)
		}),
		"another's": newRequest("example.com/b", func(r *certificatesv1.CertificateSigningRequest) {
			r.Spec.Request = []byte(big)
		}),
		"done": newRequest("example.com/a", func(r *certificatesv1.CertificateSigningRequest) {
			r.Spec.Request, r.Status.Certificate = []byte(big), []byte("c")
			r.Status.Conditions = append(r.Status.Conditions,
				condition(certificatesv1.CertificateApproved, corev1.ConditionTrue))
		}),
	} {
		was, inMeta := api.Whole(csr).State(),
			name == "annotations" || name == "labels" || name == "finalizers"
		kept := api.trim(csr)
		csr = kept.CertificateSigningRequest
		if csr.Size() > 2*pkcs10.MaxPEM || csr.Name != "n" || csr.UID != "u" ||
			csr.ResourceVersion != "7" || kept.State() != was || kept.Truncated() != inMeta {
			t.Errorf("%s: %d bytes are kept; truncated: %t; %+v", name, csr.Size(),
				kept.Truncated(), csr.ObjectMeta)
		}
		if name == "request" &&
			!(len(csr.Spec.Request) > pkcs10.MaxPEM &&
				bytes.HasPrefix([]byte(big), csr.Spec.Request) && csr.Labels["a"] == "b") {
			t.Errorf("of a long request %d bytes are kept, which would not be refused, or labels "+
				"are lost: %v", len(csr.Spec.Request), csr.Labels)
		}
	}
	small, want := newRequest("example.com/a", nil), newRequest("example.com/a", nil)
	if kept := api.trim(small); !reflect.DeepEqual(kept, api.Whole(want)) {
		t.Errorf("an ordinary request was changed: %+v", kept)
	}
}

// The API server takes a name of 400 KiB. Such a request is ignored, and little of it is kept, by
// the same name each time, so that its deletion finds it.
func TestLongNameIsIgnored(t *testing.T) {
	for _, keep := range []bool{false, true} {
		kind := Kind{SignerNames: []string{"example.com/a"}, AcceptUnset: true, KeepFinished: keep}
		api := &API{Kind: kind}
		long := func() *Request {
			return api.trim(newRequest("example.com/a",
				func(r *certificatesv1.CertificateSigningRequest) {
					r.Name = strings.Repeat("x", megabyte)
				}))
		}
		kept := long()
		if kept.Size() > 1<<10 || kept.Ignored() == "" || kept.Name != long().Name {
			t.Errorf("keep %t: %.300v is kept: %s", keep, kept.CertificateSigningRequest,
				kept.Ignored())
		}
		if short := api.trim(newRequest("example.com/a", nil)); short.Ignored() != "" {
			t.Errorf("keep %t: an ordinary request is ignored: %s", keep, short.Ignored())
		}
	}
}

// What is listed and watched is trimmed; a bookmark is client-go's and stays as it is.
func TestEverythingThatComesIsTrimmed(t *testing.T) {
	big := func() *certificatesv1.CertificateSigningRequest {
		return newRequest("example.com/a", func(r *certificatesv1.CertificateSigningRequest) {
			r.Annotations["x"] = strings.Repeat("x", megabyte)
		})
	}
	server := &sending{
		page: certificatesv1.CertificateSigningRequestList{
			Items: []certificatesv1.CertificateSigningRequest{*big()},
		},
		events: watch.NewFakeWithOptions(watch.FakeOptions{ChannelSize: 8}),
	}
	api := &API{Kind: Kind{SignerNames: []string{"example.com/a"}}, Client: server}
	page, err := api.List(t.Context(), metav1.ListOptions{})
	if err != nil || len(page.Items) != 1 || !page.Items[0].(*Request).Truncated() {
		t.Errorf("listed %v: %v", page, err)
	}
	for _, e := range []watch.EventType{watch.Added, watch.Modified, watch.Deleted,
		watch.Bookmark} {
		server.events.Action(e, big())
	}
	w, err := api.Watch(t.Context(), metav1.ListOptions{})
	must.OK(t, err)
	defer w.Stop()
	for range 4 {
		e := <-w.ResultChan()
		r, is := e.Object.(*Request)
		if is != (e.Type != watch.Bookmark) || is && !r.Truncated() {
			t.Errorf("%s: %T", e.Type, e.Object)
		}
	}
}

// sending is an API server with one page of requests, and these events.
type sending struct {
	Client
	page   certificatesv1.CertificateSigningRequestList
	events *watch.FakeWatcher
}

// List returns the page.
func (s *sending) List(
	context.Context, metav1.ListOptions,
) (*certificatesv1.CertificateSigningRequestList, error) {
	return &s.page, nil
}

// Watch returns the events.
func (s *sending) Watch(context.Context, metav1.ListOptions) (watch.Interface, error) {
	return s.events, nil
}
