package request

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestTotal(t *testing.T) {
	four := int64(4)
	for name, c := range map[string]struct {
		page metav1.ListMeta
		want int // -1: an error
	}{
		"all on the page": {metav1.ListMeta{}, 1},
		"more":            {metav1.ListMeta{Continue: "x", RemainingItemCount: &four}, 5},
		"not said":        {metav1.ListMeta{Continue: "x"}, -1},
	} {
		total, err := Total(c.page, 1)
		if (err != nil) != (c.want < 0) || err == nil && total != c.want {
			t.Errorf("%s: %d, %v; want %d", name, total, err, c.want)
		}
	}
}
