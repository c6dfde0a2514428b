package csr

import (
	"reflect"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/internal/must"
)

// Nothing gets lost between the two versions of the API, there and back.
func TestLegacyRequestsTravelWhole(t *testing.T) {
	signer, seconds := "example.com/a", int32(3600)
	old := &certificatesv1beta1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "u", ResourceVersion: "7",
			Labels: map[string]string{"a": "b"}},
		Spec: certificatesv1beta1.CertificateSigningRequestSpec{
			Request: []byte("r"), SignerName: &signer, ExpirationSeconds: &seconds, Username: "me",
			UID: "mine", Groups: []string{"g"},
			Usages: []certificatesv1beta1.KeyUsage{certificatesv1beta1.UsageServerAuth},
			Extra:  map[string]certificatesv1beta1.ExtraValue{"k": {"v", "w"}},
		},
		Status: certificatesv1beta1.CertificateSigningRequestStatus{
			Certificate: []byte("c"),
			Conditions: []certificatesv1beta1.CertificateSigningRequestCondition{{
				Type: certificatesv1beta1.CertificateApproved, Status: corev1.ConditionTrue,
				Reason: "R", Message: "M",
			}},
		},
	}
	request, err := upgrade[certificatesv1.CertificateSigningRequest](old, nil)
	must.OK(t, err)
	if request.Spec.SignerName != signer || request.UID != "u" || request.ResourceVersion != "7" ||
		request.Spec.Extra["k"][1] != "w" ||
		request.Status.Conditions[0].Message != "M" || string(request.Status.Certificate) != "c" {
		t.Errorf("as v1: %+v", request)
	}
	back, err := downgrade(request)
	if err != nil || !reflect.DeepEqual(back, old) {
		t.Errorf("there and back: %v\n%+v\n%+v", err, back, old)
	}
	request.Spec.SignerName = ""
	if back, err := downgrade(request); err != nil || back.Spec.SignerName != nil {
		t.Errorf("an unset signer name came back as %v, %v", back.Spec.SignerName, err)
	}
}
