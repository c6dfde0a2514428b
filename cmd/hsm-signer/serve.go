package main

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
)

// An endpoint is an address that hsm-signer listens on, and what it serves there.
type endpoint struct {
	variable string // that names the address
	listener net.Listener
	hosts    listener.Hosts
	handler  http.Handler
	said     string // what the log says when it serves
	ready    func() // is called then
}

// serve serves until the context ends.
func (e endpoint) serve(ctx context.Context, logger hclog.Logger) error {
	logger.Info(e.said, "address", e.listener.Addr().String())
	e.ready()
	server := listener.NewServer(e.hosts.Guard(e.handler))
	stopped := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stopped()
	limited := listener.Limit(e.listener, listener.DefaultLimits)
	if err := server.Serve(limited); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("%s: %w", e.variable, err)
	}
	return nil
}

// listeners are the open addresses, by the variables that name them.
type listeners map[string]net.Listener

// listen opens every address, before anything else starts. An address that cannot be opened is a
// fault of the configuration; all are reported.
func listen(ctx context.Context, c *config.Config) (listeners, error) {
	all, faults := listeners{}, &config.Faults{}
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
		all.close()
		return nil, err
	}
	return all, nil
}

// close closes all. One that is served is closed already.
func (l listeners) close() {
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

// healthHosts are the names by which probes and scrapers reach LISTEN_ADDRESS: any IP address, which
// includes the pod's, the Service's names, this machine's, and those of ALLOWED_HOSTS.
func healthHosts(c *config.Config) listener.Hosts {
	hosts := listener.Hosts{}
	if namespace, err := os.ReadFile(config.NamespaceFile); err == nil && c.InPod {
		hosts = listener.ServiceHosts(serviceName, strings.TrimSpace(string(namespace)), c.ClusterDomain)
	}
	if name, err := os.Hostname(); err == nil {
		hosts.Names = append(hosts.Names, name)
	}
	hosts.Names = append(append(hosts.Names, hostOf(c.ListenAddress)), c.AllowedHosts...)
	hosts.Addresses = listener.AnyAddress
	return hosts
}

// statusHosts are the names by which browsers reach STATUS_ADDRESS: loopback addresses, the address
// that it is listened on (any, where that is every address), and the names of ALLOWED_HOSTS.
func statusHosts(c *config.Config) listener.Hosts {
	own := hostOf(c.StatusAddress)
	listens, err := netip.ParseAddr(own)
	every := own == "" || err == nil && listens.IsUnspecified()
	return listener.Hosts{
		Names:     append([]string{own}, c.AllowedHosts...),
		Addresses: func(ip netip.Addr) bool { return ip.IsLoopback() || every || err == nil && ip == listens },
	}
}

func hostOf(address string) string {
	host, _, _ := net.SplitHostPort(address) // it was checked when it was read
	return host
}
