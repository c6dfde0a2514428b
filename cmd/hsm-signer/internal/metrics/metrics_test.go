package metrics

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/cmd/hsm-signer/internal/witness"
	"hsm-signer/hsm"
	"hsm-signer/issuer/journal"
	"hsm-signer/kube"
)

// The metrics hold the head of the journal, in a number of series that does not grow.
func TestTheHeadOfTheJournalIsAMetric(t *testing.T) {
	ca := fixture.NewCA(t)
	dir, logger := t.TempDir(), hclog.NewNullLogger()
	w := witness.New(dir, "", nil, logger)
	opened := journal.New(dir, journal.Options{CA: ca.Certificate}, w, logger)
	t.Cleanup(poll.Start(opened.Run))
	<-opened.Opened()
	j, m := opened.Writer(), New()
	m.Registry.MustRegister(journalMetrics{opened, w})
	for uid := range 3 {
		ca.Issue(t, j, strconv.Itoa(uid), time.Hour)
		text := fixture.Scrape(m.Handler())
		series := regexp.MustCompile(`hsm_signer_journal_head_sha256\{word="(\d)"\} (\S+)`).
			FindAllStringSubmatch(text, -1)
		if len(series) != 8 {
			t.Fatalf("%d series: %s", len(series), text)
		}
		var sum strings.Builder
		for i, s := range series {
			value, err := strconv.ParseFloat(s[2], 64)
			if err != nil || s[1] != strconv.Itoa(i) {
				t.Errorf("%v: %v", s, err)
			}
			fmt.Fprintf(&sum, "%08x", uint32(value))
		}
		seq := regexp.MustCompile(`hsm_signer_journal_head_seq\{journal="` + string(j.ID()) +
			`"\} (\d+)`).FindStringSubmatch(text)
		if seq == nil || seq[1]+":"+sum.String() != j.Head().String() {
			t.Errorf("%v:%s is shown; the head is %s", seq, &sum, j.Head())
		}
		if head := headByHand(t, text); head != j.Head().String() {
			t.Errorf("by hand it is %s; the head is %s", head, j.Head())
		}
		if !strings.Contains(text,
			fmt.Sprintf(`hsm_signer_journal_lines_total{kind="signed"} %d`,
				j.Summary().Counts.Signed)) {
			t.Errorf("the lines are not counted: %s", text)
		}
		for _, want := range []string{
			fmt.Sprintf("hsm_signer_journal_requests %d\n",
				uid+1), "hsm_signer_journal_requests_limit 2e+07\n",
			"hsm_signer_journal_unpublished 0\n", "hsm_signer_journal_unpublished_limit 10000\n",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("%q is missing: %s", want, text)
			}
		}
	}
}

// headByHand has the manual's block read the head from the metrics.
func headByHand(t *testing.T, metrics string) string {
	t.Helper()
	for _, block := range fixture.VerifyScript(t) {
		if strings.Contains(block, "head_of()") {
			cmd := exec.Command("bash", "-euo", "pipefail", "-c", block+"\nhead_of")
			cmd.Stdin = strings.NewReader(metrics)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			return strings.TrimSpace(string(out))
		}
	}
	t.Fatal("the manual does not say how")
	return ""
}

// Calls to the API server are counted by verb and code, also those without an answer.
func TestCallsAreCounted(t *testing.T) {
	m := New()
	answer := func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 403}, nil
	}
	transport := m.CountCalls(roundTrip(func(r *http.Request) (*http.Response,
		error) {
		return answer(r)
	}))
	call := func(method, url string) {
		response, err := transport.RoundTrip(httptest.NewRequest(method, url, nil))
		if err == nil && response.Body != nil {
			_ = response.Body.Close()
		}
	}
	call(http.MethodPut, "https://a/b")
	call(http.MethodGet, "https://a/b?watch=true")
	answer = func(*http.Request) (*http.Response, error) { return nil, errors.New("no route") }
	call(http.MethodGet, "https://a/b")
	m.Signed(time.Millisecond)
	text := fixture.Scrape(m.Handler())
	for _, want := range []string{
		`hsm_signer_api_calls_total{code="403",verb="put"} 1`,
		`hsm_signer_api_calls_total{code="403",verb="watch"} 1`,
		`hsm_signer_api_calls_total{code="error",verb="get"} 1`,
		`hsm_signer_signature_duration_seconds_count 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in %s", want, text)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A 0 would say that no certificate is foreign; who cannot know it says nothing.
func TestOriginsThatAreNotKnownAreNotShown(t *testing.T) {
	m := New()
	const name = "hsm_signer_certificates_in_cluster{"
	for _, step := range []struct {
		origins map[kube.Issuance]int
		want    string
	}{
		{nil, ""},
		{map[kube.Issuance]int{}, `origin="foreign"} 0`},
		{map[kube.Issuance]int{kube.Foreign: 2}, `origin="foreign"} 2`},
		{nil, ""},
	} {
		m.Report(kube.Census{Certificates: step.origins})
		if text := fixture.Scrape(m.Handler()); strings.Contains(text, name) != (step.want != "") ||
			step.want != "" && !strings.Contains(text, name+step.want) {
			t.Errorf("%v: %s", step.origins, text)
		}
	}
}

func TestSessionsAreShown(t *testing.T) {
	m := New()
	m.watchToken(func() hsm.Stats {
		return hsm.Stats{Sessions: hsm.Sessions{Open: 3, InUse: 2,
			Most: 16}}
	})
	text := fixture.Scrape(m.Handler())
	for _, want := range []string{"hsm_signer_token_sessions_open 3\n",
		"hsm_signer_token_sessions_in_use 2\n", "hsm_signer_token_sessions_max 16\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in %s", want, text)
		}
	}
}
