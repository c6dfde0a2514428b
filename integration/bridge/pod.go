package bridge

import (
	"context"
	"crypto"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"hsm-signer/integration/bed"
	"hsm-signer/integration/calico"
	"hsm-signer/integration/load"
)

// A Pod is one of a component, and its own way to the API server.
type Pod struct {
	*corev1.Pod
	Client kubernetes.Interface
	Config *rest.Config
}

// NewPod makes a pod of the component, with a name of its own. With IPs it runs; see [Bridge.NextIP].
func (b *Bridge) NewPod(ctx context.Context, c calico.Component, ips ...string) (Pod, error) {
	spec := bed.PodSpec{Namespace: c.Namespace, Name: fmt.Sprintf("%s-%d", c.ServiceAccount, b.pods.Add(1)), ServiceAccount: c.ServiceAccount, IPs: ips}
	made, err := b.Cluster.Pod(ctx, spec)
	if err != nil {
		return Pod{}, err
	}
	token, err := b.Cluster.TokenFor(ctx, made)
	if err != nil {
		return Pod{}, err
	}
	config := b.Cluster.ConfigFor(token)
	client, err := kubernetes.NewForConfig(config)
	return Pod{made, client, config}, err
}

// LoadPods makes so many running pods of the component, each with a key of its own, that ask
// together; see [load.Run].
func (b *Bridge) LoadPods(ctx context.Context, c calico.Component, count int) ([]load.Pod, error) {
	var pods []load.Pod
	for range count {
		pod, err := b.NewPod(ctx, c, b.NextIP())
		if err != nil {
			return nil, err
		}
		key, err := calico.NewKey("ECDSAWithCurve256")
		if err != nil {
			return nil, err
		}
		pods = append(pods, load.Pod{Asking: pod.Asking(c, key), Config: pod.Config})
	}
	return pods, nil
}

// NextIP is an address that no other pod has.
func (b *Bridge) NextIP() string {
	n := b.addresses.Add(1)
	return netip.AddrFrom4([4]byte{10, 65, byte(n >> 8), byte(n)}).String()
}

// Asking is what the init container of the pod asks for, with a P-256 key.
func (p Pod) Asking(c calico.Component, key crypto.Signer) calico.InitContainer {
	return calico.InitContainer{Component: c, Pod: p.Pod, SignerName: SignerName, Key: key, SignatureAlgorithm: "ECDSAWithSHA256"}
}
