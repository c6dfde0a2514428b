package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// protobufType is the content type of Kubernetes' protobuf encoding.
const protobufType = "application/vnd.kubernetes.protobuf"

// A requester is a running pod that gets certificates.
type requester struct {
	token   string // of whoever creates its requests
	request func(signer string) (object, error)
}

// newRequesters creates this many running pods, each with a key.
func (f *fixture) newRequesters(ctx context.Context, k kind, count int) ([]requester, error) {
	all := make([]requester, count)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(stormAskers)
	for i := range all {
		group.Go(func() (err error) {
			all[i], err = k.newRequester(f, ctx, i)
			return err
		})
	}
	return all, group.Wait()
}

// newCalicoRequester creates a pod that creates its requests itself, with a token bound to it.
func (f *fixture) newCalicoRequester(ctx context.Context, _ int) (r requester, err error) {
	pod, err := f.NewPod(ctx, node(), f.NextIP())
	if err != nil {
		return r, err
	}
	asking := pod.InitContainer(node())
	pkcs10, err := asking.PKCS10()
	return requester{pod.Config.BearerToken, func(signer string) (object, error) {
		csr, err := asking.Object()
		if err != nil {
			return nil, err
		}
		csr.Spec.Request, csr.Spec.SignerName = pkcs10, signer
		return csr, nil
	}}, err
}

// podNamespace is the namespace of pods that get pod certificates.
const podNamespace = "pods"

// These pods run in turn on so many nodes, and with so many service accounts.
const (
	podNodes    = 100
	podAccounts = 20
)

// newPodRequester creates a pod whose kubelet creates its requests. The admin does it in kubelet's
// place.
func (f *fixture) newPodRequester(ctx context.Context, i int) (r requester, err error) {
	pod, err := f.Cluster.Pod(ctx, testenv.PodSpec{
		Namespace: podNamespace, Name: fmt.Sprint("app-", i), IPs: []string{f.NextIP()},
		ServiceAccount: fmt.Sprint("app-", i%podAccounts), Node: fmt.Sprint("node-", i%podNodes),
	})
	if err != nil {
		return r, err
	}
	stub, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{},
		calico.NewP256Key())
	if err != nil {
		return r, err
	}
	pcr, err := f.Cluster.PodCertificateRequest(ctx, "", pod, stub)
	return requester{f.Cluster.Config().BearerToken, func(signer string) (object, error) {
		request := pcr.DeepCopy()
		request.Spec.SignerName = signer
		return request, nil
	}}, err
}

// clientUsages are those of a request for client authentication alone, which Kubernetes' own signer
// of client certificates accepts.
var clientUsages = []certificatesv1.KeyUsage{
	certificatesv1.UsageClientAuth, certificatesv1.UsageDigitalSignature,
}

// A wave is a set of requests. Requester i modulo the number of requesters creates request i.
type wave struct {
	kind   kind
	signer string
	usages []certificatesv1.KeyUsage // of CSRs; nil: Calico's
}

// bodies returns the bodies of the calls that create this many requests.
func (w wave) bodies(requesters []requester, count int) ([][]byte, error) {
	serializer := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	encoder := scheme.Codecs.EncoderForVersion(serializer, certificatesv1.SchemeGroupVersion)
	all := make([][]byte, count)
	for i := range all {
		request, err := requesters[i%len(requesters)].request(w.signer)
		if err != nil {
			return nil, err
		}
		request.SetName(w.kind.nameOf(i))
		if csr, is := request.(*certificatesv1.CertificateSigningRequest); is && w.usages != nil {
			csr.Spec.Usages = w.usages
		}
		if all[i], err = runtime.Encode(encoder, request); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// A poster creates requests with as little work as possible: the caller shares the processors with
// what is measured.
type poster struct {
	url  string
	http *http.Client
}

func (c *course) newPoster(b *testing.B) poster {
	b.Helper()
	tls := must.Get(rest.TLSConfigFor(c.Cluster.Config()))(b)
	transport := &http.Transport{TLSClientConfig: tls, ForceAttemptHTTP2: true}
	b.Cleanup(transport.CloseIdleConnections)
	return poster{c.kind.url(c.client), &http.Client{Transport: transport}}
}

// post creates one request as the owner of the token.
func (p poster) post(ctx context.Context, token string, body []byte) error {
	call, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	call.Header.Set("Content-Type", protobufType)
	call.Header.Set("Accept", protobufType)
	call.Header.Set("Authorization", "Bearer "+token)
	response, err := p.http.Do(call)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusCreated {
		err = fmt.Errorf("create a request: %s: %q", response.Status, answer)
	}
	return err
}

// create creates the requests, stormAskers at a time, and returns when each call started.
func (c *course) create(b *testing.B, bodies [][]byte) []time.Time {
	b.Helper()
	p := c.newPoster(b)
	started := make([]time.Time, len(bodies))
	group, ctx := errgroup.WithContext(b.Context())
	group.SetLimit(stormAskers)
	for i, body := range bodies {
		group.Go(func() error {
			started[i] = time.Now()
			return p.post(ctx, c.requesters[i%len(c.requesters)].token, body)
		})
	}
	must.OK(b, group.Wait())
	return started
}
