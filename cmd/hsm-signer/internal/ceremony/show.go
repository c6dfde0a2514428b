package ceremony

import (
	"cmp"
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
	Calico       installation       `json:"calico"`
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
  hsm-signer ca show --output json | jq -r .certificates[0].sha256
  hsm-signer ca show --output yaml --signer-name example.com/calico > calico.yaml
  kubectl patch installation default --type merge --patch-file calico.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, faults := config.Read(cmd, settings)
			c.RequireToken(faults)
			c.RequireKey(faults)
			faults.RequireOutput(output, "yaml")
			if output == "yaml" && len(c.SignerNames) != 1 {
				faults.Addf("SIGNER_NAME", "names %d signers: Calico's Installation names exactly "+
					"one", len(c.SignerNames))
			}
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
	config.AddCAFlags(command)
	command.Flags().StringVarP(&output, "output", "o", "text",
		"text, json, or yaml: only the settings for Calico")
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
	view.Calico = installationOf(c.SignerNames, view.PEM)
	var unreachable, err error
	view.Key, unreachable = viewKey(ctx, c, chain)
	switch output {
	case "json":
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(view)
	case "yaml":
		_, err = io.WriteString(out, view.Calico.String())
	default:
		_, err = io.WriteString(out,
			view.String()+"\nFor Calico, in its Installation:\n\n"+view.Calico.String())
	}
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

// An installation is the part of Calico's Installation that names the CA (operator.tigera.io/v1).
type installation struct {
	Spec struct {
		CertificateManagement certificateManagement `json:"certificateManagement"`
	} `json:"spec"`
}

type certificateManagement struct {
	SignerName         string `json:"signerName"`
	CACert             []byte `json:"caCert"` // PEM
	KeyAlgorithm       string `json:"keyAlgorithm"`
	SignatureAlgorithm string `json:"signatureAlgorithm"`
}

// installationOf returns what Calico needs for the CA in a PEM text. The signer name is empty
// unless there is exactly one. The algorithms are those of the pods' keys and requests: an RSA key
// takes an init container longer than it has.
func installationOf(signerNames []string, text string) (i installation) {
	i.Spec.CertificateManagement = certificateManagement{
		CACert: []byte(text), KeyAlgorithm: "ECDSAWithCurve256",
		SignatureAlgorithm: "ECDSAWithSHA256",
	}
	if len(signerNames) == 1 {
		i.Spec.CertificateManagement.SignerName = signerNames[0]
	}
	return i
}

// String returns the part in YAML.
func (i installation) String() string {
	m := i.Spec.CertificateManagement
	return fmt.Sprintf(`spec:
  certificateManagement:
    signerName: %s
    caCert: %s
    keyAlgorithm: %s
    signatureAlgorithm: %s
`, cmp.Or(m.SignerName, "..."), base64.StdEncoding.EncodeToString(m.CACert), m.KeyAlgorithm,
		m.SignatureAlgorithm)
}
