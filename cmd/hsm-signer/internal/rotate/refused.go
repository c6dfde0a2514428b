package rotate

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/rotation"
)

// readyzTimeout bounds the question which file is refused.
const readyzTimeout = 5 * time.Second

// mostReadyz is how much of /readyz is read, in bytes.
const mostReadyz = 1 << 20

// askRefused asks the hsm-signer that runs with this configuration whether it refuses the file of
// the next CA's certificate, and returns what it says; empty: it does not. Only the process knows:
// it compares the file with the certificate in use.
func askRefused(ctx context.Context, c *config.Config) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, readyzTimeout)
	defer cancel()
	url, prefix := "http://"+ownAddress(c.ListenAddress)+"/readyz", rotation.NextFileLine
	if c.Name != "" {
		url, prefix = url+"/"+c.Name, c.Name+"/"+prefix
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	direct := http.Transport{DisableKeepAlives: true} // without a proxy
	response, err := direct.RoundTrip(request)
	if err != nil {
		return "", fmt.Errorf("no hsm-signer answers at LISTEN_ADDRESS: %w", err)
	}
	defer response.Body.Close()
	if code := response.StatusCode; code != http.StatusOK &&
		code != http.StatusServiceUnavailable {
		return "", fmt.Errorf("%s has the status %s", url, response.Status)
	}
	lines := bufio.NewScanner(io.LimitReader(response.Body, mostReadyz))
	for lines.Scan() {
		if said, is := strings.CutPrefix(lines.Text(), prefix); is {
			return said, nil
		}
	}
	return "", lines.Err()
}

// ownAddress returns where a process on this host reaches an address that is listened on.
func ownAddress(listened string) string {
	host, port, err := net.SplitHostPort(listened)
	if err != nil {
		return listened
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}
