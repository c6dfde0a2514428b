package kube

import (
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"hsm-signer/policy"
)

// eventNamespace is where the API server keeps events on objects without a namespace, such as
// certificate requests.
const eventNamespace = metav1.NamespaceDefault

// component is what events say that they come from.
const component = "hsm-signer"

// newEvents returns what sends events, and the recorder to send them by. Only refusals and faults
// have any: a success is said by the conditions, and an event would be a third write. A shadow
// sends none.
func newEvents(mode Mode) (record.EventBroadcaster, record.EventRecorder) {
	broadcaster := record.NewBroadcaster()
	if mode == Shadow {
		return broadcaster, &record.FakeRecorder{} // client-go's name for a recorder that does nothing
	}
	return broadcaster, broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component})
}

// startEvents starts to send events and returns what ends that.
func (c *Controller) startEvents() (stop func()) {
	if c.Mode != Shadow {
		c.broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: c.Client.CoreV1().Events(metav1.NamespaceAll)})
	}
	return c.broadcaster.Shutdown
}

// Warn tells of what concerns a signer as a whole, as an event on each. There is no such object; the
// reference is what the permissions of signers call it (certificates.k8s.io, signers).
func (c *Controller) Warn(reason, message string) {
	for _, name := range c.SignerNames {
		signer := &corev1.ObjectReference{APIVersion: certificatesv1.SchemeGroupVersion.String(), Kind: "Signer", Name: name}
		c.events.Event(signer, corev1.EventTypeWarning, reason, message)
	}
}

// fault tells of a fault that kept a request from going on. The request stays as it is.
func (c *Controller) fault(csr *certificatesv1.CertificateSigningRequest, err error) {
	c.Logger.Error("a fault; the request stays as it is and is tried again", "request", csr.Name, "uid", csr.UID, "error", err)
	c.events.Event(csr, corev1.EventTypeWarning, "SignerFault", "the signer met a fault and will try again; its log says which")
	c.Observer.Fault()
	c.ended(csr, ResultFault, "", err.Error())
}

// waitsForBudget reports a request that waits until there is room in a budget.
func (c *Controller) waitsForBudget(csr *certificatesv1.CertificateSigningRequest, waiting *policy.Waiting) {
	c.Logger.Warn("over budget; the request stays as it is and waits", "request", csr.Name, "uid", csr.UID, "requester", csr.Spec.Username, "budget", waiting.Missing)
	c.events.Event(csr, corev1.EventTypeWarning, "OverBudget", waiting.Missing)
	c.Observer.OverBudget()
	c.ended(csr, ResultOverBudget, "", waiting.Missing)
}

// strange tells of a certificate that ought not to be on a request of ours.
func (c *Controller) strange(csr *certificatesv1.CertificateSigningRequest, origin Origin) {
	switch origin {
	case Foreign:
		c.Logger.Error("a request has a certificate that the CA has not signed: who else may update certificatesigningrequests/status, and sign for this signer?", "request", csr.Name, "uid", csr.UID)
		c.events.Event(csr, corev1.EventTypeWarning, "ForeignCertificate", "the certificate of this request was not made by this signer")
	case Unrecorded:
		c.Logger.Error("a request has a certificate that the CA has signed, with a serial number of this journal, which does not have it: the journal was cut or set back, or the CA's key was used without it", "request", csr.Name, "uid", csr.UID)
		c.events.Event(csr, corev1.EventTypeWarning, "UnrecordedCertificate", "the certificate of this request is signed by the CA, and the journal does not have it")
	case Elsewhere:
		c.Logger.Info("a request has a certificate that the CA has signed for another journal", "request", csr.Name, "uid", csr.UID)
	}
}
