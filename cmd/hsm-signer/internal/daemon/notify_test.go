package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// supervise listens as a supervisor does, at an address of the file system or an abstract one.
func supervise(t *testing.T, address string) (next func() string) {
	t.Helper()
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	t.Setenv("NOTIFY_SOCKET", address)
	return func() string {
		t.Helper()
		buffer := make([]byte, 1<<12)
		if err := socket.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := socket.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		return string(buffer[:n])
	}
}

func TestSupervisorIsTold(t *testing.T) {
	for name, address := range map[string]string{
		"file":     filepath.Join(t.TempDir(), "notify"),
		"abstract": fmt.Sprintf("@hsm-signer-test-%d", os.Getpid()),
	} {
		t.Run(name, func(t *testing.T) {
			next := supervise(t, address)
			t.Setenv("WATCHDOG_USEC", "2000")
			t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
			h := newTestHealth(t)
			token := h.signing.token
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() { ended <- newSupervisor(h, hclog.NewNullLogger()).run(ctx) }()

			if message := next(); message != "READY=1" {
				t.Errorf("the supervisor was told %q first", message)
			}
			until := func(want string) {
				t.Helper()
				for message := next(); message != want; message = next() {
					if !strings.HasPrefix(message, "WATCHDOG=1\nSTATUS=") {
						t.Fatalf("the supervisor was told %q", message)
					}
				}
			}
			until("WATCHDOG=1\nSTATUS=not ready: token: not looked at yet")
			token.note(errors.New("two\nlines"))
			until("WATCHDOG=1\nSTATUS=not ready: token: two lines")
			token.note(nil)
			until("WATCHDOG=1\nSTATUS=ready")
			cancel()
			until("STOPPING=1\nSTATUS=stopping")
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWatchdogOfAnotherProcessIsNotFed(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "2000")
	for pid, want := range map[string]time.Duration{"1": 0, "": 2 * time.Millisecond,
		strconv.Itoa(os.Getpid()): 2 * time.Millisecond} {
		t.Setenv("WATCHDOG_PID", pid)
		if got := newSupervisor(nil, hclog.NewNullLogger()).patience; got != want {
			t.Errorf("WATCHDOG_PID=%s: signs of life within %s; want %s", pid, got, want)
		}
	}
}

// A supervisor that is gone stops nothing.
func TestSupervisorThatIsGone(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	var log bytes.Buffer
	newSupervisor(nil, hclog.New(&hclog.LoggerOptions{Output: &log})).tell("READY=1")
	if n := strings.Count(log.String(), "[WARN]"); n != 1 {
		t.Errorf("%d warnings that the supervisor cannot be told:\n%s", n, &log)
	}
}
