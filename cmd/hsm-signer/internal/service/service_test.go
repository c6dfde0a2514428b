package service

import (
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/cmd/hsm-signer/internal/pin"
	"hsm-signer/internal/must"
)

// allSettings are those of "run" and "check".
var allSettings = slices.Concat(config.ServiceSettings, config.TokenSettings, config.LogSettings)

// completeConfig is a configuration that "run" and "check" accept, without touching anything.
func completeConfig(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		must.OK(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	ca := fixture.NewCA(t)
	return map[string]string{
		"SIGNER_NAME": "example.com/calico", "STATE_DIR": filepath.Join(dir,
			"state"), "CA_KEY_LABEL": "ca",
		"PKCS11_MODULE": "/nowhere/module.so", "PKCS11_TOKEN_LABEL": "ca",
		"PKCS11_PIN_FILE": write("pin", "1234"),
		"CA_CERT_FILE": write("ca.crt",
			string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate.Raw}))),
		// A policy that depends on what other variables say.
		"POLICY_FILE": write("policy.yaml", `version: 1
rules:
  - name: metrics
    from: {serviceAccounts: [monitoring/metrics]}
    grant:
      dnsNames: [service: metrics]
      keys: [ecdsa-p256]
      usages: [digital signature]
      maxLifetime: 2w
      defaultLifetime: 1d12h
`),
		"KUBECONFIG": write("kubeconfig", "apiVersion: v1\nkind: Config\ncurrent-context: c\n"+
			"contexts: [{name: c, context: {cluster: c}}]\n"+
			"clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\n"),
	}
}

// configFaultsOf returns what is wrong with a configuration of "run".
func configFaultsOf(t *testing.T, variables map[string]string) (*config.Config, []string) {
	t.Helper()
	c, _, faults := serviceOf(t, variables)
	return c, faults
}

// serviceOf loads a configuration of "run", and returns what is wrong with it.
func serviceOf(t *testing.T, variables map[string]string) (*config.Config, *Service, []string) {
	t.Helper()
	for _, s := range allSettings {
		t.Setenv(s.Env, variables[s.Env])
	}
	t.Setenv(pin.Variable, "")
	command := &cobra.Command{}
	config.AddFlags(command, allSettings)
	c, faults := config.Read(command, allSettings)
	s := Load(c, faults, nil)
	return c, s, *faults
}

func TestCompleteConfiguration(t *testing.T) {
	if _, faults := configFaultsOf(t, completeConfig(t)); len(faults) > 0 {
		t.Errorf("%q", faults)
	}
}

// A mistake in one variable is said once, and causes no complaint about another.
func TestOneMistakeIsOneFault(t *testing.T) {
	election := map[string]string{"LEADER_ELECT": "true", "LEASE_NAMESPACE": "default"}
	checkpoints := map[string]string{"CHECKPOINT_PUBLIC_KEY_FILE": "/nowhere/checkpoint.pub"}
	cases := map[string]struct {
		value   string
		with    map[string]string
		without string
	}{
		"SIGNER_NAME":            {value: "calico"},
		"SIGNATURE_ALGORITHM":    {value: "MD5WithRSA"},
		"POLICY_FILE":            {value: "/nowhere/policy"},
		"BLOCKED_KEYS_FILE":      {value: "/nowhere/keys"},
		"CLUSTER_DOMAIN":         {value: "cluster local"},
		"POD_CERTIFICATES":       {value: "yes"},
		"POD_REFUSAL_DELAY":      {value: "soon"},
		"ROTATION_TRUST_TIME":    {value: "an hour"},
		"TRUST_BUNDLE_FILE":      {value: "/nowhere/roots.crt"},
		"TRUST_DOMAIN":           {value: "spiffe://example.org"},
		"CERTIFICATE_LIFETIME":   {value: "1 year"},
		"APPROVE":                {value: "shadwo", without: "PKCS11_MODULE"},
		"UNSET_SIGNER_NAME":      {value: "yes"},
		"WORKERS":                {value: "many"},
		"ANSWER_RATE":            {value: "fast"},
		"DELETE_FINISHED_AFTER":  {value: "1m"},
		"LEADER_ELECT":           {value: "yes", with: election, without: "LEASE_NAMESPACE"},
		"LEASE_NAMESPACE":        {value: "kube system", with: election},
		"LEASE_NAME":             {value: "a lease", with: election},
		"KUBECONFIG":             {value: "/nowhere/kubeconfig"},
		"CHECKPOINT_KEY_ID":      {value: "xyz", with: checkpoints},
		"CHECKPOINT_INTERVAL":    {value: "hourly"},
		"LISTEN_ADDRESS":         {value: "8080"},
		"STATUS_ADDRESS":         {value: "8081"},
		"CA_CERT_FILE":           {value: "/nowhere/ca.crt"},
		"PKCS11_SLOT":            {value: "first", without: "PKCS11_TOKEN_LABEL"},
		"PKCS11_PIN_FILE":        {value: "/nowhere/pin"},
		"CA_KEY_ID":              {value: "xyz", without: "CA_KEY_LABEL"},
		"PKCS11_MAX_SESSIONS":    {value: "-1"},
		"PKCS11_TIMEOUT":         {value: "10"},
		"ALLOW_EXTRACTABLE_KEY":  {value: "maybe"},
		"LOG_LEVEL":              {value: "loud"},
		"LOG_FORMAT":             {value: "xml"},
		"JOURNAL_MAX_REQUESTS":   {value: "all"},
		"JOURNAL_MAX_UNFINISHED": {value: "0"},
		"ALLOWED_HOSTS":          {value: "a host"},
		"NEXT_CA_CERT_FILE":      {value: "/nowhere/next.crt", with: election},
		"NEXT_CA_KEY_LABEL":      {value: "next"}, // without NEXT_CA_CERT_FILE
		"NEXT_CA_KEY_ID":         {value: "xyz"},
		"NEXT_PKCS11_URI":        {value: "pkcs12:"},

		"TRUST_BUNDLE_NAMESPACES":  {value: "default"}, // without TRUST_BUNDLE_FILE
		"NEXT_SIGNATURE_ALGORITHM": {value: "MD5WithRSA"},
		"NEXT_TRUST_BUNDLE_FILE":   {value: "/nowhere/roots.crt"},
		pin.URIVariable:            {value: "pkcs12:", without: "PKCS11_TOKEN_LABEL"},
	}
	anything := []string{"PKCS11_MODULE", "PKCS11_TOKEN_LABEL", "PKCS11_TOKEN_SERIAL",
		"CA_KEY_LABEL", "STATE_DIR", "CHECKPOINT_KEY_LABEL", "CHECKPOINT_PUBLIC_KEY_FILE",
		"WITNESS_FILE", "CONFIG_FILE"}
	for _, s := range allSettings {
		if _, tried := cases[s.Env]; !tried && !slices.Contains(anything, s.Env) {
			t.Errorf("no wrong value of %s is tried", s.Env)
		}
	}
	for variable, c := range cases {
		t.Run(variable, func(t *testing.T) {
			variables := completeConfig(t)
			maps.Copy(variables, c.with)
			delete(variables, c.without)
			variables[variable] = c.value
			if _, faults := configFaultsOf(t, variables); len(faults) != 1 ||
				!strings.HasPrefix(faults[0], variable+": ") {
				t.Errorf("%q", faults)
			}
		})
	}
}

// A shadow writes nothing to the cluster, so it deletes nothing either.
func TestShadowDeletesNothing(t *testing.T) {
	variables := completeConfig(t)
	variables["DELETE_FINISHED_AFTER"] = "5m"
	if c, faults := configFaultsOf(t, variables); len(faults) > 0 ||
		c.DeleteFinishedAfter != 5*time.Minute {
		t.Errorf("%v, %q", c.DeleteFinishedAfter, faults)
	}
	variables["APPROVE"] = "shadow"
	_, faults := configFaultsOf(t, variables)
	if len(faults) != 1 ||
		!strings.HasPrefix(faults[0], "DELETE_FINISHED_AFTER: is set, and APPROVE is shadow") {
		t.Errorf("%q", faults)
	}
}

// Wherever a duration can be said, days and weeks can be.
func TestDurationsTakeDaysAndWeeks(t *testing.T) {
	variables := completeConfig(t)
	maps.Copy(variables,
		map[string]string{"CERTIFICATE_LIFETIME": "1w2d12h", "CHECKPOINT_INTERVAL": "1d",
			"PKCS11_TIMEOUT": "0.5d"})
	c, faults := configFaultsOf(t, variables)
	if len(faults) > 0 || c.Lifetime != 228*time.Hour || c.Checkpoints.Interval != 24*time.Hour ||
		c.Token.Timeout != 12*time.Hour {
		t.Errorf("%q; %v, %v, %v", faults, c.Lifetime, c.Checkpoints.Interval, c.Token.Timeout)
	}
}
