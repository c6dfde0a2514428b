// Package release builds what users install: archives, Debian and RPM packages, a container image,
// a software bill of materials for each, checksums, provenance and signatures.
//
// Duty: turn one commit into the files of a release.
//
// Contract: the bytes depend only on the commit, the version of Go, the C compilers and the base
// image, except those of provenance and signatures. Sources come from the commit, never from the
// working tree; every time in a file is the commit's; lists are sorted; identifiers are derived
// from names and contents.
package release

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Options choose what Build does.
type Options struct {
	Repository string    // a directory of the repository, with Git's data
	Out        string    // where the files go; what an earlier release left there is removed
	Version    string    // such as v1.2.3; empty: what "git describe" says of the commit
	Targets    []string  // such as linux_amd64; none: all
	Go         string    // the go command
	Key        Key       // signs the release
	BaseImage  string    // of the container image, with a digest for a release
	Progress   io.Writer // receives a line for each step
}

// A build is one release while it is made.
type build struct {
	Options
	version version
	commit  string
	time    time.Time // of the commit, or SOURCE_DATE_EPOCH
	started time.Time
	work    string // a directory for what is in no release
	source  string // the commit's files

	targets   []target          // which binaries are built
	binaries  map[target]string // the path of each
	licenses  map[target]string // the path of a file with those of all that is in the binary
	artefacts []artefact
	tools     map[string]string // the version of each tool
	inputs    []subject         // what the release is made from, in addition to the commit
}

// An artefact is a file that users install, with what is in it.
type artefact struct {
	file     string   // its name in Out
	name     string   // of the software, as its package manager knows it
	purl     string   // its package URL
	binaries []string // paths of the Go binaries in it
	others   []part   // what else is in it
	image    bool     // a container image
}

// Build builds the commit that is checked out in o.Repository. It returns an error if a release
// version is asked for and files are changed but not committed, or if a tool is missing.
func Build(ctx context.Context, o Options) error {
	list, err := chosen(o.Targets)
	if err != nil {
		return err
	}
	if o.Out, err = filepath.Abs(o.Out); err != nil { // tools run in other directories
		return fmt.Errorf("release: the directory for the files: %w", err)
	}
	work, err := os.MkdirTemp("", "hsm-signer-release-")
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	defer os.RemoveAll(work)
	b := &build{Options: o, work: work, source: filepath.Join(work, "source"),
		started: time.Now(), targets: list, binaries: map[target]string{},
		licenses: map[target]string{}, tools: map[string]string{}}
	for _, step := range []func(context.Context) error{
		b.identify, b.export, b.emptyOut, b.compile, b.collectLicenses, b.archives, b.packages,
		b.image, b.materials, b.checksums, b.attest,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	b.say("release %s of commit %.12s is in %s", b.version, b.commit, b.Out)
	return nil
}

func (b *build) say(format string, args ...any) {
	fmt.Fprintf(b.Progress, "release: "+format+"\n", args...)
}

// out returns the path of a file of the release.
func (b *build) out(name string) string { return filepath.Join(b.Out, name) }

// emptyOut makes the directory for the release, without an earlier one's files. It refuses a
// directory that no release is in.
func (b *build) emptyOut(context.Context) error {
	if entries, err := os.ReadDir(b.Out); err == nil && len(entries) > 0 {
		if _, err := os.Stat(b.out(checksumFile)); err != nil {
			return fmt.Errorf("release: the directory %s has files, and no %s: name one that is "+
				"empty, or that has an earlier release", b.Out, checksumFile)
		}
	}
	if err := os.RemoveAll(b.Out); err != nil {
		return fmt.Errorf("release: remove the earlier release: %w", err)
	}
	if err := os.MkdirAll(b.Out, 0o755); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	// Until the release is complete, its checksums are empty.
	return os.WriteFile(b.out(checksumFile), nil, 0o644)
}
