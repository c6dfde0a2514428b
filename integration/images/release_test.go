package images_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hsm-signer/integration/must"
	"hsm-signer/integration/release"
)

// What a release has for Debian is installed on machines with systemd and SoftHSM and nothing else,
// and is used as docs/release.md says until it has issued a certificate.
func TestReleaseUnderSystemd(t *testing.T) {
	if os.Getenv("RELEASE_CHECK") == "" {
		t.Skip("make release-check runs this")
	}
	needsEngine(t,
		"the archive and the Debian package of a release make a service that issues certificates; "+
			"an upgrade restarts it, and a removal stops it")
	t.Setenv("UNPINNED", "allow") // no registry is needed
	run(t, nil, "integration/images/stand-ins.sh", "debian:bookworm-slim")
	run(t, nil, "docker", "build", "--target", "bare",
		"-f", "integration/images/systemd.Dockerfile",
		"-t", image+"-bare", ".")
	earlier, later := built(t, "v1.2.2"), built(t, "v1.2.3")
	t.Run("archive", func(t *testing.T) { archiveServes(t, later) })
	t.Run("package", func(t *testing.T) { packageServes(t, earlier, later) })
}

// built returns the directory of a release of the commit.
func built(t *testing.T, version string) string {
	t.Helper()
	dir, clone := t.TempDir(), filepath.Join(t.TempDir(), "clone")
	run(t, nil, "git", "clone", "--quiet", ".", clone)
	must.OK(t, release.Build(t.Context(), release.Options{Repository: clone, Out: dir,
		Version: version, Targets: []string{"linux_amd64"}, Go: "go",
		BaseImage: "debian:bookworm-slim", Progress: os.Stderr}))
	return dir
}

// bare returns the options of docker run for a machine with the directories.
func bare(directories map[string]string) []string {
	var args []string
	for from, to := range directories {
		args = append(args, "-v", from+":"+to+":ro")
	}
	return append(args, image+"-bare")
}

func archiveServes(t *testing.T, dir string) {
	m := newMachine(t, bare(map[string]string{dir: "/release"}))
	m.shell(`tar -xzf /release/hsm-signer_1.2.3_linux_amd64.tar.gz
cd hsm-signer_1.2.3_linux_amd64
` + manual(t, "# Under systemd"))
	m.until("StatusText=ready")
	m.certificate(t)
}

func packageServes(t *testing.T, earlier, later string) {
	m := newMachine(t, bare(map[string]string{earlier: "/earlier", later: "/later"}))
	m.shell(`apt-get install -qq -y /earlier/hsm-signer_1.2.2_amd64.deb >&2
cp /usr/share/hsm-signer/environment.example /etc/hsm-signer/environment
cp -r /usr/share/hsm-signer/deploy .
` + manual(t, "## The kubeconfig"))
	m.until("StatusText=ready")
	m.certificate(t)
	const process = "systemctl show --value --property MainPID hsm-signer"
	before := m.shell(process)
	m.shell("apt-get install -qq -y /later/hsm-signer_1.2.3_amd64.deb >&2")
	m.until("StatusText=ready")
	if after := m.shell(process + "; hsm-signer version"); strings.HasPrefix(after, before) ||
		!strings.Contains(after, "\nhsm-signer v1.2.3\n") {
		t.Errorf("before the upgrade it was process %s; after it: %s", before, after)
	}
	m.certificate(t)
	m.shell("apt-get purge -qq -y hsm-signer >&2")
	left := m.shell(`systemctl is-active hsm-signer || true
ls /etc/systemd/system/multi-user.target.wants | grep hsm-signer || true
ls /var/lib/hsm-signer/ | grep journal-`)
	if left != "inactive\njournal-00000001.jsonl\n" {
		t.Errorf("after the removal there is %q", left)
	}
}
