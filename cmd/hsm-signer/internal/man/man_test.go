package man

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"hsm-signer/internal/must"
)

func TestPages(t *testing.T) {
	root := &cobra.Command{Use: "tool", Short: "Does things", Long: "First.\n\n  kept - as it is\n"}
	sub := &cobra.Command{Use: "do THING", Short: "Do a thing", Example: "  tool do \\x",
		Run: func(*cobra.Command, []string) {}}
	sub.Flags().String("output", "text", "the `format`\n.of the output")
	hidden := &cobra.Command{Use: "secret", Hidden: true, Run: sub.Run}
	root.AddCommand(sub, hidden, NewCommand(root, "v1.2.3"))
	dir := t.TempDir()
	root.SetArgs([]string{"man", dir})
	must.OK(t, root.ExecuteContext(t.Context()))
	for file, lines := range map[string][]string{
		"tool.1": {`.TH "TOOL" 1 "" "tool v1.2.3" "tool manual"`, `tool \- Does things`,
			".PP\n.nf\n  kept \\- as it is\n.fi\n", ".BR tool\\-do (1)\n"},
		"tool-do.1": {".B tool do THING [flags]", "\\fB\\-\\-output\\fR \\fIformat\\fR\n" +
			"the format .of the output\n", "  tool do \\ex\n", ".BR tool (1)"},
	} {
		page, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Error(err)
		}
		for _, line := range lines {
			if !strings.Contains(string(page), line) {
				t.Errorf("%s has no %q:\n%s", file, line, page)
			}
		}
	}
	if pages, _ := filepath.Glob(filepath.Join(dir, "*")); len(pages) < 2 ||
		strings.Contains(strings.Join(pages, " "), "secret") {
		t.Errorf("pages: %q", pages)
	}
}
