package config

import (
	"errors"
	"path/filepath"

	"hsm-signer/cmd/hsm-signer/internal/pin"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/hsm"
	"hsm-signer/hsm/pkcs11uri"
)

// readURI reads the URI. applyURI applies it when all variables are read.
func readURI(c *Config, v string) error {
	uri, err := pkcs11uri.Parse(v)
	if err != nil {
		return err
	}
	c.uri = &uri
	return uri.CheckKey()
}

// applyURI applies what the URI names. It replaces variables, so each of them may be set only once.
func (c *Config) applyURI(faults *setting.Faults, fromFlag bool) {
	if c.uri == nil {
		return
	}
	u, t := c.uri, &c.Token
	twice := func(variable string, set bool) {
		if set {
			faults.Addf(variable, "is set, and PKCS11_URI sets the same: set it once")
		}
	}
	twice("PKCS11_SLOT", t.Token.Slot != nil)
	twice("PKCS11_TOKEN_LABEL", t.Token.Label != "")
	twice("PKCS11_TOKEN_SERIAL", t.Token.Serial != "")
	twice("CA_KEY_LABEL", t.Key.Label != "" && (u.Object != "" || len(u.ID) > 0))
	twice("CA_KEY_ID", len(t.Key.ID) > 0 && (u.Object != "" || len(u.ID) > 0))
	twice("PKCS11_MODULE", t.Module != "" && (u.ModulePath != "" || u.ModuleName != ""))
	twice("PKCS11_PIN_FILE", t.PIN != nil && (u.PINSource != "" || u.PINValue != ""))
	if fromFlag && u.PINValue != "" {
		faults.Addf("--"+setting.FlagName(pin.URIVariable), "has a pin-value, and everyone on "+
			"this machine can see the flags of a process: use pin-source")
	}
	c.takeURI(faults)
}

func (c *Config) takeURI(faults *setting.Faults) {
	u, t := c.uri, &c.Token
	t.Token, t.Library = tokenOf(u), libraryOf(u)
	if u.Object != "" || len(u.ID) > 0 {
		t.Key = hsm.KeyID{Label: u.Object, ID: u.ID}
	}
	if path, err := modulePath(u); err != nil {
		faults.Add(pin.URIVariable, err)
	} else if path != "" {
		t.Module = path
	}
	switch {
	case u.PINValue != "":
		t.PIN = hsm.PIN(u.PINValue).Fixed()
	case u.PINSource != "":
		faults.Add(pin.URIVariable, readPINFile(c, u.PINSource))
	}
}

// tokenOf returns what names the token in a URI.
func tokenOf(u *pkcs11uri.URI) hsm.TokenID {
	return hsm.TokenID{
		Slot: u.SlotID, Label: u.Token, Serial: u.Serial, Manufacturer: u.Manufacturer,
		Model:           u.Model,
		SlotDescription: u.SlotDescription, SlotManufacturer: u.SlotManufacturer,
	}
}

// libraryOf returns what a URI says of the module.
func libraryOf(u *pkcs11uri.URI) hsm.LibraryID {
	return hsm.LibraryID{
		Manufacturer: u.LibraryManufacturer, Description: u.LibraryDescription,
		Version: (*hsm.Version)(u.LibraryVersion),
	}
}

// modulePath returns the path of the module in a URI; "" if it names none.
func modulePath(u *pkcs11uri.URI) (string, error) {
	if u.ModulePath != "" || u.ModuleName == "" {
		return u.ModulePath, nil
	}
	return findModule(u.ModuleName)
}

// modulePlaces are the directories in which distributions keep PKCS#11 modules.
var modulePlaces = []string{"/usr/lib/*/pkcs11/", "/usr/lib64/pkcs11/", "/usr/lib/pkcs11/",
	"/usr/lib/*/", "/usr/lib64/", "/usr/lib/", "/usr/lib/softhsm/"}

// findModule finds the module of that name (RFC 7512, section 2.3: without path, prefix or suffix).
func findModule(name string) (string, error) {
	for _, place := range modulePlaces {
		for _, file := range []string{name + ".so", "lib" + name + ".so"} {
			if found, err := filepath.Glob(place + file); err == nil && len(found) > 0 {
				return found[0], nil
			}
		}
	}
	return "", errors.New("module-name: there is no such module in the usual directories: name its " +
		"path by module-path or PKCS11_MODULE")
}
