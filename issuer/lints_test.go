package issuer

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/zmap/zlint/v3/lint"
)

// docs/lints.md lists every lint that is kept, by its source, and every lint that is dropped.
func TestTheManualListsTheLints(t *testing.T) {
	page, err := os.ReadFile("../docs/lints.md")
	if err != nil {
		t.Fatal(err)
	}
	registry, err := keptLints()
	if err != nil {
		t.Fatal(err)
	}
	bySource := map[lint.LintSource][]string{}
	for _, one := range registry.CertificateLints().Lints() {
		bySource[one.Source] = append(bySource[one.Source], "`"+one.Name+"`")
	}
	for source, names := range bySource {
		slices.Sort(names)
		want := fmt.Sprintf("| %s | %s |\n", source, strings.Join(names, ", "))
		if !strings.Contains(string(page), want) {
			t.Errorf("docs/lints.md does not have this line:\n%s", want)
		}
	}
	for name := range droppedLints {
		if strings.Count(string(page), "`"+name+"`") != 1 {
			t.Errorf("docs/lints.md does not say once why %s is dropped", name)
		}
	}
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
