package ceremony

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/issuer"
)

func newCAImportCommand() *cobra.Command {
	var file, out string
	settings := slices.Concat(config.Named("CA_CERT_FILE"), config.TokenSettings)
	command := &cobra.Command{
		Use:   "import",
		Short: "Import the CA certificate that an offline root signed",
		Long: `Reads the certificate that a root issued for the request of "ca create --csr",
followed by those that certify it, up to the root. Then it writes the file for CA_CERT_FILE. It
writes nothing to the token.

The certificate must be for the key in the token, which makes a test signature. It must be a CA's,
may sign certificates, and is valid now. Each certificate must be certified by the next, within
its path length. None may be signed over MD5, and only the root over SHA-1.

Exit code 2 if the certificate is not acceptable.`,
		Example: `  cat signed.crt root.crt > chain.crt
  hsm-signer ca import --cert chain.crt --out ca.crt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, faults := config.Read(cmd, settings)
			c.RequireToken(faults)
			c.RequireKey(faults)
			out = cmp.Or(out, c.CACertFile, "ca.crt")
			requireNew("--out", out, faults)
			var chain issuer.Chain
			if file == "" {
				faults.Addf("--cert", "is not set: name the file with the certificate that the "+
					"root signed, and its chain")
			} else {
				chain = config.ReadChain("--cert", file, faults)
			}
			if err := faults.Err(); err != nil {
				return err
			}
			return importCA(cmd.Context(), c, chain, out, cmd.OutOrStdout())
		},
	}
	config.AddFlags(command, settings)
	config.AddCAFlags(command)
	command.Flags().StringVar(&file, "cert", "", "PEM file: the certificate that the root signed, "+
		"then its chain up to the root")
	command.Flags().StringVar(&out, "out", "", "file to write; it must not exist (default "+
		"CA_CERT_FILE, or ca.crt)")
	return command
}

func importCA(ctx context.Context, c *config.Config, chain issuer.Chain, out string,
	stdout io.Writer) error {
	pair, _, err := existingKey(ctx, c, chain[0].PublicKey)
	if err != nil {
		return err
	}
	if err := chain.Check(pair.Public, time.Now()); err != nil {
		return exit.With(exit.Refused, fmt.Errorf("the certificate is not acceptable, and "+
			"nothing was written:\n%w", err))
	}
	key, err := keyOf(c, pair)
	if err != nil {
		return err
	}
	defer key.Close()
	if err := key.Ready(ctx); err != nil {
		return err
	}
	if err := writeNew(out, chain.PEM()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "CA imported\n  file           %s, with %d certificate(s)\n%s  "+
		"key            %s (%s); a test signature verifies with the certificate\n",
		out, len(chain), factsOf(chain[0]).lines(), pair.ID, pair.Type)
	return err
}
