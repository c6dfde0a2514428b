package main

import (
	"io"

	"github.com/go-logr/logr"
	"github.com/hashicorp/go-hclog"
	"k8s.io/klog/v2"
)

// newLogger returns the only logger. client-go's own lines, which it writes
// through klog, come through it too.
func newLogger(c *config, w io.Writer) hclog.Logger {
	logger := hclog.New(&hclog.LoggerOptions{
		Name:       "hsm-signer",
		Level:      c.logLevel,
		Output:     w,
		JSONFormat: c.logFormat == "json" || c.logFormat == "" && !isTerminal(w),
		Color:      map[bool]hclog.ColorOption{true: hclog.ForceColor, false: hclog.ColorOff}[wantsColor(w)],
	})
	klog.SetLogger(logr.New(klogSink{logger.Named("client-go")}))
	return logger
}

// klogSink writes what comes through klog to hclog.
type klogSink struct{ logger hclog.Logger }

var _ logr.LogSink = klogSink{}

// levelOf maps klog's verbosity: 0 is what an operator should see.
func levelOf(verbosity int) hclog.Level {
	switch {
	case verbosity <= 0:
		return hclog.Info
	case verbosity <= 3:
		return hclog.Debug
	}
	return hclog.Trace
}

func (klogSink) Init(logr.RuntimeInfo) {}

func (s klogSink) Enabled(verbosity int) bool { return levelOf(verbosity) >= s.logger.GetLevel() }

func (s klogSink) Info(verbosity int, message string, keysAndValues ...any) {
	s.logger.Log(levelOf(verbosity), message, keysAndValues...)
}

func (s klogSink) Error(err error, message string, keysAndValues ...any) {
	s.logger.Error(message, append(keysAndValues, "error", err)...)
}

func (s klogSink) WithValues(keysAndValues ...any) logr.LogSink {
	return klogSink{s.logger.With(keysAndValues...)}
}

func (s klogSink) WithName(name string) logr.LogSink { return klogSink{s.logger.Named(name)} }
