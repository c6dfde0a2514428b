package e2e

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"hsm-signer/hsm"
	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/issuer/journal"
	"hsm-signer/policy"
)

// ownedPod returns a running pod of a component with an owner.
func ownedPod(t *testing.T, c calico.Component, kind, name string) *corev1.Pod {
	t.Helper()
	made := newPod(t, c)
	patch := fmt.Sprintf(`{"metadata":{"ownerReferences":[
		{"apiVersion":"apps/v1","kind":%q,"name":%q,"uid":"1","controller":true}]}}`, kind, name)
	return must.Get(shared.Cluster.Client().CoreV1().Pods(made.Namespace).Patch(t.Context(),
		made.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}))(t)
}

// ownedReplicaSet creates the ReplicaSet of a Deployment.
func ownedReplicaSet(t *testing.T, namespace, name, deployment string) {
	t.Helper()
	must.OK(t, shared.Cluster.EnsureNamespace(t.Context(), namespace))
	controls, labels := true, map[string]string{"app": name}
	_, err := shared.Cluster.Client().AppsV1().ReplicaSets(namespace).Create(t.Context(),
		&appsv1.ReplicaSet{
			ObjectMeta: metav1.ObjectMeta{Name: name,
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "Deployment",
					Name: deployment, UID: "1", Controller: &controls}}},
			Spec: appsv1.ReplicaSetSpec{Selector: &metav1.LabelSelector{MatchLabels: labels},
				Template: corev1.PodTemplateSpec{
					ObjectMeta: metav1.ObjectMeta{Labels: labels},
					Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main",
						Image: "none.invalid/main"}}},
				}},
		}, metav1.CreateOptions{})
	must.OK(t, err)
}

// A formerCertificate was issued long ago, according to the journal.
type formerCertificate struct {
	component calico.Component
	pod       *corev1.Pod
	left      time.Duration
}

// journalOf writes a journal with these certificates. There is no other way to have old
// certificates.
func journalOf(t *testing.T, certificates ...formerCertificate) (dir string) {
	t.Helper()
	authority := certificateOf(t, ca)
	dir = filepath.Join(t.TempDir(), "state")
	j := must.Get(journal.Open(dir, journal.Options{Version: "test", CA: authority}))(t)
	signer := caSigner(t, authority)
	for n, c := range certificates {
		serial := must.Get(j.ID().NewSerial())(t)
		der := must.Get(x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: serial, Subject: pkix.Name{CommonName: c.component.DNSNames[0]},
			NotBefore: time.Now().Add(c.left - 365*24*time.Hour), NotAfter: time.Now().Add(c.left),
		}, authority, authority.PublicKey, signer))(t)
		cert := must.Get(x509.ParseCertificate(der))(t)
		uid, number := fmt.Sprintf("former-%d", n), journal.FormatSerial(serial)
		signed := must.Get(journal.NewSigned(uid, der, authority))(t)
		for _, e := range []journal.Entry{
			journal.Intent{UID: uid, Name: c.component.SecretName + ":" + c.pod.Name,
				Signer: "example.com/calico", Requester: requesterOf(c.pod),
				Rule: c.component.ServiceAccount, Names: []string{cert.Subject.String()},
				Serial: number, TBS: cert.RawTBSCertificate},
			signed,
			journal.Published{UID: uid, Serial: number},
		} {
			must.OK(t, j.Append(t.Context(), e))
		}
	}
	must.OK(t, j.Close())
	return dir
}

// caSigner signs with the CA's key, which only hsm-signer should do.
func caSigner(t *testing.T, authority *x509.Certificate) crypto.Signer {
	t.Helper()
	must.Setenv(t, shared.Token.Env())
	key := must.Get(hsm.NewKey(hsm.Config{
		Module: shared.Token.Module, Token: hsm.TokenID{Label: shared.Token.Label},
		PIN: hsm.PIN(shared.Token.PIN).Fixed(), Key: hsm.KeyID{Label: ca.KeyLabel},
	}, authority.PublicKey))(t)
	t.Cleanup(key.Close)
	return key.Signer(t.Context())
}

// requesterOf returns the pod's service account as the API server authenticates it.
func requesterOf(pod *corev1.Pod) policy.Requester {
	namespace, account := pod.Namespace, pod.Spec.ServiceAccountName
	return policy.Requester{
		Username: "system:serviceaccount:" + namespace + ":" + account,
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace,
			"system:authenticated"},
		Extra: map[string][]string{"authentication.kubernetes.io/pod-name": {pod.Name},
			"authentication.kubernetes.io/pod-uid": {string(pod.UID)}},
	}
}

// formerly returns the journal of pods whose certificates expire: two of a DaemonSet, one of them
// already expired, and one of a Deployment. One more pod was deleted, and another has a newer
// certificate.
func formerly(t *testing.T) (dir string, gone *corev1.Pod) {
	t.Helper()
	const day = 24 * time.Hour
	set := fmt.Sprintf("calico-typha-%d", numbers.Add(1))
	ownedReplicaSet(t, typha.Namespace, set, "calico-typha")
	gone = ownedPod(t, node, "DaemonSet", "calico-node")
	must.OK(t, shared.Cluster.DeletePod(t.Context(), gone))
	renewed := ownedPod(t, node, "DaemonSet", "calico-node")
	return journalOf(t,
		formerCertificate{node, renewed, 3 * day},
		formerCertificate{node, renewed, 300 * day},
		formerCertificate{node, ownedPod(t, node, "DaemonSet", "calico-node"), 5*day + time.Hour},
		formerCertificate{node, ownedPod(t, node, "DaemonSet", "calico-node"), -3 * time.Hour},
		formerCertificate{typha, ownedPod(t, typha, "ReplicaSet", set), 20*day + time.Hour},
		formerCertificate{node, gone, 2 * day},
		formerCertificate{typha, ownedPod(t, typha, "ReplicaSet", set), 200 * day},
	), gone
}

// audit list names the running pods that outlive their certificates, or have outlived them, and the
// commands that restart them. If the cluster cannot be read it lists all pods that may be among
// them.
func TestExpiringCertificatesAreListedWithTheirPods(t *testing.T) {
	dir, gone := formerly(t)
	for _, expiring := range []string{"30d", "soon"} {
		text := command(t, ca, nil, "audit", "list", dir, "--expiring", expiring).prints(t, 0)
		for want, times := range map[string]int{
			" (lives)": 3, "ENDED": 1, gone.Name: 0, "unknown": 0,
			"Restart them now:\n  kubectl -n calico-system rollout restart daemonset/calico-node\n":     1,
			"before they expire:\n  kubectl -n calico-system rollout restart deployment/calico-typha\n": 1,
		} {
			if strings.Count(text, want) != times {
				t.Errorf("%s: %q does not occur %d times: %s", expiring, want, times, text)
			}
		}
	}
	p := command(t, ca, []string{"KUBECONFIG="}, "audit", "list", dir, "--expiring", "30d",
		"--output", "json")
	p.complains(t, 0, "is not known")
	p.lacks(t, "lives")
	if n := strings.Count(p.stdout, `"pod":{"namespace":"calico-system","name":"calico-`); n != 4 {
		t.Errorf("%d pods: %s", n, p.stdout)
	}
	var first struct {
		NotAfter time.Time
		Ended    bool
	}
	if line, _, _ := strings.Cut(p.stdout, "\n"); json.Unmarshal([]byte(line), &first) != nil ||
		!first.Ended || !first.NotAfter.Before(time.Now()) {
		t.Errorf("what has ended does not come first, with its time in RFC 3339: %s", line)
	}
}
