package load

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"hsm-signer/integration/calico"
)

// requestsPath is the collection of certificate requests. Calico's client speaks v1 only.
const requestsPath = "/apis/certificates.k8s.io/v1/certificatesigningrequests"

// maxEvent bounds one event of a watch, in bytes: more than etcd takes for one object.
const maxEvent = 4 << 20

// A client is one run of Calico's init container. It has a connection of its own.
type client struct {
	calico.InitContainer
	host string
	http *http.Client
	plan Plan
}

// newClient returns a client that reaches the API server with config, which holds the pod's
// credentials.
func newClient(config *rest.Config, asking calico.InitContainer, plan Plan) (*client, error) {
	tls, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, fmt.Errorf("connection of %s: %w", asking.Name(), err)
	}
	// client-go shares a connection between clients of the same configuration, so it is not used.
	transport := &http.Transport{TLSClientConfig: tls, ForceAttemptHTTP2: true}
	authorized, err := rest.HTTPWrappersForConfig(config, transport)
	if err != nil {
		return nil, fmt.Errorf("credentials of %s: %w", asking.Name(), err)
	}
	return &client{asking, config.Host, &http.Client{Transport: authorized}, plan}, nil
}

// run submits the request and waits for its certificate. It returns errWatchEnded if the API server
// closed the watch before that, and the context's error if the context ended first.
func (c *client) run(ctx context.Context) error {
	defer c.http.CloseIdleConnections()
	if err := c.submit(ctx); err != nil {
		return err
	}
	return c.await(ctx)
}

// submit creates the request, and replaces one of the same name that an earlier run of the same pod
// left behind: its key is lost.
func (c *client) submit(ctx context.Context) error {
	request, err := c.Object()
	if err != nil {
		return err
	}
	request.APIVersion, request.Kind = "certificates.k8s.io/v1", "CertificateSigningRequest"
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	code, err := c.call(ctx, http.MethodPost, requestsPath, body)
	if code != http.StatusConflict {
		return err
	}
	if code, err = c.call(ctx, http.MethodDelete, requestsPath+"/"+c.Name(), nil); err != nil {
		if code != http.StatusNotFound {
			return err
		}
	}
	_, err = c.call(ctx, http.MethodPost, requestsPath, body)
	return err
}

// call makes one call and returns the HTTP status; any but 2xx is an error.
func (c *client) call(ctx context.Context, method, path string, body []byte) (int, error) {
	response, err := c.do(ctx, method, path, body)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxEvent))
	if err == nil && response.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, response.Status, answer)
	}
	return response.StatusCode, err
}

// maxRetries is how often client-go repeats a request that the API server was too busy for.
const maxRetries = 10

// do sends a request. If the API server is too busy it repeats the request after the pause that the
// API server asks for, as client-go does.
func (c *client) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	for retries := 0; ; retries++ {
		response, err := c.doOnce(ctx, method, path, body)
		if err != nil || retries == maxRetries {
			return response, err
		}
		pause, asked := retryAfter(response)
		if !asked {
			return response, nil
		}
		_ = response.Body.Close() // it is read no further
		if err := spend(ctx, pause); err != nil {
			return nil, err
		}
	}
}

// retryAfter returns the pause after which the API server wants to be asked again, if it does.
func retryAfter(response *http.Response) (pause time.Duration, asked bool) {
	if response.StatusCode != http.StatusTooManyRequests && response.StatusCode/100 != 5 {
		return 0, false
	}
	seconds, err := strconv.Atoi(response.Header.Get("Retry-After"))
	return time.Duration(seconds) * time.Second, err == nil
}

func (c *client) doOnce(ctx context.Context, method, path string, body []byte) (*http.Response,
	error) {
	request, err := http.NewRequestWithContext(ctx, method, c.host+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json")
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	return c.http.Do(request)
}

// await watches every request of the cluster until one object of the client's own name has both a
// certificate and the approval. It spends [Plan.PerEvent] on each event, and decodes only its own.
func (c *client) await(ctx context.Context) error {
	response, err := c.do(ctx, http.MethodGet, requestsPath+"?watch=true", nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("watch certificate requests: %s", response.Status)
	}
	if c.plan.Watching != nil {
		c.plan.Watching()
	}
	name := []byte(`"name":"` + c.Name() + `"`)
	events := bufio.NewScanner(response.Body)
	events.Buffer(make([]byte, 0, 4<<10), maxEvent)
	for events.Scan() {
		if err := spend(ctx, c.plan.PerEvent); err != nil {
			return err
		}
		if bytes.Contains(events.Bytes(), name) && issued(events.Bytes(), c.Name()) {
			return nil
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errWatchEnded
}

// errWatchEnded is why a client ends without files: its watch ended before its certificate came.
var errWatchEnded = errors.New("the watch ended before the certificate came")

// spend takes as long as a client with few resources needs for one event. It sleeps, so that
// hundreds of clients leave the processors to the API server and the signer.
func spend(ctx context.Context, perEvent time.Duration) error {
	select {
	case <-time.After(perEvent):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// issued reports whether an event shows the request of that name approved and with a certificate.
// Like Calico's client it knows neither Denied nor Failed: those wait for the timer.
func issued(event []byte, name string) bool {
	var seen struct {
		Type   watch.EventType
		Object certificatesv1.CertificateSigningRequest
	}
	if json.Unmarshal(event, &seen) != nil || seen.Object.Name != name ||
		seen.Type == watch.Deleted {
		return false
	}
	return isIssued(&seen.Object)
}
