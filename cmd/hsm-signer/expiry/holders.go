package expiry

import (
	"context"
	"errors"
	"slices"

	"k8s.io/client-go/kubernetes"

	"hsm-signer/kube"
)

// Holders find the live pod of a certificate. Each namespace is read once, when it is first asked for.
// They are not safe for concurrent use.
type Holders struct {
	client     kubernetes.Interface
	namespaces map[string]namespace
}

type namespace struct {
	byUID map[string]kube.LivePod
	all   []kube.LivePod
	err   error
}

// NewHolders looks with this client.
func NewHolders(client kubernetes.Interface) *Holders {
	return &Holders{client: client, namespaces: map[string]namespace{}}
}

// Of returns the live pod that has the certificate, and false when it is gone.
func (h *Holders) Of(ctx context.Context, c Certificate) (kube.LivePod, bool, error) {
	n, known := h.namespaces[c.Account.Namespace]
	if !known {
		n = read(ctx, h.client, c.Account.Namespace)
		h.namespaces[c.Account.Namespace] = n
	}
	if n.err != nil {
		return kube.LivePod{}, false, n.err
	}
	if c.PodUID != "" {
		pod, lives := n.byUID[c.PodUID]
		return pod, lives, nil
	}
	if i := slices.IndexFunc(n.all, c.heldBy); i >= 0 {
		return n.all[i], true, nil
	}
	return kube.LivePod{}, false, nil
}

func read(ctx context.Context, client kubernetes.Interface, name string) namespace {
	pods, err := kube.LivePods(ctx, client, name)
	n := namespace{byUID: make(map[string]kube.LivePod, len(pods)), all: pods, err: err}
	for _, pod := range pods {
		n.byUID[pod.UID] = pod
	}
	return n
}

// An Endangered pod lives, and its certificate has ended or ends soon.
type Endangered struct {
	Certificate
	Pod kube.LivePod
}

// endangered returns those of the certificates whose pod lives, in the same order, and why it is not
// known of some.
func endangered(ctx context.Context, client kubernetes.Interface, certificates []Certificate) ([]Endangered, error) {
	holders := NewHolders(client)
	var all []Endangered
	var faults []error
	for _, c := range certificates {
		pod, lives, err := holders.Of(ctx, c)
		switch {
		case err != nil && !slices.Contains(faults, err):
			faults = append(faults, err)
		case lives:
			all = append(all, Endangered{c, pod})
		}
	}
	return all, errors.Join(faults...)
}
