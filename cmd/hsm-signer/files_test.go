package main

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
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

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
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: newSoftCA(t).cert.Raw})
	public, _, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	der, err := x509.MarshalPKIXPublicKey(public)
	must(t, err)
	for name, text := range map[string]string{
		"pin": "1234\n", "ca.crt": string(ca), "kubeconfig": testKubeconfig,
		"checkpoint.pub": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	for _, s := range slices.Concat(serviceSettings, tokenSettings, logSettings) {
		t.Setenv(s.env, "")
	}
	for variable, value := range map[string]string{
		"KUBERNETES_SERVICE_HOST": "", "PKCS11_PIN": "",
		"SIGNER_NAME": "example.com/calico", "PKCS11_MODULE": "/none.so", "PKCS11_TOKEN_LABEL": "ca",
		"PKCS11_PIN_FILE": dir + "/pin", "CA_KEY_LABEL": "ca", "CA_CERT_FILE": dir + "/ca.crt",
		"KUBECONFIG": dir + "/kubeconfig", "STATE_DIR": dir + "/state",
	} {
		t.Setenv(variable, value)
	}
	return dir
}

// load reads and checks the configuration of a command.
func load(t *testing.T) (*config, []string) {
	t.Helper()
	command := newRunCommand()
	command.SetContext(t.Context())
	c, faults := readConfig(command, slices.Concat(serviceSettings, tokenSettings, logSettings))
	c.loadParts(faults)
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
	for _, s := range slices.Concat(serviceSettings, tokenSettings, logSettings) {
		t.Run(s.env, func(t *testing.T) {
			if strings.HasPrefix(s.env, "CHECKPOINT_") {
				t.Setenv("CHECKPOINT_PUBLIC_KEY_FILE", dir+"/checkpoint.pub")
			}
			if s.env == "CHECKPOINT_PUBLIC_KEY_FILE" || s.env == "CHECKPOINT_INTERVAL" {
				t.Setenv("CHECKPOINT_KEY_LABEL", "c")
			}
			if strings.HasPrefix(s.env, "PKCS11_TOKEN") || s.env == "PKCS11_SLOT" {
				t.Setenv("PKCS11_TOKEN_LABEL", "")
			}
			if strings.HasPrefix(s.env, "CA_KEY") {
				t.Setenv("CA_KEY_LABEL", "")
			}
			t.Setenv(s.env, "/no such value/")
			_, faults := load(t)
			if len(faults) > 1 || len(faults) == 1 && !strings.HasPrefix(faults[0], s.env+": ") {
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
		must(t, os.Chmod(filepath.Join(dir, c.name), c.mode))
		for _, pod := range []bool{false, true} {
			want, warning := c.outside, ""
			if pod {
				t.Setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
				t.Setenv("KUBERNETES_SERVICE_PORT", "1")
				want, warning = c.inside, c.warning
			}
			config, faults := load(t)
			if want == "" {
				requireFaults(t, faults)
			} else {
				requireFaults(t, faults, want)
				if len(faults) > 0 && !strings.HasPrefix(faults[0], c.variable+": ") {
					t.Error(faults[0])
				}
			}
			text := strings.Join(config.warnings, "\n")
			if warning == "" && text != "" || !strings.Contains(text, warning) {
				t.Errorf("%s %04o, in a pod %t: warnings %q; want %q", c.name, c.mode, pod, text, warning)
			}
		}
	}
}

// A PIN file is checked again before each login.
func TestPINFileIsCheckedAtEachLogin(t *testing.T) {
	dir := goodConfiguration(t)
	c, faults := load(t)
	requireFaults(t, faults)
	must(t, os.Chmod(filepath.Join(dir, "pin"), 0o644))
	if _, err := c.token.PIN(); err == nil || !strings.Contains(err.Error(), "can be read by everyone") {
		t.Errorf("%v", err)
	}
}

// STATE_DIR is resolved once: a link that is changed later leads nowhere else.
func TestStateDirIsResolved(t *testing.T) {
	dir := goodConfiguration(t)
	real, err := filepath.EvalSymlinks(dir)
	must(t, err)
	must(t, os.Mkdir(filepath.Join(dir, "private"), 0o700))
	must(t, os.Symlink("private", filepath.Join(dir, "state")))
	c, faults := load(t)
	requireFaults(t, faults)
	if want := filepath.Join(real, "private"); c.stateDir != want {
		t.Errorf("%s; want %s", c.stateDir, want)
	}
	must(t, os.Chmod(dir, 0o777))
	_, faults = load(t)
	if !slices.ContainsFunc(faults, func(fault string) bool {
		return strings.HasPrefix(fault, "STATE_DIR: ") && strings.Contains(fault, "can be replaced by everyone")
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
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
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
	config, err := c.clientConfig()
	must(t, err)
	if config.Host != "https://127.0.0.1:2" {
		t.Errorf("%s; want the server of the first file", config.Host)
	}
}

// The files of keys that a kubeconfig names are secrets too.
func TestFilesThatAKubeconfigNames(t *testing.T) {
	dir := goodConfiguration(t)
	token := filepath.Join(dir, "token")
	must(t, os.WriteFile(token, []byte("t"), 0o600))
	must(t, os.Chmod(token, 0o644))
	text := strings.Replace(testKubeconfig, "{token: t}", "{tokenFile: token}", 1)
	must(t, os.WriteFile(filepath.Join(dir, "kubeconfig"), []byte(text), 0o600))
	_, faults := load(t)
	requireFaults(t, faults, "token can be read by everyone")
	must(t, os.Chmod(token, 0o600))
	_, faults = load(t)
	requireFaults(t, faults)
}

// Root may check the state directory of the user as whom hsm-signer runs, as under systemd, and not
// run with it.
func TestStateDirOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		return // only root can give a directory away, and only for root it makes a difference
	}
	dir := goodConfiguration(t)
	must(t, os.Mkdir(filepath.Join(dir, "private"), 0o700))
	must(t, os.Chown(filepath.Join(dir, "private"), 4711, 4711))
	must(t, os.Symlink("private", filepath.Join(dir, "state")))
	_, faults := load(t)
	requireFaults(t, faults, "STATE_DIR: "+dir+"/state belongs to user 4711")

	c := &config{stateDir: filepath.Join(dir, "state"), forOwner: true}
	checked := &configFaults{}
	c.resolveStateDir(checked)
	requireFaults(t, *checked)
	var details []string
	c.checkState(func(_, detail string, err error) {
		details = append(details, detail)
		must(t, err)
	})
	if len(details) != 1 || !strings.Contains(details[0], "only user 4711") {
		t.Errorf("%q", details)
	}
}

// What "check" says of a state directory that "run" could not use.
func TestCheckOfTheStateDir(t *testing.T) {
	dir := goodConfiguration(t)
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	for path, want := range map[string]string{
		"none": "", "none/deep/down": "", ".": "", "file/below": "not a directory",
	} {
		c := &config{stateDir: dir + "/" + path, forOwner: true}
		faults := &configFaults{}
		c.resolveStateDir(faults)
		c.checkState(func(_, _ string, err error) { faults.add("check", err) })
		if text := strings.Join(*faults, "\n"); want == "" && text != "" || !strings.Contains(text, want) {
			t.Errorf("%s: %q; want %q", path, text, want)
		}
	}
}
