package bench

import (
	"testing"
	"time"

	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
	"hsm-signer/integration/testenv"
)

// Names of contenders.
const (
	signer   = "hsm-signer"
	withRead = "the limit"
	noRead   = "the limit without the pod read"
)

// BenchmarkStorm compares hsm-signer with the limit in a storm of requests, each from a pod of its
// own: two writes and one consistent read per request, with a key in memory and no checks.
func BenchmarkStorm(b *testing.B) {
	c := newCourse(b, 5000)
	limit := c.limit(b)
	short := *limit
	short.readPod = false
	s := newSeries(usualPerEvent)
	var last map[string]outcome
	inTurns(b, func(with contender) outcome { return c.storm(b, with) },
		func(of map[string]outcome) {
			s.storm(b, of[signer], of[withRead], of[noRead])
			last = of
		}, bare(withRead, limit), c.product(signer), bare(noRead, &short))
	drawStorm(b, last[signer].timing, last[withRead].timing)
	b.ReportMetric(0, "ns/op")
}

// storm adds the keys of one round of a storm.
func (s *series) storm(b *testing.B, product, limit, short outcome) {
	b.Helper()
	s.compare(b, "storm", product, limit)
	s.add(b, "storm_vs_bare", product.perSecond()/short.perSecond())
	s.add(b, "storm_5000_max_vs_wall", product.quantile(1)/limit.quantile(1))
	s.add(b, "cpu_ms_per_certificate", product.cpuMilliseconds())
	s.add(b, "idle_rss_mib", product.before.rss)
	s.add(b, "after_rss_mib", product.after.rss)
	s.add(b, "idle_anonymous_mib", product.before.anonymous)
	s.add(b, "after_anonymous_mib", product.after.anonymous)
	s.add(b, "storm_peak_rss_mib", product.after.peak)
}

// compare adds what each kind of storm compares and measures, with this prefix of the keys.
func (s *series) compare(b *testing.B, prefix string, product, limit outcome) {
	b.Helper()
	s.add(b, prefix+"_vs_wall", product.perSecond()/limit.perSecond())
	s.add(b, prefix+"_per_second", product.perSecond())
	s.add(b, prefix+"_per_second_wall", limit.perSecond())
	s.add(b, prefix+"_p50_s", product.quantile(0.5))
	s.add(b, prefix+"_p99_s", product.quantile(0.99))
}

// BenchmarkApproved compares hsm-signer with the bare loop on requests that someone else has
// approved: one write per request, and one consistent read.
func BenchmarkApproved(b *testing.B) {
	c := newCourse(b, 4000)
	short := newSoftLoop(b, c.client, testenv.SignerName)
	limit := *short
	limit.readPod = true
	s := newSeries(usualPerEvent)
	inTurns(b, func(with contender) outcome { return c.backlog(b, with, true) },
		func(of map[string]outcome) {
			product := of[signer]
			s.add(b, "approved_vs_read", product.perSecond()/of[withRead].perSecond())
			s.add(b, "approved_vs_bare", product.perSecond()/of[noRead].perSecond())
			s.add(b, "approved_per_second", product.perSecond())
			s.add(b, "approved_cpu_ms", product.cpuMilliseconds())
		}, bare(withRead, &limit), c.product(signer, "APPROVE=false"), bare(noRead, short))
	b.ReportMetric(0, "ns/op")
}

// BenchmarkKubernetes compares hsm-signer with the controller of kube-controller-manager, without
// its limit on calls, on approved requests for client authentication: that controller takes no
// others, and reads no pods.
func BenchmarkKubernetes(b *testing.B) {
	c := newCourse(b, 4000)
	c.usages = clientUsages
	s := newSeries(usualPerEvent)
	inTurns(b, func(with contender) outcome { return c.backlog(b, with, true) },
		func(of map[string]outcome) {
			s.add(b, "approved_vs_kubernetes", of[signer].perSecond()/of[kubernetesOwn].perSecond())
		}, c.kubernetes(b, c.client), c.product(signer, "APPROVE=false"))
	b.ReportMetric(0, "ns/op")
}

// BenchmarkKeys measures the storm with other keys of the CA.
func BenchmarkKeys(b *testing.B) {
	c := newCourse(b, 1000)
	limit := c.limit(b)
	all := []contender{bare(withRead, limit)}
	keys := map[string]string{
		"rsa-2048": "storm_rsa2048_vs_wall", "rsa-4096": "storm_rsa4096_vs_wall",
		"ecdsa-p384": "storm_p384_vs_wall",
	}
	for keyType := range keys {
		ca, _, err := c.CreateCA(b.Context(), keyType)
		must.OK(b, err)
		all = append(all, c.product(keyType, "CA_KEY_LABEL="+ca.KeyLabel,
			"CA_CERT_FILE="+ca.CertFile))
	}
	s := newSeries(usualPerEvent)
	inTurns(b, func(with contender) outcome { return c.storm(b, with) },
		func(of map[string]outcome) {
			for keyType, key := range keys {
				s.add(b, key, of[keyType].perSecond()/of[withRead].perSecond())
			}
		}, all...)
	b.ReportMetric(0, "ns/op")
}

// BenchmarkDelays measures the storm with a delay of each PKCS#11 call, as a network before an HSM
// has: with the default number of sessions, and with at most 16 and 64.
func BenchmarkDelays(b *testing.B) {
	c := newCourse(b, 1000)
	none := c.delayed(b, "no delay", 0)
	all := []contender{none}
	keys := map[string]string{}
	for _, delay := range []time.Duration{2, 5, 20} {
		for sessions, suffix := range map[string]string{
			"": "", "16": "_sessions_16", "64": "_sessions_64",
		} {
			key := "hsm_" + (delay * time.Millisecond).String() + suffix
			var env []string
			if sessions != "" {
				env = []string{"PKCS11_MAX_SESSIONS=" + sessions}
			}
			all = append(all, c.delayed(b, key, delay*time.Millisecond, env...))
			keys[key] = key
		}
	}
	s := newSeries(usualPerEvent)
	inTurns(b, func(with contender) outcome { return c.storm(b, with) },
		func(of map[string]outcome) {
			for key := range keys {
				s.add(b, key, of[key].perSecond()/of[none.name].perSecond())
			}
		}, all...)
	b.ReportMetric(0, "ns/op")
}

// delayed is hsm-signer with a module before SoftHSM that delays each call.
func (f *fixture) delayed(b *testing.B, name string, delay time.Duration,
	env ...string) contender {
	b.Helper()
	shim := must.Get(pkcs11shim.New(b.Context(), b.TempDir(), f.Token.Module))(b)
	if delay > 0 {
		must.OK(b, shim.Rules(pkcs11shim.Delay(pkcs11shim.Any, delay)))
	}
	return f.product(name, append(env, shim.Env()...)...)
}

// BenchmarkGrowth measures what ten times as many open requests cost, and what hsm-signer costs
// when all of them have their certificates.
func BenchmarkGrowth(b *testing.B) {
	const few, many = 1000, 10_000
	small := newCourseOf(b, csrs, few)
	large := *small
	large.count = many
	s := newSeries(usualPerEvent)
	for range min(repeats(b), 3) {
		idle := small.idle(b, 0, 0)
		little := small.backlog(b, small.product(signer), false)
		much := large.backlog(b, small.product(signer), false)
		s.add(b, "growth_time", much.seconds()/little.seconds())
		s.add(b, "growth_memory",
			(much.after.peak-idle.after.rss)/(little.after.peak-idle.after.rss))
	}
	limit := newSoftLoop(b, large.client, testenv.SignerName)
	limit.approve = true
	large.keep = true
	large.storm(b, bare(noRead, limit))
	for range min(repeats(b), 3) {
		const watched = time.Minute
		used := small.idle(b, time.Minute, watched)
		s.add(b, "idle_cpu_percent",
			100*(used.after.cpu-used.before.cpu).Seconds()/watched.Seconds())
	}
	b.ReportMetric(0, "ns/op")
}

// idle starts hsm-signer, and returns what it uses while it is watched. It has this long to settle
// after it has become ready: it then finds out who issued each certificate, and the CA of another
// contender is a reason for a warning and an Event each.
func (f *fixture) idle(b *testing.B, settle, watched time.Duration) (o outcome) {
	b.Helper()
	pid, stop := f.product(signer).start(b)
	defer stop()
	<-time.After(settle)
	o.before = usageOf(b, pid)
	<-time.After(watched)
	o.after = usageOf(b, pid)
	return o
}

// BenchmarkSingle measures requests one at a time.
func BenchmarkSingle(b *testing.B) {
	c := newCourse(b, 200)
	limit := c.limit(b)
	s := newSeries(usualPerEvent)
	inTurns(b, func(with contender) outcome { return c.single(b, with) },
		func(of map[string]outcome) {
			s.add(b, "single_p50_vs_wall", of[signer].quantile(0.5)/of[withRead].quantile(0.5))
			s.add(b, "single_p50_ms", 1000*of[signer].quantile(0.5))
		}, bare(withRead, limit), c.product(signer))
	b.ReportMetric(0, "ns/op")
}

// single starts the contender and creates the requests one at a time, each after the certificate
// of the one before.
func (c *course) single(b *testing.B, with contender) (o outcome) {
	b.Helper()
	bodies := c.bodies(b, with)
	pid, stop := with.start(b)
	watching := c.observe(b, with.signer)
	p := c.newPoster(b)
	o = c.measured(b, pid, func() timing {
		started := make([]time.Time, c.count)
		for i, body := range bodies {
			started[i] = time.Now()
			must.OK(b, p.post(b.Context(), c.requesters[i].token, body))
			select {
			case <-watching.came:
			case <-b.Context().Done():
			}
		}
		return watching.wait(b, started)
	})
	stop()
	must.OK(b, c.kind.deleteAll(b.Context(), c.client))
	return o
}
