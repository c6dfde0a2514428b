package kube

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"

	"hsm-signer/kube/clientset"
	"hsm-signer/policy"
)

// component is the source that Events name.
const component = "hsm-signer"

// eventSink sends Events. Only refusals, budgets and faults have any: a success is told by the
// conditions, and an Event would be a third write. A shadow sends none.
type eventSink struct {
	broadcaster record.EventBroadcaster
	recorder    record.EventRecorder
}

func newEventSink(mode Mode) *eventSink {
	broadcaster := record.NewBroadcaster()
	if mode == Shadow {
		// FakeRecorder is client-go's name for a recorder that does nothing.
		return &eventSink{broadcaster, &record.FakeRecorder{}}
	}
	source := corev1.EventSource{Component: component}
	return &eventSink{broadcaster, broadcaster.NewRecorder(clientset.Scheme, source)}
}

// start starts to send Events and returns a function that ends that.
func (s *eventSink) start(client clientset.Interface, mode Mode) (stop func()) {
	if mode != Shadow {
		s.broadcaster.StartRecordingToSink(client.Events())
	}
	return s.broadcaster.Shutdown
}

func (s *eventSink) warn(object *corev1.ObjectReference, reason, message string) {
	s.recorder.Event(object, corev1.EventTypeWarning, reason, message)
}

// Report is [Sink]'s.
func (s *eventSink) Report(r Report) {
	o, is := r.(Outcome)
	if !is {
		return
	}
	switch o.Result {
	case ResultRefused:
		if refusal, is := o.Verdict.(*policy.Refusal); is {
			s.warn(&o.Object, string(refusal.Code()), refusal.Message())
		}
	case ResultOverBudget:
		s.warn(&o.Object, "OverBudget", o.Reason)
	case ResultHeld:
		s.warn(&o.Object, "RefusalHeld", o.Reason)
	case ResultFault:
		s.warn(&o.Object, "SignerFault",
			"the request cannot be answered now and stays open; you need to do nothing, since the "+
				"signer tries again by itself. If it stays so for more than a few minutes, ask "+
				"the administrators of signer "+o.Signer)
	}
}

// Warn sends an Event about each signer as a whole. There is no such object; the reference is what
// the permissions of signers call it (certificates.k8s.io, signers).
func (c *Controller) Warn(reason, message string) {
	for _, name := range c.SignerNames {
		signer := &corev1.ObjectReference{
			APIVersion: "certificates.k8s.io/v1", Kind: "Signer", Name: name,
		}
		c.events.warn(signer, reason, message)
	}
}
