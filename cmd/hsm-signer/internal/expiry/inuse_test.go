package expiry

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"

	"hsm-signer/internal/must"
	"hsm-signer/issuer/journal"
	"hsm-signer/kube/clientset/fake"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// ca is a CA whose key is in memory.
type ca struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newCA(t *testing.T, name, keyID string) ca {
	t.Helper()
	key := pkcs10test.NewKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1),
		Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		SubjectKeyId: []byte(keyID)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must.OK(t, err)
	return ca{must.Value(x509.ParseCertificate(der))(t), key}
}

// issue writes into the journal that a pod got a certificate of this lifetime.
func (c ca) issue(t *testing.T, j *journal.Writer, request, pod string, lifetime time.Duration) {
	t.Helper()
	serial, err := j.ID().NewSerial()
	must.OK(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: serial,
		Subject: pkix.Name{CommonName: "pod"}, NotAfter: time.Now().Add(lifetime)}, c.cert,
		c.key.Public(), c.key)
	must.OK(t, err)
	cert := must.Value(x509.ParseCertificate(der))(t)
	uid := fmt.Sprintf("%s-%x", request, serial)
	requester := policy.Requester{Username: "system:serviceaccount:ns:sa",
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:ns"}}
	if pod != "" {
		if strings.Contains(request, "/") { // kubelet asked
			requester = policy.Requester{Username: "system:serviceaccount:volumes:sa",
				Groups: []string{"system:serviceaccounts", "system:serviceaccounts:volumes"}}
		}
		requester.Extra = map[string][]string{
			"authentication.kubernetes.io/pod-name": {pod},
			"authentication.kubernetes.io/pod-uid":  {"uid-" + pod},
		}
	}
	signed, err := journal.NewSigned(uid, der, c.cert)
	must.OK(t, err)
	text := journal.FormatSerial(serial)
	for _, e := range []journal.Entry{
		journal.Intent{UID: uid, Name: request, Signer: "s", Requester: requester,
			Names: []string{"CN=pod"}, Serial: text, TBS: cert.RawTBSCertificate},
		signed, journal.Published{UID: uid, Serial: text},
	} {
		must.OK(t, j.Append(t.Context(), e))
	}
}

// pod returns a pod that was created at a time, which the API server keeps in whole seconds.
func pod(namespace, name string, created time.Time) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name,
		UID: types.UID("uid-" + name), CreationTimestamp: metav1.NewTime(
			created.Truncate(time.Second))}, Spec: corev1.PodSpec{ServiceAccountName: "sa"}}
}

// What counts are valid certificates of pods that live, each of the CA that signed it; and which
// pods were created before a time. A pod whose init container ran again has certificates from after
// that, and knows what it knew before. One that was created after it has as many as it wants.
func TestUsage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	// each differs from another one by its name alone, or by its key identifier alone
	former, next, other := newCA(t, "a", "1"), newCA(t, "a", "2"), newCA(t, "b", "2")
	j, err := journal.Open(dir, journal.Options{Version: "test", CA: former.cert,
		Next: next.cert})
	must.OK(t, err)
	defer func() { must.OK(t, j.Close()) }()
	former.issue(t, j, "certs:again", "again", time.Hour)
	former.issue(t, j, "certs:early", "early", time.Hour)
	former.issue(t, j, "certs:gone", "gone", 30*time.Hour)
	former.issue(t, j, "certs:ended", "early", time.Nanosecond)
	former.issue(t, j, "ns/renewed", "renewed", time.Hour)
	former.issue(t, j, "of-a-user", "", time.Hour)
	before := time.Now()
	next.issue(t, j, "certs:again", "again", 2*time.Hour)
	next.issue(t, j, "certs:fresh", "fresh", time.Hour)
	former.issue(t, j, "more:fresh", "fresh", time.Hour)
	next.issue(t, j, "ns/renewed", "renewed", time.Hour)
	former.issue(t, j, "more:early", "early", time.Hour)
	old := before.Add(-time.Minute)
	client := fake.New(pod("ns", "again", old), pod("ns", "early", old), pod("ns", "fresh", before),
		pod("volumes", "renewed", old))
	count := func() Usage {
		return must.Value(FindUsage(t.Context(), dir, client, time.Now(),
			[]*x509.Certificate{former.cert, other.cert, next.cert}, before))(t)
	}
	u := count()
	if u.Of[1] != (InUse{}) || u.Of[0].Live != 4 || u.Of[0].Unknown != 1 ||
		u.Of[2].Live != 3 || u.Fault != nil ||
		u.PodsFault != nil {
		t.Errorf("%+v", u)
	}
	if last := time.Until(u.Of[0].Last); last < 29*time.Hour || last > 30*time.Hour ||
		time.Until(u.Of[2].Last) > 2*time.Hour {
		t.Errorf("the last ones end at %s and %s", u.Of[0].Last, u.Of[2].Last)
	}
	if want := "[ns/again (kubectl -n ns delete pod again) ns/early (kubectl -n ns delete pod " +
		"early)]"; fmt.Sprint(u.Early) != want {
		t.Errorf("early: %v; want %s", u.Early, want)
	}
	for _, namespace := range []string{"volumes", "ns"} {
		client.PrependReactor("list", "pods", func(a clienttesting.Action) (bool, runtime.Object,
			error) {
			return a.GetNamespace() == namespace, nil, errors.New("forbidden")
		})
		u = count()
		if u.Fault == nil || (u.PodsFault != nil) != (namespace == "ns") {
			t.Errorf("without pods in %s: %+v", namespace, u)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := FindUsage(ended, dir, client, time.Now(), []*x509.Certificate{former.cert},
		before); !errors.Is(err, context.Canceled) {
		t.Errorf("it does not end with its context: %v", err)
	}
}
