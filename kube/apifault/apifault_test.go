package apifault

import (
	"errors"
	"fmt"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var requests = schema.GroupResource{Group: "certificates.k8s.io",
	Resource: "certificatesigningrequests"}

// Other errors of a write stay faults, also one that the API server calls invalid.
func TestTooLarge(t *testing.T) {
	for _, err := range []error{
		apierrors.NewRequestEntityTooLargeError("limit is 3145728"),
		apierrors.NewInternalError(errors.New("etcdserver: request is too large")),
		&apierrors.StatusError{ErrStatus: metav1.Status{Code: 500,
			Message: "etcdserver: request is too large"}},
	} {
		if !TooLarge(fmt.Errorf("approve: %w", err)) {
			t.Errorf("is too large: %v", err)
		}
	}
	for _, err := range []error{
		nil,
		apierrors.NewInvalid(schema.GroupKind{Kind: "CertificateSigningRequest"},
			"request is too large", nil),
		apierrors.NewInternalError(errors.New("etcdserver: request timed out")),
		apierrors.NewBadRequest("etcdserver: request is too large"),
		errors.New("etcdserver: request is too large"),
	} {
		if TooLarge(err) {
			t.Errorf("is not too large: %v", err)
		}
	}
}

// A version of the API that is gone is not an object that is gone.
func TestVersionGone(t *testing.T) {
	gone := apierrors.NewGenericServerResponse(404, "get", requests, "n", "404 page not found",
		0, true)
	if !VersionGone(fmt.Errorf("read: %w", gone)) {
		t.Errorf("the version is gone: %v", gone)
	}
	for _, err := range []error{nil, apierrors.NewNotFound(requests, "n"),
		errors.New("404 page not found")} {
		if VersionGone(err) {
			t.Errorf("the version is not gone: %v", err)
		}
	}
}
