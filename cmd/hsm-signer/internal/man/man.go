// Package man writes the manual pages of the commands.
package man

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// NewCommand returns the command that writes the manual pages of all commands below root. version
// goes into their footers. The command is hidden: packages use it when they are built.
func NewCommand(root *cobra.Command, version string) *cobra.Command {
	return &cobra.Command{
		Use: "man DIR", Short: "Write the manual pages", Hidden: true,
		Example: "  hsm-signer man /usr/local/share/man/man1",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return writeAll(root, args[0], version)
		},
	}
}

// writeAll writes the pages of a command and of those below it into the directory, which exists.
func writeAll(command *cobra.Command, dir, version string) error {
	if command.Hidden || command.Name() == "help" {
		return nil
	}
	file := filepath.Join(dir, name(command)+".1")
	if err := os.WriteFile(file, page(command, version), 0o644); err != nil {
		return fmt.Errorf("write a manual page: %w", err)
	}
	for _, sub := range command.Commands() {
		if err := writeAll(sub, dir, version); err != nil {
			return err
		}
	}
	return nil
}

// name returns the name of a command's page: that of "hsm-signer ca create" is
// hsm-signer-ca-create.
func name(command *cobra.Command) string {
	return strings.ReplaceAll(command.CommandPath(), " ", "-")
}

// page returns the page of a command in the macros of man(7).
func page(command *cobra.Command, version string) []byte {
	var b bytes.Buffer
	program := command.Root().Name()
	fmt.Fprintf(&b, ".TH \"%s\" 1 \"\" \"%s\" \"%s\"\n", escape(strings.ToUpper(name(command))),
		escape(program+" "+version), escape(program+" manual"))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", escape(name(command)), escape(command.Short))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n", escape(command.UseLine()))
	b.WriteString(".SH DESCRIPTION\n")
	paragraphs(&b, description(command))
	writeFlags(&b, command.NonInheritedFlags())
	if command.Example != "" {
		b.WriteString(".SH EXAMPLES\n.nf\n")
		for line := range strings.SplitSeq(command.Example, "\n") {
			b.WriteString(escape(line) + "\n")
		}
		b.WriteString(".fi\n")
	}
	writeRelated(&b, command)
	return b.Bytes()
}

func description(command *cobra.Command) string {
	if command.Long != "" {
		return strings.TrimSpace(command.Long)
	}
	return command.Short + "."
}

// paragraphs writes text. It fills paragraphs, and keeps the lines of those that are indented.
func paragraphs(b *bytes.Buffer, text string) {
	for paragraph := range strings.SplitSeq(text, "\n\n") {
		kept := strings.Contains("\n"+paragraph, "\n ")
		b.WriteString(".PP\n")
		if kept {
			b.WriteString(".nf\n")
		}
		for line := range strings.SplitSeq(strings.Trim(paragraph, "\n"), "\n") {
			b.WriteString(escape(line) + "\n")
		}
		if kept {
			b.WriteString(".fi\n")
		}
	}
}

func writeFlags(b *bytes.Buffer, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	b.WriteString(".SH OPTIONS\n")
	flags.VisitAll(func(flag *pflag.Flag) {
		if flag.Hidden {
			return
		}
		value, usage := pflag.UnquoteUsage(flag)
		b.WriteString(".TP\n\\fB\\-\\-" + escape(flag.Name) + "\\fR")
		if value != "" {
			b.WriteString(" \\fI" + escape(value) + "\\fR")
		}
		b.WriteString("\n" + escape(strings.ReplaceAll(usage, "\n", " ")) + "\n")
	})
}

// writeRelated names the pages of the commands above and below.
func writeRelated(b *bytes.Buffer, command *cobra.Command) {
	var related []string
	if command.HasParent() {
		related = append(related, name(command.Parent()))
	}
	for _, sub := range command.Commands() {
		if !sub.Hidden && sub.Name() != "help" {
			related = append(related, name(sub))
		}
	}
	if len(related) == 0 {
		return
	}
	b.WriteString(".SH SEE ALSO\n")
	for i, page := range related {
		end := ","
		if i == len(related)-1 {
			end = ""
		}
		fmt.Fprintf(b, ".BR %s (1)%s\n", escape(page), end)
	}
}

// escape returns a line of text as roff shows it: a hyphen stays a hyphen that can be typed, and no
// character begins a macro.
func escape(line string) string {
	line = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(line)
	if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
		return `\&` + line
	}
	return line
}
