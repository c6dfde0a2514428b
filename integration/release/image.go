package release

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// imageUser is the user and the group of the image's process, as in the Dockerfile.
const imageUser = 65532

// image writes the container image for all complete targets, as an archive in the OCI image layout.
// It is what the Dockerfile builds.
func (b *build) image(ctx context.Context) error {
	b.say("packing the image")
	dir := filepath.Join(b.work, "image")
	l, err := newLayout(dir)
	if err != nil {
		return err
	}
	a := artefact{file: fmt.Sprintf("hsm-signer_%s_image.tar", b.version.file()),
		name:  "hsm-signer",
		image: true}
	index := imageIndex{Schema: 2, MediaType: indexType, Annotations: b.labels()}
	for _, t := range b.targets {
		if !t.cgo {
			continue
		}
		d, others, err := b.imageFor(ctx, l, t)
		if err != nil {
			return err
		}
		index.Manifests = append(index.Manifests, d)
		a.others = append(a.others, others...)
		a.binaries = append(a.binaries, b.binaries[t])
	}
	if len(index.Manifests) == 0 {
		return nil
	}
	d, err := l.add(indexType, index)
	if err != nil {
		return err
	}
	d.Annotations = map[string]string{annotation + "ref.name": b.version.text}
	if err := l.finish(d); err != nil {
		return err
	}
	a.purl = fmt.Sprintf("pkg:oci/hsm-signer@%s?tag=%s", strings.ReplaceAll(d.Digest, ":", "%3A"),
		b.version.text)
	b.artefacts = append(b.artefacts, a)
	return b.writeImage(dir, a.file)
}

func (b *build) writeImage(dir, name string) error {
	entries, err := below(dir, "")
	if err != nil {
		return err
	}
	out, err := os.Create(b.out(name))
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	defer out.Close()
	if err := writeTar(out, entries, b.time); err != nil {
		return err
	}
	return out.Close()
}

// imageFor adds the image for a target to the layout. It also returns what is in its base.
func (b *build) imageFor(ctx context.Context, l layout, t target) (descriptor, []part, error) {
	under, err := b.openBase(ctx, t.arch)
	if err != nil {
		return descriptor{}, nil, err
	}
	m := manifest{Schema: 2, MediaType: manifestType, Layers: slices.Clone(under.manifest.Layers),
		Annotations: b.labels()}
	m.Annotations[annotation+"base.name"] = under.name
	m.Annotations[annotation+"base.digest"] = under.digest
	for _, layer := range m.Layers {
		if _, err := run(ctx, ".", nil, "cp", under.layout.blob(layer.Digest),
			l.blob(layer.Digest)); err != nil {
			return descriptor{}, nil, err
		}
	}
	own, diff, err := l.addLayer(func(w io.Writer) error {
		return writeTar(w, []entry{
			file("usr/local/bin/hsm-signer", b.binaries[t], 0o755),
			file("usr/share/doc/hsm-signer/copyright", filepath.Join(b.source, "LICENSE"), 0o644),
			file("usr/share/doc/hsm-signer/"+licensesFile, b.licenses[t], 0o644),
			{path: "var/lib/hsm-signer", mode: 0o700, owner: imageUser},
		}, b.time)
	})
	if err != nil {
		return descriptor{}, nil, err
	}
	m.Layers = append(m.Layers, own)
	if m.Config, err = l.add(configType, b.imageConfig(under.config, diff)); err != nil {
		return descriptor{}, nil, err
	}
	d, err := l.add(manifestType, m)
	if err != nil {
		return descriptor{}, nil, err
	}
	d.Platform = &platform{Architecture: t.arch, OS: t.os}
	b.inputs = append(b.inputs, subject{Name: under.name, URI: "urn:hsm-signer:base:" + t.arch,
		Digest: map[string]string{"sha256": strings.TrimPrefix(under.digest, "sha256:")}})
	others, err := under.packages()
	return d, append(others, part{name: under.name, version: under.digest,
		purl: "pkg:oci/base@" + strings.ReplaceAll(under.digest, ":", "%3A") +
			"?arch=" + t.arch}), err
}

// imageConfig returns the base's configuration with what the Dockerfile sets.
func (b *build) imageConfig(c imageConfig, diff string) imageConfig {
	c.Created = b.time
	c.Config.User = fmt.Sprintf("%d:%[1]d", imageUser)
	c.Config.Entrypoint = []string{"/usr/local/bin/hsm-signer"}
	c.Config.Cmd = []string{"run"}
	c.Config.Volumes = map[string]struct{}{"/var/lib/hsm-signer": {}}
	c.Config.Labels = b.labels()
	c.RootFS.Diffs = append(slices.Clone(c.RootFS.Diffs), diff)
	c.History = append(slices.Clone(c.History), history{Created: b.time, By: "make release"})
	return c
}

// labels are the annotations of the image (image-spec, annotations.md).
func (b *build) labels() map[string]string {
	return map[string]string{
		annotation + "title":       "hsm-signer",
		annotation + "description": "Signs Kubernetes certificate requests with a key in an HSM",
		annotation + "licenses":    license,
		annotation + "version":     b.version.text,
		annotation + "revision":    b.commit,
		annotation + "created":     b.time.Format(time.RFC3339),
	}
}
