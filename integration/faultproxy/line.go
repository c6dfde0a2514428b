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

// A Line carries the bytes of connections to the API server and back, and knows nothing of what they are.
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

// NewLine starts a Line to the API server that the config names.
func NewLine(upstream *rest.Config) (*Line, error) {
	target, err := url.Parse(upstream.Host)
	if err != nil {
		return nil, fmt.Errorf("address of the API server: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &Line{listener: listener, to: target.Host, conns: map[net.Conn]bool{}, clear: make(chan struct{}), ended: make(chan struct{})}
	close(l.clear)
	l.group.Go(l.accept)
	return l, nil
}

// Config is the same way to the API server as another, through the Line.
func (l *Line) Config(direct *rest.Config) *rest.Config {
	through := rest.CopyConfig(direct)
	through.Host = "https://" + l.listener.Addr().String() // 127.0.0.1, which the server's certificate is for too
	return through
}

// Delay lets each piece of data wait so long before it is passed on; 0 ends that.
func (l *Line) Delay(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay = d
}

// Partition lets no byte pass any more, in either direction, until Heal. Connections stay, and new ones
// are accepted: nobody is told.
func (l *Line) Partition() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.clear:
		l.clear = make(chan struct{})
	default: // it is partitioned already
	}
}

// Heal ends a partition: what waits is passed on.
func (l *Line) Heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.clear:
	default:
		close(l.clear)
	}
}

// Reset ends all connections by a TCP reset, and returns how many there were, two for each caller.
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

// Close ends the Line and waits for that.
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
			return // it was closed
		}
		l.group.Go(func() { l.carry(near) })
	}
}

// carry connects a caller with the API server, when there is no partition, until one of them ends.
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

// pass waits until bytes may pass; false: the Line has ended.
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

// copy carries one direction, and ends the other with it.
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
			l.pass() // also the end of a connection is not told through a partition
			return
		}
	}
}
