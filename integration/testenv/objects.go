package testenv

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
)

const (
	allServiceAccounts = "system:serviceaccounts" // the group of all service accounts

	defaultNode   = "node-1"
	nodeIP        = "192.0.2.1" // of the addresses reserved for documentation
	manager       = "testenv"
	tokenLifetime = 30 * 24 * time.Hour // no kubelet renews the tokens
)

// PodSpec describes a pod. Its namespace, service account and node are created if they are missing.
type PodSpec struct {
	Namespace      string
	Name           string
	ServiceAccount string   // default "default"
	Node           string   // default "node-1"
	IPs            []string // without any the pod is pending, as before it has a network
	HostNetwork    bool
	// InitContainers are names. If there are any, and the pod has IPs, the first one runs and the
	// other containers wait, so the pod is pending. Without them the main container runs.
	InitContainers []string
}

// EnsureNamespace creates the namespace unless it exists.
func (c *Cluster) EnsureNamespace(ctx context.Context, name string) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	_, err := c.client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{})
	return unlessThere(err)
}

// EnsureServiceAccount creates the service account and its namespace unless they exist.
func (c *Cluster) EnsureServiceAccount(ctx context.Context, namespace, name string) error {
	if err := c.EnsureNamespace(ctx, namespace); err != nil {
		return err
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	_, err := c.client.CoreV1().ServiceAccounts(namespace).Create(ctx, account,
		metav1.CreateOptions{})
	return unlessThere(err)
}

// EnsureNode creates the node unless it exists.
func (c *Cluster) EnsureNode(ctx context.Context, name string) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	_, err := c.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	return unlessThere(err)
}

// Pod creates a pod on its node, and writes the status that its kubelet would write: with IPs the
// pod runs, or initializes if it has init containers.
func (c *Cluster) Pod(ctx context.Context, spec PodSpec) (*corev1.Pod, error) {
	spec.ServiceAccount = cmp.Or(spec.ServiceAccount, "default")
	spec.Node = cmp.Or(spec.Node, defaultNode)
	if err := c.EnsureServiceAccount(ctx, spec.Namespace, spec.ServiceAccount); err != nil {
		return nil, err
	}
	if err := c.EnsureNode(ctx, spec.Node); err != nil {
		return nil, err
	}
	pod, err := c.client.CoreV1().Pods(spec.Namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: spec.Name},
		Spec: corev1.PodSpec{
			ServiceAccountName: spec.ServiceAccount,
			NodeName:           spec.Node,
			HostNetwork:        spec.HostNetwork,
			InitContainers:     containers(spec.InitContainers...),
			Containers:         containers("main"),
		},
	}, metav1.CreateOptions{})
	if err != nil || len(spec.IPs) == 0 {
		return pod, err
	}
	if len(spec.InitContainers) > 0 {
		initialize(pod)
	} else {
		pod.Status.Phase = corev1.PodRunning
	}
	return c.setIPs(ctx, pod, spec.IPs...)
}

// containers returns containers with these names. Their images do not exist.
func containers(names ...string) (all []corev1.Container) {
	for _, name := range names {
		all = append(all, corev1.Container{Name: name, Image: "none.invalid/" + name})
	}
	return all
}

// initialize sets the status of a pod whose first init container runs.
func initialize(pod *corev1.Pod) {
	waiting := func(c corev1.Container) corev1.ContainerStatus {
		return corev1.ContainerStatus{Name: c.Name, Image: c.Image, State: corev1.ContainerState{
			Waiting: &corev1.ContainerStateWaiting{Reason: "PodInitializing"},
		}}
	}
	pod.Status.Phase = corev1.PodPending
	for _, c := range pod.Spec.InitContainers {
		pod.Status.InitContainerStatuses = append(pod.Status.InitContainerStatuses, waiting(c))
	}
	for _, c := range pod.Spec.Containers {
		pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, waiting(c))
	}
	pod.Status.InitContainerStatuses[0].State = corev1.ContainerState{
		Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()},
	}
}

// PodOf returns the first pod of the StatefulSet, as its controller would create it.
func PodOf(set *appsv1.StatefulSet) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: set.Name + "-0",
		Labels: set.Spec.Template.Labels}, Spec: *set.Spec.Template.Spec.DeepCopy()}
	for _, claim := range set.Spec.VolumeClaimTemplates {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: claim.Name,
			VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{
					ClaimName: claim.Name + "-" + pod.Name}}})
	}
	return pod
}

// RunPod writes the status of a running pod with these IPs.
func (c *Cluster) RunPod(ctx context.Context, pod *corev1.Pod, ips ...string) (*corev1.Pod, error) {
	pod = pod.DeepCopy()
	pod.Status.Phase = corev1.PodRunning
	return c.setIPs(ctx, pod, ips...)
}

// setIPs writes the status of the pod with these IPs.
func (c *Cluster) setIPs(ctx context.Context, pod *corev1.Pod, ips ...string) (*corev1.Pod, error) {
	pod.Status.PodIP = ips[0]
	pod.Status.PodIPs = nil
	for _, ip := range ips {
		pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	pod.Status.HostIP = nodeIP
	if pod.Spec.HostNetwork {
		pod.Status.HostIP = ips[0]
	}
	pod.Status.HostIPs = []corev1.HostIP{{IP: pod.Status.HostIP}}
	return c.client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
}

// DeletePod deletes the pod immediately, since no kubelet has to stop it.
func (c *Cluster) DeletePod(ctx context.Context, pod *corev1.Pod) error {
	options := metav1.NewDeleteOptions(0)
	options.Preconditions = metav1.NewUIDPreconditions(string(pod.UID))
	return c.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, *options)
}

// TokenFor returns the token that a kubelet would give the pod: a token of its service account that
// is bound to the pod, so that the API server knows which pod of the account makes a request.
func (c *Cluster) TokenFor(ctx context.Context, pod *corev1.Pod) (string, error) {
	return c.token(ctx, pod.Namespace, pod.Spec.ServiceAccountName,
		&authenticationv1.BoundObjectReference{
			APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID,
		})
}

// UnboundToken returns a token of the service account that is not bound to a pod.
func (c *Cluster) UnboundToken(ctx context.Context, namespace, account string) (string, error) {
	return c.token(ctx, namespace, account, nil)
}

func (c *Cluster) token(ctx context.Context, namespace, account string,
	bound *authenticationv1.BoundObjectReference) (string, error) {
	lifetime := int64(tokenLifetime.Seconds())
	request := &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: bound,
			ExpirationSeconds: &lifetime},
	}
	answer, err := c.client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, request,
		metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("token of service account %s/%s: %w", namespace, account, err)
	}
	return answer.Status.Token, nil
}

// requesterRole allows a group to make certificate requests.
const requesterRole = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: "testenv:certificate-requester"}
rules:
  - apiGroups: [certificates.k8s.io]
    resources: [certificatesigningrequests]
    verbs: [create, get, list, watch, delete]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: "testenv:certificate-requester"}
roleRef:
  {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "testenv:certificate-requester"}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: %q}]
`

// AllowRequests allows the service accounts of a namespace, or all if it is empty, to create, read
// and delete certificate requests, as Calico's operator does for its service accounts. Those that
// were allowed before lose the right. The rights are in effect when it returns.
func (c *Cluster) AllowRequests(ctx context.Context, namespace string) error {
	group := allServiceAccounts
	if namespace != "" {
		group += ":" + namespace
	}
	if err := c.Apply(ctx, fmt.Appendf(nil, requesterRole, group)); err != nil {
		return err
	}
	return c.waitForRequests(ctx, namespace == "")
}

// waitForRequests waits until all service accounts may, or may not, create certificate requests:
// the API server applies changes of roles with a delay.
func (c *Cluster) waitForRequests(ctx context.Context, allowed bool) error {
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: "testenv", Groups: []string{allServiceAccounts},
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Group: "certificates.k8s.io", Resource: "certificatesigningrequests", Verb: "create",
		},
	}}
	reviews := c.client.AuthorizationV1().SubjectAccessReviews()
	err := wait.PollUntilContextTimeout(ctx, readyPoll, readyTimeout, true,
		func(ctx context.Context) (bool, error) {
			answer, err := reviews.Create(ctx, review, metav1.CreateOptions{})
			return err == nil && answer.Status.Allowed == allowed, err
		})
	if err != nil {
		return fmt.Errorf("wait until service accounts may create requests (%t): %w", allowed, err)
	}
	return nil
}

// Apply applies every object of a YAML stream in order, like kubectl apply --server-side. An
// unknown field is an error.
func (c *Cluster) Apply(ctx context.Context, manifests []byte) error {
	objects, err := decodeManifests(manifests)
	if err != nil {
		return err
	}
	client, err := dynamic.NewForConfig(c.admin)
	if err != nil {
		return err
	}
	mapper :=
		restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(c.client.Discovery()))
	for _, object := range objects {
		if err := apply(ctx, client, mapper, object); err != nil {
			return fmt.Errorf("apply %s %s/%s: %w", object.GetKind(), object.GetNamespace(),
				object.GetName(), err)
		}
	}
	return nil
}

func apply(ctx context.Context, client dynamic.Interface, mapper meta.RESTMapper,
	object *unstructured.Unstructured) error {
	kind := object.GroupVersionKind()
	mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return err
	}
	body, err := json.Marshal(object)
	if err != nil {
		return err
	}
	var resource dynamic.ResourceInterface = client.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		resource = client.Resource(mapping.Resource).Namespace(cmp.Or(object.GetNamespace(),
			metav1.NamespaceDefault))
	}
	force := true
	_, err = resource.Patch(ctx, object.GetName(), types.ApplyPatchType, body, metav1.PatchOptions{
		FieldManager: manager, Force: &force, FieldValidation: metav1.FieldValidationStrict,
	})
	return err
}

// decodeManifests returns the objects of a YAML stream. It skips empty documents.
func decodeManifests(manifests []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	reader := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(manifests)))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("manifests: %w", err)
		}
		content := map[string]any{}
		if err := yaml.Unmarshal(document, &content); err != nil {
			return nil, fmt.Errorf("document %d of the manifests: %w", len(objects)+1, err)
		}
		if len(content) > 0 {
			objects = append(objects, &unstructured.Unstructured{Object: content})
		}
	}
}

func unlessThere(err error) error {
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}
