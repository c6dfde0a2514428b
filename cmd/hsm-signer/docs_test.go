package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/pin"
	"hsm-signer/internal/must"
	"hsm-signer/policy"
)

// The manual lists every reason of a denial, and no other.
func TestReasonsOfTheManual(t *testing.T) {
	manual, err := os.ReadFile("../../docs/policy.md")
	must.OK(t, err)
	_, section, _ := strings.Cut(string(manual), "## Reasons of a denial")
	var listed []policy.Code
	for _, row := range regexp.MustCompile("(?m)^\\| `([A-Za-z]+)` \\|").
		FindAllStringSubmatch(section, -1) {
		listed = append(listed, policy.Code(row[1]))
	}
	if !slices.Equal(listed, policy.Codes()) {
		t.Errorf("the manual lists %v; there are %v", listed, policy.Codes())
	}
	for _, code := range listed {
		if !regexp.MustCompile("^[A-Z][A-Za-z]+$").MatchString(string(code)) {
			t.Errorf("%s is not in CamelCase", code)
		}
	}
}

// readmes are the README in each language.
var readmes = []string{"../../README.md", "../../README.zh-CN.md"}

// The README, in each language, lists every variable, and no other, with the default that it has.
func TestConfigurationOfTheManual(t *testing.T) {
	settings := slices.Concat(config.ServiceSettings, config.TokenSettings, config.LogSettings)
	for _, readme := range readmes {
		manual, err := os.ReadFile(readme)
		must.OK(t, err)
		defaults := map[string]string{}
		for _, row := range regexp.MustCompile("(?m)^\\| (`[A-Z].*?) \\| .* \\| "+
			"?(.*?) \\|$").FindAllStringSubmatch(string(manual), -1) {
			for _, variable := range regexp.MustCompile("`([A-Z0-9_]+)`").
				FindAllStringSubmatch(row[1], -1) {
				defaults[variable[1]] = row[2]
			}
		}
		if _, listed := defaults[pin.Variable]; !listed || len(defaults) != len(settings)+1 {
			t.Errorf("%s lists %d variables; there are %s and %d others", readme, len(defaults),
				pin.Variable, len(settings))
		}
		for _, s := range settings {
			fallback := s.Fallback
			if s.Env == "PKCS11_MAX_SESSIONS" { // 0: this, and more if calls are slow
				fallback = "16"
			}
			if shown, listed := defaults[s.Env]; !listed || !strings.Contains(shown, fallback) {
				t.Errorf("%s says that the default of %s is %q; it is %q", readme, s.Env, shown,
					fallback)
			}
		}
	}
}

// What the manuals have their reader type is there: each command of hsm-signer's, and each flag of
// it.
func TestCommandsOfTheManuals(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	must.OK(t, err)
	fenced := regexp.MustCompile("(?ms)^[ \t]*```.*?^[ \t]*```$")
	line, span := regexp.MustCompile("(?m)^[ \t]*(?:bin/)?hsm-signer ([a-z][^#|>\n]*)"),
		regexp.MustCompile("`hsm-signer ([a-z][^`]*)`")
	seen := 0
	for _, page := range append(pages, readmes...) {
		manual, err := os.ReadFile(page)
		must.OK(t, err)
		typed := line.FindAllStringSubmatch(strings.Join(fenced.FindAllString(string(manual), -1),
			"\n"), -1)
		for _, found := range append(typed,
			span.FindAllStringSubmatch(fenced.ReplaceAllString(string(manual), ""), -1)...) {
			seen++
			command, rest, err := preparedRoot().Find(strings.Fields(found[1]))
			if err != nil || command.Runnable() && command.HasSubCommands() && len(rest) > 0 {
				t.Errorf("%s: there is no command %q: %v", page, found[1], err)
				continue
			}
			for _, flag := range regexp.MustCompile("--([a-z0-9-]+)").
				FindAllStringSubmatch(found[1], -1) {
				if command.Flags().Lookup(flag[1]) == nil {
					t.Errorf("%s: %q has no flag --%s", page, command.CommandPath(), flag[1])
				}
			}
		}
	}
	if seen < 50 {
		t.Errorf("the manuals had more than 50 such commands; now %d", seen)
	}
}

// The README and the help say the same of the exit codes, all of which have a meaning.
func TestExitCodesOfTheManual(t *testing.T) {
	help := strings.Join(strings.Fields(preparedRoot().Long), " ")
	manual, err := os.ReadFile(readmes[0])
	must.OK(t, err)
	readme := strings.Join(strings.Fields(string(manual)), " ")
	for code, meaning := range map[int]string{0: "done", exit.Fault: "fault",
		exit.Refused: "refused, or a check failed", exit.PIN: "PIN refused or locked",
		exit.Config: "configuration"} {
		if want := fmt.Sprintf("%d %s", code, meaning); !strings.Contains(help, want) ||
			!strings.Contains(readme, want) {
			t.Errorf("%q is not in both the help and the README", want)
		}
	}
}
