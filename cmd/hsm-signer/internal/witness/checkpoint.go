package witness

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/fingerprint"
	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/issuer/journal"
)

// A Checkpointer has a key of its own sign the head of the journal periodically.
type Checkpointer struct {
	journal  openJournal
	key      *Key
	interval time.Duration
	logger   hclog.Logger

	after journal.Head // of the last checkpoint itself
}

// An openJournal has the writer of a journal; nil while it is not open.
type openJournal interface{ Writer() *journal.Writer }

func NewCheckpointer(j openJournal, key *Key, interval time.Duration,
	logger hclog.Logger) *Checkpointer {
	return &Checkpointer{journal: j, key: key, interval: interval, logger: logger}
}

// checkpointRetry is the longest time to the next try after a checkpoint that could not be made.
const checkpointRetry = time.Minute

// Watch makes a checkpoint at each interval until the context ends. A failure is logged, and tried
// again earlier: "audit verify" reports an end of the journal that no checkpoint has covered for
// two intervals.
func (c *Checkpointer) Watch(ctx context.Context) error {
	soon := min(c.interval, checkpointRetry) // what a crash has left may be old
	started := false
	return poll.Repeat(ctx, nil, func(ctx context.Context) (time.Duration, error) {
		if !started {
			started = true
			return soon, nil
		}
		if err := c.make(ctx); err != nil && ctx.Err() == nil {
			c.logger.Error("no checkpoint of the journal could be made", "error", err)
			return soon, nil
		}
		return c.interval, nil
	})
}

// lastCheckpointTimeout bounds the wait for the last checkpoint.
const lastCheckpointTimeout = 5 * time.Second

// Finish makes a last checkpoint before the journal is closed, so that its end is covered while
// nobody writes it.
func (c *Checkpointer) Finish() {
	ctx, cancel := context.WithTimeout(context.Background(), lastCheckpointTimeout)
	defer cancel()
	if err := c.make(ctx); err != nil {
		c.logger.Warn("the end of the journal has no checkpoint", "error", err)
	}
}

// make signs the head of the journal, unless that is the last checkpoint itself, or the journal is
// not open.
func (c *Checkpointer) make(ctx context.Context) error {
	w := c.journal.Writer()
	if w == nil || w.Head() == c.after || w.RolledBack() != nil {
		return nil
	}
	summary := w.Summary()
	algorithm, signature, err := c.key.sign(ctx,
		journal.CheckpointText(summary.Journal, summary.Head))
	if err != nil {
		return err
	}
	key, err := fingerprint.OfKey(c.key.public)
	if err != nil {
		return err
	}
	err = w.Append(ctx, journal.Checkpoint{
		HeadSeq: summary.Head.Seq, HeadSHA256: summary.Head.SHA256, KeySHA256: key,
		Algorithm: algorithm.String(), Signature: signature,
	})
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if after := w.Head(); after.Seq == summary.Head.Seq+1 {
		c.after = after
	}
	c.logger.Info("a checkpoint of the journal was signed", "head", summary.Head.String())
	return nil
}
