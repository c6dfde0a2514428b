package kube

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"hsm-signer/kube/clientset"
	"hsm-signer/policy"
)

// podsRead is what one read of pods returned.
type podsRead struct {
	facts        policy.Facts
	initializing bool          // an init container of one of them has not ended yet
	took         time.Duration // the call; 0 if there was none
}

// A podReader reads pods, and what is needed of other objects to judge them, consistently: with the
// resourceVersion unset, not from a cache, which may be of any age.
type podReader struct {
	client          clientset.Interface
	accounts, nodes shared[string] // their UIDs; empty if there is none of that name
	services        shared[[]corev1.Service]
}

// find reads the pods of a query.
func (p *podReader) find(ctx context.Context, q policy.PodQuery) (read podsRead, err error) {
	began := time.Now()
	pods, err := p.query(ctx, q)
	if err != nil {
		return podsRead{}, err
	}
	read.took = time.Since(began)
	found := make([]policy.Pod, 0, len(pods))
	for i := range pods {
		pod := podOf(&pods[i])
		if q.Identity {
			if err := p.readIdentity(ctx, &pod); err != nil {
				return podsRead{}, err
			}
		}
		if q.Services {
			if pod.Services, err = p.servicesOf(ctx, &pods[i]); err != nil {
				return podsRead{}, err
			}
		}
		found = append(found, pod)
		read.initializing = read.initializing || isInitializing(&pods[i])
	}
	read.facts = q.Found(found...)
	return read, nil
}

// readIdentity reads the UIDs of the pod's service account and node.
func (p *podReader) readIdentity(ctx context.Context, pod *policy.Pod) (err error) {
	account := pod.Namespace + "/" + pod.ServiceAccount
	pod.ServiceAccountUID, err = p.accounts.get(ctx, account,
		func(ctx context.Context) (string, error) {
			return uidOf(p.client.ServiceAccounts(pod.Namespace).Get(ctx, pod.ServiceAccount,
				metav1.GetOptions{}))
		})
	if err != nil {
		return fmt.Errorf("read the service account %s: %w", account, err)
	}
	if pod.Node == "" {
		return nil
	}
	pod.NodeUID, err = p.nodes.get(ctx, pod.Node, func(ctx context.Context) (string, error) {
		return uidOf(p.client.Nodes().Get(ctx, pod.Node, metav1.GetOptions{}))
	})
	if err != nil {
		return fmt.Errorf("read the node %s: %w", pod.Node, err)
	}
	return nil
}

// uidOf returns the UID of an object that was read; empty if there is none.
func uidOf(object metav1.Object, err error) (string, error) {
	switch {
	case apierrors.IsNotFound(err):
		return "", nil
	case err != nil:
		return "", err
	}
	return string(object.GetUID()), nil
}

// servicesOf reads the Services that select the pod. It never returns nil without an error.
func (p *podReader) servicesOf(ctx context.Context, pod *corev1.Pod) ([]policy.Service, error) {
	all, err := p.services.get(ctx, pod.Namespace,
		func(ctx context.Context) ([]corev1.Service, error) {
			list, err := p.client.Services(pod.Namespace).List(ctx, metav1.ListOptions{})
			if err != nil {
				return nil, err
			}
			return list.Items, nil
		})
	if err != nil {
		return nil, fmt.Errorf("list the Services in %s: %w", pod.Namespace, err)
	}
	found := []policy.Service{}
	for _, s := range all {
		if len(s.Spec.Selector) > 0 && s.Spec.Type != corev1.ServiceTypeExternalName &&
			labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(pod.Labels)) {
			found = append(found, policy.Service{Name: s.Name,
				Headless: s.Spec.ClusterIP == corev1.ClusterIPNone})
		}
	}
	return found, nil
}

func (p *podReader) query(ctx context.Context, q policy.PodQuery) ([]corev1.Pod, error) {
	if q.Name != "" {
		pod, err := p.client.Pods(q.Namespace).Get(ctx, q.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("read the pod %s/%s: %w", q.Namespace, q.Name, err)
		}
		return []corev1.Pod{*pod}, nil
	}
	selector := fields.Set{"spec.serviceAccountName": q.ServiceAccount,
		"status.podIP": q.IP.String()}
	list, err := p.client.Pods(q.Namespace).List(ctx,
		metav1.ListOptions{FieldSelector: selector.String()})
	if err != nil {
		return nil, fmt.Errorf("list the pods of the service account %s/%s: %w", q.Namespace,
			q.ServiceAccount, err)
	}
	return list.Items, nil
}

// isStarted reports whether all volumes of the pod were mounted: only then kubelet makes its
// sandbox, and in it containers. An image that cannot be pulled keeps containers from being
// started, and a container that was started may have ended, with its sandbox.
func isStarted(pod *corev1.Pod) bool {
	sandbox := slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReadyToStartContainers && c.Status == corev1.ConditionTrue
	})
	return sandbox || slices.ContainsFunc(
		slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses),
		func(status corev1.ContainerStatus) bool {
			return status.ContainerID != "" || status.RestartCount > 0 ||
				status.State.Running != nil || status.State.Terminated != nil
		})
}

// isInitializing reports whether an init container of the pod has not ended well yet. A sidecar
// only has to start.
func isInitializing(pod *corev1.Pod) bool {
	done := 0
	for _, status := range pod.Status.InitContainerStatuses {
		ended := status.State.Terminated
		if ended != nil && ended.ExitCode == 0 ||
			status.Started != nil && *status.Started && isSidecar(pod, status.Name) {
			done++
		}
	}
	return done < len(pod.Spec.InitContainers)
}

func isSidecar(pod *corev1.Pod, name string) bool {
	i := slices.IndexFunc(pod.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == name
	})
	return i >= 0 && IsSidecar(pod.Spec.InitContainers[i])
}

// IsSidecar reports whether the init container runs as long as its pod does: its restart policy is
// Always (Kubernetes 1.28 and later).
func IsSidecar(container corev1.Container) bool {
	return container.RestartPolicy != nil &&
		*container.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func podOf(pod *corev1.Pod) policy.Pod {
	p := policy.Pod{
		Namespace:      pod.Namespace,
		Name:           pod.Name,
		UID:            string(pod.UID),
		ServiceAccount: pod.Spec.ServiceAccountName,
		Node:           pod.Spec.NodeName,
		HostNetwork:    pod.Spec.HostNetwork,
		Hostname:       pod.Spec.Hostname,
		Subdomain:      pod.Spec.Subdomain,
		Finished: pod.Status.Phase == corev1.PodSucceeded ||
			pod.Status.Phase == corev1.PodFailed,
		Deleting: pod.DeletionTimestamp != nil,
	}
	_, p.Mirror = pod.Annotations[corev1.MirrorPodAnnotationKey]
	p.Started = isStarted(pod)
	ips := pod.Status.PodIPs
	if len(ips) == 0 { // before Kubernetes 1.16 there is only the one
		ips = []corev1.PodIP{{IP: pod.Status.PodIP}}
	}
	for _, ip := range ips {
		if addr, err := netip.ParseAddr(ip.IP); err == nil {
			p.IPs = append(p.IPs, addr.Unmap())
		}
	}
	return p
}
