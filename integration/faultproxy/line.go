package faultproxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"time"

	"k8s.io/client-go/rest"
)

// A Line carries the bytes of connections to the API server without interpreting them.
type Line struct {
	listener net.Listener
	to       string // HOST:PORT
	group    sync.WaitGroup
	ended    chan struct{}

	mu    sync.Mutex
	conns map[net.Conn]bool
	clear chan struct{} // closed while bytes may pass
	delay time.Duration
}

// NewLine starts a Line to the API server of the config.
func NewLine(upstream *rest.Config) (*Line, error) {
	target, err := url.Parse(upstream.Host)
	if err != nil {
		return nil, fmt.Errorf("address of the API server: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &Line{
		listener: listener, to: target.Host, conns: map[net.Conn]bool{},
		clear: make(chan struct{}), ended: make(chan struct{}),
	}
	close(l.clear)
	l.group.Go(l.accept)
	return l, nil
}

// Config returns the client configuration with the Line as its server.
func (l *Line) Config(direct *rest.Config) *rest.Config {
	through := rest.CopyConfig(direct)
	// the server's certificate is valid for 127.0.0.1
	through.Host = "https://" + l.listener.Addr().String()
	return through
}

// Delay delays each piece of data by d before it is passed on; 0 ends that.
func (l *Line) Delay(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay = d
}

// Partition stops all bytes, in both directions, until Heal. Connections stay open and new ones are
// accepted, so neither side sees an error.
func (l *Line) Partition() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.clear:
		l.clear = make(chan struct{})
	default: // already partitioned
	}
}

// Heal ends a partition and passes the waiting bytes on.
func (l *Line) Heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.clear:
	default:
		close(l.clear)
	}
}

// Reset closes all connections with a TCP reset, and returns their number: two for each client.
func (l *Line) Reset() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.conns)
	for conn := range l.conns {
		if tcp, is := conn.(*net.TCPConn); is {
			_ = tcp.SetLinger(0) // so that closing it is a reset
		}
		_ = conn.Close()
	}
	return n
}

// Close stops the Line and waits until it has stopped.
func (l *Line) Close() error {
	close(l.ended)
	err := l.listener.Close()
	l.Reset()
	l.group.Wait()
	return err
}

func (l *Line) accept() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return // the listener is closed
		}
		l.group.Go(func() { l.carry(near) })
	}
}

// carry connects a client with the API server, once there is no partition, until one of them
// closes.
func (l *Line) carry(near net.Conn) {
	if !l.keep(near) {
		return
	}
	defer l.drop(near)
	if !l.pass() {
		return
	}
	far, err := net.Dial("tcp", l.to)
	if err != nil || !l.keep(far) {
		return
	}
	defer l.drop(far)
	var group sync.WaitGroup
	group.Go(func() { l.copy(far, near) })
	l.copy(near, far)
	group.Wait()
}

func (l *Line) keep(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.ended:
		_ = conn.Close()
		return false
	default:
		l.conns[conn] = true
		return true
	}
}

func (l *Line) drop(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, conn)
	_ = conn.Close()
}

// pass waits until bytes may pass. It returns false if the Line has ended.
func (l *Line) pass() bool {
	l.mu.Lock()
	clear, delay := l.clear, l.delay
	l.mu.Unlock()
	select {
	case <-clear:
	case <-l.ended:
		return false
	}
	if delay == 0 {
		return true
	}
	select {
	case <-time.After(delay):
		return true
	case <-l.ended:
		return false
	}
}

// copy carries one direction. When it ends it closes the other direction too.
func (l *Line) copy(to, from net.Conn) {
	defer func() { _ = errors.Join(to.Close(), from.Close()) }()
	data := make([]byte, 32<<10)
	for {
		n, err := from.Read(data)
		if n > 0 && l.pass() {
			if _, err := to.Write(data[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				return
			}
			l.pass() // a partition hides the end of a connection too
			return
		}
	}
}
