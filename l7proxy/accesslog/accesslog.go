// Package accesslog writes one line for each finished exchange.
package accesslog

import (
	"context"
	"io"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/observe/flow"
)

// Format is how a line is written.
type Format uint8

// The formats.
const (
	JSON Format = iota + 1
	Text
)

// Log is an access log.
type Log struct{}

// New returns a log that writes to w and holds at most size bytes of lines that
// are not written yet.
func New(w io.Writer, format Format, size int, reg prometheus.Registerer) *Log { return &Log{} }

// Run writes until ctx ends, then what is left.
func (l *Log) Run(ctx context.Context) error { return nil }

// Add formats a flow and queues its line. It never blocks: when there is no room
// the line is counted and lost. Any goroutine may call it.
func (l *Log) Add(f *flow.Flow) {}
