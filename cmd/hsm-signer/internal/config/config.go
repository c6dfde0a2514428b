// Package config says what each setting means, and reads the single files that settings name.
//
// Contract: nothing here is in touch with the token or the API server. Package setting finds the
// values; what is wrong with one is added to [setting.Faults] with the name of its variable.
package config

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"

	"hsm-signer/cmd/hsm-signer/internal/pin"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/hsm"
	"hsm-signer/hsm/pkcs11uri"
	"hsm-signer/issuer"
	"hsm-signer/kube"
	"hsm-signer/kube/pace"
	"hsm-signer/kube/trustbundle"
	"hsm-signer/policy"
)

// Config is the configuration, read once and checked.
type Config struct {
	Name            string // of the CA in CONFIG_FILE; empty: there is no such file
	SignerNames     []string
	AcceptUnset     bool
	Mode            kube.Mode
	Workers         int
	Pace            pace.Options
	election        election
	Kubeconfig      string
	ClusterDomain   string
	Lifetime        time.Duration
	PolicyFile      string
	BlockedKeysFile string
	AnyPolicy       bool // anyone may own the policy's files: nothing is signed by it
	CACertFile      string
	TrustBundleFile string // empty: no trust anchors are published
	// TrustBundleNamespaces are those in which they are published as ConfigMaps; empty: they are
	// published as ClusterTrustBundles.
	TrustBundleNamespaces []string
	StateDir              string
	MaxRequests           int
	MaxUnfinished         int
	ForOwner              bool // root checks for the user who owns STATE_DIR
	Checkpoints           Checkpoints
	Algorithm             x509.SignatureAlgorithm
	Token                 hsm.Config
	uri                   *pkcs11uri.URI
	NextCA                NextCA
	ListenAddress         string
	StatusAddress         string // "none": there is no status page
	AllowedHosts          []string
	LogLevel              hclog.Level
	LogFormat             string // text, json, or empty: by the terminal
	WitnessFile           string
	PodCertificates       bool          // pod certificate requests are served too
	PodRefusalDelay       time.Duration // how long a policy must be in force to deny a refresh
	// RotationTrustTime is how long both CAs must have been trusted before the next one signs.
	RotationTrustTime time.Duration
	TrustDomain       string
	// DeleteFinishedAfter is 0 if finished requests are left to Kubernetes.
	DeleteFinishedAfter time.Duration

	InPod    bool     // this runs in a pod, of any cluster
	Warnings []string // about files that are accepted although they should not be
}

// A Setting is one environment variable and its flag.
type Setting struct {
	Env      string
	Fallback string
	help     string
	read     func(c *Config, value string) error
}

// fileSetting is the file with the settings of several CAs.
var fileSetting = Setting{setting.FileVariable, "",
	"YAML file with several CAs and their settings, instead of variables (docs/several.md)",
	func(*Config, string) error { return nil }}

// The settings, in groups that commands choose from.
var (
	TokenSettings = []Setting{
		{"PKCS11_MODULE", "",
			"path of the PKCS#11 library",
			text(func(c *Config) *string { return &c.Token.Module })},
		{"PKCS11_SLOT", "",
			"slot id of the token, decimal, or hexadecimal with 0x",
			readSlot},
		{"PKCS11_TOKEN_LABEL", "",
			"label of the token",
			text(func(c *Config) *string { return &c.Token.Token.Label })},
		{"PKCS11_TOKEN_SERIAL", "",
			"serial number of the token",
			text(func(c *Config) *string { return &c.Token.Token.Serial })},
		{"PKCS11_PIN_FILE", "",
			"file with the user PIN (or set the PIN itself in PKCS11_PIN)",
			readPINFile},
		{pin.URIVariable, "",
			"PKCS#11 URI (RFC 7512) of the CA's key, instead of the variables for module, " +
				"token, PIN and key",
			readURI},
		{"CA_KEY_LABEL", "",
			"label of the CA's key in the token",
			text(func(c *Config) *string { return &c.Token.Key.Label })},
		{"CA_KEY_ID", "",
			"id of the CA's key in the token, in hex",
			readKeyID},
		{"PKCS11_MAX_SESSIONS", "0",
			"most PKCS#11 sessions at once (0: 16, and up to 64 if calls are slow)",
			count(0, 1024, func(c *Config) *int { return &c.Token.MaxSessions })},
		{"PKCS11_TIMEOUT", "10s",
			"longest wait for a session, and for one call into the PKCS#11 module",
			duration(time.Millisecond, func(c *Config) *time.Duration { return &c.Token.Timeout })},
		{"ALLOW_EXTRACTABLE_KEY", "false",
			"accept a key that could leave the token; for trials only",
			boolean(func(c *Config) *bool { return &c.Token.AllowExtractable })},
	}
	ServiceSettings = append([]Setting{
		{"SIGNER_NAME", "",
			"signer name(s) to serve, comma-separated",
			readSignerNames},
		fileSetting,
		{"CA_CERT_FILE", "",
			"PEM file: the CA's certificate, then its chain",
			text(func(c *Config) *string { return &c.CACertFile })},
		{"TRUST_BUNDLE_FILE", "",
			"PEM file with the root certificates to publish as each signer's ClusterTrustBundle " +
				"(Kubernetes 1.37 and later)",
			text(func(c *Config) *string { return &c.TrustBundleFile })},
		{trustBundleNamespaces, "",
			"namespaces, comma-separated: publish the certificates of TRUST_BUNDLE_FILE there, as " +
				"the ConfigMap " + trustbundle.ConfigMap + ", and not as ClusterTrustBundles",
			readTrustBundleNamespaces},
		{"SIGNATURE_ALGORITHM", "",
			"signature algorithm of certificates (by default SHA-256; SHA-384 with P-384, " +
				"SHA-512 with P-521): " + strings.Join(issuer.AlgorithmNames(), ", "),
			readAlgorithm},
		{"POLICY_FILE", "calico",
			"file with the rules, or a built-in policy: " +
				strings.Join(policy.BuiltInNames(), ", "),
			text(func(c *Config) *string { return &c.PolicyFile })},
		{"BLOCKED_KEYS_FILE", "",
			"file with the SHA-256 of each key that gets no certificate, one a line",
			text(func(c *Config) *string { return &c.BlockedKeysFile })},
		{"CLUSTER_DOMAIN", "cluster.local",
			"domain of service names",
			readClusterDomain},
		{"POD_CERTIFICATES", "false",
			"true: serve PodCertificateRequests too (Kubernetes 1.37 and later)",
			boolean(func(c *Config) *bool { return &c.PodCertificates })},
		{"POD_REFUSAL_DELAY", "1h",
			"how long a policy must be in force before it denies a pod that has had a " +
				"certificate; kubelet never asks again after a denial",
			duration(0, func(c *Config) *time.Duration { return &c.PodRefusalDelay })},
		{"TRUST_DOMAIN", "",
			"SPIFFE trust domain, {trustDomain} in a policy",
			readTrustDomain},
		{"CERTIFICATE_LIFETIME", "8760h",
			"longest lifetime of a certificate, such as 30d or 8760h; a rule may set a shorter one",
			duration(policy.MinLifetime, func(c *Config) *time.Duration { return &c.Lifetime })},
		{"APPROVE", "true",
			"true: approve what the policy grants; false: wait for another approver; shadow: " +
				"only decide and log, without the token and without writing to the cluster",
			readMode},
		{"UNSET_SIGNER_NAME", "ignore",
			"accept or ignore requests without a signer name; clusters before 1.18 need accept",
			readUnset},
		{"ROTATION_TRUST_TIME", "1h",
			"how long both CAs of a rotation must have been trusted before the next one signs",
			duration(0, func(c *Config) *time.Duration { return &c.RotationTrustTime })},
		{"DELETE_FINISHED_AFTER", "",
			"delete finished requests this long after they were answered, such as 5m; " +
				"Kubernetes deletes them after an hour",
			duration(leastDeleteAfter,
				func(c *Config) *time.Duration { return &c.DeleteFinishedAfter })},
		{"WORKERS", "128",
			"requests processed at once",
			count(1, 1024, func(c *Config) *int { return &c.Workers })},
		{"ANSWER_RATE", "",
			"answers a second, or unlimited; by default limited only while many of Calico's " +
				"clients wait",
			readAnswerRate},
		{"LEADER_ELECT", "",
			"true or false: elect one active replica (by default true in a pod, else false)",
			readElection},
		{"LEASE_NAMESPACE", "",
			"namespace of the lease (by default the pod's own)",
			readLeaseNamespace},
		{"LEASE_NAME", "hsm-signer",
			"name of the lease",
			readLeaseName},
		{"KUBECONFIG", "",
			"kubeconfig file; needed outside a cluster",
			text(func(c *Config) *string { return &c.Kubeconfig })},
		{"STATE_DIR", "/var/lib/hsm-signer",
			"directory of the journal; with APPROVE=shadow, a directory of its own for the " +
				"decisions",
			text(func(c *Config) *string { return &c.StateDir })},
		{"JOURNAL_MAX_REQUESTS", "20000000",
			"most requests that the journal remembers; each takes four bytes of memory",
			count(1, 1<<30, func(c *Config) *int { return &c.MaxRequests })},
		{"JOURNAL_MAX_UNFINISHED", "10000",
			"most requests that are started and not yet published; each takes about 4 KiB of " +
				"memory",
			count(1, 1_000_000, func(c *Config) *int { return &c.MaxUnfinished })},
		{"CHECKPOINT_KEY_LABEL", "",
			"label of the checkpoint key, which signs the head of the journal at intervals; not " +
				"the CA's key",
			text(func(c *Config) *string { return &c.Checkpoints.Key.Label })},
		{"CHECKPOINT_KEY_ID", "",
			"id of the checkpoint key, in hex",
			readCheckpointKeyID},
		{"CHECKPOINT_PUBLIC_KEY_FILE", "",
			"PEM file with the public half of the checkpoint key",
			text(func(c *Config) *string { return &c.Checkpoints.PublicKeyFile })},
		{"CHECKPOINT_INTERVAL", "1h",
			"time between two checkpoints of the journal",
			duration(time.Second,
				func(c *Config) *time.Duration { return &c.Checkpoints.Interval })},
		{"WITNESS_FILE", "",
			"file on another disk that keeps the head of the journal, to detect a rollback; the " +
				"lease does so too",
			text(func(c *Config) *string { return &c.WitnessFile })},
		{"LISTEN_ADDRESS", "127.0.0.1:8080",
			"address of /livez, /readyz and /metrics",
			address(func(c *Config) *string { return &c.ListenAddress })},
		{"ALLOWED_HOSTS", "",
			"more host names that clients may use for LISTEN_ADDRESS and STATUS_ADDRESS, " +
				"comma-separated",
			ReadAllowedHosts},
		{"STATUS_ADDRESS", "127.0.0.1:8081",
			"address of the status page, for browsers; none turns it off",
			readStatusAddress},
	}, NextCASettings...)
	LogSettings = []Setting{
		{"LOG_LEVEL", "info",
			"trace, debug, info, warn or error",
			readLogLevel},
		{"LOG_FORMAT", "",
			"text or json (by default json outside a terminal)",
			readLogFormat},
	}
)

// text returns a reader that stores the value as it is.
func text(at func(*Config) *string) func(*Config, string) error {
	return func(c *Config, v string) error { *at(c) = v; return nil }
}

func count(least, most int, at func(*Config) *int) func(*Config, string) error {
	return func(c *Config, v string) error { return setting.Count(v, least, most, at(c)) }
}

func duration(least time.Duration, at func(*Config) *time.Duration) func(*Config, string) error {
	return func(c *Config, v string) error { return setting.Duration(v, least, at(c)) }
}

func boolean(at func(*Config) *bool) func(*Config, string) error {
	return func(c *Config, v string) error { return setting.Bool(v, at(c)) }
}

func address(at func(*Config) *string) func(*Config, string) error {
	return func(c *Config, v string) error { return setting.Address(v, at(c)) }
}

// Named returns the settings of the service that have these variables.
func Named(variables ...string) []Setting {
	var chosen []Setting
	for _, s := range ServiceSettings {
		if slices.Contains(variables, s.Env) {
			chosen = append(chosen, s)
		}
	}
	return chosen
}

// AddFlags gives the command a flag for each setting.
func AddFlags(command *cobra.Command, settings []Setting) {
	for _, s := range settings {
		command.Flags().String(setting.FlagName(s.Env), "",
			fmt.Sprintf("%s [%s]", s.help, strings.TrimSuffix(s.Env+"="+s.Fallback, "=")))
	}
}

// RequireToken reads the PIN and requires what names a token.
func (c *Config) RequireToken(faults *setting.Faults) {
	if c.Token.Module == "" {
		faults.Missing("PKCS11_MODULE", "is not set: name the PKCS#11 library of your HSM, such "+
			"as /usr/lib/softhsm/libsofthsm2.so", pin.URIVariable)
	}
	if !c.Token.Token.Given() {
		faults.Missing("PKCS11_TOKEN_LABEL", "is not set, and neither is PKCS11_SLOT, "+
			"PKCS11_TOKEN_SERIAL or PKCS11_URI: name the token by one of them",
			"PKCS11_SLOT", pin.URIVariable)
	}
	given, err := pin.Take()
	faults.Add("PKCS11_PIN", err)
	switch {
	case given != "" && c.Token.PIN != nil:
		faults.Addf("PKCS11_PIN", "is set, and so is PKCS11_PIN_FILE, or a PIN in PKCS11_URI: set "+
			"only one of them")
	case given != "":
		c.Token.PIN = given.Fixed()
	case c.Token.PIN == nil && c.Name != "":
		faults.Missing("PKCS11_PIN_FILE", "is not set, and PKCS11_URI has no pin-source: name a "+
			"file with the token's user PIN", pin.URIVariable)
	case c.Token.PIN == nil:
		faults.Missing("PKCS11_PIN_FILE", "is not set, and neither is PKCS11_PIN: set one of "+
			"them to the token's user PIN", "PKCS11_PIN", pin.URIVariable)
	}
}

// RequireKey requires what names the CA's key.
func (c *Config) RequireKey(faults *setting.Faults) {
	if c.Token.Key.Label == "" && len(c.Token.Key.ID) == 0 {
		faults.Missing("CA_KEY_LABEL", "is not set, and neither is CA_KEY_ID, nor object or id in "+
			"PKCS11_URI: name the CA's key by one of them", "CA_KEY_ID", pin.URIVariable)
	}
}

func readSlot(c *Config, v string) error {
	digits, base := v, 10
	if hexadecimal, is := strings.CutPrefix(strings.ToLower(v), "0x"); is {
		digits, base = hexadecimal, 16
	}
	n, err := strconv.ParseUint(digits, base, strconv.IntSize)
	if err != nil {
		return fmt.Errorf("%q is not a slot id, such as 7 or 0x7", v)
	}
	slot := uint(n)
	c.Token.Token.Slot = &slot
	return nil
}

// readPINFile checks the file now, so that a mistake shows at start. It is read again before each
// login.
func readPINFile(c *Config, v string) (err error) {
	c.Token.PIN, err = c.pinInFile("PKCS11_PIN_FILE", v)
	return err
}

// pinInFile returns the source of the PIN in a file that the variable names, and an error if the
// file is not acceptable now.
func (c *Config) pinInFile(variable, path string) (hsm.PINSource, error) {
	_, err := pin.InFile(c.secret(pinRules, c.warnOf(variable)), path)
	return func() (hsm.PIN, error) {
		return pin.InFile(c.secret(pinRules, func(error) {}), path)
	}, err
}

func readKeyID(c *Config, v string) (err error) {
	c.Token.Key.ID, err = parseKeyID(v)
	return err
}

func parseKeyID(v string) ([]byte, error) {
	id, err := hex.DecodeString(strings.TrimPrefix(v, "0x"))
	if err != nil {
		return nil, fmt.Errorf("%q is not hexadecimal, such as 01 or a1b2", v)
	}
	return id, nil
}

func readSignerNames(c *Config, v string) error {
	var wrong []error
	for name := range strings.SplitSeq(v, ",") {
		name = strings.TrimSpace(name)
		if slices.Contains(c.SignerNames, name) {
			wrong = append(wrong, fmt.Errorf("%q is listed twice", name))
		}
		wrong = append(wrong, checkSignerName(name))
		c.SignerNames = append(c.SignerNames, name)
	}
	if err := errors.Join(wrong...); err != nil {
		return errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}

// checkSignerName returns an error unless the name is <domain>/<path>, as the API requires
// (certificates.k8s.io, spec.signerName), and belongs to nobody else.
func checkSignerName(name string) error {
	domain, path, found := strings.Cut(name, "/")
	switch {
	case !found || len(validation.IsDNS1123Subdomain(path)) > 0 ||
		len(validation.IsDNS1123Subdomain(domain)) > 0 || !strings.Contains(domain, "."):
		return fmt.Errorf("%q is not a signer name, which is a domain, a slash and a name, such "+
			"as example.com/calico", name)
	case domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io"):
		return fmt.Errorf("%q is reserved for Kubernetes: use a domain of your own", name)
	case name == "tigera.io/operator-signer":
		return fmt.Errorf("%q belongs to the Calico operator, which serves it itself: use a "+
			"domain of your own", name)
	}
	return nil
}

func readAlgorithm(c *Config, v string) (err error) {
	c.Algorithm, err = issuer.ParseAlgorithm(v)
	return err
}

func readClusterDomain(c *Config, v string) error {
	if faults := validation.IsDNS1123Subdomain(v); len(faults) > 0 {
		return fmt.Errorf("%q is not a domain, such as cluster.local", v)
	}
	c.ClusterDomain = v
	return nil
}

// readTrustDomain reads the trust domain of SPIFFE IDs (SPIFFE-ID, section 2.1), without the
// underscores that its syntax allows and a host in a URI does not.
func readTrustDomain(c *Config, v string) error {
	if faults := validation.IsDNS1123Subdomain(v); len(faults) > 0 {
		return fmt.Errorf("%q is not a trust domain, such as example.com", v)
	}
	c.TrustDomain = v
	return nil
}

func readMode(c *Config, v string) error {
	c.Mode = kube.Mode(v)
	return setting.OneOf(v, string(kube.Approve), string(kube.Wait), string(kube.Shadow))
}

func readAnswerRate(c *Config, v string) error {
	if v == "unlimited" {
		c.Pace.Unlimited = true
		return nil
	}
	if err := setting.Count(v, 1, 10_000, &c.Pace.Rate); err != nil {
		return fmt.Errorf("%w, nor unlimited", err)
	}
	return nil
}

func readUnset(c *Config, v string) error {
	c.AcceptUnset = v == "accept"
	return setting.OneOf(v, "accept", "ignore")
}

// NoStatus as an address turns the status page off.
const NoStatus = "none"

func readStatusAddress(c *Config, v string) error {
	if v == NoStatus {
		c.StatusAddress = v
		return nil
	}
	return setting.Address(v, &c.StatusAddress)
}

func readLogLevel(c *Config, v string) error {
	c.LogLevel = hclog.LevelFromString(v)
	return setting.OneOf(v, "trace", "debug", "info", "warn", "error")
}

func readLogFormat(c *Config, v string) error {
	c.LogFormat = v
	return setting.OneOf(v, "text", "json")
}

func ReadAllowedHosts(c *Config, v string) error {
	for name := range strings.SplitSeq(v, ",") {
		name = strings.TrimSpace(name)
		if len(validation.IsDNS1123Subdomain(strings.ToLower(name))) > 0 {
			return fmt.Errorf("%q is not a host name, such as hsm-signer.example.com, without a "+
				"port", name)
		}
		c.AllowedHosts = append(c.AllowedHosts, name)
	}
	return nil
}
