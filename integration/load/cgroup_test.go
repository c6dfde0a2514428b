package load

import (
	"slices"
	"testing"
)

func TestParseMounts(t *testing.T) {
	const (
		v1cpu    = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n"
		v1memory = "cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n"
		v1cpuset = "cgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0\n"
		v2       = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n"
		root     = "/dev/vda / ext4 rw,relatime 0 0\n"
	)
	for _, test := range []struct {
		mounts string
		want   hierarchy
	}{
		{root + v1memory + v1cpuset + v1cpu, hierarchy{mount: "/sys/fs/cgroup/cpu,cpuacct"}},
		// v1 has the controller
		{root + v2 + v1cpu, hierarchy{mount: "/sys/fs/cgroup/cpu,cpuacct"}},
		{root + v1memory + v2, hierarchy{mount: "/sys/fs/cgroup/unified", unified: true}},
	} {
		if got, err := parseMounts(test.mounts); err != nil || got != test.want {
			t.Errorf("%s: got %+v, %v; want %+v", test.mounts, got, err, test.want)
		}
	}
	if got, err := parseMounts(root + v1memory); err == nil {
		t.Errorf("without the cpu controller: got %+v, want an error", got)
	}
}

// 10m of CPU are 1 ms in 100 ms, in either version.
func TestSettingsOfACgroup(t *testing.T) {
	v1, v2 := hierarchy{}.settings(10), hierarchy{unified: true}.settings(10)
	if !slices.Equal(v1,
		[][2]string{{"cpu.cfs_period_us", "100000"}, {"cpu.cfs_quota_us", "1000"}}) {
		t.Errorf("cgroup v1: %q", v1)
	}
	if !slices.Equal(v2, [][2]string{{"cpu.max", "1000 100000"}}) {
		t.Errorf("cgroup v2: %q", v2)
	}
}

func TestOutcomesHaveNames(t *testing.T) {
	for _, outcome := range []Outcome{Succeeded, Lost, Late, Broken} {
		if parsed, err := parseOutcome(outcome.String()); err != nil || parsed != outcome {
			t.Errorf("%v is read as %v, %v", outcome, parsed, err)
		}
	}
	if parsed, err := parseOutcome(""); err == nil {
		t.Errorf("an empty name is read as %v", parsed)
	}
}
