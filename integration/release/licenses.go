package release

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// licensesFile has the licenses of what the binaries are built from. Most require that their text
// goes with every copy.
const licensesFile = "THIRD-PARTY-LICENSES"

// isLicense matches the names of the files that a module states its license in.
var isLicense = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|copyright|patents)(\W.*)?$`)

// collectLicenses writes the file with the licenses for each target. It returns an error for a
// module that has none.
func (b *build) collectLicenses(ctx context.Context) error {
	for _, t := range b.targets {
		parts, err := modules(b.binaries[t])
		if err != nil {
			return err
		}
		dirs, err := b.moduleDirs(ctx, parts)
		if err != nil {
			return err
		}
		text, err := notice(parts, dirs)
		if err != nil {
			return err
		}
		if b.licenses[t], err = b.staged(filepath.Join(t.String(), licensesFile),
			[]byte(text)); err != nil {
			return err
		}
	}
	return nil
}

// notice returns each license once, below the names of those that it is of. The parts without a
// directory are left out.
func notice(parts []part, dirs map[string]string) (string, error) {
	holders := map[string][]string{} // of each text
	var texts []string               // in the order of their first holders
	for _, p := range parts {
		dir, known := dirs[p.name]
		if !known {
			continue
		}
		text, err := licenseIn(dir)
		if err != nil {
			return "", fmt.Errorf("release: the license of %s: %w", p.name, err)
		}
		if holders[text] == nil {
			texts = append(texts, text)
		}
		holders[text] = append(holders[text], strings.TrimSpace(p.name+" "+p.version))
	}
	var out strings.Builder
	out.WriteString("hsm-signer is built from the following software, besides its own.\n")
	for _, text := range texts {
		of := slices.Sorted(slices.Values(holders[text]))
		fmt.Fprintf(&out, "\n%s\n%s\n\n%s\n", strings.Repeat("=", 80), strings.Join(of, "\n"), text)
	}
	return out.String(), nil
}

// moduleDirs returns the directory with the source of each module that the binary is built from,
// and of Go as "stdlib". The main module has none.
func (b *build) moduleDirs(ctx context.Context, parts []part) (map[string]string, error) {
	root, err := run(ctx, b.source, nil, b.Go, "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	dirs, args := map[string]string{"stdlib": root}, []string{"list", "-m", "-f",
		"{{if not .Main}}{{.Path}}\t{{.Dir}}{{end}}"}
	for _, p := range parts {
		if p.name != "stdlib" {
			args = append(args, p.name)
		}
	}
	out, err := run(ctx, b.source, []string{"GOFLAGS=", "GOWORK=off"}, b.Go, args...)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		if name, dir, found := strings.Cut(strings.TrimSpace(line), "\t"); found {
			dirs[name] = dir
		}
	}
	return dirs, nil
}

// licenseIn returns the texts of a module's license.
func licenseIn(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var all []string
	for _, e := range entries { // sorted
		if e.IsDir() || !isLicense.MatchString(e.Name()) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return "", err
		}
		all = append(all, strings.TrimSpace(string(text)))
	}
	if len(all) == 0 {
		return "", fmt.Errorf("%s has no file with one", dir)
	}
	return strings.Join(all, "\n\n"), nil
}
