package results

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"hsm-signer/integration/must"
)

func TestOf(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   Figure
	}{
		{[]float64{3}, Figure{3, 3, 3, 1}},
		{[]float64{9, -1, 2}, Figure{2, -1, 9, 3}},
		{[]float64{4, 1, 2, 9}, Figure{3, 1, 9, 4}},
		{[]float64{8064.102016552823, 0.123456, 0.0987654}, Figure{0.1235, 0.09877, 8064, 3}},
	} {
		if got := Of(test.values...); got != test.want {
			t.Errorf("Of(%v) = %+v, want %+v", test.values, got, test.want)
		}
	}
}

// A run replaces what it measured, and the file looks the same whatever the order of the runs.
func TestMergeReplacesOnlyWhatWasMeasured(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.json")
	for _, measured := range []map[string]Figure{
		{"b": Of(1), "a": Of(1, 2, 3)},
		{"c": Of(0.5), "b": Of(2, 4)},
	} {
		must.OK(t, Merge(path, measured))
	}
	got := must.Get(os.ReadFile(path))(t)
	const want = `{
  "a": {"median":2,"min":1,"max":3,"n":3},
  "b": {"median":3,"min":2,"max":4,"n":2},
  "c": {"median":0.5,"min":0.5,"max":0.5,"n":1}
}
`
	if string(got) != want {
		t.Errorf("the file is\n%swant\n%s", got, want)
	}
	if left, _ := filepath.Glob(path + ".*"); len(left) > 0 {
		t.Errorf("files are left behind: %v", left)
	}
}

// A file of another shape, or a value that JSON lacks, is an error, and the file stays as it is.
func TestMergeKeepsWhatItCannotRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.json")
	for _, test := range []struct {
		old      string
		measured Figure
	}{
		{`[{"callers": 1}]`, Of(1)},
		{`{"a": {"mean": 1}}`, Of(1)},
		{`{}`, Of(math.NaN())},
	} {
		must.OK(t, os.WriteFile(path, []byte(test.old), 0o644))
		if err := Merge(path, map[string]Figure{"b": test.measured}); err == nil {
			t.Errorf("%s and %v: no error", test.old, test.measured)
		}
		if now, err := os.ReadFile(path); err != nil || string(now) != test.old {
			t.Errorf("%s became %s, %v", test.old, now, err)
		}
	}
}

// The file in the repository has the shape that Merge reads and writes.
func TestFileOfTheRepository(t *testing.T) {
	path := filepath.Join("..", "results.json")
	all := must.Get(read(path))(t)
	text := must.Get(render(all))(t)
	if now, err := os.ReadFile(path); err != nil || string(now) != string(text) {
		t.Errorf("%s is not as Merge writes it: %v; want\n%s", path, err, text)
	}
}
