package kube

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/kube/clientset"
	"hsm-signer/kube/request"
	"hsm-signer/policy"
)

// Judge returns the verdict on the request of that name as it is now, and writes nothing.
func Judge(
	ctx context.Context, client clientset.Interface, kind request.Kind, decider Decider,
	name string,
) (policy.Verdict, error) {
	api, err := kind.Find(ctx)
	if err != nil {
		return nil, err
	}
	return judge(ctx, &podReader{client: client}, api, decider, name)
}

func judge(
	ctx context.Context, pods *podReader, api request.API, decider Decider, name string,
) (policy.Verdict, error) {
	r, err := api.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	verdict, _, err := decide(ctx, pods, decider, r)
	return verdict, err
}

// JudgeOpen calls do with the verdict on each open request of the kind, and ignored with those that
// are left as they are and why. It writes nothing.
func JudgeOpen(
	ctx context.Context, client clientset.Interface, kind request.Kind, decider Decider,
	do func(name string, verdict policy.Verdict), ignored func(name, why string),
) error {
	api, err := kind.Find(ctx)
	if err != nil {
		return err
	}
	open, err := openOf(ctx, api, kind)
	if err != nil {
		return err
	}
	pods := &podReader{client: client}
	for _, r := range open {
		if why := r.Ignored(); why != "" {
			ignored(nameOf(r), why)
			continue
		}
		verdict, err := judge(ctx, pods, api, decider, nameOf(r))
		switch {
		case apierrors.IsNotFound(err): // it was deleted meanwhile
		case err != nil:
			return err
		default:
			do(nameOf(r), verdict)
		}
	}
	return request.Missing(api) // of these kinds, nothing was found
}

// openOf returns the open requests of the kind.
func openOf(
	ctx context.Context, api request.API, kind request.Kind,
) (open []request.Object, err error) {
	for _, selector := range api.Selectors() {
		all, err := listPages(ctx, api, metav1.ListOptions{FieldSelector: selector})
		if err != nil {
			return nil, err
		}
		for _, item := range all.Items {
			r, err := requestIn(item)
			if err == nil && r.State().Open() && kind.Serves(r.Signer()) {
				open = append(open, r)
			}
		}
	}
	return open, nil
}
