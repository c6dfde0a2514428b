package pkcs10

import (
	"net/url"
	"strings"
)

// CheckDNSName says what is wrong with a DNS name as a host's name in a certificate, or nothing.
// The rules are those of RFC 5280, section 4.2.1.6 (preferred name syntax, RFC 1034, section 3.5,
// with RFC 1123, section 2.1), read narrowly: lower case, as every Kubernetes name is, no A-labels
// (RFC 5890), and no name that could be taken for an IPv4 address.
func CheckDNSName(name string) string {
	const maxName, maxLabel = 253, 63
	switch {
	case name == "":
		return "is empty"
	case len(name) > maxName:
		return "is longer than 253 bytes"
	case strings.HasPrefix(name, "*"):
		return "is a wildcard name, which is not a host's"
	case strings.HasSuffix(name, "."):
		return "ends with a dot"
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		switch {
		case label == "":
			return "has an empty label"
		case len(label) > maxLabel:
			return "has a label longer than 63 bytes"
		case strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
			return "has a character other than a-z, 0-9, '-' and '.'"
		case label[0] == '-' || label[len(label)-1] == '-':
			return "has a label that begins or ends with a hyphen"
		case len(label) >= 4 && label[2:4] == "--":
			return "has an internationalised or reserved label (RFC 5890, section 2.3.1)"
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" ||
		strings.HasPrefix(last, "0x") {
		return "could be taken for an IP address; ask for an IP name instead"
	}
	return ""
}

// CheckPresentedDNSName is [CheckDNSName], and also takes a wildcard instead of the whole
// first label, over at least two labels more (RFC 9525, section 6.3).
func CheckPresentedDNSName(name string) string {
	rest, wildcard := strings.CutPrefix(name, "*.")
	if wildcard && !strings.Contains(rest, ".") {
		return "is a wildcard over a top-level domain"
	}
	return CheckDNSName(rest)
}

// CheckURI says what is wrong with a URI as a name, or nothing. The rules are those of RFC 5280,
// section 4.2.1.6, and of the SPIFFE ID standard, section 2, read narrowly: absolute, with a host
// in lower case, and with a path of plain characters; no user, port, query or fragment.
func CheckURI(text string) string {
	const most = 2048
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/:"
	if len(text) > most {
		return "is longer than 2048 bytes"
	}
	if strings.Trim(text, plain) != "" {
		return "has a character other than letters, digits and -._~/:"
	}
	uri, err := url.Parse(text)
	switch {
	case err != nil || uri.String() != text || uri.Scheme == "":
		return "is not an absolute URI"
	case uri.Opaque != "" || uri.Host == "":
		return "has no host"
	case uri.Port() != "" || CheckDNSName(uri.Host) != "":
		return "has a host that is not a DNS name in lower case"
	}
	for segment := range strings.SplitSeq(strings.TrimPrefix(uri.Path, "/"), "/") {
		if uri.Path != "" && uri.Path != "/" &&
			(segment == "" || segment == "." || segment == "..") {
			return "has an empty or relative segment in its path"
		}
	}
	return ""
}

// CheckEmailAddress says what is wrong with an email address as a name, or nothing: a Mailbox of
// RFC 5321, section 4.1.2, whose local part is a Dot-string, and whose domain is in lower case.
func CheckEmailAddress(address string) string {
	const mostLocal = 64 // RFC 5321, section 4.5.3.1.1
	const atom = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-/=?^_`{|}~"
	local, domain, ok := strings.Cut(address, "@")
	switch {
	case !ok || local == "" || len(local) > mostLocal:
		return "is not of the form NAME@DOMAIN"
	case strings.Trim(local, atom+".") != "" || strings.HasPrefix(local, ".") ||
		strings.HasSuffix(local, ".") || strings.Contains(local, ".."):
		return "has a name of unusual form"
	case CheckDNSName(domain) != "":
		return "has a domain that " + CheckDNSName(domain)
	}
	return ""
}
