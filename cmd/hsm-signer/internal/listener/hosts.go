package listener

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Hosts are the values of a request's Host header that are answered. A hostile website can make its
// own name lead here, so that a browser sends its requests to this server (DNS rebinding). It
// cannot make the browser send another name, or an address.
type Hosts struct {
	Names    []string // localhost is always one
	Suffixes []string // names that end in one of these, such as ".monitoring.svc"

	// Addresses reports whether an IP address is answered.
	Addresses func(netip.Addr) bool
}

// AnyAddress answers every IP address: nobody else can make an address lead here.
func AnyAddress(netip.Addr) bool { return true }

// ServiceHosts returns the names of a Service in a namespace, and of those behind it.
func ServiceHosts(service, namespace, clusterDomain string) Hosts {
	return Hosts{
		Names: []string{service, service + "." + namespace},
		// Nobody outside the cluster has names of this form.
		Suffixes: []string{"." + namespace + ".svc", "." + namespace + ".svc." + clusterDomain},
	}
}

// Allow reports whether a Host header is one of these.
func (h Hosts) Allow(header string) bool {
	host := header
	if name, _, err := net.SplitHostPort(header); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if ip, err := netip.ParseAddr(host); err == nil && h.Addresses(ip) {
		return true
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	same := func(name string) bool { return strings.ToLower(name) == host }
	ends := func(suffix string) bool { return strings.HasSuffix(host, strings.ToLower(suffix)) }
	return host == "localhost" ||
		host != "" && (slices.ContainsFunc(h.Names, same) || slices.ContainsFunc(h.Suffixes, ends))
}

// Guard answers only requests whose Host header is allowed.
func (h Hosts) Guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !h.Allow(r.Host) {
			w.Header().Set("X-Frame-Options", "DENY")
			http.Error(w, fmt.Sprintf("The Host header %.100q is not one of this server's "+
				"names: use its IP address or localhost, or add the name to ALLOWED_HOSTS.",
				r.Host), http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}
