package heal

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	ktesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"hsm-signer/kube/clientset/fake"
)

// counts is an observer.
type counts struct{ found, deleted, failed int }

func (c *counts) Found(n int)  { c.found = n }
func (c *counts) Deleted(bool) { c.deleted++ }
func (c *counts) Failed()      { c.failed++ }

// stuckPod is one that has waited in a crash loop for an hour.
func stuckPod(name string) *corev1.Pod {
	long, controls := metav1.NewTime(time.Now().Add(-time.Hour)), true
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "calico-system", Name: name, UID: types.UID(name), ResourceVersion: "7",
			OwnerReferences: []metav1.OwnerReference{{Kind: "DaemonSet", Name: "calico-node",
				UID: types.UID("owner-of-" + name), Controller: &controls}},
		},
		Spec: corev1.PodSpec{InitContainers: []corev1.Container{{Name: "certificate"}},
			Containers: []corev1.Container{{Name: "main"}}},
		Status: corev1.PodStatus{
			InitContainerStatuses: []corev1.ContainerStatus{{Name: "certificate",
				State: corev1.ContainerState{
					Terminated: &corev1.ContainerStateTerminated{FinishedAt: long}}}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "main",
				State: corev1.ContainerState{
					Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}}},
		},
	}
}

// answered is a request of the pod with its certificate.
func answered(pod string) *certificatesv1.CertificateSigningRequest {
	csr := asked(pod)
	csr.Status.Certificate = []byte("PEM")
	csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue,
		LastUpdateTime: metav1.Now(),
	}}
	return csr
}

// asked is a request of the pod that nobody has answered.
func asked(pod string) *certificatesv1.CertificateSigningRequest {
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "request-of-" + pod,
			UID: types.UID("request-of-" + pod), CreationTimestamp: metav1.Now()},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: []byte("PEM"), SignerName: "example.com/calico",
			Username: "system:serviceaccount:calico-system:calico-node",
			Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:calico-system"},
			Extra: map[string]certificatesv1.ExtraValue{
				"authentication.kubernetes.io/pod-name": {pod},
				"authentication.kubernetes.io/pod-uid":  {pod},
			},
		},
	}
}

// newHealer returns a healer that knows that these pods were answered.
func newHealer(client fake.Clientset, pods ...string) (*Healer, *counts, *record.FakeRecorder) {
	seen, events := &counts{}, record.NewFakeRecorder(10)
	h := New(Config{Client: client, SignerNames: []string{"example.com/calico"},
		Namespaces: []string{"calico-system"}, Observer: seen, Logger: hclog.NewNullLogger()})
	h.events = events
	for _, pod := range pods {
		h.requests.OnAdd(answered(pod), true)
	}
	return h, seen, events
}

// deletions returns the options of each deletion that was asked for.
func deletions(client fake.Clientset) (all []metav1.DeleteOptions) {
	for _, action := range client.Actions() {
		if deletion, is := action.(ktesting.DeleteAction); is {
			all = append(all, deletion.GetDeleteOptions())
		}
	}
	return all
}

// A pod is deleted only as it was read.
func TestDeletionHasPreconditions(t *testing.T) {
	client := fake.New(stuckPod("1"))
	h, seen, events := newHealer(client, "1")
	h.look(t.Context())
	all := deletions(client)
	if len(all) != 1 || all[0].Preconditions == nil || *all[0].Preconditions.UID != "1" ||
		*all[0].Preconditions.ResourceVersion != "7" {
		t.Fatalf("deletions: %+v", all)
	}
	if event := <-events.Events; seen.deleted != 1 || seen.found != 1 || seen.failed != 0 ||
		!strings.Contains(event, "StuckPodDeleted") {
		t.Errorf("%+v, %s", seen, event)
	}
}

// A pod that came back to life, or that another has replaced, since the look is left alone.
func TestPodIsJudgedAgain(t *testing.T) {
	for name, change := range map[string]func(*corev1.Pod){
		"it runs": func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0].State =
				corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
		},
		"it is ready":     func(p *corev1.Pod) { p.Status.ContainerStatuses[0].Ready = true },
		"it is another":   func(p *corev1.Pod) { p.UID = "another" },
		"it is an orphan": func(p *corev1.Pod) { p.OwnerReferences = nil },
		"it is deleted":   func(p *corev1.Pod) { at := metav1.Now(); p.DeletionTimestamp = &at },
	} {
		client := fake.New(stuckPod("1"))
		client.PrependReactor("get", "pods", func(ktesting.Action) (bool, runtime.Object, error) {
			pod := stuckPod("1")
			change(pod)
			return true, pod, nil
		})
		h, seen, _ := newHealer(client, "1")
		if h.look(t.Context()); len(deletions(client)) != 0 || seen.deleted+seen.failed != 0 {
			t.Errorf("%s: %+v", name, seen)
		}
	}
}

// A pod that changed during the deletion is left to the next look; any other error counts.
func TestDeletionThatFails(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	for name, c := range map[string]struct {
		err    error
		failed int
	}{
		"changed":   {apierrors.NewConflict(pods, "1", errors.New("changed")), 0},
		"gone":      {apierrors.NewNotFound(pods, "1"), 0},
		"forbidden": {apierrors.NewForbidden(pods, "1", nil), 1},
	} {
		client := fake.New(stuckPod("1"))
		client.PrependReactor("delete", "pods",
			func(ktesting.Action) (bool, runtime.Object, error) { return true, nil, c.err })
		h, seen, _ := newHealer(client, "1")
		if h.look(t.Context()); seen.deleted != 0 || seen.failed != c.failed ||
			len(h.history) != 0 {
			t.Errorf("%s: %+v, %v", name, seen, h.history)
		}
	}
}

// Nothing is deleted while many requests wait for their answer.
func TestDeletionsWaitForAnswers(t *testing.T) {
	client := fake.New(stuckPod("1"))
	h, seen, _ := newHealer(client, "1")
	for n := range maxWaiting + 1 {
		h.requests.OnAdd(asked(strings.Repeat("x", n+1)), false)
	}
	if h.look(t.Context()); seen.deleted != 0 || seen.found != 1 {
		t.Fatalf("%+v", seen)
	}
	h.requests.OnUpdate(nil, answered("x"))
	if h.look(t.Context()); seen.deleted != 1 {
		t.Errorf("%+v", seen)
	}
}

// After the burst there is one deletion a second.
func TestBudget(t *testing.T) {
	client := fake.New()
	h, _, _ := newHealer(client)
	for n := range burst {
		if !h.budget.TryAccept() {
			t.Errorf("deletion %d has to wait", n)
		}
	}
	if h.budget.TryAccept() {
		t.Error("one more than the burst is accepted")
	}
	if got := h.budget.QPS(); got != 1 {
		t.Errorf("%v deletions a second", got)
	}
}

// A pod that no controller makes again is reported once.
func TestPodWithoutOwner(t *testing.T) {
	pod := stuckPod("1")
	pod.OwnerReferences = nil
	client := fake.New(pod)
	h, seen, events := newHealer(client, "1")
	h.look(t.Context())
	h.look(t.Context())
	if event := <-events.Events; len(events.Events) != 0 ||
		!strings.Contains(event, "StuckPodNotDeleted") || seen.deleted != 0 ||
		len(deletions(client)) != 0 {
		t.Errorf("%+v, %s and %d more", seen, event, len(events.Events))
	}
}

// Pods that cannot be read are not known to be well.
func TestPodsThatCannotBeRead(t *testing.T) {
	client := fake.New()
	client.PrependReactor("list", "pods",
		func(ktesting.Action) (bool, runtime.Object, error) {
			return true, nil,
				errors.New("no answer")
		})
	h, seen, _ := newHealer(client, "1")
	close(h.requests.whole)
	if h.look(t.Context()); seen.found != -1 || h.Ready() == nil {
		t.Errorf("%+v, %v", seen, h.Ready())
	}
}

// Requests that were denied, or of other namespaces, are no answers. A request that was deleted
// stays one.
func TestWhatCountsAsAnswered(t *testing.T) {
	h, _, _ := newHealer(fake.New())
	denied := answered("denied")
	denied.Status.Conditions = append(denied.Status.Conditions,
		certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateDenied,
			Status: corev1.ConditionTrue})
	elsewhere := answered("elsewhere")
	elsewhere.Spec.Username, elsewhere.Spec.Groups = "system:serviceaccount:b:c",
		[]string{"system:serviceaccounts", "system:serviceaccounts:b"}
	unapproved := answered("unapproved")
	unapproved.Status.Conditions = nil
	gone := answered("gone")
	for _, csr := range []*certificatesv1.CertificateSigningRequest{denied, elsewhere, unapproved,
		gone, asked("open")} {
		small, err := trim(csr)
		if err != nil || len(small.(*certificatesv1.CertificateSigningRequest).Spec.Request) > 0 {
			t.Fatalf("%+v, %v", small, err)
		}
		h.requests.OnAdd(small, false)
	}
	h.requests.OnDelete(gone)
	for pod, want := range map[string]int{"denied": 0, "elsewhere": 0, "unapproved": 0, "open": 0,
		"gone": 1} {
		if got := len(h.answers.Of(pod)); got != want {
			t.Errorf("%s: %d answers", pod, got)
		}
	}
	if n := h.requests.waiting(time.Now()); n != 2 { // unapproved and open
		t.Errorf("%d requests wait", n)
	}
	if n := h.requests.waiting(time.Now().Add(2 * clientPatience)); n != 0 {
		t.Errorf("%d requests wait for which nobody waits any more", n)
	}
}
