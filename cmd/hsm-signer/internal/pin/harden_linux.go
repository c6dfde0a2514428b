package pin

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Harden keeps memory, and so the PIN, out of core dumps and out of the reach of other processes of
// the same user (prctl(2), PR_SET_DUMPABLE).
func Harden() error {
	return errors.Join(
		unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}),
		unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0),
	)
}
