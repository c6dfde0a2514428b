package config

import (
	"crypto/x509"
	"errors"

	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/hsm"
	"hsm-signer/hsm/pkcs11uri"
	"hsm-signer/issuer"
)

// NextCA is what the configuration says of the next CA, to which a rotation leads.
type NextCA struct {
	CertFile   string
	BundleFile string // with its root certificates
	Algorithm  x509.SignatureAlgorithm
	Set        []string // the variables that are set
	key        hsm.KeyID
	uri        *pkcs11uri.URI // of the key, if it is in another token
	pin        hsm.PINSource  // of that token
}

const nextURI = "NEXT_PKCS11_URI"

// NextCASettings are those of the next CA.
var NextCASettings = []Setting{
	{"NEXT_CA_CERT_FILE", "",
		"PEM file of the next CA, for a rotation: its certificate, then its chain",
		ofNext("NEXT_CA_CERT_FILE",
			func(n *NextCA, v string) error { n.CertFile = v; return nil })},
	{"NEXT_CA_KEY_LABEL", "",
		"label of the next CA's key, in the token of the CA's key",
		ofNext("NEXT_CA_KEY_LABEL",
			func(n *NextCA, v string) error { n.key.Label = v; return nil })},
	{"NEXT_CA_KEY_ID", "",
		"id of the next CA's key, in hex",
		ofNext("NEXT_CA_KEY_ID", func(n *NextCA, v string) (err error) {
			n.key.ID, err = parseKeyID(v)
			return err
		})},
	{nextURI, "",
		"PKCS#11 URI (RFC 7512) of the next CA's key, instead of its label and id; its token " +
			"may be another one",
		readNextURI},
	{"NEXT_SIGNATURE_ALGORITHM", "",
		"signature algorithm of the next CA's certificates (by default as for " +
			"SIGNATURE_ALGORITHM)",
		ofNext("NEXT_SIGNATURE_ALGORITHM", func(n *NextCA, v string) (err error) {
			n.Algorithm, err = issuer.ParseAlgorithm(v)
			return err
		})},
	{"NEXT_TRUST_BUNDLE_FILE", "",
		"PEM file with the next CA's root certificates, to publish with those of " +
			"TRUST_BUNDLE_FILE",
		ofNext("NEXT_TRUST_BUNDLE_FILE",
			func(n *NextCA, v string) error { n.BundleFile = v; return nil })},
}

// ofNext returns a reader that records that the variable is set, and stores its value.
func ofNext(variable string, read func(*NextCA, string) error) func(*Config, string) error {
	return func(c *Config, v string) error {
		c.NextCA.Set = append(c.NextCA.Set, variable)
		return read(&c.NextCA, v)
	}
}

// readNextURI reads the URI of the next CA's key. Its PIN must be in a file: one in a variable can
// be seen by others.
func readNextURI(c *Config, v string) error {
	c.NextCA.Set = append(c.NextCA.Set, nextURI)
	uri, err := pkcs11uri.Parse(v)
	if err != nil {
		return err
	}
	c.NextCA.uri = &uri
	switch {
	case uri.PINValue != "":
		return errors.New("has a pin-value: name a file by pin-source")
	case uri.PINSource == "":
		return errors.New("names no PIN: add ?pin-source=file:/PATH")
	case uri.Object == "" && len(uri.ID) == 0:
		return errors.New("names no key: add object or id")
	}
	c.NextCA.pin, err = c.pinInFile(nextURI, uri.PINSource)
	return errors.Join(err, uri.CheckKey())
}

// OfNext returns the configuration in which the next CA is the CA; nil if none is configured.
func (c *Config) OfNext(faults *setting.Faults) *Config {
	if c.NextCA.CertFile == "" {
		return nil
	}
	next := *c
	next.CACertFile, next.Token, next.Algorithm = c.NextCA.CertFile, c.NextToken(faults),
		c.NextCA.Algorithm
	return &next
}

// LoadNextCA returns the CA of NEXT_CA_CERT_FILE; nil if that is not set.
func (c *Config) LoadNextCA(faults *setting.Faults) *issuer.CA {
	if c.NextCA.CertFile == "" {
		return nil
	}
	return readCA("NEXT_CA_CERT_FILE", c.NextCA.CertFile, faults)
}

// LoadNextRoots is LoadRoots for NEXT_TRUST_BUNDLE_FILE.
func (c *Config) LoadNextRoots(faults *setting.Faults) issuer.Anchors {
	if c.NextCA.BundleFile == "" {
		return nil
	}
	return readRoots("NEXT_TRUST_BUNDLE_FILE", c.NextCA.BundleFile, faults)
}

// NextToken returns what names the token and the key of the next CA. Without a URI it is the token
// of the CA's key.
func (c *Config) NextToken(faults *setting.Faults) hsm.Config {
	n, token := c.NextCA, c.Token
	token.Key = n.key
	switch {
	case n.uri == nil && n.key.Label == "" && len(n.key.ID) == 0:
		faults.Missing("NEXT_CA_KEY_LABEL", "is not set, and neither is NEXT_CA_KEY_ID nor "+
			"NEXT_PKCS11_URI: name the next CA's key by one of them", "NEXT_CA_KEY_ID", nextURI)
	case n.uri == nil:
	case n.key.Label != "" || len(n.key.ID) > 0:
		faults.Addf(nextURI, "is set, and so is NEXT_CA_KEY_LABEL or NEXT_CA_KEY_ID: name the "+
			"next CA's key once")
	default:
		u := n.uri
		token.Token, token.Library, token.PIN = tokenOf(u), libraryOf(u), n.pin
		token.Key = hsm.KeyID{Label: u.Object, ID: u.ID}
		if path, err := modulePath(u); err != nil {
			faults.Add(nextURI, err)
		} else if path != "" {
			token.Module = path
		}
	}
	return token
}
