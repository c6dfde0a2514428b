package serve

import (
	"net/netip"
	"strings"
	"testing"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/internal/must"
)

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
	free := fixture.Listen(t, "127.0.0.1:0")
	address := free.Addr().String()
	must.OK(t, free.Close())
	c := &config.Config{ListenAddress: address,
		StatusAddress: fixture.Listen(t, "127.0.0.1:0").Addr().String()}
	if _, err := Listen(t.Context(), c); err == nil {
		t.Error("an address in use was opened")
	}
	fixture.Listen(t, address)
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
		configured := &config.Config{StatusAddress: c.address, ListenAddress: c.address}
		must.OK(t, config.ReadAllowedHosts(configured, "Allowed.example, other.example"))
		if got := StatusHosts(configured).Allow(c.host); got != c.want {
			t.Errorf("status page on %s, asked as %q: %t", c.address, c.host, got)
		}
		_, err := netip.ParseAddrPort(c.host)
		if got := HealthHosts(configured).Allow(c.host); got != (c.want || err == nil) {
			t.Errorf("probes on %s, asked as %q: %t", c.address, c.host, got)
		}
	}
	for _, bad := range []string{"a b", "signer.example.com:8080", "https://x", "a,,b"} {
		if err := config.ReadAllowedHosts(&config.Config{}, bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
