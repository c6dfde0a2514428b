package policy

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"hsm-signer/policy/pkcs10"
)

// judgeSubject judges what would be kept of the subject in addition to the common name. Where it is
// rebuilt, nothing is.
func (u *rule) judgeSubject(r *Request, f *finding) {
	if !u.keepSubject {
		return
	}
	for _, a := range r.asked.Subject {
		fault := ""
		switch {
		case a.Name == "CN":
		case a.Name == "emailAddress":
			fault = "is an email address; ask for it as a subject alternative name"
		case a.Name == "C" && !isCountry(a.Value):
			fault = "is not a country's code of two capital letters"
		case u.reservesGroup(a.Value):
			fault = "is the name of a group that a cluster may give rights to"
		case a.Name == "DC" && !isASCII(a.Value):
			fault = "has characters outside ASCII, which a domain component must not have"
		case a.Name == "serialNumber" && strings.Trim(a.Value, printable) != "":
			fault = "has characters that a PrintableString does not have"
		case a.Value == "" || utf8.RuneCountInString(a.Value) > mostOf(a.Name):
			fault = fmt.Sprintf("is empty or longer than %d characters", mostOf(a.Name))
		}
		if fault != "" {
			f.refuse(NameNotAllowed, "request.subject."+a.Name, nil, "%s %s", pkcs10.Quote(a.Value),
				fault)
		}
	}
}

// mostOf returns how many characters an attribute may have: the upper bounds of RFC 5280, appendix
// A.1.
func mostOf(attribute string) int {
	switch attribute {
	case "postalCode":
		return 16
	case "L", "ST", "STREET":
		return 128
	}
	return 64
}

// builtInGroups are the groups that Kubernetes and kubeadm bind to roles, as patterns. An API
// server that trusts the CA for clients takes each organisation of a certificate for a group.
var builtInGroups = []string{"system:*", "kubeadm:*"}

// reservesGroup reports whether a kept subject must not hold the value. It ignores case and blanks
// around the value, which others than Kubernetes may ignore as well.
func (u *rule) reservesGroup(value string) bool {
	value = strings.ToLower(strings.TrimSpace(value))
	return slices.ContainsFunc(slices.Concat(builtInGroups, u.reservedGroups),
		func(group string) bool {
			return matchesUser(strings.ToLower(group), value)
		})
}

// printable are the characters of a PrintableString (X.680, section 41.4).
const printable = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 '()+,-./:=?"

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
}

func isCountry(code string) bool {
	return len(code) == 2 && strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
}

// subjectFor returns the subject to certify: the common name alone, or what was asked for.
func (u *rule) subjectFor(asked *pkcs10.Request) []pkcs10.Attribute {
	var subject []pkcs10.Attribute
	for _, a := range asked.Subject {
		if a.Name == "CN" {
			a.Value = u.commonNameFor(a.Value)
		}
		if a.Name == "CN" || u.keepSubject {
			subject = append(subject, a)
		}
	}
	return subject
}
