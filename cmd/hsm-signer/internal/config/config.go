// Package config reads the configuration from flags, the environment and the files that they name.
//
// Nothing here is in touch with the token or the API server. What is wrong is collected in [Faults], so
// that a user sees all mistakes at once, each with the name of its variable.
package config

import (
	"cmp"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"

	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/pin"
	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/kube"
	"hsm-signer/kube/pace"
	"hsm-signer/policy"
)

// Config is the configuration, read once and checked.
type Config struct {
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
	AnyPolicy       bool // the policy's files may be anybody's: nothing is signed by it
	CACertFile      string
	StateDir        string
	MaxRequests     int
	MaxUnfinished   int
	ForOwner        bool // root asks for the user who owns STATE_DIR
	Checkpoints     checkpoints
	Algorithm       x509.SignatureAlgorithm
	Token           hsm.Config
	uri             *hsm.URI
	ListenAddress   string
	StatusAddress   string // none: there is no status page
	AllowedHosts    []string
	LogLevel        hclog.Level
	LogFormat       string // text, json, or empty: by the terminal
	WitnessFile     string
	// deleteFinishedAfter is 0 if finished requests are left to Kubernetes.
	DeleteFinishedAfter time.Duration

	InPod    bool     // in a pod of any cluster, as client-go sees it
	Warnings []string // about files that are accepted all the same
}

// A setting is one environment variable and its flag.
type setting struct {
	Env      string
	Fallback string
	help     string
	read     func(c *Config, value string) error
}

// flagName is the flag of a setting: SIGNER_NAME is --signer-name.
func (s setting) flagName() string {
	return strings.ToLower(strings.ReplaceAll(s.Env, "_", "-"))
}

// The settings, in groups that commands choose from.
var (
	TokenSettings = []setting{
		{"PKCS11_MODULE", "", "path of the PKCS#11 library", func(c *Config, v string) error { c.Token.Module = v; return nil }},
		{"PKCS11_SLOT", "", "slot id of the token, decimal, or hexadecimal with 0x", readSlot},
		{"PKCS11_TOKEN_LABEL", "", "label of the token", func(c *Config, v string) error { c.Token.Token.Label = v; return nil }},
		{"PKCS11_TOKEN_SERIAL", "", "serial number of the token", func(c *Config, v string) error { c.Token.Token.Serial = v; return nil }},
		{"PKCS11_PIN_FILE", "", "file that holds the user PIN (or the PIN itself in the variable PKCS11_PIN)", readPINFile},
		{pin.URIVariable, "", "PKCS#11 URI (RFC 7512) of the CA's key, instead of the variables for module, token, PIN and key", readURI},
		{"CA_KEY_LABEL", "", "label of the CA's key in the token", func(c *Config, v string) error { c.Token.Key.Label = v; return nil }},
		{"CA_KEY_ID", "", "id of the CA's key in the token, in hex", readKeyID},
		{"PKCS11_MAX_SESSIONS", "0", "PKCS#11 sessions open at once (0: 16, or what the token allows)", func(c *Config, v string) error { return readCount(v, 0, 1024, &c.Token.MaxSessions) }},
		{"PKCS11_TIMEOUT", "10s", "longest wait for a session, and for one call into the PKCS#11 module", func(c *Config, v string) error { return ReadDuration(v, time.Millisecond, &c.Token.Timeout) }},
		{"ALLOW_EXTRACTABLE_KEY", "false", "accept a key that could leave the token; for trials only", func(c *Config, v string) error { return readBool(v, &c.Token.AllowExtractable) }},
	}
	ServiceSettings = []setting{
		{"SIGNER_NAME", "", "signer name(s) to serve, comma-separated", readSignerNames},
		{"CA_CERT_FILE", "", "PEM file: the CA's certificate first, then its chain", func(c *Config, v string) error { c.CACertFile = v; return nil }},
		{"SIGNATURE_ALGORITHM", "", "signature algorithm of certificates (by default SHA-256; SHA-384 with P-384, SHA-512 with P-521): " + strings.Join(issuer.AlgorithmNames(), ", "), readAlgorithm},
		{"POLICY_FILE", "calico", "file with the rules, or a built-in policy: " + strings.Join(policy.BuiltInNames(), ", "), func(c *Config, v string) error { c.PolicyFile = v; return nil }},
		{"BLOCKED_KEYS_FILE", "", "file with the SHA-256 of each key for which nothing is granted, one a line", func(c *Config, v string) error { c.BlockedKeysFile = v; return nil }},
		{"CLUSTER_DOMAIN", "cluster.local", "domain of service names", readClusterDomain},
		{"CERTIFICATE_LIFETIME", "8760h", "longest lifetime of a certificate, such as 30d or 8760h; a rule may set less", func(c *Config, v string) error { return ReadDuration(v, policy.MinLifetime, &c.Lifetime) }},
		{"APPROVE", "true", "true: approve what the policy grants; false: wait for someone else's approval; shadow: decide and log only, without the token and without writing to the cluster", readMode},
		{"UNSET_SIGNER_NAME", "ignore", "accept or ignore requests without a signer name; clusters before 1.18 need accept", readUnset},
		{"DELETE_FINISHED_AFTER", "", "delete finished requests so long after they were answered, such as 5m; Kubernetes does so after an hour", func(c *Config, v string) error { return ReadDuration(v, leastDeleteAfter, &c.DeleteFinishedAfter) }},
		{"WORKERS", "32", "requests processed at once", func(c *Config, v string) error { return readCount(v, 1, 1024, &c.Workers) }},
		{"ANSWER_RATE", "", "answers a second, or unlimited; by default slowed down only while many of Calico's clients wait", readAnswerRate},
		{"LEADER_ELECT", "", "true or false: elect one active replica (by default true in a pod, else false)", readElection},
		{"LEASE_NAMESPACE", "", "namespace of the lease (by default the pod's own)", readLeaseNamespace},
		{"LEASE_NAME", "hsm-signer", "name of the lease", readLeaseName},
		{"KUBECONFIG", "", "kubeconfig file; needed outside a cluster", func(c *Config, v string) error { c.Kubeconfig = v; return nil }},
		{"STATE_DIR", "/var/lib/hsm-signer", "directory of the journal; with APPROVE=shadow, a directory of its own for the decisions", func(c *Config, v string) error { c.StateDir = v; return nil }},
		{"JOURNAL_MAX_REQUESTS", "20000000", "requests that the journal remembers, of four bytes of memory each", func(c *Config, v string) error { return readCount(v, 1, 1<<30, &c.MaxRequests) }},
		{"JOURNAL_MAX_UNFINISHED", "10000", "most requests that are signed or about to be, and not yet published; each takes about 4 KiB of memory", func(c *Config, v string) error { return readCount(v, 1, 1_000_000, &c.MaxUnfinished) }},
		{"CHECKPOINT_KEY_LABEL", "", "label of the checkpoint key in the token, which signs the head of the journal at intervals; not the CA's key", func(c *Config, v string) error { c.Checkpoints.Key.Label = v; return nil }},
		{"CHECKPOINT_KEY_ID", "", "id of the checkpoint key, in hex", readCheckpointKeyID},
		{"CHECKPOINT_PUBLIC_KEY_FILE", "", "PEM file with the public half of the checkpoint key", func(c *Config, v string) error { c.Checkpoints.publicKeyFile = v; return nil }},
		{"CHECKPOINT_INTERVAL", "1h", "time between two checkpoints of the journal", func(c *Config, v string) error { return ReadDuration(v, time.Second, &c.Checkpoints.Interval) }},
		{"WITNESS_FILE", "", "file on another disk that keeps the head of the journal, so that a rollback shows; the lease does so too", func(c *Config, v string) error { c.WitnessFile = v; return nil }},
		{"LISTEN_ADDRESS", "127.0.0.1:8080", "address of /livez, /readyz and /metrics", func(c *Config, v string) error { return readAddress(v, &c.ListenAddress) }},
		{"ALLOWED_HOSTS", "", "more host names by which LISTEN_ADDRESS and STATUS_ADDRESS may be reached, comma-separated", ReadAllowedHosts},
		{"STATUS_ADDRESS", "127.0.0.1:8081", "address of the status page, for browsers; none turns it off", readStatusAddress},
	}
	LogSettings = []setting{
		{"LOG_LEVEL", "info", "trace, debug, info, warn or error", readLogLevel},
		{"LOG_FORMAT", "", "text or json (by default json outside a terminal)", readLogFormat},
	}
)

// Named returns the settings of the service that have these variables.
func Named(variables ...string) []setting {
	var chosen []setting
	for _, s := range ServiceSettings {
		if slices.Contains(variables, s.Env) {
			chosen = append(chosen, s)
		}
	}
	return chosen
}

// AddFlags gives the command a flag for each setting.
func AddFlags(command *cobra.Command, settings []setting) {
	for _, s := range settings {
		command.Flags().String(s.flagName(), "", fmt.Sprintf("%s [%s]", s.help, strings.TrimSuffix(s.Env+"="+s.Fallback, "=")))
	}
}

// Faults collects what is wrong with the configuration; each entry names its variable.
type Faults []string

func (f *Faults) Add(variable string, err error) {
	if err != nil {
		*f = append(*f, variable+": "+err.Error())
	}
}

func (f *Faults) Addf(variable, format string, args ...any) {
	f.Add(variable, fmt.Errorf(format, args...))
}

// has reports whether something is wrong with one of the variables already.
func (f Faults) has(variables ...string) bool {
	return slices.ContainsFunc(f, func(fault string) bool {
		variable, _, _ := strings.Cut(fault, ": ")
		return slices.Contains(variables, variable)
	})
}

// Missing adds that the variable is not set, unless something is wrong with a variable that would
// do instead: that was set, and is a fault already.
func (f *Faults) Missing(variable, message string, instead ...string) {
	if !f.has(append(instead, variable)...) {
		f.Add(variable, errors.New(message))
	}
}

// RequireOutput adds that the value of --output is none of text, json and more.
func (f *Faults) RequireOutput(output string, more ...string) {
	f.Add("--output", oneOf(output, append([]string{"text", "json"}, more...)...))
}

// oneOf returns an error if the value is none of at least two choices.
func oneOf(value string, choices ...string) error {
	last := len(choices) - 1
	switch {
	case slices.Contains(choices, value):
		return nil
	case last == 1:
		return fmt.Errorf("%q is neither %s nor %s", value, choices[0], choices[1])
	}
	return fmt.Errorf("%q is not one of %s and %s", value, strings.Join(choices[:last], ", "), choices[last])
}

// Err reports everything at once.
func (f Faults) Err() error {
	if len(f) == 0 {
		return nil
	}
	return exit.With(exit.Config, fmt.Errorf("the configuration has %d fault(s):\n  %s", len(f), strings.Join(f, "\n  ")))
}

// Read reads the settings of a command from its flags and the environment.
// What is wrong with single values is in the faults; the command adds to them
// what it requires.
func Read(command *cobra.Command, settings []setting) (*Config, *Faults) {
	c, faults := &Config{InPod: inPod()}, &Faults{}
	for _, s := range settings {
		value := s.Fallback
		if v, ok := os.LookupEnv(s.Env); ok && v != "" {
			value = v
		}
		if flag := command.Flags().Lookup(s.flagName()); flag != nil && flag.Changed {
			value = cmp.Or(flag.Value.String(), s.Fallback) // an empty flag is one that was not given
		}
		if value == "" {
			continue
		}
		if err := s.read(c, value); err != nil {
			faults.Add(s.Env, err)
			if s.Fallback != "" { // so that nothing else is wrong for want of a value
				_ = s.read(c, s.Fallback)
			}
		}
	}
	c.applyURI(faults, command.Flags().Changed(uriFlag))
	return c, faults
}

// RequireToken reads the PIN and requires what names a token.
func (c *Config) RequireToken(faults *Faults) {
	if c.Token.Module == "" {
		faults.Missing("PKCS11_MODULE", "is not set: name the PKCS#11 library of your HSM, such as /usr/lib/softhsm/libsofthsm2.so", pin.URIVariable)
	}
	if !c.Token.Token.Given() {
		faults.Missing("PKCS11_TOKEN_LABEL", "is not set, nor is PKCS11_SLOT, PKCS11_TOKEN_SERIAL or PKCS11_URI: one of them must name the token", "PKCS11_SLOT", pin.URIVariable)
	}
	given, err := pin.Take()
	faults.Add("PKCS11_PIN", err)
	switch {
	case given != "" && c.Token.PIN != nil:
		faults.Addf("PKCS11_PIN", "is set, and so is PKCS11_PIN_FILE, or a PIN in PKCS11_URI: set one of them")
	case given != "":
		c.Token.PIN = given.Fixed()
	case c.Token.PIN == nil:
		faults.Missing("PKCS11_PIN_FILE", "is not set, nor is PKCS11_PIN: one of them must give the token's user PIN", "PKCS11_PIN", pin.URIVariable)
	}
}

// RequireKey requires what names the CA's key.
func (c *Config) RequireKey(faults *Faults) {
	if c.Token.Key.Label == "" && len(c.Token.Key.ID) == 0 {
		faults.Missing("CA_KEY_LABEL", "is not set, nor is CA_KEY_ID, or object or id in PKCS11_URI: one of them must name the CA's key", "CA_KEY_ID", pin.URIVariable)
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

// readPINFile looks into the file now, so that what is wrong with it is said at start; it is read
// again before each login.
func readPINFile(c *Config, v string) error {
	c.Token.PIN = func() (hsm.PIN, error) { return pin.InFile(c.secret(pinRules, func(error) {}), v) }
	_, err := pin.InFile(c.secret(pinRules, c.warnOf("PKCS11_PIN_FILE")), v)
	return err
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
			wrong = append(wrong, fmt.Errorf("%q is named twice", name))
		}
		wrong = append(wrong, checkSignerName(name))
		c.SignerNames = append(c.SignerNames, name)
	}
	if err := errors.Join(wrong...); err != nil {
		return errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}

// checkSignerName requires <domain>/<path>, as the API does (certificates.k8s.io, spec.signerName), and refuses names that are
// someone else's.
func checkSignerName(name string) error {
	domain, path, found := strings.Cut(name, "/")
	switch {
	case !found || len(validation.IsDNS1123Subdomain(path)) > 0 || len(validation.IsDNS1123Subdomain(domain)) > 0 || !strings.Contains(domain, "."):
		return fmt.Errorf("%q is not a signer name, which is a domain, a slash and a name: example.com/calico", name)
	case domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io"):
		return fmt.Errorf("%q is reserved for Kubernetes: use a domain of your own", name)
	case name == "tigera.io/operator-signer":
		return fmt.Errorf("%q belongs to the Calico operator, which answers it itself: use a domain of your own", name)
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

func readMode(c *Config, v string) error {
	c.Mode = kube.Mode(v)
	return oneOf(v, string(kube.Approve), string(kube.Wait), string(kube.Shadow))
}

func readAnswerRate(c *Config, v string) error {
	if v == "unlimited" {
		c.Pace.Unlimited = true
		return nil
	}
	if err := readCount(v, 1, 10_000, &c.Pace.Rate); err != nil {
		return fmt.Errorf("%w, nor unlimited", err)
	}
	return nil
}

func readUnset(c *Config, v string) error {
	c.AcceptUnset = v == "accept"
	return oneOf(v, "accept", "ignore")
}

func readAddress(v string, to *string) error {
	if _, _, err := net.SplitHostPort(v); err != nil {
		return fmt.Errorf("%q is not HOST:PORT, such as 127.0.0.1:8080", v)
	}
	*to = v
	return nil
}

// NoStatus is the address of no status page.
const NoStatus = "none"

func readStatusAddress(c *Config, v string) error {
	if v == NoStatus {
		c.StatusAddress = v
		return nil
	}
	return readAddress(v, &c.StatusAddress)
}

func readLogLevel(c *Config, v string) error {
	c.LogLevel = hclog.LevelFromString(v)
	return oneOf(v, "trace", "debug", "info", "warn", "error")
}

func readLogFormat(c *Config, v string) error {
	c.LogFormat = v
	return oneOf(v, "text", "json")
}

func readBool(v string, to *bool) error {
	*to = v == "true"
	return oneOf(v, "true", "false")
}

func readCount(v string, least, most int, to *int) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < least || n > most {
		return fmt.Errorf("%q is not a number from %d to %d", v, least, most)
	}
	*to = n
	return nil
}

func ReadDuration(v string, least time.Duration, to *time.Duration) error {
	d, err := policy.ParseDuration(v)
	if err != nil || d < least {
		return fmt.Errorf("%q is not a duration of at least %s, such as 10s, 12h or 30d", v, least)
	}
	*to = d
	return nil
}

func ReadAllowedHosts(c *Config, v string) error {
	for name := range strings.SplitSeq(v, ",") {
		name = strings.TrimSpace(name)
		if len(validation.IsDNS1123Subdomain(strings.ToLower(name))) > 0 {
			return fmt.Errorf("%q is not a host name, such as hsm-signer.example.com, without a port", name)
		}
		c.AllowedHosts = append(c.AllowedHosts, name)
	}
	return nil
}
