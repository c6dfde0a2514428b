package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/issuer"
)

// A caReloader takes up another certificate of the CA when its file has changed: a renewed one of the same key and
// name, or another chain. Anything else in the file is refused, visibly, and the certificate before it stays.
type caReloader struct {
	file    string
	current func() *issuer.CA
	replace func(*issuer.CA) error
	logger  hclog.Logger
	refused func(bool)                   // is told at each look
	warn    func(reason, message string) // as an event

	text    []byte // what the last look read
	settled bool   // it is in use, or refused

	mu    sync.Mutex
	fault error // why the file as it is now is not in use
}

// watch looks at the file until the context ends.
func (r *caReloader) watch(ctx context.Context) error {
	ticker := time.NewTicker(reloadInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			r.look()
		}
	}
}

// look compares the file with the certificate in use. As with the policy, a change counts when two looks find the same.
func (r *caReloader) look() {
	text, err := os.ReadFile(r.file)
	same := err == nil && bytes.Equal(text, r.text)
	if same && r.settled {
		return
	}
	r.text, r.settled = text, same
	var fresh *issuer.CA
	if err == nil {
		fresh, err = issuer.ParseCA(text)
	}
	if err == nil && same && !fresh.Equal(r.current()) {
		if err = r.replace(fresh); err == nil {
			r.logger.Warn("the CA's certificate was replaced, and is in use", "file", r.file, "notAfter", fresh.Certificate().NotAfter)
		}
	}
	if err == nil && !same {
		return // not yet
	}
	r.note(err)
}

// note keeps how the file stands, and logs each change.
func (r *caReloader) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil && (r.fault == nil || r.fault.Error() != err.Error()):
		r.logger.Error("the file of the CA's certificate is refused; the certificate before it stays in use", "file", r.file, "error", err)
		r.warn("CARefused", "the file of the CA's certificate as it is now is refused, and the certificate before it stays in use; the log says why")
	case err == nil && r.fault != nil:
		r.logger.Info("the file of the CA's certificate is well again", "file", r.file)
	}
	r.fault = err
	r.refused(err != nil)
}

// state says what is wrong with the file, if anything is. It does not keep the service from being ready.
func (r *caReloader) state() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fault == nil {
		return ""
	}
	return fmt.Sprintf("but CA_CERT_FILE as it is now is refused: %v", r.fault)
}
