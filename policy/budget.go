package policy

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A Budget bounds how many certificates are issued in an hour, so that nobody spends the HSM of all.
// It is counted by request: looking at one again costs nothing.
type Budget struct {
	Total int // for all together
	Share int // for one service account, or user, in percent of the total
	Pod   int // for one pod
}

// BudgetWindow is the time that a budget is for. It slides.
const BudgetWindow = time.Hour

// defaultBudget holds for a policy that does not say otherwise. All the nodes of the largest
// cluster (5,000, by Kubernetes' own thresholds) may restart twice in an hour, as one service
// account of Calico's with two certificates each, and still leave as much for the others.
var defaultBudget = Budget{Total: 40_000, Share: 50, Pod: 20}

// Account returns how many certificates one service account, or user, may have in an hour.
func (b Budget) Account() int { return max(1, b.Total*b.Share/100) }

// String returns the budget as a line for an operator.
func (b Budget) String() string {
	return fmt.Sprintf("in an hour %d certificates, %d for a service account, %d for a pod", b.Total, b.Account(), b.Pod)
}

func (text fileBudget) compile(found *problems) Budget {
	b := defaultBudget
	count := func(field string, text line[int], into *int) {
		if text.at == 0 {
			return
		}
		if *into = text.value; text.value < 1 || text.value > mostInAnHour {
			found.add(text.at, "budget.%s: %d is not a number of certificates in an hour from 1 to %d", field, text.value, mostInAnHour)
		}
	}
	count("total", text.Total, &b.Total)
	count("perPod", text.PerPod, &b.Pod)
	if share := text.PerServiceAccount; share.at > 0 {
		digits, percent := strings.CutSuffix(share.value, "%")
		var err error
		if b.Share, err = strconv.Atoi(digits); err != nil || !percent || b.Share < 1 || b.Share > 100 {
			found.add(share.at, "budget.perServiceAccount: %q is not a share of the total from 1%% to 100%%", share.value)
		}
	}
	if b.Total > 0 && b.Share > 0 && text.PerPod.at > 0 && b.Pod > b.Account() {
		found.add(text.PerPod.at, "budget.perPod: %d is more than its service account has, %d", b.Pod, b.Account())
	}
	return b
}

// mostInAnHour is more than any token signs.
const mostInAnHour = 10_000_000

// A Spender is who a certificate is counted for.
type Spender struct {
	Account string // the username
	Pod     string // the UID of the pod that the requester's token names; empty when it names none
}

// SpenderOf returns who a certificate of the requester's is counted for.
func SpenderOf(r Requester) Spender {
	spender := Spender{Account: r.Username}
	if pod, ok := r.pod(); ok {
		spender.Pod = pod.uid // where the token names none, another's could be spent
	}
	return spender
}

// OverBudget says that a budget is spent. It is no fault: the request waits until there is room.
type OverBudget struct {
	Whose string    // whose budget: pod "UID", account "USERNAME" or all together; safe to show
	Limit int       // certificates in an hour
	Until time.Time // when the next will be free
}

// Error says whose budget is spent, and until when.
func (o *OverBudget) Error() string {
	return fmt.Sprintf("the budget of %s, %d certificates in an hour, is spent until %s", o.Whose, o.Limit, o.Until.UTC().Format(time.RFC3339))
}
