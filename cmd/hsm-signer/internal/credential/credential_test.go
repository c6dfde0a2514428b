package credential

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/cmd/hsm-signer/internal/trustedfile"
	"hsm-signer/internal/must"
)

var testRules = trustedfile.Rules{Limit: 1 << 20, Stake: "which API server is believed"}

// jwt returns a token with these claims.
func jwt(claims string) string {
	return "x." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".x"
}

func TestValidityOfATokenIsRead(t *testing.T) {
	for token, want := range map[string]Expiry{
		jwt(`{"sub":"a","iat":1000,"exp":4600}`): {Kind: Token, Subject: "a",
			NotBefore: time.Unix(1000, 0), NotAfter: time.Unix(4600, 0)},
		jwt(`{"sub":"a","iat":1000,"nbf":1600.5,"exp":4600}`): {Kind: Token, Subject: "a",
			NotBefore: time.Unix(1600, 0), NotAfter: time.Unix(4600, 0)},
		jwt(`{"sub":"a"}`):        {Kind: Token, Subject: "a"},
		jwt(`{"exp":"tomorrow"}`): {Kind: Token},
		"x.!.x":                   {Kind: Token},
		"opaque":                  {Kind: Token},
	} {
		if got := ofToken(token); got != want {
			t.Errorf("%s: %+v; want %+v", token, got, want)
		}
	}
	if e := ofToken(jwt(`{"sub":"a"}`)); !e.Eternal() {
		t.Errorf("%+v never expires", e)
	}
}

func TestValidityOfACertificateIsRead(t *testing.T) {
	cert := fixture.NewCA(t).Certificate
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	want := Expiry{Kind: ClientCertificate, Subject: cert.Subject.CommonName,
		NotBefore: cert.NotBefore, NotAfter: cert.NotAfter}
	if got := ofCertificate(text); got != want {
		t.Errorf("%+v; want %+v", got, want)
	}
	if got := ofCertificate([]byte("nonsense")); got != (Expiry{Kind: ClientCertificate}) {
		t.Errorf("%+v", got)
	}
}

// kubelet renews a pod's token of an hour when twelve minutes are left.
func TestWhenACredentialIsToBeRenewed(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for _, c := range []struct {
		lifetime, left time.Duration
		plugin         bool
		soon, expired  bool
	}{
		{time.Hour, 12 * time.Minute, false, false, false},
		{time.Hour, 10 * time.Minute, false, true, false},
		{24 * time.Hour, 4 * time.Hour, false, false, false},
		{24 * time.Hour, 2 * time.Hour, false, true, false},
		{365 * 24 * time.Hour, 40 * 24 * time.Hour, false, true, false},
		{time.Hour, 0, false, true, true},
		{time.Hour, -time.Minute, true, false, false},
	} {
		e := Expiry{Kind: Token, NotAfter: now.Add(c.left), NotBefore: now.Add(c.left - c.lifetime),
			Plugin: c.plugin}
		if e.Soon(now) != c.soon || e.Expired(now) != c.expired {
			t.Errorf("%+v: soon %t, expired %t", c, e.Soon(now), e.Expired(now))
		}
	}
	if unknown := (Expiry{Kind: Token}); unknown.Soon(now) || unknown.Expired(now) {
		t.Error("a token without an end is to be renewed")
	}
}

// A recorder is an API server that records the tokens that it gets.
type recorder struct {
	*httptest.Server
	tokens []string
}

func newRecorder(t *testing.T) *recorder {
	r := &recorder{}
	r.Server = httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		r.tokens = append(r.tokens, strings.TrimPrefix(q.Header.Get("Authorization"), "Bearer "))
	}))
	t.Cleanup(r.Close)
	return r
}

// kubeconfig returns the text of a kubeconfig whose user has this entry.
func (r *recorder) kubeconfig(user string) string {
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw})
	return fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c,
contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {%s}}],
clusters: [{name: c, cluster: {server: "%s", certificate-authority-data: %s}}]}`, user, r.URL,
		base64.StdEncoding.EncodeToString(authority))
}

// presented returns the token that the source presents.
func (r *recorder) presented(t *testing.T, s *Source) string {
	t.Helper()
	client, err := s.Client()
	must.OK(t, err)
	_, err = client.GetJSON(t.Context(), "/")
	must.OK(t, err)
	return r.tokens[len(r.tokens)-1]
}

// lookTwice applies what the files say: a change must be seen twice.
func lookTwice(s *Source) { s.Look(); s.Look() }

// A token file is applied when two looks in a row find the same, and only while the file passes the
// owner rules.
func TestTokenFileIsReadByTheRules(t *testing.T) {
	r, dir := newRecorder(t), t.TempDir()
	write := func(name, text string) {
		must.OK(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	write("token", "first\n")
	write("kubeconfig", r.kubeconfig("tokenFile: token"))
	s, err := Open(Files{List: filepath.Join(dir, "kubeconfig"), Rules: testRules}, nil)
	must.OK(t, err)
	if token := r.presented(t, s); token != "first" || s.Server() != r.URL {
		t.Errorf("presented %q to %s", token, s.Server())
	}
	write("token", "second")
	if s.Look(); r.presented(t, s) != "first" {
		t.Error("a token that was seen once is in use")
	}
	if s.Look(); r.presented(t, s) != "second" {
		t.Error("the second token is not in use")
	}
	for _, c := range []struct {
		text string
		mode os.FileMode
		want string
	}{
		{"third", 0o606, "can be written by everyone"},
		{" \n", 0o600, "is empty"},
	} {
		write("token", c.text)
		must.OK(t, os.Chmod(filepath.Join(dir, "token"), c.mode))
		if lookTwice(s); s.Refusal() == nil || !strings.Contains(s.Refusal().Error(), c.want) ||
			r.presented(t, s) != "second" {
			t.Errorf("%q, mode %04o: %v", c.text, c.mode, s.Refusal())
		}
	}
	write("token", "third")
	if lookTwice(s); s.Refusal() != nil || r.presented(t, s) != "third" {
		t.Errorf("the good token is not in use: %v", s.Refusal())
	}
}

func TestOnlyTheCredentialMayChange(t *testing.T) {
	r, other := newRecorder(t), newRecorder(t)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	write := func(text string) { must.OK(t, os.WriteFile(file, []byte(text), 0o600)) }
	good := r.kubeconfig("token: first")
	write(good)
	s, err := Open(Files{List: file, Rules: testRules}, nil)
	must.OK(t, err)
	for text, want := range map[string]string{
		other.kubeconfig("token: second"): "names another API server, " + other.URL,
		strings.Replace(good, "certificate-authority-data:",
			"insecure-skip-tls-verify: true, x:", 1): "names another CA",
		strings.Replace(good,
			"cluster: {server", "cluster: {proxy-url: 'http://127.0.0.1:1', server",
			1): "in another way",
		r.kubeconfig("token: second, as: root"): "impersonates another user",
	} {
		write(text)
		if lookTwice(s); s.Refusal() == nil || !strings.Contains(s.Refusal().Error(), want) ||
			r.presented(t, s) != "first" {
			t.Errorf("%s:\n%v; want %q", text, s.Refusal(), want)
		}
	}
	if write(good); true {
		lookTwice(s)
	}
	if s.Refusal() != nil || r.presented(t, s) != "first" {
		t.Errorf("the file from before is refused: %v", s.Refusal())
	}
	if len(other.tokens) > 0 {
		t.Errorf("another server got %q", other.tokens)
	}
}

// A plugin gets what programs need, and the variables that the kubeconfig sets.
func TestEnvironmentOfAPlugin(t *testing.T) {
	got := cleaned([]string{"PATH=/bin", "PKCS11_PIN=1", "PKCS11_URI=u", "HOME=/", "REGION=north",
		"SECRET=s", "KUBERNETES_EXEC_INFO={}"}, []string{"REGION"})
	want := []string{"PATH=/bin", "HOME=/", "REGION=north", "KUBERNETES_EXEC_INFO={}"}
	if !slices.Equal(got, want) {
		t.Errorf("%q; want %q", got, want)
	}
}

func TestFailureOfAPluginIsReported(t *testing.T) {
	var out, errs strings.Builder
	code := RunPlugin(t.Context(), []string{"hsm-signer", pluginArgument, "", "/bin/sh", "-c",
		"echo half; exit 7"}, &out, &errs)
	if code != 7 || out.String() != "" ||
		errs.String() != "the credential plugin /bin/sh failed: exit status 7\n" {
		t.Errorf("exit code %d: %q, %q", code, out.String(), errs.String())
	}
}
