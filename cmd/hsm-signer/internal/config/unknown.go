package config

import (
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/setting"
)

// WarnUnknown warns of variables that look like ours and are not known. It is no error: PKCS#11
// modules have variables of their own.
func WarnUnknown(logger hclog.Logger, environ []string) {
	var known []string
	for _, s := range slices.Concat(ServiceSettings, TokenSettings, LogSettings) {
		known = append(known, s.Env)
	}
	known = append(known, "PKCS11_PIN")
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		ours := strings.HasPrefix(name, "PKCS11_") || strings.HasPrefix(name, "CA_KEY_") ||
			strings.HasPrefix(name, "CHECKPOINT_")
		if ours && !slices.Contains(known, name) {
			logger.Warn("ignoring an unknown environment variable", "variable", name, "nearest",
				setting.Nearest(name, known))
		}
	}
}
