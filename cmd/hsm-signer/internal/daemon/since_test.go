package daemon

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/kube"
)

// /readyz and the metrics say since when a part is at fault, whatever the fault is meanwhile.
func TestSinceWhenAPartIsAtFault(t *testing.T) {
	h := newTestHealth(t)
	c := h.controller.(*testController)
	registry := prometheus.NewRegistry()
	registry.MustRegister(readiness{h})
	require := func(step, readyzHas, metricHas string) {
		t.Helper()
		if _, body := readyz(h); !strings.Contains(body, readyzHas) {
			t.Errorf("%s: %q is missing: %s", step, readyzHas, body)
		}
		metrics := fixture.Scrape(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
		if !strings.Contains(metrics, metricHas+"\n") {
			t.Errorf("%s: %q is missing: %s", step, metricHas, metrics)
		}
	}
	const metric = "hsm_signer_unhealthy_since_timestamp_seconds"
	h.signing.token.note(nil)
	require("well", "[+] token ok", metric+`{part="token"} 0`)
	require("nothing open", "open requests: not counted", metric+`{part="lease"} 0`)
	h.signing.token.note(errors.New("it is gone"))
	since := time.Unix(1e9, 0)
	h.parts()
	h.faults.since["token"] = since
	h.signing.token.note(errors.New("the token was removed"))
	require("another fault", "[-] token: the token was removed (since "+
		since.UTC().Format(time.RFC3339)+")", metric+`{part="token"} 1e+09`)
	h.signing.token.note(nil)
	require("well again", "[+] token ok", metric+`{part="token"} 0`)
	c.stands = true
	h.remarks()
	h.faults.since["lease"] = since
	require("no leader", "leads false", metric+`{part="lease"} 1e+09`)
	c.leader = "b"
	require("another leads", "leads false", metric+`{part="lease"} 0`)
}

func TestTheFirstFaultCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f faultTimes
		faulty := []part{{name: "a", err: errors.New("x")}}
		first := f.note(faulty)[0].since
		<-time.After(time.Minute)
		if again := f.note(faulty)[0].since; first.IsZero() || !again.Equal(first) {
			t.Errorf("%s, then %s", first, again)
		}
		f.note([]part{{name: "a"}})
		if fresh := f.note(faulty)[0].since; !fresh.After(first) {
			t.Errorf("%s after recovery", fresh)
		}
	})
}

func TestOpenRequestsInWords(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		open kube.Open
		want string
	}{
		{kube.Open{}, "not counted here"},
		{kube.Open{Known: true}, "none"},
		{kube.Open{Known: true, Oldest: now.Add(-70 * time.Second), Unanswered: 65 * time.Second,
			States: map[kube.OpenState]int{kube.OpenFailing: 48, kube.OpenPending: 2}},
			"2 pending, 48 failing; the oldest was created 1m10s ago; no answer for 1m5s"},
		{kube.Open{Known: true, Oldest: now,
			States: map[kube.OpenState]int{kube.OpenOverBudget: 1}},
			"1 over budget; the oldest was created 0s ago"},
	} {
		if got := openInWords(c.open, now); !strings.HasPrefix(got, c.want) {
			t.Errorf("%q; want %q", got, c.want)
		}
	}
	for _, state := range kube.OpenStates {
		if stateNames[state] == "" {
			t.Error(fmt.Sprint("no name of ", state))
		}
	}
}
