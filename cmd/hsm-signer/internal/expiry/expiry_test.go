package expiry

import (
	"net/netip"
	"testing"
	"time"

	"hsm-signer/kube"
	"hsm-signer/policy"
)

var now = time.Date(2026, 11, 26, 3, 0, 0, 0, time.UTC)

func TestSoonIsThirtyDaysOrAThirdOfTheLifetime(t *testing.T) {
	for _, c := range []struct {
		lifetime, left time.Duration
		want           bool
	}{
		{365 * day, 31 * day, false}, {365 * day, 29 * day, true}, {365 * day, -day, true},
		{24 * time.Hour, 9 * time.Hour, false}, {24 * time.Hour, 7 * time.Hour, true},
	} {
		cert := Certificate{NotBefore: now.Add(c.left - c.lifetime), NotAfter: now.Add(c.left)}
		if got := Soon(cert, now); got != c.want {
			t.Errorf("of %s, %s are left: soon is %t", c.lifetime, c.left, got)
		}
	}
}

// Where tokens name no pod, it is that of that service account with that address, if it is old
// enough.
func TestPodsAreFoundByTheirAddress(t *testing.T) {
	address := netip.MustParseAddr("10.65.0.7")
	cert := Certificate{Account: policy.ServiceAccount{Namespace: "calico-system",
		Name: "calico-node"}, Addresses: []netip.Addr{address}, SignedAt: now}
	pod := kube.LivePod{Pod: policy.Pod{UID: "1", ServiceAccount: "calico-node",
		IPs: []netip.Addr{address}}, Created: now.Add(-time.Minute)}
	if !cert.heldBy(pod) {
		t.Error("it is not found")
	}
	for name, change := range map[string]func(*kube.LivePod){
		"younger":         func(p *kube.LivePod) { p.Created = now.Add(time.Minute) },
		"another account": func(p *kube.LivePod) { p.ServiceAccount = "calico-typha" },
		"another address": func(p *kube.LivePod) { p.IPs = nil },
	} {
		other := pod
		change(&other)
		if cert.heldBy(other) {
			t.Errorf("%s: it is taken for the one", name)
		}
	}
	if cert.PodUID = "2"; cert.heldBy(pod) {
		t.Error("another UID: it is taken for the one")
	}
}

// A pod counts once, and as one that is dark when any of its certificates has ended.
func TestPodsAreCountedOnce(t *testing.T) {
	with := func(uid string, left time.Duration) Endangered {
		return Endangered{Certificate{NotAfter: now.Add(left)},
			kube.LivePod{Pod: policy.Pod{UID: uid}}}
	}
	f := Found{Pods: []Endangered{with("1", 0), with("2", time.Hour), with("1", time.Hour),
		with("3", time.Hour), with("3", 2*time.Hour)}}
	if ending, ended := f.Count(now); ending != 2 || ended != 1 {
		t.Errorf("%d pods end, and %d have ended", ending, ended)
	}
}

func TestRestart(t *testing.T) {
	for kind, want := range map[string]string{
		"DaemonSet":  "kubectl -n a rollout restart daemonset/b",
		"Deployment": "kubectl -n a rollout restart deployment/b",
		"ReplicaSet": "kubectl -n a delete pod p", "": "kubectl -n a delete pod p",
	} {
		pod := kube.LivePod{Pod: policy.Pod{Namespace: "a", Name: "p"},
			Owner: kube.Workload{Kind: kind, Namespace: "a", Name: "b"}}
		if got := pod.Restart(); got != want {
			t.Errorf("%q: %q", kind, got)
		}
	}
}
