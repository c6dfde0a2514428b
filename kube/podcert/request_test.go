package podcert

import (
	"errors"
	"reflect"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"hsm-signer/internal/must"
	"hsm-signer/kube/request"
)

func requestWith(conditions ...metav1.Condition) *Request {
	return &Request{api: &API{}, PodCertificateRequest: &certificatesv1.PodCertificateRequest{
		Status: certificatesv1.PodCertificateRequestStatus{Conditions: conditions},
	}}
}

// The state is that of the one condition that is true.
func TestStateIsThatOfTheCondition(t *testing.T) {
	for kind, want := range map[string]request.State{
		"Issued": request.Issued, "Denied": request.Refused, "Failed": request.Refused,
		"Other": request.Approved,
	} {
		yes := metav1.Condition{Type: kind, Status: metav1.ConditionTrue}
		no := metav1.Condition{Type: kind, Status: metav1.ConditionFalse}
		if got := requestWith(yes).State(); got != want {
			t.Errorf("%s: %d", kind, got)
		}
		if got := requestWith(no).State(); got != request.Approved {
			t.Errorf("not %s: %d", kind, got)
		}
	}
	if got := requestWith().State(); got != request.Approved {
		t.Errorf("without a condition: %d", got)
	}
}

// An open request without a key is left as it is: it is an earlier kubelet's.
func TestRequestWithoutAKeyIsIgnored(t *testing.T) {
	r := requestWith()
	if r.Ignored() == "" {
		t.Error("a request without a key is answered")
	}
	r.Spec.StubPKCS10Request = []byte{1}
	if why := r.Ignored(); why != "" {
		t.Errorf("a request with a key: %s", why)
	}
}

// The refresh begins at half of the lifetime, and ten minutes from both ends.
func TestRefreshAtHalfOfTheLifetime(t *testing.T) {
	begin := time.Date(2026, 11, 29, 8, 0, 1, 0, time.UTC)
	for lifetime, want := range map[time.Duration]time.Duration{
		time.Hour: 30 * time.Minute, 24 * time.Hour: 12 * time.Hour,
		time.Hour + time.Second: 30 * time.Minute, 91 * 24 * time.Hour: 91 * 12 * time.Hour,
	} {
		end := begin.Add(lifetime)
		at := refreshAt(begin, end)
		if at.Sub(begin) != want || at.Before(begin.Add(leastFromEnds)) ||
			at.After(end.Add(-leastFromEnds)) || at.Nanosecond() != 0 {
			t.Errorf("%s: after %s", lifetime, at.Sub(begin))
		}
	}
}

// Only what the API server says of the notBefore gives a certificate up.
func TestRefusalOfTheNotBefore(t *testing.T) {
	kind := schema.GroupKind{Group: "certificates.k8s.io", Kind: "PodCertificateRequest"}
	invalid := func(path string) error {
		return apierrors.NewInvalid(kind, "a", field.ErrorList{
			field.Invalid(field.NewPath("status", path), nil, "wrong")})
	}
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"notBefore": {invalid("notBefore"), true}, "notAfter": {invalid("notAfter"), false},
		"nothing": {nil, false}, "a fault": {errors.New("status.notBefore"), false},
		"a conflict": {apierrors.NewConflict(schema.GroupResource{}, "a", nil), false},
	} {
		if got := refusesNotBefore(c.err); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// What is listed of a finished request, and the metadata of a large one, is not kept.
func TestListedRequestIsTrimmed(t *testing.T) {
	a := &API{}
	large := func(conditions ...metav1.Condition) *Request {
		return &Request{api: a, PodCertificateRequest: &certificatesv1.PodCertificateRequest{
			ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "b", UID: "c",
				Annotations:   map[string]string{"large": string(make([]byte, 16<<10))},
				ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}},
			Spec: certificatesv1.PodCertificateRequestSpec{SignerName: "s", PodName: "p",
				StubPKCS10Request: []byte{1}},
			Status: certificatesv1.PodCertificateRequestStatus{Conditions: conditions},
		}}
	}
	if r := a.trim(large()); !r.Truncated() || r.Annotations != nil || r.Spec.PodName != "p" {
		t.Errorf("open: %+v", r.PodCertificateRequest)
	}
	done := large(metav1.Condition{Type: "Issued", Status: metav1.ConditionTrue})
	if r := a.trim(done); r.Spec.PodName != "" || r.Spec.SignerName != "s" ||
		r.State() != request.Issued || r.Namespace != "b" {
		t.Errorf("finished: %+v", r.PodCertificateRequest)
	}
}

// A request of v1beta1 is read as one of v1, with its key in addition, and answered in v1beta1.
func TestBothVersionsAreOne(t *testing.T) {
	old := &certificatesv1beta1.PodCertificateRequest{ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	fill(reflect.ValueOf(&old.Spec).Elem())
	fill(reflect.ValueOf(&old.Status).Elem())
	a := &API{version: group + "v1beta1"}
	r, err := a.whole(old, nil)
	must.OK(t, err)
	requireFilled(t, "spec", reflect.ValueOf(r.Spec))
	requireFilled(t, "status", reflect.ValueOf(r.Status))
	claim := r.Submission().PodCertificate
	if r.Name != old.Name || len(claim.Key) == 0 || len(claim.Proof) == 0 || len(claim.Stub) == 0 {
		t.Errorf("%+v", claim)
	}
	r.Spec.StubPKCS10Request = nil
	r.Status.Conditions = nil
	if why := r.Ignored(); why != "" {
		t.Errorf("a request with a key of v1beta1: %s", why)
	}
	written, is := a.statusOf(r.PodCertificateRequest).(*certificatesv1beta1.PodCertificateRequest)
	if !is || written.Name != old.Name || written.Status.CertificateChain == "" {
		t.Errorf("%T %+v", written, written)
	}
	a.version = group + "v1"
	if _, is := a.statusOf(r.PodCertificateRequest).(*certificatesv1.PodCertificateRequest); !is {
		t.Error("v1 is written as another version")
	}
	if _, err := a.whole(&metav1.Status{}, nil); err == nil {
		t.Error("a status is a request")
	}
}

// fill gives every field of a struct a value.
func fill(v reflect.Value) {
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString("x")
		case reflect.Pointer:
			f.Set(reflect.New(f.Type().Elem()))
		case reflect.Slice:
			f.Set(reflect.MakeSlice(f.Type(), 1, 1))
		case reflect.Map:
			f.Set(reflect.MakeMap(f.Type()))
		}
	}
}

// requireFilled requires that every field of a struct has a value.
func requireFilled(t *testing.T, name string, v reflect.Value) {
	t.Helper()
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("%s.%s was lost", name, v.Type().Field(i).Name)
		}
	}
}
