package health

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"hsm-signer/kube"
)

func TestOpenRequestsInWords(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		open kube.Open
		want string
	}{
		{kube.Open{}, "not counted here"},
		{kube.Open{Known: true}, "none"},
		{kube.Open{Known: true, Oldest: now.Add(-70 * time.Second), Unanswered: 65 * time.Second,
			States: map[kube.OpenState]int{kube.OpenFailing: 48, kube.OpenPending: 2}},
			"2 pending, 48 failing; the oldest was created 1m10s ago; no answer for 1m5s"},
		{kube.Open{Known: true, Oldest: now,
			States: map[kube.OpenState]int{kube.OpenOverBudget: 1}},
			"1 over budget; the oldest was created 0s ago"},
	} {
		if got := openInWords(c.open, now); !strings.HasPrefix(got, c.want) {
			t.Errorf("%q; want %q", got, c.want)
		}
	}
	for _, state := range kube.OpenStates {
		if stateNames[state] == "" {
			t.Error(fmt.Sprint("no name of ", state))
		}
	}
}
