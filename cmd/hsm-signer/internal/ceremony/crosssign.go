package ceremony

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/fingerprint"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/issuer"
)

// A crossRequest is what the user wants to have cross-signed.
type crossRequest struct {
	cert       string // file with the next CA's certificate
	out        string
	transcript string // optional

	by   *issuer.CA
	next *x509.Certificate
}

func newCACrossSignCommand() *cobra.Command {
	var want crossRequest
	settings := slices.Concat(config.Named("CA_CERT_FILE"), config.TokenSettings)
	command := &cobra.Command{
		Use:   "cross-sign",
		Short: "Certify the next CA with the key of the present one",
		Long: `Signs, with the key of the CA of CA_CERT_FILE, a certificate for the name, the key and
the subjectKeyIdentifier of the next CA's self-signed certificate. With it, clients that trust only
one of the two roots verify what the next CA issues.

The file that it writes is for NEXT_CA_CERT_FILE: the cross-certificate, then the chain of the CA
that has signed it. The certificate has a path length of 0, ends when the first of both CAs ends,
and is not wider than either. It writes nothing to the token.

The CA of CA_CERT_FILE must have been created with a --path-length of 1 or more. Otherwise have
clients trust the roots of both CAs.

Exit code 2 if the CA may not certify the next one.`,
		Example: `  hsm-signer ca cross-sign --cert next.crt --out next-cross.crt --transcript cross.txt`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, faults := config.Read(cmd, settings)
			c.RequireToken(faults)
			c.RequireKey(faults)
			want.check(c, faults)
			if err := faults.Err(); err != nil {
				return err
			}
			return crossSign(cmd.Context(), c, want, cmd.OutOrStdout())
		},
	}
	config.AddFlags(command, settings)
	config.AddCAFlags(command)
	flags := command.Flags()
	flags.StringVar(&want.cert, "cert", "", "PEM file: the next CA's self-signed certificate")
	flags.StringVar(&want.out, "out", "cross.crt", "file to write; it must not exist")
	flags.StringVar(&want.transcript, "transcript", "", "file for a transcript of the ceremony, "+
		"for two people to sign; it must not exist")
	return command
}

// check reads both certificates, and checks the files before anything is signed.
func (r *crossRequest) check(c *config.Config, faults *setting.Faults) {
	r.by = c.LoadCA(faults)
	requireNewFiles(r.out, r.transcript, faults)
	if r.cert == "" {
		faults.Addf("--cert", "is not set: name the file with the next CA's certificate")
		return
	}
	if chain := config.ReadChain("--cert", r.cert, faults); len(chain) > 0 {
		r.next = chain[0]
	}
}

// crossSign signs the cross-certificate, if both CAs allow it, and writes it.
func crossSign(ctx context.Context, c *config.Config, want crossRequest, out io.Writer) error {
	cross, err := issuer.NewCross(want.by, want.next, time.Now())
	if err != nil {
		return exit.With(exit.Refused, fmt.Errorf("the next CA cannot be cross-signed, and "+
			"nothing was signed: %w", err))
	}
	done, public := session{started: time.Now()}, want.by.Certificate().PublicKey
	if done.pair, done.token, err = existingKey(ctx, c, public); err != nil {
		return err
	}
	done.pair.Public = public // which the test signature must verify with
	key, err := done.open(ctx, c)
	if err != nil {
		return err
	}
	defer key.Close()
	chain, err := cross.Sign(key.Signer(ctx))
	if err != nil {
		return fmt.Errorf("the cross-certificate was not written: %w", err)
	}
	if err := writeNew(want.out, chain.PEM()); err != nil {
		return fmt.Errorf("the cross-certificate could not be written: %w; save it by hand:\n%s",
			err, chain.PEM())
	}
	return done.reportCross(want, chain, out)
}

// reportCross prints what was signed, and writes the transcript.
func (s *session) reportCross(want crossRequest, chain issuer.Chain, out io.Writer) error {
	facts := factsOf(chain[0])
	result := facts.resultLines("The cross-certificate of the next CA", want.out, false) +
		fmt.Sprintf("  issuer         %s\n  public key     %s\n                 (of the next CA)\n",
			facts.Issuer, facts.PublicKey)
	err := writeTranscript(want.transcript, s.transcript("of the CA was already in the token",
		fingerprint.Of(want.by.Certificate().RawSubjectPublicKeyInfo), result))
	_, printed := fmt.Fprintf(out, "Cross-certificate created; it is for NEXT_CA_CERT_FILE\n"+
		"  file           %s, with %d certificate(s)\n%s  signed by      %s (%s); a test "+
		"signature verifies with the CA's certificate\n", want.out, len(chain), facts.lines(),
		s.pair.ID, s.pair.Type)
	return errors.Join(err, printed)
}
