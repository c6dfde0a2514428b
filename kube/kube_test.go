package kube

import (
	"net/netip"
	"reflect"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/policy"
)

// What the loop does is tested against a real API server, in the module "integration".

func condition(kind certificatesv1.RequestConditionType,
	status corev1.ConditionStatus) certificatesv1.CertificateSigningRequestCondition {
	return certificatesv1.CertificateSigningRequestCondition{Type: kind, Status: status}
}

// What a decision may see of a pod is taken from it, with what an address is worth.
func TestFactsOfAPod(t *testing.T) {
	got := podOf(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "p", UID: "u"},
		Spec:       corev1.PodSpec{ServiceAccountName: "sa", NodeName: "n-1", HostNetwork: true},
		Status:     corev1.PodStatus{Phase: corev1.PodFailed, PodIP: "10.0.0.7"},
	})
	want := policy.Pod{
		Namespace: "n", Name: "p", UID: "u", ServiceAccount: "sa", Node: "n-1", HostNetwork: true,
		Finished: true,
		IPs:      []netip.Addr{netip.MustParseAddr("10.0.0.7")},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v; want %+v", got, want)
	}
}

func TestStateIsReadFromTheObject(t *testing.T) {
	const yes, no = corev1.ConditionTrue, corev1.ConditionFalse
	type conditions = []certificatesv1.CertificateSigningRequestCondition
	for _, c := range []struct {
		name        string
		conditions  conditions
		certificate string
		want        state
	}{
		{"nothing yet", nil, "", pending},
		{"approved", conditions{condition(certificatesv1.CertificateApproved, yes)}, "", approved},
		{"approved, says v1beta1 of old",
			conditions{condition(certificatesv1.CertificateApproved, "")}, "", approved},
		{"not approved", conditions{condition(certificatesv1.CertificateApproved, no)}, "",
			pending},
		{"issued", conditions{condition(certificatesv1.CertificateApproved, yes)}, "x", done},
		{"denied", conditions{condition(certificatesv1.CertificateDenied, yes)}, "", done},
		{"failed after it was approved",
			conditions{condition(certificatesv1.CertificateApproved, yes),
				condition(certificatesv1.CertificateFailed, yes)}, "", done},
		{"another condition", conditions{condition("Seen", yes)}, "", pending},
		{"a certificate that nobody approved", nil, "x", done},
	} {
		csr :=
			&certificatesv1.CertificateSigningRequest{Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: "example.com/a"}, Status: certificatesv1.CertificateSigningRequestStatus{Conditions: c.conditions, Certificate: []byte(c.certificate)}}
		if got := stateOf(csr); got != c.want {
			t.Errorf("%s: state %d, want %d", c.name, got, c.want)
		}
	}
}

// Without a signer name the certificate comes first and the approval after it.
func TestUnsetSignerNameIsDoneWhenApproved(t *testing.T) {
	csr :=
		&certificatesv1.CertificateSigningRequest{Status: certificatesv1.CertificateSigningRequestStatus{Certificate: []byte("x")}}
	if got := stateOf(csr); got != pending {
		t.Errorf("with a certificate alone: state %d", got)
	}
	csr.Status.Conditions = append(csr.Status.Conditions,
		condition(certificatesv1.CertificateApproved, corev1.ConditionTrue))
	if got := stateOf(csr); got != done {
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
		controller :=
			&Controller{Config: Config{SignerNames: []string{"example.com/a", "example.com/b"},
				AcceptUnset: c.acceptUnset}}
		csr :=
			&certificatesv1.CertificateSigningRequest{Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: c.signer}}
		if got := controller.serves(csr); got != c.want {
			t.Errorf("%q, accept unset %t: %t", c.signer, c.acceptUnset, got)
		}
	}
}
