package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
)

// A notifier tells the supervisor, in the protocol of sd_notify(3), that the process serves, that it is
// alive, and in one line how it stands. To serve is to have a configuration that is right and to listen: a
// token that is away is no reason to be started again, and so it is only in the line.
type notifier struct {
	address  string        // of the supervisor's socket; empty: nobody wants to be told
	patience time.Duration // within which the supervisor wants a sign of life; zero: it wants none
	logger   hclog.Logger
}

// tellTimeout bounds how long a supervisor that does not listen is waited for.
const tellTimeout = time.Second

// newNotifier reads what the supervisor wants: sd_notify(3), sd_watchdog_enabled(3).
func newNotifier(logger hclog.Logger) *notifier {
	n := &notifier{address: os.Getenv("NOTIFY_SOCKET"), logger: logger}
	watched := os.Getenv("WATCHDOG_PID")
	if watched == "" || watched == strconv.Itoa(os.Getpid()) {
		microseconds, _ := strconv.ParseUint(os.Getenv("WATCHDOG_USEC"), 10, 53) // none is 0
		n.patience = time.Duration(microseconds) * time.Microsecond
	}
	return n
}

// tell sends the assignments in one message. A supervisor that cannot be told is no reason to stop: it
// will do what it thinks right.
func (n *notifier) tell(assignments ...string) {
	if n.address == "" {
		return
	}
	if err := n.send(strings.Join(assignments, "\n")); err != nil {
		n.logger.Warn("the supervisor could not be told how things stand", "NOTIFY_SOCKET", n.address, "error", err)
	}
}

func (n *notifier) send(message string) error {
	// An address that begins with @ is an abstract one, as net knows.
	socket, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.address, Net: "unixgram"})
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
func (n *notifier) interval() time.Duration {
	if n.patience == 0 {
		return healthInterval
	}
	return min(healthInterval, n.patience/2)
}

// report gives signs of life, each with how things stand, until the context ends. Who says how things
// stand takes the locks of every part: a process in which one is never given back gives no signs.
func (h *health) report(ctx context.Context) error {
	if h.supervisor.address == "" {
		<-ctx.Done()
		return nil
	}
	ticker := time.NewTicker(h.supervisor.interval())
	defer ticker.Stop()
	for {
		h.supervisor.tell("WATCHDOG=1", "STATUS="+h.state())
		select {
		case <-ctx.Done():
			h.supervisor.tell("STOPPING=1", "STATUS=stopping")
			return nil
		case <-ticker.C:
		}
	}
}

// state says in one line how things stand.
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
	case !h.leads():
		return "ready, and stands by"
	}
	return "ready"
}
