package images_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// settings are for the test: free addresses, and shorter timeouts.
const settings = `[Service]
Environment=LISTEN_ADDRESS=127.0.0.1:0 STATUS_ADDRESS=127.0.0.1:0
WatchdogSec=5
RestartSec=100ms
`

// On a machine with systemd, docs/systemd.md as written makes a service that issues certificates.
// The unit does what the page says.
func TestUnit(t *testing.T) {
	needsEngine(t,
		"docs/systemd.md, typed on a machine whose first process is systemd, makes a service that issues certificates, is watched, and is not restarted after a wrong PIN")
	m := newMachine(t, builtMachine(t))
	m.shell(manual(t, "# Under systemd"))
	m.until("StatusText=ready")
	for _, step := range []struct {
		name string
		see  func(*testing.T, *machine)
	}{
		{"issues certificates", func(t *testing.T, m *machine) { m.certificate(t) }},
		{"does not show the PIN", doesNotShowThePIN},
		{"owns all that it writes to", ownsItsState},
		{"loses no request in a restart", losesNothingInARestart},
		{"renews its token without a restart", renewsItsToken},
		{"is active when it serves", isActiveWhenItServes},
		{"is restarted when it gives no sign of life", isWatched},
		{"is not restarted after a wrong PIN", isNotRestartedAfterAWrongPIN},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.see(t, m.in(t)) }) {
			t.Logf("the unit's journal ends:\n%s", m.journal())
		}
	}
}

// manual returns the commands of docs/systemd.md from a heading on.
func manual(t *testing.T, heading string) string {
	t.Helper()
	page := must.Get(os.ReadFile(filepath.Join(root, "docs/systemd.md")))(t)
	_, rest, ok := bytes.Cut(page, []byte(heading+"\n"))
	if !ok {
		t.Fatalf("docs/systemd.md has no %q", heading)
	}
	var script bytes.Buffer
	for _, block := range regexp.MustCompile("(?s)\n *```sh\n(.*?)```").FindAllSubmatch(rest, -1) {
		script.Write(block[1])
	}
	return script.String()
}

// doesNotShowThePIN searches for the PIN where other users of the machine can read it, and where it
// would outlive the process.
func doesNotShowThePIN(t *testing.T, m *machine) {
	shown := m.shell(`
pin=$(cat /etc/hsm-signer/pin)
process=/proc/$(systemctl show --value --property MainPID hsm-signer)
cat $process/environ $process/cmdline | grep --text --fixed-strings -- "$pin" || true
systemctl show hsm-signer | grep --fixed-strings -- "$pin" || true
journalctl --output json --no-pager | grep --fixed-strings -- "$pin" || true`)
	if shown != "" {
		t.Errorf("the PIN is shown:\n%s", shown)
	}
}

// byHand is how root runs commands of hsm-signer according to docs/systemd.md.
const byHand = `
set -a; . /etc/hsm-signer/environment; set +a
export PKCS11_PIN_FILE=/etc/hsm-signer/pin KUBECONFIG=/etc/hsm-signer/kubeconfig
`

// The unit has a dynamic user, who owns its files and the files that root created for it. Read-only
// commands of root leave nothing in its directory. Files that other commands leave are given to the
// unit.
func ownsItsState(t *testing.T, m *machine) {
	const others = "find /var/lib/private/hsm-signer ! -uid $(systemctl show --value --property UID hsm-signer)"
	m.shell(byHand + "hsm-signer check; hsm-signer audit verify")
	if left := m.shell(others); left != "" {
		t.Errorf("what looks leaves files of its own: %s", left)
	}
	m.shell(byHand +
		"hsm-signer ca create-checkpoint-key --checkpoint-key-label checkpoints --out /root/checkpoint.pub")
	if left := m.shell(others); left == "" {
		t.Error("a new key is the unit's by itself: docs/systemd.md need not speak of it")
	}
	m.shell("chown -R --reference=/var/lib/hsm-signer/ /var/lib/hsm-signer/")
	if left := m.shell(others); left != "" {
		t.Errorf("somebody else's: %s", left)
	}
}

// Pods send requests one after the other before, during and after the restart.
func losesNothingInARestart(t *testing.T, m *machine) {
	var asking sync.WaitGroup
	restarted := make(chan struct{})
	for range 4 {
		asking.Go(func() {
			for over := false; !over; {
				m.certificate(t)
				select {
				case <-restarted:
					over = true
				default:
				}
			}
		})
	}
	m.shell("systemctl restart hsm-signer")
	close(restarted)
	asking.Wait()
	if log := m.journal(); strings.Contains(log, "hsm-signer.service: Failed") ||
		!strings.Contains(log, "hsm-signer.service: Deactivated successfully.") {
		t.Errorf("it did not end well:\n%s", log)
	}
	if out := m.shell(byHand + "hsm-signer audit verify"); !strings.Contains(out,
		fmt.Sprintf("requests         %d, of which %[1]d are published,", m.pods.Load())) {
		t.Errorf("%d pods asked, and the journal says\n%s", m.pods.Load(), out)
	}
}

// After the renewal's unit the same process has another token. It is as after the machine was off.
func renewsItsToken(t *testing.T, m *machine) {
	const used = "the credential for the API server was replaced"
	const state = "systemctl show --property MainPID hsm-signer; " +
		"systemctl is-enabled hsm-signer-credential.timer"
	before := m.shell(state)
	count := strings.Count(m.journal(), used)
	m.shell("systemctl start hsm-signer-credential")
	m.poll(func() error {
		if strings.Count(m.journal(), used) == count {
			return errors.New("the new token is not in use")
		}
		return nil
	})
	m.certificate(t)
	if after := m.shell(state); after != before {
		t.Errorf("before %q, after %q", before, after)
	}
}

// The module reads its configuration from a pipe, so for a while the process runs without serving.
func isActiveWhenItServes(t *testing.T, m *machine) {
	out := m.shell(`
cd /etc/hsm-signer
systemctl stop hsm-signer
mv softhsm.conf real.conf
mkfifo softhsm.conf
systemctl start --no-block hsm-signer
exec 3>softhsm.conf # waits for the module to open it
systemctl show --property ActiveState hsm-signer
cat real.conf >&3
mv real.conf softhsm.conf
exec 3>&-
systemctl start hsm-signer
systemctl show --property ActiveState hsm-signer`)
	if out != "ActiveState=activating\nActiveState=active\n" {
		t.Errorf("before and after it serves systemd says %q", out)
	}
}

func isWatched(t *testing.T, m *machine) {
	m.shell("kill -STOP $(systemctl show --value --property MainPID hsm-signer)")
	m.until("NRestarts=1", "ActiveState=active", "StatusText=ready")
	if log := m.journal(); !strings.Contains(log,
		"hsm-signer.service: Failed with result 'watchdog'.") {
		t.Errorf("it was not the watchdog:\n%s", log)
	}
	m.certificate(t)
}

func isNotRestartedAfterAWrongPIN(t *testing.T, m *machine) {
	m.shell("cp --preserve /etc/hsm-signer/pin /root/pin; echo wrong >/etc/hsm-signer/pin; " +
		"systemctl restart hsm-signer || true")
	m.until("ActiveState=failed", "SubState=failed", "ExecMainStatus=3", "NRestarts=0")
	m.shell("cp --preserve /root/pin /etc/hsm-signer/pin; systemctl start hsm-signer")
	m.until("StatusText=ready")
	m.certificate(t)
}

// A machine is a container whose first process is systemd. It uses the network of the host, where
// the API server of a cluster listens.
type machine struct {
	t       *testing.T
	name    string
	cluster *testenv.Cluster
	pods    *atomic.Int64 // that asked so far
}

// in has what is wrong be a fault of that test.
func (m machine) in(t *testing.T) *machine {
	m.t = t
	return &m
}

// builtMachine returns the options of docker run for a machine with the files of the repository
// after "make build", and the machine's image.
func builtMachine(t *testing.T) []string {
	t.Helper()
	run(t, nil, "make", "image", warm(t), "IMAGE="+image, "RELEASE=v0.0.0-test", "COMMIT=0123abc")
	run(t, nil, "docker", "build", "--build-arg", "HSM_SIGNER="+image, "-f",
		"integration/images/systemd.Dockerfile", "-t", image+"-systemd", ".")
	product := must.Get(filepath.Abs(root))(t)
	var args []string
	for _, name := range []string{"README.md", "docs", "deploy"} {
		args = append(args, "-v", filepath.Join(product, name)+":/src/"+name+":ro")
	}
	return append(args, image+"-systemd")
}

// newMachine starts a machine with a cluster, for which it has kubectl. The arguments of docker run
// end with the machine's image.
func newMachine(t *testing.T, args []string) *machine {
	t.Helper()
	bin := must.Get(testenv.Binaries(t.Context(), os.Stderr))(t)
	cluster := newCluster(t)
	m := &machine{t: t, name: "hsm-signer-systemd-" + strings.ToLower(rand.Text()[:8]),
		cluster: cluster, pods: new(atomic.Int64)}
	t.Cleanup(func() {
		_, _ = try(context.WithoutCancel(t.Context()), nil, "docker", "rm", "--force", "--volumes",
			m.name)
	})
	run(t, nil, "docker", append([]string{"run", "--detach", "--name", m.name, "--network=host",
		"--cgroupns=private",
		"--cap-add=SYS_ADMIN", "--cap-add=SYS_PTRACE", "--security-opt=seccomp=unconfined",
		"--security-opt=apparmor=unconfined", "--security-opt=systempaths=unconfined",
		"--tmpfs=/run", "--tmpfs=/run/lock", "--tmpfs=/tmp",
		"-v", bin.Kubectl + ":/usr/local/bin/kubectl:ro",
		"-v", cluster.Kubeconfig() + ":/root/.kube/config:ro"}, args...)...)
	m.poll(func() error {
		_, err := m.try("systemctl is-system-running --wait")
		return err
	})
	m.shell("mkdir /etc/systemd/system/hsm-signer.service.d; cat " +
		">/etc/systemd/system/hsm-signer.service.d/test.conf <<END\n" + settings + "END")
	return m
}

func newCluster(t *testing.T, apiServerArgs ...string) *testenv.Cluster {
	t.Helper()
	cluster := must.Get(testenv.StartCluster(t.Context(), testenv.ClusterOptions{
		APIServerArgs: apiServerArgs}))(t)
	t.Cleanup(func() { _ = cluster.Stop() })
	must.OK(t, cluster.AllowRequests(t.Context(), ""))
	return cluster
}

func (m *machine) try(script string) (string, error) {
	return try(m.t.Context(), nil, "docker", "exec", m.name, "sh", "-euc", script)
}

// shell runs a script on the machine as root and returns its output. The script must exit with 0.
func (m *machine) shell(script string) string {
	m.t.Helper()
	out, err := m.try(script)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// until waits until the unit has these properties (NAME=VALUE).
func (m *machine) until(properties ...string) {
	m.t.Helper()
	m.poll(func() error {
		shown, err := m.try("systemctl show hsm-signer")
		if err != nil {
			return err
		}
		for _, property := range properties {
			if !strings.Contains("\n"+shown, "\n"+property+"\n") {
				return fmt.Errorf("the unit does not get to %s; it has\n%s", property, shown)
			}
		}
		return nil
	})
}

// poll waits until the function returns no error.
func (m *machine) poll(see func() error) {
	m.t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(m.t.Context(), 200*time.Millisecond, 2*time.Minute, true,
		func(context.Context) (bool, error) {
			last = see()
			return last == nil, nil
		})
	if err != nil {
		log, _ := try(m.t.Context(), nil, "docker", "logs", m.name)
		m.t.Fatalf("%v: %v\n%s", err, last, log)
	}
}

// journal returns systemd's log of the unit.
func (m *machine) journal() string {
	return m.shell("journalctl --no-pager --unit hsm-signer --output cat")
}

// certificate has a pod of Typha request its certificate.
func (m *machine) certificate(t *testing.T) {
	t.Helper()
	if err := typhaAsks(t.Context(), m.cluster, m.pods.Add(1)); err != nil {
		t.Error(err)
	}
}

// typhaAsks has the n-th pod of Typha request its certificate.
func typhaAsks(ctx context.Context, cluster *testenv.Cluster, n int64) error {
	typha := calico.OpenSource("cluster.local")[1]
	name, ip := fmt.Sprintf("typha-%d", n), netip.AddrFrom4([4]byte{10, 65, byte(n >> 8), byte(n)})
	pod, err := cluster.NewPod(ctx, testenv.PodSpec{Namespace: typha.Namespace, Name: name,
		ServiceAccount: typha.ServiceAccount, IPs: []string{ip.String()}})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if _, err := pod.InitContainer(typha).Run(ctx, pod.Client); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
