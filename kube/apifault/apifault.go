// Package apifault tells apart the errors of an API server that client-go has no function for.
//
// Duty: recognise a write that is refused because of its size, and a version of an API that is no
// longer served.
//
// Contract: an error that is not recognised is an ordinary fault, which may pass.
package apifault

import (
	"errors"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TooLarge reports whether the API server or etcd refused a write because of its size, which no
// retry changes.
func TooLarge(err error) bool {
	if apierrors.IsRequestEntityTooLargeError(err) {
		return true
	}
	status := apierrors.APIStatus(nil)
	return errors.As(err, &status) && status.Status().Code == http.StatusInternalServerError &&
		strings.Contains(status.Status().Message, "etcdserver: request is too large")
}

// VersionGone reports whether the API server does not know the version of the API that it was asked
// by. That says nothing of the object.
func VersionGone(err error) bool {
	return apierrors.IsNotFound(err) &&
		apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse)
}
