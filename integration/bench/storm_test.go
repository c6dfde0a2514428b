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
	stormPods   = 50 // the requesters of a storm
	stormAskers = 16 // concurrent calls
)

// A preparedRequest is ready to be created by its pod.
type preparedRequest struct {
	pod     testenv.Pod
	request *certificatesv1.CertificateSigningRequest
}

// storm creates this many requests as fast as possible, and returns the certificates per second
// between the first request and the last certificate. It creates the pods before that.
func (f *fixture) storm(b *testing.B, d *testenv.Daemon, requests int, initialize bool) float64 {
	b.Helper()
	prepared := must.Get(f.prepare(b.Context(), requests, initialize))(b)
	before := issued(b.Context(), d)
	began := time.Now()
	asking, ctx := errgroup.WithContext(b.Context())
	asking.SetLimit(stormAskers)
	for _, q := range prepared {
		asking.Go(func() error {
			requests := q.pod.Requests()
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

// prepare creates the pods, with or without running init containers, and returns their requests.
func (f *fixture) prepare(ctx context.Context, requests int, initialize bool) ([]preparedRequest,
	error) {
	var all []preparedRequest
	for i := range requests {
		var pod testenv.Pod
		var err error
		switch {
		case i >= stormPods:
			pod = all[i%stormPods].pod
		case initialize:
			pod, err = f.NewInitPod(ctx, node())
		default:
			pod, err = f.NewPod(ctx, node(), f.NextIP())
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
		all = append(all, preparedRequest{pod, request})
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
func (f *fixture) requests(ctx context.Context) (int, error) {
	requests := f.Cluster.Requests()
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
