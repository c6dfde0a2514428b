package bench

import (
	"bufio"
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

const (
	stormPods   = 50 // that all requests of a storm come from
	stormAskers = 16 // at the same time
)

// A question is a request that is ready to be created, and its pod.
type question struct {
	pod     testenv.Pod
	request *certificatesv1.CertificateSigningRequest
}

// storm has pods ask so often as fast as they can, and returns how many certificates a second came
// from the first request to the last certificate. What the pods need is made before that.
func (p *place) storm(b *testing.B, d *testenv.Daemon, requests int, initialize bool) float64 {
	b.Helper()
	questions, err := p.questions(b.Context(), requests, initialize)
	must.OK(b, err)
	before := issued(b.Context(), d)
	began := time.Now()
	asking, ctx := errgroup.WithContext(b.Context())
	asking.SetLimit(stormAskers)
	for _, q := range questions {
		asking.Go(func() error {
			requests := q.pod.Client.CertificatesV1().CertificateSigningRequests()
			_, err := requests.Create(ctx, q.request, metav1.CreateOptions{})
			return err
		})
	}
	must.OK(b, asking.Wait())
	poll(b, 50*time.Millisecond, "all certificates", func(ctx context.Context) (bool, error) {
		return issued(ctx, d)-before >= requests, nil
	})
	return float64(requests) / time.Since(began).Seconds()
}

// questions makes the pods, whose init containers run or are none, and their requests.
func (p *place) questions(ctx context.Context, requests int, initialize bool) ([]question, error) {
	var all []question
	for i := range requests {
		var pod testenv.Pod
		var err error
		switch {
		case i >= stormPods:
			pod = all[i%stormPods].pod
		case initialize:
			pod, err = p.NewInitPod(ctx, node())
		default:
			pod, err = p.NewPod(ctx, node(), p.NextIP())
		}
		if err != nil {
			return nil, err
		}
		asking := pod.InitContainer(node())
		asking.SecretName = fmt.Sprintf("storm-%d", i)
		request, err := asking.Object()
		if err != nil {
			return nil, err
		}
		all = append(all, question{pod, request})
	}
	return all, nil
}

// issued returns how many certificates hsm-signer has issued since its start.
func issued(ctx context.Context, d *testenv.Daemon) (total int) {
	for lines := bufio.NewScanner(strings.NewReader(d.Metrics(ctx))); lines.Scan(); {
		series, value, _ := strings.Cut(lines.Text(), " ")
		if name, _, _ := strings.Cut(series, "{"); name == "hsm_signer_certificates_issued_total" {
			count, _ := strconv.ParseFloat(value, 64) // what is no number counts for nothing
			total += int(count)
		}
	}
	return total
}

// requests returns how many certificate requests the API server holds.
func (p *place) requests(ctx context.Context) (int, error) {
	requests := p.Cluster.Client().CertificatesV1().CertificateSigningRequests()
	list, err := requests.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return 0, err
	}
	count := len(list.Items)
	if list.RemainingItemCount != nil {
		count += int(*list.RemainingItemCount)
	}
	return count, nil
}

// patience ends the wait for what does not come.
const patience = 30 * time.Minute

// poll waits until the condition holds.
func poll(b *testing.B, every time.Duration, what string, holds wait.ConditionWithContextFunc) {
	b.Helper()
	if err := wait.PollUntilContextTimeout(b.Context(), every, patience, true, holds); err != nil {
		b.Fatalf("waiting for %s: %v", what, err)
	}
}
