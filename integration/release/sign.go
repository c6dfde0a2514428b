package release

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"hsm-signer/hsm"
	"hsm-signer/hsm/pkcs11uri"
)

// The signature of the checksums, and the key that verifies it.
const (
	signatureFile = checksumFile + ".sig"
	publicKeyFile = "release-key.pub"
)

// A Key names the key that signs a release.
type Key struct {
	Name   string // a file with a private key (PEM), or a PKCS#11 URI; empty: do not sign
	Public string // for a PKCS#11 URI: a file with its public key or its certificate (PEM)
}

// open returns a signer with the key. The caller must call the function. It returns an error unless
// the key is an RSA or ECDSA key, which "openssl dgst" verifies.
func (k Key) open(ctx context.Context) (crypto.Signer, func(), error) {
	if strings.HasPrefix(k.Name, "pkcs11:") {
		return k.inToken(ctx)
	}
	block, err := readPEM(k.Name)
	if err != nil {
		return nil, nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		if parsed, err = x509.ParseECPrivateKey(block.Bytes); err != nil {
			parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		}
	}
	signer, ok := parsed.(crypto.Signer)
	if err != nil || !ok || !verifiable(signer.Public()) {
		return nil, nil, fmt.Errorf("release: the key in %s must be an RSA or ECDSA key without a "+
			"password: convert it with \"openssl pkey\"", k.Name)
	}
	return signer, func() {}, nil
}

// inToken returns the key that a URI names.
func (k Key) inToken(ctx context.Context) (crypto.Signer, func(), error) {
	uri, err := pkcs11uri.Parse(k.Name)
	if err == nil {
		err = uri.CheckKey()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("release: the signing key's URI: %w", err)
	}
	if uri.ModulePath == "" || uri.PINSource == "" {
		return nil, nil, errors.New("release: the signing key's URI needs module-path and " +
			"pin-source, the paths of the PKCS#11 module and of a file with the PIN")
	}
	public, err := k.public()
	if err != nil {
		return nil, nil, err
	}
	pin, err := os.ReadFile(uri.PINSource)
	if err != nil {
		return nil, nil, fmt.Errorf("release: read the PIN: %w", err)
	}
	key, err := hsm.NewKey(hsm.Config{Module: uri.ModulePath,
		Token: hsm.TokenID{Slot: uri.SlotID, Label: uri.Token, Serial: uri.Serial,
			Manufacturer: uri.Manufacturer, Model: uri.Model,
			SlotDescription: uri.SlotDescription, SlotManufacturer: uri.SlotManufacturer},
		PIN: hsm.PIN(strings.TrimRight(string(pin), "\r\n")).Fixed(),
		Key: hsm.KeyID{Label: uri.Object, ID: uri.ID},
	}, public)
	if err != nil {
		return nil, nil, fmt.Errorf("release: the signing key: %w", err)
	}
	return key.Signer(ctx), key.Close, nil
}

// public returns the public half of a key in a token.
func (k Key) public() (crypto.PublicKey, error) {
	if k.Public == "" {
		return nil, errors.New("release: a signing key in a token needs a file with its public key " +
			"or certificate: set SIGNING_PUBLIC_KEY")
	}
	block, err := readPEM(k.Public)
	if err != nil {
		return nil, err
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if certificate, wrong := x509.ParseCertificate(block.Bytes); wrong == nil {
		public, err = certificate.PublicKey, nil
	}
	if err != nil || !verifiable(public) {
		return nil, fmt.Errorf("release: %s must have a certificate or public key, RSA or ECDSA",
			k.Public)
	}
	return public, nil
}

func readPEM(name string) (*pem.Block, error) {
	content, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("release: read the signing key: %w", err)
	}
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "EC PARAMETERS" {
			return block, nil
		}
	}
	return nil, fmt.Errorf("release: %s has no PEM block", name)
}

// verifiable reports whether "openssl dgst" can verify signatures of the key.
func verifiable(public crypto.PublicKey) bool {
	switch public.(type) {
	case *rsa.PublicKey, *ecdsa.PublicKey:
		return true
	}
	return false
}

// sign signs a message, with SHA-256. An RSA signature is of PKCS #1 v1.5.
func sign(key crypto.Signer, message []byte) ([]byte, error) {
	hash := sha256.Sum256(message)
	signature, err := key.Sign(rand.Reader, hash[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("release: sign: %w", err)
	}
	return signature, nil
}

// attest writes the provenance. If there is a key, it signs the checksums and the provenance.
func (b *build) attest(ctx context.Context) error {
	if b.Key.Name == "" {
		b.say("no SIGNING_KEY is set: nothing is signed")
		return b.writeProvenance(nil)
	}
	key, done, err := b.Key.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	sums, err := os.ReadFile(b.out(checksumFile))
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	signature, err := sign(key, sums)
	if err != nil {
		return err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("release: write the public key: %w", err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
	for name, content := range map[string][]byte{signatureFile: signature, publicKeyFile: public} {
		if err := os.WriteFile(b.out(name), content, 0o644); err != nil {
			return fmt.Errorf("release: %w", err)
		}
	}
	b.say("signed; %s has the key's public half", filepath.Join(b.Out, publicKeyFile))
	return b.writeProvenance(key)
}
