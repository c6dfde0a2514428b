package load

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// period is how long a cgroup's quota of CPU time lasts: the kernel's default, which kubelet keeps.
const period = 100 * time.Millisecond

// A hierarchy is a mount of control groups that limits CPU time.
type hierarchy struct {
	mount   string
	unified bool // cgroup v2
}

// A cgroup is a control group for one process.
type cgroup string

// findHierarchy returns the hierarchy that limits CPU time. With cgroup v1 and v2 side by side that
// is v1's.
func findHierarchy() (hierarchy, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return hierarchy{}, fmt.Errorf("mounts of control groups: %w", err)
	}
	h, err := parseMounts(string(mounts))
	if err != nil || !h.unified {
		return h, err
	}
	// A group gets the files of a controller only if its parent passes that on.
	control := filepath.Join(h.mount, "cgroup.subtree_control")
	if err := os.WriteFile(control, []byte("+cpu"), 0); err != nil {
		return h,
			fmt.Errorf("pass on the cpu controller: %w; run as root, outside of a container", err)
	}
	return h, nil
}

// parseMounts looks through lines of /proc/self/mounts.
func parseMounts(mounts string) (found hierarchy, err error) {
	for lines := bufio.NewScanner(strings.NewReader(mounts)); lines.Scan(); {
		fields := strings.Fields(lines.Text()) // device, mount point, type, options, …
		switch {
		case len(fields) < 4:
		case fields[2] == "cgroup" && slices.Contains(strings.Split(fields[3], ","), "cpu"):
			return hierarchy{mount: fields[1]}, nil
		case fields[2] == "cgroup2":
			found = hierarchy{mount: fields[1], unified: true}
		}
	}
	if found.mount == "" {
		return found, errors.New("no control groups are mounted; mount cgroup v1 with cpu, or " +
			"cgroup v2")
	}
	return found, nil
}

// limited makes a control group whose processes together get so many thousandths of a CPU. The
// caller removes it when they have ended.
func (h hierarchy) limited(milliCPU int) (cgroup, error) {
	group := filepath.Join(h.mount, "hsm-signer-load-"+strings.ToLower(rand.Text()))
	if err := os.Mkdir(group, 0o755); err != nil {
		return "", fmt.Errorf("control group for a client: %w; run as root", err)
	}
	for _, setting := range h.settings(milliCPU) {
		if err := os.WriteFile(filepath.Join(group, setting[0]), []byte(setting[1]),
			0); err != nil {
			return "", fmt.Errorf("limit the CPU of a client: %w",
				errors.Join(err, os.Remove(group)))
		}
	}
	return cgroup(group), nil
}

// settings are files of a control group, each with what it must hold.
func (h hierarchy) settings(milliCPU int) [][2]string {
	every := strconv.FormatInt(period.Microseconds(), 10)
	quota := strconv.FormatInt(period.Microseconds()*int64(milliCPU)/1000, 10)
	if h.unified {
		return [][2]string{{"cpu.max", quota + " " + every}}
	}
	return [][2]string{{"cpu.cfs_period_us", every}, {"cpu.cfs_quota_us", quota}}
}

// processes is the file that a process writes 0 to, to enter the group.
func (g cgroup) processes() string { return filepath.Join(string(g), "cgroup.procs") }

func (g cgroup) remove() error { return os.Remove(string(g)) }
