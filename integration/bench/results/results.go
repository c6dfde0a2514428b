// Package results keeps the figures of benchmarks in one JSON file.
//
// Duty: turn what was measured into figures, and write them into the file of earlier runs.
//
// Contract: the file is an object with one line for each key, sorted. A run replaces the keys that
// it measured and no other, so a part of the benchmarks can be run alone.
package results

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// digits is the number of significant digits of a value.
const digits = 4

// A Figure has the measurements of the runs of one benchmark.
type Figure struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	N      int     `json:"n"` // how many values there are
}

// Of returns the figure of these values, each rounded to four significant digits. The median of an
// even number of values is the mean of the two in the middle. There must be at least one value.
func Of(values ...float64) Figure {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	median := (sorted[(n-1)/2] + sorted[n/2]) / 2
	return Figure{Median: round(median), Min: round(sorted[0]), Max: round(sorted[n-1]), N: n}
}

func round(value float64) float64 {
	rounded, _ := strconv.ParseFloat(strconv.FormatFloat(value, 'g', digits, 64), 64)
	return rounded // what FormatFloat writes, ParseFloat reads
}

// Merge writes the measured figures into the file and keeps the others that it holds. It creates a
// file that does not exist, and returns an error if the file holds anything else.
func Merge(path string, measured map[string]Figure) error {
	all, err := read(path)
	if err != nil {
		return fmt.Errorf("results of benchmarks in %s: %w", path, err)
	}
	maps.Copy(all, measured)
	text, err := render(all)
	if err != nil {
		return err
	}
	return replace(path, text)
}

func read(path string) (map[string]Figure, error) {
	all := map[string]Figure{}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	return all, decoder.Decode(&all)
}

// render returns the figures as a JSON object with one line for each key, sorted.
func render(all map[string]Figure) ([]byte, error) {
	var b bytes.Buffer
	separator := "{\n"
	for _, key := range slices.Sorted(maps.Keys(all)) {
		figure, err := json.Marshal(all[key])
		if err != nil {
			return nil, fmt.Errorf("figure %s: %w", key, err)
		}
		fmt.Fprintf(&b, "%s  %q: %s", separator, key, figure)
		separator = ",\n"
	}
	b.WriteString("\n}\n")
	return b.Bytes(), nil
}

// replace replaces the file atomically, so that an interrupted run leaves the old or the new file.
func replace(path string, text []byte) error {
	temp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = temp.Write(text)
	err = errors.Join(err, temp.Chmod(0o644), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp.Name()))
	}
	return nil
}
