package config

import (
	"slices"
	"strings"
	"testing"
)

func TestTrustBundleNamespaces(t *testing.T) {
	for value, want := range map[string]string{
		"shop":          "",
		"shop, default": "",
		"a namespace":   `"a namespace" is no name of a namespace`,
		"shop,":         `"" is no name of a namespace`,
		"shop,shop":     `"shop" is listed twice`,
	} {
		var c Config
		err := readTrustBundleNamespaces(&c, value)
		switch {
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: %v, want %s", value, err, want)
		case want == "" && (err != nil || !slices.Contains(c.TrustBundleNamespaces, "shop")):
			t.Errorf("%q: %v, %q", value, err, c.TrustBundleNamespaces)
		}
	}
}
