package tokens_test

import (
	"fmt"
	"maps"
	"strings"

	"hsm-signer/integration/tokens"
)

// A table shows the outcome of each fault on each kind of token, all of it measured. Its fields are
// exported for JSON, in which child processes return their tables.
type table struct {
	Rows    []string
	Cells   map[string]map[string]string // by fault and token
	Modules map[string]string            // by token

	Requests, Lost, Wrong int
}

// newTable returns an empty table.
func newTable() *table {
	return &table{Cells: map[string]map[string]string{}, Modules: map[string]string{}}
}

// merge adds what another table has.
func (b *table) merge(other *table) {
	b.Requests, b.Lost, b.Wrong = b.Requests+other.Requests, b.Lost+other.Lost, b.Wrong+other.Wrong
	maps.Copy(b.Modules, other.Modules)
	for _, fault := range other.Rows {
		for token, words := range other.Cells[fault] {
			b.note(fault, token, words)
		}
	}
}

// add adds the outcome of a fault. The last outcome of the same fault counts.
func (b *table) add(fault, token string, o outcome) {
	b.Requests, b.Lost, b.Wrong = b.Requests+o.requests, b.Lost+o.lost, b.Wrong+o.wrong
	recovered := "yes"
	switch {
	case o.lost > 0:
		recovered = "NO"
	case o.restarted:
		recovered = "after a restart"
	}
	b.note(fault, token,
		fmt.Sprintf("%s, %d, %d, %d, %d", recovered, o.attempts, o.logins, o.lost, o.wrong))
}

// note sets the text of a cell.
func (b *table) note(fault, token, words string) {
	if b.Cells[fault] == nil {
		b.Rows = append(b.Rows, fault)
		b.Cells[fault] = map[string]string{}
	}
	b.Cells[fault][token] = words
}

// describe sets the description of the token's module.
func (b *table) describe(token, module string) {
	b.Modules[token] = module
}

// String returns a line for each fault, with a column for each kind of token.
func (b *table) String() string {
	var text strings.Builder
	fmt.Fprintf(&text,
		"recovered, attempts of the slowest request, calls of C_Login, requests lost, signatures "+
			"with a wrong key\n%-78s", "")
	for _, kind := range tokens.All() {
		fmt.Fprintf(&text, " %-16s", kind.Name)
	}
	for _, row := range b.Rows {
		fmt.Fprintf(&text, "\n%-78s", row)
		for _, kind := range tokens.All() {
			fmt.Fprintf(&text, " %-16s", b.Cells[row][kind.Name])
		}
	}
	fmt.Fprintf(&text, "\n%d requests, %d lost, %d signatures with a wrong key", b.Requests, b.Lost,
		b.Wrong)
	return text.String()
}

// markdown returns the table as a page of the manual.
func (b *table) markdown() string {
	var text strings.Builder
	fmt.Fprintf(&text, `# Faults of the token, measured

`+"`make faults`"+` overwrites this page. A module in front of the token's own module causes the fault, or the token's daemon
or files are removed. Meanwhile %d callers ask for signatures and retry until they have one. Every caller must get one.

%d requests, %d lost, %d signatures with a wrong key.

`, callers, b.Requests, b.Lost, b.Wrong)
	for _, kind := range tokens.All() {
		fmt.Fprintf(&text, "- **%s**: %s\n", kind.Name, b.Modules[kind.Name])
	}
	text.WriteString(`
A cell shows: recovered without help, attempts of the slowest request, calls of ` + "`C_Login`" + `, lost requests, returned
signatures by a wrong key. A request stays pending after a failed attempt. Words instead of figures name what the token lacks.

| Fault |`)
	for _, kind := range tokens.All() {
		fmt.Fprintf(&text, " %s |", kind.Name)
	}
	text.WriteString("\n|---|" + strings.Repeat("---|", len(tokens.All())) + "\n")
	for _, row := range b.Rows {
		fmt.Fprintf(&text, "| %s |", row)
		for _, kind := range tokens.All() {
			fmt.Fprintf(&text, " %s |", b.Cells[row][kind.Name])
		}
		text.WriteString("\n")
	}
	return text.String()
}
