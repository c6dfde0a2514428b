package policy_test

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/policy"
)

// mistakes returns the lines of what is wrong with the text.
func mistakes(t *testing.T, text string) []string {
	t.Helper()
	_, err := policy.Parse([]byte(text),
		policy.Options{ClusterDomain: "cluster.local", MaxLifetime: 8760 * time.Hour})
	if err == nil {
		return nil
	}
	return strings.Split(err.Error(), "\n  ")[1:]
}

func TestUselessRules(t *testing.T) {
	for _, c := range []struct{ old, new, want string }{
		{`{serviceAccount}.{namespace}`, `{serviceAccount}-{namespace}`, "must stand alone"},
		{`{serviceAccount}.{namespace}`, `{pod}`, "has a placeholder other than"},
		{`*.apps.example.com`, `*.com`, "top-level domain"},
		{`/sa/{serviceAccount}`, `/sa-{serviceAccount}`, "must stand alone"},
		// which another's name may end in
		{`/sa/{serviceAccount}`, `/sa/{serviceAccount}.admin`, "must stand alone between two of /"},
		{`https://fixed.example.com/a`, `/a`, "is not an absolute URI"},
		{`ops@example.com`, `ops`, "NAME@DOMAIN"},
		{`defaultLifetime: 1h`, `defaultLifetime: 25h`, `"25h" is longer than the most`},
		{`subject: kept`, `subject: keep`, `"keep" is not known; write rebuilt`},
		{`[gateway-1, gateway-2]`, `[]`,
			`line 19: the key "authentication.kubernetes.io/node-name" is empty`},
		{`dnsNames: [gateway]`, `dnsNames: []`, "names nothing that one could ask for"},
		{`    from: {serviceAccounts: ["*/*"]}`, `    from: {users: [eve], pod: none}`,
			`"{serviceAccount}" derives from a service account`},
		{`[server auth, client auth, digital signature, key encipherment, key agreement]`,
			`[server auth, key encipherment]`, "ecdsa-p256 serves none of the rule's key usages"},
	} {
		text := strings.Replace(names, c.old, c.new, 1)
		if found := strings.Join(mistakes(t, text), "\n"); !strings.Contains(found, c.want) {
			t.Errorf("%s: %s; want %q", c.new, found, c.want)
		}
	}
}

func TestRulesThatSayTheSame(t *testing.T) {
	text := names + `
  - name: again
    from:
      serviceAccounts: [edge/gateway]
      extra: {authentication.kubernetes.io/node-name: [gateway-1, gateway-2]}
    grant:
      subject: kept
      dnsNames: [gateway]
`
	if found := mistakes(t, text); len(found) != 1 ||
		!strings.Contains(found[0], `"again" says the same as "on-the-gateway"`) {
		t.Errorf("found %v", found)
	}
}

func TestConditionsThatLookAtNothing(t *testing.T) {
	for that, constant := range map[string]bool{"true": true, "1 > 2": true,
		"[true].all(x, x)": true, "request.lifetime > 0": false} {
		found := mistakes(t, names+"    conditions: [{that: '"+that+"', message: x}]\n")
		if is := len(found) == 1 &&
			strings.Contains(found[0], "does not depend on the request"); is != constant ||
			!constant && len(found) > 0 {
			t.Errorf("%s: %v", that, found)
		}
	}
}

// A rule without a name has no line but its own.
func TestRuleWithoutANameHasItsLine(t *testing.T) {
	text := strings.Replace(names, "rules:\n", "rules:\n  - ~\n", 1)
	text = strings.Replace(text, "  - name: on-the-gateway\n    from:", "  - from:", 1)
	text = strings.Replace(text, "dnsNames: [gateway]", "usages: [digital signature]", 1)
	want := []string{"line 7: an entry of a list has no value",
		`line 17: rule "": grant: names nothing that one could ask for; ` +
			"add dnsNames, ipAddresses, uris or emailAddresses", "line 17: rules[1]: has no name"}
	if found := mistakes(t, text); !slices.Equal(found, want) {
		t.Errorf("%s\nwant\n%s", strings.Join(found, "\n"), strings.Join(want, "\n"))
	}
}

func TestFiveMistakesWithTheirLines(t *testing.T) {
	text, err := os.ReadFile("testdata/five-mistakes.yaml")
	must.OK(t, err)
	found := mistakes(t, string(text))
	for i, want := range []string{
		`line 7: unknown key "dnsName"`,
		`line 11: rule "web": from.serviceAccounts: "web" is not of the form`,
		`line 13: rule "web": grant.dnsNames: "x*.example.com" has a wildcard`,
		`line 14: rule "web": grant.keys: "rsa-1024" is not known`,
		`line 15: rule "web": grant.usages: "cert sign" is not known or not allowed`,
	} {
		if len(found) != 5 || !strings.HasPrefix(found[i], want) {
			t.Errorf("mistake %d: want %q; found are\n%s", i, want, strings.Join(found, "\n"))
		}
	}
}

func TestWideRulesAreSaid(t *testing.T) {
	everything, err := os.ReadFile("../integration/testdata/allow-everything.yaml")
	must.OK(t, err)
	want := []string{"rule everything: ANYONE (from.users: *) may have ANY name " +
		"(grant.dnsNames: **)"}
	if got := parse(t, string(everything)).Warnings(); !slices.Equal(got, want) {
		t.Errorf("of allow-everything: %q", got)
	}
	if got := parse(t, names).Warnings(); len(got) != 3 ||
		!strings.Contains(got[0], "anyone may ask (from.serviceAccounts: */*)") ||
		!strings.Contains(got[1], "share {serviceAccount}, which") ||
		!strings.Contains(got[2], "chooses the rest of its subject") {
		t.Errorf("of the names: %q", got)
	}
	for _, name := range policy.BuiltInNames() {
		for _, got := range builtIn(t, name).Warnings() {
			if name != "calico-legacy" || !strings.Contains(got, "from.pod: address") {
				t.Errorf("of %s: %q", name, got)
			}
		}
	}
}

// Each of these rules is wide in its own way.
func TestEveryWidthIsSaid(t *testing.T) {
	const rule = `version: 1
rules:
  - name: a
    from: {FROM}
    grant: {dnsNames: [NAMES], keys: [ecdsa-p256], usages: [digital signature]}
`
	for _, c := range []struct{ from, names, want string }{
		{`users: ["system:serviceaccount:shop:till"], pod: none`, "a", "need not be live pods"},
		{`groups: ["system:serviceaccounts:shop"], pod: none`, "a", "need not be live pods"},
		{`users: ["system:serviceaccount:*"], pod: none`, "a",
			"anyone may ask (from.users: system:serviceaccount:*)"},
		{`users: ["s*"], pod: none`, "a", "anyone may ask (from.users: s*)"},
		{`groups: ["system:authenticated"], pod: none`, "a",
			"anyone may ask (from.groups: system:authenticated)"},
		{`serviceAccounts: ["*/default"]`, "a", "who may make a namespace may ask"},
		{`users: ["system:serviceaccount:shop*"], pod: none`, "a",
			"every namespace with this prefix"},
		{`serviceAccounts: [a/b], pod: address`, "a], ipAddresses: [pod", "in another's name"},
		{`serviceAccounts: [a/b]`, `{pattern: "**.*"}`, "any name"},
		{`serviceAccounts: [a/b]`, `{pattern: "*.*.svc"}`, "any name"},
		{`serviceAccounts: [a/b]`, `{pattern: "**.com"}`, "any name"},
		{`serviceAccounts: [a/b]`, `{pattern: "**.svc.cluster.local"}`, "any name"},
		{`serviceAccounts: [a/b]`, `kubernetes.default.svc`, "is a name of the API server"},
		{`serviceAccounts: [a/b]`, `"*.default.svc"`, "is a name of the API server"},
		{`serviceAccounts: [a/b]`, `service: kubernetes`,
			"service: kubernetes has names of the API server"},
		{`serviceAccounts: [a/x, b/x]`, `"{serviceAccount}.example.com"`,
			"share {serviceAccount}.example.com"},
		{`serviceAccounts: [a/gw, b/gw]`, `service: gateway`,
			"share the name gateway (service: gateway)"},
	} {
		got := parse(t,
			strings.NewReplacer("FROM", c.from, "NAMES", c.names).Replace(rule)).Warnings()
		if !slices.ContainsFunc(got, func(warning string) bool {
			return strings.Contains(warning, c.want)
		}) {
			t.Errorf("%s, %s: %q; want %q", c.from, c.names, got, c.want)
		}
	}
}

// Each namespace that a rule writes out is named with its rules, however it is written.
func TestNamespacesThatRulesWriteOut(t *testing.T) {
	const more = `
  - {name: accounts, from: {serviceAccounts: [shop/till, edge/till, "*/web"]}, grant: {dnsNames: [a]}}
  - name: users
    from: {users: ["system:serviceaccount:bank:*", "system:serviceaccount:b*", alice], pod: none}
    grant: {dnsNames: [a]}
  - {name: groups, from: {groups: ["system:serviceaccounts:inn"], pod: none}, grant: {dnsNames: [a]}}
  - {name: narrowed, from: {serviceAccounts: [inn/a], groups: ["system:serviceaccounts:inn"]}, grant: {dnsNames: [a]}}
`
	want := map[string][]string{"edge": {"on-the-gateway", "accounts"}, "shop": {"accounts"},
		"bank": {"users"}, "inn": {"groups", "narrowed"}}
	if got := parse(t, names+more).Namespaces(); !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("%v; want %v", got, want)
	}
}

// What could never grant anything, or is not what it seems, is a mistake.
func TestWhatGrantsNothingIsAMistake(t *testing.T) {
	for _, c := range []struct{ old, new, want string }{
		{"dnsNames: [gateway]", "ipAddresses: [127.0.0.0/8]", "special addresses alone"},
		{"dnsNames: [gateway]", "ipAddresses: [169.254.169.0/24]", "special addresses alone"},
		{"dnsNames: [gateway]", `ipAddresses: ["64:ff9b::a00:0/104"]`, "special addresses alone"},
		{"dnsNames: [gateway]", `dnsNames: [{pattern: "kubernetes.default.*"}]`,
			"must be written out"},
		{"dnsNames: [gateway]", `dnsNames: [{pattern: "**.localhost"}]`, "must be written out"},
		{"dnsNames: [gateway]",
			"dnsNames: [a]\n      commonNames: [" + strings.Repeat("a", 63) + ".b]",
			"longer than the 64 bytes"},
		{"serviceAccounts: [edge/gateway]", `serviceAccounts: [edge/gateway]
      groups: ["system:serviceaccounts:edges", "system:unauthenticated"]`,
			`line 19: rule "on-the-gateway": from.groups: no requester that the rule names`},
		{"dnsNames: [gateway]", `ipAddresses: ["::ffff:10.0.0.0/104"]`, "special addresses alone"},
		{"dnsNames: [gateway]", "dnsNames: [{pattern: localhost}]", "has no wildcard"},
		{"dnsNames: [gateway]", "dnsNames: [service: web.prod]", "is not the name of a service"},
		{"dnsNames: [gateway]", "dnsNames:", `line 22: the key "dnsNames" has no value`},
		{"dnsNames: [gateway]", "dnsNames: [~]", "an entry of a list has no value"},
		{"serviceAccounts: [edge/gateway]", "serviceAccounts: []\n      groups: [operators]",
			`line 18: the key "serviceAccounts" is empty`},
		{"serviceAccounts: [edge/gateway]", "serviceAccounts: [edge/gateway]\n      groups: []",
			`line 19: the key "groups" is empty`},
		{"extra: {authentication.kubernetes.io/node-name: [gateway-1, gateway-2]}", "extra: {}",
			`line 19: the key "extra" is empty`},
		{"extra: {authentication.kubernetes.io/node-name: [gateway-1, gateway-2]}",
			"extra: {~: [x]}", "line 19: a key has no name"},
		{"serviceAccounts: [edge/gateway]", "serviceAccounts: [edge/gateway]\n      ~: [x]",
			"line 19: a key has no name"},
		{"serviceAccounts: [edge/gateway]", "serviceAccounts: [edge/gateway]\n      users: [alice]",
			"only service accounts have pods"},
		{"spiffe://example.org/ns", "spiffe://{namespace}.example.org/ns",
			"placeholder in its host"},
		{"name: on-the-gateway", `name: "on the\x1bgateway"`, "printable ASCII"},
		{"maxLifetime: 24h", `maxLifetime: "24"`, `"24" is not a duration`},
		{"version: 1", "version: one", "cannot unmarshal"},
		// in the defaults, for two rules
		{"keys: [ecdsa-p256]", "keys: [rsa-1024]", `"rsa-1024" is not known`},
	} {
		if found := mistakes(t, strings.Replace(names, c.old, c.new, 1)); len(found) == 0 ||
			len(found) > 2 || !strings.Contains(found[0], c.want) {
			t.Errorf("%s: %q; want %q", c.new, found, c.want)
		}
	}
}

// Prefixes and groups that are unusual, and no mistake.
func TestWhatIsUnusualAndNoMistake(t *testing.T) {
	for _, c := range []struct{ old, new string }{
		{"dnsNames: [gateway]", "ipAddresses: [0.0.0.0/1]"},
		{"dnsNames: [gateway]", `ipAddresses: ["::/3"]`},
		{"dnsNames: [gateway]", `ipAddresses: [127.0.0.1, "::1"]`},
		{"serviceAccounts: [edge/gateway]", `serviceAccounts: [edge/gateway]
      groups: ["system:serviceaccounts:edges", "system:serviceaccounts:edge"]`},
		{"serviceAccounts: [edge/gateway]", `serviceAccounts: [edge/gateway]
      groups: [operators]`}, // an authenticator of the cluster's own may give any
	} {
		if found := mistakes(t, strings.Replace(names, c.old, c.new, 1)); len(found) > 0 {
			t.Errorf("%s: %q", c.new, found)
		}
	}
}

func TestBudget(t *testing.T) {
	const text = "budget: {total: 100, perNamespace: 60%, perServiceAccount: 25%, perPod: 3}\n"
	got := parse(t, text+names).Budget()
	if got.Total != 100 || got.Namespace != 60 || got.Account() != 25 || got.Pod != 3 {
		t.Errorf("budget %+v", got)
	}
	for _, c := range []struct{ old, new, want string }{
		{"total: 100", "total: 0", "line 1: budget.total: 0 is not a number"},
		{"25%", "25", `budget.perServiceAccount: "25" is not a share`},
		{"25%", "101%", `budget.perServiceAccount: "101%" is not a share`},
		{"perPod: 3", "perPod: -1", "budget.perPod: -1"},
		{"60%", "0",
			`line 1: budget.perNamespace: "0" is neither a number of certificates in an hour from 1 to the total, 100`},
		{"60%", "101", `budget.perNamespace: "101"`},
		{"60%", "101%", `budget.perNamespace: "101%"`},
		{"60%", "-5%", `budget.perNamespace: "-5%"`},
		{"60%", "many", `budget.perNamespace: "many"`},
		{"perPod", "perNode", `unknown key "perNode"`},
	} {
		if found := mistakes(t, strings.Replace(text, c.old, c.new, 1)+names); len(found) != 1 ||
			!strings.Contains(found[0], c.want) {
			t.Errorf("%s: %v; want %q", c.new, found, c.want)
		}
	}
}

// twoRules are a rule of one service account and one of everybody's.
const twoRules = `version: 1
budget: {total: 1000}
defaults:
  grant:
    dnsNames: [one]
    keys: [ecdsa-p256]
    usages: [digital signature]
rules:
  - name: own
    from: {serviceAccounts: [a/own]}
    budget: {reserve: 25%}
  - name: tenants
    from: {serviceAccounts: ["*/*"]}
    budget: {limit: 300, perNamespace: 5%}
`

func TestBudgetsOfRules(t *testing.T) {
	got := parse(t, twoRules).Budget()
	if own := got.Rule("own"); own != (policy.RuleBudget{Reserve: 250, Limit: 1000,
		Namespace: 800}) {
		t.Errorf("own: %+v", own)
	}
	// 10 % is for those who say nothing
	if tenants := got.Rule("tenants"); tenants != (policy.RuleBudget{Reserve: 100, Limit: 300,
		Namespace: 50}) {
		t.Errorf("tenants: %+v", tenants)
	}
	if got.Shared() != 650 || got.Reserved() != 350 ||
		!strings.Contains(got.String(), "350 of all are reserved for rules") {
		t.Errorf("%s; %d are shared", got, got.Shared())
	}
	for _, c := range []struct{ old, new, want string }{
		{"25%}", "1001}", `line 11: budget.reserve: "1001" is neither`},
		{"25%}", "150%}", `line 11: budget.reserve: "150%" is neither`},
		{"25%}", "501}",
			`line 11: rule "own": budget.reserve: 501 is more than its service accounts may have, 500`},
		{"25%}", "400, limit: 300}",
			"line 11: budget.reserve: 400 is more than the limit of the rule, 300"},
		{"limit: 300,", "reserve: 751,", "line 14: budget.reserve: the reserves of all rules add " +
			"up to 1001, more than the total, 1000"},
		{"limit: 300,", "reserve: 0, limit: 0,", `line 14: budget.limit: "0" is neither`},
		{"perNamespace: 5%}", "perNamespace: 0%}", `line 14: budget.perNamespace: "0%" is neither`},
		{"reserve: 25%", "keep: 25%", `unknown key "keep"`},
		{"budget: {reserve: 25%}", "budget: {}", `line 11: the key "budget" is empty`},
	} {
		if found := mistakes(t, strings.Replace(twoRules, c.old, c.new, 1)); len(found) != 1 ||
			!strings.Contains(found[0], c.want) {
			t.Errorf("%s: %q; want %q", c.new, found, c.want)
		}
	}
	full := strings.NewReplacer("25%}", "500}", "limit: 300,", "reserve: 500,").Replace(twoRules)
	if got := parse(t, full).Budget(); got.Shared() != 0 {
		t.Errorf("%d are shared", got.Shared())
	}
	full = strings.Replace(full, "reserve: 500,", "reserve: 50%,", 1) +
		"  - name: third\n    from: {serviceAccounts: [b/b]}\n"
	if found := mistakes(t, full); len(found) != 1 ||
		!strings.Contains(found[0],
			`line 15: rule "third": the reserves of the other rules leave nothing for it`) {
		t.Errorf("%q", found)
	}
}

// Every rule of a built-in policy has a reserve, and what nobody reserves is room for a large
// cluster's other DaemonSets.
func TestBudgetsOfTheBuiltInPolicies(t *testing.T) {
	for _, name := range policy.BuiltInNames() {
		p := builtIn(t, name)
		b := p.Budget()
		for _, rule := range p.Rules() {
			if b.Rule(rule).Reserve < 100 {
				t.Errorf("%s: rule %s has a reserve of %d", name, rule, b.Rule(rule).Reserve)
			}
		}
		if b.Reserved() > b.Total || b.Shared() < 2*5_000 {
			t.Errorf("%s: %s; %d are shared", name, b, b.Shared())
		}
	}
}
