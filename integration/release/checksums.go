package release

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
)

// checksumFile is in every release, in the format of sha256sum.
const checksumFile = "SHA256SUMS"

// checksums writes the checksum of every file of the release.
func (b *build) checksums(context.Context) error {
	files, err := os.ReadDir(b.Out)
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	var text bytes.Buffer
	for _, f := range files { // sorted by name
		if f.Name() == checksumFile {
			continue
		}
		sum, err := digest(b.out(f.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "%s  %s\n", sum, f.Name())
	}
	if err := os.WriteFile(b.out(checksumFile), text.Bytes(), 0o644); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	return nil
}

// digest returns the SHA-256 of a file in hexadecimal digits.
func digest(name string) (string, error) {
	content, err := os.Open(name)
	if err != nil {
		return "", fmt.Errorf("release: %w", err)
	}
	defer content.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, content); err != nil {
		return "", fmt.Errorf("release: read %s: %w", name, err)
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}
