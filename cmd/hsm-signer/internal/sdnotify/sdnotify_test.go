package sdnotify

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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/internal/must"
)

// supervise listens as a supervisor does, at an address of the file system or an abstract one.
func supervise(t *testing.T, address string) (next func() string) {
	t.Helper()
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	must.OK(t, err)
	t.Cleanup(func() { socket.Close() })
	t.Setenv("NOTIFY_SOCKET", address)
	return func() string {
		t.Helper()
		buffer := make([]byte, 1<<12)
		must.OK(t, socket.SetReadDeadline(time.Now().Add(30*time.Second)))
		n, err := socket.Read(buffer)
		must.OK(t, err)
		return string(buffer[:n])
	}
}

// A state is that of a process, in one line.
type state struct{ line atomic.Pointer[string] }

func (s *state) set(line string) { s.line.Store(&line) }

func (s *state) State() string { return *s.line.Load() }

func TestSupervisorIsTold(t *testing.T) {
	for name, address := range map[string]string{
		"file":     filepath.Join(t.TempDir(), "notify"),
		"abstract": fmt.Sprintf("@hsm-signer-test-%d", os.Getpid()),
	} {
		t.Run(name, func(t *testing.T) {
			next := supervise(t, address)
			t.Setenv("WATCHDOG_USEC", "2000")
			t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
			var process state
			process.set("starting")
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() { ended <- New(&process, hclog.NewNullLogger()).Run(ctx) }()

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
			until("WATCHDOG=1\nSTATUS=starting")
			process.set("not ready: token: it is gone")
			until("WATCHDOG=1\nSTATUS=not ready: token: it is gone")
			process.set("ready")
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
		if got := New(nil, hclog.NewNullLogger()).patience; got != want {
			t.Errorf("WATCHDOG_PID=%s: signs of life within %s; want %s", pid, got, want)
		}
	}
}

// A supervisor that is gone stops nothing.
func TestSupervisorThatIsGone(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	var log bytes.Buffer
	New(nil, hclog.New(&hclog.LoggerOptions{Output: &log})).tell("READY=1")
	if n := strings.Count(log.String(), "[WARN]"); n != 1 {
		t.Errorf("%d warnings that the supervisor cannot be told:\n%s", n, &log)
	}
}

// A supervisor that does not read delays no sign of life for long, and gets READY=1 once it reads.
func TestSupervisorThatDoesNotRead(t *testing.T) {
	address := filepath.Join(t.TempDir(), "notify")
	next := supervise(t, address)
	fill(t, address)
	log := make(lines, 10)
	var process state
	process.set("ready")
	t.Setenv("WATCHDOG_USEC", "2000")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- New(&process, hclog.New(&hclog.LoggerOptions{Output: log})).Run(ctx) }()
	for range 3 { // READY=1, a sign of life, READY=1 again
		if line := <-log; !strings.Contains(line, "i/o timeout") {
			t.Errorf("logged is %q", line)
		}
	}
	for message := next(); message != "READY=1"; message = next() {
		if message != filling && !strings.HasPrefix(message, "WATCHDOG=1\n") {
			t.Fatalf("the supervisor was told %q", message)
		}
	}
	if message := next(); !strings.HasPrefix(message, "WATCHDOG=1\n") {
		t.Errorf("the supervisor was told %q after that", message)
	}
	cancel()
	for message := next(); message != "STOPPING=1\nSTATUS=stopping"; message = next() {
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// filling is the message that fills a socket.
const filling = "STATUS=another process"

// fill sends messages to a socket until it has no room.
func fill(t *testing.T, address string) {
	t.Helper()
	socket, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM, 0)
	must.OK(t, err)
	defer syscall.Close(socket)
	for err = syscall.SetNonblock(socket, true); err == nil; {
		err = syscall.Sendto(socket, []byte(filling), 0, &syscall.SockaddrUnix{Name: address})
	}
	if !errors.Is(err, syscall.EAGAIN) {
		t.Fatal(err)
	}
}

// lines receives each line of a log, and drops those that nobody reads.
type lines chan string

func (l lines) Write(line []byte) (int, error) {
	select {
	case l <- string(line):
	default:
	}
	return len(line), nil
}
