package ceremony

import (
	"crypto/x509/pkix"
	"reflect"
	"strings"
	"testing"
)

func TestSubjects(t *testing.T) {
	name, err := parseSubject(`CN=Calico CA, O=Example\, Inc.,OU=PKI,C=CH`)
	if err != nil || name.CommonName != "Calico CA" || name.Organization[0] != "Example, Inc." ||
		name.Country[0] != "CH" {
		t.Errorf("%+v %v", name, err)
	}
	name, err = parseSubject(" CN = Corp CA , O= Example\\, Inc. ,O=Zürich\n")
	want := pkix.Name{CommonName: "Corp CA", Organization: []string{"Example, Inc.", "Zürich"}}
	if err != nil || !reflect.DeepEqual(name, want) {
		t.Errorf("blanks are kept: %+v %v", name, err)
	}
	for bad, words := range map[string]string{
		"": "TYPE=VALUE", "O=x": "no common name", "CN": "TYPE=VALUE", "CN=": "TYPE=VALUE",
		"CN=a,":    "TYPE=VALUE",
		"CN= ,O=x": "TYPE=VALUE", "CN=a,X=b": "not known", "CN=a,CN=b": "more than one",
		"CN=a\nb": "(U+000A)", "CN=a\x00b": "(U+0000)", "CN=a\u00a0": "(U+00A0)",
		"CN=\ufeffa":  "(U+FEFF)",
		"CN=a\u202eb": "(U+202E)", "CN=a\u2028": "(U+2028)", "CN=a\xff": "UTF-8",
		"CN=a,C=CHE": "two letters",
		"CN=a,C=C1":  "two letters", "CN=a,C=ÄÖ": "two letters",
	} {
		if _, err := parseSubject(bad); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v, want %q", bad, err, words)
		}
	}
	for kind, most := range map[string]int{"CN": 64, "O": 64, "OU": 64, "L": 128, "ST": 128} {
		for length, fits := range map[int]bool{most: true, most + 1: false} {
			text := kind + "=" + strings.Repeat("ü", length)
			if kind != "CN" {
				text += ",CN=x"
			}
			if _, err := parseSubject(text); (err == nil) != fits {
				t.Errorf("%s of %d characters: %v", kind, length, err)
			}
		}
	}
}
