package kube

import (
	"context"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"

	"hsm-signer/policy"
)

// findPods reads the pods of a query consistently: with the resourceVersion unset,
// not from a cache, which may be of any age.
func findPods(ctx context.Context, client kubernetes.Interface, q policy.PodQuery) ([]policy.Pod, error) {
	if q.Name != "" {
		pod, err := client.CoreV1().Pods(q.Namespace).Get(ctx, q.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("read the pod %s/%s: %w", q.Namespace, q.Name, err)
		}
		return []policy.Pod{factsOf(pod)}, nil
	}
	selector := fields.Set{"spec.serviceAccountName": q.ServiceAccount, "status.podIP": q.IP.String()}
	list, err := client.CoreV1().Pods(q.Namespace).List(ctx, metav1.ListOptions{FieldSelector: selector.String()})
	if err != nil {
		return nil, fmt.Errorf("list the pods of the service account %s/%s: %w", q.Namespace, q.ServiceAccount, err)
	}
	facts := make([]policy.Pod, 0, len(list.Items))
	for i := range list.Items {
		facts = append(facts, factsOf(&list.Items[i]))
	}
	return facts, nil
}

func factsOf(pod *corev1.Pod) policy.Pod {
	facts := policy.Pod{
		Namespace:      pod.Namespace,
		Name:           pod.Name,
		UID:            string(pod.UID),
		ServiceAccount: pod.Spec.ServiceAccountName,
		Node:           pod.Spec.NodeName,
		HostNetwork:    pod.Spec.HostNetwork,
		Finished:       pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed,
		Deleting:       pod.DeletionTimestamp != nil,
	}
	ips := pod.Status.PodIPs
	if len(ips) == 0 { // before Kubernetes 1.16 there is only the one
		ips = []corev1.PodIP{{IP: pod.Status.PodIP}}
	}
	for _, ip := range ips {
		if addr, err := netip.ParseAddr(ip.IP); err == nil {
			facts.IPs = append(facts.IPs, addr.Unmap())
		}
	}
	return facts
}
