// Package setting reads the values of settings, whatever they mean: from flags, from the
// environment and from CONFIG_FILE.
//
// Duty: find the value of each setting, for one CA or for several; say which setting is unknown, in
// the wrong place or set twice; and collect every mistake.
//
// Contract: a setting is known by its variable alone. What its value means is the duty of package
// config. Every mistake is added to [Faults], so that a user sees all of them at once.
package setting

import (
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// A Source returns the value of the setting with that variable; "" if it is not set.
type Source func(variable string) string

// FlagName returns the flag of a setting: that of SIGNER_NAME is signer-name.
func FlagName(variable string) string {
	return strings.ToLower(strings.ReplaceAll(variable, "_", "-"))
}

// Given returns the source of what is given to a command: by its flags, or else by the environment.
func Given(command *cobra.Command) Source {
	return func(variable string) string {
		if Flagged(command, variable) { // an empty flag counts as not set
			return command.Flags().Lookup(FlagName(variable)).Value.String()
		}
		return os.Getenv(variable)
	}
}

// Flagged reports whether a setting is given by a flag.
func Flagged(command *cobra.Command, variable string) bool {
	return command.Flags().Changed(FlagName(variable))
}

// Nearest returns the candidate with the smallest edit distance from a name.
func Nearest(name string, candidates []string) string {
	return slices.MinFunc(candidates,
		func(a, b string) int { return distance(name, a) - distance(name, b) })
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitution := diagonal
			if a[i] != b[j] {
				substitution++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitution, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
