package testenv

import (
	"context"
	"crypto"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	certificatesclient "k8s.io/client-go/kubernetes/typed/certificates/v1"
	"k8s.io/client-go/rest"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/load"
)

// A Pod is a pod of a component, with its own client of the API server.
type Pod struct {
	*corev1.Pod
	Client kubernetes.Interface
	Config *rest.Config

	key crypto.Signer // that its certificate is for
}

// Requests returns the pod's client for certificate requests.
func (p Pod) Requests() certificatesclient.CertificateSigningRequestInterface {
	return p.Client.CertificatesV1().CertificateSigningRequests()
}

// PodWith returns the pod with a client of this configuration and a new P-256 key.
func PodWith(pod *corev1.Pod, config *rest.Config) (Pod, error) {
	client, err := kubernetes.NewForConfig(config)
	return Pod{pod, client, config, calico.NewP256Key()}, err
}

// NewPod creates a pod, as [Cluster.Pod] does, with a token that is bound to it.
func (c *Cluster) NewPod(ctx context.Context, spec PodSpec) (Pod, error) {
	pod, err := c.Pod(ctx, spec)
	if err != nil {
		return Pod{}, err
	}
	return c.WithToken(ctx, pod)
}

// WithToken returns the pod with a token that is bound to it.
func (c *Cluster) WithToken(ctx context.Context, pod *corev1.Pod) (Pod, error) {
	token, err := c.TokenFor(ctx, pod)
	if err != nil {
		return Pod{}, err
	}
	return PodWith(pod, c.ConfigFor(token))
}

// NewPod creates a pod of the component. With addresses it runs, without any it is pending; see
// [Env.NextIP].
func (e *Env) NewPod(ctx context.Context, c calico.Component, ips ...string) (Pod, error) {
	return e.newPod(ctx, c, PodSpec{IPs: ips})
}

// NewInitPod creates a pod of the component whose init container runs, as a Calico pod does while
// it requests its certificate.
func (e *Env) NewInitPod(ctx context.Context, c calico.Component) (Pod, error) {
	return e.newPod(ctx, c, PodSpec{
		IPs: []string{e.NextIP()},
		// as Calico's operator names it
		InitContainers: []string{c.SecretName + "-key-cert-provisioner"},
	})
}

func (e *Env) newPod(ctx context.Context, c calico.Component, spec PodSpec) (Pod, error) {
	spec.Namespace, spec.ServiceAccount = c.Namespace, c.ServiceAccount
	spec.Name = fmt.Sprintf("%s-%d", c.ServiceAccount, e.pods.Add(1))
	return e.Cluster.NewPod(ctx, spec)
}

// podMakers is how many pods LoadPods creates at the same time.
const podMakers = 8

// LoadPods creates this many pods of the component, each with a key and a running init container.
// [load.Run] has them request their certificates.
func (e *Env) LoadPods(ctx context.Context, c calico.Component, count int) ([]load.Pod, error) {
	pods := make([]load.Pod, count)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(podMakers)
	for i := range pods {
		group.Go(func() (err error) {
			pods[i], err = e.loadPod(ctx, c)
			return err
		})
	}
	return pods, group.Wait()
}

func (e *Env) loadPod(ctx context.Context, c calico.Component) (load.Pod, error) {
	pod, err := e.NewInitPod(ctx, c)
	if err != nil {
		return load.Pod{}, err
	}
	return load.Pod{Asking: pod.InitContainer(c), Config: pod.Config}, nil
}

// Kubelet is for [load.Plan.Ended]. It writes the status of a pod whose client has exited with 0,
// as its kubelet does; otherwise a signer that reads the pod of an open request would assume that a
// lost client still waits. failed is called with errors.
func (e *Env) Kubelet(ctx context.Context, pods []load.Pod,
	failed func(...any)) func(i int, outcome load.Outcome, issued bool) {
	return func(i int, outcome load.Outcome, issued bool) {
		if outcome != load.Succeeded && outcome != load.Lost {
			return
		}
		if err := e.EndInitAt(ctx, pods[i].Asking.Pod, issued, time.Now()); err != nil {
			failed(err)
		}
	}
}

// EndInitAt writes the pod's status as its kubelet does when the init container has exited with 0
// at that time: with files the main container runs, without them it has crashed.
func (e *Env) EndInitAt(ctx context.Context, pod *corev1.Pod, files bool, at time.Time) error {
	status := afterInit(pod, files, metav1.NewTime(at))
	_, err := e.Cluster.Client().CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, status,
		metav1.UpdateOptions{})
	return err
}

// afterInit returns the pod with the status that its kubelet writes once its init container has
// exited with 0: with files its main container runs, without them it has crashed.
func afterInit(pod *corev1.Pod, files bool, now metav1.Time) *corev1.Pod {
	pod = pod.DeepCopy()
	pod.ResourceVersion = "" // nobody else writes the status
	pod.Status.Phase = corev1.PodRunning
	for i := range pod.Status.InitContainerStatuses {
		status := &pod.Status.InitContainerStatuses[i]
		began := now
		if status.State.Running != nil {
			began = status.State.Running.StartedAt
		}
		status.Ready = true
		status.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			Reason: "Completed", StartedAt: began, FinishedAt: now,
		}}
	}
	for i := range pod.Status.ContainerStatuses {
		status := &pod.Status.ContainerStatuses[i]
		if files {
			status.Ready = true
			status.State =
				corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}
			continue
		}
		status.State.Waiting = &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}
		status.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{
			Reason: "Error", ExitCode: 1, StartedAt: now, FinishedAt: now,
		}
	}
	return pod
}

// NextIP returns an address that no other pod has.
func (e *Env) NextIP() string {
	n := e.addresses.Add(1)
	return netip.AddrFrom4([4]byte{10, 65, byte(n >> 8), byte(n)}).String()
}

// InitContainer returns the init container of the pod that requests a certificate for its P-256
// key.
func (p Pod) InitContainer(c calico.Component) calico.InitContainer {
	return calico.InitContainer{
		Component: c, Pod: p.Pod, SignerName: SignerName,
		Key: p.key, SignatureAlgorithm: "ECDSAWithSHA256",
	}
}
