package soak

import (
	"context"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"hsm-signer/integration/faultproxy"
	"hsm-signer/integration/must"
)

// The API server commits a write, and the answer does not reach hsm-signer.
func TestAnswerIsLost(t *testing.T) {
	r := begin(t, 3, "the answer dropped after a committed write, 200 times: "+
		"of each approval and of each certificate the first", "signed again 0")
	p, through := shared.proxied(t)
	loseAnswers(t, r, p, shared.signer(t, through), shared.newBatch(t), of(20, 200), 2)
}

// loseAnswers loses so many answers, of which each request has some.
func loseAnswers(t *testing.T, r *row, p *faultproxy.Proxy, s *signer, c *batch, writes, each int) {
	t.Helper()
	var lost atomic.Int64
	var met sync.Map // paths
	dropped := faultproxy.LoseAnswer(func(code int) {
		if code == http.StatusOK {
			lost.Add(1)
		}
	})
	p.Set(func(request *http.Request) faultproxy.Fault {
		writes := faultproxy.Writes(request, "approval") || faultproxy.Writes(request, "status")
		if _, again := met.LoadOrStore(request.URL.Path, true); !again && writes {
			return dropped
		}
		return nil
	})
	d := s.startReady(t)
	c.ask(t, writes/each)
	took := c.waitForAll(t)
	must.OK(t, d.Shutdown())
	a := s.account(t)
	a.requireWhole(t, c)
	if a.again > 0 || a.intents != c.size() || int(lost.Load()) != writes {
		t.Errorf("%d signatures over what was signed before, %d intents for %d requests; %d "+
			"answers lost, want %d",
			a.again, a.intents, c.size(), lost.Load(), writes)
	}
	r.measured("%d answers lost, %d requests", lost.Load(), c.size())
	r.measured("signed again %d", a.again+a.intents-c.size())
	r.measured("all issued after %s", seconds(took))
}

// A storm is a fault that lasts while requests arrive.
type storm struct {
	name string
	// inject injects the fault until the context ends.
	inject func(ctx context.Context, t *testing.T, p *faultproxy.Proxy)
}

// under injects the selected faults.
func under(selector faultproxy.Selector) func(context.Context, *testing.T, *faultproxy.Proxy) {
	return func(ctx context.Context, _ *testing.T, p *faultproxy.Proxy) {
		p.Set(selector)
		<-ctx.Done()
		p.Set(nil)
	}
}

// failing makes 30 % of all calls fail, in each way in which calls fail.
func failing() faultproxy.Selector {
	any := []faultproxy.Fault{
		faultproxy.Answer(http.StatusTooManyRequests),
		faultproxy.Answer(http.StatusInternalServerError),
		faultproxy.Answer(http.StatusServiceUnavailable), faultproxy.Reset,
		faultproxy.LoseAnswer(func(int) {}),
	}
	all, writes := faultproxy.Some(0.3, any...), faultproxy.Some(0.3,
		append(any, faultproxy.Answer(http.StatusConflict))...)
	return func(r *http.Request) faultproxy.Fault {
		switch {
		case r.Method == http.MethodPut:
			return writes(r)
		case faultproxy.IsWatch(r): // its answer has no end and so cannot be lost
			return faultproxy.Some(0.3, any[:4]...)(r)
		}
		return all(r)
	}
}

// expiring answers 410 Gone to every list and watch that has a resourceVersion: to a list in the
// HTTP status, to a watch in its first event.
func expiring(r *http.Request) faultproxy.Fault {
	switch {
	case faultproxy.IsWatch(r) && r.URL.Query().Get("resourceVersion") != "":
		return faultproxy.Expire
	case r.Method == http.MethodGet && r.URL.Query().Get("resourceVersion") != "":
		return faultproxy.Answer(http.StatusGone)
	}
	return nil
}

// cutting ends all watches each second.
func cutting(ctx context.Context, _ *testing.T, p *faultproxy.Proxy) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			p.CutWatches()
		}
	}
}

var storms = []storm{
	{"30 % of API calls fail (429, 500, 503, 409, reset, answer lost)", under(failing())},
	{"the watch cut each second", cutting},
	{"410 Gone to every continued list and watch, and the watch cut", expireWatches},
}

func expireWatches(ctx context.Context, t *testing.T, p *faultproxy.Proxy) {
	p.CutWatches()
	under(expiring)(ctx, t, p)
}

// Requests that arrive during a storm are issued soon after it.
func TestStorms(t *testing.T) {
	for i, storm := range storms {
		t.Run(storm.name, func(t *testing.T) {
			r := begin(t, 4+i, storm.name+", for a minute, while 5 requests a second come in",
				"all issued within 30 s after it is well")
			p, through := shared.proxied(t)
			s := shared.signer(t, through)
			d := s.startReady(t)
			c := shared.newBatch(t)
			stopAsking := c.keepAsking(t, 5)
			ctx, cancel := context.WithCancel(t.Context())
			var group sync.WaitGroup
			group.Go(func() { storm.inject(ctx, t, p) })
			c.waitForSize(t, of(25, 300)) // 300 at 5 a second take a minute
			cancel()
			group.Wait()
			stopAsking()
			r.settle(t, s, c)
			must.OK(t, d.Shutdown())
		})
	}
}

// settle waits until all requests are issued, now that the fault is over, and counts.
func (r *row) settle(t *testing.T, s *signer, c *batch) {
	t.Helper()
	before, err := c.lost(t.Context())
	must.OK(t, err)
	took := c.waitForAll(t)
	r.within(took, 30*time.Second)
	a := s.account(t)
	a.requireWhole(t, c)
	r.measured("%d requests, %d of them open when it was well", c.size(), len(before))
	r.measured("all issued %s after that", seconds(took))
	r.measured("lost %d, signed again %d", c.size()-len(a.certificates), a.again)
}

// The API server is gone for a minute.
func TestAPIServerIsGone(t *testing.T) {
	r := begin(t, 8, "the API server stopped for a minute, with requests in work and open",
		"all issued within 30 s after it is well")
	s := shared.signer(t)
	d := s.startReady(t)
	c := shared.newBatch(t)
	must.OK(t, syscall.Kill(d.PID(), syscall.SIGSTOP)) // so that all are open when it continues
	c.ask(t, of(20, 100))
	must.OK(t, syscall.Kill(d.PID(), syscall.SIGCONT))
	open := c.size()
	must.Eventually(t, "one to be issued", func(ctx context.Context) (bool, error) {
		lost, err := c.lost(ctx)
		open = len(lost)
		return open < c.size(), err
	})
	must.OK(t, shared.Cluster.StopAPIServer())
	r.measured("%d open just before it was stopped", open)
	must.OK(t, d.WaitNotReady(t.Context(), "[-] requests"))
	hold(t, time.Minute)
	must.OK(t, shared.Cluster.StartAPIServer(context.Background()))
	r.settle(t, s, c)
	must.OK(t, d.WaitReady(t.Context()))
	must.OK(t, d.Shutdown())
}

// The node is cut off from the API server without any error on the connection.
func TestPartition(t *testing.T) {
	r := begin(t, 9, "no byte passes between hsm-signer and the API server for a minute; "+
		"then the connections are reset; then each piece of data takes 100 ms",
		"all issued within 30 s after it is well")
	line, err := faultproxy.NewLine(shared.Cluster.Config())
	must.OK(t, err)
	t.Cleanup(func() { must.OK(t, line.Close()) })
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	must.OK(t, shared.KubeconfigVia(t.Context(), kubeconfig, func(token string) *rest.Config {
		return line.Config(shared.Cluster.ConfigFor(token))
	}))
	s := shared.signer(t, "KUBECONFIG="+kubeconfig)
	d := s.startReady(t)
	c := shared.newBatch(t)
	stopAsking := c.keepAsking(t, 5)
	c.waitForSize(t, 5)
	line.Partition()
	c.waitForSize(t, c.size()+of(15, 300)) // at 5 a second
	line.Heal()
	stopAsking()
	r.settle(t, s, c)
	line.Delay(100 * time.Millisecond)
	line.Reset()
	c.ask(t, of(5, 20))
	r.measured("then reset, and slow:")
	r.settle(t, s, c)
	must.OK(t, d.Shutdown())
}
