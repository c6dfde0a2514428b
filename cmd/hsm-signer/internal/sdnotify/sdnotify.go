// Package sdnotify tells the supervisor of the process, by sd_notify(3), that it serves, that it is
// alive, and in one line how it is.
//
// Contract: without NOTIFY_SOCKET there is no supervisor, and nothing is sent. A supervisor that
// cannot be told, or does not read, is no reason to stop, and delays a sign of life for a second at
// most.
package sdnotify

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/poll"
)

// A Stater knows how the process is.
type Stater interface {
	// State describes it in one line.
	State() string
}

// A Supervisor is told about the process. To serve is to listen with a valid configuration: a
// missing token is no reason to be restarted, so it is only in the line.
type Supervisor struct {
	address  string // of its socket; empty: there is no supervisor
	process  Stater
	patience time.Duration // the supervisor wants a sign of life within it; zero: it wants none
	logger   hclog.Logger
}

// New reads what the supervisor wants: sd_notify(3) and sd_watchdog_enabled(3). [Supervisor.Run]
// tells it.
func New(process Stater, logger hclog.Logger) *Supervisor {
	s := &Supervisor{address: os.Getenv("NOTIFY_SOCKET"), process: process, logger: logger}
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
func (s *Supervisor) tell(assignments ...string) bool {
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

func (s *Supervisor) send(message string) error {
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

// longestInterval is the time between two signs of life unless the supervisor wants them sooner.
const longestInterval = 2 * time.Second

// interval is the time between two signs of life.
func (s *Supervisor) interval() time.Duration {
	if s.patience == 0 {
		return longestInterval
	}
	return min(longestInterval, s.patience/2)
}

// Run gives signs of life, each with the state, until the context ends. Before the first it tells
// the supervisor that the process serves. The state takes the locks of every part, so a process
// with a lock that is never released gives no signs.
func (s *Supervisor) Run(ctx context.Context) error {
	if s.address == "" {
		<-ctx.Done()
		return nil
	}
	defer s.tell("STOPPING=1", "STATUS=stopping")
	ready := false // and the supervisor knows
	return poll.Every(ctx, s.interval(), func(context.Context) {
		ready = ready || s.tell("READY=1")
		s.tell("WATCHDOG=1", "STATUS="+s.process.State())
	})
}
