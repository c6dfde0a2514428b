// Package ceremony holds the "ca" commands: they create a CA whose key never leaves the token,
// import its certificate from an offline root, certify the next CA by it, and show all of them.
//
// A ceremony overwrites and deletes nothing, in the token or on disk. The running service never
// creates a key or a CA.
package ceremony

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/fingerprint"
	"hsm-signer/cmd/hsm-signer/internal/rotate"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/cmd/hsm-signer/internal/terminal"
	"hsm-signer/hsm"
	"hsm-signer/issuer"
)

func NewCommand() *cobra.Command {
	command := &cobra.Command{Use: "ca", Short: "The key ceremony: create a CA whose key stays " +
		"in the token; the change from one CA to the next"}
	command.AddCommand(newCACreateCommand(), newCAImportCommand(), newCACrossSignCommand(),
		newCACheckpointKeyCommand(), newCAShowCommand(), rotate.NewCommand())
	return command
}

// certificateFacts are what people compare and record of a CA's certificate.
type certificateFacts struct {
	Subject     string    `json:"subject"`
	Issuer      string    `json:"issuer"`
	Serial      string    `json:"serial"`
	NotBefore   time.Time `json:"notBefore"`
	NotAfter    time.Time `json:"notAfter"`
	DaysLeft    int       `json:"daysLeft"`
	Constraints string    `json:"constraints"`
	Algorithm   string    `json:"signatureAlgorithm"`
	SHA256      string    `json:"sha256"`          // of the whole, as sha256sum prints it
	PublicKey   string    `json:"publicKeySHA256"` // of the SubjectPublicKeyInfo
}

func factsOf(cert *x509.Certificate) certificateFacts {
	return certificateFacts{
		Subject: cert.Subject.String(), Issuer: cert.Issuer.String(),
		Serial:    hex.EncodeToString(cert.SerialNumber.Bytes()),
		NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(),
		DaysLeft:    int(time.Until(cert.NotAfter).Hours() / 24),
		Constraints: issuer.ConstraintsOf(cert).String(),
		Algorithm:   issuer.AlgorithmName(cert.SignatureAlgorithm),
		SHA256:      fingerprint.Of(cert.Raw),
		PublicKey:   fingerprint.Of(cert.RawSubjectPublicKeyInfo),
	}
}

// lines returns the facts, one a line.
func (f certificateFacts) lines() string {
	return fmt.Sprintf(`  subject        %s
  issuer         %s
  serial number  %s
  valid from     %s
  valid until    %s (%d days left)
  constraints    %s
  signed with    %s
  SHA-256        %s
  public key     %s (SHA-256)
`, f.Subject, f.Issuer, f.Serial, terminal.LocalTime(f.NotBefore),
		terminal.LocalTime(f.NotAfter), f.DaysLeft, f.Constraints, f.Algorithm, f.SHA256,
		f.PublicKey)
}

// attributeLines returns the attributes of a private key, one a line.
func attributeLines(attributes []hsm.Attribute) string {
	digit := map[bool]string{true: "1", false: "0"}
	var text strings.Builder
	for _, a := range attributes {
		value := digit[a.Is]
		switch {
		case !a.Known:
			value = "unknown to the token"
		case a.Is != a.Want:
			value += " (should be " + digit[a.Want] + ")"
		}
		fmt.Fprintf(&text, "  %-21s  %s\n", a.Name, value)
	}
	return text.String()
}

// tokenLines returns the token's description of itself.
func tokenLines(t hsm.Token) string {
	return fmt.Sprintf(`  label          %s
  serial number  %s
  model          %s
  manufacturer   %s
  hardware       %s
  firmware       %s
`, t.Label, t.Serial, t.Model, t.Manufacturer, t.Hardware, t.Firmware)
}

// requireNew adds a fault if the file exists, or cannot be created.
func requireNew(flag, path string, faults *setting.Faults) {
	switch _, err := os.Lstat(path); {
	case err == nil:
		faults.Addf(flag, "%s already exists; nothing was created", path)
	case !errors.Is(err, fs.ErrNotExist):
		faults.Add(flag, err)
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || !info.IsDir() {
		faults.Addf(flag, "there is no directory %s; nothing was created", filepath.Dir(path))
	}
}

// requireNewFiles adds a fault for each of the files of --out and --transcript that cannot be
// created. The transcript may be empty.
func requireNewFiles(out, transcript string, faults *setting.Faults) {
	requireNew("--out", out, faults)
	if transcript != "" {
		requireNew("--transcript", transcript, faults)
	}
	if transcript == out {
		faults.Addf("--transcript", "is the same file as --out")
	}
}

// writeNew writes a file that does not exist yet.
func writeNew(path string, text []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	return errors.Join(err, file.Sync(), file.Close())
}

// existingKey looks up the key that the configuration names, and the token that it is in.
func existingKey(ctx context.Context, c *config.Config, known crypto.PublicKey) (hsm.KeyPair,
	hsm.Token, error) {
	ceremony, err := hsm.OpenCeremony(ctx, c.Token)
	if err != nil {
		return hsm.KeyPair{}, hsm.Token{}, err
	}
	defer ceremony.Close()
	pair, err := ceremony.Existing(ctx, known)
	return pair, ceremony.Token(), err
}

// keyOf returns the key for signing, as "run" uses it: it makes a test signature, which is
// verified, before it signs anything else.
func keyOf(c *config.Config, pair hsm.KeyPair) (*hsm.Key, error) {
	c.Token.Key = pair.ID
	c.Token.Signature = issuer.SignerOpts(x509.UnknownSignatureAlgorithm, pair.Public)
	return hsm.NewKey(c.Token, pair.Public)
}
