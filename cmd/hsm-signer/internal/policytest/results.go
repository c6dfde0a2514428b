package policytest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/cmd/hsm-signer/internal/terminal"
)

// The results of a case.
const (
	casePassed = "passed"
	caseFailed = "failed" // another verdict than expected
	caseFault  = "fault"  // could not be run
)

// A caseResult is the result of one case, and one line of the JSON output.
type caseResult struct {
	File    string `json:"file"`
	Case    string `json:"case"` // empty: the file itself could not be read
	Result  string `json:"result"`
	Message string `json:"message,omitempty"`

	took time.Duration
}

// testFilesIn lists the files, and those with cases in each directory.
func testFilesIn(places []string) ([]string, error) {
	var files []string
	for _, place := range places {
		info, err := os.Stat(place)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			files = append(files, place)
			continue
		}
		entries, err := os.ReadDir(place)
		if err != nil {
			return nil, err
		}
		for _, entry := range entries {
			file := filepath.Join(place, entry.Name())
			isYAML := slices.Contains([]string{".yaml", ".yml"}, filepath.Ext(file))
			if isYAML && !entry.IsDir() && !slices.Contains(keysOf(file), "rules") {
				files = append(files, file)
			}
		}
	}
	return files, nil
}

// testFilesHere lists the files in the current directory that hold cases.
func testFilesHere(faults *setting.Faults) []string {
	files, err := testFilesIn([]string{"."})
	files = slices.DeleteFunc(files,
		func(file string) bool { return !slices.Contains(keysOf(file), "cases") })
	switch {
	case err != nil:
		faults.Add("DIR", err)
	case len(files) == 0:
		faults.Addf("DIR", "is missing, and no *.yaml file in the current directory has cases: "+
			"name the directory that has, as in \"hsm-signer policy test tests/\"")
	}
	return files
}

// keysOf returns the keys at the top of a YAML file, or nil if it cannot be read.
func keysOf(file string) []string {
	text, err := os.ReadFile(file)
	var tree yaml.Node
	if err != nil || yaml.Unmarshal(text, &tree) != nil || len(tree.Content) == 0 {
		return nil
	}
	var keys []string
	if top := tree.Content[0]; top.Kind == yaml.MappingNode {
		for i := 0; i < len(top.Content); i += 2 {
			keys = append(keys, top.Content[i].Value)
		}
	}
	return keys
}

// printResults prints the results. In text, faults are left to the error.
func printResults(results []caseResult, output string, out io.Writer) error {
	switch output {
	case "junit":
		return writeJUnit(out, results)
	case "json":
		for _, r := range results {
			if err := terminal.PrintJSON(out, r); err != nil {
				return err
			}
		}
		return nil
	}
	var text strings.Builder
	for _, r := range results {
		switch r.Result {
		case casePassed:
			fmt.Fprintf(&text, "ok    %s: %s\n", r.File, r.Case)
		case caseFailed:
			fmt.Fprintf(&text, "FAIL  %s: %s: %s\n", r.File, r.Case, r.Message)
		}
	}
	fmt.Fprintf(&text, "%d passed, %d failed", countOf(results, casePassed),
		countOf(results, caseFailed))
	if faults := countOf(results, caseFault); faults > 0 {
		fmt.Fprintf(&text, ", %d could not be run", faults)
	}
	_, err := fmt.Fprintln(out, text.String())
	return err
}

func countOf(results []caseResult, result string) (n int) {
	for _, r := range results {
		if r.Result == result {
			n++
		}
	}
	return n
}

// outcomeOf returns nil if there are cases, and all have passed.
func outcomeOf(results []caseResult, places []string) error {
	var faults []error
	for _, r := range results {
		switch {
		case r.Result == caseFault && r.Case == "":
			faults = append(faults, fmt.Errorf("%s: %s", r.File, r.Message))
		case r.Result == caseFault:
			faults = append(faults, fmt.Errorf("%s: case %q: %s", r.File, r.Case, r.Message))
		}
	}
	switch {
	case len(faults) > 0:
		return errors.Join(faults...)
	case countOf(results, caseFailed) > 0:
		return exit.With(exit.Refused, errors.New("not every case passed"))
	case len(results) == 0:
		return fmt.Errorf("there is no case in any *.yaml file of %s: %w",
			strings.Join(places, ", "), fs.ErrNotExist)
	}
	return nil
}
