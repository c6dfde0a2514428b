package policytest

import (
	"encoding/xml"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"
)

// The results of tests as JUnit XML: the elements that Jenkins and GitLab read, and no others.
type (
	junitReport struct {
		XMLName  xml.Name      `xml:"testsuites"`
		Name     string        `xml:"name,attr"`
		Tests    int           `xml:"tests,attr"`
		Failures int           `xml:"failures,attr"`
		Errors   int           `xml:"errors,attr"`
		Time     string        `xml:"time,attr"` // seconds
		Suites   []*junitSuite `xml:"testsuite"` // one for each file
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		File     string      `xml:"file,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Errors   int         `xml:"errors,attr"`
		Time     string      `xml:"time,attr"`
		Cases    []junitCase `xml:"testcase"`

		took time.Duration
	}
	junitCase struct {
		Name      string        `xml:"name,attr"`
		ClassName string        `xml:"classname,attr"` // GitLab shows it as the suite
		Time      string        `xml:"time,attr"`
		Failure   *junitProblem `xml:"failure"`
		Error     *junitProblem `xml:"error"`
	}
	junitProblem struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"` // GitLab shows this, and not the message
	}
)

// writeJUnit writes the results. Those of one file stand together.
func writeJUnit(out io.Writer, results []caseResult) error {
	report := junitReport{Name: "hsm-signer policy test"}
	var suite *junitSuite
	var took time.Duration
	seen := map[string]int{}
	for _, r := range results {
		if suite == nil || suite.File != r.File {
			suite = &junitSuite{Name: r.File, File: r.File}
			report.Suites = append(report.Suites, suite)
		}
		one := junitCase{Name: r.Case, ClassName: className(r.File), Time: seconds(r.took)}
		if one.Name == "" {
			one.Name = "the file" // could not be read
		}
		key := one.ClassName + "\x00" + one.Name
		if seen[key]++; seen[key] > 1 { // GitLab ignores a second one of the same name
			one.Name = fmt.Sprintf("%s (%d)", one.Name, seen[key])
		}
		problem := &junitProblem{r.Message, r.Message}
		switch r.Result {
		case caseFailed:
			one.Failure = problem
			suite.Failures++
			report.Failures++
		case caseFault:
			one.Error = problem
			suite.Errors++
			report.Errors++
		}
		suite.took, took = suite.took+r.took, took+r.took
		suite.Tests, report.Tests = suite.Tests+1, report.Tests+1
		suite.Time, suite.Cases = seconds(suite.took), append(suite.Cases, one)
	}
	report.Time = seconds(took)
	if _, err := io.WriteString(out, xml.Header); err != nil {
		return err
	}
	encoder := xml.NewEncoder(out)
	encoder.Indent("", "  ")
	if err := encoder.Encode(report); err != nil {
		return err
	}
	_, err := io.WriteString(out, "\n")
	return err
}

// className names the file without a dot, at which Jenkins would cut a package off.
func className(file string) string {
	file = filepath.ToSlash(file)
	return strings.ReplaceAll(strings.TrimSuffix(file, filepath.Ext(file)), ".", "_")
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }
