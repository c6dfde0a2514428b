package status

import (
	"fmt"
	"strings"
	"time"
)

// A view is a page with what can be told from it.
type view struct{ Page }

// signers are the signer names, in one text.
func (v view) signers() string { return strings.Join(v.Signers, ", ") }

// Faults are the parts that are not well.
func (v view) Faults() []Part {
	var faults []Part
	for _, p := range v.Parts {
		if p.Fault != "" {
			faults = append(faults, p)
		}
	}
	return faults
}

// Mood is how the page looks: bad, look or well.
func (v view) Mood() string {
	switch {
	case len(v.Faults()) > 0:
		return "bad"
	case len(v.Hints) > 0 || len(v.Ending) > 0 || v.Unknown != "":
		return "look"
	}
	return "well"
}

// Headline says in one line whether all is well.
func (v view) Headline() string {
	var names []string
	for _, p := range v.Faults() {
		names = append(names, p.Name)
	}
	switch {
	case len(names) == 1:
		return "Not well: " + names[0]
	case len(names) > 1:
		return "Not well: " + strings.Join(names[:len(names)-1], ", ") + " and " +
			names[len(names)-1]
	case v.Mood() == "look":
		return "It works, and something needs you"
	case !v.Leads && v.Leader == "":
		return "All is well; this one does not lead"
	case !v.Leads:
		return "All is well; another one leads"
	}
	return "All is well"
}

// Leading says who leads.
func (v view) Leading() string {
	switch {
	case v.Mode == "shadow":
		return "none: a shadow acts on nothing"
	case v.Leads && v.Identity == "":
		return "this one, without an election"
	case v.Leads:
		return "this one"
	case v.Leader == "":
		return "not known; this one stands by"
	}
	return "another one; this one stands by"
}

// Meaning says what that means for those who ask for certificates.
func (v view) Meaning() string {
	switch {
	case v.Mode == "shadow":
		return "A shadow: it decides on every request and records that, and touches neither the " +
			"cluster nor a token."
	case len(v.Faults()) > 0:
		return "Requests stay pending and are answered by themselves when this is fixed. " +
			"Nothing is denied because of it."
	case !v.Leads:
		return "It stands by, and takes over when the one that leads ends."
	case v.Mode == "false":
		return "Requests that the policy grants, and that somebody has approved, get their " +
			"certificates."
	}
	return "Requests that the policy grants are approved and get their certificates."
}

// Total is how many requests are open.
func (o Open) Total() int {
	n := 0
	for _, state := range o.States {
		n += state.Count
	}
	return n
}

// Total is how many certificates were issued in the time that the chart shows.
func (v view) Total() int {
	n := 0
	for _, one := range v.Issued {
		n += one
	}
	return n
}

// Most is the most in one minute.
func (v view) Most() int {
	most := 0
	for _, one := range v.Issued {
		most = max(most, one)
	}
	return most
}

// The chart's own measures.
const (
	barStep   = 10
	barWidth  = 8
	barHeight = 96
)

// A bar of the chart stands for one minute.
type bar struct{ X, Y, Width, Height int }

// Width is that of the chart.
func (v view) Width() int { return len(v.Issued) * barStep }

// Bars are those of the chart; a minute with anything in it can be seen.
func (v view) Bars() []bar {
	var bars []bar
	for i, n := range v.Issued {
		if n > 0 {
			height := max(3, n*barHeight/v.Most())
			bars = append(bars,
				bar{i*barStep + (barStep-barWidth)/2, barHeight - height, barWidth, height})
		}
	}
	return bars
}

// A minute is one of the chart's, in words.
type minute struct {
	At    time.Time
	Count int
}

// Minutes are those in which something was issued, the latest first.
func (v view) Minutes() []minute {
	var all []minute
	for i := len(v.Issued) - 1; i >= 0; i-- {
		if v.Issued[i] > 0 {
			ago := time.Duration(len(v.Issued)-1-i) * time.Minute
			all = append(all, minute{v.Now.Truncate(time.Minute).Add(-ago), v.Issued[i]})
		}
	}
	return all
}

// Ago says how long before now a time is.
func (v view) Ago(t time.Time) string { return about(v.Now.Sub(t)) + " ago" }

// Left says how long after now a time is.
func (v view) Left(t time.Time) string {
	if !v.Now.Before(t) {
		return "ended " + v.Ago(t)
	}
	return "in " + about(t.Sub(v.Now))
}

// DaysLeft are whole days until a time.
func (v view) DaysLeft(t time.Time) int { return int(t.Sub(v.Now).Hours() / 24) }

// about says a duration the way people do.
func about(d time.Duration) string {
	unit := func(n int, name string) string {
		if n == 1 {
			return "1 " + name
		}
		return fmt.Sprintf("%d %ss", n, name)
	}
	switch {
	case d < time.Minute:
		return unit(max(0, int(d.Seconds())), "second")
	case d < 2*time.Hour:
		return unit(int(d.Minutes()), "minute")
	case d < 48*time.Hour:
		return unit(int(d.Hours()), "hour")
	}
	return unit(int(d.Hours()/24), "day")
}

// podsShown is how many pods of a workload are named.
const podsShown = 3

// Shown are the pods that are named.
func (e Ending) Shown() []string { return e.Pods[:min(len(e.Pods), podsShown)] }

// More is how many are not.
func (e Ending) More() int { return len(e.Pods) - len(e.Shown()) }
