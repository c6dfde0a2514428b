package bench

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/integration/must"
)

// protobufClient returns an admin's client as lean as hsm-signer's.
func (f *fixture) protobufClient(b *testing.B) kubernetes.Interface {
	b.Helper()
	config := rest.CopyConfig(f.Cluster.Config())
	config.ContentType, config.AcceptContentTypes = protobufType, protobufType
	return must.Get(kubernetes.NewForConfig(config))(b)
}

// An observer notes when each request of a wave gets its certificate. The fields without a channel
// are to be read after done.
type observer struct {
	kind   kind
	issued map[string]time.Time
	lost   int           // requests that were removed without an answer
	came   chan struct{} // has a value for each certificate
	done   chan error    // has a value after the last certificate
}

// observe starts to watch for the certificates of the signer's requests.
func (c *course) observe(b *testing.B, signer string) *observer {
	b.Helper()
	requests := c.kind.of(c.client, signer)
	version := must.Get(list(b.Context(), requests, func(object) {}))(b)
	o := &observer{c.kind, make(map[string]time.Time, c.count), 0, make(chan struct{}, c.count),
		make(chan error, 1)}
	go func() {
		ctx, cancel := context.WithTimeout(b.Context(), patience)
		defer cancel()
		o.done <- follow(ctx, requests, version, func(event request) bool {
			return o.note(event) < c.count
		})
	}()
	return o
}

// note notes the certificate of a request, and returns how many requests are done.
func (o *observer) note(event request) int {
	switch name := event.GetName(); {
	case !o.issued[name].IsZero():
	case hasCertificate(event.object):
		o.issued[name] = time.Now()
		o.came <- struct{}{}
	case event.change == watch.Deleted:
		o.lost++
	}
	return len(o.issued) + o.lost
}

// A request is one event of a watch.
type request struct {
	object
	change watch.EventType
}

// list calls each with every request, and returns the version of the list.
func list(ctx context.Context, requests *cache.ListWatch, each func(object)) (string, error) {
	all, err := requests.ListWithContext(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	about, err := meta.ListAccessor(all)
	if err != nil {
		return "", err
	}
	return about.GetResourceVersion(), meta.EachListItem(all, func(item runtime.Object) error {
		each(item.(object))
		return nil
	})
}

// follow calls each with every change of the requests after a version, until that returns false or
// the context ends. The API server ends watches that do not keep up; they are continued.
func follow(ctx context.Context, requests *cache.ListWatch, version string,
	each func(request) (more bool)) error {
	for {
		watcher, err := requests.WatchWithContext(ctx, metav1.ListOptions{ResourceVersion: version})
		if err != nil {
			return err
		}
		for event := range watcher.ResultChan() {
			changed, is := event.Object.(object)
			if !is {
				watcher.Stop()
				return apierrors.FromObject(event.Object)
			}
			version = changed.GetResourceVersion()
			if !each(request{changed, event.Type}) {
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
	var t timing
	for i := range len(o.issued) + o.lost {
		at := o.issued[o.kind.nameOf(i)]
		if at.IsZero() {
			continue
		}
		came := arrival{at: at.Sub(start)}
		if created != nil {
			came.latency = at.Sub(created[i])
		}
		t = append(t, came)
	}
	if len(t) == 0 || len(t) < len(o.issued) {
		b.Fatalf("%d certificates, %d of them for the requests of the run", len(o.issued), len(t))
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
