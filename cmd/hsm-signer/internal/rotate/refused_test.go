package rotate

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/cmd/hsm-signer/internal/rotation"
	"hsm-signer/internal/must"
	"hsm-signer/issuer"
)

// The process that runs says which file of the next CA it refuses, each CA of it for itself.
func TestRefusedFileOfTheNextCA(t *testing.T) {
	mux := http.NewServeMux()
	for path, text := range map[string]string{
		"/readyz":       "[+] ca ok\n" + rotation.NextFileLine + "the one\nleads true\n",
		"/readyz/first": "first/leads true\n",
		"/readyz/other": "[-] other/ca: bad\nother/" + rotation.NextFileLine + "the other\n",
	} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			if strings.HasPrefix(text, "[-]") {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			fmt.Fprint(w, text)
		})
	}
	server := httptest.NewServer(mux)
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	for name, want := range map[string]string{"": "the one", "first": "", "other": "the other"} {
		c := &config.Config{Name: name, ListenAddress: address}
		if said, err := askRefused(t.Context(), c); err != nil || said != want {
			t.Errorf("%q: %q, %v; want %q", name, said, err, want)
		}
	}
	for want, wrong := range map[string]*config.Config{
		"/readyz/missing has the status 404":      {Name: "missing", ListenAddress: address},
		"no hsm-signer answers at LISTEN_ADDRESS": {ListenAddress: "127.0.0.1:65536"},
	} {
		said, err := askRefused(t.Context(), wrong)
		if err == nil || said != "" || !strings.Contains(err.Error(), want) {
			t.Errorf("%q, %v; want %q", said, err, want)
		}
	}
	for listened, want := range map[string]string{":8080": "localhost:8080",
		"0.0.0.0:1": "localhost:1", "[::]:1": "localhost:1", "10.0.0.1:1": "10.0.0.1:1"} {
		if got := ownAddress(listened); got != want {
			t.Errorf("%s is reached at %s; want %s", listened, got, want)
		}
	}
}

// A file of the next CA with a mistake hides nothing else: the phase is shown, with what is wrong.
func TestStatusWithARefusedFile(t *testing.T) {
	dir := t.TempDir()
	path := func(name, text string) string {
		file := filepath.Join(dir, name)
		must.OK(t, os.WriteFile(file, []byte(text), 0o600))
		return file
	}
	ca := fixture.NewCA(t).Certificate
	t.Setenv("CA_CERT_FILE", path("ca.crt", string(issuer.Chain{ca}.PEM())))
	t.Setenv("NEXT_CA_CERT_FILE", path("next.crt", "no certificate"))
	t.Setenv("NEXT_TRUST_BUNDLE_FILE", path("roots.crt", "no root"))
	command := newStatusCommand()
	c, faults := config.Read(command, config.Named("CA_CERT_FILE", "NEXT_CA_CERT_FILE",
		"NEXT_TRUST_BUNDLE_FILE"))
	own := casOf(c, faults)
	must.OK(t, faults.Err())
	state := must.Value(rotation.Restored(rotation.Signing, rotation.Keys{CA: rotation.KeyOf(ca),
		Next: rotation.Key{2}}, "", time.Now(), "r"))(t)
	for _, said := range []string{"", "NEXT_CA_CERT_FILE is refused"} {
		v := &view{Refused: own.faults}
		v.setState(&coordinationv1.Lease{}, rotation.Keys{}, own)
		v.State = state
		v.setRefused(said, nil)
		text := v.String()
		if strings.Count(text, "REFUSED    NEXT_CA_CERT_FILE") != 1 || !strings.Contains(text,
			"REFUSED    NEXT_TRUST_BUNDLE_FILE: ") || !strings.Contains(text, "signing since") ||
			v.Fault != "" || !strings.Contains(text, said) {
			t.Errorf("%q:\n%s", said, text)
		}
	}
	v := &view{Unknown: "one"}
	v.setRefused("", errors.Join(context.Canceled))
	if v.Unknown != "one; whether it refuses a file of the next CA: context canceled" {
		t.Error(v.Unknown)
	}
}

// While the process refuses a file of the next CA, it has what the file held before. So what the
// file holds is no fault of the phase.
func TestARefusedFileIsNoFaultOfThePhase(t *testing.T) {
	parse := func(ca fixture.CA) *issuer.CA {
		return must.Value(issuer.ParseCA(issuer.Chain{ca.Certificate}.PEM()))(t)
	}
	other := issuer.Anchors{fixture.NewCA(t).Certificate}
	own := configured{ca: parse(fixture.NewCA(t)), next: parse(fixture.NewCA(t))}
	own.roots.Next = other
	keys := rotation.Keys{CA: own.ca.KeySHA256(), Next: own.next.KeySHA256()}
	state := must.Value(rotation.Restored(rotation.Signing, keys, rotation.NewRootSet(other),
		time.Now(), "r"))(t)
	l := &coordinationv1.Lease{}
	l.Annotations = map[string]string{rotation.StateKey: rotation.Encode(state)}
	for _, refused := range []string{"", "NEXT_CA_CERT_FILE is refused"} {
		own.refused = refused
		v := &view{CAs: []caView{{Key: keys.CA}, {Key: keys.Next}}}
		v.setState(l, keys, own)
		if inUse := refused == ""; (v.Fault != "") != inUse || v.CAs[0].Signs ||
			v.CAs[1].Signs == inUse {
			t.Errorf("%q: %+v", refused, v)
		}
	}
}
