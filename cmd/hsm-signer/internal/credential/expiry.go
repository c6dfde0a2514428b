package credential

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"
)

// The kinds of credential.
const (
	Token             = "token"
	ClientCertificate = "client_certificate"
)

// An Expiry is until when a credential is valid.
type Expiry struct {
	Kind      string
	Subject   string    // whom it stands for; empty if not known
	NotBefore time.Time // zero if not known
	NotAfter  time.Time // zero: it does not expire, or that is not known
	Plugin    bool      // an exec plugin renews it when it has expired
}

// urgent is how little time left is always too little, in addition to an eighth of the lifetime.
const urgent = 10 * time.Minute

// Soon reports whether the credential should have been renewed by now: it has less than an eighth
// of its lifetime left, or less than ten minutes. kubelet renews a pod's token at a fifth. It is
// false for a credential of a plugin, which is renewed when it has expired.
func (e Expiry) Soon(now time.Time) bool {
	left := e.NotAfter.Sub(now)
	return !e.NotAfter.IsZero() && !e.Plugin && (left <= urgent || left < e.Lifetime()/8)
}

// Expired reports whether the credential has expired and nothing renews it by itself.
func (e Expiry) Expired(now time.Time) bool {
	return !e.NotAfter.IsZero() && !e.Plugin && !now.Before(e.NotAfter)
}

// Eternal reports whether the credential is a JWT that never expires, as in the Secrets that
// Kubernetes made for service accounts before 1.24.
func (e Expiry) Eternal() bool {
	return e.Kind == Token && e.Subject != "" && e.NotAfter.IsZero()
}

// Lifetime returns the time from the credential's start to its end, and 0 if it is not known.
func (e Expiry) Lifetime() time.Duration {
	if e.NotAfter.IsZero() || e.NotBefore.IsZero() {
		return 0
	}
	return e.NotAfter.Sub(e.NotBefore)
}

// String describes the credential, such as "token of system:serviceaccount:a:b".
func (e Expiry) String() string {
	text := strings.ReplaceAll(e.Kind, "_", " ")
	if e.Subject != "" {
		text += " of " + e.Subject
	}
	if e.Plugin {
		text += ", from an exec plugin"
	}
	return text
}

// At describes the credential and its end, as seen at that time.
func (e Expiry) At(now time.Time) string {
	end := e.NotAfter.UTC().Format(time.RFC3339)
	switch left := e.NotAfter.Sub(now); {
	case e.NotAfter.IsZero():
		return e.String() + ": no expiry is known"
	case left <= 0:
		return fmt.Sprintf("%s: expired at %s", e, end)
	default:
		return fmt.Sprintf("%s: expires in %s, at %s", e, Left(left), end)
	}
}

// Left formats a time that is left, in days, hours or minutes.
func Left(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", int(d.Minutes()))
	}
	return fmt.Sprintf("%d seconds", int(d.Seconds()))
}

// Describe describes all credentials.
func Describe(all []Expiry, now time.Time) string {
	var texts []string
	for _, e := range all {
		texts = append(texts, e.At(now))
	}
	return strings.Join(texts, "; ")
}

// Expiries returns the credentials in use. A plugin's token is known after the first request, and a
// plugin's certificate is not.
func (s *Source) Expiries() (all []Expiry) {
	config := s.current()
	if len(config.CertData) > 0 {
		all = append(all, ofCertificate(config.CertData))
	}
	token := config.BearerToken
	if config.BearerTokenFile != "" { // of a pod: client-go reads it again by itself
		if text, err := os.ReadFile(config.BearerTokenFile); err == nil {
			token = strings.TrimSpace(string(text))
		}
	}
	switch observed := s.presented.Load(); {
	case token != "":
		all = append(all, ofToken(token))
	case config.ExecProvider != nil:
		e := Expiry{Kind: Token}
		if observed != nil {
			e = ofToken(*observed)
		}
		e.Plugin = true
		all = append(all, e)
	}
	return all
}

// ofCertificate returns the validity of the first certificate in a PEM text.
func ofCertificate(text []byte) Expiry {
	e := Expiry{Kind: ClientCertificate}
	if block, _ := pem.Decode(text); block != nil {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			e.Subject = cert.Subject.CommonName
			e.NotBefore, e.NotAfter = cert.NotBefore, cert.NotAfter
		}
	}
	return e
}

// ofToken returns the validity of a bearer token. Only a JWT (RFC 7519) says when it expires; its
// signature is for the API server to verify.
func ofToken(token string) Expiry {
	e := Expiry{Kind: Token}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return e
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Subject   string  `json:"sub"`
		IssuedAt  float64 `json:"iat"` // a NumericDate may have a fraction
		NotBefore float64 `json:"nbf"`
		Expires   float64 `json:"exp"`
	}
	if err != nil || json.Unmarshal(text, &claims) != nil {
		return e
	}
	e.Subject = claims.Subject
	if claims.Expires > 0 {
		e.NotAfter = time.Unix(int64(claims.Expires), 0)
	}
	if started := max(claims.IssuedAt, claims.NotBefore); started > 0 {
		e.NotBefore = time.Unix(int64(started), 0)
	}
	return e
}

// observe notes the token of each request. It is below the transport that adds it.
func (s *Source) observe(next http.RoundTripper) http.RoundTripper {
	return observer{s, next}
}

type observer struct {
	source *Source
	next   http.RoundTripper
}

// RoundTrip is [http.RoundTripper]'s.
func (o observer) RoundTrip(r *http.Request) (*http.Response, error) {
	if token, is := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); is {
		o.source.presented.Store(&token)
	}
	return o.next.RoundTrip(r)
}
