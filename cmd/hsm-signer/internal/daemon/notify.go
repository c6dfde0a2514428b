package daemon

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/poll"
)

// A supervisor is told, by sd_notify(3), that the process serves, that it is alive, and in one line
// how it is. To serve is to listen with a valid configuration: a missing token is no reason to be
// restarted, so it is only in the line.
type supervisor struct {
	address  string // of its socket; empty: there is no supervisor
	health   interface{ state() string }
	patience time.Duration // the supervisor wants a sign of life within it; zero: it wants none
	logger   hclog.Logger
}

// newSupervisor reads what the supervisor wants: sd_notify(3) and sd_watchdog_enabled(3).
func newSupervisor(h interface{ state() string }, logger hclog.Logger) *supervisor {
	s := &supervisor{address: os.Getenv("NOTIFY_SOCKET"), health: h, logger: logger}
	interval, pid := os.Getenv("WATCHDOG_USEC"), os.Getenv("WATCHDOG_PID")
	if interval == "" || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return s
	}
	microseconds, err := strconv.ParseUint(interval, 10, 48) // more would overflow a Duration
	if err != nil || microseconds == 0 {
		logger.Warn("the supervisor gets no signs of life: WATCHDOG_USEC is no number of "+
			"microseconds", "WATCHDOG_USEC", interval)
	}
	s.patience = time.Duration(microseconds) * time.Microsecond
	return s
}

// tell sends the assignments in one message, and reports whether the supervisor has it. A
// supervisor that cannot be told is no reason to stop.
func (s *supervisor) tell(assignments ...string) bool {
	err := s.send(strings.Join(assignments, "\n"))
	if err != nil {
		s.logger.Warn("the supervisor could not be notified", "NOTIFY_SOCKET", s.address,
			"error", err)
	}
	return err == nil
}

// tellTimeout limits how long a message waits for room in the socket. The socket is full if the
// supervisor does not read it, or if many processes write to it.
const tellTimeout = time.Second

func (s *supervisor) send(message string) error {
	// An address that begins with @ is an abstract one, for package net too.
	socket, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.address, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer socket.Close()
	if err := socket.SetWriteDeadline(time.Now().Add(tellTimeout)); err != nil {
		return err
	}
	_, err = socket.Write([]byte(message))
	return err
}

// interval is the time between two signs of life.
func (s *supervisor) interval() time.Duration {
	if s.patience == 0 {
		return healthInterval
	}
	return min(healthInterval, s.patience/2)
}

// run gives signs of life, each with the state, until the context ends. Before the first it tells
// the supervisor that the process serves. The state takes the locks of every part, so a process
// with a lock that is never released gives no signs.
func (s *supervisor) run(ctx context.Context) error {
	if s.address == "" {
		<-ctx.Done()
		return nil
	}
	defer s.tell("STOPPING=1", "STATUS=stopping")
	ready := false // and the supervisor knows
	return poll.Every(ctx, s.interval(), func(context.Context) {
		ready = ready || s.tell("READY=1")
		s.tell("WATCHDOG=1", "STATUS="+s.health.state())
	})
}

// state returns the state in one line.
func (h *health) state() string {
	var wrong []string
	for _, p := range h.parts() {
		if p.err != nil {
			text := strings.Join(strings.Fields(p.err.Error()), " ") // one line
			wrong = append(wrong, fmt.Sprintf("%s: %s", p.name, text))
		}
	}
	switch {
	case len(wrong) > 0:
		return "not ready: " + strings.Join(wrong, "; ")
	case !h.controller.Leads():
		return "ready, and stands by"
	}
	return "ready"
}
