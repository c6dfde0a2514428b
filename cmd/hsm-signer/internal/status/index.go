package status

import (
	"net/http"
	"strings"
)

// A Source makes the page of one CA of a process.
type Source struct {
	CA  string
	Now func() Page
}

// IndexHandler serves a page that lists the CAs of a process, the page of each, and the runbook.
func IndexHandler(sources []Source, runbook string) http.Handler {
	mux := newMux(runbook)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		var all index
		for _, s := range sources {
			all = append(all, entry{s.CA, view{s.Now()}})
		}
		serve(w, all.page())
	})
	for _, s := range sources {
		mux.HandleFunc("GET "+pathOf(s.CA), func(w http.ResponseWriter, _ *http.Request) {
			p := s.Now()
			p.CAName = s.CA
			serve(w, view{p}.page())
		})
	}
	return guard(mux)
}

// pathOf returns the path of a CA's page; that of a process with one CA is the root.
func pathOf(ca string) string {
	if ca == "" {
		return "/"
	}
	return "/ca/" + ca
}

// An entry is a CA in the list.
type entry struct {
	ca   string
	view view
}

// An index is the list of a process' CAs.
type index []entry

// mood is the worst of the CAs'.
func (x index) mood() string {
	worst := "well"
	for _, e := range x {
		switch mood := e.view.Mood(); {
		case mood == "bad":
			return mood
		case mood != "well":
			worst = mood
		}
	}
	return worst
}

// headline says in one line whether all is well, and else with which CA it is not.
func (x index) headline() string {
	var bad, look []string
	for _, e := range x {
		switch e.view.Mood() {
		case "bad":
			bad = append(bad, e.ca)
		case "look":
			look = append(look, e.ca)
		}
	}
	switch {
	case len(bad) > 0:
		return "Not well: " + strings.Join(bad, ", ")
	case len(look) > 0:
		return "All CAs work, and something needs you: " + strings.Join(look, ", ")
	}
	return "All is well"
}

func (x index) page() markup {
	first := x[0].view
	return document(x.headline()+" – hsm-signer", refresh,
		element("body"+attr("class", x.mood()),
			element("header", element(`p class="name"`, "hsm-signer"),
				heading(x.mood(), x.headline()),
				element("p", "Each CA works by itself: what stops one does not stop the others, "+
					"unless they share a PKCS#11 module.")),
			element("main", titled("cas", "CAs", table("stack",
				[]markup{"CA", "State", "Signers", "Leader", "Open requests", "CA certificate"},
				each(x, entry.row)))),
			first.footer()))
}

func (e entry) row() markup {
	v, class := e.view, "bad"
	if v.Mood() == "well" {
		class = "well"
	}
	open := markup("not known here")
	if v.Open != nil {
		open = number(v.Open.Total())
	}
	return element("tr",
		element(`th scope="row"`, element("a"+attr("href", pathOf(e.ca)), text(e.ca))),
		element(`td data-label="State"`, element("strong"+attr("class", class),
			text(v.Headline()))),
		element(`td data-label="Signers"`, text(v.signers())),
		element(`td data-label="Leader"`, text(v.Leading())),
		element(`td data-label="Open requests"`, open),
		element(`td data-label="CA certificate"`, e.days()))
}

// days says how long the CA's certificate is valid. A shadow may have none.
func (e entry) days() markup {
	if e.view.CA == nil {
		return "none"
	}
	return number(e.view.DaysLeft(e.view.CA.NotAfter)) + " days left"
}
