package status

import (
	"strconv"
	"strings"
	"time"
)

// refresh has a browser load a page again every 15 seconds.
const refresh markup = `<meta http-equiv="refresh" content="15">`

// page is the status page of a CA.
func (v view) page() markup {
	return document(v.title()+" – hsm-signer", refresh,
		element("body"+attr("class", v.Mood()), v.header(),
			element("main", v.faults(), v.needs(), v.openRequests(), v.parts(), v.issued(),
				v.decisions()),
			v.footer()))
}

// title is the headline, with the CA of many before it.
func (v view) title() string {
	if v.CAName == "" {
		return v.Headline()
	}
	return v.CAName + ": " + v.Headline()
}

func (v view) header() markup {
	return element("header",
		element(`p class="name"`, "hsm-signer ", element("span", text(v.signers()))),
		heading(v.Mood(), v.title()),
		element("p", text(v.Meaning())),
		when(v.CAName != "", element("p", `<a href="/">All CAs of this process</a>`)))
}

// heading is the headline of a page.
func heading(mood, headline string) markup {
	sign := markup("!")
	if mood == "well" {
		sign = "✓"
	}
	return element("h1", element(`span class="sign" aria-hidden="true"`, sign), text(headline))
}

// titled is a section of the page with this ID and heading.
func titled(id, heading markup, content ...markup) markup {
	return "\n" + element(`section aria-labelledby="`+id+`"`,
		element(`h2 id="`+id+`"`, heading), join(content...))
}

func (v view) faults() markup {
	faults := v.Faults()
	return when(len(faults) > 0, titled("faults", "What to do",
		element(`ul class="faults"`, each(faults, v.fault))))
}

func (v view) fault(p Part) markup {
	return element("li", element("h3", text(p.Name)),
		when(!p.Since.IsZero(), element("p", "Since ", timeAs(p.Since, text(utc(p.Since))), ", ",
			text(v.Ago(p.Since)))),
		element(`p class="said"`, text(p.Fault)),
		when(p.Do != "", element(`p class="do"`, linked(p.Do))))
}

// needs is what is well and yet needs the reader.
func (v view) needs() markup {
	return when(len(v.Ending)+len(v.Hints) > 0 || v.Unknown != "",
		titled("look", "Needs you",
			when(len(v.Hints) > 0, element(`ul class="hints"`, each(v.Hints,
				func(hint string) markup { return element("li", linked(hint)) }))),
			when(v.Unknown != "", element(`p class="said"`, "Which pods will outlive their "+
				"certificates is not known: ", text(v.Unknown))),
			when(len(v.Ending) > 0, element("p", "The certificates of these pods end soon, or "+
				"have ended, and nothing renews them: a pod asks once, when it starts. Restart "+
				"them before that; those that are dark, now."), v.ending())))
}

func (v view) ending() markup {
	return table("stack", []markup{"Workload", "Its certificates end", "Pods", "Restart"},
		each(v.Ending, func(e Ending) markup {
			return element("tr",
				element(`th scope="row"`, text(e.Workload)),
				element(`td data-label="Ends"`, element("time"+attr("datetime", rfc3339(e.First))+
					attr("title", utc(e.First))+when(e.Dark > 0, ` class="dark"`),
					text(v.Left(e.First)))),
				element(`td data-label="Pods"`,
					when(e.Dark > 0, element(`strong class="bad"`, number(e.Dark), " of ",
						number(len(e.Pods)), " dark:"), " "),
					text(strings.Join(e.Shown(), ", ")),
					when(e.More() > 0, " and ", number(e.More()), " more")),
				element(`td data-label="Restart"`, element("code", text(e.Restart))))
		}))
}

func (v view) openRequests() markup {
	if v.Open == nil {
		return ""
	}
	last := markup("none yet")
	if !v.Open.LastAnswer.IsZero() {
		last = text(v.Ago(v.Open.LastAnswer))
	}
	return titled("open", "Open requests: "+number(v.Open.Total()), element(`dl class="parts"`,
		each(v.Open.States, func(s OpenState) markup {
			return element("div"+when(s.Bad, ` class="bad"`), element("dt", text(s.Name)),
				element("dd", number(s.Count)))
		}),
		when(!v.Open.Oldest.IsZero(), fact("Oldest", text(v.Ago(v.Open.Oldest)))),
		when(v.Open.Unanswered > 0, fact("No answer for", text(about(v.Open.Unanswered)))),
		fact("Last answer", last)))
}

// fact is one of a list: what it is, and how it stands.
func fact(name markup, value ...markup) markup {
	return element("div", element("dt", name), element("dd", value...))
}

// wideFact is a fact that takes a line of its own.
func wideFact(name markup, value ...markup) markup {
	return element(`div class="wide"`, element("dt", name), element("dd", value...))
}

// why is a remark on a fact, unless it is empty.
func why(remark markup) markup { return when(remark != "", element(`span class="why"`, remark)) }

func (v view) parts() markup {
	return titled("parts", "Parts", element(`dl class="parts"`,
		each(v.Parts, part),
		fact("Leader", text(v.Leading()), why(text(v.Leader)),
			when(!v.LostSince.IsZero(), why("nobody since "+text(v.Ago(v.LostSince))))),
		when(v.Pace != "", fact("Answers", text(v.Pace))),
		v.ca(),
		when(len(v.Rotation) > 0, wideFact("Rotation of the CA", v.rotation())),
		when(v.Token != "", wideFact("Key", text(v.Token), why(text(v.Sessions)))),
		when(v.Credential != "", wideFact("Credential for the API server", text(v.Credential))),
		wideFact("Policy", text(v.Policy))))
}

func part(p Part) markup {
	class, state := "well", markup("well")
	if p.Fault != "" {
		class, state = "bad", "not well"
	}
	return element("div"+attr("class", class), element("dt", text(p.Name)), element("dd", state,
		when(!p.Since.IsZero(), why("since "+text(clock(p.Since))+" UTC")), why(text(p.Note))))
}

func (v view) ca() markup {
	if v.CA == nil {
		return ""
	}
	return wideFact("CA certificate of "+text(v.signers()),
		element("strong", number(v.DaysLeft(v.CA.NotAfter)), " days left"), ", until ",
		timeAs(v.CA.NotAfter, text(day(v.CA.NotAfter))), "<br>", text(v.CA.Subject), "<br>",
		element(`code class="hash" title="SHA-256 of the certificate"`, text(v.CA.SHA256)))
}

func (v view) rotation() markup {
	return each(v.Rotation, func(fact string) markup { return element("p", text(fact)) })
}

func (v view) issued() markup {
	minutes, most := number(len(v.Issued)), markup("none")
	if v.Most() > 0 {
		most = "at most " + number(v.Most()) + " in a minute"
	}
	return titled("issued", "Issued in the last hour: "+number(v.Total()),
		element("figure", v.chart(), element("figcaption", element("span", minutes,
			" minutes ago"), element("span", most), element("span", "now"))),
		when(v.Total() > 0, element("details", element("summary", "The same in numbers"),
			table("numbers", []markup{"Minute (UTC)", "Certificates"},
				each(v.Minutes(), func(m minute) markup {
					return element("tr", element(`th scope="row"`, text(clock(m.At))),
						element("td", number(m.Count)))
				})))))
}

func (v view) chart() markup {
	width := strconv.Itoa(v.Width())
	return element(`svg role="img" aria-labelledby="chart-title"`+
		attr("viewBox", "0 0 "+width+" 100")+` preserveAspectRatio="none"`,
		element(`title id="chart-title"`, "Certificates issued in each of the last ",
			number(len(v.Issued)), " minutes: ", number(v.Total()), " in all, ", number(v.Most()),
			" at most in one minute"),
		`<line x1="0" y1="97"`, attr("x2", width), ` y2="97"/>`,
		each(v.Bars(), func(b bar) markup {
			return "<rect" + attr("x", strconv.Itoa(b.X)) + attr("y", strconv.Itoa(b.Y)) +
				attr("width", strconv.Itoa(b.Width)) + attr("height", strconv.Itoa(b.Height)) + "/>"
		}))
}

func (v view) decisions() markup {
	if len(v.Decisions) == 0 {
		return titled("decisions", "Last decisions", element("p",
			"Nobody has asked since this process started, ", text(v.Ago(v.Started)), "."))
	}
	return titled("decisions", "Last decisions", table("stack decisions",
		[]markup{"When", "Request", "Requester", "Decision"}, each(v.Decisions, v.decision)))
}

func (v view) decision(d Decision) markup {
	class := "bad"
	if d.Good {
		class = "well"
	}
	return element("tr",
		element(`td data-label="When"`, element("time"+attr("datetime", rfc3339(d.At))+
			attr("title", utc(d.At)), text(v.Ago(d.At)))),
		element(`th scope="row" data-label="Request"`, text(d.Request)),
		element(`td data-label="Requester"`, text(d.Requester)),
		element(`td data-label="Decision"`,
			element("strong"+attr("class", class), text(d.Result)),
			when(d.Rule != "", " by rule ", text(d.Rule)),
			when(d.Took > 0, " after ", text(d.Took.Round(100*time.Millisecond).String())),
			when(d.Reason != "", "<br>", why(text(d.Reason)))))
}

func (v view) footer() markup {
	return element("footer",
		element("p", "As of ", timeAs(v.Now, text(utc(v.Now))),
			". ", element("a"+attr("href", pathOf(v.CAName)), "Look again"),
			"; the page does so every 15 seconds."),
		element("p", text(v.Version), ", started ", text(v.Ago(v.Started)), ". More: ",
			"<code>hsm-signer check</code>, <code>hsm-signer policy explain --live NAME</code>, ",
			`and the <a href="/runbook">runbook</a>.`))
}

// table has these columns, and rows that were made already.
func table(class string, columns []markup, rows markup) markup {
	return element("table"+attr("class", class),
		element("thead", element("tr", each(columns, func(column markup) markup {
			return element(`th scope="col"`, column)
		}))),
		element("tbody", rows))
}

// timeAs is a time that machines can read, as it is shown.
func timeAs(t time.Time, shown markup) markup {
	return element("time"+attr("datetime", rfc3339(t)), shown)
}

func number(n int) markup { return text(strconv.Itoa(n)) }

func utc(t time.Time) string     { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
func day(t time.Time) string     { return t.UTC().Format("2 January 2006") }
func clock(t time.Time) string   { return t.UTC().Format("15:04") }
func rfc3339(t time.Time) string { return t.UTC().Format(time.RFC3339) }
