package accesslog

import (
	"context"
	"fmt"
	"io"
	"sync"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// Format is how a line is written.
type Format uint8

// The formats.
const (
	// JSON is one flat object on each line.
	JSON Format = iota + 1
	// Text is for people: time, type, verdict, who, to whom, then what the type has.
	Text
)

// ParseFormat returns the format of a word, "json" or "text".
func ParseFormat(word string) (Format, error) {
	switch word {
	case "json":
		return JSON, nil
	case "text":
		return Text, nil
	}
	return 0, fmt.Errorf("unknown access log format %q, want json or text", word)
}

// Log is an access log.
type Log struct {
	w      io.Writer
	layout *layout
	size   int

	written prometheus.Counter
	full    prometheus.Counter
	failed  prometheus.Counter

	more chan struct{} // has room for one: pending is not empty

	mu      sync.Mutex
	pending []byte // whole lines, guarded by mu
	lines   int    // in pending, guarded by mu

	scratch sync.Pool // *[]byte
}

// New returns a log that writes to w and holds at most size bytes of lines that are
// not written yet (and as much again while it writes). reg may be nil. The error says
// what is wrong with the options.
func New(w io.Writer, o Options, size int, reg prometheus.Registerer) (*Log, error) {
	layout, err := o.compile()
	if err != nil {
		return nil, err
	}
	lost := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_accesslog_lost_total",
		Help: "Lines of the access log that were lost, because too many waited (full) or the write failed (failed).",
	}, []string{"cause"})
	l := &Log{
		w: w, layout: layout, size: size,
		written: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_accesslog_written_total", Help: "Lines of the access log that were written.",
		}),
		full:   lost.WithLabelValues("full"),
		failed: lost.WithLabelValues("failed"),
		more:   make(chan struct{}, 1),
	}
	l.scratch.New = func() any { return new([]byte) }
	if reg != nil {
		reg.MustRegister(l.written, lost)
	}
	return l, nil
}

// Validate says what is wrong with the options.
func (o Options) Validate() error {
	_, err := o.compile()
	return err
}

// Add formats a flow and queues its line. It never waits for the writer: when there
// is no room the line is counted and lost. head is that of the request, or nil. It
// keeps nothing of either. Any goroutine may call it.
func (l *Log) Add(f *flow.Flow, head *message.Head) {
	if !l.layout.wants(f) {
		return
	}
	scratch := l.scratch.Get().(*[]byte)
	line := l.layout.append((*scratch)[:0], f, head)
	l.mu.Lock()
	fits := len(l.pending)+len(line) <= l.size
	first := fits && l.lines == 0
	if fits {
		l.pending = append(l.pending, line...)
		l.lines++
	}
	l.mu.Unlock()
	*scratch = line
	l.scratch.Put(scratch)
	switch {
	case !fits:
		l.full.Inc()
	case first:
		select {
		case l.more <- struct{}{}:
		default:
		}
	}
}

// Run writes lines as they come, many at once while the writer is busy, until ctx
// ends, and then what is left. It returns nil. A write that fails loses its lines.
// It must run once at most.
func (l *Log) Run(ctx context.Context) error {
	var spare []byte
	for {
		var ended bool
		select {
		case <-l.more:
		case <-ctx.Done():
			ended = true
		}
		l.mu.Lock()
		batch, lines := l.pending, l.lines
		l.pending, l.lines = spare[:0], 0
		l.mu.Unlock()
		if lines > 0 {
			if _, err := l.w.Write(batch); err != nil {
				l.failed.Add(float64(lines))
			} else {
				l.written.Add(float64(lines))
			}
		}
		if ended {
			return nil
		}
		spare = batch
	}
}

// unsafeString is b as a string, as long as b does not change.
func unsafeString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
