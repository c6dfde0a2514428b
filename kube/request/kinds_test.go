package request

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"hsm-signer/internal/must"
)

// testKind has the requests whose names begin with its own.
type testKind struct {
	name  string
	fault error // of Find
}

func (k testKind) Serves(signer string) bool { return signer == k.name }

func (k testKind) Named(name string) bool { return strings.HasPrefix(name, k.name) }

func (k testKind) Find(context.Context) (API, error) { return testAPI{k.name}, k.fault }

// errSaid says which API was asked, and for what.
type errSaid string

func (e errSaid) Error() string { return string(e) }

// testAPI answers each call with what it was asked.
type testAPI struct{ name string }

func (a testAPI) Version() string                    { return a.name + "/v1" }
func (a testAPI) ListsFirst() bool                   { return a.name == "b" }
func (a testAPI) Selectors() []string                { return []string{"", "x:y"} }
func (a testAPI) Count(context.Context) (int, error) { return len(a.name), nil }

func (a testAPI) List(_ context.Context, o metav1.ListOptions) (*metainternalversion.List, error) {
	return nil, errSaid(a.name + " lists " + o.FieldSelector)
}

func (a testAPI) Watch(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
	return nil, errSaid(a.name + " watches " + o.FieldSelector)
}

func (a testAPI) Get(_ context.Context, name string) (Object, error) {
	return nil, errSaid(a.name + " reads " + name)
}

// Each call goes to the kind that it is for. A kind whose API is missing is left out, and named.
func TestKinds(t *testing.T) {
	lacks := NoAPI("the API server lacks b")
	for _, c := range []struct {
		of        error // of the kind b
		version   string
		selectors []string
		read      string
		first     bool
	}{
		{nil, "a/v1, b/v1, c/v1", []string{"0:", "0:x:y", "1:", "1:x:y", "2:", "2:x:y"},
			"b reads b-1", true},
		{lacks, "a/v1, c/v1", []string{"0:", "0:x:y", "2:", "2:x:y"}, string(lacks), false},
	} {
		kinds := Kinds{testKind{name: "a"}, testKind{"b", c.of}, testKind{name: "c"}}
		api := must.Value(kinds.Find(t.Context()))(t)
		if api.Version() != c.version || !slices.Equal(api.Selectors(), c.selectors) ||
			api.ListsFirst() != c.first || !errors.Is(Missing(api), c.of) {
			t.Errorf("%s, %q, %t; missing: %v", api.Version(), api.Selectors(), api.ListsFirst(),
				Missing(api))
		}
		_, read := api.Get(t.Context(), "b-1")
		_, list := api.List(t.Context(), metav1.ListOptions{FieldSelector: "2:x:y"})
		_, watched := api.Watch(t.Context(), metav1.ListOptions{FieldSelector: "0:"})
		if read.Error() != c.read || list != errSaid("c lists x:y") ||
			watched != errSaid("a watches ") {
			t.Errorf("%v; %v; %v", read, list, watched)
		}
		if n, err := api.Count(t.Context()); n != 1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		for _, selector := range []string{"", "x", "3:", "-1:"} {
			o := metav1.ListOptions{FieldSelector: selector}
			if _, err := api.List(t.Context(), o); err == nil {
				t.Errorf("%q selects requests", selector)
			}
		}
		if _, err := api.Get(t.Context(), "d"); err == nil {
			t.Error("a name of no kind is read")
		}
	}
	for name, kinds := range map[string]Kinds{
		"all are missing": {testKind{"a", lacks}, testKind{"b", lacks}},
		"one is unknown":  {testKind{name: "a"}, testKind{"b", errors.New("no answer")}},
	} {
		if api, err := kinds.Find(t.Context()); err == nil || api != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Missing(testAPI{"a"}); err != nil {
		t.Errorf("of one kind: %v", err)
	}
	kinds := Kinds{testKind{name: "a"}, testKind{name: "b"}}
	if !kinds.Serves("b") || kinds.Serves("c") || !kinds.Named("b-1") || kinds.Named("c-1") {
		t.Error("another kind is served")
	}
}
