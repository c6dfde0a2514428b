package check

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/internal/must"
)

// In text a summary counts the lines; in JSON every line has the same shape.
func TestSummaryOfCheck(t *testing.T) {
	for output, want := range map[string]string{"text": "\n\nsummary: 2 ok, 1 failed, 1 warning, " +
		"1 note, 2 skipped\n", "json": ""} {
		var out bytes.Buffer
		p := newCheckPrinter(output, &out)
		for _, err := range []error{nil, nil, errors.New("x"), errWarning, errNote, errUnread,
			errSkipped} {
			p.line(lineOf("a check", "a detail", err))
		}
		lines := strings.Count(out.String(), "\n")
		p.summary()
		if !strings.HasSuffix(out.String(), want) || lines != 7 || output == "json" &&
			strings.Count(out.String(), "\n") != lines {
			t.Errorf("%s: %s", output, &out)
		}
	}
}

// Rules of the built-in policies for earlier releases of Calico are told by their names, and not
// those of a copy.
func TestRulesForEarlierCalico(t *testing.T) {
	for _, c := range []struct {
		file  string
		rules []string
		want  bool
	}{
		{"calico", []string{"calico-apiserver-3.30"}, true},
		{"calico-enterprise", []string{"a-3.30", "b-3.24"}, true},
		{"calico", []string{"calico-apiserver"}, false},
		{"calico-enterprise", []string{"a-3.30", "b"}, false},
		{"copy.yaml", []string{"calico-apiserver-3.30"}, false},
	} {
		if got := forEarlierCalico(c.file, c.rules); got != c.want {
			t.Errorf("%s, %v: %t", c.file, c.rules, got)
		}
	}
}

// A rule that is as wide as it can be is a warning of check, which passes anyway.
func TestWideRulesAreWarnings(t *testing.T) {
	faults := &setting.Faults{}
	c := &config.Config{
		PolicyFile:    fixture.Path(t, "integration/testdata/allow-everything.yaml"),
		ClusterDomain: "cluster.local", Lifetime: time.Hour,
	}
	p := c.LoadPolicy(faults)
	must.OK(t, faults.Err())
	var lines []checkLine
	checkPolicy(fixture.GenericCA(t)(), p,
		func(name, detail string, err error) { lines = append(lines, lineOf(name, detail, err)) })
	const loudly = "rule everything: ANYONE (from.users: *) may have ANY name"
	if len(lines) != 2 || lines[0].Result != "ok" || lines[1].Result != "warning" ||
		!strings.HasPrefix(lines[1].Detail, loudly) {
		t.Errorf("check says %+v", lines)
	}
}
