package config

import (
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"
)

// WarnUnknown warns of variables that look like ours and are not known. It is no error: PKCS#11
// modules have variables of their own.
func WarnUnknown(logger hclog.Logger, environ []string) {
	var known []string
	for _, s := range slices.Concat(ServiceSettings, TokenSettings, LogSettings) {
		known = append(known, s.Env)
	}
	known = append(known, "PKCS11_PIN")
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		ours := strings.HasPrefix(name, "PKCS11_") || strings.HasPrefix(name, "CA_KEY_") ||
			strings.HasPrefix(name, "CHECKPOINT_")
		if ours && !slices.Contains(known, name) {
			logger.Warn("ignoring an unknown environment variable", "variable", name, "nearest",
				nearest(name, known))
		}
	}
}

// nearest returns the candidate with the smallest edit distance.
func nearest(name string, candidates []string) string {
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
