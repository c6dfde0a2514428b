package main

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

	"hsm-signer/cmd/hsm-signer/internal/trustedfile"
	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/kube"
	"hsm-signer/kube/pace"
	"hsm-signer/policy"
)

// config is the configuration, read once and checked.
type config struct {
	signerNames     []string
	acceptUnset     bool
	mode            kube.Mode
	workers         int
	pace            pace.Options
	election        election
	kubeconfig      string
	clusterDomain   string
	lifetime        time.Duration
	policyFile      string
	blockedKeysFile string
	anyPolicy       bool // the policy's files may be anybody's: nothing is signed by it
	caCertFile      string
	stateDir        string
	maxRequests     int
	maxUnfinished   int
	forOwner        bool // root asks for the user who owns STATE_DIR
	checkpoints     checkpoints
	algorithm       x509.SignatureAlgorithm
	token           hsm.Config
	uri             *hsm.URI
	listenAddress   string
	statusAddress   string // none: there is no status page
	allowedHosts    []string
	logLevel        hclog.Level
	logFormat       string // text, json, or empty: by the terminal
	witnessFile     string
	// deleteFinishedAfter is 0 if finished requests are left to Kubernetes.
	deleteFinishedAfter time.Duration

	inPod    bool     // in a pod of any cluster, as client-go sees it
	warnings []string // about files that are accepted all the same
}

// A setting is one environment variable and its flag.
type setting struct {
	env      string
	fallback string
	help     string
	read     func(c *config, value string) error
}

// flagName is the flag of a setting: SIGNER_NAME is --signer-name.
func (s setting) flagName() string {
	return strings.ToLower(strings.ReplaceAll(s.env, "_", "-"))
}

// The settings, in groups that commands choose from.
var (
	tokenSettings = []setting{
		{"PKCS11_MODULE", "", "path of the PKCS#11 library", func(c *config, v string) error { c.token.Module = v; return nil }},
		{"PKCS11_SLOT", "", "slot id of the token, decimal, or hexadecimal with 0x", readSlot},
		{"PKCS11_TOKEN_LABEL", "", "label of the token", func(c *config, v string) error { c.token.Token.Label = v; return nil }},
		{"PKCS11_TOKEN_SERIAL", "", "serial number of the token", func(c *config, v string) error { c.token.Token.Serial = v; return nil }},
		{"PKCS11_PIN_FILE", "", "file that holds the user PIN (or the PIN itself in the variable PKCS11_PIN)", readPINFile},
		{uriVariable, "", "PKCS#11 URI (RFC 7512) of the CA's key, instead of the variables for module, token, PIN and key", readURI},
		{"CA_KEY_LABEL", "", "label of the CA's key in the token", func(c *config, v string) error { c.token.Key.Label = v; return nil }},
		{"CA_KEY_ID", "", "id of the CA's key in the token, in hex", readKeyID},
		{"PKCS11_MAX_SESSIONS", "0", "PKCS#11 sessions open at once (0: 16, or what the token allows)", func(c *config, v string) error { return readCount(v, 0, 1024, &c.token.MaxSessions) }},
		{"PKCS11_TIMEOUT", "10s", "longest wait for a session, and for one call into the PKCS#11 module", func(c *config, v string) error { return readDuration(v, time.Millisecond, &c.token.Timeout) }},
		{"ALLOW_EXTRACTABLE_KEY", "false", "accept a key that could leave the token; for trials only", func(c *config, v string) error { return readBool(v, &c.token.AllowExtractable) }},
	}
	serviceSettings = []setting{
		{"SIGNER_NAME", "", "signer name(s) to serve, comma-separated", readSignerNames},
		{"CA_CERT_FILE", "", "PEM file: the CA's certificate first, then its chain", func(c *config, v string) error { c.caCertFile = v; return nil }},
		{"SIGNATURE_ALGORITHM", "", "signature algorithm of certificates (by default SHA-256; SHA-384 with P-384, SHA-512 with P-521): " + strings.Join(issuer.AlgorithmNames(), ", "), readAlgorithm},
		{"POLICY_FILE", "calico", "file with the rules, or a built-in policy: " + strings.Join(policy.BuiltInNames(), ", "), func(c *config, v string) error { c.policyFile = v; return nil }},
		{"BLOCKED_KEYS_FILE", "", "file with the SHA-256 of each key for which nothing is granted, one a line", func(c *config, v string) error { c.blockedKeysFile = v; return nil }},
		{"CLUSTER_DOMAIN", "cluster.local", "domain of service names", readClusterDomain},
		{"CERTIFICATE_LIFETIME", "8760h", "longest lifetime of a certificate, such as 30d or 8760h; a rule may set less", func(c *config, v string) error { return readDuration(v, policy.MinLifetime, &c.lifetime) }},
		{"APPROVE", "true", "true: approve what the policy grants; false: wait for someone else's approval; shadow: decide and log only, without the token and without writing to the cluster", readMode},
		{"UNSET_SIGNER_NAME", "ignore", "accept or ignore requests without a signer name; clusters before 1.18 need accept", readUnset},
		{"DELETE_FINISHED_AFTER", "", "delete finished requests so long after they were answered, such as 5m; Kubernetes does so after an hour", func(c *config, v string) error { return readDuration(v, leastDeleteAfter, &c.deleteFinishedAfter) }},
		{"WORKERS", "32", "requests processed at once", func(c *config, v string) error { return readCount(v, 1, 1024, &c.workers) }},
		{"ANSWER_RATE", "", "answers a second, or unlimited; by default slowed down only while many of Calico's clients wait", readAnswerRate},
		{"LEADER_ELECT", "", "true or false: elect one active replica (by default true in a pod, else false)", readElection},
		{"LEASE_NAMESPACE", "", "namespace of the lease (by default the pod's own)", readLeaseNamespace},
		{"LEASE_NAME", "hsm-signer", "name of the lease", readLeaseName},
		{"KUBECONFIG", "", "kubeconfig file; needed outside a cluster", func(c *config, v string) error { c.kubeconfig = v; return nil }},
		{"STATE_DIR", "/var/lib/hsm-signer", "directory of the journal; with APPROVE=shadow, a directory of its own for the decisions", func(c *config, v string) error { c.stateDir = v; return nil }},
		{"JOURNAL_MAX_REQUESTS", "20000000", "requests that the journal remembers, of four bytes of memory each", func(c *config, v string) error { return readCount(v, 1, 1<<30, &c.maxRequests) }},
		{"JOURNAL_MAX_UNFINISHED", "10000", "most requests that are signed or about to be, and not yet published; each takes about 4 KiB of memory", func(c *config, v string) error { return readCount(v, 1, 1_000_000, &c.maxUnfinished) }},
		{"CHECKPOINT_KEY_LABEL", "", "label of the checkpoint key in the token, which signs the head of the journal at intervals; not the CA's key", func(c *config, v string) error { c.checkpoints.key.Label = v; return nil }},
		{"CHECKPOINT_KEY_ID", "", "id of the checkpoint key, in hex", readCheckpointKeyID},
		{"CHECKPOINT_PUBLIC_KEY_FILE", "", "PEM file with the public half of the checkpoint key", func(c *config, v string) error { c.checkpoints.publicKeyFile = v; return nil }},
		{"CHECKPOINT_INTERVAL", "1h", "time between two checkpoints of the journal", func(c *config, v string) error { return readDuration(v, time.Second, &c.checkpoints.interval) }},
		{"WITNESS_FILE", "", "file on another disk that keeps the head of the journal, so that a rollback shows; the lease does so too", func(c *config, v string) error { c.witnessFile = v; return nil }},
		{"LISTEN_ADDRESS", "127.0.0.1:8080", "address of /livez, /readyz and /metrics", func(c *config, v string) error { return readAddress(v, &c.listenAddress) }},
		{"ALLOWED_HOSTS", "", "more host names by which LISTEN_ADDRESS and STATUS_ADDRESS may be reached, comma-separated", readAllowedHosts},
		{"STATUS_ADDRESS", "127.0.0.1:8081", "address of the status page, for browsers; none turns it off", readStatusAddress},
	}
	logSettings = []setting{
		{"LOG_LEVEL", "info", "trace, debug, info, warn or error", readLogLevel},
		{"LOG_FORMAT", "", "text or json (by default json outside a terminal)", readLogFormat},
	}
)

// settingsNamed returns the settings of the service that have these variables.
func settingsNamed(variables ...string) []setting {
	var chosen []setting
	for _, s := range serviceSettings {
		if slices.Contains(variables, s.env) {
			chosen = append(chosen, s)
		}
	}
	return chosen
}

// addFlags gives the command a flag for each setting.
func addFlags(command *cobra.Command, settings []setting) {
	for _, s := range settings {
		command.Flags().String(s.flagName(), "", fmt.Sprintf("%s [%s]", s.help, strings.TrimSuffix(s.env+"="+s.fallback, "=")))
	}
}

// configFaults collects what is wrong with the configuration; each entry names its variable.
type configFaults []string

func (f *configFaults) add(variable string, err error) {
	if err != nil {
		*f = append(*f, variable+": "+err.Error())
	}
}

func (f *configFaults) addf(variable, format string, args ...any) {
	f.add(variable, fmt.Errorf(format, args...))
}

// has reports whether something is wrong with one of the variables already.
func (f configFaults) has(variables ...string) bool {
	return slices.ContainsFunc(f, func(fault string) bool {
		variable, _, _ := strings.Cut(fault, ": ")
		return slices.Contains(variables, variable)
	})
}

// missing adds that the variable is not set, unless something is wrong with a variable that would
// do instead: that was set, and is a fault already.
func (f *configFaults) missing(variable, message string, instead ...string) {
	if !f.has(append(instead, variable)...) {
		f.add(variable, errors.New(message))
	}
}

// err reports everything at once.
func (f configFaults) err() error {
	if len(f) == 0 {
		return nil
	}
	return &exitError{exitConfig, fmt.Errorf("the configuration has %d fault(s):\n  %s", len(f), strings.Join(f, "\n  "))}
}

// readConfig reads the settings of a command from its flags and the environment.
// What is wrong with single values is in the faults; the command adds to them
// what it requires.
func readConfig(command *cobra.Command, settings []setting) (*config, *configFaults) {
	c, faults := &config{inPod: inPod()}, &configFaults{}
	for _, s := range settings {
		value := s.fallback
		if v, ok := os.LookupEnv(s.env); ok && v != "" {
			value = v
		}
		if flag := command.Flags().Lookup(s.flagName()); flag != nil && flag.Changed {
			value = cmp.Or(flag.Value.String(), s.fallback) // an empty flag is one that was not given
		}
		if value == "" {
			continue
		}
		if err := s.read(c, value); err != nil {
			faults.add(s.env, err)
			if s.fallback != "" { // so that nothing else is wrong for want of a value
				_ = s.read(c, s.fallback)
			}
		}
	}
	c.applyURI(faults, command.Flags().Changed(uriFlag))
	return c, faults
}

// requireToken reads the PIN and requires what names a token.
func (c *config) requireToken(faults *configFaults) {
	if c.token.Module == "" {
		faults.missing("PKCS11_MODULE", "is not set: name the PKCS#11 library of your HSM, such as /usr/lib/softhsm/libsofthsm2.so", uriVariable)
	}
	if !c.token.Token.Given() {
		faults.missing("PKCS11_TOKEN_LABEL", "is not set, nor is PKCS11_SLOT, PKCS11_TOKEN_SERIAL or PKCS11_URI: one of them must name the token", "PKCS11_SLOT", uriVariable)
	}
	pin, err := takePIN()
	faults.add("PKCS11_PIN", err)
	switch {
	case pin != "" && c.token.PIN != nil:
		faults.addf("PKCS11_PIN", "is set, and so is PKCS11_PIN_FILE, or a PIN in PKCS11_URI: set one of them")
	case pin != "":
		c.token.PIN = pin.Fixed()
	case c.token.PIN == nil:
		faults.missing("PKCS11_PIN_FILE", "is not set, nor is PKCS11_PIN: one of them must give the token's user PIN", "PKCS11_PIN", uriVariable)
	}
}

// requireKey requires what names the CA's key.
func (c *config) requireKey(faults *configFaults) {
	if c.token.Key.Label == "" && len(c.token.Key.ID) == 0 {
		faults.missing("CA_KEY_LABEL", "is not set, nor is CA_KEY_ID, or object or id in PKCS11_URI: one of them must name the CA's key", "CA_KEY_ID", uriVariable)
	}
}

func readSlot(c *config, v string) error {
	digits, base := v, 10
	if hexadecimal, is := strings.CutPrefix(strings.ToLower(v), "0x"); is {
		digits, base = hexadecimal, 16
	}
	n, err := strconv.ParseUint(digits, base, strconv.IntSize)
	if err != nil {
		return fmt.Errorf("%q is not a slot id, such as 7 or 0x7", v)
	}
	slot := uint(n)
	c.token.Token.Slot = &slot
	return nil
}

// readPINFile looks into the file now, so that what is wrong with it is said at start; it is read
// again before each login.
func readPINFile(c *config, v string) error {
	c.token.PIN = func() (hsm.PIN, error) { return pinInFile(c.secret(pinRules, func(error) {}), v) }
	_, err := pinInFile(c.secret(pinRules, c.warnOf("PKCS11_PIN_FILE")), v)
	return err
}

// pinInFile returns the PIN without the end of its line.
func pinInFile(rules trustedfile.Rules, path string) (hsm.PIN, error) {
	text, err := rules.Read(path)
	if err != nil {
		return "", fmt.Errorf("the PIN cannot be read: %w", err)
	}
	pin := strings.TrimRight(string(text), "\r\n")
	if pin == "" {
		return "", fmt.Errorf("the file %s is empty", path)
	}
	if err := checkPIN(pin); err != nil {
		return "", fmt.Errorf("the file %s: %w", path, err)
	}
	return hsm.PIN(pin), nil
}

// longestPIN is more than any token takes.
const longestPIN = 1 << 10

func readKeyID(c *config, v string) (err error) {
	c.token.Key.ID, err = parseKeyID(v)
	return err
}

func parseKeyID(v string) ([]byte, error) {
	id, err := hex.DecodeString(strings.TrimPrefix(v, "0x"))
	if err != nil {
		return nil, fmt.Errorf("%q is not hexadecimal, such as 01 or a1b2", v)
	}
	return id, nil
}

func readSignerNames(c *config, v string) error {
	var wrong []error
	for name := range strings.SplitSeq(v, ",") {
		name = strings.TrimSpace(name)
		if slices.Contains(c.signerNames, name) {
			wrong = append(wrong, fmt.Errorf("%q is named twice", name))
		}
		wrong = append(wrong, checkSignerName(name))
		c.signerNames = append(c.signerNames, name)
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

func readAlgorithm(c *config, v string) (err error) {
	c.algorithm, err = issuer.ParseAlgorithm(v)
	return err
}

func readClusterDomain(c *config, v string) error {
	if faults := validation.IsDNS1123Subdomain(v); len(faults) > 0 {
		return fmt.Errorf("%q is not a domain, such as cluster.local", v)
	}
	c.clusterDomain = v
	return nil
}

func readMode(c *config, v string) error {
	if !slices.Contains([]kube.Mode{kube.Approve, kube.Wait, kube.Shadow}, kube.Mode(v)) {
		return fmt.Errorf("%q is not one of true, false and shadow", v)
	}
	c.mode = kube.Mode(v)
	return nil
}

func readAnswerRate(c *config, v string) error {
	if v == "unlimited" {
		c.pace.Unlimited = true
		return nil
	}
	if err := readCount(v, 1, 10_000, &c.pace.Rate); err != nil {
		return fmt.Errorf("%w, nor unlimited", err)
	}
	return nil
}

func readUnset(c *config, v string) error {
	if v != "accept" && v != "ignore" {
		return fmt.Errorf("%q is neither accept nor ignore", v)
	}
	c.acceptUnset = v == "accept"
	return nil
}

func readAddress(v string, to *string) error {
	if _, _, err := net.SplitHostPort(v); err != nil {
		return fmt.Errorf("%q is not HOST:PORT, such as 127.0.0.1:8080", v)
	}
	*to = v
	return nil
}

// noStatus is the address of no status page.
const noStatus = "none"

func readStatusAddress(c *config, v string) error {
	if v == noStatus {
		c.statusAddress = v
		return nil
	}
	return readAddress(v, &c.statusAddress)
}

func readLogLevel(c *config, v string) error {
	if !slices.Contains([]string{"trace", "debug", "info", "warn", "error"}, v) {
		return fmt.Errorf("%q is not one of trace, debug, info, warn and error", v)
	}
	c.logLevel = hclog.LevelFromString(v)
	return nil
}

func readLogFormat(c *config, v string) error {
	if v != "text" && v != "json" {
		return fmt.Errorf("%q is neither text nor json", v)
	}
	c.logFormat = v
	return nil
}

func readBool(v string, to *bool) error {
	if v != "true" && v != "false" {
		return fmt.Errorf("%q is neither true nor false", v)
	}
	*to = v == "true"
	return nil
}

func readCount(v string, least, most int, to *int) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < least || n > most {
		return fmt.Errorf("%q is not a number from %d to %d", v, least, most)
	}
	*to = n
	return nil
}

func readDuration(v string, least time.Duration, to *time.Duration) error {
	d, err := policy.ParseDuration(v)
	if err != nil || d < least {
		return fmt.Errorf("%q is not a duration of at least %s, such as 10s, 12h or 30d", v, least)
	}
	*to = d
	return nil
}
