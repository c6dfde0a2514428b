package release

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// nfpm writes packages without the tools of a distribution.
const nfpm = "github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2"

const maintainer = "the maintainers of hsm-signer <hsm-signer@localhost>"

// A format is a kind of package.
type format struct {
	name       string            // as nfpm knows it
	arch       map[string]string // Go's name of an architecture: the format's
	file       string            // with the version and the architecture
	libc       string            // the dependency on the C library, with its version
	completion string            // where zsh looks for completions
}

var formats = []format{
	{"deb", map[string]string{"amd64": "amd64", "arm64": "arm64"}, "hsm-signer_%s_%s.deb",
		"libc6 (>= %s)", "usr/share/zsh/vendor-completions"},
	{"rpm", map[string]string{"amd64": "x86_64", "arm64": "aarch64"}, "hsm-signer-%s-1.%s.rpm",
		"libc.so.6(GLIBC_%s)(64bit)", "usr/share/zsh/site-functions"},
}

// packages writes the packages of each target whose binary has all commands.
func (b *build) packages(ctx context.Context) error {
	// Not "go run" for each package: building it once is faster.
	if _, err := run(ctx, b.work, []string{"GOBIN=" + b.work, "GOFLAGS=", "GOWORK=off"}, b.Go,
		"install", nfpm); err != nil {
		return err
	}
	for _, t := range b.targets {
		if !t.cgo {
			continue
		}
		for _, f := range formats {
			if err := b.packageFor(ctx, t, f); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *build) packageFor(ctx context.Context, t target, f format) error {
	name := fmt.Sprintf(f.file, b.version.pkg, f.arch[t.arch])
	b.say("packing %s", name)
	entries, err := b.packageEntries(ctx, t, f)
	if err != nil {
		return err
	}
	libc, err := glibc(b.binaries[t])
	if err != nil {
		return err
	}
	recipe := b.recipe(t, entries, fmt.Sprintf(f.libc, libc))
	text, err := json.MarshalIndent(recipe, "", " ") // which is YAML too
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	config, err := b.staged("nfpm/"+name+".yaml", text)
	if err != nil {
		return err
	}
	env := []string{fmt.Sprintf("%s=%d", epochVariable, b.time.Unix())}
	if _, err := run(ctx, b.work, env, filepath.Join(b.work, "nfpm"), "package", "--config", config,
		"--packager", f.name, "--target", b.out(name)); err != nil {
		return err
	}
	b.artefacts = append(b.artefacts, artefact{file: name, name: "hsm-signer",
		purl: fmt.Sprintf("pkg:%s/hsm-signer@%s?arch=%s", f.name,
			strings.ReplaceAll(b.version.pkg, "+", "%2B"), f.arch[t.arch]),
		binaries: []string{b.binaries[t]}})
	return nil
}

// packageEntries returns what a package installs.
func (b *build) packageEntries(ctx context.Context, t target, f format) ([]entry, error) {
	const doc = "usr/share/doc/hsm-signer"
	entries := []entry{
		file("usr/bin/hsm-signer", b.binaries[t], 0o755),
		file(path.Join(doc, "copyright"), filepath.Join(b.source, "LICENSE"), 0o644),
		file(path.Join(doc, licensesFile), b.licenses[t], 0o644),
		{path: path.Join(doc, "deploy"), link: "../../hsm-signer/deploy", mode: 0o777},
		{path: "etc/hsm-signer", mode: 0o755},
	}
	for _, name := range manuals[1:] {
		entries = append(entries, file(path.Join(doc, name), filepath.Join(b.source, name), 0o644))
	}
	for from, to := range map[string]string{"docs": path.Join(doc, "docs"),
		"deploy": "usr/share/hsm-signer/deploy"} {
		found, err := below(filepath.Join(b.source, from), to)
		if err != nil {
			return nil, err
		}
		entries = append(entries, slices.DeleteFunc(found, isPackaging)...)
	}
	for _, part := range []func() ([]entry, error){
		func() ([]entry, error) { return b.changelog(f) },
		b.units,
		func() ([]entry, error) { return b.pages(ctx, f) },
	} {
		found, err := part()
		if err != nil {
			return nil, err
		}
		entries = append(entries, found...)
	}
	return entries, nil
}

// isPackaging reports whether an entry is a file that only makes packages.
func isPackaging(e entry) bool { return strings.Contains(e.path, "/deploy/packages/") }

// changelog returns the changelog in the form that Debian's tools read.
func (b *build) changelog(f format) ([]entry, error) {
	if f.name != "deb" {
		return nil, nil
	}
	text := fmt.Sprintf("hsm-signer (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n"+
		" -- %s  %s\n", b.version.pkg, maintainer, b.time.UTC().Format(time.RFC1123Z))
	plain, err := b.staged("changelog", []byte(text))
	if err != nil {
		return nil, err
	}
	compressed, err := b.compressed(plain)
	return []entry{file("usr/share/doc/hsm-signer/changelog.gz", compressed, 0o644)}, err
}

// unitFiles are the files of deploy/systemd and deploy/packages that systemd reads, each with its
// place in a package.
var unitFiles = map[string]string{
	"systemd/hsm-signer.service":            "usr/lib/systemd/system/hsm-signer.service",
	"systemd/hsm-signer-credential.service": "usr/lib/systemd/system/hsm-signer-credential.service",
	"systemd/hsm-signer-credential.timer":   "usr/lib/systemd/system/hsm-signer-credential.timer",
	"systemd/hsm-signer-credential.conf":    "usr/lib/systemd/system/hsm-signer.service.d/credential.conf",
	"systemd/hsm-signer.sysusers":           "usr/lib/sysusers.d/hsm-signer.conf",
	"packages/hsm-signer.tmpfiles":          "usr/lib/tmpfiles.d/hsm-signer.conf",
	"packages/environment":                  "usr/share/hsm-signer/environment.example",
}

// units returns systemd's files, which name the binary where packages put it.
func (b *build) units() ([]entry, error) {
	var entries []entry
	for from, to := range unitFiles {
		content, err := os.ReadFile(filepath.Join(b.source, "deploy", from))
		if err != nil {
			return nil, fmt.Errorf("release: %w", err)
		}
		content = bytes.ReplaceAll(content, []byte("/usr/local/bin/"), []byte("/usr/bin/"))
		staged, err := b.staged(to, content)
		if err != nil {
			return nil, err
		}
		entries = append(entries, file(to, staged, 0o644))
	}
	return entries, nil
}

// pages returns the manual pages and the completions.
func (b *build) pages(ctx context.Context, f format) ([]entry, error) {
	dir, err := b.generated(ctx)
	if err != nil {
		return nil, err
	}
	pages, err := below(filepath.Join(dir, manualPages), "usr/share/man/man1")
	if err != nil {
		return nil, err
	}
	for i, page := range pages {
		if pages[i].from, err = b.compressed(page.from); err != nil {
			return nil, err
		}
		pages[i].path += ".gz"
	}
	completion := func(to, shell string) entry {
		return file(to, filepath.Join(dir, completions, shell), 0o644)
	}
	return append(pages,
		completion("usr/share/bash-completion/completions/hsm-signer", "bash"),
		completion("usr/share/fish/vendor_completions.d/hsm-signer.fish", "fish"),
		completion(path.Join(f.completion, "_hsm-signer"), "zsh")), nil
}

// A recipe is the configuration of nfpm (nfpm.goreleaser.com/docs/configuration).
type recipe struct {
	Name          string            `json:"name"`
	Arch          string            `json:"arch"`
	Version       string            `json:"version"`
	VersionSchema string            `json:"version_schema"`
	Release       string            `json:"release,omitempty"`
	Section       string            `json:"section"`
	Priority      string            `json:"priority"`
	Maintainer    string            `json:"maintainer"`
	Description   string            `json:"description"`
	License       string            `json:"license"`
	Globbing      bool              `json:"disable_globbing"`
	Modified      time.Time         `json:"mtime"`
	Depends       []string          `json:"depends"`
	Recommends    []string          `json:"recommends"`
	Contents      []content         `json:"contents"`
	Scripts       map[string]string `json:"scripts"`
	RPM           map[string]string `json:"rpm"`
}

// A content is an entry of a package, as nfpm knows it.
type content struct {
	From string `json:"src,omitempty"`
	To   string `json:"dst"`
	Type string `json:"type,omitempty"`
	Info struct {
		Owner    string    `json:"owner"`
		Group    string    `json:"group"`
		Mode     uint32    `json:"mode,omitempty"`
		Modified time.Time `json:"mtime"`
	} `json:"file_info"`
}

// recipe returns what nfpm needs for a package with the entries.
func (b *build) recipe(t target, entries []entry, libc string) recipe {
	script := func(name string) string { return filepath.Join(b.source, "deploy/packages", name) }
	r := recipe{Name: "hsm-signer", Arch: t.arch, Version: b.version.pkg, VersionSchema: "none",
		Release: "", Section: "admin", Priority: "optional",
		Maintainer: maintainer,
		Description: "Signs Kubernetes certificate requests with a key in an HSM\n" +
			"hsm-signer watches certificate requests, checks that the requester may have\n" +
			"the names that it asks for, has a PKCS#11 token sign, and publishes the\n" +
			"certificate.",
		License: "Apache-2.0", Globbing: true, Modified: b.time,
		Depends: []string{libc}, Recommends: []string{"systemd (>= 251)"},
		Scripts: map[string]string{"postinstall": script("postinstall.sh"),
			"preremove": script("preremove.sh"), "postremove": script("postremove.sh")},
		RPM: map[string]string{"buildhost": "localhost", "group": "System Environment/Daemons",
			"summary": "Signs Kubernetes certificate requests with a key in an HSM"},
	}
	for _, e := range entries {
		r.Contents = append(r.Contents, b.content(e))
	}
	return r
}

func (b *build) content(e entry) content {
	c := content{From: e.from, To: "/" + e.path}
	switch {
	case e.isDir():
		c.Type = "dir"
	case e.link != "":
		c.Type, c.From = "symlink", e.link
	}
	c.Info.Owner, c.Info.Group, c.Info.Modified = "root", "root", b.time
	if c.Type != "symlink" {
		c.Info.Mode = uint32(e.mode.Perm())
	}
	return c
}
