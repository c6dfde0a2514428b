package main

import (
	"encoding/pem"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
)

func listenOn(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
	fixture.Must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

const kubeconfigOfNobody = `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
contexts: [{name: x, context: {cluster: c}}]
current-context: x
`

// An address in use is a fault of the configuration, which is reported before the token, the
// journal or the API server is touched.
func TestAddressesInUse(t *testing.T) {
	dir := t.TempDir()
	ca := fixture.NewCA(t)
	fixture.Must(t, os.WriteFile(dir+"/pin", []byte("1234"), 0o600))
	fixture.Must(t, os.WriteFile(dir+"/kubeconfig", []byte(kubeconfigOfNobody), 0o600))
	fixture.Must(t, os.WriteFile(dir+"/ca.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate.Raw}), 0o600))
	settings := slices.Concat(config.ServiceSettings, config.TokenSettings, config.LogSettings)
	command := &cobra.Command{}
	config.AddFlags(command, settings)
	fixture.Must(t, command.ParseFlags([]string{
		"--signer-name=example.com/calico", "--pkcs11-module=/none.so", "--pkcs11-token-label=ca", "--ca-key-label=ca",
		"--pkcs11-pin-file=" + dir + "/pin", "--kubeconfig=" + dir + "/kubeconfig", "--ca-cert-file=" + dir + "/ca.crt",
		"--state-dir=" + dir + "/state", "--leader-elect=false",
		"--listen-address=" + listenOn(t, "127.0.0.1:0").Addr().String(),
		"--status-address=" + listenOn(t, "127.0.0.1:0").Addr().String(),
	}))
	c, faults := config.Read(command, settings)
	s := c.LoadService(faults, nil)
	fixture.Must(t, faults.Err())
	err := run(t.Context(), s, newMetrics(), hclog.NewNullLogger())
	if err == nil || exit.Code(err) != exit.Config {
		t.Fatalf("%v", err)
	}
	for _, want := range []string{
		"LISTEN_ADDRESS: " + c.ListenAddress + " is in use by another process",
		"STATUS_ADDRESS: " + c.StatusAddress + " is in use by another process",
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
	fixture.Must(t, free.Close())
	c := &config.Config{ListenAddress: address, StatusAddress: listenOn(t, "127.0.0.1:0").Addr().String()}
	if _, err := listen(t.Context(), c); err == nil {
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
		configured := &config.Config{StatusAddress: c.address, ListenAddress: c.address}
		fixture.Must(t, config.ReadAllowedHosts(configured, "Allowed.example, other.example"))
		if got := statusHosts(configured).Allow(c.host); got != c.want {
			t.Errorf("status page on %s, asked as %q: %t", c.address, c.host, got)
		}
		_, err := netip.ParseAddrPort(c.host)
		if got := healthHosts(configured).Allow(c.host); got != (c.want || err == nil) {
			t.Errorf("probes on %s, asked as %q: %t", c.address, c.host, got)
		}
	}
	for _, bad := range []string{"a b", "signer.example.com:8080", "https://x", "a,,b"} {
		if err := config.ReadAllowedHosts(&config.Config{}, bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
