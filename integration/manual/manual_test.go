// Package manual_test holds the manuals to what they say: what a page tells its reader to type is
// run, or said to be not run; and what it refers to is there.
package manual_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// root is the repository, two above this package.
const root = "../.."

// run are the pages whose blocks for a shell (```sh) are run: the first by this package, the others
// by the tests named here.
var run = map[string]string{
	"docs/try.md":      "TestTry",
	"docs/ceremony.md": "TestCeremonyManual",
	"docs/systemd.md":  "TestUnit",
}

// The page is typed as it stands there, on a machine that has what "make setup" installs. Before
// its end the commands of other pages are given.
func TestTry(t *testing.T) {
	here := must.Get(filepath.Abs(filepath.Join(root, "bin")))(t)
	cluster := filepath.Join(t.TempDir(), "cluster")
	t.Cleanup(func() { _ = testenv.StopCluster(cluster) })
	const end = "kill %1\n"
	typed, ending, _ := strings.Cut(script(t, "docs/try.md"), end)
	out := shell(t, typed+looking(t)+end+ending,
		"CLUSTER="+cluster, "LISTEN_ADDRESS=127.0.0.1:0", "STATUS_ADDRESS=127.0.0.1:0",
		"KUBECONFIG=",
		"PATH="+here+string(os.PathListSeparator)+os.Getenv("PATH"))
	for _, want := range []string{"Approved,Issued", "tls.crt: OK", "NameNotAllowed: ",
		"typha-certs:typha-1", "every line is right up to the head"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in:\n%s", want, out)
		}
	}
}

var (
	// looked are the pages whose commands that only look are given on the cluster of docs/try.md,
	// once its requests are served.
	looked = []string{"docs/runbook.md", "docs/operate.md"}
	spans  = regexp.MustCompile("`((?:hsm-signer|kubectl) [^`]+)`")
	// needsMore are the commands that change something, or that need what is missing here:
	// hsm-signer in a pod, with a lease and an overlay; Calico; a policy's tests; a next CA.
	needsMore = regexp.MustCompile(` (run|exec|logs|port-forward|rollout|apply|create|pods?|lease|` +
		`test|accept-rollback|rotate)( |$)`)
	// placeholders stand for what is there on that cluster.
	placeholders = strings.NewReplacer("NAME", "typha-certs:typha-1", `SERIAL\|REQUEST`,
		"typha-certs:typha-1", " DIR", ` "$STATE_DIR"`,
		"SEQ:SHA256",
		`$(hsm-signer audit verify --output json | jq -r '"\(.head.seq):\(.head.sha256)"')`)
)

// looking gives each command of those pages once; each must end well.
func looking(t *testing.T) string {
	t.Helper()
	var commands []string
	for _, page := range looked {
		for _, span := range spans.FindAllSubmatch(fenced.ReplaceAll(read(t, page), nil), -1) {
			if command := string(span[1]); !needsMore.MatchString(command) &&
				!slices.Contains(commands, command) {
				commands = append(commands, command)
			}
		}
	}
	if len(commands) < 12 {
		t.Errorf("these pages had 12 such commands and more; now: %q", commands)
	}
	return placeholders.Replace(strings.Join(commands, "\n") + "\n")
}

// shell runs a script in the repository with the environment added, and returns what it printed.
// What it has left in the background ends with it.
func shell(t *testing.T, script string, env ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir, cmd.Env = root, append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	return string(out)
}

// A block is one between two fences.
type block struct {
	language string
	text     []byte
	before   []byte // what the page says up to it
}

var fenced = regexp.MustCompile("(?ms)^[ \t]*```([a-z]*)\n(.*?)^[ \t]*```$")

func blocks(t *testing.T, page string) (all []block) {
	t.Helper()
	text := read(t, page)
	for _, at := range fenced.FindAllSubmatchIndex(text, -1) {
		all = append(all, block{string(text[at[2]:at[3]]), text[at[4]:at[5]], text[:at[0]]})
	}
	return all
}

func script(t *testing.T, page string) string {
	t.Helper()
	var script bytes.Buffer
	for _, b := range blocks(t, page) {
		if b.language == "sh" {
			script.Write(b.text)
		}
	}
	return script.String()
}

func read(t *testing.T, page string) []byte {
	t.Helper()
	return must.Get(os.ReadFile(filepath.Join(root, page)))(t)
}

func pages(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/decisions/*.md", "deploy/*.md"} {
		found := must.Get(filepath.Glob(filepath.Join(root, pattern)))(t)
		for _, path := range found {
			all = append(all, must.Get(filepath.Rel(root, path))(t))
		}
	}
	return all
}

// command is a line that begins as one that is typed.
var command = regexp.MustCompile(`(?m)^[ \t]*(kubectl|hsm-signer|bin/hsm-signer|make|systemctl|` +
	`docker|docker-compose|softhsm2-util|openssl|curl|jq|pkcs11-tool|journalctl) `)

// A block for a shell is on a page that a test runs. Any other that holds commands comes after the
// words "not run".
func TestWhatIsTypedIsRunOrSaidNotToBe(t *testing.T) {
	notRun := regexp.MustCompile(`(?i)not\*? run|未运行`)
	for _, page := range pages(t) {
		for _, b := range blocks(t, page) {
			first, _, _ := strings.Cut(string(b.text), "\n")
			switch {
			case b.language == "sh" && run[page] == "":
				t.Errorf("%s has a block for a shell that no test runs: %s", page, first)
			case b.language != "sh" && command.Match(b.text) && !notRun.Match(b.before):
				t.Errorf("%s has commands that are neither run nor said not to be: %s", page, first)
			}
		}
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	dropped = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// What a page refers to is there, down to the section.
func TestLinks(t *testing.T) {
	for _, page := range pages(t) {
		for _, found := range link.FindAllSubmatch(fenced.ReplaceAll(read(t, page), nil), -1) {
			target, anchor, _ := strings.Cut(string(found[1]), "#")
			if strings.Contains(target, "://") {
				continue
			}
			path := page
			if target != "" {
				path = filepath.Join(filepath.Dir(page), target)
			}
			if _, err := os.Stat(filepath.Join(root, path)); err != nil {
				t.Errorf("%s refers to %s, which is not there", page, found[1])
			} else if anchor != "" && !slices.Contains(anchors(t, path), anchor) {
				t.Errorf("%s refers to %s; that page has no such section", page, found[1])
			}
		}
	}
}

// anchors are those of the page's headings, as GitHub makes them.
func anchors(t *testing.T, page string) (all []string) {
	t.Helper()
	for _, found := range heading.FindAllSubmatch(fenced.ReplaceAll(read(t, page), nil), -1) {
		name := dropped.ReplaceAllString(strings.ToLower(strings.TrimSpace(string(found[1]))), "")
		all = append(all, strings.ReplaceAll(name, " ", "-"))
	}
	return all
}

// The README says the same in each language: its sections are as many, and it refers to the same
// pages and files.
func TestReadmes(t *testing.T) {
	refersTo := func(page string) (targets []string) {
		for _, found := range link.FindAllSubmatch(read(t, page), -1) {
			if target := string(found[1]); !strings.HasPrefix(target, "README") {
				targets = append(targets, target)
			}
		}
		slices.Sort(targets)
		return slices.Compact(targets)
	}
	english, chinese := "README.md", "README.zh-CN.md"
	if e, c := refersTo(english), refersTo(chinese); !slices.Equal(e, c) {
		t.Errorf("%s refers to\n%q\nand %s to\n%q", english, e, chinese, c)
	}
	if e, c := len(anchors(t, english)), len(anchors(t, chinese)); e != c {
		t.Errorf("%s has %d headings, and %s has %d", english, e, chinese, c)
	}
}
