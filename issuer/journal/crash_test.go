package journal

import (
	"bufio"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"hsm-signer/internal/must"
)

// crashVariable names the directory in the process that is killed.
const crashVariable = "JOURNAL_TEST_CRASH"

// A process that is killed at any moment, again and again, loses nothing that it was told is
// written.
func TestKilledAtAnyMoment(t *testing.T) {
	if dir := os.Getenv(crashVariable); dir != "" {
		writeUntilKilled(t, dir)
		return
	}
	dir, ca := t.TempDir(), newCA(t)
	must.OK(t, errors.Join(os.WriteFile(dir+"/ca", ca.cert.Raw, 0o600),
		os.WriteFile(dir+"/key", ca.key, 0o600)))
	told := map[string]State{}
	for range 20 {
		for uid, state := range writeAndKill(t, dir, 1+rand.IntN(100)) {
			told[uid] = state
		}
		verify(t, dir, ca)
	}
	j := open(t, dir, Options{CA: ca.cert})
	for uid, state := range told {
		if r, err := j.Lookup(uid); err != nil || r.State < state {
			t.Errorf("request %s: it is %s, and was said to be %s: %v", uid, r.State, state, err)
		}
	}
	if len(told) < 20 {
		t.Errorf("only %d requests", len(told))
	}
}

// writeAndKill kills a process after it has reported so many lines, and returns them.
func writeAndKill(t *testing.T, dir string, lines int) map[string]State {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), crashVariable+"="+dir)
	out, err := cmd.StdoutPipe()
	must.OK(t, err)
	must.OK(t, cmd.Start())
	told := map[string]State{}
	scanner := bufio.NewScanner(out)
	for n := 0; scanner.Scan(); n++ {
		var uid string
		var state State
		if _, err := fmt.Sscan(scanner.Text(), &uid, &state); err != nil {
			t.Fatalf("%v: %s", err, scanner.Text())
		}
		told[uid] = state
		if n == lines {
			must.OK(t, cmd.Process.Kill())
		}
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the process ended by itself: %v", err)
	}
	return told
}

// writeUntilKilled reports each line after it was written: the request and its state.
func writeUntilKilled(t *testing.T, dir string) {
	der, err := os.ReadFile(dir + "/ca")
	must.OK(t, err)
	key, err := os.ReadFile(dir + "/key")
	must.OK(t, err)
	cert, err := x509.ParseCertificate(der)
	must.OK(t, err)
	ca := &testCA{cert, key}
	j := open(t, dir, Options{CA: ca.cert, FileSize: 16 << 10})
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			for n := 0; ; n++ {
				uid := fmt.Sprintf("%d-%d-%d", os.Getpid(), worker, n)
				intent, signed, published := ca.lines(t, j.ID(), uid, time.Hour)
				for i, e := range []Entry{intent, signed, published} {
					if err := j.Append(t.Context(), e); err != nil {
						panic(err)
					}
					fmt.Println(uid, i+1)
				}
			}
		})
	}
	group.Wait()
}

// A journal can be verified and listed while it is written, across rotations.
func TestVerifiedWhileItIsWritten(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	j := open(t, dir, Options{CA: ca.cert, FileSize: 8 << 10})
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			for n := range 25 {
				intent, signed, published := ca.lines(t, j.ID(), fmt.Sprint(worker, "-", n),
					time.Hour)
				for _, e := range []Entry{intent, signed, published} {
					if err := j.Append(t.Context(), e); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { defer close(done); group.Wait() }()
	for {
		head := j.Head()
		if _, err := Verify(dir,
			VerifyOptions{CAs: []*x509.Certificate{ca.cert}, Witnessed: []Head{head}}); err != nil {
			t.Fatal(err)
		}
		for _, err := range List(dir, Filter{}) {
			must.OK(t, err)
		}
		select {
		case <-done:
			if s := verify(t, dir, ca); s.Counts.Published != 100 {
				t.Errorf("%+v", s)
			}
			return
		default:
		}
	}
}
