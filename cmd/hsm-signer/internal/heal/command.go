package heal

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/credential"
	"hsm-signer/cmd/hsm-signer/internal/listener"
	"hsm-signer/cmd/hsm-signer/internal/logging"
	daemonmetrics "hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/cmd/hsm-signer/internal/pin"
	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/cmd/hsm-signer/internal/serve"
	"hsm-signer/cmd/hsm-signer/internal/setting"
)

// NewCommand returns the command "heal".
func NewCommand() *cobra.Command {
	settings := slices.Concat(config.Named("SIGNER_NAME", "POLICY_FILE", "CLUSTER_DOMAIN",
		"TRUST_DOMAIN", "CERTIFICATE_LIFETIME",
		"KUBECONFIG", "LISTEN_ADDRESS", "ALLOWED_HOSTS"), config.LogSettings)
	command := &cobra.Command{
		Use:   "heal",
		Short: "Delete pods that are stuck without their certificate, so that they ask again",
		Long: `Deletes pods that run without the certificate that was issued to them, until it is
stopped. Their controllers make new ones, which ask again. "audit list --stuck" lists such pods
and deletes nothing.

It is a process of its own, with a service account of its own. It reads the requests of
SIGNER_NAME, and reads and deletes pods in the namespaces that the policy names. It needs no
token, no PIN and no STATE_DIR, and does not start with a PIN. Run one replica: a second one
doubles the pace of deletions. With CONFIG_FILE, run one for each CA whose pods it is to watch, and
name the CA with --ca. KUBECONFIG and addresses in CONFIG_FILE are not its own: give it others.

A pod is stuck if a request of it was answered, all of its init containers ended with 0, no main
container has been ready or running for 60 seconds, and at least one is waiting or ended with an
error. It is deleted at once if an init container ended before its certificate was there.
Otherwise one such pod is deleted for each owner and node in ten minutes. heal deletes five pods
at once, then one a second, and none while more than 20 requests wait for their answer. It never
deletes a pod that no controller makes again, nor a mirror of a static pod.`,
		Example: `  hsm-signer heal --signer-name example.com/calico --kubeconfig heal-kubeconfig
  hsm-signer heal --config-file config.yaml --ca calico --kubeconfig heal-kubeconfig`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, faults := config.Read(cmd, settings)
			healer, source := loadHealer(c, faults)
			if err := faults.Err(); err != nil {
				return err
			}
			return runHealer(cmd.Context(), c, healer, source,
				logging.New(c.LogLevel, c.LogFormat, cmd.ErrOrStderr()))
		},
	}
	config.AddFlags(command, settings)
	config.AddCAFlagsOfProcess(command)
	return command
}

// errNearToken is why heal does not start with what opens the token.
var errNearToken = errors.New("is set: heal needs no token, and must not have its PIN; start it " +
	"without")

// loadHealer returns what is healed, without a logger and an observer, and the credential of its
// client. It adds what is wrong to the faults.
func loadHealer(c *config.Config, faults *setting.Faults) (Config, *credential.Source) {
	given, err := pin.Take()
	if given != "" {
		err = errNearToken
	}
	faults.Add(pin.Variable, err)
	for _, variable := range []string{"PKCS11_PIN_FILE", pin.URIVariable} {
		if os.Getenv(variable) != "" {
			faults.Add(variable, errNearToken)
		}
	}
	if len(c.SignerNames) == 0 {
		faults.Missing("SIGNER_NAME", "is not set: name the signer whose requests heal reads, "+
			"such as example.com/calico")
	}
	client, source := c.LoadClient(faults, nil)
	return Config{Client: client, SignerNames: c.SignerNames,
		Namespaces: healedNamespaces(c, faults)}, source
}

// healedNamespaces returns the namespaces in which pods may ask by the policy.
func healedNamespaces(c *config.Config, faults *setting.Faults) []string {
	p := c.LoadPolicy(faults)
	if p == nil {
		return nil
	}
	namespaces, bounded := p.PodNamespaces()
	if !bounded {
		faults.Addf("POLICY_FILE", "%s: a rule names service accounts of any namespace, and "+
			"heal deletes pods only in namespaces that are written out: give heal such a "+
			"policy, for example calico", c.PolicyFile)
	}
	return namespaces
}

// runHealer heals, and serves LISTEN_ADDRESS, until the context ends.
func runHealer(ctx context.Context, c *config.Config, healing Config, source *credential.Source,
	logger hclog.Logger) error {
	logger.Info("starting to heal", "version", buildinfo.Version(), "signers", healing.SignerNames,
		"namespaces", healing.Namespaces)
	c.StatusAddress = config.NoStatus
	open, err := serve.Listen(ctx, c)
	if err != nil {
		return err
	}
	defer open.Close()
	counts := newMetrics()
	counts.registry.MustRegister(daemonmetrics.CredentialCollector{Source: source})
	healing.Observer, healing.Logger = counts, logger.Named("heal")
	healer := New(healing)
	endpoint := serve.Endpoint{
		Variable: "LISTEN_ADDRESS", Listener: open["LISTEN_ADDRESS"], Hosts: serve.HealthHosts(c),
		Handler: handler(healer, counts), Said: "listening",
	}
	serving := func(ctx context.Context) error {
		return endpoint.Serve(ctx,
			logger.Named("health"))
	}
	credentials := func(ctx context.Context) error {
		return source.Watch(ctx, nil, logger.Named("credential"))
	}
	return poll.All(ctx, healer.Run, credentials, serving)
}

// handler serves /livez, /readyz and /metrics.
func handler(healer *Healer, counts *metrics) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez",
		func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := healer.Ready(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintf(w, "[-] %v\n", err)
			return
		}
		fmt.Fprintln(w, "[+] ok: requests and pods are read")
	})
	scraped := promhttp.HandlerFor(counts.registry, promhttp.HandlerOpts{})
	mux.Handle("GET /metrics", listener.DefaultInFlight.Guard(scraped))
	return mux
}
