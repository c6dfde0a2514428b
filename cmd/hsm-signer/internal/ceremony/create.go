package ceremony

import (
	"bytes"
	"cmp"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/fingerprint"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/cmd/hsm-signer/internal/terminal"
	"hsm-signer/hsm"
	"hsm-signer/issuer"
)

// A caRequest is what the user wants of a new CA.
type caRequest struct {
	keyType     string // empty: the type of the existing key
	profile     issuer.CAProfile
	request     bool // a request for an offline root, not a self-signed certificate
	existingKey bool
	out         string
	transcript  string // optional
}

func newCACreateCommand() *cobra.Command {
	var want caRequest
	var flags profileFlags
	command := &cobra.Command{
		Use:   "create",
		Short: "Create a key in the token, and a self-signed CA certificate or a request for one",
		Long: `Creates a key in the token that never leaves it (sensitive, not extractable), and
signs a CA certificate with it, or with --csr a request for an offline root (see: ca import). The
same variables as for "run" name the token and the key.

Flags, or a YAML file, describe the certificate. Flags win:

  subject: CN=Calico CA,O=Example
  keyType: ecdsa-p384
  lifetime: 87600h
  pathLength: 0
  nameConstraints:                # optional
    permitted:
      dnsDomains: [example.com]   # and all below it
      ipRanges: [10.0.0.0/8]
    excluded:
      dnsDomains: [kubernetes.default.svc]

Nothing is overwritten or deleted: neither a key with that label or id nor a file.`,
		Example: `  hsm-signer ca create --key-type ecdsa-p384 --subject "CN=Calico CA,O=Example" \
      --out ca.crt
  hsm-signer ca create --profile ca.yaml --csr --out ca.csr --transcript ceremony.txt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, faults := config.Read(cmd, config.TokenSettings)
			c.RequireToken(faults)
			c.RequireKey(faults)
			want.check(cmd, &flags, faults)
			if err := faults.Err(); err != nil {
				return err
			}
			var made bytes.Buffer
			var err error
			terminal.ShowProgress(cmd.ErrOrStderr(), "creating a key in the token; an RSA key "+
				"of 8192 bits may take minutes", func() {
				err = createCA(cmd.Context(), c, want, &made)
			})
			_, printed := made.WriteTo(cmd.OutOrStdout())
			return errors.Join(err, printed)
		},
	}
	config.AddFlags(command, config.TokenSettings)
	config.AddCAFlags(command)
	flags.add(command)
	want.addFlags(command)
	return command
}

func (r *caRequest) addFlags(command *cobra.Command) {
	flags := command.Flags()
	flags.BoolVar(&r.request, "csr", false, "create a request for an offline root instead of a "+
		"self-signed certificate")
	flags.BoolVar(&r.existingKey, "use-existing-key", false, "create no key: use one that another "+
		"tool created in the token")
	flags.StringVar(&r.out, "out", "", "file for the certificate or the request; it must not "+
		"exist (default ca.crt or ca.csr)")
	flags.StringVar(&r.transcript, "transcript", "", "file for a transcript of the ceremony, for "+
		"two people to sign; it must not exist")
}

// check reads the profile, and checks the files before anything is created.
func (r *caRequest) check(cmd *cobra.Command, flags *profileFlags, faults *setting.Faults) {
	p := flags.read(cmd, faults)
	before := len(*faults)
	r.profile = p.check(faults)
	if len(*faults) == before {
		faults.Add(p.Subject.where, r.profile.Check())
	}
	if r.keyType = p.KeyType.value; r.existingKey && p.KeyType.byDefault {
		r.keyType = ""
	}
	if r.request && cmd.Flags().Changed("lifetime") {
		faults.Addf("--lifetime", "does not apply to a request (--csr): the root decides the "+
			"lifetime")
	}
	r.out = cmp.Or(r.out, map[bool]string{true: "ca.csr", false: "ca.crt"}[r.request])
	requireNewFiles(r.out, r.transcript, faults)
}

// A ceremony is what was done, for the transcript.
type ceremony struct {
	session
	want  caRequest
	text  []byte // PEM: the certificate or the request
	facts certificateFacts
}

func createCA(ctx context.Context, c *config.Config, want caRequest, out io.Writer) error {
	done := ceremony{want: want, session: session{started: time.Now()}}
	var err error
	if want.existingKey {
		done.pair, done.token, err = existingKey(ctx, c, nil)
	} else {
		done.pair, done.token, err = newKey(ctx, c, want.keyType)
	}
	if err != nil {
		return err
	}
	if want.keyType != "" && want.keyType != done.pair.Type {
		return fmt.Errorf("the private %s has the type %s, not %s (--key-type): %w", done.pair.ID,
			done.pair.Type, want.keyType, hsm.ErrKey)
	}
	if err := done.certify(ctx, c); err != nil {
		return done.orphaned(fmt.Errorf("%s could not be created: %w", done.what(), err))
	}
	if err := writeNew(want.out, done.text); err != nil {
		return done.orphaned(fmt.Errorf("%s could not be written: %w; save it by hand:\n%s",
			done.what(), err, done.text))
	}
	return done.report(out)
}

// newKey creates a key in the token.
func newKey(ctx context.Context, c *config.Config, keyType string) (hsm.KeyPair, hsm.Token, error) {
	ceremony, err := hsm.OpenCeremony(ctx, c.Token)
	if err != nil {
		return hsm.KeyPair{}, hsm.Token{}, err
	}
	defer ceremony.Close()
	token := ceremony.Token()
	pair, err := ceremony.Generate(ctx, keyType)
	return pair, token, err
}

// certify makes a test signature, and then the certificate or the request.
func (d *ceremony) certify(ctx context.Context, c *config.Config) error {
	key, err := d.open(ctx, c)
	if err != nil {
		return err
	}
	defer key.Close()
	sign := issuer.SelfSign
	if d.want.request {
		sign = issuer.Request
	}
	if d.text, err = sign(d.want.profile, key.Signer(ctx)); err != nil {
		return err
	}
	return d.describe()
}

// describe reads what was created.
func (d *ceremony) describe() error {
	if !d.want.request {
		chain, err := issuer.ReadChain(d.text)
		if err != nil {
			return err
		}
		d.facts = factsOf(chain[0])
		return chain.Check(d.pair.Public, time.Now())
	}
	block, _ := pem.Decode(d.text)
	public, err := fingerprint.OfKey(d.pair.Public)
	d.facts = certificateFacts{
		Subject: d.want.profile.Subject.String(), Constraints: d.want.profile.Constraints.String(),
		SHA256: fingerprint.Of(block.Bytes), PublicKey: public,
	}
	return err
}

// orphaned adds to the error what to do about a new key that has no certificate.
func (d *ceremony) orphaned(err error) error {
	if d.want.existingKey {
		return err
	}
	return fmt.Errorf("the private %s was created, but %w. Nothing uses that key: continue with "+
		"it and --use-existing-key, or choose another CA_KEY_LABEL", d.pair.ID, err)
}

// what names the thing that is created.
func (d *ceremony) what() string {
	if d.want.request {
		return "the request for its certificate"
	}
	return "its certificate"
}

// report prints what was created, and writes the transcript.
func (d *ceremony) report(out io.Writer) error {
	err := writeTranscript(d.want.transcript, d.transcribe())
	title := "CA created"
	if d.want.request {
		title = "Request created; let the root sign it, then: hsm-signer ca import"
	}
	_, printed := fmt.Fprintf(out, "%s\n  file           %s\n%s  key            %s (%s), in the "+
		"token labelled %q, serial number %s\n%s",
		title, d.want.out, d.madeLines(), d.pair.ID, d.pair.Type, d.token.Label, d.token.Serial,
		d.keyLines())
	return errors.Join(err, printed)
}

// transcribe returns the transcript.
func (d *ceremony) transcribe() []byte {
	origin := "was created in the token"
	if d.want.existingKey {
		origin = "was already in the token; another tool created it"
	}
	what := "Its certificate"
	if d.want.request {
		what = "The request for its certificate"
	}
	return d.transcript(origin, d.facts.PublicKey,
		d.facts.resultLines(what, d.want.out, d.want.request))
}

// madeLines prints the certificate or the request.
func (d *ceremony) madeLines() string {
	if !d.want.request {
		return d.facts.lines()
	}
	return fmt.Sprintf(`  subject        %s
  constraints    %s, as requested
  SHA-256        %s
  public key     %s (SHA-256)
`, d.facts.Subject, d.facts.Constraints, d.facts.SHA256, d.facts.PublicKey)
}
