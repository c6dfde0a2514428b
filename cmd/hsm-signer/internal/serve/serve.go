// Package serve opens the addresses of the configuration and serves them, each for the host names
// that it may be reached by.
package serve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/listener"
	"hsm-signer/cmd/hsm-signer/internal/setting"
)

// An Endpoint is an open address, and what is served on it.
type Endpoint struct {
	Variable string // names the address
	Listener net.Listener
	Hosts    listener.Hosts
	Handler  http.Handler
	Said     string // in the log, when it serves
}

// Serve serves until the context ends.
func (e Endpoint) Serve(ctx context.Context, logger hclog.Logger) error {
	logger.Info(e.Said, "address", e.Listener.Addr().String())
	server := listener.NewServer(e.Hosts.Guard(e.Handler))
	stopped := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stopped()
	limited := listener.Limit(e.Listener, listener.DefaultLimits)
	if err := server.Serve(limited); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("%s: %w", e.Variable, err)
	}
	return nil
}

// Listeners are the open addresses, by the variables that name them.
type Listeners map[string]net.Listener

// Listen opens every address. Addresses that cannot be opened are errors in the configuration, and
// all are reported.
func Listen(ctx context.Context, c *config.Config) (Listeners, error) {
	all, faults := Listeners{}, &setting.Faults{}
	for variable, address := range map[string]string{
		"LISTEN_ADDRESS": c.ListenAddress, "STATUS_ADDRESS": c.StatusAddress,
	} {
		if variable == "STATUS_ADDRESS" && address == config.NoStatus {
			continue
		}
		opened, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if errors.Is(err, syscall.EADDRINUSE) {
			err = errInUse(address)
		}
		if err != nil {
			faults.Add(variable, err)
			continue
		}
		all[variable] = opened
	}
	slices.Sort(*faults)
	if err := faults.Err(); err != nil {
		all.Close()
		return nil, err
	}
	return all, nil
}

// Close closes all. One that was served is closed already.
func (l Listeners) Close() {
	for _, opened := range l {
		_ = opened.Close()
	}
}

// errInUse returns the error for an address that another process listens on.
func errInUse(address string) error {
	_, port, _ := net.SplitHostPort(address)
	hint := ""
	if port == "8080" {
		hint = "; API servers before 1.20 use port 8080 unless --insecure-port=0 is set"
	}
	return fmt.Errorf("%s is in use by another process (ss -ltnp 'sport = :%s' shows which)%s: "+
		"stop that, or choose another address", address, port, hint)
}

// serviceName is the name of the Service in deploy/base.
const serviceName = "hsm-signer"

// HealthHosts are the names by which probes and scrapers reach LISTEN_ADDRESS: any IP address,
// which includes the pod's, the Service's names, this machine's, and those of ALLOWED_HOSTS.
func HealthHosts(c *config.Config) listener.Hosts {
	hosts := listener.Hosts{}
	if namespace, err := os.ReadFile(config.NamespaceFile); err == nil && c.InPod {
		hosts = listener.ServiceHosts(serviceName, strings.TrimSpace(string(namespace)),
			c.ClusterDomain)
	}
	if name, err := os.Hostname(); err == nil {
		hosts.Names = append(hosts.Names, name)
	}
	hosts.Names = append(append(hosts.Names, hostOf(c.ListenAddress)), c.AllowedHosts...)
	hosts.Addresses = listener.AnyAddress
	return hosts
}

// StatusHosts are the names by which browsers reach STATUS_ADDRESS: loopback addresses, the address
// that it is listened on (any, where that is every address), and the names of ALLOWED_HOSTS.
func StatusHosts(c *config.Config) listener.Hosts {
	own := hostOf(c.StatusAddress)
	listens, err := netip.ParseAddr(own)
	every := own == "" || err == nil && listens.IsUnspecified()
	return listener.Hosts{
		Names: append([]string{own}, c.AllowedHosts...),
		Addresses: func(ip netip.Addr) bool {
			return ip.IsLoopback() || every || err == nil &&
				ip == listens
		},
	}
}

func hostOf(address string) string {
	host, _, _ := net.SplitHostPort(address) // it was checked when it was read
	return host
}
