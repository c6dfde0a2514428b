package release

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"hsm-signer/integration/must"
)

const pinnedBase = "example.com/base:1@sha256:0a"

// newBase puts a base image with dpkg's list of packages into the cache, as if it had been pulled.
func newBase(t *testing.T, arch string) {
	t.Helper()
	l := must.Get(newLayout(filepath.Join(must.Get(os.UserCacheDir())(t), "hsm-signer-release",
		fmt.Sprintf("%x-%s", sha256.Sum256([]byte(pinnedBase)), arch))))(t)
	dir := t.TempDir()
	must.OK(t, os.WriteFile(filepath.Join(dir, "status"), []byte("Package: libstdc++6\n"+
		"Version: 1:12.2-14\nArchitecture: "+arch+"\nDescription: a library\n more\n\n"), 0o600))
	layer, diff, err := l.addLayer(func(w io.Writer) error {
		return writeTar(w, []entry{file("var/lib/dpkg/status",
			filepath.Join(dir, "status"), 0o644)},
			commitTime)
	})
	must.OK(t, err)
	config := imageConfig{Architecture: arch, OS: "linux"}
	config.Config.Env, config.RootFS.Diffs = []string{"PATH=/bin"}, []string{diff}
	m := manifest{Schema: 2, MediaType: manifestType, Layers: []descriptor{layer}}
	m.Config = must.Get(l.add(configType, config))(t)
	must.OK(t, l.finish(must.Get(l.add(manifestType, m))(t)))
}

// newImage writes an image into a directory, and returns it with what was unpacked from it.
func newImage(t *testing.T) (*build, layout) {
	t.Helper()
	dir := t.TempDir()
	b := &build{Options: Options{Out: dir, BaseImage: pinnedBase, Progress: t.Output()},
		version: version{text: "v1.2.3-1-g0123abc", pkg: "1.2.3+1.g0123abc"}, time: commitTime,
		work: t.TempDir(), commit: "0123abc", targets: targets, binaries: map[target]string{},
		licenses: map[target]string{}}
	source := must.Get(filepath.Abs("../.."))(t)
	b.source = source
	for _, target := range targets {
		b.binaries[target] = filepath.Join(source, "LICENSE")
		b.licenses[target] = b.binaries[target]
	}
	must.OK(t, b.image(t.Context()))
	unpacked := t.TempDir()
	command(t, "tar", "-xf", b.out(b.artefacts[0].file), "-C", unpacked)
	return b, layout(unpacked)
}

// The image of each architecture is its base with one more layer and the Dockerfile's settings. It
// is the same each time.
func TestImage(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	for _, arch := range []string{"amd64", "arm64"} {
		newBase(t, arch)
	}
	b, l := newImage(t)
	again, _ := newImage(t)
	first := must.Get(digest(b.out(b.artefacts[0].file)))(t)
	if second, err := digest(again.out(again.artefacts[0].file)); err != nil || first != second {
		t.Errorf("two images have the SHA-256 %s and %s, %v", first, second, err)
	}
	var top, index imageIndex
	must.OK(t, l.read(indexName, &top))
	must.OK(t, l.read(top.Manifests[0].Digest, &index))
	for i, arch := range []string{"amd64", "arm64"} {
		var m manifest
		var c imageConfig
		must.OK(t, l.read(index.Manifests[i].Digest, &m))
		must.OK(t, l.read(m.Config.Digest, &c))
		if p := index.Manifests[i].Platform; p.Architecture != arch || c.Architecture != arch {
			t.Errorf("image %d is for %+v and %q", i, p, c.Architecture)
		}
		if c.Config.User != "65532:65532" || !slices.Equal(c.Config.Env, []string{"PATH=/bin"}) ||
			c.Config.Labels[annotation+"revision"] != "0123abc" ||
			m.Annotations[annotation+"base.name"] != pinnedBase {
			t.Errorf("the configuration is %+v, the annotations %q", c.Config, m.Annotations)
		}
		if got := diffs(t, l, m); !reflect.DeepEqual(got, c.RootFS.Diffs) || len(got) != 2 {
			t.Errorf("the layers are %q, and the configuration has %q", got, c.RootFS.Diffs)
		}
	}
	if b.artefacts[0].others[0].purl !=
		"pkg:deb/debian/libstdc%2B%2B6@1%3A12.2-14?arch=amd64" || len(b.artefacts[0].others) != 4 {
		t.Errorf("the bases have %+v", b.artefacts[0].others)
	}
}

// diffs returns the digests of the layers' tar files, after a look at those of the layers.
func diffs(t *testing.T, l layout, m manifest) (list []string) {
	t.Helper()
	for _, layer := range m.Layers {
		packed := must.Get(os.ReadFile(l.blob(layer.Digest)))(t)
		if sum := fmt.Sprintf("sha256:%x", sha256.Sum256(packed)); sum != layer.Digest ||
			int64(len(packed)) != layer.Size {
			t.Errorf("the layer %+v has the digest %s", layer, sum)
		}
		plain := must.Get(io.ReadAll(must.Get(gzip.NewReader(bytes.NewReader(packed)))(t)))(t)
		list = append(list, fmt.Sprintf("sha256:%x", sha256.Sum256(plain)))
	}
	return list
}

// A release has no base image without a digest.
func TestReleasesNeedAPinnedBase(t *testing.T) {
	b := &build{Options: Options{BaseImage: "debian:bookworm-slim"}, source: "../..",
		version: version{text: "v1.2.3"}}
	t.Setenv("UNPINNED", "")
	if _, err := b.openBase(t.Context(), "amd64"); err == nil ||
		!strings.Contains(err.Error(), "without a digest") {
		t.Errorf("the base of a release is refused with %v", err)
	}
}
