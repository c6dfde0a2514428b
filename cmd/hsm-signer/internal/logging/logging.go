// Package logging makes the one logger of a process, through which client-go's lines come too.
package logging

import (
	"io"

	"github.com/go-logr/logr"
	"github.com/hashicorp/go-hclog"
	"k8s.io/klog/v2"

	"hsm-signer/cmd/hsm-signer/internal/terminal"
)

// New returns the only logger. The lines of client-go, which go through klog, come through it
// too. An empty format is text on a terminal, else json.
func New(level hclog.Level, format string, w io.Writer) hclog.Logger {
	logger := hclog.New(&hclog.LoggerOptions{
		Name:       "hsm-signer",
		Level:      level,
		Output:     w,
		JSONFormat: format == "json" || format == "" && !terminal.Is(w),
		Color: map[bool]hclog.ColorOption{true: hclog.ForceColor,
			false: hclog.ColorOff}[terminal.WantsColor(w)],
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
