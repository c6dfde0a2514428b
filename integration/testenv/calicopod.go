package testenv

import (
	"context"
	"crypto"
	"fmt"
	"net/netip"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/load"
)

// A Pod is one of a component, and its own way to the API server.
type Pod struct {
	*corev1.Pod
	Client kubernetes.Interface
	Config *rest.Config
}

// NewPod makes a pod of the component, with a name of its own. With IPs it runs; see
// [Env.NextIP].
func (e *Env) NewPod(ctx context.Context, c calico.Component, ips ...string) (Pod, error) {
	return e.newPod(ctx, c, PodSpec{IPs: ips})
}

// NewInitPod makes a pod of the component whose init container runs, as a Calico pod does that asks
// for its certificate.
func (e *Env) NewInitPod(ctx context.Context, c calico.Component) (Pod, error) {
	return e.newPod(ctx, c, PodSpec{
		IPs:            []string{e.NextIP()},
		InitContainers: []string{c.SecretName + "-key-cert-provisioner"}, // as Calico's operator names it
	})
}

// newPod makes a pod of the component, with a name of its own and its own way to the API server.
func (e *Env) newPod(ctx context.Context, c calico.Component, spec PodSpec) (Pod, error) {
	spec.Namespace, spec.ServiceAccount = c.Namespace, c.ServiceAccount
	spec.Name = fmt.Sprintf("%s-%d", c.ServiceAccount, e.pods.Add(1))
	made, err := e.Cluster.Pod(ctx, spec)
	if err != nil {
		return Pod{}, err
	}
	token, err := e.Cluster.TokenFor(ctx, made)
	if err != nil {
		return Pod{}, err
	}
	config := e.Cluster.ConfigFor(token)
	client, err := kubernetes.NewForConfig(config)
	return Pod{made, client, config}, err
}

// podMakers is how many pods LoadPods makes at the same time.
const podMakers = 8

// LoadPods makes so many pods of the component, each with a key of its own and with an init
// container that runs; they ask together in [load.Run].
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
	key, err := calico.NewKey("ECDSAWithCurve256")
	return load.Pod{Asking: pod.Asking(c, key), Config: pod.Config}, err
}

// EndInit writes the pod's status as its kubelet does when the init container has ended with 0: with
// files the main container runs, and without them it has crashed.
func (e *Env) EndInit(ctx context.Context, pod *corev1.Pod, files bool) error {
	status := afterInit(pod, files, metav1.Now())
	_, err := e.Cluster.Client().CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, status, metav1.UpdateOptions{})
	return err
}

// NextIP is an address that no other pod has.
func (e *Env) NextIP() string {
	n := e.addresses.Add(1)
	return netip.AddrFrom4([4]byte{10, 65, byte(n >> 8), byte(n)}).String()
}

// Asking is what the init container of the pod asks for, with a P-256 key.
func (p Pod) Asking(c calico.Component, key crypto.Signer) calico.InitContainer {
	return calico.InitContainer{Component: c, Pod: p.Pod, SignerName: SignerName, Key: key, SignatureAlgorithm: "ECDSAWithSHA256"}
}
