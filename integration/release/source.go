package release

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// epochVariable overrides the time of the commit (reproducible-builds.org/specs/source-date-epoch).
const epochVariable = "SOURCE_DATE_EPOCH"

// identify finds the commit, its time and its version.
func (b *build) identify(ctx context.Context) error {
	out, err := b.git(ctx, "log", "-1", "--format=%H %ct")
	if err != nil {
		return err
	}
	commit, seconds, _ := strings.Cut(out, " ")
	if epoch := os.Getenv(epochVariable); epoch != "" {
		seconds = epoch
	}
	unix, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return fmt.Errorf("release: %s is %q: it must be a number of seconds",
			epochVariable, seconds)
	}
	b.commit, b.time = commit, time.Unix(unix, 0).UTC()
	text := b.Version
	if text == "" {
		if text, err = b.git(ctx, "describe", "--tags", "--always", "--abbrev=12"); err != nil {
			return err
		}
	}
	if b.version, err = parseVersion(text, b.time); err != nil {
		return err
	}
	return b.checkClean(ctx)
}

// checkClean refuses to release what is not committed. A snapshot only warns.
func (b *build) checkClean(ctx context.Context) error {
	changed, err := b.git(ctx, "status", "--porcelain")
	switch {
	case err != nil:
		return err
	case changed == "":
		return nil
	case b.version.released():
		return fmt.Errorf("release: %s would lack what is not committed: commit or remove it first:"+
			"\n%s", b.version, changed)
	}
	b.say("not committed, and so not in this snapshot:\n%s", changed)
	return nil
}

// export writes the files of the commit to b.source.
func (b *build) export(ctx context.Context) error {
	archive := filepath.Join(b.work, "source.tar")
	if _, err := b.git(ctx, "archive", "--format=tar", "--output="+archive, "HEAD"); err != nil {
		return err
	}
	if err := os.Mkdir(b.source, 0o755); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	_, err := run(ctx, b.work, nil, "tar", "-xf", archive, "-C", b.source)
	return err
}

func (b *build) git(ctx context.Context, args ...string) (string, error) {
	return run(ctx, b.Repository, nil, "git", args...)
}

// run runs a program in a directory, with env in addition to this process's environment. It returns
// what the program wrote to its standard output, without the last newline.
func run(ctx context.Context, dir string, env []string, name string, args ...string) (string,
	error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, append(os.Environ(), env...), &out, &errs
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("release: %s is missing: install it (make release does so as root)",
			name)
	}
	if err != nil {
		return "", fmt.Errorf("release: %s %s: %w:\n%s%s", name, strings.Join(args, " "), err,
			out.String(), errs.String())
	}
	return strings.TrimSuffix(out.String(), "\n"), nil
}
