package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"hsm-signer/kube"
	"hsm-signer/policy"
)

// policyMetrics are of what the policy decides, and which it is.
type policyMetrics struct {
	decisions   *prometheus.CounterVec
	refusals    prometheus.Counter
	overBudget  prometheus.Counter
	InForce     *prometheus.GaugeVec
	FileRefused prometheus.Gauge
}

func newPolicyMetrics(register promauto.Factory) policyMetrics {
	return policyMetrics{
		decisions: register.NewCounterVec(prometheus.CounterOpts{
			Name: "hsm_signer_decisions_total",
			Help: "Verdicts of the policy, by verdict (granted, refused, waiting), rule, and " +
				"reason of a refusal. A request that waits, for a fact or for room in a budget, " +
				"and one that met a fault is counted at each look.",
		}, []string{"verdict", "rule", "reason"}),
		refusals: register.NewCounter(prometheus.CounterOpts{
			Name: "hsm_signer_refusals_total",
			Help: "Refusals of all rules and reasons: a number that is there, and 0, before the " +
				"first, so that its increase tells.",
		}),
		overBudget: register.NewCounter(prometheus.CounterOpts{
			Name: "hsm_signer_over_budget_total",
			Help: "Syncs of a granted request that ended because a budget is spent; the request " +
				"waits.",
		}),
		InForce: register.NewGaugeVec(prometheus.GaugeOpts{
			Name: "hsm_signer_policy_info",
			Help: "1 for the policy in force, by its hash.",
		}, []string{"hash"}),
		FileRefused: register.NewGauge(prometheus.GaugeOpts{
			Name: "hsm_signer_policy_file_refused",
			Help: "1 while the policy file as it is now is refused and an earlier policy stays " +
				"in force, else 0.",
		}),
	}
}

// count counts the verdict of an outcome. A request that waits for room in a budget was granted.
func (m policyMetrics) count(o kube.Outcome) {
	switch v := o.Verdict.(type) {
	case *policy.Grant:
		m.decisions.WithLabelValues("granted", v.Rule(), "").Inc()
	case *policy.Refusal:
		m.refusals.Inc()
		m.decisions.WithLabelValues("refused", v.Rule(), string(v.Code())).Inc()
	case *policy.Waiting:
		verdict := "waiting"
		if v.Budget != nil {
			verdict = "granted"
			m.overBudget.Inc()
		}
		m.decisions.WithLabelValues(verdict, v.Rule, "").Inc()
	}
}

// PolicyInForce notes which policy that is.
func (m policyMetrics) PolicyInForce(p *policy.Policy) {
	m.InForce.Reset()
	m.InForce.WithLabelValues(p.Hash()).Set(1)
}
