package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Budget bounds how many certificates are issued in an hour, so that nobody spends the HSM of
// all. It is counted by request: looking at one again costs nothing.
type Budget struct {
	Total     int // for all together
	Namespace int // for one namespace
	Share     int // for one service account, or user, in percent of the total
	Pod       int // for one pod

	rules map[string]RuleBudget
}

// A RuleBudget is the part of a [Budget] that is a rule's own.
type RuleBudget struct {
	Reserve   int // kept for the rule, whatever the others are granted
	Limit     int // the most that the rule is granted
	Namespace int // the most that it is granted to one namespace
}

// BudgetWindow is the time that a budget is for. It slides.
const BudgetWindow = time.Hour

// defaultBudget holds for a policy that does not say otherwise. All the nodes of the largest
// cluster (5,000, by Kubernetes' own thresholds) may restart twice in an hour, as one service
// account of Calico's with two certificates each, and still leave as much for the others.
var defaultBudget = Budget{Total: 40_000, Share: 50, Pod: 20}

const (
	// defaultNamespace is what one namespace may have, in percent of the total.
	defaultNamespace = 80
	// defaultReserve is what the rules without a reserve of their own share as one, in percent of
	// the total.
	defaultReserve = 10
)

// Account returns how many certificates one service account, or user, may have in an hour.
func (b Budget) Account() int { return max(1, percentOf(b.Total, b.Share)) }

// Rule returns the budget of a rule. For a rule that the policy does not have, it is zero.
func (b Budget) Rule(name string) RuleBudget { return b.rules[name] }

// Reserved returns how many certificates are kept for one rule or another.
func (b Budget) Reserved() int {
	sum := 0
	for _, rule := range b.rules {
		sum += rule.Reserve
	}
	return sum
}

// Shared returns how many certificates all rules may have together beyond their reserves.
func (b Budget) Shared() int { return b.Total - b.Reserved() }

// String returns the budget as a line for an operator.
func (b Budget) String() string {
	return fmt.Sprintf("in an hour %d certificates, %d for a namespace, %d for a service "+
		"account, %d for a pod; %d of all are reserved for rules",
		b.Total, b.Namespace, b.Account(), b.Pod, b.Reserved())
}

// mostInAnHour is more than any token signs.
const mostInAnHour = 10_000_000

func percentOf(total, percent int) int { return int(int64(total) * int64(percent) / 100) }

func (text fileBudget) compile(found *problems) Budget {
	b := defaultBudget
	count := func(field string, text line[int], into *int) {
		if text.at == 0 {
			return
		}
		if text.value < 1 || text.value > mostInAnHour {
			found.add(text.at,
				"budget.%s: %d is not a number of certificates in an hour from 1 to %d", field,
				text.value, mostInAnHour)
			return
		}
		*into = text.value
	}
	count("total", text.Total, &b.Total)
	count("perPod", text.PerPod, &b.Pod)
	if share := text.PerServiceAccount; share.at > 0 {
		digits, percent := strings.CutSuffix(share.value, "%")
		if n, err := strconv.Atoi(digits); err == nil && percent && n >= 1 && n <= 100 {
			b.Share = n
		} else {
			found.add(share.at, "budget.perServiceAccount: %q is not a share of the total from "+
				"1%% to 100%%", share.value)
		}
	}
	b.Namespace = max(1, percentOf(b.Total, max(defaultNamespace, b.Share)))
	if namespace := text.PerNamespace; namespace.at > 0 {
		b.Namespace = amount(namespace, "budget.perNamespace", 1, b.Total, found)
	}
	if text.PerPod.at > 0 && b.Pod > b.Account() {
		found.add(text.PerPod.at, "budget.perPod: %d is more than its service account has, %d",
			b.Pod, b.Account())
	}
	return b
}

// amount reads a number of certificates, or a share of the total.
func amount(text line[string], field string, least, total int, found *problems) int {
	digits, percent := strings.CutSuffix(text.value, "%")
	n, err := strconv.Atoi(digits)
	tooMuch := percent && n > 100
	if percent && !tooMuch {
		n = percentOf(total, n)
	}
	if err != nil || tooMuch || n < least || n > total {
		found.add(text.at, "%s: %q is neither a number of certificates in an hour from %d to the "+
			"total, %d, nor a share of it such as 25%%", field, text.value, least, total)
		return least
	}
	return n
}

// compileRules adds the budget of each rule. The sum of the reserves stays within the total.
func (b *Budget) compileRules(rules []rule, texts []fileRule, found *problems) {
	b.rules = map[string]RuleBudget{}
	sum, unsaid, last := 0, 0, 0
	for i, text := range texts {
		one := text.Budget.compile(*b, found)
		b.rules[rules[i].name] = one
		if text.Budget.Reserve.at == 0 {
			unsaid++
			continue
		}
		sum, last = sum+one.Reserve, text.Budget.Reserve.at
		if most, bounded := rules[i].from.most(*b); bounded && one.Reserve > most {
			found.add(last, "rule %q: budget.reserve: %d is more than its service accounts "+
				"may have, %d", rules[i].name, one.Reserve, most)
		}
	}
	if sum > b.Total {
		found.add(last, "budget.reserve: the reserves of all rules add up to %d, more than "+
			"the total, %d", sum, b.Total)
		return
	}
	for i, text := range texts {
		if one := b.rules[rules[i].name]; text.Budget.Reserve.at == 0 {
			one.Reserve = min(one.Limit,
				min(percentOf(b.Total, defaultReserve), b.Total-sum)/unsaid)
			b.rules[rules[i].name] = one
		}
	}
	for i, text := range texts {
		if b.Shared() == 0 && b.rules[rules[i].name].Reserve == 0 {
			found.add(text.at, "rule %q: the reserves of the other rules leave nothing for it; "+
				"give it a budget.reserve", rules[i].name)
		}
	}
}

// most returns how many certificates the rule's requesters may have together, and false where
// that is not bounded.
func (f from) most(b Budget) (int, bool) {
	wild := slices.ContainsFunc(f.accounts, func(a ServiceAccount) bool {
		return a.Namespace == "*" || a.Name == "*"
	})
	return len(f.accounts) * b.Account(), !wild && len(f.accounts) > 0 && len(f.users) == 0
}

func (text fileRuleBudget) compile(b Budget, found *problems) RuleBudget {
	one := RuleBudget{Limit: b.Total, Namespace: b.Namespace}
	if text.Limit.at > 0 {
		one.Limit = amount(text.Limit, "budget.limit", 1, b.Total, found)
	}
	if text.PerNamespace.at > 0 {
		one.Namespace = amount(text.PerNamespace, "budget.perNamespace", 1, b.Total, found)
	}
	if text.Reserve.at > 0 {
		one.Reserve = amount(text.Reserve, "budget.reserve", 0, b.Total, found)
	}
	if one.Reserve > one.Limit {
		found.add(text.Reserve.at, "budget.reserve: %d is more than the limit of the rule, %d",
			one.Reserve, one.Limit)
	}
	return one
}

// A Spender is who a certificate is counted for, by what the API server authenticates.
type Spender struct {
	Account   string // the username
	Namespace string // of the service account; empty when the requester is none
	// the UID of the pod that the requester's token names; empty when it names none
	Pod string
}

// SpenderOf returns who a certificate of the requester's is counted for.
func SpenderOf(r Requester) Spender {
	spender := Spender{Account: r.Username}
	if account, ok := r.ServiceAccount(); ok {
		spender.Namespace = account.Namespace
	}
	if pod, ok := r.pod(); ok {
		spender.Pod = pod.uid // where the token names none, another's could be spent
	}
	return spender
}

// OverBudget is a budget that is spent. The request waits until there is room.
type OverBudget struct {
	// whose budget, such as pod "UID", account "USERNAME" or all together; safe to show
	Whose string
	Limit int       // certificates in an hour
	Until time.Time // when the next will be free
}

// String says whose budget is spent, and until when.
func (o *OverBudget) String() string {
	return fmt.Sprintf("the budget of %s, %d certificates in an hour, is spent until %s", o.Whose,
		o.Limit, o.Until.UTC().Format(time.RFC3339))
}
