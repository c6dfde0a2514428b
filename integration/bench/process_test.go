package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hsm-signer/integration/must"
)

// userHZ is the unit of the times in /proc/PID/stat, which Linux shows to every program.
const userHZ = 100

// A usage is what a process has used.
type usage struct {
	cpu       time.Duration // of all threads, in user and kernel mode
	rss, peak float64       // resident memory, in MiB
	anonymous float64       // of it, what is not pages of files, in MiB
}

// usageOf reads the usage of a process from /proc.
func usageOf(b *testing.B, pid int) (u usage) {
	b.Helper()
	stat := must.Get(os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)))(b)
	// The second field is a name in parentheses, which may hold spaces.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	for _, ticks := range fields[11:13] { // utime and stime
		n := must.Get(strconv.ParseInt(ticks, 10, 64))(b)
		u.cpu += time.Duration(n) * time.Second / userHZ
	}
	status := must.Get(os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)))(b)
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kilobytes, _ := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
		switch name {
		case "VmRSS":
			u.rss = kilobytes / 1024
		case "VmHWM":
			u.peak = kilobytes / 1024
		case "RssAnon":
			u.anonymous = kilobytes / 1024
		}
	}
	return u
}

// servers returns the process IDs of the API server and etcd, by name.
func (f *fixture) servers(b *testing.B) map[string]int {
	b.Helper()
	pids := map[string]int{}
	for _, name := range []string{"kube-apiserver", "etcd"} {
		text := must.Get(os.ReadFile(filepath.Join(f.Cluster.Dir(), name+".pid")))(b)
		pids[name] = must.Get(strconv.Atoi(strings.Fields(string(text))[0]))(b)
	}
	return pids
}
