package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"hsm-signer/integration/calico"
)

// Processes run clients as processes of their own (cmd/calicoclient). Each decodes every event with
// client-go, as Calico's init container does; nothing sleeps. The key is given: with 10m of CPU
// Calico's spends from five seconds to more than its 90 on making one.
type Processes struct {
	Binary string // of cmd/calicoclient
	// MilliCPU limits each process, in thousandths of a CPU, by a control group of its own; that
	// needs root. Zero sets no limit.
	MilliCPU int
	// Ended, if not nil, is called when the process of pods[i] has ended.
	Ended func(i int, outcome Outcome, issued bool)
}

// A Task is what one process has to do. It reads it from standard input.
type Task struct {
	Host    string
	CA      []byte // PEM
	Token   string
	Request *certificatesv1.CertificateSigningRequest
	Timeout time.Duration
}

// Run starts one process for each pod, all at once, and returns when all have ended. The times are
// from the start of a process to its end. Run returns an error if it cannot limit the processes.
func (p Processes) Run(ctx context.Context, pods []Pod) (Report, error) {
	enter, err := p.groups(len(pods))
	defer func() {
		for _, group := range enter {
			_ = group.remove() // an empty group that is left behind does no harm
		}
	}()
	if err != nil {
		return Report{}, err
	}
	results := make([]result, len(pods))
	var group sync.WaitGroup
	for i, pod := range pods {
		group.Go(func() {
			began := time.Now()
			outcome, err := p.runOne(ctx, pod, enter[i])
			results[i] = result{outcome, outcome == Succeeded, time.Since(began), err}
			if p.Ended != nil {
				p.Ended(i, outcome, outcome == Succeeded)
			}
		})
	}
	group.Wait()
	return report(results), nil
}

// groups makes so many control groups. Without a limit they are empty strings.
func (p Processes) groups(count int) ([]cgroup, error) {
	if p.MilliCPU == 0 {
		return make([]cgroup, count), nil
	}
	h, err := findHierarchy()
	if err != nil {
		return nil, err
	}
	var groups []cgroup
	for range count {
		group, err := h.limited(p.MilliCPU)
		if err != nil {
			return groups, err
		}
		groups = append(groups, group)
	}
	return groups, nil
}

// runOne runs the process of one pod in that control group. A process that fails is Broken.
func (p Processes) runOne(ctx context.Context, pod Pod, group cgroup) (Outcome, error) {
	task, err := taskOf(pod)
	if err != nil {
		return Broken, err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, p.Binary)
	if group != "" {
		// the shell enters the group, and becomes the client
		const enter = `echo 0 >"$0" && exec "$1"`
		cmd = exec.CommandContext(ctx, "sh", "-c", enter, group.processes(), p.Binary)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(task), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return Broken, fmt.Errorf("client of %s: %w: %s", pod.Asking.Name(), err, stderr.Bytes())
	}
	return parseOutcome(strings.TrimSpace(stdout.String()))
}

// taskOf returns the task of the pod's process, as JSON.
func taskOf(pod Pod) ([]byte, error) {
	request, err := pod.Asking.Object()
	if err != nil {
		return nil, err
	}
	return json.Marshal(Task{
		Host: pod.Config.Host, CA: pod.Config.CAData, Token: pod.Config.BearerToken,
		Request: request, Timeout: calico.Timeout,
	})
}

// Do creates the request and watches all requests until its own has a certificate and the approval,
// or until the timeout, like Calico's client. It returns an error if the outcome is Broken.
func (t Task) Do(ctx context.Context) (Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, t.Timeout)
	defer cancel()
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host: t.Host, BearerToken: t.Token, TLSClientConfig: rest.TLSClientConfig{CAData: t.CA},
		// Calico's asks for JSON, with an older client-go whose default that is.
		ContentConfig: rest.ContentConfig{ContentType: "application/json"},
	})
	if err != nil {
		return Broken, err
	}
	if _, err = calico.Create(ctx, client, t.Request); err == nil {
		err = t.await(ctx, client)
	}
	switch {
	case err == nil:
		return Succeeded, nil
	case ctx.Err() != nil:
		return Late, nil
	case errors.Is(err, errWatchEnded):
		return Lost, nil
	}
	return Broken, err
}

// await returns nil when the watch shows the request approved and with a certificate, and
// errWatchEnded if the watch ends before that.
func (t Task) await(ctx context.Context, client kubernetes.Interface) error {
	requests := client.CertificatesV1().CertificateSigningRequests()
	watcher, err := requests.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	defer watcher.Stop()
	for event := range watcher.ResultChan() {
		request, is := event.Object.(*certificatesv1.CertificateSigningRequest)
		if !is {
			return fmt.Errorf("watch certificate requests: %w", apierrors.FromObject(event.Object))
		}
		if request.Name == t.Request.Name && isIssued(request) {
			return nil
		}
	}
	return errWatchEnded
}

// isIssued reports whether the request is approved and has a certificate.
func isIssued(request *certificatesv1.CertificateSigningRequest) bool {
	for _, c := range request.Status.Conditions {
		if c.Type == certificatesv1.CertificateApproved && c.Status == corev1.ConditionTrue {
			return len(request.Status.Certificate) > 0
		}
	}
	return false
}
