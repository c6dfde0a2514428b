package strictyaml

import (
	"errors"
	"strings"
	"testing"
)

func TestWhatWouldBeIgnoredIsRefused(t *testing.T) {
	type file struct {
		Version int    `yaml:"version"`
		Name    string `yaml:"name"`
	}
	for name, c := range map[string]struct {
		text string
		is   error // nil: none of the errors that have a name
		says []string
		want file
	}{
		"good":          {"version: 1\nname: a\n", nil, nil, file{1, "a"}},
		"empty":         {"# nothing\n", ErrEmpty, nil, file{}},
		"two documents": {"version: 1\n---\nversion: 2\n", ErrDocuments, nil, file{Version: 1}},
		"not YAML":      {"version: [", nil, []string{"it is not YAML"}, file{}},
		"several mistakes": {"version: x\nnmae: a\nname: b\n", nil,
			[]string{"line 1", `line 2: unknown key "nmae"`}, file{Name: "b"}},
		"mistakes, and more": {"nmae: a\n---\n", ErrDocuments, []string{`unknown key "nmae"`},
			file{}},
	} {
		var got file
		err := Decode([]byte(c.text), &got)
		if got != c.want {
			t.Errorf("%s: %+v; want %+v", name, got, c.want)
		}
		if (err != nil) != (c.is != nil || c.says != nil) || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: %v; want %v", name, err, c.is)
		}
		for _, words := range c.says {
			if !strings.Contains(err.Error(), words) {
				t.Errorf("%s: %v; want %q", name, err, words)
			}
		}
	}
}
