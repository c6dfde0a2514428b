package testenv

import (
	"context"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// EtcdLimit is etcd's default for --max-request-bytes.
const EtcdLimit = 1536 << 10

// Pad adds text before the PEM block of a request until spec.request has this size. The API server
// accepts that.
func Pad(csr *certificatesv1.CertificateSigningRequest, size int) {
	const line = "nothing to see here, move along\n"
	need := max(0, size-len(csr.Spec.Request))
	text := []byte(strings.Repeat("x", need%len(line)) + strings.Repeat(line, need/len(line)))
	if need%len(line) > 0 {
		text[need%len(line)-1] = '\n'
	}
	csr.Spec.Request = slices.Concat(text, csr.Spec.Request)
}

// PadLabels adds labels of about this size to a request. The API server stores their names a second
// time, in managedFields.
func PadLabels(csr *certificatesv1.CertificateSigningRequest, size int) {
	const value = 63
	if csr.Labels == nil {
		csr.Labels = map[string]string{}
	}
	for n := 0; n < size; n += 320 {
		prefix := strings.Repeat("p", 63) + "." + strings.Repeat("q", 63) + "." +
			strings.Repeat("r", 60)
		key := fmt.Sprintf("%s/%063d", prefix, n)
		csr.Labels[key] = strings.Repeat("v", value)
	}
}

// LongestRequest finds the largest spec.request that the API server and etcd store in such an
// object. It creates and deletes requests with another signer name of the same length.
func (p Pod) LongestRequest(ctx context.Context,
	csr *certificatesv1.CertificateSigningRequest) (int, error) {
	requests := p.Requests()
	stored := func(size int) (bool, error) {
		padded := csr.DeepCopy()
		padded.Spec.SignerName = "example.com/" +
			strings.Repeat("x", len(SignerName)-len("example.com/"))
		Pad(padded, size)
		made, err := requests.Create(ctx, padded, metav1.CreateOptions{})
		if err != nil {
			if strings.Contains(err.Error(), "too large") {
				return false, nil
			}
			return false, err
		}
		return true, requests.Delete(ctx, made.Name, metav1.DeleteOptions{})
	}
	least, most := EtcdLimit-16<<10, EtcdLimit
	for least+1 < most {
		middle := (least + most) / 2
		fits, err := stored(middle)
		switch {
		case err != nil:
			return 0, err
		case fits:
			least = middle
		default:
			most = middle
		}
	}
	return least, nil
}
