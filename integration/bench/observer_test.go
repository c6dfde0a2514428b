package bench

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	certificatesclient "k8s.io/client-go/kubernetes/typed/certificates/v1"
	"k8s.io/client-go/rest"

	"hsm-signer/integration/must"
)

// protobufClient returns an admin's client as lean as hsm-signer's.
func (f *fixture) protobufClient(b *testing.B) kubernetes.Interface {
	b.Helper()
	config := rest.CopyConfig(f.Cluster.Config())
	config.ContentType, config.AcceptContentTypes = protobufType, protobufType
	client, err := kubernetes.NewForConfig(config)
	must.OK(b, err)
	return client
}

// An observer notes when each request of a wave gets its certificate.
type observer struct {
	issued map[string]time.Time // to be read after done
	came   chan struct{}        // has a value for each certificate
	done   chan error           // has a value after the last certificate
}

// observe starts to watch for this many certificates.
func (f *fixture) observe(b *testing.B, client kubernetes.Interface, signer string,
	count int) *observer {
	b.Helper()
	requests := client.CertificatesV1().CertificateSigningRequests()
	list, err := requests.List(b.Context(), metav1.ListOptions{Limit: 1})
	must.OK(b, err)
	o := &observer{make(map[string]time.Time, count), make(chan struct{}, count),
		make(chan error, 1)}
	go func() {
		ctx, cancel := context.WithTimeout(b.Context(), patience)
		defer cancel()
		o.done <- follow(ctx, requests, signer, list.ResourceVersion, func(event request) bool {
			return o.note(event) < count
		})
	}()
	return o
}

// note notes the certificate of a request, and returns how many there are.
func (o *observer) note(event request) int {
	if len(event.Status.Certificate) > 0 && o.issued[event.Name].IsZero() {
		o.issued[event.Name] = time.Now()
		o.came <- struct{}{}
	}
	return len(o.issued)
}

// A request is one event of a watch.
type request struct {
	*certificatesv1.CertificateSigningRequest
	added bool
}

// follow calls each with every change of the signer's requests after a version, until that returns
// false or the context ends. The API server ends watches that do not keep up; they are continued.
func follow(ctx context.Context, requests certificatesclient.CertificateSigningRequestInterface,
	signer, version string, each func(request) (more bool)) error {
	for {
		watcher, err := requests.Watch(ctx, metav1.ListOptions{
			ResourceVersion: version, FieldSelector: "spec.signerName=" + signer,
		})
		if err != nil {
			return err
		}
		for event := range watcher.ResultChan() {
			csr, is := event.Object.(*certificatesv1.CertificateSigningRequest)
			if !is {
				watcher.Stop()
				return apierrors.FromObject(event.Object)
			}
			version = csr.ResourceVersion
			if !each(request{csr, event.Type == watch.Added}) {
				watcher.Stop()
				return nil
			}
		}
	}
}

// A timing says when the certificates of a wave came, the first first.
type timing []arrival

// An arrival is one certificate: when it came, since the start of the wave, and how long after the
// call that created its request; 0 for a backlog.
type arrival struct{ at, latency time.Duration }

// wait waits for all certificates. created has the time of each call, the first of which starts the
// wave; for a backlog it is nil, and the first certificate starts the wave.
func (o *observer) wait(b *testing.B, created []time.Time) timing {
	b.Helper()
	must.OK(b, <-o.done)
	starts := created
	if created == nil {
		starts = slices.Collect(maps.Values(o.issued))
	}
	start := slices.MinFunc(starts, time.Time.Compare)
	t := make(timing, len(o.issued))
	for i := range t {
		at := o.issued[nameOf(i)]
		if at.IsZero() {
			b.Fatalf("no certificate for %s", nameOf(i))
		}
		t[i].at = at.Sub(start)
		if created != nil {
			t[i].latency = at.Sub(created[i])
		}
	}
	slices.SortFunc(t, func(x, y arrival) int { return cmp.Compare(x.at, y.at) })
	return t
}

// seconds is the time until the last certificate.
func (t timing) seconds() float64 { return t[len(t)-1].at.Seconds() }

// perSecond is the number of certificates per second until the last one.
func (t timing) perSecond() float64 { return float64(len(t)) / t.seconds() }

// quantile returns the latency that this part of the requests did not exceed, in seconds.
func (t timing) quantile(part float64) float64 {
	sorted := slices.SortedFunc(slices.Values(t),
		func(x, y arrival) int { return cmp.Compare(x.latency, y.latency) })
	return sorted[int(part*float64(len(t)-1))].latency.Seconds()
}

// String is for the log of a benchmark.
func (t timing) String() string {
	text := fmt.Sprintf("%.0f/s", t.perSecond())
	if t.quantile(1) > 0 {
		text += fmt.Sprintf(", p50 %.2f s, p99 %.2f s, max %.2f s", t.quantile(0.5),
			t.quantile(0.99), t.quantile(1))
	}
	return text
}
