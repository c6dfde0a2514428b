package pkcs11uri

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func slotID(n uint) *uint { return &n }

// goodURIs are URIs and what they say. The first are p11tool's own, then of RFC 7512, section 3.
var goodURIs = []struct {
	text string
	want URI
}{
	{
		"pkcs11:model=SoftHSM%20v2;manufacturer=SoftHSM%20project;serial=dee1b799b73fc4f8;token=ca",
		URI{Model: "SoftHSM v2", Manufacturer: "SoftHSM project", Serial: "dee1b799b73fc4f8",
			Token: "ca"},
	},
	{
		"pkcs11:model=SoftHSM%20v2;manufacturer=SoftHSM%20project;serial=dee1b799b73fc4f8;token=ca;id=%02;object=a%20b%3Bc;type=private",
		URI{Model: "SoftHSM v2", Manufacturer: "SoftHSM project", Serial: "dee1b799b73fc4f8",
			Token: "ca", ID: []byte{2}, Object: "a b;c", Type: "private"},
	},
	{
		"pkcs11:library-description=OpenSC%20smartcard%20framework;library-manufacturer=OpenSC%20Project;library-version=0.23;slot-description=Virtual%20hotplug%20slot;slot-manufacturer=x;slot-id=4294967295",
		URI{
			LibraryDescription: "OpenSC smartcard framework", LibraryManufacturer: "OpenSC Project",
			LibraryVersion:  &Version{0, 23},
			SlotDescription: "Virtual hotplug slot", SlotManufacturer: "x",
			SlotID: slotID(1<<32 - 1),
		},
	},
	{"pkcs11:", URI{}},
	{"pkcs11:?", URI{}},
	{"pkcs11:object=my-pubkey;type=public", URI{Object: "my-pubkey", Type: "public"}},
	{
		"pkcs11:object=my-key;type=private?pin-source=file:/etc/token",
		URI{Object: "my-key", Type: "private", PINSource: "/etc/token"},
	},
	{
		"pkcs11:object=my-sign-key;type=private?module-name=mypkcs11",
		URI{Object: "my-sign-key", Type: "private", ModuleName: "mypkcs11"},
	},
	{
		"pkcs11:token=Software%20PKCS%2311%20softtoken;manufacturer=Snake%20Oil,%20Inc.?pin-value=the-pin",
		URI{Token: "Software PKCS#11 softtoken", Manufacturer: "Snake Oil, Inc.",
			PINValue: "the-pin"},
	},
	{"pkcs11:slot-description=Sun%20Metaslot", URI{SlotDescription: "Sun Metaslot"}},
	{
		"pkcs11:token=My%20token%25%20created%20by%20Joe;library-version=3;id=%01%02%03%Ba%dd%Ca%fe%04%05%06",
		URI{Token: "My token% created by Joe", LibraryVersion: &Version{3, 0},
			ID: []byte{1, 2, 3, 0xba, 0xdd, 0xca, 0xfe, 4, 5, 6}},
	},
	{"pkcs11:token=A%20name%20with%20a%20substring%20%25%3B;object=my-certificate;type=cert",
		URI{Token: "A name with a substring %;", Object: "my-certificate", Type: "cert"}},

	{"pkcs11:object=%C3%A1", URI{Object: "á"}},
	{"PKCS11:token=ca", URI{Token: "ca"}},
	{"pkcs11:token=a+b", URI{Token: "a+b"}},
	{"pkcs11:token=a=b&c", URI{Token: "a=b&c"}},
	{"pkcs11:id=raw", URI{ID: []byte("raw")}},
	{"pkcs11:id=%00%FF%0a", URI{ID: []byte{0, 255, 10}}},
	{"pkcs11:slot-id=007", URI{SlotID: slotID(7)}},
	{"pkcs11:slot-id=18446744073709551615", URI{SlotID: slotID(1<<64 - 1)}},
	{"pkcs11:library-version=255.255", URI{LibraryVersion: &Version{255, 255}}},
	{"pkcs11:type=secret-key", URI{Type: "secret-key"}},
	{"pkcs11:type=data", URI{Type: "data"}},
	{"pkcs11:?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/run/pin",
		URI{ModulePath: "/usr/lib/softhsm/libsofthsm2.so", PINSource: "/run/pin"}},
	{"pkcs11:?pin-source=pin", URI{PINSource: "pin"}},
	{"pkcs11:?pin-source=FILE:///run/my%2520pin", URI{PINSource: "/run/my pin"}},
	{"pkcs11:?pin-source=file://localhost/run/pin", URI{PINSource: "/run/pin"}},
	{"pkcs11:?pin-source=/run/a|b?c", URI{PINSource: "/run/a|b?c"}},
	{"pkcs11:?pin-value=1%262%3D/?|", URI{PINValue: "1&2=/?|"}},
}

func TestURIs(t *testing.T) {
	for _, c := range goodURIs {
		got, err := Parse(c.text)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %#v, %v; want %#v", c.text, got, err, c.want)
		}
		requireSame(t, got)
	}
}

// requireSame requires the URI, printed with all that it says, to be read as the same.
func requireSame(t *testing.T, u URI) {
	t.Helper()
	if again, err := Parse(u.withPIN()); err != nil || !reflect.DeepEqual(again, u) {
		t.Errorf("%q is read as %#v, %v; want %#v", u.withPIN(), again, err, u)
	}
}

// p11tool's URIs are printed as p11tool prints them.
func TestURIsArePrintedLikeP11tool(t *testing.T) {
	for _, c := range goodURIs[:3] {
		if u, err := Parse(c.text); err != nil || u.String() != c.text {
			t.Errorf("%s, %v; want %s", u, err, c.text)
		}
	}
}

// p11tool writes what a module pads texts of a fixed length with: NULs, blanks, or whatever follows
// a NUL.
func TestPaddingInURIs(t *testing.T) {
	const padded = "pkcs11:model=m%00%00;manufacturer=by%20us%20%20%00;serial=0%00%00;token=ca%00xx%00"
	want := URI{Model: "m", Manufacturer: "by us", Serial: "0", Token: "ca"}
	if u, err := Parse(padded); err != nil || !reflect.DeepEqual(u, want) {
		t.Errorf("%+v, %v", u, err)
	}
	for text, want := range map[string]string{"ca": "ca", "ca  ": "ca", "ca\x00\x00": "ca",
		"ca \x00 ": "ca", "ca\x00xxx": "ca", " ca": " ca", "": ""} {
		if got := trimPadding(text); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}

func TestURIsWithMistakes(t *testing.T) {
	for text, want := range map[string]string{
		// Two examples of RFC 7512, section 3: an empty value, and a label that no token can have.
		"pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;serial=?pin-source=file:/etc/token_pin": "serial is empty",
		"pkcs11:token=Name%20with%20a%20small%20A%20with%20acute:%20%C3%A1;object=my-certificate;type=cert":                           "token has 34 bytes",

		"":                          "does not begin with",
		"pkcs1":                     "does not begin with",
		"token=ca":                  "does not begin with",
		"pkcs12:token=ca":           "does not begin with",
		" pkcs11:token=ca":          "does not begin with",
		"pkcs11:;":                  `attribute 1 of its path is empty: there is one ";" too many`,
		"pkcs11:token=ca;":          "attribute 2 of its path is empty",
		"pkcs11:token=ca;;object=a": "attribute 2 of its path is empty",
		"pkcs11:?&":                 "attribute 1 of its query is empty",
		"pkcs11:?module-name=a&":    "attribute 2 of its query is empty",
		"pkcs11:token": "attribute 1 of its path has no value: write " +
			"NAME=VALUE, and \";\" in a value as %3B",
		"pkcs11:?module-name":                      "as %26",
		"pkcs11:=a":                                `is not one of RFC 7512 ("")`,
		"pkcs11:token=":                            "token is empty: leave it out",
		"pkcs11:id=":                               "id is empty",
		"pkcs11:slot-id=":                          "slot-id is empty",
		"pkcs11:tokne=ca":                          `is not one of RFC 7512 ("tokne")`,
		"pkcs11:Token=ca":                          `("Token"): correct its name (they are in lower case)`,
		"pkcs11:x-vendor=1":                        `attribute 1 of its path is a vendor's own ("x-vendor")`,
		"pkcs11:?x-vendor=1":                       "attribute 1 of its query is a vendor's own",
		"pkcs11:token=a;token=a":                   "attribute 2 of its path is a second token",
		"pkcs11:?module-name=a&module-name=b":      "is a second module-name",
		"pkcs11:pin-source=/run/pin":               "is pin-source, which does not belong there",
		"pkcs11:?token=ca":                         "is token, which does not belong there",
		"pkcs11:token=a b":                         "token has a character that must be percent-encoded",
		"pkcs11:token=a/b":                         "at position 2",
		"pkcs11:token=a#b":                         "must be percent-encoded",
		"pkcs11:token=á":                           "must be percent-encoded",
		"pkcs11:?module-path=/a;b=c":               "module-path has a character",
		"pkcs11:token=%":                           "token ends in the middle",
		"pkcs11:token=a%2":                         "token ends in the middle",
		"pkcs11:token=%zz":                         `without two hexadecimal digits`,
		"pkcs11:token=%C3":                         "token is not UTF-8",
		"pkcs11:object=a%00":                       "object has control characters",
		"pkcs11:token=%00%00":                      "token is empty",
		"pkcs11:token=%0aca":                       "token has control characters",
		"pkcs11:?module-path=/a%0A":                "module-path has control characters",
		"pkcs11:token=" + strings.Repeat("a", 33):  "token has 33 bytes",
		"pkcs11:serial=" + strings.Repeat("a", 17): "serial has 17 bytes",
		"pkcs11:id=" + strings.Repeat("a", 1025):   "id has 1025 bytes",
		"pkcs11:id=" + strings.Repeat("a", 1<<20):  "are not read",
		"pkcs11:slot-id=-1":                        "slot-id is not a slot id",
		"pkcs11:slot-id=+1":                        "slot-id is not a slot id",
		"pkcs11:slot-id=0x1":                       "slot-id is not a slot id",
		"pkcs11:slot-id=18446744073709551616":      "slot-id is not a slot id",
		"pkcs11:library-version=2.":                "library-version is not a version",
		"pkcs11:library-version=.1":                "library-version is not a version",
		"pkcs11:library-version=1.2.3":             "library-version is not a version",
		"pkcs11:library-version=256.0":             "library-version is not a version",
		"pkcs11:library-version=+1.0":              "library-version is not a version",
		"pkcs11:type=Private":                      "type is not one of private, public",
		"pkcs11:?module-name=/usr/lib/x":           "module-name has a path in it",
		"pkcs11:?pin-source=|cat%20/run/pin":       "pin-source is a command, which is never run",
		"pkcs11:?pin-source=%7Ccat":                "pin-source is a command",
		"pkcs11:?pin-source=https://a/pin":         "neither a path nor a file: URI",
		"pkcs11:?pin-source=file:pin":              "is not a file: URI of this machine",
		"pkcs11:?pin-source=file://other/pin":      "is not a file: URI of this machine",
		"pkcs11:?pin-source=file:/pin?a":           "is not a file: URI of this machine",
		"pkcs11:?pin-source=file:/a%2500":          "pin-source has control characters",
		"pkcs11:?pin-source=/run/pin&pin-value=1":  "both pin-source and pin-value",
	} {
		if u, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, %v; want %q", text, u, err, want)
		}
	}
}

// Whatever is wrong around it, the PIN is not shown.
func TestURIDoesNotShowThePIN(t *testing.T) {
	for _, text := range []string{
		"pkcs11:?pin-value=canary%", "pkcs11:?pin-value=canary canary",
		"pkcs11:?pin-value=canary%00", "pkcs11:?pin-value=canary&pin-value=canary",
		"pkcs11:?pin-value=1&canary=2", "pkcs11:?pin-value=1&x-canary=2",
		"pkcs11:?pin-value=1&canary", "pkcs11:?pin-value=1;canary=2", "pkcs11:pin-value=canary",
		"pkcs11:pin-value=1;canary=2", "pkcs11:?PIN-VALUE=1&canary=2",
		"pkcs11:?pin-value=canary&pin-source=/run/pin", "pin-value=canary", "pkcs11:?canary",
	} {
		if _, err := Parse(text); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", text, err)
		}
	}
	u, err := Parse("pkcs11:token=ca?pin-value=canary")
	if err != nil || u.String() != "pkcs11:token=ca?pin-value=not-shown" || u.PINValue != "canary" {
		t.Errorf("%s, %v", u, err)
	}
	text, err := json.Marshal(u)
	if shown := fmt.Sprintf("%v %+v %#v %s %q %x", u, u, u, u, u, u) + string(text); err != nil ||
		strings.Contains(shown, "canary") {
		t.Errorf("%v: %s", err, shown)
	}
}

func TestURIOfAKey(t *testing.T) {
	for kind, fits := range map[string]bool{"": true, "private": true, "public": false,
		"cert": false} {
		if err := (URI{Type: kind}).CheckKey(); (err == nil) != fits {
			t.Errorf("type %q: %v", kind, err)
		}
	}
}

// Nothing panics, and what is read, printed with all that it says, is read as the same.
func FuzzURI(f *testing.F) {
	for _, c := range goodURIs {
		f.Add(c.text)
	}
	f.Add("pkcs11:?pin-source=|x&pin-value=%zz")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := Parse(text)
		if err != nil {
			return
		}
		requireSame(t, u)
		if u.PINValue != "" && !strings.Contains(u.String(), "pin-value=not-shown") {
			t.Errorf("the PIN is shown in %s", u)
		}
	})
}
