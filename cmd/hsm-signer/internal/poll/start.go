package poll

import (
	"context"
)

// Start runs the function in the background. The function that it returns ends the context of that,
// and waits for it.
func Start(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = run(ctx) // it has logged what is wrong
	}()
	return func() {
		cancel()
		<-ended
	}
}
