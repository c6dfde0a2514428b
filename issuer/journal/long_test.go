package journal

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strconv"
	"testing"
	"time"

	"hsm-signer/internal/must"
)

// Benchmarks of a long journal. JOURNAL_BENCH_REQUESTS and JOURNAL_BENCH_ENTRIES say how long; with
// JOURNAL_BENCH_DIR the journal is kept there for the next run.

func benchCount(b *testing.B, variable string, fallback int) int {
	text := os.Getenv(variable)
	if text == "" {
		return fallback
	}
	return must.Value(strconv.Atoi(text))(b)
}

// longJournal returns a journal of so many published requests. Their certificates differ in the
// serial number only, and the signature is of none of them: that is what "audit verify" checks,
// and Open not.
func longJournal(b *testing.B, ca *testCA, requests int) string {
	b.Helper()
	dir := os.Getenv("JOURNAL_BENCH_DIR")
	if dir == "" {
		dir = b.TempDir()
	}
	if _, err := os.Stat(filePath(dir, 1)); err == nil {
		return dir
	}
	const id = ID("1a2b3c4d")
	intent, signed, _ := ca.lines(b, id, "template", time.Hour)
	serial, err := hex.DecodeString(intent.Serial)
	must.OK(b, err)
	number, size := uint32(0), int64(64<<20)
	var out *bufio.Writer
	var file *os.File
	finish := func() {
		if file != nil {
			must.OK(b, errors.Join(out.Flush(), file.Close()))
		}
	}
	var head Head
	put := func(e Entry) {
		if size >= 64<<20 {
			finish()
			number, size = number+1, 0
			if file, err = os.Create(filePath(dir, number)); err != nil {
				b.Fatal(err)
			}
			out = bufio.NewWriterSize(file, 1<<20)
		}
		var batch batch
		if head, err = batch.put(head, time.Now().Add(-2*RecentWindow), e); err == nil {
			_, err = out.Write(batch.bytes)
		}
		must.OK(b, err)
		size += int64(len(batch.bytes))
	}
	put(Opened{Journal: id})
	for n := range requests {
		next := bytes.Clone(serial)
		binary.BigEndian.PutUint64(next[12:], uint64(n))
		i := intent
		i.UID, i.Serial = benchUID(n), FormatSerial(new(big.Int).SetBytes(next))
		i.TBS = bytes.Replace(intent.TBS, serial, next, 1)
		put(i)
		put(Signed{UID: i.UID, Serial: i.Serial,
			Certificate: bytes.Replace(signed.Certificate, serial, next, 1)})
		put(Published{i.UID, i.Serial})
	}
	finish()
	return dir
}

func benchUID(n int) string { return fmt.Sprintf("5f0c8d1e-0000-4000-8000-%012d", n) }

// resident is what the process has in memory, in MiB, and the most that it had since it was last
// asked.
func resident(b *testing.B) (now, peak float64) {
	b.Helper()
	peak = status(b, "VmHWM")
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		b.Log(err) // the peak is then that of the whole run
	}
	return status(b, "VmRSS"), peak
}

func status(b *testing.B, field string) float64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/status")
	must.OK(b, err)
	kib, err := strconv.Atoi(string(regexp.MustCompile(field + `:\s+(\d+)`).FindSubmatch(text)[1]))
	must.OK(b, err)
	return float64(kib) / 1024
}

func BenchmarkLongJournal(b *testing.B) {
	ca, requests := newCA(b), benchCount(b, "JOURNAL_BENCH_REQUESTS", 20_000)
	dir := longJournal(b, ca, requests)
	o := Options{CA: ca.cert}
	start := func(b *testing.B, prepare func()) {
		for b.Loop() {
			b.StopTimer()
			before, _ := resident(b)
			prepare()
			b.StartTimer()
			j, err := Open(dir, o)
			b.StopTimer()
			must.OK(b, err)
			after, peak := resident(b)
			b.ReportMetric(after-before, "MiB-more")
			b.ReportMetric(peak-before, "MiB-more-at-peak")
			must.OK(b, j.Close())
			b.StartTimer()
		}
	}
	b.Run("first start", func(b *testing.B) {
		start(b, func() {
			paths, err := filepath.Glob(filepath.Join(dir, "index-*"))
			for _, path := range paths {
				err = errors.Join(err, os.Remove(path))
			}
			must.OK(b, err)
		})
	})
	b.Run("start", func(b *testing.B) { start(b, func() {}) })
	j := open(b, dir, o)
	lookUp := func(uid func() string, want State) func(b *testing.B) {
		return func(b *testing.B) {
			for b.Loop() {
				if r, err := j.Lookup(uid()); err != nil || r.State != want {
					b.Fatalf("%s: %v", r.State, err)
				}
			}
		}
	}
	b.Run("look-up of an old request", lookUp(func() string {
		return benchUID(rand.IntN(requests))
	}, IsPublished))
	b.Run("look-up of a new request", lookUp(func() string {
		return fmt.Sprint(rand.Uint64())
	}, Unknown))
	b.Run("recheck", func(b *testing.B) {
		<-j.rechecked
		for b.Loop() {
			for _, s := range j.segments {
				must.OK(b, s.read(dir, func(Head) error { return nil }))
			}
		}
	})
}

// BenchmarkIndexes measures the indexes alone, as of a journal that is longer than a disk of
// today's tests has room for: 13,000 requests for each of its files.
func BenchmarkIndexes(b *testing.B) {
	entries, dir := benchCount(b, "JOURNAL_BENCH_ENTRIES", 100_000), b.TempDir()
	var some []key
	const each = 13_000
	files := uint32(0)
	for left := entries; left > 0; left -= each {
		files++
		all := map[key]finished{}
		for n := range min(left, each) {
			k := keyOf(fmt.Sprint(files, " ", n))
			if all[k] = (finished{at: place{files, uint32(n)}, state: IsPublished}); n%1000 == 0 {
				some = append(some, k)
			}
		}
		s, text, err := newSegment(indexHeader{File: files}, all)
		if err == nil {
			err = s.save(dir, text)
		}
		must.OK(b, err)
	}
	load := func() (segments []*segment) {
		for number := range files {
			s, err := readIndex(dir, number+1)
			must.OK(b, err)
			segments = append(segments, s)
		}
		return segments
	}
	segments := load()
	b.Run("load", func(b *testing.B) {
		for b.Loop() {
			segments = nil
			before, _ := resident(b)
			segments = load()
			after, peak := resident(b)
			b.ReportMetric(after-before, "MiB-more")
			b.ReportMetric(peak-before, "MiB-more-at-peak")
		}
	})
	b.Run("look-up of an old request", func(b *testing.B) {
		for b.Loop() {
			if _, found, err := findSealed(dir, segments, some[rand.IntN(len(some))]); err != nil ||
				!found {
				b.Fatal(found, err)
			}
		}
	})
	b.Run("look-up of a new request", func(b *testing.B) {
		for b.Loop() {
			if _, found, err := findSealed(dir, segments,
				keyOf(fmt.Sprint(rand.Uint64()))); err != nil || found {
				b.Fatal(found, err)
			}
		}
	})
}
