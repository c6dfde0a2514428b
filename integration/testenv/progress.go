package testenv

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

const (
	lineEvery   = 10 * time.Second
	updateEvery = time.Second
)

// ticker writes to w what is being done, and for how long: a line every few seconds or, on a
// terminal, one line that it updates. The caller calls stop, which waits for the last line.
func ticker(w io.Writer, what string) (stop func()) {
	if w == nil {
		return func() {}
	}
	every, format := lineEvery, "%s: %s\n"
	if isTerminal(w) {
		every, format = updateEvery, "\r%s: %s "
	}
	started := time.Now()
	quit := make(chan struct{})
	var told sync.WaitGroup
	told.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		fmt.Fprintln(w, what)
		for {
			select {
			case <-tick.C:
				fmt.Fprintf(w, format, what, time.Since(started).Round(time.Second))
			case <-quit:
				fmt.Fprintf(w, "\r%s: ended after %s\n", what,
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

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
