package release

import (
	"cmp"
	"context"
	"crypto/sha1"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// A material is a bill of materials: an artefact, and all that is in it.
type material struct {
	artefact
	version string // of the software
	sum     string // SHA-256 of the file
	made    time.Time
	parts   []part
}

// A part is a module of Go, Go itself, or a package of a base image.
type part struct {
	name, version string
	purl          string
	hash          string // of a module, as in go.sum
}

// materials writes the bill of materials of each artefact, as SPDX and as CycloneDX.
func (b *build) materials(context.Context) error {
	b.say("writing the bills of materials")
	for _, a := range b.artefacts {
		m, err := b.material(a)
		if err != nil {
			return err
		}
		for extension, document := range map[string]any{
			".spdx.json": m.spdx(), ".cdx.json": m.cycloneDX(),
		} {
			text, err := json.MarshalIndent(document, "", "  ")
			if err != nil {
				return fmt.Errorf("release: %w", err)
			}
			if err := os.WriteFile(b.out(a.file+extension), append(text, '\n'), 0o644); err != nil {
				return fmt.Errorf("release: %w", err)
			}
		}
	}
	return nil
}

func (b *build) material(a artefact) (material, error) {
	sum, err := digest(b.out(a.file))
	if err != nil {
		return material{}, err
	}
	m := material{artefact: a, version: b.version.pkg, sum: sum, made: b.time,
		parts: slices.Clone(a.others)}
	for _, binary := range a.binaries {
		parts, err := modules(binary)
		if err != nil {
			return material{}, err
		}
		m.parts = append(m.parts, parts...)
	}
	slices.SortFunc(m.parts, func(a, b part) int { return cmp.Compare(a.purl, b.purl) })
	m.parts = slices.Compact(m.parts)
	return m, nil
}

// modules returns what "go version -m" prints of a binary: its module, those that it depends on,
// and Go's standard library.
func modules(binary string) ([]part, error) {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return nil, fmt.Errorf("release: read the modules of %s: %w", binary, err)
	}
	goVersion := strings.TrimPrefix(info.GoVersion, "go")
	parts := []part{{name: "stdlib", version: goVersion, purl: "pkg:golang/stdlib@" + goVersion}}
	for _, m := range append(slices.Clone(info.Deps), &info.Main) {
		if m.Replace != nil {
			m = m.Replace
		}
		p := part{name: m.Path, version: m.Version, hash: m.Sum, purl: "pkg:golang/" + m.Path}
		if m.Version != "" {
			p.purl += "@" + strings.ReplaceAll(m.Version, "+", "%2B")
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// identifier returns a UUID of version 5 (RFC 9562) that is derived from the artefact, in the form
// of a document.
func (m material) identifier(form string) string {
	// The namespace for URLs of RFC 9562; the artefact's package URL is one.
	namespace, _ := hex.DecodeString("6ba7b8119dad11d180b400c04fd430c8")
	hash := sha1.New()
	hash.Write(namespace)
	fmt.Fprintf(hash, "%s#%s,%s", m.purl, m.sum, form)
	id := hash.Sum(nil)[:16]
	id[6] = id[6]&0x0f | 0x50
	id[8] = id[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

// reference returns an identifier of the part inside a document, with letters, digits, dots and
// hyphens only.
func (p part) reference() string {
	hash := sha1.Sum([]byte(p.purl))
	clean := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.':
			return r
		}
		return '-'
	}, p.name)
	return clean + "-" + hex.EncodeToString(hash[:4])
}

const (
	license  = "Apache-2.0"
	producer = "hsm-signer"
)
