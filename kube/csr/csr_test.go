package csr

import (
	"context"
	"errors"
	"fmt"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// pages is an API server that answers a list with one page.
type pages struct {
	Client
	page certificatesv1.CertificateSigningRequestList
	err  error
}

func (p pages) List(_ context.Context,
	o metav1.ListOptions) (*certificatesv1.CertificateSigningRequestList, error) {
	if o.Limit != 1 || o.FieldSelector != "" || o.ResourceVersion != "" {
		return nil, fmt.Errorf("asked with %+v", o)
	}
	return &p.page, p.err
}

func TestRequestsAreCounted(t *testing.T) {
	rest := int64(41)
	for name, c := range map[string]struct {
		items int
		meta  metav1.ListMeta
		fault error
		want  int
		ok    bool
	}{
		"none": {want: 0, ok: true},
		"one":  {items: 1, want: 1, ok: true},
		"many": {items: 1, meta: metav1.ListMeta{Continue: "c", RemainingItemCount: &rest},
			want: 42, ok: true},
		"unknown": {items: 1, meta: metav1.ListMeta{Continue: "c"}},
		"fault":   {fault: errors.New("no")},
	} {
		page := pages{err: c.fault}
		page.page.Items = make([]certificatesv1.CertificateSigningRequest, c.items)
		page.page.ListMeta = c.meta
		n, err := (&API{Client: page}).Count(t.Context())
		if n != c.want || (err == nil) != c.ok {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
}
