// Command calicoclient asks for one certificate as Calico's init container does. It is a process of
// its own, so that it can be given as little CPU as that container has.
//
// It reads its task (JSON, see package load) from standard input and prints the outcome: succeeded,
// late, or lost (the API server closed its watch; Calico's exits with 0 then, without files). The
// exit code is 0. If it cannot ask, it prints why to standard error and exits with 1.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"hsm-signer/integration/load"
)

func main() {
	var task load.Task
	err := json.NewDecoder(os.Stdin).Decode(&task)
	if err == nil {
		var outcome load.Outcome
		if outcome, err = task.Do(context.Background()); err == nil {
			fmt.Println(outcome)
			return
		}
	}
	fmt.Fprintln(os.Stderr, "calicoclient:", err)
	os.Exit(1)
}
