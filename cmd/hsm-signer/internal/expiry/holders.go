package expiry

import (
	"context"
	"errors"
	"slices"
	"time"

	"hsm-signer/kube"
	"hsm-signer/kube/clientset"
)

// holders find the live pod of a certificate. Each namespace is read once, when it is first asked
// for. They are not safe for concurrent use.
type holders struct {
	client     clientset.Interface
	namespaces map[string]namespace
}

type namespace struct {
	byUID map[string]kube.LivePod
	all   []kube.LivePod
	err   error
}

// of returns the live pod that has the certificate, and false when it is gone.
func (h *holders) of(ctx context.Context, c Certificate) (kube.LivePod, bool, error) {
	if h.client == nil {
		return kube.LivePod{}, false, errNoCluster
	}
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

func read(ctx context.Context, client clientset.Interface, name string) namespace {
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

// Found is what was found at a time. The certificates that end first come first, and so those that
// have ended.
type Found struct {
	Pods    []Endangered
	Unknown []Certificate // of which it is not known whether anybody lives with them
	Fault   error         // why it is not known of those of pods; nil when it is known of all
}

// Count tells how many pods there are whose certificates end soon, and how many others with one
// that has ended.
func (f Found) Count(now time.Time) (ending, ended int) {
	dark := map[string]bool{} // by UID
	for _, pod := range f.Pods {
		dark[pod.Pod.UID] = dark[pod.Pod.UID] || pod.Ended(now)
	}
	for _, is := range dark {
		if is {
			ended++
		} else {
			ending++
		}
	}
	return ending, ended
}

// Find reads the journal in dir, and looks which pods live.
func Find(ctx context.Context, dir string, client clientset.Interface, now time.Time,
	term Term) (Found, error) {
	c, err := scan(dir, now, now, term, true)
	if err != nil {
		return Found{}, err
	}
	return find(ctx, client, c.ending), nil
}

// errNoCluster: there is no client to look with.
var errNoCluster = errors.New("no cluster is named: set KUBECONFIG")

// find divides the certificates, in their order, into those whose pod lives and those of which that
// is not known. Those whose pod is gone are left out.
func find(ctx context.Context, client clientset.Interface, certificates []Certificate) Found {
	h := &holders{client: client, namespaces: map[string]namespace{}}
	var f Found
	var faults []error
	for _, c := range certificates {
		if !c.OfPod() {
			f.Unknown = append(f.Unknown, c)
			continue
		}
		pod, lives, err := h.of(ctx, c)
		if err != nil && !slices.Contains(faults, err) {
			faults = append(faults, err)
		}
		switch {
		case err != nil:
			f.Unknown = append(f.Unknown, c)
		case lives:
			f.Pods = append(f.Pods, Endangered{c, pod})
		}
	}
	f.Fault = errors.Join(faults...)
	return f
}
