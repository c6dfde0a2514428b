package policy

import (
	"math"
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"30d": 30 * day, "2w": 14 * day, "1w2d12h": 9*day + 12*time.Hour, "1.5d": 36 * time.Hour,
		"12h1d": 36 * time.Hour,
		"0":     0, "0d": 0, "-1d": -day, "+1w": 7 * day,
		"8760h": 365 * day, "1h30m": 90 * time.Minute,
		"10s":  10 * time.Second,
		"1.5h": 90 * time.Minute, ".5d": 12 * time.Hour, "1µs": time.Microsecond,
		"15250w":                15250 * 7 * day,
		"9223372036854775807ns": math.MaxInt64,
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "-", "+", "d", "30", "30 d", "1d 2h", "d1", "1x", "1D", "1dd", "--1d", "1.2.3d", ".d",
		"1h-1d", "1d2", "15251w",
		"106752d", "106751d24h", "99999999999999999999d", "9223372036854775807ns1ns", "1y", "1mo",
	} {
		if got, err := ParseDuration(text); err == nil {
			t.Errorf("%q was taken as %v", text, got)
		}
	}
}

// What Go takes is taken, and means the same.
func FuzzParseDuration(f *testing.F) {
	for _, text := range []string{"1h2m3s", "-1.5h", "1d", "0", "+.5s", "1µs",
		"9223372036854775807ns"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		want, err := time.ParseDuration(text)
		if err != nil || want == math.MinInt64 {
			return
		}
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	})
}
