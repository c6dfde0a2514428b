package ceremony

import (
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/util/validation"

	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/cmd/hsm-signer/internal/terminal"
	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/policy"
	"hsm-signer/policy/strictyaml"
)

// The defaults of a new CA.
const (
	defaultKeyType  = "ecdsa-p256"
	defaultSubject  = "CN=hsm-signer CA"
	defaultLifetime = "87600h"
	mostPathLength  = 9
)

// A profile describes a new CA. Each value knows its source.
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

// said is a value and its source: a line of the profile, or a flag, also for its default.
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
func readProfile(path string, faults *setting.Faults) profile {
	var p profile
	text, err := os.ReadFile(path)
	if err != nil {
		faults.Add("--profile", err)
		return p
	}
	err = strictyaml.Decode(text, &p)
	var mistakes strictyaml.Mistakes
	if errors.As(err, &mistakes) {
		for _, mistake := range mistakes {
			faults.Addf("--profile", "%s", mistake)
		}
	} else if err != nil {
		faults.Addf("--profile", "%s: %v", path, err)
	}
	var whole yaml.Node
	if yaml.Unmarshal(text, &whole) == nil {
		refuseEmpty(&whole, faults)
	}
	return p
}

// refuseEmpty adds a fault for each key without a value, which would silently mean the default.
func refuseEmpty(node *yaml.Node, faults *setting.Faults) {
	if node.ShortTag() == "!!null" {
		faults.Addf("--profile", "line %d: the key has no value: leave it out for the default",
			node.Line)
	}
	for _, child := range node.Content {
		refuseEmpty(child, faults)
	}
}

// profileFlags are flags for the values of a profile. They win over it.
type profileFlags struct {
	file                       string
	subject, keyType, lifetime string
	pathLength                 int
	permitDNS, excludeDNS      []string
	permitIP, excludeIP        []string
}

func (f *profileFlags) add(command *cobra.Command) {
	flags := command.Flags()
	flags.StringVar(&f.file, "profile", "", "YAML file with the values of the flags below; flags "+
		"win over it")
	flags.StringVar(&f.keyType, "key-type", defaultKeyType, strings.Join(hsm.KeyTypes(), ", "))
	flags.StringVar(&f.subject, "subject", defaultSubject, "subject of the certificate; known are "+
		"CN, O, OU, L, ST and C")
	flags.StringVar(&f.lifetime, "lifetime", defaultLifetime, "lifetime of a self-signed "+
		"certificate, such as 3650d or 87600h")
	flags.IntVar(&f.pathLength, "path-length", 0, "how many CAs may follow this one; 1 lets it "+
		"certify the next CA (ca cross-sign)")
	flags.StringSliceVar(&f.permitDNS, "permit-dns", nil, "the only DNS domains that certificates "+
		"may name, and all below them")
	flags.StringSliceVar(&f.permitIP, "permit-ip", nil, "the only ranges that certificates' IP "+
		"addresses may be in")
	flags.StringSliceVar(&f.excludeDNS, "exclude-dns", nil, "DNS domains that certificates may "+
		"not name, nor any below them")
	flags.StringSliceVar(&f.excludeIP, "exclude-ip", nil, "ranges that certificates' IP addresses "+
		"may not be in")
}

// read returns the profile: from flags, else from the file, else from the defaults.
func (f *profileFlags) read(command *cobra.Command, faults *setting.Faults) profile {
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

// override replaces a value by a flag that is set, and a missing value by its default.
func override[T any](command *cobra.Command, flag string, to *said[T], value T) {
	if given := command.Flags().Changed(flag); given || to.where == "" {
		*to = said[T]{value, "--" + flag, !given}
	}
}

// overrideList replaces a list by the values of a flag that is set.
func overrideList(command *cobra.Command, flag string, to *[]said[string], values []string) {
	if !command.Flags().Changed(flag) {
		return
	}
	*to = nil
	for _, value := range values {
		*to = append(*to, said[string]{value: value, where: "--" + flag})
	}
}

// check converts the profile to the issuer's.
func (p profile) check(faults *setting.Faults) issuer.CAProfile {
	var made issuer.CAProfile
	var err error
	if !slices.Contains(hsm.KeyTypes(), p.KeyType.value) {
		faults.Addf(p.KeyType.where, "%q is not known; choose from %s", p.KeyType.value,
			strings.Join(hsm.KeyTypes(), ", "))
	}
	if made.Lifetime, err = policy.ParseDuration(p.Lifetime.value); err != nil ||
		made.Lifetime < time.Hour {
		faults.Addf(p.Lifetime.where, "%q is not a duration of at least an hour, such as 3650d "+
			"or 87600h", p.Lifetime.value)
	}
	if n := p.PathLength.value; n < 0 || n > mostPathLength {
		faults.Addf(p.PathLength.where, "a path length of %d is not between 0 and %d", n,
			mostPathLength)
	}
	made.Subject, err = parseSubject(p.Subject.value)
	faults.Add(p.Subject.where, err)
	made.Constraints = issuer.Constraints{
		PathLength: p.PathLength.value,
		Permitted:  p.NameConstraints.Permitted.check(faults),
		Excluded:   p.NameConstraints.Excluded.check(faults),
	}
	return made
}

func (n profileNames) check(faults *setting.Faults) issuer.NameSpace {
	var s issuer.NameSpace
	for _, domain := range n.DNSDomains {
		if wrong := validation.IsDNS1123Subdomain(domain.value); len(wrong) > 0 {
			faults.Addf(domain.where, "%q is not a DNS domain, such as example.com, which "+
				"includes all below it", domain.value)
		}
		s.DNSDomains = append(s.DNSDomains, domain.value)
	}
	for _, text := range n.IPRanges {
		prefix, err := netip.ParsePrefix(text.value)
		switch {
		case err != nil || prefix.Addr().Is4In6():
			faults.Addf(text.where, "%q is not a range of IP addresses, such as 10.0.0.0/8",
				text.value)
		case prefix != prefix.Masked():
			faults.Addf(text.where, "%s has bits set after its prefix: did you mean %s?", prefix,
				prefix.Masked())
		}
		s.IPRanges = append(s.IPRanges, prefix)
	}
	return s
}

// A subjectType is an attribute of a distinguished name, and how many characters it may have
// (RFC 5280, appendix A.1, ub-*).
type subjectType struct {
	most int
	in   func(*pkix.Name) *[]string
}

// subjectTypes are the attributes besides CN.
var subjectTypes = map[string]subjectType{
	"O":  {64, func(n *pkix.Name) *[]string { return &n.Organization }},
	"OU": {64, func(n *pkix.Name) *[]string { return &n.OrganizationalUnit }},
	"L":  {128, func(n *pkix.Name) *[]string { return &n.Locality }},
	"ST": {128, func(n *pkix.Name) *[]string { return &n.Province }},
	"C":  {2, func(n *pkix.Name) *[]string { return &n.Country }},
}

const longestCommonName = 64

// country is the form of C (RFC 5280, appendix A.1; ISO 3166).
var country = regexp.MustCompile(`^[A-Za-z]{2}$`)

// parseSubject reads a distinguished name such as "CN=Calico CA,O=Example". A comma within a value
// is written "\,". Blanks around types and values are dropped.
func parseSubject(text string) (pkix.Name, error) {
	var name pkix.Name
	text = strings.Trim(text, " \t\r\n")
	if !utf8.ValidString(text) {
		return name, fmt.Errorf("%q is not UTF-8", text)
	}
	if at := strings.IndexFunc(text, terminal.Invisible); at >= 0 {
		found, _ := utf8.DecodeRuneInString(text[at:])
		return name, fmt.Errorf("%q contains an invisible character (%U): remove it", text, found)
	}
	const comma = "\x00" // which the text does not have
	for part := range strings.SplitSeq(strings.ReplaceAll(text, `\,`, comma), ",") {
		part = strings.ReplaceAll(part, comma, ",")
		kind, value, found := strings.Cut(part, "=")
		kind, value = strings.ToUpper(strings.Trim(kind, " ")), strings.Trim(value, " ")
		if !found || value == "" {
			return name, fmt.Errorf("%q is not TYPE=VALUE, such as CN=Calico CA", part)
		}
		if err := setSubject(&name, kind, value); err != nil {
			return name, err
		}
	}
	if name.CommonName == "" {
		return name, errors.New("there is no common name (CN=…)")
	}
	return name, nil
}

// setSubject adds one attribute to the name.
func setSubject(name *pkix.Name, kind, value string) error {
	known, other := subjectTypes[kind]
	if kind == "CN" {
		known.most = longestCommonName
	}
	length := utf8.RuneCountInString(value)
	switch {
	case kind != "CN" && !other:
		return fmt.Errorf("%q is not known; known are CN, O, OU, L, ST and C", kind)
	case kind == "C" && !country.MatchString(value):
		return fmt.Errorf("the country (C) %q is not a code of two letters, such as CH", value)
	case length > known.most:
		return fmt.Errorf("%s has %d characters; RFC 5280 allows %d: shorten %q", kind, length,
			known.most, value)
	case kind != "CN":
		*known.in(name) = append(*known.in(name), value)
		return nil
	case name.CommonName != "":
		return errors.New("there is more than one common name (CN=…)")
	}
	name.CommonName = value
	return nil
}
