package daemon

import (
	"context"
	"fmt"
	"io"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/hsm"
)

// otherKeys has the key that does not sign now.
type otherKeys interface{ other() *hsm.Key }

// An otherKey watches the key of a rotation that does not sign now, so that a fault is known before
// the key has to sign. The fault is shown, and keeps nobody from serving or leading. A nil one
// watches nothing.
type otherKey struct {
	keys   otherKeys
	logger hclog.Logger

	fault poll.Fault
}

// newOtherKey returns a watch of the key that does not sign now; [otherKey.run] starts it.
func newOtherKey(keys otherKeys, logger hclog.Logger) *otherKey {
	o := &otherKey{keys: keys, logger: logger}
	o.fault.Note(errNotLooked)
	return o
}

// run checks the key until the context ends.
func (o *otherKey) run(ctx context.Context) error {
	return poll.Every(ctx, healthInterval, func(ctx context.Context) {
		if key := o.keys.other(); key != nil {
			o.note(key.Healthy(ctx))
		}
	})
}

// note keeps the state of the key, and logs each change.
func (o *otherKey) note(err error) {
	if warm(err) {
		err = nil
	}
	switch o.fault.Note(err) {
	case poll.Fails:
		o.logger.Warn("the key of the CA that does not sign now cannot sign", "error", err)
	case poll.Works:
		o.logger.Info("the key of the CA that does not sign now can sign")
	}
}

// remarks returns the state of the key; nothing without a rotation.
func (o *otherKey) remarks() []part {
	if o == nil || o.keys.other() == nil {
		return nil
	}
	return []part{{name: "other_ca", err: o.fault.Err()}}
}

// write writes the state of the key for /readyz.
func (o *otherKey) write(w io.Writer, prefix string) {
	for _, remark := range o.remarks() {
		state := "its key could sign"
		if remark.err != nil {
			state = remark.err.Error()
		}
		fmt.Fprintf(w, "%sthe CA that does not sign now: %s\n", prefix, state)
	}
}
