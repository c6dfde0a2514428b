package heal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/cmd/hsm-signer/internal/stuck"
	"hsm-signer/kube/csr"
)

// clientPatience is how long a client waits for its answer: Calico's gives up after 90 seconds.
const clientPatience = 90 * time.Second

// requests follows the requests of the signers. It adds those that are answered to the answers, and
// counts those that wait. It is safe for concurrent use.
type requests struct {
	Config
	answers *stuck.Answers
	whole   chan struct{} // closed as soon as all requests are known

	faults map[string]*poll.Fault // of the last list or watch, by signer name

	mu   sync.Mutex
	open map[types.UID]time.Time // requests without an answer, and when each was created
}

func newRequests(c Config, answers *stuck.Answers) *requests {
	faults := map[string]*poll.Fault{}
	for _, name := range c.SignerNames {
		faults[name] = &poll.Fault{}
	}
	return &requests{
		Config: c, answers: answers, faults: faults, whole: make(chan struct{}),
		open: map[types.UID]time.Time{},
	}
}

var errNotRead = errors.New("the certificate requests were not read yet")

// ready returns nil while the requests are followed, and otherwise why not.
func (r *requests) ready() error {
	var faults []error
	for _, name := range r.SignerNames {
		faults = append(faults, r.faults[name].Err())
	}
	fault := errors.Join(faults...)
	select {
	case <-r.whole:
		return fault
	default:
		return errors.Join(errNotRead, fault)
	}
}

// waitWhole waits until all requests are known, or the context ends.
func (r *requests) waitWhole(ctx context.Context) {
	select {
	case <-r.whole:
	case <-ctx.Done():
	}
}

// waiting returns how many requests wait for their answer. Those that no client waits for any more
// do not count.
func (r *requests) waiting(now time.Time) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, created := range r.open {
		if now.Sub(created) < clientPatience {
			n++
		}
	}
	return n
}

// watch follows the requests until the function that it returns is called, or the context ends.
func (r *requests) watch(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var group wait.Group
	var synced []cache.InformerSynced
	for _, signer := range r.SignerNames {
		_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
			ListerWatcher: r.listerWatcher(signer),
			ObjectType:    &certificatesv1.CertificateSigningRequest{},
			Handler:       r, Transform: trim,
		})
		synced = append(synced, informer.HasSynced)
		group.StartWithContext(ctx, informer.RunWithContext)
	}
	group.StartWithContext(ctx, func(ctx context.Context) {
		if cache.WaitForCacheSync(ctx.Done(), synced...) {
			close(r.whole)
		}
	})
	return func() {
		cancel()
		group.Wait()
	}
}

// listerWatcher lists and watches the requests of one signer name, and notes what fails.
func (r *requests) listerWatcher(signer string) *cache.ListWatch {
	api := r.Client.CertificateSigningRequests()
	selector := fields.OneTermEqualSelector("spec.signerName", signer).String()
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object,
			error) {
			o.FieldSelector = selector
			list, err := api.List(ctx, o)
			r.note(signer, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface,
			error) {
			o.FieldSelector = selector
			watching, err := api.Watch(ctx, o)
			r.note(signer, err)
			return watching, err
		},
	}
}

func (r *requests) note(signer string, err error) {
	if err != nil {
		err = fmt.Errorf("certificate requests of %s: %w", signer, err)
	}
	if r.faults[signer].Note(err) == poll.Fails {
		r.Logger.Error("certificate requests cannot be read", "error", err)
	}
}

// trim drops what is not looked at. A requester may make requests of a megabyte.
func trim(object any) (any, error) {
	csr, is := object.(*certificatesv1.CertificateSigningRequest)
	if !is { // client-go's note of a deletion that it missed
		return object, nil
	}
	small := &certificatesv1.CertificateSigningRequest{}
	small.Name, small.UID, small.ResourceVersion = csr.Name, csr.UID, csr.ResourceVersion
	small.CreationTimestamp = csr.CreationTimestamp
	small.Spec.SignerName, small.Spec.Username = csr.Spec.SignerName, csr.Spec.Username
	small.Spec.Groups, small.Spec.Extra = csr.Spec.Groups, csr.Spec.Extra
	for _, c := range csr.Status.Conditions {
		small.Status.Conditions = append(small.Status.Conditions,
			condition{Type: c.Type, Status: c.Status, LastUpdateTime: c.LastUpdateTime})
	}
	if len(csr.Status.Certificate) > 0 {
		small.Status.Certificate = []byte("a certificate")
	}
	return small, nil
}

// OnAdd is [cache.ResourceEventHandler]'s.
func (r *requests) OnAdd(object any, _ bool) { r.see(object) }

// OnUpdate is [cache.ResourceEventHandler]'s.
func (r *requests) OnUpdate(_, object any) { r.see(object) }

// OnDelete is [cache.ResourceEventHandler]'s. The answer is remembered: the pod lives on.
func (r *requests) OnDelete(object any) {
	if missed, is := object.(cache.DeletedFinalStateUnknown); is {
		object = missed.Obj
	}
	if csr, is := object.(*certificatesv1.CertificateSigningRequest); is {
		r.setOpen(csr, false)
	}
}

// see takes note of how a request stands.
func (r *requests) see(object any) {
	seen, is := object.(*certificatesv1.CertificateSigningRequest)
	if !is {
		return
	}
	approved, refused := decided(seen)
	answered := approved != nil && !refused && len(seen.Status.Certificate) > 0
	r.setOpen(seen, !answered && !refused)
	if !answered {
		return
	}
	// The client takes the certificate only with the approval: nobody had it before that.
	answer, ok := stuck.AnswerTo(csr.Submission(seen).Requester, string(seen.UID),
		seen.CreationTimestamp.Time, approved.LastUpdateTime.Time)
	if ok && slices.Contains(r.Namespaces, answer.Namespace) {
		r.answers.Add(answer, time.Now())
	}
}

type condition = certificatesv1.CertificateSigningRequestCondition

// decided returns the approval, or nil, and reports whether the request was denied or failed.
func decided(csr *certificatesv1.CertificateSigningRequest) (approval *condition, refused bool) {
	for i, c := range csr.Status.Conditions {
		if c.Status != corev1.ConditionTrue {
			continue
		}
		switch c.Type {
		case certificatesv1.CertificateApproved:
			approval = &csr.Status.Conditions[i]
		case certificatesv1.CertificateDenied, certificatesv1.CertificateFailed:
			refused = true
		}
	}
	return approval, refused
}

func (r *requests) setOpen(csr *certificatesv1.CertificateSigningRequest, is bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if is {
		r.open[csr.UID] = csr.CreationTimestamp.Time
	} else {
		delete(r.open, csr.UID)
	}
}
