package overview

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"hsm-signer/kube"
)

func TestActivityKeepsTheLast(t *testing.T) {
	var a Activity
	begin := time.Unix(6000, 0)
	for n := range 60 {
		a.Report(kube.Outcome{UID: fmt.Sprint(n), Result: kube.ResultIssued,
			At: begin.Add(time.Duration(n) * time.Second)})
	}
	a.Report(kube.Outcome{UID: "waits", Result: kube.ResultWaiting, At: begin.Add(time.Minute)})
	a.Report(kube.Outcome{UID: "waits", Result: kube.ResultRefused, At: begin.Add(2 * time.Minute),
		Reason: "a\x1b[1m\u202eb" + strings.Repeat("x", 9999)})
	recent, issued := a.last(begin.Add(2 * time.Minute))
	if len(recent) != outcomesKept || recent[0].Result != kube.ResultRefused ||
		recent[1].UID != "59" {
		t.Errorf("%d outcomes; the last are %+v", len(recent), recent[:2])
	}
	if reason := recent[0].Reason; strings.ContainsAny(reason, "\x1b\u202e") ||
		len(reason) > 2*longestText {
		t.Errorf("the reason is %q", reason)
	}
	if len(issued) != minutesKept || issued[minutesKept-3] != 60 || issued[minutesKept-1] != 0 {
		t.Errorf("issued: %v", issued)
	}
	if _, issued = a.last(begin.Add(2 * time.Hour)); issued[0] != 0 || issued[minutesKept-3] != 0 {
		t.Errorf("issued two hours ago: %v", issued)
	}
}
