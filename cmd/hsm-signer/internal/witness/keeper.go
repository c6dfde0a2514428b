package witness

import (
	"context"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/issuer/journal"
)

// A Keeper signs the head of the journal, writes WITNESS_FILE, and records what a person has
// accepted.
type Keeper struct {
	*Witness
	key *Key // nil: heads are not signed
}

// NewKeeper returns a keeper; [Keeper.Watch] starts it. A nil key signs nothing.
func NewKeeper(w *Witness, key *Key) *Keeper { return &Keeper{w, key} }

// keepInterval is the time between two checks of the head of the journal.
const keepInterval = time.Second

// Watch signs the head, writes WITNESS_FILE and takes up what a person has accepted, until the
// context ends.
func (k *Keeper) Watch(ctx context.Context) error {
	return poll.Every(ctx, keepInterval, func(ctx context.Context) {
		k.accept(ctx)
		k.sign(ctx)
		k.save()
	})
}

// Finish tells WITNESS_FILE the last head, when the journal is closed.
func (k *Keeper) Finish() {
	ctx, cancel := context.WithTimeout(context.Background(), lastCheckpointTimeout)
	defer cancel()
	k.sign(ctx)
	k.save()
}

// sign signs the head, if there is a key and the head is another one than was signed.
func (k *Keeper) sign(ctx context.Context) {
	id, r, is := k.record()
	if !is || k.key == nil || r.Signed != nil && r.Signed.Head == r.Head {
		return
	}
	head, _ := journal.ParseHead(r.Head) // which record wrote
	algorithm, signature, err := k.key.sign(ctx, journal.WitnessText(id, head))
	if err != nil {
		// the checkpoints report it too
		k.logger.Debug("the head of the journal could not be signed for witnesses", "error", err)
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.signed = &signedHead{r.Head, algorithm.String(), signature}
}
