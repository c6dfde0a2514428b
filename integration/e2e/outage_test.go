package e2e

import (
	"context"
	"regexp"
	"strconv"
	"testing"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// metric returns the value of a series, and -1 if it is missing.
func metric(t *testing.T, metrics, series string) float64 {
	t.Helper()
	line := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(series) + ` (\S+)$`).
		FindStringSubmatch(metrics)
	if line == nil {
		return -1
	}
	return must.Get(strconv.ParseFloat(line[1], 64))(t)
}

// openRequests returns how many requests are open, and how many of them have met a fault.
func openRequests(t *testing.T, metrics string) (all, failing float64) {
	t.Helper()
	for _, state := range []string{"pending", "approved", "held", "failing"} {
		all += max(0, metric(t, metrics, `hsm_signer_open_requests{state="`+state+`"}`))
	}
	return all, metric(t, metrics, `hsm_signer_open_requests{state="failing"}`)
}

// submitOpen has pods ask while nothing can be answered.
func submitOpen(t *testing.T, n int) (names []string, pods []testenv.Pod) {
	t.Helper()
	for range n {
		p := newPod(t, node)
		csr := submit(t, p, p.InitContainer(node))
		names, pods = append(names, csr.Name), append(pods, p)
	}
	return names, pods
}

// During an outage of the HSM with 50 open requests, metrics and /readyz say how many wait, why and
// since when. After it they go to zero.
func TestOutageWithOpenRequests(t *testing.T) {
	const requests = 50
	const since = `hsm_signer_unhealthy_since_timestamp_seconds{part="token"}`
	must.OK(t, shared.Cluster.DeleteRequests(t.Context()))
	d := startReady(t, ca)
	requireNoFaults(t, d)
	if all, _ := openRequests(t, d.Metrics(t.Context())); all != 0 {
		t.Errorf("%v requests are open", all)
	}
	back := removeToken(t)
	must.OK(t, d.WaitNotReady(t.Context(), "[-] token"))
	names, pods := submitOpen(t, requests)
	must.Eventually(t, "the outage to be in the metrics", func(ctx context.Context) (bool, error) {
		metrics := d.Metrics(ctx)
		all, failing := openRequests(t, metrics)
		return all == requests && failing > 0 &&
			metric(t, metrics, "hsm_signer_unanswered_seconds") > 1 &&
			metric(t, metrics, "hsm_signer_oldest_request_seconds") > 1 &&
			metric(t, metrics, since) > 1e9, nil
	})
	must.OK(t, d.WaitNotReady(t.Context(), " failing"))
	_, body, err := d.Readyz(t.Context())
	must.OK(t, err)
	for _, want := range []string{`(?m)^\[-\] token: .* \(since \d{4}-\d\d-\d\dT[0-9:]+Z\)$`,
		`(?m)^open requests: .*\d+ failing; the oldest was created \S+ ago; no answer for \S+$`} {
		if !regexp.MustCompile(want).MatchString(body) {
			t.Errorf("/readyz does not say %s:\n%s", want, body)
		}
	}
	requireEvent(t, names[0], "SignerFault")

	back()
	for i, name := range names {
		must.Get(calico.Wait(t.Context(), pods[i].Client, name))(t)
	}
	must.Eventually(t, "nothing to be open", func(ctx context.Context) (bool, error) {
		metrics := d.Metrics(ctx)
		all, _ := openRequests(t, metrics)
		return all == 0 && metric(t, metrics, since) == 0 &&
			metric(t, metrics, "hsm_signer_unanswered_seconds") == 0 &&
			metric(t, metrics, "hsm_signer_oldest_request_seconds") == 0 &&
			metric(t, metrics, "hsm_signer_last_answer_timestamp_seconds") > 1e9, nil
	})
}
