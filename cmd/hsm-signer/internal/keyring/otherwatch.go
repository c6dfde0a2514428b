package keyring

import (
	"context"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/poll"
)

// An OtherWatch watches the key of a rotation that does not sign now, so that a fault is known
// before the key has to sign. The fault is shown, and keeps nobody from serving or leading.
type OtherWatch struct {
	ring   *Keyring
	logger hclog.Logger

	fault poll.Fault
}

// NewOtherWatch returns a watch of the key that does not sign now; [OtherWatch.Run] starts it.
func NewOtherWatch(ring *Keyring, logger hclog.Logger) *OtherWatch {
	o := &OtherWatch{ring: ring, logger: logger}
	o.fault.Note(errNotLooked)
	return o
}

// Run checks the key until the context ends.
func (o *OtherWatch) Run(ctx context.Context) error {
	return poll.Every(ctx, checkInterval, func(ctx context.Context) {
		if key := o.ring.other(); key != nil {
			o.note(key.Healthy(ctx))
		}
	})
}

// note keeps the state of the key, and logs each change.
func (o *OtherWatch) note(err error) {
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

// Fault returns why the key cannot sign, as the last check found it. Without a rotation there is no
// such key, and exists is false.
func (o *OtherWatch) Fault() (exists bool, err error) {
	if o.ring.other() == nil {
		return false, nil
	}
	return true, o.fault.Err()
}
