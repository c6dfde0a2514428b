package issuer

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/zmap/zlint/v3/lint"
	_ "github.com/zmap/zlint/v3/lints/community" // registers the lints of this source
	_ "github.com/zmap/zlint/v3/lints/rfc"
)

// lintSources are the sources of the lints. The rules of the CA/Browser Forum and of root programs
// are for public CAs, which this is not.
var lintSources = lint.SourceList{
	lint.RFC3279, lint.RFC5280, lint.RFC5480, lint.RFC5891, lint.RFC8813, lint.Community,
}

// droppedLints are the lints of these sources that do not fit a private CA, each with the reason.
// A test lists them in docs/lints-list.md.
var droppedLints = map[string]string{
	"e_key_usage_and_extended_key_usage_inconsistent": "it refuses RSA clients with key " +
		"encipherment, which Kubernetes' own clients request; " +
		"the policy checks instead",
	"e_ext_san_uri_host_not_fqdn_or_ip": "private URIs have hosts of one label, as SPIFFE " +
		"trust domains do",
	"e_issuer_dn_country_not_printable_string": "the issuer's name is the CA's, and many private " +
		"CAs use UTF8String for the country",
	"w_issuer_dn_leading_whitespace": "the issuer's name is the CA's; RFC 5280 allows " +
		"white space",
	"w_issuer_dn_trailing_whitespace": "the issuer's name is the CA's; RFC 5280 allows " +
		"white space",
	"w_multiple_issuer_rdn": "the issuer's name is the CA's; RFC 5280 allows " +
		"several attributes in one RDN",
	"w_subject_dn_leading_whitespace":    "RFC 5280 allows white space in a kept subject",
	"w_subject_dn_trailing_whitespace":   "RFC 5280 allows white space in a kept subject",
	"e_subj_contains_html_entities":      "it guesses at a mistake; RFC 5280 allows the text",
	"e_utf8_latin1_mixup":                "it guesses at a mistake; RFC 5280 allows the text",
	"e_utf8_replacement_char_in_subject": "it guesses at a mistake; RFC 5280 allows the text",
	"e_cert_issued_by_compromised_emudhra_ca": "it is about one public CA and costs more than " +
		"most others together",
	"e_ecdsa_small_private_key": "only the owner can make such a key, and the " +
		"search costs more than most others together",
	"n_contains_redacted_dnsname":   noticeOnly,
	"n_ecdsa_ee_invalid_ku":         noticeOnly,
	"n_multiple_subject_rdn":        noticeOnly,
	"n_san_dns_name_duplicate":      noticeOnly,
	"n_san_iana_pub_suffix_empty":   noticeOnly,
	"n_suspicious_chars_in_address": noticeOnly,
}

const noticeOnly = "a notice is no reason to refuse"

// keptLints are the lints that every certificate must pass.
var keptLints = sync.OnceValues(func() (lint.Registry, error) {
	registry, err := lint.GlobalRegistry().Filter(lint.FilterOptions{
		IncludeSources: lintSources, ExcludeNames: slices.Sorted(maps.Keys(droppedLints)),
	})
	if err != nil {
		return nil, fmt.Errorf("lints: %w", err)
	}
	return registry, nil
})
