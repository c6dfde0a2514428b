package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// mint returns a token of hsm-signer's service account that is valid for ten minutes, the least
// that the API allows, and revoke, which makes it invalid and waits until the API server refuses
// it.
func mint(t *testing.T) (token string, revoke func()) {
	t.Helper()
	core := shared.Cluster.Client().CoreV1()
	secret := must.Get(core.Secrets("hsm-signer").Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "credential-"}}, metav1.CreateOptions{}))(t)
	lifetime := int64(600)
	answer := must.Get(core.ServiceAccounts("hsm-signer").CreateToken(t.Context(), "hsm-signer",
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			ExpirationSeconds: &lifetime, BoundObjectRef: &authenticationv1.BoundObjectReference{
				Kind: "Secret", APIVersion: "v1", Name: secret.Name, UID: secret.UID},
		}}, metav1.CreateOptions{}))(t)
	token = answer.Status.Token
	return token, func() {
		t.Helper()
		must.OK(t, core.Secrets("hsm-signer").Delete(t.Context(), secret.Name,
			metav1.DeleteOptions{}))
		client := must.Get(kubernetes.NewForConfig(shared.Cluster.ConfigFor(token)))(t)
		must.Eventually(t, "the token to be refused", func(ctx context.Context) (bool, error) {
			_, err := client.AuthenticationV1().SelfSubjectReviews().Create(ctx,
				&authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
			return apierrors.IsUnauthorized(err), nil
		})
	}
}

// kubeconfigWith writes a kubeconfig for the cluster whose user has this entry, in YAML's flow
// style, and returns the setting for it and its path.
func kubeconfigWith(t *testing.T, user string) (setting, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "kubeconfig")
	must.OK(t, testenv.WriteKubeconfig(path, shared.Cluster.ConfigFor("TOKEN")))
	text := must.Get(os.ReadFile(path))(t)
	write(t, path, strings.Replace(string(text), "token: TOKEN", user, 1))
	return "KUBECONFIG=" + path, path
}

// write replaces a file at once, as programs do that renew credentials.
func write(t *testing.T, path, text string) {
	t.Helper()
	must.OK(t, os.WriteFile(path+".new", []byte(text), 0o600))
	must.OK(t, os.Rename(path+".new", path))
}

// expiry returns when the token of the process expires, according to its metric.
func expiry(ctx context.Context, t *testing.T, d *testenv.Daemon) time.Time {
	t.Helper()
	const series = `hsm_signer_credential_not_after_timestamp_seconds{kind="token"}`
	seconds := metric(t, d.Metrics(ctx), series)
	if seconds < 0 {
		t.Fatal("there is no metric of the credential")
	}
	return time.Unix(int64(seconds), 0)
}

// A token in a file that has ten minutes left is reported by check, in /readyz, by the metric of
// the alert and on the status page, and its successor is used without a restart.
func TestTokenFileIsRenewedWithoutARestart(t *testing.T) {
	old, revoke := mint(t)
	file := filepath.Join(t.TempDir(), "token")
	write(t, file, old)
	setting, _ := kubeconfigWith(t, "tokenFile: "+file)
	checked := command(t, ca, []string{setting}, "check").prints(t, 0)
	if !regexp.MustCompile(`(?m)^warning  credential +token of system:serviceaccount:` +
		`hsm-signer:hsm-signer: expires in 9 minutes, at \S+; renew it`).MatchString(checked) {
		t.Errorf("check:\n%s", checked)
	}
	d := startReady(t, ca, setting)
	waitMetrics(t, d, "\n"+`hsm_signer_credential_lifetime_seconds{kind="token"} 600`+"\n")
	first := expiry(t.Context(), t, d)
	if left := time.Until(first); left <= 0 || left > 10*time.Minute {
		t.Errorf("the metric says that the token expires in %s", left)
	}
	if _, body, _ := d.Readyz(t.Context()); !strings.Contains(body,
		"[+] credential ok: but renew it: token of system:serviceaccount:hsm-signer:hsm-signer") {
		t.Errorf("/readyz:\n%s", body)
	}
	if page := statusPage(t, d); !strings.Contains(page, "must be renewed") {
		t.Errorf("the status page:\n%s", page)
	}
	requireIssues(t)

	token := must.Get(shared.Cluster.UnboundToken(t.Context(), "hsm-signer", "hsm-signer"))(t)
	write(t, file, token)
	must.Eventually(t, "the new token to be in use", func(ctx context.Context) (bool, error) {
		return expiry(ctx, t, d).After(first), nil
	})
	revoke()
	must.OK(t, d.WaitReady(t.Context()))
	requireIssues(t)
	if log := d.Log(); !strings.Contains(log, "the credential for the API server was replaced") ||
		strings.Contains(log, token) || strings.Contains(log, old) {
		t.Errorf("log:\n%s", log)
	}
}

// statusPage returns the text of the status page.
func statusPage(t *testing.T, d *testenv.Daemon) string {
	t.Helper()
	_, text := getText(t, must.Get(d.StatusPage(t.Context()))(t))
	return text
}

// A changed kubeconfig may bring another token, and neither another server nor another CA.
func TestKubeconfigMayChangeItsCredentialOnly(t *testing.T) {
	first, revoke := mint(t)
	setting, path := kubeconfigWith(t, "token: "+first)
	d := startReady(t, ca, setting)
	good := must.Get(os.ReadFile(path))(t)
	host := shared.Cluster.Config().Host
	authority := regexp.MustCompile(`certificate-authority-data: \S+`)
	for want, text := range map[string]string{
		"it names another API server, https://127.0.0.1:1 instead of " + host: strings.Replace(
			string(good), host, "https://127.0.0.1:1", 1),
		"it names another CA for the API server": authority.ReplaceAllString(string(good),
			"insecure-skip-tls-verify: true"),
		"it impersonates another user": strings.Replace(string(good), "token:",
			"as: system:admin\n    token:", 1),
		"users": "users: 7",
	} {
		write(t, path, text)
		must.Eventually(t, "the kubeconfig to be refused", func(ctx context.Context) (bool, error) {
			ready, body, err := d.Readyz(ctx)
			return ready && strings.Contains(body,
				"KUBECONFIG in its present form is refused: ") && strings.Contains(body, want), err
		})
		waitMetrics(t, d, "\nhsm_signer_kubeconfig_refused 1\n")
	}
	requireEvent(t, testenv.SignerName, "KubeconfigRefused")
	requireIssues(t)
	second, _ := mint(t)
	write(t, path, strings.Replace(string(good), first, second, 1))
	waitMetrics(t, d, "\nhsm_signer_kubeconfig_refused 0\n")
	waitLog(t, d, "the credential for the API server was replaced")
	revoke()
	requireIssues(t)
}

// A token that has expired fails check, and hsm-signer is not ready and says why.
func TestExpiredTokenIsNotReady(t *testing.T) {
	expired := "x.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6YTpiIiwiaWF0IjoxNjAwMDAwMDAwLCJleHAi" +
		"OjE2MDAwMDM2MDB9.x"
	setting, _ := kubeconfigWith(t, "token: "+expired)
	requireCheck(t, []string{setting}, 2, "failed   credential                         token of "+
		"system:serviceaccount:a:b: expired at 2020-09-13T13:26:40Z")
	d := start(t, ca, setting)
	must.OK(t, d.WaitNotReady(t.Context(), "[-] credential: token of system:serviceaccount:a:b: "+
		"expired at"))
}

// An exec plugin gets neither the PIN nor hsm-signer's other variables, and is run again when the
// API server refuses its token. A plugin that others can write is refused.
func TestExecPlugin(t *testing.T) {
	dir := t.TempDir()
	file, seen, plugin := filepath.Join(dir, "token"), filepath.Join(dir, "seen"),
		filepath.Join(dir, "plugin")
	old, revoke := mint(t)
	write(t, file, old)
	must.OK(t, os.WriteFile(plugin, []byte(`#!/bin/sh -eu
{ env; echo "arguments: $*"; ls -l /proc/$$/fd; } >`+seen+`
printf '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"%s"}}' \
	"$(cat `+file+`)"
`), 0o700))
	setting, _ := kubeconfigWith(t, fmt.Sprintf("exec: {apiVersion: client.authentication.k8s.io/v1, "+
		"interactiveMode: Never, command: %s, args: [one, two], "+
		"env: [{name: REGION, value: north}]}", plugin))
	requireCheck(t, []string{setting}, 0, "ok       credential                         token of "+
		"system:serviceaccount:hsm-signer:hsm-signer, from an exec plugin: expires in 9 minutes")
	d := startReady(t, ca, setting)
	requireIssues(t)
	environment := must.Get(os.ReadFile(seen))(t)
	for _, want := range []string{"REGION=north", "PATH=/", "KUBERNETES_EXEC_INFO={",
		"arguments: one two"} {
		if !strings.Contains(string(environment), want) {
			t.Errorf("the plugin does not see %q:\n%s", want, environment)
		}
	}
	for _, secret := range []string{shared.Token.PIN, "PKCS11_", "SOFTHSM2_CONF", "KUBECONFIG",
		"HSM_SIGNER"} {
		if strings.Contains(string(environment), secret) {
			t.Errorf("the plugin sees %q:\n%s", secret, environment)
		}
	}
	// What a command does not read itself, it does not pass on: its pipe with the PIN.
	pipes := func(pin string) int {
		command(t, ca, []string{setting, "PKCS11_PIN=" + pin}, "policy", "explain", "--live",
			"nothing")
		text, err := os.ReadFile(seen)
		must.OK(t, errors.Join(err, os.Remove(seen)))
		return strings.Count(string(text), "-> pipe:")
	}
	if with, without := pipes(shared.Token.PIN), pipes(""); with != without {
		t.Errorf("the plugin has %d pipes if there is a PIN, else %d", with, without)
	}
	fresh, _ := mint(t)
	write(t, file, fresh)
	revoke()
	requireIssues(t)
	must.OK(t, d.WaitReady(t.Context()))

	must.OK(t, os.Chmod(plugin, 0o777))
	command(t, ca, []string{setting}, "run").complains(t, 4,
		"KUBECONFIG: "+plugin+" can be written by everyone")
}

// The renewal's account may mint tokens of hsm-signer's, which may not mint its own.
func TestCredentialRenew(t *testing.T) {
	manifests := must.Get(os.ReadFile("../../deploy/systemd/renewal.yaml"))(t)
	must.OK(t, shared.Cluster.Apply(t.Context(), manifests))
	token, err := shared.Cluster.UnboundToken(t.Context(), "hsm-signer", "hsm-signer-renewal")
	must.OK(t, err)
	renewal, _ := kubeconfigWith(t, "token: "+token)
	file := filepath.Join(t.TempDir(), "token")
	stdout := ""
	must.Eventually(t, "the rights to be in effect", func(ctx context.Context) (bool, error) {
		out, _, code := shared.Command(ctx, ca, []string{renewal}, "credential", "renew", "--out",
			file, "--lifetime", "12h")
		stdout = out
		return code == 0, nil
	})
	if !strings.Contains(stdout, file+" holds a token of "+
		"system:serviceaccount:hsm-signer:hsm-signer that expires in 11 hours") {
		t.Errorf("it prints %s", stdout)
	}
	info := must.Get(os.Stat(file))(t)
	if info.Mode() != 0o440 {
		t.Errorf("the file's mode is %s", info.Mode())
	}
	setting, _ := kubeconfigWith(t, "tokenFile: "+file)
	requireCheck(t, []string{setting}, 0)
	for _, c := range []struct {
		setting, account string
		code             int
		want             string
	}{
		{setting, "hsm-signer/hsm-signer", 2, "never ends once it is stolen"},
		{renewal, "hsm-signer/hsm-signer-renewal", 2, "never ends once it is stolen"},
		{renewal, "hsm-signer/default", 1, "apply deploy/systemd/renewal.yaml"},
		{renewal, "hsm-signer", 4, "is not NAMESPACE/NAME"},
	} {
		command(t, ca, []string{c.setting}, "credential", "renew", "--out", file,
			"--service-account", c.account).complains(t, c.code, c.want)
	}
}
