package release

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hsm-signer/integration/must"
)

// checkVariable has the targets to check, or "all". It is set by "make release-check", since two
// builds take longer than all other tests of this package.
const checkVariable = "RELEASE_CHECK"

// The versions whose packages are installed, and upgraded to.
const earlierVersion, checkedVersion = "v1.2.2", "v1.2.3"

// Two releases of one commit have the same bytes, and what is in them works.
func TestRelease(t *testing.T) {
	chosen := strings.Fields(os.Getenv(checkVariable))
	if len(chosen) == 0 {
		t.Skip("make release-check runs this")
	}
	if chosen[0] == "all" {
		chosen = nil
	}
	key := filepath.Join(t.TempDir(), "key.pem")
	if !openSSL(t, ".", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256",
		"-out", key) {
		t.Fatal("no key")
	}
	t.Setenv("UNPINNED", "allow") // no registry is needed
	first := releaseFromClone(t, Options{Version: checkedVersion, Targets: chosen,
		Key: Key{Name: key}})
	t.Setenv("TZ", "Pacific/Kiritimati")
	t.Setenv("LC_ALL", "C")
	t.Setenv("HOSTNAME", "elsewhere")
	second := releaseFromClone(t, Options{Version: checkedVersion, Targets: chosen})
	t.Run("has the same bytes twice", func(t *testing.T) { sameBytes(t, first, second) })
	t.Run("is signed", func(t *testing.T) { verify(t, first) })
	t.Run("lists all modules", func(t *testing.T) { listsAllModules(t, first) })
	if chosen == nil || slices.Contains(chosen, "linux_arm64") {
		t.Run("runs on arm64", func(t *testing.T) { runsOnARM64(t, first) })
	}
	t.Run("is an image", func(t *testing.T) { isAnImage(t, first) })
	t.Run("is an RPM package", func(t *testing.T) { isAnRPMPackage(t, first) })
	earlier := releaseFromClone(t, Options{Version: earlierVersion,
		Targets: []string{"linux_amd64"}})
	t.Run("is a Debian package", func(t *testing.T) { isADebianPackage(t, earlier, first) })
}

// releaseFromClone builds a release in a clone of the repository, in a directory of its own.
func releaseFromClone(t *testing.T, o Options) (dir string) {
	t.Helper()
	o.Repository, o.Out = filepath.Join(t.TempDir(), "clone"), t.TempDir()
	o.Go, o.Progress, o.BaseImage = "go", os.Stderr, "debian:bookworm-slim"
	command(t, "git", "clone", "--quiet", "../..", o.Repository)
	must.OK(t, Build(t.Context(), o))
	return o.Out
}

// command runs a program and returns its standard output. The program must exit with 0.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	return must.Get(run(t.Context(), ".", nil, name, args...))(t)
}

// only returns the file of the pattern.
func only(t *testing.T, dir, pattern string) string {
	t.Helper()
	found := must.Get(filepath.Glob(filepath.Join(dir, pattern)))(t)
	if len(found) != 1 {
		t.Fatalf("%s matches %q", pattern, found)
	}
	return found[0]
}

func sameBytes(t *testing.T, first, second string) {
	if out, err := run(t.Context(), first, nil, "sha256sum", "--check", "--quiet",
		filepath.Join(second, checksumFile)); err != nil {
		t.Errorf("%v %s", err, out)
	}
	one := must.Get(os.ReadFile(filepath.Join(first, checksumFile)))(t)
	other := must.Get(os.ReadFile(filepath.Join(second, checksumFile)))(t)
	if !bytes.Equal(one, other) || len(one) == 0 {
		t.Errorf("the checksums are\n%s\nand\n%s", one, other)
	}
}

// unpacked returns the path of a binary in an archive or a package.
func unpacked(t *testing.T, archive string) string {
	t.Helper()
	dir := t.TempDir()
	switch filepath.Ext(archive) {
	case ".deb":
		command(t, "dpkg-deb", "-x", archive, dir)
		return filepath.Join(dir, "usr/bin/hsm-signer")
	case ".rpm":
		command(t, "sh", "-euc", `rpm2archive - <"$1" | tar -xzf - -C "$2"`, "sh", archive, dir)
		return filepath.Join(dir, "usr/bin/hsm-signer")
	}
	command(t, "tar", "-xzf", archive, "-C", dir)
	return only(t, dir, "*/bin/hsm-signer")
}

// licensesPattern is where the licenses are, from the directory above the binary's.
var licensesPattern = map[string]string{".gz": licensesFile,
	".deb": "share/doc/hsm-signer/" + licensesFile, ".rpm": "share/doc/hsm-signer/" + licensesFile}

// listsAllModules compares each bill of materials, and the licenses, with "go version -m" of the
// binary.
func listsAllModules(t *testing.T, dir string) {
	// The image has the same binary.
	for _, pattern := range []string{"*.tar.gz", "*.deb", "*.rpm"} {
		files := must.Get(filepath.Glob(filepath.Join(dir, pattern)))(t)
		if len(files) == 0 {
			t.Errorf("there is no %s", pattern)
		}
		for _, name := range files {
			want, binary := []string{"stdlib"}, unpacked(t, name)
			licenses := must.Get(os.ReadFile(only(t, filepath.Join(filepath.Dir(binary), ".."),
				licensesPattern[filepath.Ext(name)])))(t)
			for line := range strings.Lines(command(t, "go", "version", "-m", binary)) {
				f := strings.Fields(line)
				if f[0] == "mod" || f[0] == "dep" {
					want = append(want, f[1])
				}
				if f[0] == "dep" && !bytes.Contains(licenses, []byte("\n"+f[1]+" "+f[2]+"\n")) {
					t.Errorf("%s has no license of %s", name, f[1])
				}
			}
			slices.Sort(want)
			for form, got := range listed(t, name) {
				if !slices.Equal(got, want) || len(want) < 50 {
					t.Errorf("%s lists in %s\n%q\nand has\n%q", name, form, got, want)
				}
			}
		}
	}
}

// listed returns the sorted names in both bills of materials of a file.
func listed(t *testing.T, name string) map[string][]string {
	t.Helper()
	var spdx spdxDocument
	var cdx cdxDocument
	for extension, document := range map[string]any{".spdx.json": &spdx, ".cdx.json": &cdx} {
		must.OK(t, json.Unmarshal(must.Get(os.ReadFile(name+extension))(t), document))
	}
	names := map[string][]string{}
	for _, p := range spdx.Packages[1:] {
		names["SPDX"] = append(names["SPDX"], p.Name)
	}
	for _, c := range cdx.Components {
		names["CycloneDX"] = append(names["CycloneDX"], c.Name)
	}
	for _, list := range names {
		slices.Sort(list)
	}
	return names
}

func runsOnARM64(t *testing.T, dir string) {
	for _, pattern := range []string{"hsm-signer_*_linux_arm64.tar.gz", "*_arm64.deb",
		"*.aarch64.rpm"} {
		out := command(t, "qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu",
			unpacked(t, only(t, dir, pattern)), "version")
		if !strings.HasPrefix(out, "hsm-signer "+checkedVersion+"\n") ||
			!strings.Contains(out, "linux/arm64") {
			t.Errorf("%s: version says %q", pattern, out)
		}
	}
}

// isAnImage reads the image as a registry's client does, and runs it if there is a Docker engine.
func isAnImage(t *testing.T, dir string) {
	file := only(t, dir, "*_image.tar")
	var shown struct {
		Labels       map[string]string
		Architecture string
	}
	must.OK(t, json.Unmarshal([]byte(command(t, "skopeo", "inspect", "--override-arch=amd64",
		"oci-archive:"+file)), &shown))
	if shown.Labels[annotation+"version"] != checkedVersion || shown.Architecture != "amd64" {
		t.Errorf("skopeo shows %+v", shown)
	}
	if _, err := run(t.Context(), ".", nil, "docker", "version"); err != nil {
		t.Logf("there is no Docker engine here, and so the image was not run: %v", err)
		return
	}
	const name = "hsm-signer-release-check:latest"
	command(t, "skopeo", "copy", "--quiet", "--override-arch=amd64", "oci-archive:"+file,
		"docker-daemon:"+name)
	out := command(t, "docker", "run", "--rm", "--read-only", "--cap-drop=ALL", "--network=none",
		"--security-opt=no-new-privileges", name, "version")
	if !strings.HasPrefix(out, "hsm-signer "+checkedVersion+"\n") {
		t.Errorf("version says %q", out)
	}
	user := command(t, "docker", "run", "--rm", "--entrypoint=/usr/bin/stat", name,
		"--format=%u %a",
		"/var/lib/hsm-signer")
	if user != "65532 700" {
		t.Errorf("the journal's directory is %q", user)
	}
}

// isAnRPMPackage installs the package into an empty root, whose scripts cannot run there.
func isAnRPMPackage(t *testing.T, dir string) {
	file, root := only(t, dir, "*.x86_64.rpm"), t.TempDir()
	info := command(t, "rpm", "-qp", "--nosignature", "--queryformat",
		"%{NAME} %{VERSION} %{RELEASE} %{ARCH} %{LICENSE} %{BUILDHOST}", file)
	if info != "hsm-signer 1.2.3 1 x86_64 Apache-2.0 localhost" {
		t.Errorf("rpm says %q", info)
	}
	requires := command(t, "rpm", "-qp", "--nosignature", "--requires", file)
	if !strings.Contains(requires, "libc.so.6(GLIBC_2.") {
		t.Errorf("it requires %q", requires)
	}
	for _, args := range [][]string{{"--initdb"},
		{"--install", "--nosignature", "--nodeps", "--noscripts", file}, {"--verify", "--nodeps",
			"--noscripts", "hsm-signer"}} {
		command(t, "rpm", append([]string{"--root", root}, args...)...)
	}
	if out := command(t, filepath.Join(root, "usr/bin/hsm-signer"), "version"); !strings.HasPrefix(
		out, "hsm-signer "+checkedVersion+"\n") {
		t.Errorf("version says %q", out)
	}
	command(t, "rpm", "--root", root, "--erase", "--noscripts", "hsm-signer")
	if _, err := os.Stat(filepath.Join(root, "usr/bin/hsm-signer")); err == nil {
		t.Error("the binary is not removed")
	}
}

// isADebianPackage installs, upgrades, removes and purges the package in a root with Debian. The
// root has systemd's tools, and systemd does not run there.
func isADebianPackage(t *testing.T, earlier, dir string) {
	root := t.TempDir()
	command(t, "mmdebstrap", "--quiet", "--variant=minbase", "--include=systemd", debianSuite, root)
	for to, from := range map[string]string{"earlier.deb": only(t, earlier, "*_amd64.deb"),
		"release.deb": only(t, dir, "*_amd64.deb")} {
		command(t, "cp", from, filepath.Join(root, to))
	}
	inside := func(script string) string {
		t.Helper()
		return command(t, "unshare", "--mount", "sh", "-euc", `mount -t proc proc "$1/proc"
			exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -euc "$2"`, "sh", root, script)
	}
	for _, step := range []struct{ script, want string }{
		{"dpkg -i /earlier.deb >&2; hsm-signer version | head -n 1", "hsm-signer " + earlierVersion},
		{"getent group hsm-signer-credential | cut -d: -f1; stat -c '%a %U' /etc/hsm-signer",
			"hsm-signer-credential\n755 root"},
		{"systemd-analyze verify hsm-signer.service hsm-signer-credential.timer 2>&1", ""},
		{"ls /usr/share/hsm-signer/deploy/base/rbac.yaml; ls /usr/share/man/man1 | " +
			"grep -c '^hsm-signer.*[.]1[.]gz$' | sed 's/[1-9][0-9]/many/'",
			"/usr/share/hsm-signer/deploy/base/rbac.yaml\nmany"},
		{"mkdir -p /var/lib/hsm-signer; touch /var/lib/hsm-signer/journal; " +
			"echo 1234 >/etc/hsm-signer/pin; chmod 0644 /etc/hsm-signer/pin", ""},
		{"dpkg -i /release.deb >&2; hsm-signer version | head -n 1", "hsm-signer " + checkedVersion},
		{"stat -c %a /etc/hsm-signer/pin; dpkg --verify hsm-signer", "400"},
		{"dpkg --remove hsm-signer >&2; dpkg --purge hsm-signer >&2; ls /usr/bin/hsm-signer " +
			"2>/dev/null || ls /etc/hsm-signer /var/lib/hsm-signer",
			"/etc/hsm-signer:\npin\n\n/var/lib/hsm-signer:\njournal"},
		{"find / -xdev -name '*hsm-signer*' ! -path '/proc/*' ! -path '/var/lib/dpkg/*' | sort",
			"/etc/hsm-signer\n/var/lib/hsm-signer"},
	} {
		if out := inside(step.script); out != step.want {
			t.Errorf("%s: %q, not %q", step.script, out, step.want)
		}
	}
	if t.Failed() {
		fmt.Fprintln(t.Output(), command(t, "dpkg-deb", "-c", filepath.Join(root, "release.deb")))
	}
}
