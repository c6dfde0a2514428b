// Package request defines a kind of certificate request as the controller sees it.
//
// Duty: the interfaces between package kube, which decides and answers, and the packages that know
// one API each, such as kube/csr; the limit on the size of an object; and what kinds of Kubernetes'
// own have in common.
//
// Contract: an [Object] is never changed. Every write carries the UID and resourceVersion of the
// object that was read, so nothing is written to one that has changed (Conflict) or was recreated
// or deleted (NotFound). Errors of the API server are returned as they are, or wrapped.
package request

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"hsm-signer/policy"
)

// A Kind is a kind of certificate request, with the signer names whose requests are served.
type Kind interface {
	// Serves reports whether requests that name the signer are served.
	Serves(signer string) bool
	// Named reports whether NAME, or NAMESPACE/NAME, may be the name of a request of this kind.
	Named(name string) bool
	// Find asks the API server for the version of the API to use, and gives up after some seconds.
	// It returns [NoAPI] if the API server has none, and another error if that is not known.
	Find(ctx context.Context) (API, error)
}

// NoAPI is the error of [Kind.Find] if the cluster lacks the API. It says what to do.
type NoAPI string

// Error is the text.
func (e NoAPI) Error() string { return string(e) }

// An API is the version of a kind's API that the cluster has.
type API interface {
	// Version is the group and the version.
	Version() string
	// ListsFirst reports whether all requests must be listed before they are watched: the server
	// may be one without streaming lists that ignores sendInitialEvents without an error.
	ListsFirst() bool
	// Selectors are the field selectors of the requests to watch, at least one; "" selects all.
	// The controller drops what [Kind.Serves] does not serve.
	Selectors() []string
	// List returns one page of requests, each of which is an [Object]. Their number is limited by
	// the options. Each has at least name, namespace, UID, resourceVersion, creation time, signer,
	// state and certificate; an open one that is not [Object.Truncated] also has what
	// [Object.Submission] needs.
	List(ctx context.Context, o metav1.ListOptions) (*metainternalversion.List, error)
	// Watch watches requests. The object of each Added, Modified and Deleted event is an [Object],
	// as in a list. Bookmarks and errors pass unchanged: client-go reads them.
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
	// Get reads the request of that name, NAME or NAMESPACE/NAME, consistently.
	Get(ctx context.Context, name string) (Object, error)
	// Count returns the number of requests in the cluster, of all signers.
	Count(ctx context.Context) (int, error)
}

// An Object is one certificate request. As listed or watched, it may hold less than the API server
// has: see [Object.Truncated]. It is never copied.
type Object interface {
	runtime.Object
	metav1.Object

	// Reference is the object as Events name it, with its namespace: the Event is kept there.
	Reference() *corev1.ObjectReference
	// Signer is the signer name; empty if the request names none and may be any signer's.
	Signer() string
	// Ignored returns why the request is left as it is, although it names a signer that is served;
	// empty if it is to be answered.
	Ignored() string
	// Submission is what a decision may see. Every field of it that the kind has must be set.
	Submission() policy.Submission
	// State is read from the object and nothing else. After a write that succeeded it is
	// [Approved], [Issued] or [Refused].
	State() State
	// Certificate is the certificate with its chain, in PEM; empty if there is none.
	Certificate() []byte
	// StoredSize is about how many bytes etcd takes in a request that updates the object.
	StoredSize() int
	// Truncated reports whether the object must be read again before it is decided on or written:
	// something of it was not kept, or it may be too large to be written.
	Truncated() bool
	// NeedsApproval reports whether the request is of a kind with approval.
	NeedsApproval() bool
	// PublishFirst reports whether the certificate must be written before the approval.
	PublishFirst() bool

	// Read reads the object again, consistently. It returns a NotFound error if the object is gone
	// or was recreated.
	Read(ctx context.Context) (Object, error)
	// Approve approves a request that is [Pending]. Like Publish, it returns the object as the API
	// server now has it, not truncated.
	Approve(ctx context.Context, reason, message string) (Object, error)
	// Publish writes the certificate with its chain, in PEM. It returns [ErrNotBefore] if the API
	// server takes no certificate that old.
	Publish(ctx context.Context, chain []byte) (Object, error)
	// Refuse ends a request that is open, without a certificate. That is final.
	Refuse(ctx context.Context, reason, message string) error
	// Delete deletes the object, unless it has changed.
	Delete(ctx context.Context) error
}

// ErrNotBefore is why a certificate can never be published: its notBefore is too far from the clock
// of the API server.
var ErrNotBefore = errors.New("the API server refuses the certificate for its notBefore: compare " +
	"the clocks of this host and of the API server")

// A State is where a request stands. It is read from the object and never remembered.
type State int

// The states of a request.
const (
	// Pending: nobody has decided.
	Pending State = iota
	// Approved: it has no certificate yet, and is approved or of a kind without approval.
	Approved
	// Issued: it is approved, if it is of a kind with approval, and has a certificate.
	Issued
	// Refused: it is denied or failed, and has no certificate.
	Refused
	// Unclear: it has a certificate without an approval, or with a denial, which is not our work.
	Unclear
)

// Open reports whether the request has no final answer yet.
func (s State) Open() bool { return s == Pending || s == Approved }
