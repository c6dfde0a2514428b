package kube

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"hsm-signer/kube/request"
	"hsm-signer/policy"
)

// Judge returns the verdict on the request of that name as it is now, and writes nothing.
func Judge(
	ctx context.Context, client kubernetes.Interface, kind request.Kind, decider Decider,
	name string,
) (policy.Verdict, error) {
	api, err := kind.Find(ctx)
	if err != nil {
		return nil, err
	}
	return judge(ctx, client, api, decider, name)
}

func judge(
	ctx context.Context, client kubernetes.Interface, api request.API, decider Decider,
	name string,
) (policy.Verdict, error) {
	r, err := api.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	verdict, _, err := decide(ctx, client, decider, r)
	return verdict, err
}

// JudgeOpen calls do with the verdict on each open request of the kind, and writes nothing.
func JudgeOpen(
	ctx context.Context, client kubernetes.Interface, kind request.Kind, decider Decider,
	do func(name string, verdict policy.Verdict),
) error {
	api, err := kind.Find(ctx)
	if err != nil {
		return err
	}
	names, err := openNames(ctx, api, kind)
	if err != nil {
		return err
	}
	for _, name := range names {
		verdict, err := judge(ctx, client, api, decider, name)
		switch {
		case apierrors.IsNotFound(err): // it was deleted meanwhile
		case err != nil:
			return err
		default:
			do(name, verdict)
		}
	}
	return nil
}

// openNames returns the names of the open requests of the kind.
func openNames(ctx context.Context, api request.API, kind request.Kind) ([]string, error) {
	var names []string
	for _, selector := range api.Selectors() {
		all, err := listPages(ctx, api, metav1.ListOptions{FieldSelector: selector})
		if err != nil {
			return nil, err
		}
		for _, item := range all.Items {
			r, err := requestIn(item)
			if err == nil && r.State().Open() && r.Ignored() == "" && kind.Serves(r.Signer()) {
				names = append(names, nameOf(r))
			}
		}
	}
	return names, nil
}
