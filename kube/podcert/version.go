package podcert

import (
	"fmt"

	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/json"

	"hsm-signer/policy"
)

// Submission reads a request in JSON, of either version, and returns its name NAMESPACE/NAME and
// what a decision may see of it.
func Submission(object []byte) (name string, s policy.Submission, err error) {
	pcr := &certificatesv1beta1.PodCertificateRequest{} // which has all fields of v1
	if err := json.Unmarshal(object, pcr); err != nil {
		return "", policy.Submission{}, err
	}
	r, err := (&API{}).whole(pcr, nil)
	if err != nil {
		return "", policy.Submission{}, err
	}
	s = r.Submission()
	return s.Name, s, nil
}

// whole passes on an error, or returns the request of an object of either version, with nothing
// taken from it. The object must not be changed afterwards.
func (a *API) whole(object runtime.Object, err error) (*Request, error) {
	if err != nil {
		return nil, err
	}
	switch pcr := object.(type) {
	case *certificatesv1.PodCertificateRequest:
		return &Request{PodCertificateRequest: pcr, api: a}, nil
	case *certificatesv1beta1.PodCertificateRequest:
		//lint:ignore SA1019 kubelets before 1.36 put their key only there
		key, proof := pcr.Spec.PKIXPublicKey, pcr.Spec.ProofOfPossession
		return &Request{PodCertificateRequest: upgrade(pcr), api: a, key: key, proof: proof}, nil
	}
	return nil, fmt.Errorf("the API server returned %T instead of a pod certificate request",
		object)
}

// upgrade returns the request of v1beta1 as that of v1, which lacks the fields of the key.
func upgrade(old *certificatesv1beta1.PodCertificateRequest) *certificatesv1.PodCertificateRequest {
	s := old.Spec
	return &certificatesv1.PodCertificateRequest{
		ObjectMeta: old.ObjectMeta,
		Spec: certificatesv1.PodCertificateRequestSpec{
			SignerName: s.SignerName, PodName: s.PodName, PodUID: s.PodUID,
			ServiceAccountName: s.ServiceAccountName, ServiceAccountUID: s.ServiceAccountUID,
			NodeName: s.NodeName, NodeUID: s.NodeUID, MaxExpirationSeconds: s.MaxExpirationSeconds,
			StubPKCS10Request:         s.StubPKCS10Request,
			UnverifiedUserAnnotations: s.UnverifiedUserAnnotations,
		},
		Status: certificatesv1.PodCertificateRequestStatus(old.Status),
	}
}

// statusOf returns an object of the API's version to update the status with. The API server takes
// nothing else of it.
func (a *API) statusOf(pcr *certificatesv1.PodCertificateRequest) runtime.Object {
	if a.version == group+"v1" {
		return pcr
	}
	return &certificatesv1beta1.PodCertificateRequest{ObjectMeta: pcr.ObjectMeta,
		Spec:   certificatesv1beta1.PodCertificateRequestSpec{SignerName: pcr.Spec.SignerName},
		Status: certificatesv1beta1.PodCertificateRequestStatus(pcr.Status)}
}
