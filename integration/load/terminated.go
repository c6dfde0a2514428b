package load

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"

	"k8s.io/client-go/kubernetes"
)

// Terminated returns how many watches of certificate requests the API server has closed since its
// start because their clients did not keep up (its metric apiserver_terminated_watchers_total).
func Terminated(ctx context.Context, admin kubernetes.Interface) (int, error) {
	text, err := admin.Discovery().RESTClient().Get().AbsPath("/metrics").Do(ctx).Raw()
	if err != nil {
		return 0, fmt.Errorf("metrics of the API server: %w", err)
	}
	total := 0
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		series, value, found := strings.Cut(lines.Text(), "} ")
		if !found || !strings.HasPrefix(series, "apiserver_terminated_watchers_total{") ||
			!strings.Contains(series, `resource="certificatesigningrequests"`) {
			continue
		}
		count, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, fmt.Errorf("metrics of the API server: %q: %w", lines.Text(), err)
		}
		total += int(count)
	}
	return total, nil
}
