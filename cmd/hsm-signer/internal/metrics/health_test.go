package metrics

import (
	"errors"
	"strings"
	"testing"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/cmd/hsm-signer/internal/health"
)

// testHealth has a token that is gone since 1e9, and nobody is known to lead since then.
type testHealth struct{}

func (testHealth) Parts() []health.Part {
	return []health.Part{{Name: "ca"},
		{Name: "token", Err: errors.New("it is gone"), Since: time.Unix(1e9, 0)}}
}

func (testHealth) Remarks() []health.Part {
	return []health.Part{{Name: "policy_file"},
		{Name: "lease", Err: errors.New("no leader"), Since: time.Unix(1e9, 0)}}
}

// The metrics say which part is ready, and since when a part or a remark is at fault.
func TestSinceWhenAPartIsAtFault(t *testing.T) {
	m := New()
	m.Registry.MustRegister(HealthCollector{testHealth{}})
	text := fixture.Scrape(m.Handler())
	const since = "hsm_signer_unhealthy_since_timestamp_seconds"
	for _, want := range []string{`hsm_signer_ready{part="ca"} 1`, `hsm_signer_ready{part="token"} 0`,
		since + `{part="ca"} 0`, since + `{part="token"} 1e+09`, since + `{part="policy_file"} 0`,
		since + `{part="lease"} 1e+09`} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("%q is missing: %s", want, text)
		}
	}
	if strings.Contains(text, `hsm_signer_ready{part="lease"}`) {
		t.Error("a remark is a part")
	}
}
