package release

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
)

// manuals are what every archive has from the repository, in addition to docs.
var manuals = []string{"LICENSE", "README.md", "README.zh-CN.md", "CHANGELOG.md",
	"CONTRIBUTING.md", "SECURITY.md"}

// archives writes an archive for each target. Its layout is that of the repository after "make
// build", so that the commands of the manual work in it.
func (b *build) archives(ctx context.Context) error {
	for _, t := range b.targets {
		stem := b.archiveName(t)
		b.say("packing %s", stem)
		entries, err := b.archiveEntries(ctx, t, stem)
		if err != nil {
			return err
		}
		name := stem + ".tar.gz"
		if err := writeArchive(b.out(name), entries, b.time); err != nil {
			return err
		}
		b.artefacts = append(b.artefacts, artefact{file: name, name: stem,
			purl:     fmt.Sprintf("pkg:generic/hsm-signer@%s?file_name=%s", b.version.file(), name),
			binaries: []string{b.binaries[t]}})
	}
	return nil
}

// archiveName returns the name of a target's archive, which is also its top directory.
func (b *build) archiveName(t target) string {
	product := "hsm-signer"
	if !t.cgo {
		product += "-offline" // the commands that need no token
	}
	return fmt.Sprintf("%s_%s_%s_%s", product, b.version.file(), t.os, t.arch)
}

func (b *build) archiveEntries(ctx context.Context, t target, stem string) ([]entry, error) {
	entries := []entry{file(path.Join(stem, "bin/hsm-signer"), b.binaries[t], 0o755),
		file(path.Join(stem, licensesFile), b.licenses[t], 0o644)}
	for _, name := range manuals {
		entries = append(entries, file(path.Join(stem, name), filepath.Join(b.source, name), 0o644))
	}
	dirs := map[string]string{"docs": filepath.Join(b.source, "docs")}
	if t.cgo {
		share, err := b.generated(ctx)
		if err != nil {
			return nil, err
		}
		dirs["deploy"], dirs["share"] = filepath.Join(b.source, "deploy"), share
		entries = append(entries, file(path.Join(stem, "softhsm.conf.example"),
			filepath.Join(b.source, "softhsm.conf.example"), 0o644))
	}
	for to, from := range dirs {
		found, err := below(from, path.Join(stem, to))
		if err != nil {
			return nil, err
		}
		entries = append(entries, found...)
	}
	return entries, nil
}

// Where generated puts what the binary writes about itself.
const (
	manualPages = "man/man1"
	completions = "completions"
)

// shells are the shells that have completions.
var shells = []string{"bash", "zsh", "fish"}

// generated returns a directory with the manual pages and the shell completions of all commands.
// The binary for this machine writes them.
func (b *build) generated(ctx context.Context) (string, error) {
	at := slices.IndexFunc(b.targets, target.native)
	if at < 0 {
		return "", fmt.Errorf("release: hsm-signer writes its manual pages itself, and no binary " +
			"is built for this machine: use Linux on amd64 or arm64")
	}
	binary, dir := b.binaries[b.targets[at]], filepath.Join(b.work, "share")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	for _, name := range []string{manualPages, completions} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return "", fmt.Errorf("release: %w", err)
		}
	}
	if _, err := run(ctx, b.work, nil, binary, "man", filepath.Join(dir, manualPages)); err != nil {
		return "", err
	}
	for _, shell := range shells {
		out, err := run(ctx, b.work, nil, binary, "completion", shell)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, completions, shell), []byte(out+"\n"),
			0o644); err != nil {
			return "", fmt.Errorf("release: %w", err)
		}
	}
	return dir, nil
}

// compressed returns the path of a compressed copy of a file.
func (b *build) compressed(name string) (string, error) {
	content, err := os.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("release: %w", err)
	}
	var out bytes.Buffer
	z, _ := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if _, err := z.Write(content); err != nil {
		return "", fmt.Errorf("release: %w", err)
	}
	if err := z.Close(); err != nil {
		return "", fmt.Errorf("release: %w", err)
	}
	return b.staged("gz/"+filepath.Base(name)+".gz", out.Bytes())
}

// staged writes a file for a package, and returns its path.
func (b *build) staged(name string, content []byte) (string, error) {
	to := filepath.Join(b.work, "staged", name)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return "", fmt.Errorf("release: %w", err)
	}
	if err := os.WriteFile(to, content, 0o644); err != nil {
		return "", fmt.Errorf("release: %w", err)
	}
	return to, nil
}
