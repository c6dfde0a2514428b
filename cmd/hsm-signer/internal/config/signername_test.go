package config

import (
	"bytes"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

func TestSignerNames(t *testing.T) {
	for name, words := range map[string]string{
		"example.com/calico":        "",
		"a.b/c.d":                   "",
		"a.b/c/d":                   "is not a signer name",
		"a.b/C d":                   "is not a signer name",
		"a.b/c=d":                   "is not a signer name",
		"calico":                    "is not a signer name",
		"com/calico":                "is not a signer name",
		"example.com/":              "is not a signer name",
		"kubernetes.io/x":           "reserved",
		"a.kubernetes.io/x":         "reserved",
		"tigera.io/operator-signer": "Calico operator",
	} {
		err := checkSignerName(name)
		if (err == nil) != (words == "") || err != nil && !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUnknownVariablesAreWarnedOf(t *testing.T) {
	var log bytes.Buffer
	WarnUnknown(hclog.New(&hclog.LoggerOptions{Output: &log}),
		[]string{"PKCS11_MODUEL=x", "PKCS11_PIN=y", "CA_KEY_LABEL=z", "CA_KEY_LABLE=z", "HOME=/"})
	if text := log.String(); strings.Count(text, "WARN") != 2 ||
		!strings.Contains(text, "nearest=PKCS11_MODULE") ||
		!strings.Contains(text, "nearest=CA_KEY_LABEL") {
		t.Error(text)
	}
}
