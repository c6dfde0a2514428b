package release

import (
	"context"
	"debug/elf"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// A target is a platform that binaries are built for. Without cgo, a binary has only the commands
// that need no token.
type target struct {
	os, arch string
	cgo      bool
}

// targets are the platforms of a release. On Linux the complete binary has the commands of the
// other one too.
var targets = []target{
	{"linux", "amd64", true}, {"linux", "arm64", true},
	{"darwin", "amd64", false}, {"darwin", "arm64", false},
}

// chosen returns the targets with these names, or all if there are none.
func chosen(names []string) ([]target, error) {
	if len(names) == 0 {
		return targets, nil
	}
	var list []target
	for _, name := range names {
		i := slices.IndexFunc(targets, func(t target) bool { return t.String() == name })
		if i < 0 {
			return nil, fmt.Errorf("release: there is no target %q: choose from %v", name, targets)
		}
		list = append(list, targets[i])
	}
	return list, nil
}

// compilers are the names of the C compilers for Linux, as in Debian.
var compilers = map[string]string{"amd64": "x86_64-linux-gnu-gcc", "arm64": "aarch64-linux-gnu-gcc"}

const buildinfoPackage = "hsm-signer/cmd/hsm-signer/internal/buildinfo"

// compile builds the binary of each target.
func (b *build) compile(ctx context.Context) error {
	for _, t := range b.targets {
		b.say("building for %s", t)
		path := filepath.Join(b.work, "bin", t.String(), "hsm-signer")
		_, err := run(ctx, b.source, t.environment(), b.Go, "build", "-trimpath", "-buildvcs=false",
			"-buildmode=pie", "-ldflags",
			fmt.Sprintf("-s -w -X %s.release=%s -X %[1]s.commit=%[3]s",
				buildinfoPackage, b.version, b.commit), "-o", path, "./cmd/hsm-signer")
		if err != nil {
			return err
		}
		b.binaries[t] = path
		if err := b.recordTools(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// recordTools records the versions of the compilers.
func (b *build) recordTools(ctx context.Context, t target) error {
	out, err := run(ctx, b.source, t.environment(), b.Go, "env", "GOVERSION")
	if err != nil {
		return err
	}
	b.tools["go"] = out
	if !t.cgo {
		return nil
	}
	compiler := compilers[t.arch]
	if out, err = run(ctx, b.source, nil, compiler, "--version"); err != nil {
		return err
	}
	b.tools[compiler], _, _ = strings.Cut(out, "\n")
	return nil
}

// environment returns the settings of the Go command. It overrides what would change the bytes.
func (t target) environment() []string {
	env := []string{"GOOS=" + t.os, "GOARCH=" + t.arch, "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off",
		"GOAMD64=v1", "GOARM64=v8.0", "GOEXPERIMENT=", "CGO_CFLAGS=", "CGO_LDFLAGS="}
	if t.cgo {
		env = append(env, "CGO_ENABLED=1", "CC="+compilers[t.arch])
	}
	return env
}

// native reports whether this machine can run the binary.
func (t target) native() bool { return t.os == runtime.GOOS && t.arch == runtime.GOARCH }

// String returns the name of the target.
func (t target) String() string { return t.os + "_" + t.arch }

// glibc returns the lowest version of the GNU C library that has all symbols that a binary imports,
// such as 2.34.
func glibc(binary string) (string, error) {
	file, err := elf.Open(binary)
	if err != nil {
		return "", fmt.Errorf("release: read the symbols of %s: %w", binary, err)
	}
	defer file.Close()
	symbols, err := file.ImportedSymbols()
	if err != nil {
		return "", fmt.Errorf("release: read the symbols of %s: %w", binary, err)
	}
	most := [2]int{}
	for _, symbol := range symbols {
		text, ok := strings.CutPrefix(symbol.Version, "GLIBC_")
		if !ok {
			continue
		}
		major, minor, _ := strings.Cut(text, ".")
		minor, _, _ = strings.Cut(minor, ".")
		var v [2]int
		if v[0], err = strconv.Atoi(major); err == nil {
			v[1], err = strconv.Atoi(minor)
		}
		if err != nil {
			return "", fmt.Errorf("release: %s imports %s of the version %q, which is no number",
				binary, symbol.Name, symbol.Version)
		}
		if v[0] > most[0] || v[0] == most[0] && v[1] > most[1] {
			most = v
		}
	}
	if most == [2]int{} {
		return "", fmt.Errorf("release: %s imports nothing from the C library: cgo was off", binary)
	}
	return fmt.Sprintf("%d.%d", most[0], most[1]), nil
}
