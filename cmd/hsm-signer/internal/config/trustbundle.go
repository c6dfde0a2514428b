package config

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

const trustBundleNamespaces = "TRUST_BUNDLE_NAMESPACES"

// readTrustBundleNamespaces reads names of namespaces (RFC 1123 labels), comma-separated.
func readTrustBundleNamespaces(c *Config, v string) error {
	for name := range strings.SplitSeq(v, ",") {
		name = strings.TrimSpace(name)
		switch wrong := validation.IsDNS1123Label(name); {
		case len(wrong) > 0:
			return fmt.Errorf("%q is no name of a namespace: %s", name, strings.Join(wrong, "; "))
		case slices.Contains(c.TrustBundleNamespaces, name):
			return fmt.Errorf("%q is listed twice", name)
		}
		c.TrustBundleNamespaces = append(c.TrustBundleNamespaces, name)
	}
	return nil
}
