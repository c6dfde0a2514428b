package pkcs10

import "strings"

// CheckDNSName says what is wrong with a DNS name as a host's name in a
// certificate, or nothing. The rules are those of RFC 5280, section 4.2.1.6
// (preferred name syntax, RFC 1034, section 3.5, with RFC 1123, section 2.1),
// read narrowly: lower case, as every Kubernetes name is, no A-labels
// (RFC 5890), and no name that could be taken for an IPv4 address.
func CheckDNSName(name string) string {
	const maxName, maxLabel = 253, 63
	switch {
	case name == "":
		return "is empty"
	case len(name) > maxName:
		return "is longer than 253 bytes"
	case strings.HasPrefix(name, "*"):
		return "is a wildcard name"
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
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		return "could be taken for an IP address; ask for an IP name instead"
	}
	return ""
}
