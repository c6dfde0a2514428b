package kube

import (
	"errors"
	"testing"
	"time"
)

// The lease's age counts by both clocks.
func TestFence(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		renewed time.Time
		leads   bool
	}{
		"never":                            {time.Time{}, false},
		"just now":                         {now, true},
		"nearly too long ago":              {now.Add(-renewDeadline + time.Second), true},
		"too long ago":                     {now.Add(-renewDeadline), false},
		"by the wall clock, too long ago":  {now.Round(0).Add(-renewDeadline), false},
		"by the wall clock, in the future": {now.Round(0).Add(time.Minute), false}, // it was set back
	} {
		l := &leader{renewed: c.renewed}
		if err := l.fence(); (err == nil) != c.leads || err != nil && !errors.Is(err, errNotLeading) {
			t.Errorf("renewed %s: %v", name, err)
		}
	}
	if err := (*leader)(nil).fence(); err != nil {
		t.Errorf("without an election: %v", err)
	}
}
