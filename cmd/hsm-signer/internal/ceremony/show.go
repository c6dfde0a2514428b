package ceremony

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/hsm"
	"hsm-signer/issuer"
)

// A caView is what "ca show" shows.
type caView struct {
	File         string             `json:"file"`
	Certificates []certificateFacts `json:"certificates"` // the CA's first
	Faults       []string           `json:"faults,omitempty"`
	Key          *keyView           `json:"key,omitempty"`
	PEM          string             `json:"pem"` // the CA's certificate and its chain
}

type keyView struct {
	Label      string          `json:"label"`
	ID         string          `json:"id"` // hex
	Type       string          `json:"type"`
	Attributes []attributeView `json:"attributes"`
	Token      hsm.Token       `json:"token"`

	attributes []hsm.Attribute
}

type attributeView struct {
	Name   string `json:"name"`
	Value  *bool  `json:"value"` // null: the token does not say
	Should bool   `json:"should"`
}

func newCAShowCommand() *cobra.Command {
	settings := slices.Concat(config.Named("CA_CERT_FILE", "SIGNER_NAME"), config.TokenSettings)
	var output string
	command := &cobra.Command{
		Use:   "show",
		Short: "Show the CA's certificate, its key's attributes, and the settings for Calico",
		Example: `  hsm-signer ca show
  hsm-signer ca show --output json | jq -r .certificates[0].sha256`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, faults := config.Read(cmd, settings)
			c.RequireToken(faults)
			c.RequireKey(faults)
			faults.RequireOutput(output)
			var chain issuer.Chain
			if c.CACertFile == "" {
				faults.Addf("CA_CERT_FILE", "is not set: name the PEM file with the CA's "+
					"certificate")
			} else {
				chain = config.ReadChain("CA_CERT_FILE", c.CACertFile, faults)
			}
			if err := faults.Err(); err != nil {
				return err
			}
			return showCA(cmd.Context(), c, chain, output, cmd.OutOrStdout())
		},
	}
	config.AddFlags(command, settings)
	command.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return command
}

// showCA shows the certificate even if the key cannot be reached, and then returns an error.
func showCA(ctx context.Context, c *config.Config, chain issuer.Chain, output string,
	out io.Writer) error {
	view := caView{File: c.CACertFile, PEM: string(chain.PEM())}
	for _, cert := range chain {
		view.Certificates = append(view.Certificates, factsOf(cert))
	}
	if err := chain.Check(chain[0].PublicKey, time.Now()); err != nil {
		view.Faults = strings.Split(err.Error(), "\n")
	}
	var unreachable error
	view.Key, unreachable = viewKey(ctx, c, chain)
	if output == "json" {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return errors.Join(unreachable, encoder.Encode(view))
	}
	_, err := io.WriteString(out, view.String()+calicoHint(c.SignerNames, view.PEM))
	return errors.Join(unreachable, err)
}

// viewKey reads the key, which must be the certificate's.
func viewKey(ctx context.Context, c *config.Config, chain issuer.Chain) (*keyView, error) {
	pair, token, err := existingKey(ctx, c, chain[0].PublicKey)
	if err != nil {
		return nil, err
	}
	// A key with which "run" would not start is shown too.
	c.Token.AllowExtractable = true
	key, err := keyOf(c, hsm.KeyPair{ID: pair.ID, Public: chain[0].PublicKey})
	if err != nil {
		return nil, err
	}
	defer key.Close()
	attributes, err := key.Attributes(ctx)
	if err != nil {
		return nil, err
	}
	view := &keyView{
		Label: pair.ID.Label, ID: hex.EncodeToString(pair.ID.ID), Type: pair.Type, Token: token,
		attributes: slices.Concat(attributes.Attributes, pair.Uses),
	}
	for _, a := range view.attributes {
		one := attributeView{Name: a.Name, Should: a.Want}
		if a.Known {
			one.Value = &a.Is
		}
		view.Attributes = append(view.Attributes, one)
	}
	return view, nil
}

// String returns the view for people.
func (v caView) String() string {
	var text strings.Builder
	for i, facts := range v.Certificates {
		title := "CA certificate, in " + v.File
		if i > 0 {
			title = fmt.Sprintf("Certificate %d of its chain", i+1)
		}
		fmt.Fprintf(&text, "%s\n%s\n", title, facts.lines())
	}
	for _, fault := range v.Faults {
		fmt.Fprintf(&text, "FAULT: %s\n\n", fault)
	}
	if k := v.Key; k != nil {
		fmt.Fprintf(&text, "Key, which the certificate is for: a test signature verifies\n  "+
			"label          %s\n  id             %s\n  type           %s\n%s\nToken\n%s\n",
			k.Label, k.ID, k.Type, attributeLines(k.attributes), tokenLines(k.Token))
	}
	return text.String() + v.PEM
}

// calicoHint returns the part of Calico's Installation that names the CA.
func calicoHint(signerNames []string, text string) string {
	names := strings.Join(signerNames, " or ")
	if names == "" {
		names = "..."
	}
	return fmt.Sprintf(`
For Calico, in its Installation:

spec:
  certificateManagement:
    signerName: %s
    caCert: %s
`, names, base64.StdEncoding.EncodeToString([]byte(text)))
}
