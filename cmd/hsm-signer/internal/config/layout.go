package config

import (
	"cmp"
	"path/filepath"
	"slices"

	"hsm-signer/cmd/hsm-signer/internal/pin"
	"hsm-signer/cmd/hsm-signer/internal/setting"
)

// Where a setting may be in CONFIG_FILE. One that is in neither list differs for each CA: it says
// what the CA is, where its key is, or what it grants, and no default can be right for two of them.
var (
	// processWide are the settings that the CAs share.
	processWide = []string{"KUBECONFIG", "LISTEN_ADDRESS", "STATUS_ADDRESS", "ALLOWED_HOSTS",
		"LOG_LEVEL", "LOG_FORMAT"}
	// inherited are the settings of which common may have a default.
	inherited = []string{"STATE_DIR", "LEASE_NAME", "LEASE_NAMESPACE", "LEADER_ELECT", "APPROVE",
		"BLOCKED_KEYS_FILE", "CLUSTER_DOMAIN", "TRUST_DOMAIN", "CERTIFICATE_LIFETIME",
		"POD_REFUSAL_DELAY", "DELETE_FINISHED_AFTER", "WORKERS", "ANSWER_RATE",
		"PKCS11_MAX_SESSIONS", "PKCS11_TIMEOUT", "JOURNAL_MAX_REQUESTS", "JOURNAL_MAX_UNFINISHED",
		"CHECKPOINT_INTERVAL"}
)

// allSettings are those that CONFIG_FILE may have.
func allSettings() []Setting {
	return slices.DeleteFunc(slices.Concat(ServiceSettings, TokenSettings, LogSettings),
		func(s Setting) bool { return s.Env == setting.FileVariable })
}

// layout returns where each setting may be in CONFIG_FILE.
func layout() setting.Layout {
	return setting.Layout{
		Known: variables(allSettings()), Shared: processWide, Inherited: inherited,
		Forbidden: map[string]string{pin.Variable: "this file holds no PIN: use " +
			"PKCS11_PIN_FILE, or pin-source in PKCS11_URI"},
	}
}

// variables returns those of the settings.
func variables(settings []Setting) (all []string) {
	for _, s := range settings {
		all = append(all, s.Env)
	}
	return all
}

// valueOf returns a setting of a CA. By default each CA of CONFIG_FILE has a directory below
// STATE_DIR, and a lease whose name begins with LEASE_NAME.
func valueOf(ca setting.CA, s Setting) string {
	value, own := ca.Value(s.Env)
	value = cmp.Or(value, s.Fallback)
	switch {
	case own || ca.Name == "":
	case s.Env == "STATE_DIR":
		return filepath.Join(value, ca.Name)
	case s.Env == "LEASE_NAME":
		return value + "-" + ca.Name
	}
	return value
}
