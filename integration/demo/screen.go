package demo

import (
	"fmt"
	"os"
	"strings"
	"unicode/utf8"
)

// A Screen prints for a reader, in colour only in a terminal.
type Screen struct {
	out   *os.File
	color bool
}

// NewScreen returns a screen on the file.
func NewScreen(out *os.File) *Screen {
	info, err := out.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	return &Screen{out: out, color: terminal && os.Getenv("NO_COLOR") == ""}
}

const (
	bold, green, red = "1", "32", "31"
)

func (s *Screen) paint(color, text string) string {
	if !s.color {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// Step prints the heading of what comes next.
func (s *Screen) Step(text string) { fmt.Fprintln(s.out, "\n"+s.paint(bold, "== "+text)) }

// Print prints text, indented.
func (s *Screen) Print(text string) {
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		fmt.Fprintln(s.out, "   "+line)
	}
}

// Table prints who got what and why not.
func (s *Screen) Table(outcomes []Outcome) {
	rows := [][]string{{"WHO", "ASKS FOR", "WITH", "GETS"}}
	for _, o := range outcomes {
		rows = append(rows, []string{o.who, o.asked, o.twist, o.result})
	}
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for i, row := range rows {
		var line strings.Builder
		for j, cell := range row {
			fmt.Fprintf(&line, "%-*s  ", widths[j], cell)
		}
		if i == 0 {
			s.Print(s.paint(bold, line.String()))
			continue
		}
		color := green
		if outcomes[i-1].result != "certificate" {
			color = red
		}
		s.Print(s.paint(color, strings.TrimRight(line.String(), " ")))
		s.Print("     " + outcomes[i-1].why)
	}
}
