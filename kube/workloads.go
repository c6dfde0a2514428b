package kube

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/kube/clientset"
	"hsm-signer/policy"
)

// A Workload is what makes pods: a DaemonSet, a Deployment, or whatever else controls them. One
// without a kind is a pod that nothing makes again.
type Workload struct{ Kind, Namespace, Name string }

// String is for people.
func (w Workload) String() string {
	if w.Kind == "" {
		return "no owner"
	}
	return w.Kind + " " + w.Namespace + "/" + w.Name
}

// A LivePod is a pod that has neither finished nor is being deleted.
type LivePod struct {
	policy.Pod
	Created time.Time
	Owner   Workload
}

// Restart is the kubectl command that recreates the pod, with a certificate of its own.
func (p LivePod) Restart() string {
	switch p.Owner.Kind {
	case "DaemonSet", "Deployment", "StatefulSet":
		return fmt.Sprintf("kubectl -n %s rollout restart %s/%s", p.Namespace,
			strings.ToLower(p.Owner.Kind), p.Owner.Name)
	}
	return fmt.Sprintf("kubectl -n %s delete pod %s", p.Namespace, p.Name)
}

// LivePods lists the pods of a namespace that live, each with its owner. A Deployment is known
// through its ReplicaSet; where that may not be read ("get replicasets", group apps), the
// ReplicaSet is the owner.
func LivePods(ctx context.Context, client clientset.Interface, namespace string) ([]LivePod,
	error) {
	owners := map[string]Workload{} // by ReplicaSet
	var live []LivePod
	err := EachPod(ctx, client, namespace, func(pod *corev1.Pod) error {
		facts := podOf(pod)
		if facts.Finished || facts.Deleting {
			return nil
		}
		owner, err := ownerOf(ctx, client, pod, owners)
		live = append(live, LivePod{Pod: facts, Created: pod.CreationTimestamp.Time, Owner: owner})
		return err
	})
	return live, err
}

// ownerOf follows the controllers of a pod upwards; known are those of ReplicaSets.
func ownerOf(ctx context.Context, client clientset.Interface, pod *corev1.Pod,
	known map[string]Workload) (Workload, error) {
	controller := metav1.GetControllerOfNoCopy(pod)
	if controller == nil {
		return Workload{}, nil
	}
	owner := Workload{controller.Kind, pod.Namespace, controller.Name}
	if controller.Kind != "ReplicaSet" {
		return owner, nil
	}
	if above, ok := known[controller.Name]; ok {
		return above, nil
	}
	set, err := client.ReplicaSets(pod.Namespace).Get(ctx, controller.Name,
		metav1.GetOptions{})
	switch {
	case apierrors.IsForbidden(err), apierrors.IsNotFound(err):
	case err != nil:
		return owner, fmt.Errorf("read the ReplicaSet %s: %w", owner.Name, err)
	default:
		if above := metav1.GetControllerOfNoCopy(set); above != nil {
			owner = Workload{above.Kind, pod.Namespace, above.Name}
		}
	}
	known[controller.Name] = owner
	return owner, nil
}
