// Package listener is the way in: the addresses that hsm-signer listens on, and what one caller may
// take of them.
//
// Contract: however many connections there are, and however slowly they read, memory stays bounded
// and a new caller is served. No connection is refused or made to wait: when there are too many,
// old ones are closed, of the source that has most. So one source cannot keep out another, and one
// that holds all of its own still gets an answer on a new one, as a kubelet does whose node also
// has a hostile pod with the host's network.
//
// That is why this is not netutil.LimitListener of golang.org/x/net, which stops accepting: whoever
// holds all connections would keep out the kubelet's probes.
package listener

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// Limits bound how many connections are open at once. A source is an IPv4 address, or an IPv6
// network of 64 bits.
type Limits struct {
	Connections int           // of all sources
	PerSource   int           // of one source, older than Grace
	Grace       time.Duration // a probe is answered in less
}

// DefaultLimits suit probes, scrapers and a few people with browsers, and allow a few thousand new
// connections a second.
var DefaultLimits = Limits{Connections: 1024, PerSource: 32, Grace: time.Second}

// sendBuffer is the kernel's memory for what one connection has not read yet.
const sendBuffer = 64 << 10

// Limit returns a listener that keeps the limits by closing connections.
func Limit(inner net.Listener, limits Limits) net.Listener {
	return &limited{Listener: inner, limits: limits, open: map[netip.Prefix][]*connection{}}
}

type limited struct {
	net.Listener
	limits Limits

	mu    sync.Mutex
	total int
	open  map[netip.Prefix][]*connection // the oldest first; no empty list
}

// A connection is an open one.
type connection struct {
	net.Conn
	listener *limited
	source   netip.Prefix
	since    time.Time
	close    sync.Once
}

// Accept returns the next connection, and closes others if there are too many.
func (l *limited) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp, is := inner.(*net.TCPConn); is {
		_ = tcp.SetWriteBuffer(sendBuffer) // without it the kernel chooses: more memory
	}
	c := &connection{Conn: inner, listener: l, source: sourceOf(inner.RemoteAddr()),
		since: time.Now()}
	for _, old := range l.add(c) {
		old.abort()
	}
	return c, nil
}

// add adds a connection and returns those to close.
func (l *limited) add(c *connection) (old []*connection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := append(l.open[c.source], c)
	l.open[c.source] = all
	l.total++
	for i := range len(all) - l.limits.PerSource {
		if c.since.Sub(all[i].since) >= l.limits.Grace {
			old = append(old, all[i])
		}
	}
	if len(old) == 0 && l.total > l.limits.Connections {
		old = l.heaviest()[:1:1]
	}
	return old
}

// heaviest returns the connections of the source that has most; of several, of the one that has had
// a connection for longest. The caller must hold mu.
func (l *limited) heaviest() (most []*connection) {
	for _, all := range l.open {
		if len(all) > len(most) || len(all) == len(most) && all[0].since.Before(most[0].since) {
			most = all
		}
	}
	return most
}

// remove forgets a connection.
func (l *limited) remove(c *connection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.open[c.source]
	for i, other := range all {
		if other == c {
			l.total--
			l.open[c.source] = append(all[:i:i], all[i+1:]...)
			break
		}
	}
	if len(l.open[c.source]) == 0 {
		delete(l.open, c.source)
	}
}

// Close closes the connection.
func (c *connection) Close() error {
	c.close.Do(func() { c.listener.remove(c) })
	return c.Conn.Close()
}

// abort closes the connection at once, with what was not sent yet.
func (c *connection) abort() {
	if tcp, is := c.Conn.(*net.TCPConn); is {
		_ = tcp.SetLinger(0) // it is closed anyway
	}
	_ = c.Close() // the error is of a connection that nobody uses any more
}

// sourceOf returns what counts as one caller.
func sourceOf(address net.Addr) netip.Prefix {
	tcp, is := address.(*net.TCPAddr)
	if !is {
		return netip.Prefix{}
	}
	return prefixOf(tcp.AddrPort().Addr())
}

// prefixOf returns the network that counts as one source.
func prefixOf(ip netip.Addr) netip.Prefix {
	ip = ip.Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64 // whoever has one address of such a network usually has all
	}
	prefix, _ := ip.Prefix(bits) // the zero value for no address
	return prefix
}
