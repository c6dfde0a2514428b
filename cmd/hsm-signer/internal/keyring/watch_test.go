package keyring

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/hsm"
)

// testKey gives the results of its fields.
type testKey struct {
	healthy       error
	attributes    hsm.KeyAttributes
	attributesErr error
}

func (k *testKey) Healthy(context.Context) error { return k.healthy }

func (k *testKey) Attributes(context.Context) (hsm.KeyAttributes, error) {
	return k.attributes, k.attributesErr
}

// The attributes of each key are logged once, as soon as the token gives them.
func TestEachKeyThatCanLeaveIsLoggedOnce(t *testing.T) {
	extractable := hsm.KeyAttributes{Attributes: []hsm.Attribute{{Name: "CKA_EXTRACTABLE", Is: true,
		Known: true, Must: true}}}
	safe := hsm.KeyAttributes{Attributes: []hsm.Attribute{{Name: "CKA_EXTRACTABLE", Known: true,
		Must: true}}}
	var log bytes.Buffer
	ca, checkpoints := &testKey{attributes: safe}, &testKey{attributes: extractable}
	token := NewWatch(ca, []NamedKey{{Name: "the CA's key", Key: ca},
		{Name: "the checkpoint key", Key: checkpoints}}, nil, false, nil,
		hclog.New(&hclog.LoggerOptions{Output: &log}))
	for n, c := range []struct {
		healthy, attributesErr error
		want                   int // lines in the log
	}{
		{errors.New("the token is away"), nil, 0},
		{nil, errors.New("a fault"), 0},
		{fmt.Errorf("%w: x", hsm.ErrUnproven), nil, 1},
		{nil, nil, 1},
	} {
		ca.healthy, checkpoints.attributesErr = c.healthy, c.attributesErr
		if err := token.look(t.Context()); err != c.healthy {
			t.Errorf("step %d: %v", n, err)
		}
		if strings.Count(log.String(), "\n") != c.want || c.want == 1 &&
			!strings.Contains(log.String(), "[ERROR] THE CHECKPOINT KEY CAN LEAVE ITS TOKEN") {
			t.Errorf("step %d: want %d lines:\n%s", n, c.want, log.String())
		}
	}
}

// A refused PIN ends the process, but not in a pod, which would be started again.
func TestWhatEndsTheProcess(t *testing.T) {
	for _, c := range []struct {
		err                   error
		restarted, neverReady bool
		ends                  bool
	}{
		{hsm.ErrPIN, false, false, true},
		{hsm.ErrPIN, true, true, false},
		{hsm.ErrKey, true, true, true},
		{hsm.ErrKey, false, false, false},
		{hsm.ErrUnavailable, false, true, false},
		{hsm.ErrHung, true, false, true},
		{nil, false, true, false},
	} {
		token := NewWatch(&testKey{}, nil, nil, c.restarted, nil, hclog.NewNullLogger())
		if got := token.ends(c.err, c.neverReady); got != c.ends {
			t.Errorf("%+v: %t", c, got)
		}
	}
}

// A token that has not answered for a while is not ready, whatever the last check found.
func TestTokenThatHangsIsNotReady(t *testing.T) {
	token := NewWatch(&testKey{}, nil, nil, false, nil, hclog.NewNullLogger())
	if err := token.Fault(); !errors.Is(err, errNotLooked) {
		t.Errorf("before the first check: %v", err)
	}
	token.note(nil)
	if err := token.Fault(); err != nil {
		t.Error(err)
	}
	token.began = time.Now().Add(-time.Minute)
	if err := token.Fault(); err == nil || !strings.Contains(err.Error(), "its module hangs") {
		t.Errorf("%v", err)
	}
}
