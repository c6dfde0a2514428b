package legacyapi_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"sync"
	"testing"
	"time"

	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	informersv1beta1 "k8s.io/client-go/informers/certificates/v1beta1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/legacyapi"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

const signerName = "example.com/calico"

// cluster is the one that the tests of this package share.
var cluster *testenv.Cluster

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	cluster, err = testenv.StartCluster(context.Background(),
		testenv.ClusterOptions{Progress: os.Stderr})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer cluster.Stop()
	return m.Run()
}

// serve starts a Server and returns the admin's client configuration for it.
func serve(t *testing.T, o legacyapi.Options) *rest.Config {
	t.Helper()
	o.Upstream = cluster.Config()
	s := must.Get(legacyapi.Start(o))(t)
	t.Cleanup(s.Close)
	return s.Config(cluster.Config().BearerToken)
}

func TestDiscovery(t *testing.T) {
	client := kubernetes.NewForConfigOrDie(serve(t, legacyapi.Options{})).Discovery()
	groups, lists, err := client.ServerGroupsAndResources()
	must.OK(t, err)
	for _, group := range groups {
		if group.Name == "certificates.k8s.io" &&
			(len(group.Versions) != 1 || group.Versions[0].Version != "v1beta1" ||
				group.PreferredVersion.Version != "v1beta1") {
			t.Errorf("versions of certificates.k8s.io are %v, want v1beta1 alone", group.Versions)
		}
	}
	var names []string
	for _, list := range lists {
		if list.GroupVersion == "certificates.k8s.io/v1" {
			t.Error("v1 is discovered")
		}
		if list.GroupVersion == "certificates.k8s.io/v1beta1" {
			for _, resource := range list.APIResources {
				names = append(names, resource.Name)
			}
		}
	}
	want := "[certificatesigningrequests certificatesigningrequests/approval " +
		"certificatesigningrequests/status]"
	if got := fmt.Sprint(names); got != want {
		t.Errorf("resources of v1beta1 are %s, want %s", got, want)
	}
	if _, err := client.ServerResourcesForGroupVersion(
		"certificates.k8s.io/v1"); !apierrors.IsNotFound(err) {
		t.Errorf("asked for v1: %v, want not found", err)
	}
}

func TestEverythingElsePasses(t *testing.T) {
	client := kubernetes.NewForConfigOrDie(serve(t, legacyapi.Options{}))
	if _, err := client.CoreV1().Namespaces().Get(t.Context(), "default",
		metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := client.CertificatesV1().CertificateSigningRequests().List(t.Context(),
		metav1.ListOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("list of v1: %v, want not found", err)
	}
	stranger := serve(t, legacyapi.Options{})
	stranger.BearerToken = "nobody's"
	if _, err := kubernetes.NewForConfigOrDie(stranger).CoreV1().Namespaces().List(t.Context(),
		metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("with a wrong token: %v, want unauthorized", err)
	}
}

// TestLifeOfRequest takes a request from its creation to its certificate as an informer sees it, in
// both encodings of bodies.
func TestLifeOfRequest(t *testing.T) {
	for _, contentType := range []string{"application/json",
		"application/vnd.kubernetes.protobuf"} {
		t.Run(contentType, func(t *testing.T) {
			config := serve(t, legacyapi.Options{})
			config.ContentType = contentType
			client := kubernetes.NewForConfigOrDie(config)
			informer := informersv1beta1.NewFilteredCertificateSigningRequestInformer(client, 0,
				nil, func(o *metav1.ListOptions) {
					o.FieldSelector = "spec.signerName=" + signerName
				})
			live(t, client, observe(t, informer), signerName)
		})
	}
}

// listing tells an informer not to wait for the end of a watch's initial events to be marked, which
// a server before 1.19 neither does nor refuses to do.
type listing struct{}

func (listing) IsWatchListSemanticsUnSupported() bool { return true }

func TestLifeOfRequestBefore118(t *testing.T) {
	config := serve(t, legacyapi.Options{Before118: true, SignerName: signerName})
	client := kubernetes.NewForConfigOrDie(config)
	requests := client.CertificatesV1beta1().CertificateSigningRequests()
	lists := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object,
			error) {
			return requests.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface,
			error) {
			return requests.Watch(ctx, o)
		},
	}, listing{})
	informer := cache.NewSharedIndexInformer(lists,
		&certificatesv1beta1.CertificateSigningRequest{}, 0, nil)
	live(t, client, observe(t, informer), "")
	if _, err := requests.List(t.Context(),
		metav1.ListOptions{FieldSelector: "spec.signerName=" +
			signerName}); !apierrors.IsBadRequest(err) {
		t.Errorf("list by signer name: %v, want bad request", err)
	}
}

// live creates a request without a signer name if it is "", and with it otherwise, approves it and
// gives it a certificate.
func live(t *testing.T, client kubernetes.Interface,
	seen <-chan *certificatesv1beta1.CertificateSigningRequest, signer string) {
	t.Helper()
	ctx := t.Context()
	requests := client.CertificatesV1beta1().CertificateSigningRequests()
	request := newRequest(t)
	if signer != "" {
		request.Spec.SignerName = &signer
	}
	request = must.Get(requests.Create(ctx, request, metav1.CreateOptions{}))(t)
	stored, err := cluster.Client().CertificatesV1().CertificateSigningRequests().Get(ctx,
		request.Name, metav1.GetOptions{})
	if err != nil || stored.Spec.SignerName != signerName {
		t.Fatalf("stored with signer name %q, %v; want %q", stored.Spec.SignerName, err, signerName)
	}
	await(t, seen, "is there", func(r *certificatesv1beta1.CertificateSigningRequest) bool {
		return (r.Spec.SignerName == nil) == (signer == "")
	})

	request.Status.Conditions = []certificatesv1beta1.CertificateSigningRequestCondition{
		{Type: certificatesv1beta1.CertificateApproved, Reason: "Test"},
	}
	request = must.Get(requests.UpdateApproval(ctx, request, metav1.UpdateOptions{}))(t)
	await(t, seen, "is approved", func(r *certificatesv1beta1.CertificateSigningRequest) bool {
		return len(r.Status.Conditions) == 1 &&
			r.Status.Conditions[0].Status == corev1.ConditionTrue
	})

	request.Status.Certificate = newCertificate(t)
	must.Get(requests.UpdateStatus(ctx, request, metav1.UpdateOptions{}))(t)
	await(t, seen, "is issued",
		func(r *certificatesv1beta1.CertificateSigningRequest) bool {
			return len(r.Status.Certificate) > 0
		})

	must.OK(t,
		requests.Delete(ctx, request.Name,
			metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(request.UID))}))
	list, err := requests.List(ctx, metav1.ListOptions{})
	if err != nil || len(list.Items) != 0 {
		t.Errorf("after its deletion the list has %d requests, %v", len(list.Items), err)
	}
}

// observe runs an informer of v1beta1 for as long as the test, and gives out what it sees.
func observe(t *testing.T,
	informer cache.SharedIndexInformer) <-chan *certificatesv1beta1.CertificateSigningRequest {
	t.Helper()
	seen := make(chan *certificatesv1beta1.CertificateSigningRequest, 100)
	send := func(object any) { seen <- object.(*certificatesv1beta1.CertificateSigningRequest) }
	must.Get(informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: send,
		UpdateFunc: func(_, object any) { send(object) }}))(t)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { informer.RunWithContext(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	patience, done := context.WithTimeout(t.Context(), 10*time.Second)
	defer done()
	if !cache.WaitForCacheSync(patience.Done(), informer.HasSynced) {
		t.Fatal("the informer does not get its first list")
	}
	return seen
}

func await(t *testing.T, seen <-chan *certificatesv1beta1.CertificateSigningRequest, what string,
	is func(*certificatesv1beta1.CertificateSigningRequest) bool) {
	t.Helper()
	late := time.After(10 * time.Second)
	var last *certificatesv1beta1.CertificateSigningRequest
	for {
		select {
		case last = <-seen:
			if is(last) {
				return
			}
		case <-late:
			t.Fatalf("the informer does not see that the request %s, but last %+v", what, last)
		}
	}
}

func newRequest(t *testing.T) *certificatesv1beta1.CertificateSigningRequest {
	t.Helper()
	request := calico.InitContainer{
		Component: calico.OpenSource("cluster.local")[0],
		Pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "calico-node-abcde"},
			Status: corev1.PodStatus{PodIP: "10.0.0.7"}},
		Key:                calico.NewP256Key(),
		SignatureAlgorithm: "ECDSAWithSHA256",
	}
	pkcs10 := must.Get(request.PKCS10())(t)
	return &certificatesv1beta1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: request.Name()},
		Spec: certificatesv1beta1.CertificateSigningRequestSpec{
			Request: pkcs10,
			Usages: []certificatesv1beta1.KeyUsage{certificatesv1beta1.UsageDigitalSignature,
				certificatesv1beta1.UsageServerAuth},
		},
	}
}

// newCertificate is some certificate: the API server looks into it.
func newCertificate(t *testing.T) []byte {
	t.Helper()
	key := calico.NewP256Key()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der := must.Get(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
