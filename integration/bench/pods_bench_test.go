package bench

import (
	"context"
	"testing"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/kubernetes/pkg/controller/certificates/cleaner"
	"k8s.io/utils/clock"

	"hsm-signer/integration/must"
)

// BenchmarkPods compares hsm-signer with the limit in a storm of requests for pod certificates,
// each for a pod of its own: three consistent reads and one write per request. Kubernetes' cleaner
// runs.
func BenchmarkPods(b *testing.B) {
	c := newCourseOf(b, pcrs, setting(b, "REQUESTS", 10_000))
	defer c.clean(b)()
	env := must.Get(c.ForPods(b.Context(), c.ca))(b)
	s := newSeries(usualPerEvent)
	inTurns(b, func(with contender) outcome { return c.storm(b, with) },
		func(of map[string]outcome) {
			product, limit := of[signer], of[withRead]
			s.compare(b, "pods_storm", product, limit)
			s.add(b, "pods_storm_max_vs_wall", product.quantile(1)/limit.quantile(1))
			s.add(b, "pods_storm_lost", float64(product.lost))
			s.add(b, "pods_storm_cpu_ms", product.cpuMilliseconds())
		}, bare(withRead, c.limit(b)), c.product(signer, env...))
	b.ReportMetric(0, "ns/op")
}

// clean starts the controller of kube-controller-manager that removes old requests for pod
// certificates, with the age and the interval that it has there.
func (c *course) clean(b *testing.B) (stop func()) {
	return inBackground(b, func(ctx context.Context, started func()) error {
		all := informers.NewSharedInformerFactory(c.client, 0)
		defer all.Shutdown()
		controller := cleaner.NewPCRCleanerController(c.client,
			all.Certificates().V1().PodCertificateRequests(), clock.RealClock{}, 15*time.Minute,
			5*time.Minute)
		all.Start(ctx.Done())
		all.WaitForCacheSync(ctx.Done())
		started()
		controller.Run(ctx, 1)
		return ctx.Err()
	})
}
