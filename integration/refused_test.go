package integration_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"hsm-signer/integration/must"
)

// refused.md names tests for every class of request that is refused, and every test that it names
// exists.
func TestEveryRefusalHasItsTest(t *testing.T) {
	page := must.Get(os.ReadFile("refused.md"))(t)
	tests := testFiles(t)
	classes, seen := 0, map[string]bool{}
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 || strings.HasPrefix(line, "|---") ||
			strings.TrimSpace(cells[2]) == "Tests" {
			continue
		}
		classes++
		named := regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[2], -1)
		if len(named) == 0 {
			t.Errorf("no test for: %s", cells[1])
		}
		for _, name := range named {
			seen[name[1]] = true
			if !exists(name[1], tests) {
				t.Errorf("there is no test %s, which is to prove: %s", name[1], cells[1])
			}
		}
	}
	t.Logf("%d classes are refused, which %d tests and subtests prove", classes, len(seen))
	if classes == 0 {
		t.Error("the page has no table")
	}
}

// exists reports whether one of the files has the test and, after a slash, the name of its case.
func exists(name string, files []string) bool {
	test, part, _ := strings.Cut(name, "/")
	for _, text := range files {
		if strings.Contains(text, "\nfunc "+test+"(") &&
			(part == "" || strings.Contains(text, strconv.Quote(part))) {
			return true
		}
	}
	return false
}

// testFiles returns the contents of the repository's tests.
func testFiles(t *testing.T) (texts []string) {
	t.Helper()
	err := filepath.WalkDir(productRoot, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		texts = append(texts, string(text))
		return err
	})
	must.OK(t, err)
	return texts
}
