package policy

import (
	"regexp"
	"strings"
	"testing"
)

// Names have the shapes of Kubernetes' own expressions, with a length.
func FuzzShapes(f *testing.F) {
	label := regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	subdomain := regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)
	for _, name := range []string{
		"", "a", "a-b", "-a", "a-", "a.b", ".a", "a.", "A", "a\n", "a b", "0", "ä", "a/b",
		strings.Repeat("a", 63), strings.Repeat("a", 64), strings.Repeat("a", 253),
		strings.Repeat("a", 254),
	} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if got := isDNSLabel(name); got != label.MatchString(name) {
			t.Errorf("isDNSLabel(%q) = %t", name, got)
		}
		if got := isDNSSubdomain(name); got != subdomain.MatchString(name) {
			t.Errorf("isDNSSubdomain(%q) = %t", name, got)
		}
	})
}
