package csr

import (
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"

	"hsm-signer/kube/request"
)

func condition(
	kind certificatesv1.RequestConditionType, status corev1.ConditionStatus,
) certificatesv1.CertificateSigningRequestCondition {
	return certificatesv1.CertificateSigningRequestCondition{Type: kind, Status: status}
}

func TestStateIsReadFromTheObject(t *testing.T) {
	const yes, no = corev1.ConditionTrue, corev1.ConditionFalse
	type conditions = []certificatesv1.CertificateSigningRequestCondition
	for _, c := range []struct {
		name        string
		conditions  conditions
		certificate string
		want        request.State
	}{
		{"nothing yet", nil, "", request.Pending},
		{"approved", conditions{condition(certificatesv1.CertificateApproved, yes)}, "",
			request.Approved},
		{"approved, says v1beta1 of old",
			conditions{condition(certificatesv1.CertificateApproved, "")}, "", request.Approved},
		{"not approved", conditions{condition(certificatesv1.CertificateApproved, no)}, "",
			request.Pending},
		{"issued", conditions{condition(certificatesv1.CertificateApproved, yes)}, "x",
			request.Issued},
		{"denied", conditions{condition(certificatesv1.CertificateDenied, yes)}, "",
			request.Refused},
		{"failed after it was approved",
			conditions{condition(certificatesv1.CertificateApproved, yes),
				condition(certificatesv1.CertificateFailed, yes)}, "", request.Refused},
		{"denied, with a certificate", conditions{condition(certificatesv1.CertificateDenied, yes)},
			"x", request.Unclear},
		{"another condition", conditions{condition("Seen", yes)}, "", request.Pending},
		{"a certificate that nobody approved", nil, "x", request.Unclear},
	} {
		csr := &certificatesv1.CertificateSigningRequest{
			Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: "example.com/a"},
			Status: certificatesv1.CertificateSigningRequestStatus{
				Conditions: c.conditions, Certificate: []byte(c.certificate),
			},
		}
		if got := (&API{}).Whole(csr).State(); got != c.want {
			t.Errorf("%s: state %d, want %d", c.name, got, c.want)
		}
	}
}

// Without a signer name the certificate comes first and the approval after it.
func TestUnsetSignerNameIsDoneWhenApproved(t *testing.T) {
	csr := &certificatesv1.CertificateSigningRequest{
		Status: certificatesv1.CertificateSigningRequestStatus{Certificate: []byte("x")},
	}
	if got := (&API{}).Whole(csr).State(); got != request.Pending {
		t.Errorf("with a certificate alone: state %d", got)
	}
	csr.Status.Conditions = append(csr.Status.Conditions,
		condition(certificatesv1.CertificateApproved, corev1.ConditionTrue))
	if got := (&API{}).Whole(csr).State(); got != request.Issued {
		t.Errorf("with a certificate and approved: state %d", got)
	}
}

func TestServesItsOwnSignersAlone(t *testing.T) {
	for _, c := range []struct {
		signer      string
		acceptUnset bool
		want        bool
	}{
		{"example.com/a", false, true},
		{"example.com/b", false, true},
		{"example.com/c", false, false},
		{"example.com/A", false, false},
		{"", false, false},
		{"", true, true},
	} {
		kind := Kind{
			SignerNames: []string{"example.com/a", "example.com/b"}, AcceptUnset: c.acceptUnset,
		}
		if got := kind.Serves(c.signer); got != c.want {
			t.Errorf("%q, accept unset %t: %t", c.signer, c.acceptUnset, got)
		}
	}
}
