// Package renew holds the command "credential renew": it has the API server mint a token for
// another service account, and replaces the file that holds it.
//
// Contract: the credential that mints is never one of the account that gets the token: an account
// that can mint its own tokens can be used forever by whoever steals one of them.
package renew

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/credential"
	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/kube/clientset"
)

// options are the flags of the command.
type options struct {
	account, out, lifetime string
}

// NewCommand returns the command "credential".
func NewCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "credential",
		Short: "Renew the credential with which hsm-signer asks the API server",
	}
	command.AddCommand(newRenewCommand())
	return command
}

func newRenewCommand() *cobra.Command {
	settings := config.Named("KUBECONFIG")
	var o options
	command := &cobra.Command{
		Use:   "renew",
		Short: "Replace a token file by one with a fresh token",
		Long: `Has the API server mint a token for a service account, and replaces the file that
holds it. A running hsm-signer whose kubeconfig names the file (tokenFile) uses the new token
within seconds. A timer runs this command; see docs/credentials.md.

KUBECONFIG is that of the renewal: a credential of another account that may create
serviceaccounts/token for this one, and nothing else. A credential of the same account is
refused: a token that can mint its own successor never ends once it is stolen.

Exit code 0 if the file holds a fresh token, 1 if not, 2 if the credential is refused.`,
		Example: `  hsm-signer credential renew --kubeconfig /etc/hsm-signer/renewal.kubeconfig \
      --out /var/lib/hsm-signer-credential/token`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, faults := config.Read(cmd, settings)
			renewal := load(c, o, faults)
			if err := faults.Err(); err != nil {
				return err
			}
			return renewal.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	config.AddFlags(command, settings)
	flags := command.Flags()
	flags.StringVar(&o.account, "service-account", "hsm-signer/hsm-signer",
		"namespace and name of the service account that gets the token")
	flags.StringVar(&o.out, "out", "", "file to replace; only its owner and group may read it")
	flags.StringVar(&o.lifetime, "lifetime", "24h",
		"lifetime of the token, such as 12h or 7d; the API server may shorten it")
	return command
}

// A renewal is what the command does.
type renewal struct {
	client          clientset.Interface
	own             []credential.Expiry // of the credential that mints
	namespace, name string              // of the service account
	out             string
	lifetime        time.Duration
}

// leastLifetime is the API's own (TokenRequest).
const leastLifetime = 10 * time.Minute

// load checks the flags, and adds what is wrong to the faults.
func load(c *config.Config, o options, faults *setting.Faults) *renewal {
	r := &renewal{out: o.out}
	var found bool
	if r.namespace, r.name, found = strings.Cut(o.account, "/"); !found || r.name == "" {
		faults.Addf("--service-account", "%q is not NAMESPACE/NAME", o.account)
	}
	if o.out == "" {
		faults.Addf("--out", "is not set: name the file to replace")
	}
	faults.Add("--lifetime", setting.Duration(o.lifetime, leastLifetime, &r.lifetime))
	client, source := c.LoadClient(faults, nil)
	if source != nil {
		r.client, r.own = client, source.Expiries()
	}
	return r
}

// timeout bounds the call to the API server.
const timeout = 30 * time.Second

func (r *renewal) run(ctx context.Context, out, errs io.Writer) error {
	account := "system:serviceaccount:" + r.namespace + ":" + r.name
	for _, own := range r.own {
		if own.Subject == account {
			return exit.With(exit.Refused, fmt.Errorf("KUBECONFIG holds a credential of %s "+
				"itself: a token that can mint its own successor never ends once it is stolen; "+
				"use a credential of another account", account))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	seconds := int64(r.lifetime.Seconds())
	answer, err := r.client.ServiceAccounts(r.namespace).CreateToken(ctx, r.name,
		&authenticationv1.TokenRequest{
			Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds},
		}, metav1.CreateOptions{})
	if err != nil {
		return r.explain(err)
	}
	if err := replace(r.out, answer.Status.Token+"\n"); err != nil {
		return fmt.Errorf("the new token was not written: %w", err)
	}
	now, end := time.Now(), answer.Status.ExpirationTimestamp.Time
	fmt.Fprintf(out, "%s holds a token of %s that expires in %s, at %s\n", r.out, account,
		credential.Left(end.Sub(now)), end.UTC().Format(time.RFC3339))
	if end.Sub(now) < r.lifetime*9/10 {
		fmt.Fprintf(errs, "warning: the API server shortened the lifetime of %s: renew the token "+
			"in time\n", r.lifetime)
	}
	for _, own := range r.own {
		if own.Soon(now) {
			fmt.Fprintf(errs, "warning: renew the credential of the renewal itself: %s\n",
				own.At(now))
		}
	}
	return nil
}

// explain adds what to do to an error of the API server.
func (r *renewal) explain(err error) error {
	do := ""
	switch {
	case apierrors.IsForbidden(err):
		do = "; apply deploy/systemd/renewal.yaml"
	case apierrors.IsUnauthorized(err):
		do = "; the credential of the renewal has expired, or is wrong: replace it as " +
			"docs/credentials.md describes under Recovery (" + credential.Describe(r.own,
			time.Now()) + ")"
	}
	return fmt.Errorf("no token for the service account %s/%s: %w%s", r.namespace, r.name, err, do)
}

// replace writes the file so that a reader, or a crash, finds either the old text or the new one.
func replace(path, text string) (err error) {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(file.Name()))
		}
	}()
	_, err = file.WriteString(text)
	if err = errors.Join(err, file.Chmod(0o440), file.Sync(), file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}
