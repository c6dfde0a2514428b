package main

import (
	"bytes"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/util/validation"

	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/policy"
)

// What a new CA is where nothing else is said.
const (
	defaultKeyType  = "ecdsa-p256"
	defaultSubject  = "CN=hsm-signer CA"
	defaultLifetime = "87600h"
	mostPathLength  = 9
)

// A profile says what a new CA is to be. Each value is where it was said.
type profile struct {
	Subject         said[string]       `yaml:"subject"`
	KeyType         said[string]       `yaml:"keyType"`
	Lifetime        said[string]       `yaml:"lifetime"` // a duration, such as 3650d
	PathLength      said[int]          `yaml:"pathLength"`
	NameConstraints profileConstraints `yaml:"nameConstraints"`
}

type profileConstraints struct {
	Permitted profileNames `yaml:"permitted"`
	Excluded  profileNames `yaml:"excluded"`
}

type profileNames struct {
	DNSDomains []said[string] `yaml:"dnsDomains"` // each with all below it
	IPRanges   []said[string] `yaml:"ipRanges"`   // 10.0.0.0/8
}

// said is a value and where it was said: a line of the profile, or a flag, be it by its default.
type said[T any] struct {
	value     T
	where     string
	byDefault bool
}

// UnmarshalYAML keeps the line.
func (s *said[T]) UnmarshalYAML(node *yaml.Node) error {
	s.where = fmt.Sprintf("--profile: line %d", node.Line)
	return node.Decode(&s.value)
}

// readProfile reads a profile, strictly.
func readProfile(path string, faults *configFaults) profile {
	var p profile
	text, err := os.ReadFile(path)
	if err != nil {
		faults.add("--profile", err)
		return p
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	err = decoder.Decode(&p)
	var wrong *yaml.TypeError
	switch {
	case errors.As(err, &wrong):
		for _, message := range wrong.Errors {
			faults.addf("--profile", "%s", unknownKey.ReplaceAllString(message, `unknown key "$1"`))
		}
	case errors.Is(err, io.EOF):
		faults.addf("--profile", "%s is empty", path)
	case err != nil:
		faults.addf("--profile", "%s is not YAML: %v", path, err)
	case !errors.Is(decoder.Decode(new(yaml.Node)), io.EOF):
		faults.addf("--profile", "%s holds more than one YAML document; write one", path)
	}
	var whole yaml.Node
	if yaml.Unmarshal(text, &whole) == nil {
		refuseEmpty(&whole, faults)
	}
	return p
}

// refuseEmpty refuses keys without a value, which would mean the default silently.
func refuseEmpty(node *yaml.Node, faults *configFaults) {
	if node.ShortTag() == "!!null" {
		faults.addf("--profile", "line %d: there is no value: leave the key out, which means the default", node.Line)
	}
	for _, child := range node.Content {
		refuseEmpty(child, faults)
	}
}

// unknownKey is how the YAML library says it.
var unknownKey = regexp.MustCompile(`field (\S+) not found in type \S+`)

// profileFlags are the flags that say the same as a profile, and win over it.
type profileFlags struct {
	file                       string
	subject, keyType, lifetime string
	pathLength                 int
	permitDNS, excludeDNS      []string
	permitIP, excludeIP        []string
}

func (f *profileFlags) add(command *cobra.Command) {
	flags := command.Flags()
	flags.StringVar(&f.file, "profile", "", "YAML file that says what follows; flags win over it")
	flags.StringVar(&f.keyType, "key-type", defaultKeyType, strings.Join(hsm.KeyTypes(), ", "))
	flags.StringVar(&f.subject, "subject", defaultSubject, "subject of the certificate; known are CN, O, OU, L, ST and C")
	flags.StringVar(&f.lifetime, "lifetime", defaultLifetime, "lifetime of a self-signed certificate, such as 3650d or 87600h")
	flags.IntVar(&f.pathLength, "path-length", 0, "how many CAs may follow this one; it needs none")
	flags.StringSliceVar(&f.permitDNS, "permit-dns", nil, "DNS domains that certificates may name, with all below them, and no others")
	flags.StringSliceVar(&f.permitIP, "permit-ip", nil, "ranges that certificates' IP addresses may be of, and no others")
	flags.StringSliceVar(&f.excludeDNS, "exclude-dns", nil, "DNS domains that certificates may not name, with all below them")
	flags.StringSliceVar(&f.excludeIP, "exclude-ip", nil, "ranges that certificates' IP addresses may not be of")
}

// read returns the profile of the file, with what flags say in its place, and defaults for the rest.
func (f *profileFlags) read(command *cobra.Command, faults *configFaults) profile {
	var p profile
	if f.file != "" {
		p = readProfile(f.file, faults)
	}
	override(command, "subject", &p.Subject, f.subject)
	override(command, "key-type", &p.KeyType, f.keyType)
	override(command, "lifetime", &p.Lifetime, f.lifetime)
	override(command, "path-length", &p.PathLength, f.pathLength)
	names := &p.NameConstraints
	overrideList(command, "permit-dns", &names.Permitted.DNSDomains, f.permitDNS)
	overrideList(command, "permit-ip", &names.Permitted.IPRanges, f.permitIP)
	overrideList(command, "exclude-dns", &names.Excluded.DNSDomains, f.excludeDNS)
	overrideList(command, "exclude-ip", &names.Excluded.IPRanges, f.excludeIP)
	return p
}

// override puts a flag that was given in the place of a value, and its default in that of none.
func override[T any](command *cobra.Command, flag string, to *said[T], value T) {
	if given := command.Flags().Changed(flag); given || to.where == "" {
		*to = said[T]{value, "--" + flag, !given}
	}
}

// overrideList puts the values of a flag that was given in the place of a list.
func overrideList(command *cobra.Command, flag string, to *[]said[string], values []string) {
	if !command.Flags().Changed(flag) {
		return
	}
	*to = nil
	for _, value := range values {
		*to = append(*to, said[string]{value: value, where: "--" + flag})
	}
}

// check turns the profile into the issuer's.
func (p profile) check(faults *configFaults) issuer.CAProfile {
	var made issuer.CAProfile
	var err error
	if !slices.Contains(hsm.KeyTypes(), p.KeyType.value) {
		faults.addf(p.KeyType.where, "%q is not known; choose from %s", p.KeyType.value, strings.Join(hsm.KeyTypes(), ", "))
	}
	if made.Lifetime, err = policy.ParseDuration(p.Lifetime.value); err != nil || made.Lifetime < time.Hour {
		faults.addf(p.Lifetime.where, "%q is not a duration of at least an hour, such as 3650d or 87600h", p.Lifetime.value)
	}
	if n := p.PathLength.value; n < 0 || n > mostPathLength {
		faults.addf(p.PathLength.where, "a path length of %d is not one from 0 to %d", n, mostPathLength)
	}
	made.Subject, err = parseSubject(p.Subject.value)
	faults.add(p.Subject.where, err)
	made.Constraints = issuer.Constraints{
		PathLength: p.PathLength.value,
		Permitted:  p.NameConstraints.Permitted.check(faults),
		Excluded:   p.NameConstraints.Excluded.check(faults),
	}
	return made
}

func (n profileNames) check(faults *configFaults) issuer.NameSpace {
	var s issuer.NameSpace
	for _, domain := range n.DNSDomains {
		if wrong := validation.IsDNS1123Subdomain(domain.value); len(wrong) > 0 {
			faults.addf(domain.where, "%q is not a DNS domain, such as example.com, which means all below it too", domain.value)
		}
		s.DNSDomains = append(s.DNSDomains, domain.value)
	}
	for _, text := range n.IPRanges {
		prefix, err := netip.ParsePrefix(text.value)
		switch {
		case err != nil || prefix.Addr().Is4In6():
			faults.addf(text.where, "%q is not a range of IP addresses, such as 10.0.0.0/8", text.value)
		case prefix != prefix.Masked():
			faults.addf(text.where, "%s has bits set behind its prefix: is %s meant?", prefix, prefix.Masked())
		}
		s.IPRanges = append(s.IPRanges, prefix)
	}
	return s
}

// subjectTypes are the parts of a distinguished name that are known.
var subjectTypes = map[string]func(*pkix.Name) *[]string{
	"O":  func(n *pkix.Name) *[]string { return &n.Organization },
	"OU": func(n *pkix.Name) *[]string { return &n.OrganizationalUnit },
	"L":  func(n *pkix.Name) *[]string { return &n.Locality },
	"ST": func(n *pkix.Name) *[]string { return &n.Province },
	"C":  func(n *pkix.Name) *[]string { return &n.Country },
}

// parseSubject reads a distinguished name such as "CN=Calico CA,O=Example". A comma
// within a value is written "\,".
func parseSubject(text string) (pkix.Name, error) {
	var name pkix.Name
	const comma = "\x00"
	for part := range strings.SplitSeq(strings.ReplaceAll(text, `\,`, comma), ",") {
		kind, value, found := strings.Cut(strings.TrimSpace(part), "=")
		value = strings.ReplaceAll(value, comma, ",")
		kind = strings.ToUpper(kind)
		list, known := subjectTypes[kind]
		switch {
		case !found || value == "" || strings.ContainsFunc(value, unicode.IsControl):
			return name, fmt.Errorf("%q is not TYPE=VALUE, such as CN=Calico CA", part)
		case kind == "CN" && name.CommonName != "":
			return name, errors.New("there is more than one common name (CN=…)")
		case kind == "CN":
			name.CommonName = value
		case !known:
			return name, fmt.Errorf("%q is not known; known are CN, O, OU, L, ST and C", kind)
		default:
			*list(&name) = append(*list(&name), value)
		}
	}
	if name.CommonName == "" {
		return name, errors.New("there is no common name (CN=…)")
	}
	return name, nil
}
