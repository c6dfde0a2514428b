// Package status is the page that says how hsm-signer stands.
//
// Duty: answer the one who is woken at night, in one look: is it well, and if not, what to do; then
// the token, the CA, the leader, what waits; the last decisions with their reasons; and which pods
// will outlive their certificates.
//
// Contract: it only shows what it is given in a [Page]; it changes nothing and asks nobody. The
// page is made on the server, without scripts. What requesters wrote is escaped. It is safe to open
// in a browser that visits hostile sites: nothing may frame it, and a strict
// Content-Security-Policy lets nothing in. Whoever serves it checks the Host header (DNS
// rebinding).
package status

import (
	"embed"
	"io"
	"net/http"
	"time"
)

// A Part is one of the things that must be well.
type Part struct {
	Name  string
	Fault string    // why it is not; empty when it is
	Do    string    // what to do then; a command, or words
	Note  string    // a remark, although it is well
	Since time.Time // of the fault
}

// A CA is the certificate that is issued under.
type CA struct {
	Subject  string
	NotAfter time.Time
	SHA256   string // of the certificate in DER
}

// Open are the requests without an answer.
type Open struct {
	States     []OpenState   // those with any
	Oldest     time.Time     // when the oldest was created; zero if there is none
	LastAnswer time.Time     // zero: never since the start
	Unanswered time.Duration // how long overdue ones have had no answer; 0 if there are none
}

// An OpenState is how many requests wait for one reason.
type OpenState struct {
	Name  string
	Count int
	Bad   bool // because of a fault
}

// A Decision is how one request stands.
type Decision struct {
	At        time.Time
	Result    string // one of few words, such as "issued"
	Good      bool
	Request   string
	Requester string
	Rule      string
	Reason    string
	Took      time.Duration // from its making to its certificate; 0 when it has none
}

// An Ending is a workload with pods that will outlive their certificates, or have.
type Ending struct {
	Workload string    // its kind and name
	Pods     []string  // those whose certificate has ended first
	Dark     int       // how many of them these are
	First    time.Time // when the first of their certificates ends
	Restart  string    // the command
}

// A Page is all that is shown. Times are shown in UTC.
type Page struct {
	CAName     string // in CONFIG_FILE; empty where there is only one
	Now        time.Time
	Version    string
	Started    time.Time
	Signers    []string
	Mode       string // what is done with a request that the policy grants
	Parts      []Part
	Hints      []string // what is well and yet must not go unseen
	Token      string   // the token and its key; empty where there is none
	Sessions   string   // with the token, in words
	CA         *CA      // nil where there is none
	Rotation   []string // how a rotation of the CA stands, one fact each; empty without one
	Leads      bool
	Identity   string // its own among many; empty without an election
	Leader     string // the identity of the one that leads; empty when that is not known
	Open       *Open  // nil where it is not known
	Pace       string // how fast answers are written, and why
	Policy     string
	LostSince  time.Time  // since when nobody is known to lead; zero if somebody is
	Credential string     // for the API server, and its end, in words
	Decisions  []Decision // the latest first
	Issued     []int      // certificates in each of the last minutes, the latest last
	Ending     []Ending   // the earliest first
	Unknown    string     // why it is not known whose certificates end; empty when it is
}

//go:embed style.css
var files embed.FS

// policyOfContent lets nothing in but the page's own style.
const policyOfContent = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action " +
	"'none'; frame-ancestors 'none'"

// Handler serves the page of the only CA, as it is when it is asked for, and the runbook, which is
// in Markdown.
func Handler(now func() Page, runbook string) http.Handler {
	mux := newMux(runbook)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		serve(w, view{now()}.page())
	})
	return guard(mux)
}

// newMux serves what every page needs.
func newMux(runbook string) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /runbook", func(w http.ResponseWriter, _ *http.Request) {
		serve(w, runbookPage(sections(runbook)))
	})
	mux.HandleFunc("GET /style.css",
		func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, files, "style.css") })
	return mux
}

func serve(w http.ResponseWriter, page markup) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.WriteString(w, string(page)) // whoever asked may have gone
}

// guard keeps browsers from doing anything with what they get but showing it.
func guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range map[string]string{
			"Content-Security-Policy": policyOfContent, "X-Content-Type-Options": "nosniff",
			"X-Frame-Options": "DENY",
			"Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
			"Cross-Origin-Resource-Policy": "same-origin",
			"Cross-Origin-Opener-Policy":   "same-origin",
		} {
			w.Header().Set(name, value)
		}
		next.ServeHTTP(w, r)
	})
}
