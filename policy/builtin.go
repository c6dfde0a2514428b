package policy

import (
	"embed"
	"strings"
)

//go:embed builtin/*.yaml
var builtin embed.FS

// BuiltIn returns the text of a built-in policy, and false when there is none of
// that name. [BuiltInNames] lists them.
func BuiltIn(name string) ([]byte, bool) {
	text, err := builtin.ReadFile("builtin/" + name + ".yaml")
	return text, err == nil
}

// BuiltInNames lists the built-in policies: "calico" for clusters whose tokens
// name their pod (Kubernetes 1.22 and later), "calico-legacy" for older ones.
func BuiltInNames() []string {
	entries, err := builtin.ReadDir("builtin")
	if err != nil {
		panic(err) // the directory is part of the binary
	}
	names := make([]string, 0, len(entries))
	for _, entry := range entries {
		names = append(names, strings.TrimSuffix(entry.Name(), ".yaml"))
	}
	return names
}
