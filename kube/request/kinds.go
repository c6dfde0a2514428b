package request

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// Kinds are several kinds of requests as one. No two of them may have requests of one name.
type Kinds []Kind

// Serves reports whether a kind serves the signer name.
func (k Kinds) Serves(signer string) bool {
	return slices.ContainsFunc(k, func(one Kind) bool { return one.Serves(signer) })
}

// Named reports whether a kind has requests of such a name.
func (k Kinds) Named(name string) bool {
	return slices.ContainsFunc(k, func(one Kind) bool { return one.Named(name) })
}

// Find returns the APIs that the cluster has as one; [Missing] tells what it lacks. It returns an
// error if the cluster has none of them, or the API server does not say of one.
func (k Kinds) Find(ctx context.Context) (API, error) {
	found := &apis{kinds: k, apis: make([]API, len(k))}
	var missing []error
	for i, kind := range k {
		api, err := kind.Find(ctx)
		lacks := NoAPI("")
		switch {
		case errors.As(err, &lacks):
			missing = append(missing, err)
		case err != nil:
			return nil, err
		default:
			found.apis[i] = api
		}
	}
	if found.missing = errors.Join(missing...); len(missing) == len(k) {
		return nil, found.missing
	}
	return found, nil
}

// Missing returns why some of the [Kinds] whose API this is are not in it: the cluster lacks their
// API. It returns nil if all are.
func Missing(api API) error {
	if several, is := api.(*apis); is {
		return several.missing
	}
	return nil
}

// apis are the APIs of several kinds.
type apis struct {
	kinds   Kinds
	apis    []API // of each kind; nil: the cluster lacks it
	missing error
}

// present returns the APIs that the cluster has.
func (a *apis) present() []API {
	return slices.DeleteFunc(slices.Clone(a.apis), func(api API) bool { return api == nil })
}

// Version is those of all.
func (a *apis) Version() string {
	var all []string
	for _, api := range a.present() {
		all = append(all, api.Version())
	}
	return strings.Join(all, ", ")
}

// ListsFirst reports whether one of the APIs needs that.
func (a *apis) ListsFirst() bool { return slices.ContainsFunc(a.present(), API.ListsFirst) }

// Selectors are those of all, each behind the number of its kind and a colon.
func (a *apis) Selectors() (all []string) {
	for i, api := range a.apis {
		if api == nil {
			continue
		}
		for _, selector := range api.Selectors() {
			all = append(all, strconv.Itoa(i)+":"+selector)
		}
	}
	return all
}

// of returns the API that one of the selectors is for, and the selector as that API has it.
func (a *apis) of(selector string) (API, string, error) {
	number, own, _ := strings.Cut(selector, ":")
	i, err := strconv.Atoi(number)
	if err != nil || i < 0 || i >= len(a.apis) || a.apis[i] == nil {
		return nil, "", fmt.Errorf("%q is not a selector of these requests", selector)
	}
	return a.apis[i], own, nil
}

// List lists the requests of one of [API.Selectors].
func (a *apis) List(
	ctx context.Context, o metav1.ListOptions,
) (*metainternalversion.List, error) {
	api, selector, err := a.of(o.FieldSelector)
	if err != nil {
		return nil, err
	}
	o.FieldSelector = selector
	return api.List(ctx, o)
}

// Watch watches the requests of one of [API.Selectors].
func (a *apis) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	api, selector, err := a.of(o.FieldSelector)
	if err != nil {
		return nil, err
	}
	o.FieldSelector = selector
	return api.Watch(ctx, o)
}

// Get reads the request, of the kind that has such names.
func (a *apis) Get(ctx context.Context, name string) (Object, error) {
	i := slices.IndexFunc(a.kinds, func(kind Kind) bool { return kind.Named(name) })
	switch {
	case i < 0:
		return nil, fmt.Errorf("%q is not the name of a request", name)
	case a.apis[i] == nil:
		return nil, a.missing
	}
	return a.apis[i].Get(ctx, name)
}

// Count returns the number of requests of the first kind: those that Calico's clients read.
func (a *apis) Count(ctx context.Context) (int, error) {
	if a.apis[0] == nil {
		return 0, a.missing
	}
	return a.apis[0].Count(ctx)
}
