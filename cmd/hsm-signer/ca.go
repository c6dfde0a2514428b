package main

import (
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hsm-signer/hsm"
	"hsm-signer/issuer"
)

func newCACommand() *cobra.Command {
	command := &cobra.Command{Use: "ca", Short: "The ceremony: make a CA whose key lives in the token"}
	command.AddCommand(newCACreateCommand())
	return command
}

// caRequest is what the user wants of a new CA.
type caRequest struct {
	keyType  string
	subject  string
	lifetime time.Duration
	out      string
}

func newCACreateCommand() *cobra.Command {
	var want caRequest
	command := &cobra.Command{
		Use:   "create",
		Short: "Make a key in the token and a self-signed CA certificate",
		Long: `Has the token make a key that never leaves it (sensitive, not extractable), and
signs a CA certificate with it. The token and the key are named by the same variables
as for "run". Nothing is overwritten: neither a key of that label or id nor the file.`,
		Example: `  hsm-signer ca create --key-type ecdsa-p384 --subject "CN=Calico CA,O=Example" --out ca.crt`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, faults := readConfig(cmd, tokenSettings)
			c.requireToken(faults)
			c.requireKey(faults)
			subject := want.check(faults)
			if err := faults.err(); err != nil {
				return err
			}
			return createCA(cmd, c, want, subject)
		},
	}
	addFlags(command, tokenSettings)
	flags := command.Flags()
	flags.StringVar(&want.keyType, "key-type", "ecdsa-p256", strings.Join(hsm.KeyTypes(), ", "))
	flags.StringVar(&want.subject, "subject", "CN=hsm-signer CA", "subject of the certificate; known are CN, O, OU, L, ST and C")
	flags.DurationVar(&want.lifetime, "lifetime", 87600*time.Hour, "lifetime of the certificate")
	flags.StringVar(&want.out, "out", "ca.crt", "file for the certificate; it must not exist yet")
	return command
}

func (r caRequest) check(faults *configFaults) pkix.Name {
	if !slices.Contains(hsm.KeyTypes(), r.keyType) {
		faults.addf("--key-type", "%q is not known; choose from %s", r.keyType, strings.Join(hsm.KeyTypes(), ", "))
	}
	if r.lifetime < time.Hour {
		faults.addf("--lifetime", "%s is less than an hour", r.lifetime)
	}
	switch _, err := os.Lstat(r.out); {
	case err == nil:
		faults.addf("--out", "%s exists already; nothing was made", r.out)
	case !errors.Is(err, fs.ErrNotExist):
		faults.add("--out", err)
	}
	if info, err := os.Stat(filepath.Dir(r.out)); err != nil || !info.IsDir() {
		faults.addf("--out", "there is no directory %s; nothing was made", filepath.Dir(r.out))
	}
	subject, err := parseSubject(r.subject)
	faults.add("--subject", err)
	return subject
}

func createCA(cmd *cobra.Command, c *config, want caRequest, subject pkix.Name) error {
	ceremony, err := hsm.OpenCeremony(c.token)
	if err != nil {
		return err
	}
	signer, id, err := ceremony.Generate(want.keyType)
	if err != nil {
		return errors.Join(err, ceremony.Close())
	}
	cert, err := issuer.SelfSign(issuer.CAProfile{Subject: subject, Lifetime: want.lifetime}, signer)
	if err := errors.Join(err, ceremony.Close()); err != nil {
		return fmt.Errorf("the private %s was made, but not its certificate: %w. Nothing uses that key: choose another CA_KEY_LABEL to try again, or have the token's own tool delete it first", id, err)
	}
	if err := writeNew(want.out, cert); err != nil {
		return fmt.Errorf("the private %s was made, but its certificate could not be written: %w; here it is, to be saved by hand:\n%s", id, err, cert)
	}
	c.token.Key = id
	return reportCA(cmd, c, want, cert)
}

// reportCA prints what was made, with what the token says of the key.
func reportCA(cmd *cobra.Command, c *config, want caRequest, cert []byte) error {
	ca, err := issuer.ParseCA(cert)
	if err != nil {
		return err
	}
	key, err := hsm.NewKey(c.token, ca.Certificate().PublicKey)
	if err != nil {
		return err
	}
	defer key.Close()
	proof, err := key.Proof(cmd.Context())
	if err != nil {
		return fmt.Errorf("the CA was made (%s), but its key cannot be used: %w", want.out, err)
	}
	block, _ := pem.Decode(cert)
	sum := sha256.Sum256(block.Bytes)
	_, err = fmt.Fprintf(cmd.OutOrStdout(), `CA created
  certificate  %s
  subject      %s
  valid until  %s
  SHA-256      %s
  key          %s (%s), in the %s
  attributes   %s
`, want.out, ca.Certificate().Subject, ca.Certificate().NotAfter.Format(time.RFC3339), hex.EncodeToString(sum[:]),
		c.token.Key, want.keyType, c.token.Token, proof)
	return err
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

// parseSubject reads a distinguished name such as "CN=Calico CA,O=Example". A comma
// within a value is written "\,".
func parseSubject(text string) (pkix.Name, error) {
	var name pkix.Name
	const comma = "\x00"
	for part := range strings.SplitSeq(strings.ReplaceAll(text, `\,`, comma), ",") {
		kind, value, found := strings.Cut(strings.TrimSpace(part), "=")
		value = strings.ReplaceAll(value, comma, ",")
		if !found || value == "" {
			return name, fmt.Errorf("%q is not TYPE=VALUE, such as CN=Calico CA", part)
		}
		switch strings.ToUpper(kind) {
		case "CN":
			name.CommonName = value
		case "O":
			name.Organization = append(name.Organization, value)
		case "OU":
			name.OrganizationalUnit = append(name.OrganizationalUnit, value)
		case "L":
			name.Locality = append(name.Locality, value)
		case "ST":
			name.Province = append(name.Province, value)
		case "C":
			name.Country = append(name.Country, value)
		default:
			return name, fmt.Errorf("%q is not known; known are CN, O, OU, L, ST and C", kind)
		}
	}
	if name.CommonName == "" {
		return name, errors.New("there is no common name (CN=…)")
	}
	return name, nil
}
