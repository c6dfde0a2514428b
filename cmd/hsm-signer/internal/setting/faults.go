package setting

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"hsm-signer/cmd/hsm-signer/internal/exit"
)

// Faults are errors in the configuration. Each begins with the name of its variable.
type Faults []string

// Add adds an error in the value of the variable, unless it is nil.
func (f *Faults) Add(variable string, err error) {
	if err != nil {
		*f = append(*f, variable+": "+err.Error())
	}
}

// Addf adds an error in the value of the variable; see [fmt.Errorf].
func (f *Faults) Addf(variable, format string, args ...any) {
	f.Add(variable, fmt.Errorf(format, args...))
}

// Has reports whether there is a fault of one of the variables.
func (f Faults) Has(variables ...string) bool {
	return slices.ContainsFunc(f, func(fault string) bool {
		variable, _, _ := strings.Cut(fault, ": ")
		return slices.Contains(variables, variable)
	})
}

// Missing adds that the variable is not set, unless there is a fault of it or of a variable that
// can replace it: that one is set, and reported already.
func (f *Faults) Missing(variable, message string, instead ...string) {
	if !f.Has(append(instead, variable)...) {
		f.Add(variable, errors.New(message))
	}
}

// RequireOutput adds that the value of --output is none of text, json and more.
func (f *Faults) RequireOutput(output string, more ...string) {
	f.Add("--output", OneOf(output, append([]string{"text", "json"}, more...)...))
}

// Err returns an error with all faults, or nil if there are none.
func (f Faults) Err() error {
	if len(f) == 0 {
		return nil
	}
	return exit.With(exit.Config,
		fmt.Errorf("the configuration has %d error(s):\n  %s", len(f), strings.Join(f, "\n  ")))
}
