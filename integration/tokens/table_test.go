package tokens_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"hsm-signer/integration/tokens"
)

// A table shows what came of each fault on each kind of token. All in it was measured.
type table struct {
	mu      sync.Mutex
	rows    []string
	cells   map[[2]string]string // by fault and token
	modules map[string]string    // by token

	requests, lost, wrong int
}

// add adds what came of a fault. Where it befell more than once, the last counts.
func (b *table) add(fault, token string, o outcome) {
	b.mu.Lock()
	b.requests, b.lost, b.wrong = b.requests+o.requests, b.lost+o.lost, b.wrong+o.wrong
	b.mu.Unlock()
	recovered := "yes"
	switch {
	case o.lost > 0:
		recovered = "NO"
	case o.restarted:
		recovered = "after a restart"
	}
	b.note(fault, token, fmt.Sprintf("%s, %d, %d, %d, %d", recovered, o.attempts, o.logins, o.lost, o.wrong))
}

// note puts words into a cell.
func (b *table) note(fault, token, words string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cells == nil {
		b.cells = map[[2]string]string{}
	}
	if !slices.Contains(b.rows, fault) {
		b.rows = append(b.rows, fault)
	}
	b.cells[[2]string{fault, token}] = words
}

// describe says what module the token has.
func (b *table) describe(token, module string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.modules == nil {
		b.modules = map[string]string{}
	}
	b.modules[token] = module
}

// String has a line for each fault and a column for each kind of token.
func (b *table) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "recovered, attempts of the slowest request, calls of C_Login, requests lost, signatures with a wrong key\n%-78s", "")
	for _, kind := range tokens.All() {
		fmt.Fprintf(&text, " %-16s", kind.Name)
	}
	for _, row := range b.rows {
		fmt.Fprintf(&text, "\n%-78s", row)
		for _, kind := range tokens.All() {
			fmt.Fprintf(&text, " %-16s", b.cells[[2]string{row, kind.Name}])
		}
	}
	fmt.Fprintf(&text, "\n%d requests, %d lost, %d signatures with a wrong key", b.requests, b.lost, b.wrong)
	return text.String()
}

// markdown is the table as a page of the manual.
func (b *table) markdown() string {
	var text strings.Builder
	fmt.Fprintf(&text, `# Faults of the token, measured

`+"`make faults`"+` overwrites this page. A module in front of the token's own module causes the fault, or the token's daemon
or files are removed. Meanwhile %d callers ask for signatures and retry until they have one. Every caller must get one.

%d requests, %d lost, %d signatures with a wrong key.

`, callers, b.requests, b.lost, b.wrong)
	for _, kind := range tokens.All() {
		fmt.Fprintf(&text, "- **%s**: %s\n", kind.Name, b.modules[kind.Name])
	}
	text.WriteString(`
A cell shows: recovered without help, attempts of the slowest request, calls of ` + "`C_Login`" + `, lost requests, returned
signatures by a wrong key. A request stays pending after a failed attempt. Words instead of figures name what the token lacks.

| Fault |`)
	for _, kind := range tokens.All() {
		fmt.Fprintf(&text, " %s |", kind.Name)
	}
	text.WriteString("\n|---|" + strings.Repeat("---|", len(tokens.All())) + "\n")
	for _, row := range b.rows {
		fmt.Fprintf(&text, "| %s |", row)
		for _, kind := range tokens.All() {
			fmt.Fprintf(&text, " %s |", b.cells[[2]string{row, kind.Name}])
		}
		text.WriteString("\n")
	}
	return text.String()
}
