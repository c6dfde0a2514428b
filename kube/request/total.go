package request

import (
	"errors"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Total returns how many objects a list has of which this is the first page, with so many on it. It
// returns an error if the API server does not say (ListMeta, remainingItemCount).
func Total(page metav1.ListMeta, onPage int) (int, error) {
	switch {
	case page.Continue == "":
		return onPage, nil
	case page.RemainingItemCount == nil:
		return 0, errors.New("the API server does not say how many there are")
	}
	return onPage + int(*page.RemainingItemCount), nil
}
