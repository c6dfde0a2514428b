package request

import (
	"context"
	"strings"

	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// Both are two kinds of requests as one.
type Both struct {
	Cluster    Kind // whose requests are in no namespace
	Namespaced Kind // whose requests are in namespaces
}

// Serves reports whether either kind serves the signer name.
func (b Both) Serves(signer string) bool {
	return b.Cluster.Serves(signer) || b.Namespaced.Serves(signer)
}

// Find returns the APIs of both kinds as one. It returns an error unless the cluster has both.
func (b Both) Find(ctx context.Context) (API, error) {
	cluster, err := b.Cluster.Find(ctx)
	if err != nil {
		return nil, err
	}
	namespaced, err := b.Namespaced.Find(ctx)
	if err != nil {
		return nil, err
	}
	return &bothAPIs{cluster, namespaced}, nil
}

type bothAPIs struct{ cluster, namespaced API }

// namespacedPrefix begins the selectors of requests in namespaces, to tell them from the others.
const namespacedPrefix = "namespaced:"

// of returns the API that the selector is for, and the selector as that API has it.
func (b *bothAPIs) of(selector string) (API, string) {
	if selector, is := strings.CutPrefix(selector, namespacedPrefix); is {
		return b.namespaced, selector
	}
	return b.cluster, selector
}

// Version is that of both.
func (b *bothAPIs) Version() string {
	return b.cluster.Version() + ", " + b.namespaced.Version()
}

// ListsFirst reports whether one of the APIs needs that.
func (b *bothAPIs) ListsFirst() bool { return b.cluster.ListsFirst() || b.namespaced.ListsFirst() }

// Selectors are those of both.
func (b *bothAPIs) Selectors() []string {
	all := b.cluster.Selectors()
	for _, selector := range b.namespaced.Selectors() {
		all = append(all, namespacedPrefix+selector)
	}
	return all
}

// List lists the requests of one of [API.Selectors].
func (b *bothAPIs) List(
	ctx context.Context, o metav1.ListOptions,
) (*metainternalversion.List, error) {
	api, selector := b.of(o.FieldSelector)
	o.FieldSelector = selector
	return api.List(ctx, o)
}

// Watch watches the requests of one of [API.Selectors].
func (b *bothAPIs) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	api, selector := b.of(o.FieldSelector)
	o.FieldSelector = selector
	return api.Watch(ctx, o)
}

// Get reads the request NAME or NAMESPACE/NAME. No name has a slash.
func (b *bothAPIs) Get(ctx context.Context, name string) (Object, error) {
	if strings.Contains(name, "/") {
		return b.namespaced.Get(ctx, name)
	}
	return b.cluster.Get(ctx, name)
}

// Count returns the number of requests in no namespace: those that Calico's clients read.
func (b *bothAPIs) Count(ctx context.Context) (int, error) { return b.cluster.Count(ctx) }
