package testenv

import (
	"fmt"
	"io"
	"sync"
	"time"
)

const lineEvery = 10 * time.Second

// ticker writes to w what is being done, and for how long, every few seconds. The caller calls
// stop, which waits for the last line.
func ticker(w io.Writer, what string) (stop func()) {
	if w == nil {
		return func() {}
	}
	started := time.Now()
	quit := make(chan struct{})
	var told sync.WaitGroup
	told.Go(func() {
		tick := time.NewTicker(lineEvery)
		defer tick.Stop()
		fmt.Fprintln(w, what)
		for {
			select {
			case <-tick.C:
				fmt.Fprintf(w, "%s: %s\n", what, time.Since(started).Round(time.Second))
			case <-quit:
				fmt.Fprintf(w, "%s: ended after %s\n", what,
					time.Since(started).Round(time.Second))
				return
			}
		}
	})
	return func() {
		close(quit)
		told.Wait()
	}
}
