package daemon

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/poll"
)

// A supervisor is told, by sd_notify(3), that the process serves, that it is alive, and in one line
// how it is. To serve is to listen with a valid configuration: a missing token is no reason to be
// restarted, so it is only in the line.
type supervisor struct {
	health   *health
	patience time.Duration // the supervisor wants a sign of life within it; zero: it wants none
	logger   hclog.Logger
}

// newSupervisor reads what the supervisor wants: sd_watchdog_enabled(3).
func newSupervisor(h *health, logger hclog.Logger) *supervisor {
	patience, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		logger.Warn("the supervisor gets no signs of life", "error", err)
	}
	return &supervisor{health: h, patience: patience, logger: logger}
}

// tell sends the assignments in one message. A supervisor that cannot be told is no reason to stop.
func (s *supervisor) tell(assignments ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(assignments, "\n")); err != nil {
		s.logger.Warn("the supervisor could not be notified", "NOTIFY_SOCKET",
			os.Getenv("NOTIFY_SOCKET"), "error", err)
	}
}

// interval is the time between two signs of life.
func (s *supervisor) interval() time.Duration {
	if s.patience == 0 {
		return healthInterval
	}
	return min(healthInterval, s.patience/2)
}

// run tells the supervisor that the process serves, and then gives signs of life, each with the
// state, until the context ends. The state takes the locks of every part, so a process with a lock
// that is never released gives no signs.
func (s *supervisor) run(ctx context.Context) error {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		<-ctx.Done()
		return nil
	}
	s.tell("READY=1")
	defer s.tell("STOPPING=1", "STATUS=stopping")
	return poll.Every(ctx, s.interval(), func(context.Context) {
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
