package kube

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"hsm-signer/internal/must"
)

// Whoever asks during a call gets the result of the next one, together with all others who do.
func TestSharedCallBeginsAfterItWasAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s shared[int]
		began, end := 0, make(chan error)
		read := func(context.Context) (int, error) {
			began++
			n := began
			return n, <-end
		}
		type answer struct {
			value int
			err   error
		}
		answers := make(chan answer, 10)
		ask := func(ctx context.Context, name string) {
			go func() {
				value, err := s.get(ctx, name, read)
				answers <- answer{value, err}
			}()
			synctest.Wait()
		}
		ask(t.Context(), "a")
		for range 3 {
			ask(t.Context(), "a") // while the first call is under way
		}
		if began != 1 {
			t.Errorf("%d calls began while one was under way; want 1", began)
		}
		end <- nil
		if got := <-answers; got != (answer{1, nil}) {
			t.Errorf("the first got %+v; want the first call's", got)
		}
		synctest.Wait()
		broken := errors.New("broken")
		end <- broken
		for range 3 {
			if got := <-answers; got != (answer{2, broken}) {
				t.Errorf("one that asked during the first call got %+v; want the second's", got)
			}
		}
		ask(t.Context(), "a")
		ask(t.Context(), "b")
		if began != 4 {
			t.Errorf("%d calls began; want one more for each name", began)
		}
		end <- nil
		end <- nil
		must.OK(t, errors.Join((<-answers).err, (<-answers).err))
		synctest.Wait()
		if len(s.next) > 0 {
			t.Errorf("%d names are kept without a call", len(s.next))
		}
	})
}

// A caller that stops waiting does not cancel the call for others.
func TestSharedCallOutlivesWhoAskedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s shared[int]
		first, leave := context.WithCancel(t.Context())
		begin, other := make(chan struct{}), make(chan error)
		read := func(ctx context.Context) (int, error) {
			<-begin
			return 1, ctx.Err()
		}
		go func() { _, err := s.get(first, "a", read); other <- err }()
		synctest.Wait()
		leave()
		if err := <-other; !errors.Is(err, context.Canceled) {
			t.Errorf("the one who left: %v", err)
		}
		go func() { _, err := s.get(t.Context(), "a", read); other <- err }()
		synctest.Wait()
		close(begin)
		must.OK(t, <-other)
	})
}
