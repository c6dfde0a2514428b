package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
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
	look(preparedRoot())
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out, stderr, code := command(t, "completion", shell); code != 0 ||
			!strings.Contains(out, "hsm-signer") {
			t.Errorf("%s: exit code %d: %s", shell, code, stderr)
		}
	}
	for _, c := range []struct{ args, want string }{
		{"ca create --key-type=ecdsa-p3", "ecdsa-p384"}, {"check --output=j",
			"json"}, {"run --approve=sh", "shadow"}, {"policy show calico-", "calico-legacy"},
		{"policy test --output=ju", "junit"}, {"policy validate calico-", "calico-legacy"},
		{"audit list --expiring=s", "soon"}, {"aud", "audit"},
	} {
		if out, _, code := command(t,
			append([]string{"__complete"}, strings.Fields(c.args)...)...); code != 0 ||
			!strings.Contains(out, c.want) {
			t.Errorf("%s: exit code %d: %s", c.args, code, out)
		}
	}
}
