package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hsm-signer/integration/bench/results"
	"hsm-signer/integration/fleet"
	"hsm-signer/integration/load"
	"hsm-signer/integration/must"
)

// BenchmarkClients measures the outcomes of clients that behave like Calico's init container. Each
// part runs PAIRS times, whatever b.N is, and writes its keys after each run, so an interrupted
// benchmark keeps its results. Lost clients are those that ended without files within the 90
// seconds.
func BenchmarkClients(b *testing.B) {
	p := buildPrograms(b)
	for _, part := range []struct {
		name string
		run  func(*testing.B)
	}{
		{"stream", p.benchmarkStream},
		{"100_added", func(b *testing.B) { p.benchmarkAdded(b, 100) }},
		{"300_added", func(b *testing.B) { p.benchmarkAdded(b, 300) }},
		{"real_added", p.benchmarkProcesses},
		{"1000_lost", p.benchmarkThousand},
		{"300_unhealed", p.benchmarkHealed},
		{"pacing_cost", func(b *testing.B) { p.benchmarkPacing(b, "pacing_cost", false) }},
		{"pacing_with_clients",
			func(b *testing.B) { p.benchmarkPacing(b, "pacing_cost_clients", true) }},
		{"beside_6000", p.benchmarkBesideFinished},
	} {
		b.Run(part.name, func(b *testing.B) {
			part.run(b)
			b.ReportMetric(0, "ns/op")
		})
	}
}

// A series holds the values of a benchmark's keys.
type series struct {
	suffix string // of each key, if the time per event is not the usual one
	values map[string][]float64
}

// newSeries returns an empty series. Its keys name the time per event unless it is the usual one.
func newSeries(perEvent time.Duration) *series {
	s := &series{values: map[string][]float64{}}
	if perEvent != usualPerEvent {
		s.suffix = "_" + perEvent.String()
	}
	return s
}

// add appends a value to a key, records the key, and reports its median.
func (s *series) add(b *testing.B, key string, value float64) {
	b.Helper()
	key += s.suffix
	s.values[key] = append(s.values[key], value)
	record(b, key, s.values[key]...)
	b.ReportMetric(results.Of(s.values[key]...).Median, key)
}

// addP50 appends a median time, in seconds, unless no client succeeded.
func (s *series) addP50(b *testing.B, key string, r load.Report) {
	b.Helper()
	if r.Succeeded > 0 {
		s.add(b, key, r.P50.Seconds())
	}
}

// Clients that arrive one by one: hsm-signer paces nothing.
func (p programs) benchmarkStream(b *testing.B) {
	s := newSeries(perEvent(b))
	for _, rate := range []int{20, 50} {
		plan := load.Plan{PerEvent: perEvent(b), Every: time.Second / time.Duration(rate)}
		measure := func(a arm) load.Report { return p.clients(b, a, 150, plan) }
		inPairs(b, paced, immediate, measure, func(with, without load.Report) {
			s.add(b, "clients_stream_lost", float64(with.Lost))
			s.add(b, fmt.Sprintf("clients_stream_%d_lost", rate), float64(with.Lost))
			s.add(b, fmt.Sprintf("clients_stream_%d_lost_immediate", rate), float64(without.Lost))
			if with.Succeeded > 0 && without.Succeeded > 0 {
				ratio := with.P50.Seconds() / without.P50.Seconds()
				s.add(b, "clients_stream_p50", ratio)
				s.add(b, fmt.Sprintf("clients_stream_%d_p50", rate), ratio)
			}
		})
	}
}

// Clients that arrive within a second: what the signer adds to those lost by creations alone.
func (p programs) benchmarkAdded(b *testing.B, count int) {
	s := newSeries(perEvent(b))
	key := fmt.Sprintf("clients_%d_", count)
	plan := load.Plan{PerEvent: perEvent(b), Every: time.Second / time.Duration(count)}
	measure := func(a arm) load.Report { return p.clients(b, a, count, plan) }
	inPairs(b, paced, nobody, measure, func(with, without load.Report) {
		s.add(b, key+"added", float64(with.Lost-without.Lost))
		s.add(b, key+"lost", float64(with.Lost))
		s.add(b, key+"lost_without_signer", float64(without.Lost))
		s.add(b, key+"late", float64(with.Late))
		s.addP50(b, key+"p50_s", with)
	})
}

// Processes with as little CPU as Calico's init container has.
func (p programs) benchmarkProcesses(b *testing.B) {
	s := newSeries(usualPerEvent)
	measure := func(a arm) load.Report { return p.processes(b, a, 40) }
	inPairs(b, paced, oneByOne, measure, func(with, without load.Report) {
		s.add(b, "clients_real_added", float64(with.Lost-without.Lost))
		s.add(b, "clients_real_lost", float64(with.Lost))
		s.add(b, "clients_real_lost_one_write_at_a_time", float64(without.Lost))
		s.add(b, "clients_real_late", float64(with.Late))
		s.addP50(b, "clients_real_p50_s", with)
	})
}

// A large cluster whose nodes come back one by one.
func (p programs) benchmarkThousand(b *testing.B) {
	s := newSeries(perEvent(b))
	plan := load.Plan{PerEvent: perEvent(b), Every: time.Second / 30}
	measure := func(a arm) load.Report { return p.clients(b, a, 1000, plan) }
	inPairs(b, paced, nobody, measure, func(with, without load.Report) {
		s.add(b, "clients_1000_lost", float64(with.Lost))
		s.add(b, "clients_1000_lost_without_signer", float64(without.Lost))
		s.add(b, "clients_1000_late", float64(with.Late))
		s.addP50(b, "clients_1000_p50_s", with)
	})
}

// Clients within a second, whose pods are deleted if they lose their watch, and made again.
func (p programs) benchmarkHealed(b *testing.B) {
	const count = 300
	s := newSeries(perEvent(b))
	plan := load.Plan{PerEvent: perEvent(b), Every: time.Second / count}
	for range longRuns(b) {
		fresh := p.fixture(b)
		f := must.Get(fleet.New(b.Context(), fresh.Env, node(), count))(b)
		_, stop := fresh.start(b, paced)
		f.Healer = must.Get(fresh.Heal(b.Context()))(b)
		report := must.Get(f.Run(b.Context(), plan, 10*time.Minute))(b)
		fmt.Fprintf(os.Stderr, "%s: %s\n", b.Name(), report)
		must.OK(b, f.Healer.Kill())
		stop()
		fresh.close(b)
		s.add(b, "clients_300_unhealed", float64(report.Unserved))
		s.add(b, "clients_300_healed_lost", float64(report.Lost))
		s.add(b, "clients_300_healed_s", report.Took.Seconds())
		s.add(b, "clients_300_detected_after_s", report.Detection.Seconds())
		s.add(b, "clients_300_deleted_after_s", report.Deletion.Seconds())
	}
}

// A storm of requests, from pods that no client runs in: with pods that initialize, hsm-signer must
// assume that one does.
func (p programs) benchmarkPacing(b *testing.B, key string, initialize bool) {
	s := newSeries(usualPerEvent)
	measure := func(a arm) float64 {
		fresh := p.fixture(b)
		defer fresh.close(b)
		d, stop := fresh.start(b, a)
		defer stop()
		return fresh.storm(b, d, 5000, initialize)
	}
	inPairs(b, paced, immediate, measure, func(with, without float64) {
		s.add(b, key, with/without)
		s.add(b, key+"_per_second", with)
		s.add(b, key+"_per_second_immediate", without)
	})
}

// One new client with 6,000 finished requests, and then after hsm-signer has deleted them. The
// client's timer is off: it runs out before the first of the two succeeds.
func (p programs) benchmarkBesideFinished(b *testing.B) {
	s := newSeries(perEvent(b))
	for range longRuns(b) {
		fresh := p.fixture(b)
		d, stop := fresh.start(b, immediate)
		fresh.storm(b, d, 6000, false)
		stop()
		_, stop = fresh.start(b, paced)
		s.add(b, "clients_beside_6000_s", fresh.oneClient(b))
		stop()
		fresh.allowCleanUp(b)
		_, stop = fresh.start(b, paced, "DELETE_FINISHED_AFTER=90s")
		fresh.waitUntilDeleted(b, 100)
		s.add(b, "clients_beside_6000_cleaned_s", fresh.oneClient(b))
		stop()
		fresh.close(b)
	}
}

// oneClient returns how many seconds one new client takes.
func (f *fixture) oneClient(b *testing.B) float64 {
	b.Helper()
	pods := must.Get(f.LoadPods(b.Context(), node(), 1))(b)
	report := load.Run(b.Context(), pods, load.Plan{PerEvent: perEvent(b), Timeout: time.Hour})
	fmt.Fprintf(os.Stderr, "%s: %s\n", b.Name(), report)
	if report.Succeeded != 1 {
		b.Fatalf("one client alone: %s; %v", report, report.Errors)
	}
	return report.P50.Seconds()
}

// allowCleanUp gives hsm-signer the right to delete requests.
func (f *fixture) allowCleanUp(b *testing.B) {
	b.Helper()
	role := must.Get(os.ReadFile(filepath.Join("..", "..", "deploy", "components", "clean-up",
		"role.yaml")))(b)
	must.OK(b, f.Cluster.Apply(b.Context(), role))
}

// waitUntilDeleted waits until at most this many requests are left. hsm-signer deletes slowly.
func (f *fixture) waitUntilDeleted(b *testing.B, left int) {
	b.Helper()
	began := time.Now()
	poll(b, time.Second, "finished requests to be deleted",
		func(ctx context.Context) (bool, error) {
			count, err := f.requests(ctx)
			return err == nil && count <= left, nil
		})
	fmt.Fprintf(os.Stderr, "%s: deleted within %s\n", b.Name(),
		time.Since(began).Round(time.Second))
}
