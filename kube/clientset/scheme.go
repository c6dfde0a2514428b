package clientset

import (
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
)

// Scheme knows the types of the objects that a [Clientset] reads and writes. It registers them one
// by one: AddToScheme of a group would link all its types.
var Scheme = newScheme()

// ParameterCodec encodes the options of a call.
var ParameterCodec = runtime.NewParameterCodec(Scheme)

var codecs = serializer.NewCodecFactory(Scheme)

func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for group, types := range map[schema.GroupVersion][]runtime.Object{
		corev1.SchemeGroupVersion: {&corev1.Pod{}, &corev1.PodList{}, &corev1.ServiceAccount{},
			&corev1.Service{}, &corev1.ServiceList{}, &corev1.Node{},
			&corev1.Namespace{}, &corev1.ConfigMap{}, &corev1.Event{}},
		appsv1.SchemeGroupVersion:           {&appsv1.ReplicaSet{}},
		coordinationv1.SchemeGroupVersion:   {&coordinationv1.Lease{}},
		authenticationv1.SchemeGroupVersion: {&authenticationv1.TokenRequest{}},
		authorizationv1.SchemeGroupVersion:  {&authorizationv1.SelfSubjectAccessReview{}},
		certificatesv1.SchemeGroupVersion: {&certificatesv1.CertificateSigningRequest{},
			&certificatesv1.CertificateSigningRequestList{},
			&certificatesv1.PodCertificateRequest{}, &certificatesv1.PodCertificateRequestList{},
			&certificatesv1.ClusterTrustBundle{}},
		certificatesv1beta1.SchemeGroupVersion: {&certificatesv1beta1.CertificateSigningRequest{},
			&certificatesv1beta1.CertificateSigningRequestList{},
			&certificatesv1beta1.PodCertificateRequest{},
			&certificatesv1beta1.PodCertificateRequestList{}},
	} {
		s.AddKnownTypes(group, types...)
		metav1.AddToGroupVersion(s, group)
	}
	return s
}
