package release

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A base is the image below that of a release, for one architecture.
type base struct {
	layout   layout
	name     string // with the digest, if it is pinned
	digest   string // of its manifest
	manifest manifest
	config   imageConfig
}

// standIn names the replacement of a base image that no registry is reachable for: the packages
// that hsm-signer and most PKCS#11 modules need, unpacked. It is for trials.
const (
	standIn         = "stand-in"
	standInPackages = "base-files,ca-certificates,coreutils,dash,libstdc++6"
	debianSuite     = "bookworm"
)

// openBase returns the base image for an architecture. It comes from a registry, or is the
// stand-in, which no release may have unless UNPINNED is "allow". A copy of an image that has a
// digest, and of the stand-in, stays in the user's cache.
func (b *build) openBase(ctx context.Context, arch string) (base, error) {
	if _, err := run(ctx, b.source, nil, "sh", "integration/images/pinned.sh", b.version.text,
		b.BaseImage); err != nil {
		return base{}, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return base{}, fmt.Errorf("release: %w", err)
	}
	cache = filepath.Join(cache, "hsm-signer-release")
	pinned := strings.Contains(b.BaseImage, "@sha256:")
	name := fmt.Sprintf("%x-%s", sha256.Sum256([]byte(b.BaseImage)), arch)
	kept := layout(filepath.Join(cache, name))
	if pinned && kept.exists() {
		return kept.openBase(b.BaseImage)
	}
	pulled := layout(filepath.Join(b.work, "base-"+arch))
	_, err = run(ctx, b.work, nil, "skopeo", "copy", "--quiet", "--override-os", "linux",
		"--override-arch", arch, "docker://"+b.BaseImage, "oci:"+string(pulled)+":base")
	switch {
	case err == nil && pinned:
		return kept.keep(ctx, pulled, b.BaseImage)
	case err == nil:
		return pulled.openBase(b.BaseImage)
	case pinned:
		return base{}, err
	}
	b.say("%s for %s cannot be pulled: its stand-in is for trials only", b.BaseImage, arch)
	kept = layout(filepath.Join(cache, standIn+"-"+arch))
	if kept.exists() {
		b.say("the stand-in is the one in %s; remove that for a new one", kept)
		return kept.openBase(standIn)
	}
	if err := b.makeStandIn(ctx, pulled, arch); err != nil {
		return base{}, err
	}
	return kept.keep(ctx, pulled, standIn)
}

func (l layout) exists() bool {
	_, err := os.Stat(filepath.Join(string(l), indexName))
	return err == nil
}

// keep copies an image into the cache and returns it.
func (l layout) keep(ctx context.Context, from layout, name string) (base, error) {
	if err := os.MkdirAll(filepath.Dir(string(l)), 0o755); err != nil {
		return base{}, fmt.Errorf("release: %w", err)
	}
	temporary := fmt.Sprintf("%s.%d", l, os.Getpid())
	if _, err := run(ctx, ".", nil, "cp", "-R", string(from), temporary); err != nil {
		return base{}, err
	}
	if err := os.Rename(temporary, string(l)); err != nil && !l.exists() {
		return base{}, fmt.Errorf("release: %w", err)
	}
	return l.openBase(name)
}

// openBase reads the one image of the layout.
func (l layout) openBase(name string) (base, error) {
	var index imageIndex
	b := base{layout: l, name: name}
	if err := l.read(indexName, &index); err != nil {
		return b, err
	}
	if len(index.Manifests) != 1 {
		return b, fmt.Errorf("release: %s has %d images, not one", l, len(index.Manifests))
	}
	b.digest = index.Manifests[0].Digest
	if err := l.read(b.digest, &b.manifest); err != nil {
		return b, err
	}
	return b, l.read(b.manifest.Config.Digest, &b.config)
}

// makeStandIn makes an image of Debian's packages. Its bytes depend only on these.
func (b *build) makeStandIn(ctx context.Context, to layout, arch string) error {
	file := filepath.Join(b.work, standIn+"-"+arch+".tar")
	if _, err := run(ctx, b.work, []string{epochVariable + "=0"}, "mmdebstrap", "--quiet",
		"--variant=extract", "--architectures="+arch, "--skip=output/dev",
		"--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "--include="+standInPackages,
		debianSuite, file); err != nil {
		return err
	}
	if err := os.RemoveAll(string(to)); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	to, err := newLayout(string(to))
	if err != nil {
		return err
	}
	layer, diff, err := to.addLayer(func(w io.Writer) error {
		in, err := os.Open(file)
		if err != nil {
			return err
		}
		_, err = io.Copy(w, in)
		return errors.Join(err, in.Close())
	})
	if err != nil {
		return err
	}
	config := imageConfig{Created: time.Unix(0, 0).UTC(), Architecture: arch, OS: "linux"}
	config.RootFS.Type, config.RootFS.Diffs = "layers", []string{diff}
	config.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	m := manifest{Schema: 2, MediaType: manifestType, Layers: []descriptor{layer}}
	if m.Config, err = to.add(configType, config); err != nil {
		return err
	}
	image, err := to.add(manifestType, m)
	if err != nil {
		return err
	}
	return to.finish(image)
}

// packages returns Debian's packages in the base image, if it lists them.
func (b base) packages() ([]part, error) {
	var parts []part
	for _, layer := range b.manifest.Layers {
		found, err := packagesOf(b.layout.blob(layer.Digest))
		if err != nil {
			return nil, fmt.Errorf("release: list the packages of %s: %w", b.name, err)
		}
		if found != nil {
			parts = found // a later layer replaces the list
		}
	}
	return parts, nil
}

func packagesOf(layer string) ([]part, error) {
	in, err := os.Open(layer)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, err
	}
	for files := tar.NewReader(z); ; {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if strings.TrimPrefix(header.Name, "./") == "var/lib/dpkg/status" {
			return packagesIn(files)
		}
	}
}

// packagesIn reads dpkg's list of packages.
func packagesIn(status io.Reader) ([]part, error) {
	var parts []part
	fields := map[string]string{}
	flush := func() {
		if name := fields["Package"]; name != "" {
			parts = append(parts, part{name: name, version: fields["Version"],
				purl: fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s",
					strings.ReplaceAll(name, "+", "%2B"),
					strings.NewReplacer("+", "%2B", ":", "%3A").Replace(fields["Version"]),
					fields["Architecture"])})
		}
		clear(fields)
	}
	lines := bufio.NewScanner(status)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if lines.Text() == "" {
			flush()
		} else if name, value, ok := strings.Cut(lines.Text(), ": "); ok {
			fields[name] = value
		}
	}
	flush()
	return parts, lines.Err()
}
