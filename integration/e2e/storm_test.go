package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/must"
)

// Many pods send requests at once. Each gets a certificate, no two serial numbers are equal, and
// nothing is signed twice.
func TestManyAskAtOnce(t *testing.T) {
	const requests, askers = 300, 8
	d := startReady(t, ca, withBudget(t, "{perPod: 1000}"))
	p := newPod(t, node)
	numbers := make(chan int)
	var group sync.WaitGroup
	for range askers {
		group.Go(func() {
			for i := range numbers {
				asking := p.InitContainer(node)
				asking.SecretName = fmt.Sprintf("storm-%d", i)
				if _, err := asking.Submit(t.Context(), p.Client); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range requests {
		numbers <- i
	}
	close(numbers)
	group.Wait()

	serials := map[string]bool{}
	must.Eventually(t, "everyone to have a certificate", func(ctx context.Context) (bool, error) {
		list, err := shared.Cluster.Requests().List(ctx,
			metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		clear(serials)
		for i := range list.Items {
			if csr := &list.Items[i]; strings.HasPrefix(csr.Name, "storm-") &&
				len(csr.Status.Certificate) > 0 {
				serials[requireIssued(t, csr, p.InitContainer(node)).SerialNumber.String()] = true
			}
		}
		return len(serials) == requests, nil
	})
	if log := d.Log(); strings.Count(log, `"@message":"issued"`) != requests ||
		strings.Contains(log, `"@level":"error"`) {
		t.Errorf("%d times issued for %d requests; the log:\n%s",
			strings.Count(log, `"@message":"issued"`), requests, log)
	}
}
