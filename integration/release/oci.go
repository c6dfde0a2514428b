package release

import (
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// The parts of the OCI image format that a release needs
// (github.com/opencontainers/image-spec, version 1.1).
const (
	indexType    = "application/vnd.oci.image.index.v1+json"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar+gzip"
	annotation   = "org.opencontainers.image."
)

type (
	descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int64             `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
		Platform    *platform         `json:"platform,omitempty"`
	}
	platform struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
	}
	imageIndex struct {
		Schema      int               `json:"schemaVersion"`
		MediaType   string            `json:"mediaType"`
		Manifests   []descriptor      `json:"manifests"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	manifest struct {
		Schema      int               `json:"schemaVersion"`
		MediaType   string            `json:"mediaType"`
		Config      descriptor        `json:"config"`
		Layers      []descriptor      `json:"layers"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	imageConfig struct {
		Created      time.Time `json:"created"`
		Architecture string    `json:"architecture"`
		OS           string    `json:"os"`
		Config       struct {
			User       string              `json:",omitempty"`
			Env        []string            `json:",omitempty"`
			Entrypoint []string            `json:",omitempty"`
			Cmd        []string            `json:",omitempty"`
			Volumes    map[string]struct{} `json:",omitempty"`
			Labels     map[string]string   `json:",omitempty"`
		} `json:"config"`
		RootFS struct {
			Type  string   `json:"type"`
			Diffs []string `json:"diff_ids"`
		} `json:"rootfs"`
		History []history `json:"history"`
	}
	history struct {
		Created time.Time `json:"created"`
		By      string    `json:"created_by,omitempty"`
		Comment string    `json:"comment,omitempty"`
		Empty   bool      `json:"empty_layer,omitempty"`
	}
)

// A layout is a directory in the OCI image layout.
type layout string

// newLayout makes an empty layout.
func newLayout(dir string) (layout, error) {
	l := layout(dir)
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		return "", fmt.Errorf("release: %w", err)
	}
	err := os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`),
		0o644)
	if err != nil {
		return "", fmt.Errorf("release: %w", err)
	}
	return l, nil
}

// blob returns the path of a blob.
func (l layout) blob(digest string) string {
	return filepath.Join(string(l), "blobs", "sha256", filepath.Base(digest[len("sha256:"):]))
}

// add adds a value as a blob.
func (l layout) add(mediaType string, value any) (descriptor, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return descriptor{}, fmt.Errorf("release: %w", err)
	}
	sum := sha256.Sum256(text)
	d := descriptor{MediaType: mediaType, Digest: "sha256:" + hex.EncodeToString(sum[:]),
		Size: int64(len(text))}
	if err := os.WriteFile(l.blob(d.Digest), text, 0o644); err != nil {
		return descriptor{}, fmt.Errorf("release: %w", err)
	}
	return d, nil
}

// read reads a blob, or the index of the layout if name is "index.json".
func (l layout) read(name string, value any) error {
	path := filepath.Join(string(l), name)
	if name != indexName {
		path = l.blob(name)
	}
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, value)
	}
	if err != nil {
		return fmt.Errorf("release: read the image in %s: %w", l, err)
	}
	return nil
}

const indexName = "index.json"

// finish writes the index of the layout, which names one image.
func (l layout) finish(image descriptor) error {
	text, err := json.Marshal(imageIndex{Schema: 2, MediaType: indexType,
		Manifests: []descriptor{image}})
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	if err := os.WriteFile(filepath.Join(string(l), indexName), text, 0o644); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	return nil
}

// addLayer adds a layer. write writes its tar file. It returns the layer and the digest of the tar
// file.
func (l layout) addLayer(write func(io.Writer) error) (d descriptor, diff string, err error) {
	out, err := os.CreateTemp(filepath.Join(string(l), "blobs"), "layer-")
	if err != nil {
		return d, "", fmt.Errorf("release: %w", err)
	}
	plain, packed := sha256.New(), sha256.New()
	z := gzip.NewWriter(io.MultiWriter(out, packed))
	err = errors.Join(write(io.MultiWriter(z, plain)), z.Close(), out.Chmod(0o644))
	size, seek := out.Seek(0, io.SeekEnd)
	if err = errors.Join(err, seek, out.Close()); err != nil {
		return d, "", fmt.Errorf("release: write a layer: %w", err)
	}
	d = descriptor{MediaType: layerType, Size: size,
		Digest: "sha256:" + hex.EncodeToString(packed.Sum(nil))}
	if err := os.Rename(out.Name(), l.blob(d.Digest)); err != nil {
		return d, "", fmt.Errorf("release: %w", err)
	}
	return d, "sha256:" + hex.EncodeToString(plain.Sum(nil)), nil
}
