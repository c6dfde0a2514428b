// Package images_test builds the container images with the Docker engine of this machine. It runs
// them hardened, runs docker-compose.yml, and runs the systemd unit on a machine whose first
// process is systemd. Without a Docker engine each test is skipped and says what it would have
// checked.
package images_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
	"hsm-signer/integration/tokens"
)

const (
	root  = "../.."
	image = "hsm-signer-test"
)

// needsEngine skips the test without a Docker engine, the only reason not to run these tests.
func needsEngine(t *testing.T, expectation string) {
	t.Helper()
	_ = os.Getenv("SOURCES") // see sources.sh
	if out, err := exec.CommandContext(t.Context(), "docker",
		"version").CombinedOutput(); err != nil {
		t.Skipf("there is no Docker engine here, and so this was not seen: %s (%v: %s)",
			expectation, err, out)
	}
}

// run runs a command in the root of the repository and returns its output. The command must exit
// with 0.
func run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	return must.Get(try(t.Context(), env, name, args...))(t)
}

func try(ctx context.Context, env []string, name string, args ...string) (string, error) {
	return testenv.Output(ctx, root, env, name, args...)
}

// warm returns the setting for building images from compiled modules.
func warm(t *testing.T) string {
	t.Helper()
	run(t, nil, "integration/images/stand-ins.sh")
	return "BUILD_IMAGE=" + strings.TrimSpace(run(t, nil, "integration/images/warm.sh"))
}

// hardened are options of docker run under which the image must work.
var hardened = []string{"run", "--rm", "--read-only", "--cap-drop=ALL",
	"--security-opt=no-new-privileges", "--network=none"}

func TestImageRunsHardened(t *testing.T) {
	needsEngine(t,
		"make image builds an image that runs as 65532, read-only, without capabilities, and "+
			"says its commit")
	run(t, nil, "make", "image", warm(t), "IMAGE="+image, "RELEASE=v0.0.0-test", "COMMIT=0123abc")
	out := run(t, nil, "docker", append(hardened, image, "version")...)
	if !strings.Contains(out, "hsm-signer v0.0.0-test\ncommit 0123abc\ngo1.") ||
		!strings.Contains(out, "FIPS 140-3: module latest, mode off") {
		t.Errorf("version says %q", out)
	}
	var config []struct {
		Config struct {
			User       string
			Volumes    map[string]struct{}
			Entrypoint []string
		}
	}
	must.OK(t, json.Unmarshal([]byte(run(t, nil, "docker", "image", "inspect", image)), &config))
	c := config[0].Config
	if _, ok := c.Volumes["/var/lib/hsm-signer"]; c.User != "65532:65532" || !ok ||
		c.Entrypoint[0] != "/usr/local/bin/hsm-signer" {
		t.Errorf("the image's configuration is %+v", c)
	}
}

// The key is in a token of the host, behind p11-kit's server. The container has only a socket.
func TestImageReachesATokenThroughP11Kit(t *testing.T) {
	needsEngine(t,
		"make image PACKAGES=p11-kit-modules builds an image that makes a CA in a token of the "+
			"host through a socket")
	run(t, nil, "make", "image", warm(t), "IMAGE="+image+"-p11-kit", "PACKAGES=p11-kit-modules")
	token := must.Get(tokens.NewP11Kit(t.Context()))(t)
	defer token.Close()
	socket := strings.TrimPrefix(token.Env[0], "P11_KIT_SERVER_ADDRESS=unix:path=")
	dir := t.TempDir()
	args := append(hardened, "--user", fmt.Sprint(os.Getuid()), // whom p11-kit's server lets in
		"-v", socket+":/run/hsm/p11.sock", "-v", dir+":/out",
		"-e", "P11_KIT_SERVER_ADDRESS=unix:path=/run/hsm/p11.sock",
		"-e", "PKCS11_MODULE=/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so",
		"-e", "PKCS11_TOKEN_LABEL="+token.Label, "-e", "PKCS11_PIN="+token.PIN, "-e",
		"CA_KEY_LABEL=calico-ca",
		image+"-p11-kit", "ca", "create", "--out", "/out/ca.crt")
	out := run(t, nil, "docker", args...)
	if !strings.Contains(out, "CKA_EXTRACTABLE") {
		t.Errorf("ca create says %q", out)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "ca.crt")); err != nil ||
		!strings.HasPrefix(string(text), "-----BEGIN CERTIFICATE") {
		t.Errorf("the CA's certificate: %v, %q", err, text)
	}
}

// The test tries every compose on this machine: Docker's plugin, and docker-compose.
func TestCompose(t *testing.T) {
	needsEngine(t,
		"make compose ends 0 with the table of the demo; run again it has the same CA, and a "+
			"longer journal that audit verify confirms")
	setting, tried := warm(t), 0
	for n, command := range []string{"docker compose", "docker-compose"} {
		words := strings.Fields(command)
		if _, err := try(t.Context(), nil, words[0], append(words[1:], "version")...); err != nil {
			continue
		}
		tried++
		t.Run(command, func(t *testing.T) {
			composeEndsLikeTheDemoAndKeepsItsState(t,
				compose{words,
					[]string{setting, "COMPOSE=" + command,
						fmt.Sprintf("COMPOSE_PROJECT_NAME=hsm-signer-test-%d-%d", os.Getpid(), n)}})
		})
	}
	if tried == 0 {
		t.Error("there is a Docker engine, and neither docker compose nor docker-compose: " +
			"install one of them")
	}
}

// make compose ends like the demonstration. Another run finds its CA and its journal, in which the
// new certificates follow those of the first run.
func composeEndsLikeTheDemoAndKeepsItsState(t *testing.T, c compose) {
	t.Cleanup(func() {
		if out, err := c.try(context.WithoutCancel(t.Context()), "down", "--volumes",
			"--timeout=5"); err != nil {
			t.Error(err, out)
		}
	})
	var cas, journals [2]string
	for i := range cas {
		out := run(t, c.env, "make", "compose")
		for _, want := range []string{"WHO", "calico-system/calico-typha", "Denied",
			"Success: every component has its certificate"} {
			if !strings.Contains(out, want) {
				t.Fatalf("run %d of make compose lacks %q:\n%s", i+1, want, out)
			}
		}
		cas[i] = c.inSigner(t, "/bin/cat", "/ca/ca.crt")
		journals[i] = c.inSigner(t, "/bin/cat", "/var/lib/hsm-signer/journal-00000001.jsonl")
		c.inSigner(t, "hsm-signer", "audit", "verify")
	}
	if cas[0] != cas[1] || cas[0] == "" {
		t.Errorf("the CA was %q and is %q", cas[0], cas[1])
	}
	published := func(journal string) int { return strings.Count(journal, `"kind":"published"`) }
	if n := published(journals[0]); n == 0 || !strings.HasPrefix(journals[1], journals[0]) ||
		published(journals[1]) != 2*n {
		t.Errorf("the journal was\n%s\nand is\n%s", journals[0], journals[1])
	}
	if running, err := c.try(t.Context(), "top"); err != nil || strings.TrimSpace(running) != "" {
		t.Errorf("still running: %v %s", err, running)
	}
}

// A compose is one of the two, with the environment of a project.
type compose struct{ command, env []string }

func (c compose) try(ctx context.Context, args ...string) (string, error) {
	return try(ctx, c.env, c.command[0], slices.Concat(c.command[1:], args)...)
}

// inSigner runs a program in a container like that of hsm-signer.
func (c compose) inSigner(t *testing.T, program string, args ...string) string {
	t.Helper()
	return must.Get(c.try(t.Context(),
		append([]string{"run", "--rm", "--no-deps", "-T", "--entrypoint", program, "hsm-signer"},
			args...)...))(t)
}
