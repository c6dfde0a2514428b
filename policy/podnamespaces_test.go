package policy_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"hsm-signer/policy"
)

// The rules' requesters decide where pods must be read.
func TestPodNamespaces(t *testing.T) {
	for from, want := range map[string][]string{
		`{serviceAccounts: [b/x, a/y, a/z]}`:                                                {"a", "b"},
		`{serviceAccounts: ["a/*"]}`:                                                        {"a"},
		`{serviceAccounts: ["*/x"]}`:                                                        nil,
		`{users: ["system:serviceaccount:a:*"]}`:                                            {"a"},
		`{users: ["system:serviceaccount:a:x"]}`:                                            {"a"},
		`{users: ["system:serviceaccount:*"]}`:                                              nil,
		`{users: ["system:serviceaccount:a*"]}`:                                             nil,
		`{users: ["system:*"]}`:                                                             nil,
		`{users: ["machine:*"], pod: none}`:                                                 {},
		`{groups: ["system:serviceaccounts:a", "system:serviceaccounts:b"]}`:                {"a", "b"},
		`{groups: ["system:serviceaccounts:a", "system:authenticated"]}`:                    nil,
		`{serviceAccounts: [a/x], users: ["system:serviceaccount:b:y"], groups: [anybody]}`: {"a", "b"},
	} {
		if !strings.Contains(from, "pod: none") {
			from = strings.TrimSuffix(from, "}") + ", pod: none}"
		}
		text := "version: 1\nrules:\n  - name: r\n    from: " + from +
			"\n    grant: {dnsNames: [x.example.com], keys: [ecdsa-p256], usages: [digital " +
			"signature, server auth]}\n"
		p, err := policy.Parse([]byte(text),
			policy.Options{ClusterDomain: "cluster.local", MaxLifetime: time.Hour})
		if err != nil {
			t.Errorf("%s: %v", from, err)
			continue
		}
		got, bounded := p.PodNamespaces()
		if bounded != (want != nil) || !slices.Equal(got, want) {
			t.Errorf("%s: %q, bounded %t; want %q", from, got, bounded, want)
		}
	}
	if got, bounded := builtIn(t, "calico").PodNamespaces(); !bounded ||
		!slices.Contains(got, "calico-system") {
		t.Errorf("calico: %q, %t", got, bounded)
	}
}
