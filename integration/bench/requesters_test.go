package bench

import (
	"bytes"
	"context"
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
)

// protobufType is the content type of Kubernetes' protobuf encoding.
const protobufType = "application/vnd.kubernetes.protobuf"

// requestsURL is the path of the collection of certificate requests.
const requestsURL = "/apis/certificates.k8s.io/v1/certificatesigningrequests"

// A requester is a running pod that creates certificate requests with its own token.
type requester struct {
	token  string
	asking calico.InitContainer
	pkcs10 []byte // PEM
}

// newRequesters creates this many running pods, each with a key and a token that is bound to it.
func (f *fixture) newRequesters(ctx context.Context, count int) ([]requester, error) {
	all := make([]requester, count)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(stormAskers)
	for i := range all {
		group.Go(func() (err error) {
			all[i], err = f.newRequester(ctx)
			return err
		})
	}
	return all, group.Wait()
}

func (f *fixture) newRequester(ctx context.Context) (r requester, err error) {
	pod, err := f.NewPod(ctx, node(), f.NextIP())
	if err != nil {
		return r, err
	}
	r.token, r.asking = pod.Config.BearerToken, pod.InitContainer(node())
	r.pkcs10, err = r.asking.PKCS10()
	return r, err
}

// clientUsages are those of a request for client authentication alone, which Kubernetes' own signer
// of client certificates accepts.
var clientUsages = []certificatesv1.KeyUsage{
	certificatesv1.UsageClientAuth, certificatesv1.UsageDigitalSignature,
}

// A wave is a set of requests. Requester i modulo the number of requesters creates request i.
type wave struct {
	signer string
	usages []certificatesv1.KeyUsage // nil: Calico's
}

// nameOf returns the name of request i.
func nameOf(i int) string { return fmt.Sprintf("node-certs:requester-%d", i) }

// bodies returns the bodies of the calls that create this many requests.
func (w wave) bodies(requesters []requester, count int) ([][]byte, error) {
	serializer := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	encoder := scheme.Codecs.EncoderForVersion(serializer, certificatesv1.SchemeGroupVersion)
	all := make([][]byte, count)
	for i := range all {
		r := requesters[i%len(requesters)]
		object, err := r.asking.Object()
		if err != nil {
			return nil, err
		}
		object.Name, object.Spec.Request, object.Spec.SignerName = nameOf(i), r.pkcs10, w.signer
		if w.usages != nil {
			object.Spec.Usages = w.usages
		}
		if all[i], err = runtime.Encode(encoder, object); err != nil {
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

func (f *fixture) newPoster(b *testing.B) poster {
	b.Helper()
	config := f.Cluster.Config()
	tls, err := rest.TLSConfigFor(config)
	must.OK(b, err)
	transport := &http.Transport{TLSClientConfig: tls, ForceAttemptHTTP2: true}
	b.Cleanup(transport.CloseIdleConnections)
	return poster{config.Host + requestsURL, &http.Client{Transport: transport}}
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
func (f *fixture) create(b *testing.B, requesters []requester, bodies [][]byte) []time.Time {
	b.Helper()
	p := f.newPoster(b)
	started := make([]time.Time, len(bodies))
	group, ctx := errgroup.WithContext(b.Context())
	group.SetLimit(stormAskers)
	for i, body := range bodies {
		group.Go(func() error {
			started[i] = time.Now()
			return p.post(ctx, requesters[i%len(requesters)].token, body)
		})
	}
	must.OK(b, group.Wait())
	return started
}
