package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"hsm-signer/kube"
)

// Every command that does something shows how.
func TestEveryCommandHasAnExample(t *testing.T) {
	var look func(*cobra.Command)
	look = func(c *cobra.Command) {
		if !c.HasSubCommands() && c.Example == "" && c.Parent().Name() != "completion" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			look(sub)
		}
	}
	look(newRootCommand(io.Discard))
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out, stderr, code := command(t, "completion", shell); code != 0 || !strings.Contains(out, "hsm-signer") {
			t.Errorf("%s: exit code %d: %s", shell, code, stderr)
		}
	}
	for _, c := range []struct{ args, want string }{
		{"ca create --key-type=ecdsa-p3", "ecdsa-p384"}, {"check --output=j", "json"}, {"run --approve=sh", "shadow"}, {"policy show calico-", "calico-legacy"}, {"policy test --output=ju", "junit"}, {"policy validate calico-", "calico-legacy"}, {"audit list --expiring=s", "soon"}, {"aud", "audit"},
	} {
		if out, _, code := command(t, append([]string{"__complete"}, strings.Fields(c.args)...)...); code != 0 || !strings.Contains(out, c.want) {
			t.Errorf("%s: exit code %d: %s", c.args, code, out)
		}
	}
}

// What takes longer than two seconds says that it goes on, and leaves nothing behind.
func TestProgressing(t *testing.T) {
	var out bytes.Buffer
	ticks, seen := make(chan time.Time), make(chan struct{})
	go func() {
		defer close(seen)
		ticks <- time.Now().Add(quietFor / 2)
		ticks <- time.Now().Add(quietFor + time.Second)
	}()
	progress(&out, "making a key", ticks, func() { <-seen })
	if text := out.String(); strings.Count(text, "making a key … 3s") != 1 || !strings.HasSuffix(text, eraseLine) {
		t.Errorf("%q", text)
	}
	out.Reset()
	done := false
	progressing(&out, "making a key", func() { done = true })
	if !done || out.Len() > 0 {
		t.Errorf("done: %t; outside a terminal it says %q", done, out.String())
	}
}

func TestActivityKeepsTheLast(t *testing.T) {
	var a activity
	begin := time.Unix(6000, 0)
	for n := range 60 {
		a.Ended(kube.Outcome{UID: fmt.Sprint(n), Result: kube.ResultIssued, At: begin.Add(time.Duration(n) * time.Second)})
	}
	a.Ended(kube.Outcome{UID: "waits", Result: kube.ResultWaiting, At: begin.Add(time.Minute)})
	a.Ended(kube.Outcome{UID: "waits", Result: kube.ResultRefused, At: begin.Add(2 * time.Minute), Reason: "a\x1b[1m\u202eb" + strings.Repeat("x", 9999)})
	recent, issued := a.last(begin.Add(2 * time.Minute))
	if len(recent) != outcomesKept || recent[0].Result != kube.ResultRefused || recent[1].UID != "59" {
		t.Errorf("%d outcomes; the last are %+v", len(recent), recent[:2])
	}
	if reason := recent[0].Reason; strings.ContainsAny(reason, "\x1b\u202e") || len(reason) > 2*longestText {
		t.Errorf("the reason is %q", reason)
	}
	if len(issued) != minutesKept || issued[minutesKept-3] != 60 || issued[minutesKept-1] != 0 {
		t.Errorf("issued: %v", issued)
	}
	if _, issued = a.last(begin.Add(2 * time.Hour)); issued[0] != 0 || issued[minutesKept-3] != 0 {
		t.Errorf("issued two hours ago: %v", issued)
	}
}
