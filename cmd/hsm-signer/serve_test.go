package main

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

func listenOn(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// An address in use is a fault of the configuration, which is reported before the token, the
// journal or the API server is touched.
func TestAddressesInUse(t *testing.T) {
	dir := goodConfiguration(t)
	t.Setenv("LISTEN_ADDRESS", listenOn(t, "127.0.0.1:0").Addr().String())
	t.Setenv("STATUS_ADDRESS", listenOn(t, "127.0.0.1:0").Addr().String())
	command := newRunCommand()
	c, faults := readConfig(command, append(append(serviceSettings[:len(serviceSettings):len(serviceSettings)], tokenSettings...), logSettings...))
	p := c.loadParts(faults)
	must(t, faults.err())
	err := run(t.Context(), c, p, hclog.NewNullLogger())
	var coded *exitError
	if !errors.As(err, &coded) || coded.code != exitConfig {
		t.Fatalf("%v", err)
	}
	for _, want := range []string{
		"LISTEN_ADDRESS: " + c.listenAddress + " is in use by another process",
		"STATUS_ADDRESS: " + c.statusAddress + " is in use by another process",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
	if _, err := os.Stat(dir + "/state"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the state directory was touched: %v", err)
	}
}

func TestTheInsecurePortOfOldAPIServersIsNamed(t *testing.T) {
	if text := errInUse("127.0.0.1:8080").Error(); !strings.Contains(text, "--insecure-port=0") {
		t.Error(text)
	}
	if text := errInUse("127.0.0.1:8081").Error(); strings.Contains(text, "insecure") {
		t.Error(text)
	}
}

// When one address cannot be opened, the other is closed again.
func TestListenersAreClosedTogether(t *testing.T) {
	free := listenOn(t, "127.0.0.1:0")
	address := free.Addr().String()
	must(t, free.Close())
	c := &config{listenAddress: address, statusAddress: listenOn(t, "127.0.0.1:0").Addr().String()}
	if _, err := c.listen(t.Context()); err == nil {
		t.Error("an address in use was opened")
	}
	listenOn(t, address)
}

func TestHostsOfTheAddresses(t *testing.T) {
	for _, c := range []struct {
		address, host string
		want          bool
	}{
		{"127.0.0.1:8081", "localhost:8081", true},
		{"127.0.0.1:8081", "127.0.0.1:9999", true},
		{"127.0.0.1:8081", "[::1]:8081", true},
		{"127.0.0.1:8081", "evil.example:8081", false},
		{"127.0.0.1:8081", "192.0.2.7:8081", false},
		{"127.0.0.1:8081", "", false},
		{"127.0.0.1:8081", "allowed.example", true},
		{"hsm-1.example.com:8081", "hsm-1.example.com:8081", true},
		{"hsm-1.example.com:8081", "hsm-2.example.com:8081", false},
		{"192.0.2.7:8081", "192.0.2.7", true},
		{"0.0.0.0:8081", "192.0.2.7:8081", true},
		{":8081", "[2001:db8::1]:8081", true},
		{"0.0.0.0:8081", "evil.example", false},
		{":8081", "", false},
	} {
		config := &config{statusAddress: c.address, listenAddress: c.address}
		must(t, readAllowedHosts(config, "Allowed.example, other.example"))
		if got := config.statusHosts().Allow(c.host); got != c.want {
			t.Errorf("status page on %s, asked as %q: %t", c.address, c.host, got)
		}
		_, err := netip.ParseAddrPort(c.host)
		if got := config.healthHosts().Allow(c.host); got != (c.want || err == nil) {
			t.Errorf("probes on %s, asked as %q: %t", c.address, c.host, got)
		}
	}
	for _, bad := range []string{"a b", "signer.example.com:8080", "https://x", "a,,b"} {
		if err := readAllowedHosts(&config{}, bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
