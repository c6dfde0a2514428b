package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"hsm-signer/integration/must"
)

// maxResident is the most memory that hsm-signer may take meanwhile, in MiB.
const maxResident = 128

// Thousands of callers ask for what is large and read next to nothing of it, from the address that
// the kubelet's probes come from too.
func TestSlowReaders(t *testing.T) {
	readers := of(300, 3000)
	r := begin(t, 22,
		"3,000 callers ask for /metrics, /readyz and the status page over and over, and read a "+
			"byte a second, for a minute",
		"peak memory < 128 MiB; /livez within 1 s")
	s := shared.signer(t, "STATUS_ADDRESS=127.0.0.1:0")
	d := s.startReady(t)
	before := peakMemory(t, d)
	page, err := d.StatusPage(t.Context())
	must.OK(t, err)
	health := d.Address()
	ctx, end := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for i := range readers {
		target := []struct{ address, path string }{
			{health, "/metrics"}, {health,
				"/readyz"}, {strings.Trim(strings.TrimPrefix(page, "http://"), "/"), "/"},
		}[i%3]
		group.Go(func() {
			for ctx.Err() == nil {
				readSlowly(ctx, target.address, target.path)
			}
		})
	}
	took, failed := probeLivez(t, health, of(5*time.Second, time.Minute))
	end()
	group.Wait()
	peak := peakMemory(t, d)
	good := shared.newBatch(t)
	good.ask(t, 10)
	good.waitForAll(t)
	must.OK(t, d.Shutdown())
	s.account(t).requireWhole(t, good)
	if failed > 0 {
		t.Errorf("%d of %d probes of /livez failed", failed, len(took)+failed)
	}
	if full && peak >= maxResident {
		t.Errorf("the peak of the memory is %d MiB", peak)
	}
	r.within(longest(took), time.Second)
	r.measured("%d callers; peak of the memory (VmHWM) %d MiB, %d MiB before", readers, peak,
		before)
	r.measured("%d probes of /livez, each on a new connection: %d failed, slowest %d ms",
		len(took)+failed, failed, longest(took).Milliseconds())
}

// readSlowly sends one request and reads a byte of the response each second, until the server
// closes the connection.
func readSlowly(ctx context.Context, address, path string) {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return
	}
	stopped := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stopped()
	defer c.Close()
	_ = c.(*net.TCPConn).SetReadBuffer(4 << 10) // so that the server's side fills up
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path)
	_ = wait.PollUntilContextCancel(ctx, time.Second, true, func(context.Context) (bool, error) {
		_, err := io.ReadFull(c, make([]byte, 1))
		return err != nil, nil
	})
}

// probeLivez asks for /livez as a kubelet does, each time on a new connection, and returns how long
// the answers took and how many did not come.
func probeLivez(t *testing.T, address string, lasting time.Duration) (took []time.Duration,
	failed int) {
	t.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	ctx, cancel := context.WithTimeout(t.Context(), lasting)
	defer cancel()
	_ = wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true,
		func(context.Context) (bool, error) {
			began := time.Now()
			response, err := client.Get("http://" + address + "/livez")
			if err == nil {
				_ = response.Body.Close()
				if response.StatusCode != http.StatusOK {
					err = errors.New(response.Status)
				}
			}
			if err != nil {
				t.Logf("after %s: %v", time.Since(began), err)
				failed++
				return false, nil
			}
			took = append(took, time.Since(began))
			return false, nil
		})
	return took, failed
}
