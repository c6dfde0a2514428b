package release

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// A version is the version of a release, such as v1.2.3, or of a snapshot, as "git describe" writes
// it: v1.2.3-4-g0123abc after a tag, 0123abc without one.
type version struct {
	text string
	pkg  string // for packages, which sort by it
}

var (
	released = regexp.MustCompile(`^v(\d+\.\d+\.\d+)(?:-((?:alpha|beta|rc)[.0-9a-z]*))?$`)
	since    = regexp.MustCompile(`^v(\d+\.\d+\.\d+)(?:-((?:alpha|beta|rc)[.0-9a-z]*))?-(\d+)-(g[0-9a-f]+)$`)
	untagged = regexp.MustCompile(`^[0-9a-f]{7,40}$`)
)

// parseVersion returns the version with that name. committed orders snapshots without a tag.
//
// Packages of v1.2.3-rc.1, v1.2.3 and v1.2.3-4-g0123abc have the versions 1.2.3~rc.1, 1.2.3 and
// 1.2.3+4.g0123abc, which dpkg and rpm sort in this order. Snapshots without a tag sort before
// every release.
func parseVersion(text string, committed time.Time) (version, error) {
	number := func(match []string) string {
		if match[2] == "" {
			return match[1]
		}
		return match[1] + "~" + match[2]
	}
	switch {
	case released.MatchString(text):
		return version{text, number(released.FindStringSubmatch(text))}, nil
	case since.MatchString(text):
		match := since.FindStringSubmatch(text)
		return version{text, number(match) + "+" + match[3] + "." + match[4]}, nil
	case untagged.MatchString(text):
		stamp := committed.UTC().Format("20060102150405")
		return version{text, "0.0.0~" + stamp + ".g" + text}, nil
	}
	return version{}, fmt.Errorf("release: the version %q is neither like v1.2.3 or v1.2.3-rc.1 nor "+
		"what \"git describe --tags --always\" prints: tag the commit with such a version", text)
}

// String returns the version as users know it.
func (v version) String() string { return v.text }

// released reports whether v is a release, and not a snapshot.
func (v version) released() bool { return released.MatchString(v.text) }

// file returns the version as it is in the names of archives.
func (v version) file() string { return strings.TrimPrefix(v.text, "v") }
