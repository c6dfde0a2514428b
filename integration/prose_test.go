package integration_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"hsm-signer/integration/must"
)

// A proseRule is one of the rules that Vale applies to the manuals, with what to write instead.
type proseRule struct {
	pattern *regexp.Regexp
	advice  string
}

// proseRules reads the rules of .vale as Vale does.
func proseRules(t *testing.T) (rules []proseRule) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(productRoot, ".vale/*/*.yml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no rules: %v", err)
	}
	for _, file := range files {
		text := must.Get(os.ReadFile(file))(t)
		var rule struct {
			Message    string            `json:"message"`
			IgnoreCase bool              `json:"ignorecase"`
			Swap       map[string]string `json:"swap"`
			Tokens     []string          `json:"tokens"`
		}
		if err := yaml.Unmarshal(text, &rule); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		add := func(pattern, advice string) {
			if rule.IgnoreCase {
				pattern = "(?i)" + pattern
			}
			rules = append(rules, proseRule{regexp.MustCompile(pattern), advice})
		}
		for pattern, instead := range rule.Swap {
			add(`\b(?:`+pattern+`)\b`, "say "+instead)
		}
		for _, pattern := range rule.Tokens {
			add(`(?:\b|^)(?:`+pattern+`)\b`, rule.Message)
		}
	}
	return rules
}

// What hsm-signer prints is as plain as its manuals: string literals follow Vale's rules.
func TestProseOfStringLiterals(t *testing.T) {
	rules := proseRules(t)
	for _, p := range packages(t) {
		dir := filepath.Join(productRoot, strings.TrimPrefix(p.ImportPath, product))
		for _, literal := range literals(t, dir) {
			for _, rule := range rules {
				if words := rule.pattern.FindString(literal.text); words != "" {
					t.Errorf("%s: %q: %s", literal.at, words, rule.advice)
				}
			}
		}
	}
}

// A literal is a string in a program.
type literal struct {
	at   token.Position
	text string
}

// literals returns the strings in the package in dir, without its tests, imports and struct tags.
func literals(t *testing.T, dir string) (all []literal) {
	t.Helper()
	files := token.NewFileSet()
	entries := must.Get(fs.Glob(os.DirFS(dir), "*.go"))(t)
	for _, name := range entries {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text := must.Get(os.ReadFile(filepath.Join(dir, name)))(t)
		if !bytes.ContainsAny(text, "\"`") {
			continue
		}
		file := must.Get(parser.ParseFile(files, filepath.Join(dir, name), text,
			parser.SkipObjectResolution))(t)
		ast.Inspect(file, func(node ast.Node) bool {
			switch node := node.(type) {
			case *ast.ImportSpec:
				return false
			case *ast.Field:
				node.Tag = nil
			case *ast.BasicLit:
				if text, err := strconv.Unquote(node.Value); err == nil &&
					node.Kind == token.STRING {
					all = append(all, literal{files.Position(node.Pos()), text})
				}
			}
			return true
		})
	}
	return all
}
