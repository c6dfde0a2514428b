package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/hsm"
)

// The process ends when every CA is lost. Until then the log names those that are.
func TestProcessEndsWhenEveryCAIsLost(t *testing.T) {
	var log bytes.Buffer
	logger := hclog.New(&hclog.LoggerOptions{Output: &log})
	var l losses
	first, second := l.of("first", logger.With("ca", "first")),
		l.of("second", logger.With("ca", "second"))
	for n, c := range []struct {
		of   *loss
		err  error
		ends bool
		says string
	}{
		{first, nil, false, ""},
		{first, hsm.ErrPIN, false, "this CA has failed and signs nothing"},
		{first, hsm.ErrPIN, false, ""},
		{first, nil, false, "this CA works again"},
		{second, hsm.ErrHung, false, "this CA has failed and signs nothing"},
		{first, hsm.ErrKey, true, ""},
		{second, nil, false, "this CA works again"},
	} {
		log.Reset()
		if err := c.of.Note(c.err); (err != nil) != c.ends ||
			(log.Len() > 0) != (c.says != "") || !strings.Contains(log.String(), c.says) {
			t.Errorf("step %d: %v; the log says %q", n, err, log.String())
		}
	}
}

// A refused PIN must not be tried by another process, and a module that hangs needs one.
func TestExitCodeWhenEveryCAIsLost(t *testing.T) {
	pin, hung, key := fmt.Errorf("a: %w", hsm.ErrPIN), fmt.Errorf("b: %w", hsm.ErrHung),
		fmt.Errorf("c: %w", hsm.ErrKey)
	for _, c := range []struct {
		lost []error
		code int
	}{
		{[]error{hung}, exit.Fault},
		{[]error{pin}, exit.PIN},
		{[]error{hung, pin}, exit.PIN},
		{[]error{key, hung}, exit.Fault},
		{[]error{key, key}, exit.Config},
		{[]error{key, pin}, exit.PIN},
	} {
		var l losses
		var all []*loss
		for i := range c.lost {
			all = append(all, l.of(fmt.Sprint("ca", i), hclog.NewNullLogger()))
		}
		var err error
		for i, lost := range all {
			err = lost.Note(c.lost[i])
		}
		if exit.Code(err) != c.code {
			t.Errorf("%v: exit code %d", c.lost, exit.Code(err))
		}
		if len(c.lost) == 1 && !errors.Is(err, c.lost[0]) {
			t.Errorf("one CA: %v", err)
		}
	}
}
