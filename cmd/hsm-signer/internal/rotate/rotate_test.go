package rotate

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clienttesting "k8s.io/client-go/testing"

	"hsm-signer/cmd/hsm-signer/internal/cli/clitest"
	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/rotation"
	"hsm-signer/internal/must"
	"hsm-signer/kube/clientset/fake"
	"hsm-signer/kube/lease"
)

// newTarget returns a lease that a replica last renewed so long ago, on a server of its own.
func newTarget(renewed time.Duration, annotations map[string]string) (*target, fake.Clientset) {
	holder, at := "replica", metav1.NewMicroTime(time.Now().Add(-renewed))
	client := fake.New(&coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "l", Annotations: annotations},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder, RenewTime: &at},
	})
	return &target{Lease: lease.Lease{Namespace: "n", Name: "l"}, client: client,
		leases: client.Leases("n")}, client
}

// says returns an annotation of the lease.
func (t *target) says(test *testing.T, annotation string) string {
	test.Helper()
	return must.Value(t.get(test.Context()))(test).Annotations[annotation]
}

// An order that nobody answers is withdrawn, and none is given while nobody leads or another one
// waits.
func TestOrderWithoutAnAnswer(t *testing.T) {
	order := rotation.Order{Step: rotation.Trust}
	waiting := rotation.Encode(rotation.Order{ID: "o", Step: rotation.Back, By: "somebody",
		At: time.Now()})
	for says, c := range map[string]struct {
		renewed time.Duration
		before  string
	}{
		"the order is withdrawn":          {0, ""},
		"no replica leads":                {time.Minute, ""},
		"no answer yet: back, by somebod": {0, waiting},
	} {
		annotations := map[string]string{}
		if c.before != "" {
			annotations[rotation.OrderKey] = c.before
		}
		l, _ := newTarget(c.renewed, annotations)
		ctx, cancel := context.WithTimeout(t.Context(), 2*pollInterval)
		err := l.give(ctx, order, &bytes.Buffer{})
		cancel()
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v; want %q", err, says)
		}
		if after := l.says(t, rotation.OrderKey); after != c.before {
			t.Errorf("%s: the lease holds the order %s", says, after)
		}
	}
}

// The answer to the order counts, and no other one; a conflict is no fault.
func TestOrderIsAnswered(t *testing.T) {
	for refused, code := range map[string]int{"": 0, "the phase stays none": exit.Refused} {
		other := rotation.Encode(rotation.Answer{ID: "other", Refused: "of another order"})
		l, client := newTarget(0, map[string]string{rotation.AnswerKey: other})
		conflicts := 2
		client.PrependReactor("update", "leases", func(a clienttesting.Action) (bool,
			runtime.Object, error) {
			if conflicts--; conflicts >= 0 {
				return true, nil, apierrors.NewConflict(schema.GroupResource{}, "l", nil)
			}
			written := a.(clienttesting.UpdateAction).GetObject().(*coordinationv1.Lease)
			if o, is, err := rotation.ReadOrder(written.Annotations); is && err == nil {
				written.Annotations[rotation.AnswerKey] = rotation.Encode(rotation.Answer{
					ID: o.ID, Phase: rotation.Trusted, Refused: refused})
			}
			return false, nil, nil
		})
		var out bytes.Buffer
		err := l.give(t.Context(), rotation.Order{Step: rotation.Trust}, &out)
		if err == nil && (code != 0 || out.String() != "the phase is trusted\n") ||
			err != nil && (exit.Code(err) != code || err.Error() != refused) {
			t.Errorf("%q: %v; %s", refused, err, &out)
		}
	}
}

// A phase is restored while nobody leads, also into a lease that does not exist.
func TestRestore(t *testing.T) {
	state, err := rotation.Restored(rotation.Signing, rotation.Keys{CA: rotation.Key{1},
		Next: rotation.Key{2}}, "", time.Now(), "r")
	must.OK(t, err)
	l, client := newTarget(0, map[string]string{})
	if err := l.restore(t.Context(), state, &bytes.Buffer{}); exit.Code(err) != exit.Refused ||
		l.says(t, rotation.StateKey) != "" {
		t.Errorf("while a replica leads: %v", err)
	}
	must.OK(t, client.CoordinationV1().Leases("n").Delete(t.Context(), "l",
		metav1.DeleteOptions{}))
	must.OK(t, l.restore(t.Context(), state, &bytes.Buffer{}))
	if l.says(t, rotation.StateKey) != rotation.Encode(state) {
		t.Error("it is not in a lease that was created")
	}
	l, _ = newTarget(time.Minute, map[string]string{rotation.StateKey: "malformed",
		rotation.OrderKey: "{}", "of/another": "1"})
	must.OK(t, l.restore(t.Context(), state, &bytes.Buffer{}))
	if l.says(t, rotation.StateKey) != rotation.Encode(state) ||
		l.says(t, rotation.OrderKey) != "" || l.says(t, "of/another") != "1" {
		t.Error("the lease does not say what was confirmed")
	}
}

// What is wrong with the arguments is said before the API server is asked.
func TestWrongArguments(t *testing.T) {
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"trust", "--kubeconfig", "/nowhere"}, "KUBECONFIG: "},
		{[]string{"trust", "--reason", strings.Repeat("x", 501)}, "--reason: the reason has 501"},
		{[]string{"trust", "--timeout", "soon"}, "--timeout: "},
		{[]string{"trust", "--force"}, "unknown flag: --force"},
		{[]string{"sign", "--force"}, "unknown flag: --force"},
		{[]string{"restore"}, "accepts 1 arg(s)"},
		{[]string{"restore", "leap", "--reason", "r"}, `PHASE: "leap" is none of`},
		{[]string{"restore", "none"}, "--reason: is not set"},
		{[]string{"status", "--output", "xml"}, "--output: "},
		{[]string{"leap"}, `there is no command "leap"`},
	} {
		out, stderr, code := clitest.Run(t, NewCommand(), append([]string{"ca", "rotate"},
			c.args...)...)
		if code != exit.Config || !strings.Contains(stderr, c.says) {
			t.Errorf("%v: exit code %d: %s%s; want %q", c.args, code, out, stderr, c.says)
		}
	}
}
