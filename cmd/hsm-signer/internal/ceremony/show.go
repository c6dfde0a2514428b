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
	"hsm-signer/cmd/hsm-signer/internal/setting"
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
	Calico       *installation      `json:"calico,omitempty"`
	Next         *caView            `json:"next,omitempty"` // the next CA of a rotation
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
	settings := slices.Concat(config.Named("CA_CERT_FILE", "SIGNER_NAME"),
		config.NextCASettings, config.TokenSettings)
	var output string
	command := &cobra.Command{
		Use:   "show",
		Short: "Show the CA's certificate, its key's attributes, and the settings for Calico",
		Example: `  hsm-signer ca show
  hsm-signer ca show --output json | jq -r .certificates[0].sha256
  hsm-signer ca show --output yaml --signer-name example.com/calico > calico.yaml
  kubectl patch installation default --type merge --patch-file calico.yaml`,
		Long: `Shows the CA's certificate and chain, its key with the attributes, and what Calico's
Installation needs. With NEXT_CA_CERT_FILE it shows the next CA too, and the settings for Calico
have both CAs in caCert, as a rotation requires.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, faults := config.Read(cmd, settings)
			c.RequireToken(faults)
			c.RequireKey(faults)
			next, nextChain := readNext(c, faults)
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
			ctx, out := cmd.Context(), cmd.OutOrStdout()
			view, unreachable := viewCA(ctx, c, chain)
			if next != nil {
				var err error
				view.Next, err = viewCA(ctx, next, nextChain)
				unreachable = errors.Join(unreachable, err)
			}
			return errors.Join(unreachable, view.show(c.SignerNames, output, out))
		},
	}
	config.AddFlags(command, settings)
	config.AddCAFlags(command)
	command.Flags().StringVarP(&output, "output", "o", "text",
		"text, json, or yaml: only the settings for Calico")
	return command
}

// readNext returns the configuration of the next CA as if it were the CA's, and its chain; nil if
// none is configured.
func readNext(c *config.Config, faults *setting.Faults) (*config.Config, issuer.Chain) {
	next := c.OfNext(faults)
	if next == nil {
		return nil, nil
	}
	return next, config.ReadChain("NEXT_CA_CERT_FILE", next.CACertFile, faults)
}

// viewCA views the certificate even if the key cannot be reached, and then returns an error too.
func viewCA(ctx context.Context, c *config.Config, chain issuer.Chain) (*caView, error) {
	view := &caView{File: c.CACertFile, PEM: string(chain.PEM())}
	for _, cert := range chain {
		view.Certificates = append(view.Certificates, factsOf(cert))
	}
	if err := chain.Check(chain[0].PublicKey, time.Now()); err != nil {
		view.Faults = strings.Split(err.Error(), "\n")
	}
	var unreachable error
	view.Key, unreachable = viewKey(ctx, c, chain)
	return view, unreachable
}

// show writes the view, with what Calico needs for the CA, and for the next one if there is one.
func (v *caView) show(signers []string, output string, out io.Writer) (err error) {
	trusted, text := v.PEM, v.String()
	if v.Next != nil {
		trusted += v.Next.PEM
		text += "\nNEXT CA\n\n" + v.Next.String()
	}
	calico := installationOf(signers, trusted)
	v.Calico = &calico
	switch output {
	case "json":
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(v)
	case "yaml":
		_, err = io.WriteString(out, calico.String())
	default:
		_, err = io.WriteString(out,
			text+"\nFor Calico, in its Installation:\n\n"+calico.String())
	}
	return err
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
func (v *caView) String() string {
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
