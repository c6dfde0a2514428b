package stuck

import (
	"errors"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	ktesting "k8s.io/client-go/testing"

	"hsm-signer/kube/clientset/fake"
	"hsm-signer/policy"
)

// in returns the pod in a namespace, with a name that is its UID too.
func in(namespace, name string, pod *corev1.Pod) *corev1.Pod {
	pod.Namespace, pod.Name, pod.UID = namespace, name, types.UID(name)
	return pod
}

func readyPod() *corev1.Pod {
	pod := stuckPod()
	for i := range pod.Status.ContainerStatuses {
		pod.Status.ContainerStatuses[i] = corev1.ContainerStatus{Name: pod.Spec.Containers[i].Name,
			Ready: true, State: runningFor(time.Hour)}
	}
	return pod
}

// runningPod is between two pauses of a crash loop.
func runningPod() *corev1.Pod {
	pod := stuckPod()
	pod.Status.ContainerStatuses[0].State = running()
	return pod
}

func startingPod() *corev1.Pod {
	pod := stuckPod()
	pod.Status.InitContainerStatuses[1].State = running()
	return pod
}

func rememberedAnswers(t *testing.T, pods ...string) *Answers {
	t.Helper()
	answers := NewAnswers()
	for _, uid := range pods {
		answers.Add(Answer{Request: "request-of-" + uid, Namespace: "a", Pod: uid}, now)
	}
	return answers
}

// known returns the UIDs of the pods whose answers are remembered.
func known(answers *Answers) (uids []string) {
	for _, all := range answers.open() {
		for uid := range all {
			uids = append(uids, uid)
		}
	}
	slices.Sort(uids)
	return uids
}

// Stuck pods and pods that still start are checked again; those that work or are gone are not.
func TestLookForgetsWhatIsSettled(t *testing.T) {
	client := fake.New(in("a", "stuck", stuckPod()), in("a", "ready", readyPod()),
		in("a", "starting", startingPod()), in("a", "not-answered", stuckPod()))
	answers := rememberedAnswers(t, "stuck", "ready", "starting", "gone")
	found, err := answers.Look(t.Context(), client, now)
	if err != nil || len(found) != 1 || found[0].Name != "stuck" ||
		found[0].Delete() != "kubectl -n a delete pod stuck" {
		t.Fatalf("found %+v, %v", found, err)
	}
	if got := known(answers); !slices.Equal(got, []string{"starting", "stuck"}) {
		t.Errorf("remembered are %q", got)
	}
	if _, err := answers.Look(t.Context(), client, now.Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := known(answers); !slices.Equal(got, []string{"stuck"}) {
		t.Errorf("after two hours, remembered are %q", got)
	}
	crashing := fake.New(in("a", "stuck", runningPod()))
	for after, want := range map[time.Duration]int{2*time.Hour + time.Minute: 1, 4 * time.Hour: 0} {
		answers := rememberedAnswers(t, "stuck")
		answers.note("stuck", Verdict{Stuck: true}, now.Add(2*time.Hour))
		if _, err := answers.Look(t.Context(), crashing, now.Add(after)); err != nil ||
			len(known(answers)) != want {
			t.Errorf("stuck after two hours, running after %s: remembered are %q; %v", after,
				known(answers), err)
		}
	}
}

// Nothing is read before the first pod can be stuck. It then stays due until it is settled. When an
// earlier process answered is known from the journal.
func TestPodsAreReadWhenTheyMayBeStuck(t *testing.T) {
	answers := rememberedAnswers(t, "stuck")
	if answers.Due(now.Add(quiet-1)) || !answers.Due(now.Add(quiet)) {
		t.Errorf("the pod must be due %s after its answer, and not earlier", quiet)
	}
	answers.Add(Answer{Request: "second", Namespace: "a", Pod: "stuck"}, now.Add(quiet))
	client := fake.New(in("a", "stuck", stuckPod()))
	if _, err := answers.Look(t.Context(), client, now.Add(quiet)); err != nil ||
		!answers.Due(now.Add(quiet+1)) {
		t.Errorf("a stuck pod is no longer due; %v", err)
	}
	if _, err := answers.Look(t.Context(), fake.New(), now.Add(2*quiet)); err != nil ||
		answers.Due(now.Add(2*quiet)) {
		t.Errorf("a pod that is gone is due; %v", err)
	}
	former := NewAnswers()
	former.Add(Answer{Request: "r", Namespace: "a", Pod: "p", Earliest: now.Add(-quiet)}, now)
	if !former.Due(now) {
		t.Error("a pod that an earlier process answered long ago is not due")
	}
}

// What cannot be read is not forgotten.
func TestLookKeepsWhatItCannotRead(t *testing.T) {
	client := fake.New()
	client.PrependReactor("list", "pods", func(ktesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("no answer")
	})
	answers := rememberedAnswers(t, "1")
	if found, err := answers.Look(t.Context(), client, now.Add(2*time.Hour)); err == nil ||
		len(found) > 0 {
		t.Errorf("found %+v, %v", found, err)
	}
	if got := known(answers); !slices.Equal(got, []string{"1"}) {
		t.Errorf("remembered are %q", got)
	}
}

// Each request counts once; one by a token that names no pod does not count.
func TestAnswersAreOfPods(t *testing.T) {
	requester := policy.Requester{
		Username: "system:serviceaccount:a:b", Groups: []string{"system:serviceaccounts",
			"system:serviceaccounts:a"},
		Extra: map[string][]string{
			"authentication.kubernetes.io/pod-name": {"p"},
			"authentication.kubernetes.io/pod-uid":  {"1"},
		},
	}
	answer, ok := AnswerTo(requester, "r", now, now)
	if want := (Answer{"r", "a", "1", now, now}); !ok || answer != want {
		t.Errorf("%+v, %t", answer, ok)
	}
	answers := NewAnswers()
	for range 2 {
		answers.Add(answer, now)
	}
	if n := len(answers.Of("1")); n != 1 {
		t.Errorf("%d answers", n)
	}
	requester.Extra = nil
	if _, ok := AnswerTo(requester, "r", now, now); ok {
		t.Error("a token without a pod has one")
	}
	requester.Username = "admin"
	if _, ok := AnswerTo(requester, "r", now, now); ok {
		t.Error("a user has a pod")
	}
}
