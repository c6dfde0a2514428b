package kube

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/pager"

	"hsm-signer/kube/clientset"
)

// podsAtOnce is how many pods one answer of the API server holds.
const podsAtOnce = 500

// EachPod calls do with each pod of a namespace, and ends with the first error. The pods are read
// consistently, and not from a cache, which may be of any age.
func EachPod(ctx context.Context, client clientset.Interface, namespace string,
	do func(*corev1.Pod) error) error {
	pages := pager.New(func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		return client.Pods(namespace).List(ctx, o)
	})
	pages.PageSize = podsAtOnce
	err := pages.EachListItem(ctx, metav1.ListOptions{}, func(object runtime.Object) error {
		pod, ok := object.(*corev1.Pod)
		if !ok {
			return errors.New("the API server lists something that is no pod")
		}
		return do(pod)
	})
	if err != nil {
		return fmt.Errorf("list the pods in %s: %w", namespace, err)
	}
	return nil
}
