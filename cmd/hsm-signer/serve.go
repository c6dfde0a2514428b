package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/hashicorp/go-hclog"
)

// An endpoint is an address that is listened on.
type endpoint struct {
	variable string // that says the address
	address  string // HOST:PORT
	handler  http.Handler
	said     string // what the log says once it is listened on
	ready    func() // is called then
}

// serve answers until the context ends. An address that cannot be listened on is a fault of the
// configuration.
func (e endpoint) serve(ctx context.Context, logger hclog.Logger) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", e.address)
	if err != nil {
		return &exitError{exitConfig, fmt.Errorf("%s: %w", e.variable, err)}
	}
	logger.Info(e.said, "address", listener.Addr().String())
	e.ready()
	server := &http.Server{Handler: e.handler, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute}
	stopped := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stopped()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("%s: %w", e.variable, err)
	}
	return nil
}
