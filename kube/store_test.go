package kube

import (
	"slices"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/internal/must"
	"hsm-signer/kube/csr"
	"hsm-signer/kube/request"
)

// telling returns a store, and what it has told: "+name" of what is new, "name" of what has
// changed, with the version.
func telling() (*store, *[]string) {
	var told []string
	say := func(mark string, r request.Object) {
		told = append(told, mark+r.GetName()+"@"+r.GetResourceVersion())
	}
	return &store{
		Store:   cache.NewStore(cache.MetaNamespaceKeyFunc),
		added:   func(r request.Object) { say("+", r) },
		updated: func(before, after request.Object) { say(before.GetResourceVersion()+">", after) },
		deleted: func(r request.Object) { say("-", r) },
	}, &told
}

func named(name, version string) request.Object {
	return (&csr.API{}).
		Whole(newCSR("example.com/a", func(r *certificatesv1.CertificateSigningRequest) {
			r.Name, r.ResourceVersion = name, version
		}))
}

// Whatever comes is kept and reported: new, or changed; and what a list no longer has is
// gone.
func TestStoreKeepsAndTells(t *testing.T) {
	m, told := telling()
	for _, step := range []struct {
		do   func() error
		told string
		kept string
	}{
		{func() error {
			return m.Replace([]any{named("a", "1"), named("b", "1")}, "1")
		}, "+a@1 +b@1", "a b"},
		{func() error { return m.Add(named("c", "2")) }, "+c@2", "a b c"},
		{func() error { return m.Update(named("a", "3")) }, "1>a@3", "a b c"},
		// seen before by a list
		{func() error { return m.Add(named("a", "4")) }, "3>a@4", "a b c"},
		// of which the beginning was missed
		{func() error { return m.Update(named("d", "5")) }, "+d@5", "a b c d"},
		{func() error { return m.Delete(named("b", "6")) }, "-b@1", "a c d"},
		{func() error {
			return m.Replace([]any{named("c", "2"), named("b", "7")}, "8")
		}, "2>c@2 +b@7 -a@4 -d@5", "b c"},
	} {
		*told = nil
		must.OK(t, step.do())
		if got := strings.Join(*told, " "); got != step.told {
			t.Errorf("told %q; want %q", got, step.told)
		}
		kept := m.ListKeys()
		slices.Sort(kept)
		if got := strings.Join(kept, " "); got != step.kept {
			t.Errorf("kept %q; want %q", got, step.kept)
		}
	}
}

// Nothing may be taken for gone before there was a whole list; and one that fails changes nothing.
func TestStoreIsWholeAfterItsFirstList(t *testing.T) {
	m, told := telling()
	if err := m.Add(named("a", "1")); err != nil || m.Synced() {
		t.Errorf("whole after one object: %t, %v", m.Synced(), err)
	}
	if err := m.Replace([]any{named("b", "2"), "not a request"}, "2"); err == nil || m.Synced() ||
		len(m.ListKeys()) != 1 || len(*told) != 1 {
		t.Errorf("after a list that failed: %v, whole: %t, kept %v, told %v", err, m.Synced(),
			m.ListKeys(), *told)
	}
	if err := m.Replace(nil, "3"); err != nil || !m.Synced() || len(m.ListKeys()) != 0 {
		t.Errorf("after an empty list: %v, whole: %t, kept %v", err, m.Synced(), m.ListKeys())
	}
}

// However long an API server was unavailable, it is tried again within 12 seconds: a pod's init
// container gives up after 90.
func TestStoreIsNeverSlowToTryAgain(t *testing.T) {
	delay := watchBackoff().DelayFunc()
	for range 1000 {
		if d := delay(); d < firstRetry || d > lastRetry*3/2 {
			t.Fatalf("it waits %s", d)
		}
	}
}
