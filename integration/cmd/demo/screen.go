package main

import (
	"fmt"
	"os"
	"strings"
	"unicode/utf8"
)

// A screen prints for a reader, in colour only in a terminal.
type screen struct {
	out   *os.File
	color bool
}

func newScreen(out *os.File) *screen {
	info, err := out.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	return &screen{out: out, color: terminal && os.Getenv("NO_COLOR") == ""}
}

const (
	bold, green, red = "1", "32", "31"
)

func (s *screen) paint(color, text string) string {
	if !s.color {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// step prints the heading of what comes next.
func (s *screen) step(text string) { fmt.Fprintln(s.out, "\n"+s.paint(bold, "== "+text)) }

// print prints text, indented.
func (s *screen) print(text string) {
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		fmt.Fprintln(s.out, "   "+line)
	}
}

// table prints who got what and why not.
func (s *screen) table(outcomes []outcome) {
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
			s.print(s.paint(bold, line.String()))
			continue
		}
		color := green
		if outcomes[i-1].result != "certificate" {
			color = red
		}
		s.print(s.paint(color, strings.TrimRight(line.String(), " ")))
		s.print("     " + outcomes[i-1].why)
	}
}
