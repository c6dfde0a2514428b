package issuer

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/zmap/zlint/v3/lint"

	"hsm-signer/internal/must"
)

// docs/lints-list.md lists the lints that are dropped, with the reasons, and the others by source.
// With UPDATE_LINTS=1 it is written.
func TestTheManualListsTheLints(t *testing.T) {
	const file = "../docs/lints-list.md"
	want := lintsPage(t)
	if os.Getenv("UPDATE_LINTS") != "" {
		must.OK(t, os.WriteFile(file, want, 0o644))
	}
	if page, err := os.ReadFile(file); err != nil || !bytes.Equal(page, want) {
		t.Errorf("%s is not up to date: run this test with UPDATE_LINTS=1: %v", file, err)
	}
}

// lintsPage returns the page of the manual that lists the lints.
func lintsPage(t *testing.T) []byte {
	t.Helper()
	registry, err := keptLints()
	must.OK(t, err)
	bySource := map[lint.LintSource][]string{}
	for _, one := range registry.CertificateLints().Lints() {
		bySource[one.Source] = append(bySource[one.Source], "`"+one.Name+"`")
	}
	var page bytes.Buffer
	page.WriteString("# List of lints\n\n" +
		"`UPDATE_LINTS=1 go test ./issuer -run Lints` overwrites this page; [lints.md](lints.md) " +
		"explains it.\n\n" +
		"## Dropped\n\n| Lint | Reason |\n|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(droppedLints)) {
		fmt.Fprintf(&page, "| `%s` | %s |\n", name, droppedLints[name])
	}
	page.WriteString("\n## Kept\n\n| Source | Lints |\n|---|---|\n")
	for _, source := range slices.Sorted(maps.Keys(bySource)) {
		slices.Sort(bySource[source])
		fmt.Fprintf(&page, "| %s | %s |\n", source, strings.Join(bySource[source], ", "))
	}
	return page.Bytes()
}

// A lint that is dropped exists, in one of the sources.
func TestDroppedLintsExist(t *testing.T) {
	for name, reason := range droppedLints {
		one := lint.GlobalRegistry().CertificateLints().ByName(name)
		if one == nil || !slices.Contains(lintSources, one.Source) || reason == "" {
			t.Errorf("%s is not a lint of the chosen sources, or has no reason", name)
		}
	}
}
