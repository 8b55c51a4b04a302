package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
	"github.com/sluice-mesh/sluice/observe/record"
)

const (
	// DefaultQueueBytes of a worker hold about 8,000 requests: those of a gathering at
	// the limit, and as many again.
	DefaultQueueBytes = 1 << 20
	// DefaultPerSecond is more than a core of the proxy serves (about 30,000). A flow
	// costs the proxy about half a microsecond and the agent one, so that at the limit
	// what is seen takes a twentieth of a core.
	DefaultPerSecond = 50_000

	minQueueBytes = 2 * record.MaxBytes
	maxPerSecond  = 10_000_000

	// gather is the least time between two writes: the first flow of a quiet moment
	// goes at once, and under load a write carries many.
	gather = 20 * time.Millisecond
	// writeTimeout is how long the agent may take nothing before the connection is
	// given up and made anew.
	writeTimeout = 10 * time.Second
	// drainTimeout is how long the last write may take when the sender stops.
	drainTimeout = time.Second
	// redialFirst and redialLast bound the wait between attempts to reach the agent.
	redialFirst = 50 * time.Millisecond
	redialLast  = 2 * time.Second
)

// SenderConfig configures a Sender.
type SenderConfig struct {
	// Dial connects to the agent's socket.
	Dial func(context.Context) (net.Conn, error)
	// QueueBytes bounds what a Queue holds while the agent does not take it.
	QueueBytes int
	// PerSecond bounds the flows of all queues together.
	PerSecond int
	Logger    *slog.Logger
	// Registerer gets sluice_flow_feed_sent_total and sluice_flow_feed_lost_total.
	Registerer prometheus.Registerer
}

// Validate says what is missing or out of range.
func (c SenderConfig) Validate() error {
	switch {
	case c.Dial == nil:
		return errors.New("flow sender: no dial function")
	case c.Logger == nil || c.Registerer == nil:
		return errors.New("flow sender: no logger or no metrics registry")
	case c.QueueBytes < minQueueBytes:
		return fmt.Errorf("flow sender: a queue of %d bytes; the least is %d", c.QueueBytes, minQueueBytes)
	case c.PerSecond < 1 || c.PerSecond > maxPerSecond:
		return fmt.Errorf("flow sender: a limit of %d flows per second; want 1 to %d", c.PerSecond, maxPerSecond)
	}
	return nil
}

// Sender hands flows to the agent.
type Sender struct {
	dial       func(context.Context) (net.Conn, error)
	queueBytes int
	logger     *slog.Logger
	limit      *bucket
	start      time.Time
	sent, lost prometheus.Counter

	// wake has room for one; awake says that the sender knows, so that Add costs no
	// more than a load while there is something to do.
	wake  chan struct{}
	awake atomic.Bool

	mu     sync.Mutex
	queues []*Queue // guarded by mu; only grows
}

// NewSender returns a sender that Run starts. Flows may be added before.
func NewSender(c SenderConfig) (*Sender, error) {
	if c.QueueBytes == 0 {
		c.QueueBytes = DefaultQueueBytes
	}
	if c.PerSecond == 0 {
		c.PerSecond = DefaultPerSecond
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	s := &Sender{
		dial: c.Dial, queueBytes: c.QueueBytes, logger: c.Logger, limit: newBucket(c.PerSecond),
		start: time.Now(), wake: make(chan struct{}, 1),
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_flow_feed_sent_total", Help: "Flows that the proxy handed to the agent.",
		}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_flow_feed_lost_total", Help: "Flows that the proxy could not hand to the agent, because of the limit per second or because the agent did not take them.",
		}),
	}
	for _, m := range []prometheus.Collector{s.sent, s.lost} {
		if err := c.Registerer.Register(m); err != nil {
			return nil, fmt.Errorf("register the metrics of the flow sender: %w", err)
		}
	}
	return s, nil
}

// Queue takes the flows of one worker.
type Queue struct {
	sender *Sender
	lost   atomic.Uint64

	mu    sync.Mutex
	buf   []byte // guarded by mu; whole records
	flows int    // guarded by mu; how many
}

// NewQueue returns a queue for one worker. It is never given back.
func (s *Sender) NewQueue() *Queue {
	q := &Queue{sender: s, buf: make([]byte, 0, s.queueBytes)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queues = append(s.queues, q)
	return q
}

// Add hands a flow over, or counts it as lost. It never blocks, does not
// allocate and keeps no reference to f. Many goroutines may call it, but one queue
// for each is quicker.
func (q *Queue) Add(f *flow.Flow) {
	if q.Admit() {
		q.Put(f)
	}
}

// Admit takes one flow's share of the limit per second, or counts a flow as lost.
// A caller for whom a flow costs something to make asks first and then calls Put.
func (q *Queue) Admit() bool {
	if q.sender.limit.take(time.Since(q.sender.start)) {
		return true
	}
	q.lose()
	return false
}

// Put is Add without regard to the limit per second, for a flow that was admitted
// or that must not be missed, such as a refusal.
func (q *Queue) Put(f *flow.Flow) {
	if !q.put(f) {
		q.lose()
		return
	}
	q.sender.stir()
}

func (q *Queue) lose() {
	q.lost.Add(1)
	q.sender.lost.Inc()
	q.sender.stir()
}

// put appends the record of f if there is room for the longest record, so that
// the buffer never grows.
func (q *Queue) put(f *flow.Flow) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if cap(q.buf)-len(q.buf) < record.MaxBytes {
		return false
	}
	// Whoever receives it knows its node and workloads, and believes nobody else's.
	bare := *f
	bare.Node = ""
	bare.Source.Workload, bare.Source.Labels = mesh.Name{}, nil
	bare.Destination.Workload, bare.Destination.Labels = mesh.Name{}, nil
	q.buf = record.Append(q.buf, &bare)
	q.flows++
	return true
}

func (s *Sender) stir() {
	if s.awake.Load() || s.awake.Swap(true) {
		return
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// swap gives the queue an empty buffer in exchange for its records.
func (q *Queue) swap(empty []byte) (records []byte, flows int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	records, flows = q.buf, q.flows
	q.buf, q.flows = empty[:0], 0
	return records, flows
}

// Run sends until ctx ends, then sends what is left within a second, and returns
// nil. It connects again whenever the connection fails.
func (s *Sender) Run(ctx context.Context) error {
	w := &writer{sender: s, spare: make([]byte, 0, s.queueBytes), frame: make([]byte, 0, maxFrameBytes)}
	defer w.close()
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
			defer cancel()
			w.flush(last)
			return nil
		}
		// From here on Add must wake again; what it adds before is sent below.
		s.awake.Store(false)
		w.flush(ctx)
		select {
		case <-time.After(gather):
		case <-ctx.Done():
		}
	}
}

// writer is the connection of a running sender. It belongs to Run's goroutine.
type writer struct {
	sender *Sender
	conn   net.Conn
	spare  []byte // the empty buffer to exchange
	frame  []byte
	warned bool
}

func (w *writer) close() {
	if w.conn != nil {
		_ = w.conn.Close()
		w.conn = nil
	}
}

// flush sends what the queues hold. It returns when that is done or ctx ended.
func (w *writer) flush(ctx context.Context) {
	w.sender.mu.Lock()
	queues := w.sender.queues
	w.sender.mu.Unlock()
	for _, q := range queues {
		// The connection is made first: while there is none the queue keeps its
		// records, and counts what has no room.
		if !w.connect(ctx) {
			return
		}
		records, flows := q.swap(w.spare)
		w.spare = records
		lost := q.lost.Swap(0)
		sent, toldLost := w.send(ctx, records, lost)
		w.sender.sent.Add(float64(sent))
		w.sender.lost.Add(float64(flows - sent))
		if unsent := uint64(flows - sent); !toldLost {
			q.lost.Add(lost + unsent)
		}
	}
}

// send writes the records in frames, and last a record of what was lost. A frame
// that a connection did not take is sent again on the next one; only the end of
// ctx makes it fail. It returns how many flows went, and whether all did and the
// record of losses with them.
func (w *writer) send(ctx context.Context, records []byte, lost uint64) (sent int, all bool) {
	w.frame = appendHeader(w.frame[:0])
	framed := 0
	for len(records) > 0 {
		n, err := record.Size(records)
		if err != nil {
			panic(err) // the queue holds whole records
		}
		if len(w.frame)+n > maxFrameBytes {
			if !w.sendFrame(ctx) {
				return sent, false
			}
			sent, framed = sent+framed, 0
		}
		w.frame = append(w.frame, records[:n]...)
		framed++
		records = records[n:]
	}
	if lost > 0 {
		if len(w.frame)+record.MaxBytes > maxFrameBytes {
			if !w.sendFrame(ctx) {
				return sent, false
			}
			sent, framed = sent+framed, 0
		}
		w.frame = record.Append(w.frame, &flow.Flow{Time: time.Now(), Type: flow.TypeLost, Lost: lost, LostSource: flow.LostByProxy})
	}
	if !w.sendFrame(ctx) {
		return sent, false
	}
	return sent + framed, true
}

// sendFrame writes the frame, on a new connection if need be, and begins the next
// one. It returns false when ctx ended first.
func (w *writer) sendFrame(ctx context.Context) bool {
	if len(w.frame) > headerBytes {
		endFrame(w.frame)
		for {
			if !w.connect(ctx) {
				return false
			}
			err := w.write(ctx)
			if err == nil {
				break
			}
			w.sender.logger.Debug("the agent took no flows", "error", err)
			w.close()
			if ctx.Err() != nil {
				return false
			}
		}
	}
	w.frame = appendHeader(w.frame[:0])
	return true
}

func (w *writer) write(ctx context.Context) error {
	deadline := time.Now().Add(writeTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := w.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	// A write that blocks must not hold a stop up for longer than a drain may take.
	stop := context.AfterFunc(ctx, func() { _ = w.conn.SetWriteDeadline(time.Now().Add(drainTimeout)) })
	defer stop()
	_, err := w.conn.Write(w.frame)
	return err
}

// connect makes a connection unless there is one, trying until ctx ends.
func (w *writer) connect(ctx context.Context) bool {
	for wait := redialFirst; w.conn == nil; wait = min(2*wait, redialLast) {
		conn, err := w.sender.dial(ctx)
		if err == nil {
			w.conn, w.warned = conn, false
			return true
		}
		if !w.warned {
			w.warned = true
			w.sender.logger.Warn("cannot hand flows to the agent; trying on", "error", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return false
		}
	}
	return true
}
