package policy

import (
	"strings"

	"hsm-signer/policy/pkcs10"
)

// judgeSubject judges what would be kept of the subject beside the common name. Where it is rebuilt,
// nothing is.
func (u *rule) judgeSubject(r *Request, f *finding) {
	const most = 64 // ub-organization-name and most others of RFC 5280, appendix A.1
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
		case strings.HasPrefix(strings.ToLower(a.Value), "system:"):
			fault = "begins as the names of Kubernetes' own groups do"
		case a.Value == "" || len(a.Value) > most:
			fault = "is empty or longer than 64 bytes"
		}
		if fault != "" {
			f.refuse(NameNotAllowed, "request.subject."+a.Name, nil, "%s %s", pkcs10.Quote(a.Value), fault)
		}
	}
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
