package service

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/internal/must"
)

const testKubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`

// goodConfiguration sets every variable that "run" needs, outside a pod, and returns the directory
// with its files: pin, ca.crt and kubeconfig.
func goodConfiguration(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: fixture.NewCA(t).Certificate.Raw})
	public, _, err := ed25519.GenerateKey(rand.Reader)
	must.OK(t, err)
	der, err := x509.MarshalPKIXPublicKey(public)
	must.OK(t, err)
	for name, text := range map[string]string{
		"pin": "1234\n", "ca.crt": string(ca), "kubeconfig": testKubeconfig,
		"checkpoint.pub": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
	} {
		must.OK(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	for _, s := range allSettings {
		t.Setenv(s.Env, "")
	}
	for variable, value := range map[string]string{
		"KUBERNETES_SERVICE_HOST": "", "PKCS11_PIN": "",
		"SIGNER_NAME": "example.com/calico", "PKCS11_MODULE": "/none.so",
		"PKCS11_TOKEN_LABEL": "ca",
		"PKCS11_PIN_FILE":    dir + "/pin", "CA_KEY_LABEL": "ca", "CA_CERT_FILE": dir + "/ca.crt",
		"KUBECONFIG": dir + "/kubeconfig", "STATE_DIR": dir + "/state",
	} {
		t.Setenv(variable, value)
	}
	return dir
}

// load reads and checks the configuration of a command.
func load(t *testing.T) (*config.Config, []string) {
	t.Helper()
	command := &cobra.Command{}
	config.AddFlags(command, allSettings)
	c, faults := config.Read(command, allSettings)
	Load(c, faults, nil)
	return c, *faults
}

func requireFaults(t *testing.T, faults []string, want ...string) {
	t.Helper()
	if len(faults) != len(want) {
		t.Errorf("%d faults; want %d:\n%s", len(faults), len(want), strings.Join(faults, "\n"))
		return
	}
	for i, fault := range faults {
		if !strings.Contains(fault, want[i]) {
			t.Errorf("%q; want %q", fault, want[i])
		}
	}
}

// One value that is wrong makes one fault, which names its variable.
func TestOneWrongValueIsOneFault(t *testing.T) {
	dir := goodConfiguration(t)
	_, faults := load(t)
	requireFaults(t, faults)
	for _, s := range allSettings {
		t.Run(s.Env, func(t *testing.T) {
			if strings.HasPrefix(s.Env, "CHECKPOINT_") {
				t.Setenv("CHECKPOINT_PUBLIC_KEY_FILE", dir+"/checkpoint.pub")
			}
			if s.Env == "CHECKPOINT_PUBLIC_KEY_FILE" || s.Env == "CHECKPOINT_INTERVAL" {
				t.Setenv("CHECKPOINT_KEY_LABEL", "c")
			}
			if strings.HasPrefix(s.Env, "PKCS11_TOKEN") || s.Env == "PKCS11_SLOT" {
				t.Setenv("PKCS11_TOKEN_LABEL", "")
			}
			if strings.HasPrefix(s.Env, "CA_KEY") {
				t.Setenv("CA_KEY_LABEL", "")
			}
			t.Setenv(s.Env, "/no such value/")
			_, faults := load(t)
			if len(faults) > 1 || len(faults) == 1 && !strings.HasPrefix(faults[0], s.Env+": ") {
				t.Errorf("faults:\n%s", strings.Join(faults, "\n"))
			}
		})
	}
	t.Run("KUBECONFIG unset", func(t *testing.T) {
		t.Setenv("KUBECONFIG", "")
		_, faults := load(t)
		requireFaults(t, faults, "KUBECONFIG: is not set, and this is not a pod")
	})
	t.Run("LEASE_NAMESPACE", func(t *testing.T) {
		t.Setenv("LEADER_ELECT", "true")
		t.Setenv("LEASE_NAMESPACE", "Not A Namespace")
		_, faults := load(t)
		requireFaults(t, faults, "LEASE_NAMESPACE: \"Not A Namespace\" is not the name")
	})
	t.Run("KUBECONFIG without a token in a pod", func(t *testing.T) {
		t.Setenv("KUBECONFIG", "")
		t.Setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
		t.Setenv("KUBERNETES_SERVICE_PORT", "1")
		t.Setenv("LEADER_ELECT", "false")
		_, faults := load(t)
		requireFaults(t, faults, "KUBECONFIG: is not set, and the pod has no service account token")
	})
}

// Outside a pod a secret that others can read is refused; in one, it is a warning. What others can
// write is refused everywhere.
func TestFilesOfTheConfiguration(t *testing.T) {
	const readable, writable = "can be read by everyone", "can be written by everyone"
	for _, c := range []struct {
		name, variable  string
		mode            os.FileMode
		outside, inside string // a pod
		warning         string
	}{
		{"pin", "PKCS11_PIN_FILE", 0o400, "", "", ""},
		{"pin", "PKCS11_PIN_FILE", 0o440, "", "", ""},
		{"pin", "PKCS11_PIN_FILE", 0o644, readable, "", readable},
		{"pin", "PKCS11_PIN_FILE", 0o602, writable, writable, ""},
		{"kubeconfig", "KUBECONFIG", 0o440, "", "", ""},
		{"kubeconfig", "KUBECONFIG", 0o644, readable, "", readable},
		{"kubeconfig", "KUBECONFIG", 0o602, writable, writable, ""},
		{"ca.crt", "CA_CERT_FILE", 0o644, "", "", ""},
		{"ca.crt", "CA_CERT_FILE", 0o646, writable, writable, ""},
	} {
		dir := goodConfiguration(t)
		must.OK(t, os.Chmod(filepath.Join(dir, c.name), c.mode))
		for _, pod := range []bool{false, true} {
			want, warning := c.outside, ""
			if pod {
				t.Setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
				t.Setenv("KUBERNETES_SERVICE_PORT", "1")
				want, warning = c.inside, c.warning
			}
			loaded, faults := load(t)
			if want == "" {
				requireFaults(t, faults)
			} else {
				requireFaults(t, faults, want)
				if len(faults) > 0 && !strings.HasPrefix(faults[0], c.variable+": ") {
					t.Error(faults[0])
				}
			}
			text := strings.Join(loaded.Warnings, "\n")
			if warning == "" && text != "" || !strings.Contains(text, warning) {
				t.Errorf("%s %04o, in a pod %t: warnings %q; want %q", c.name, c.mode, pod, text,
					warning)
			}
		}
	}
}

// A PIN file is checked again before each login.
func TestPINFileIsCheckedAtEachLogin(t *testing.T) {
	dir := goodConfiguration(t)
	c, faults := load(t)
	requireFaults(t, faults)
	must.OK(t, os.Chmod(filepath.Join(dir, "pin"), 0o644))
	if _, err := c.Token.PIN(); err == nil ||
		!strings.Contains(err.Error(), "can be read by everyone") {
		t.Errorf("%v", err)
	}
}

// STATE_DIR is resolved once: a link that is changed later leads nowhere else.
func TestStateDirIsResolved(t *testing.T) {
	dir := goodConfiguration(t)
	real, err := filepath.EvalSymlinks(dir)
	must.OK(t, err)
	must.OK(t, os.Mkdir(filepath.Join(dir, "private"), 0o700))
	must.OK(t, os.Symlink("private", filepath.Join(dir, "state")))
	c, faults := load(t)
	requireFaults(t, faults)
	if want := filepath.Join(real, "private"); c.StateDir != want {
		t.Errorf("%s; want %s", c.StateDir, want)
	}
	must.OK(t, os.Chmod(dir, 0o777))
	_, faults = load(t)
	if !slices.ContainsFunc(faults, func(fault string) bool {
		return strings.HasPrefix(fault, "STATE_DIR: ") &&
			strings.Contains(fault, "can be replaced by everyone")
	}) {
		t.Error(faults)
	}
}

// KUBECONFIG is a list of paths, merged as kubectl merges it; those that do not exist are left out.
func TestKubeconfigIsAList(t *testing.T) {
	dir := goodConfiguration(t)
	head, users, _ := strings.Cut(testKubeconfig, "users:")
	users, _, _ = strings.Cut(users, "contexts:")
	_, contexts, _ := strings.Cut(testKubeconfig, "contexts:")
	for name, text := range map[string]string{
		"a": head, "b": "users:" + users, "c": "contexts:" + contexts,
		"other": strings.ReplaceAll(testKubeconfig, "127.0.0.1:1", "127.0.0.1:2"),
	} {
		must.OK(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	list := func(names ...string) string {
		for i := range names {
			names[i] = filepath.Join(dir, names[i])
		}
		return strings.Join(names, string(filepath.ListSeparator))
	}
	for value, want := range map[string]string{
		list("a", "b", "c"):                 "",
		list("none", "a", "b", "c"):         "",
		list("other", "kubeconfig"):         "", // the first one to set a value wins
		list("none", "none"):                "none of the files",
		list("none"):                        "no such file",
		list("a", "b"):                      "no configuration has been provided",
		list("a") + ":" + dir + ":relative": "is not a regular file",
	} {
		t.Setenv("KUBECONFIG", value)
		_, faults := load(t)
		if want == "" {
			requireFaults(t, faults)
		} else {
			requireFaults(t, faults, want)
		}
	}
	t.Setenv("KUBECONFIG", list("other", "kubeconfig"))
	c, _ := load(t)
	_, source := c.LoadClient(&setting.Faults{}, nil)
	if server := source.Server(); server != "https://127.0.0.1:2" {
		t.Errorf("%s; want the server of the first file", server)
	}
}

// The files of keys that a kubeconfig names are secrets too.
func TestFilesThatAKubeconfigNames(t *testing.T) {
	dir := goodConfiguration(t)
	token := filepath.Join(dir, "token")
	must.OK(t, os.WriteFile(token, []byte("t"), 0o600))
	must.OK(t, os.Chmod(token, 0o644))
	text := strings.Replace(testKubeconfig, "{token: t}", "{tokenFile: token}", 1)
	must.OK(t, os.WriteFile(filepath.Join(dir, "kubeconfig"), []byte(text), 0o600))
	_, faults := load(t)
	requireFaults(t, faults, "token can be read by everyone")
	must.OK(t, os.Chmod(token, 0o600))
	_, faults = load(t)
	requireFaults(t, faults)
}

// ownedByAnother makes STATE_DIR a link to a directory of user 4711, and returns the link.
func ownedByAnother(t *testing.T) string {
	t.Helper()
	dir := goodConfiguration(t)
	must.OK(t, os.Mkdir(filepath.Join(dir, "private"), 0o700))
	must.OK(t, os.Chown(filepath.Join(dir, "private"), 4711, 4711))
	must.OK(t, os.Symlink("private", filepath.Join(dir, "state")))
	return filepath.Join(dir, "state")
}

// Root may check the state directory of the user that hsm-signer runs as, as under systemd, and not
// run with it.
func TestStateDirOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		return // only root can give a directory away, and only for root it makes a difference
	}
	dir := ownedByAnother(t)
	_, faults := load(t)
	requireFaults(t, faults, "STATE_DIR: "+dir+" belongs to user 4711")

	c := &config.Config{StateDir: dir, ForOwner: true}
	checked := &setting.Faults{}
	c.ResolveStateDir(checked)
	requireFaults(t, *checked)
}

func TestBlockedKeysFileIsChecked(t *testing.T) {
	variables := completeConfig(t)
	good, bad := strings.Repeat("0", 64)+"\n", "none\n"
	file := filepath.Join(t.TempDir(), "blocked")
	for _, c := range []struct {
		text  string
		mode  os.FileMode
		fault string
	}{
		{good, 0o644, ""},
		{good, 0o666, "can be written by everyone"},
		{bad, 0o644, "blocked: the list of blocked keys has 1 mistake(s):\n  line 1: "},
		{"", 0o644, "is empty"},
	} {
		must.OK(t, os.WriteFile(file, []byte(c.text), 0o600))
		must.OK(t, os.Chmod(file, c.mode))
		variables["BLOCKED_KEYS_FILE"] = file
		_, faults := configFaultsOf(t, variables)
		if c.fault == "" && len(faults) > 0 || c.fault != "" &&
			(len(faults) != 1 || !strings.HasPrefix(faults[0], "BLOCKED_KEYS_FILE: ") ||
				!strings.Contains(faults[0], c.fault)) {
			t.Errorf("%q, mode %04o: %q", c.text, c.mode, faults)
		}
	}
	variables["BLOCKED_KEYS_FILE"] = file + ".gone"
	if _, faults := configFaultsOf(t, variables); len(faults) != 1 ||
		!strings.HasPrefix(faults[0], "BLOCKED_KEYS_FILE: ") {
		t.Errorf("%q", faults)
	}
}
