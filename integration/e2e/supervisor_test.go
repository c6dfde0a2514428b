package e2e

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsm-signer/integration/must"
)

// hsm-signer notifies the supervisor when it serves, how the token is, that it is alive, and when
// it stops.
func TestSupervisorIsToldHowThingsStand(t *testing.T) {
	address := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	must.OK(t, err)
	defer socket.Close()
	hear := func(want string) {
		t.Helper()
		must.OK(t, socket.SetReadDeadline(time.Now().Add(time.Minute)))
		buffer := make([]byte, 1<<12)
		for {
			n, err := socket.Read(buffer)
			if err != nil {
				t.Fatalf("the supervisor does not hear %q: %v", want, err)
			}
			if strings.Contains(string(buffer[:n]), want) {
				return
			}
		}
	}
	d := start(t, ca, "NOTIFY_SOCKET="+address, "WATCHDOG_USEC=1000000")
	hear("READY=1")
	hear("WATCHDOG=1\nSTATUS=ready")
	back := removeToken(t)
	hear("WATCHDOG=1\nSTATUS=not ready: token: ")
	back()
	hear("WATCHDOG=1\nSTATUS=ready")
	must.OK(t, d.Shutdown())
	hear("STOPPING=1")
}

// The main job works with Go's FIPS 140-3 module.
func TestCertificateInFIPSMode(t *testing.T) {
	env := "GODEBUG=fips140=on"
	command(t, ca, []string{env}, "version").prints(t, 0, ", mode on")
	startReady(t, ca, env)
	requireOpenSSL(t, ca, requireIssues(t))
}
