package l7proxy

import (
	"errors"
	"io"

	"github.com/sluice-mesh/sluice/l7proxy/http2"
	"github.com/sluice-mesh/sluice/l7proxy/loop"
	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/observe/flow"
)

const (
	// streamWindow is what an HTTP/2 peer may send ahead on one stream; it bounds
	// what a slow receiver makes the proxy hold for the stream.
	streamWindow = 256 << 10
	// connWindow is the same for all streams of a connection. Larger than
	// streamWindow, so that one stream that stalls does not stop the others.
	connWindow = 1 << 20
	// streamFull is how much waits for a stream's window before its source is not
	// read any more.
	streamFull = 32 << 10
	// outFull is how much may wait in an engine's output before its peer, who does
	// not read, is not read either.
	outFull = 256 << 10
	// tickEvery is how often an engine's abuse counters forget, in nanoseconds.
	tickEvery = 1_000_000_000
)

// h2down is the server's side of an HTTP/2 connection.
type h2down struct {
	d        *downConn
	conn     *http2.Conn
	streams  map[uint32]*h2downStream
	dirty    bool // queued for Flush
	ended    bool // GOAWAY or an error: close when all is written
	lastTick int64
}

// h2downStream is one request of it.
type h2downStream struct {
	h  *h2down
	id uint32
	x  exchange
	sendQueue
	unconsumed int  // request bytes for which no window was given back yet
	received   bool // the request is complete
	sent       bool // the response is complete
}

// sendQueue is what a stream's window has no room for yet.
type sendQueue struct {
	wire     *wire // whose memory it counts as
	out      []byte
	outAt    int
	ending   bool // an end follows out
	trailers []message.Field
}

func (q *sendQueue) queued() int { return len(q.out) - q.outAt }

func newH2down(d *downConn) *h2down {
	return &h2down{
		d: d, streams: map[uint32]*h2downStream{},
		conn: http2.NewServer(http2.Config{
			MaxConcurrentStreams: d.w.limits.MaxConcurrentStreams,
			InitialWindow:        streamWindow,
			ConnWindow:           connWindow,
			MaxHeaderListBytes:   d.w.limits.MaxHeadBytes,
			MaxOutBytes:          highWater,
			ExtendedConnect:      true,
		}),
	}
}

func (h *h2down) ready() {
	d := h.d
	if now := d.w.loop.Now(); now-h.lastTick > tickEvery {
		h.lastTick = now
		h.conn.Tick()
	}
	if d.c.Writable() && (d.pending() > 0 || len(h.conn.Out()) > 0) {
		h.push()
	}
	for turn := 0; !h.ended && d.readable() && d.pending()+len(h.conn.Out()) < outFull; turn++ {
		if turn == maxTurns {
			d.c.Again()
			break
		}
		buf, err := d.read()
		if len(buf) > 0 {
			rest := h.feed(buf)
			if d.mode != modeHTTP2 {
				return
			}
			d.keep(rest)
		}
		if err == loop.ErrAgain {
			break
		}
		if err != nil {
			reason := flow.ReasonDownstreamReset
			if err == io.EOF && len(h.streams) == 0 {
				reason = flow.ReasonNone
			}
			h.gone(reason)
			return
		}
	}
	if d.in != nil && !h.ended {
		// After the hello of TLS or the detection, or from a Writable that was due.
		rest := h.feed(d.unread())
		if d.mode != modeHTTP2 {
			return
		}
		d.keep(rest)
	}
	h.push()
}

// feed gives buf to the engine and returns the rest.
func (h *h2down) feed(buf []byte) []byte {
	for h.d.mode == modeHTTP2 {
		n, ev, err := h.conn.Next(buf)
		buf = buf[n:]
		if err != nil {
			h.ended = true
			reason := connReason(err)
			h.d.w.recordConn(h.d, reason, err.Error(), 0, 0, nil)
			h.fail(reason, err)
			h.push()
			return nil
		}
		if ev.Kind == http2.NeedMore {
			return buf
		}
		if ev.Kind == http2.Headers {
			h.request(ev)
			continue
		}
		if ev.Kind == http2.Refused {
			h.refused(ev)
			continue
		}
		s := h.streams[ev.Stream]
		switch ev.Kind {
		case http2.Data:
			if s == nil || !s.x.active {
				h.conn.Consumed(ev.Stream, len(ev.Data))
				if s != nil && ev.End {
					s.received = true
					s.settle()
				}
				continue
			}
			s.unconsumed += len(ev.Data)
			if len(ev.Data) > 0 {
				s.x.requestData(ev.Data)
			}
			if ev.End {
				s.received = true
				s.x.requestEnd(nil)
			}
			s.consume()
			s.acted()
		case http2.Trailers:
			if s != nil {
				s.received = true
				s.x.requestEnd(h.conn.Trailers())
				s.acted()
			}
		case http2.Reset:
			if s != nil {
				s.received, s.sent = true, true
				reason := flow.ReasonDownstreamReset
				if ev.Text != "" {
					reason, s.x.detail = flow.ReasonDownstreamProtocol, ev.Text
				}
				s.x.requestReset(reason)
				s.free()
			}
		case http2.Writable:
			if s != nil {
				s.write()
			}
		}
	}
	return nil
}

// connReason is the reason for which a client's mistake ended its connection.
func connReason(err error) flow.Reason {
	var e *http2.Error
	switch {
	case errors.As(err, &e) && e.Head:
		return flow.ReasonHeadTooLarge
	case e != nil && e.Code == http2.EnhanceYourCalm:
		return flow.ReasonOverLimit
	}
	return flow.ReasonDownstreamProtocol
}

// refused records a request that the engine has answered or reset itself.
func (h *h2down) refused(ev http2.Event) {
	s := h.d.w.takeH2down(h, ev.Stream)
	s.x.begun(h.d, s, h.conn.Head())
	s.x.detail = ev.Text
	reason := flow.ReasonDownstreamProtocol
	switch ev.Code {
	case http2.EnhanceYourCalm:
		reason = flow.ReasonHeadTooLarge
		s.x.status, s.x.responded = 431, true
	case http2.RefusedStream:
		reason = flow.ReasonOverLimit
	}
	s.received, s.sent = true, true
	s.x.requestReset(reason)
	h.d.w.putH2down(s)
}

func (h *h2down) request(ev http2.Event) {
	head := h.conn.Head()
	s := h.d.w.takeH2down(h, ev.Stream)
	h.streams[ev.Stream] = s
	s.received = ev.End
	if len(h.streams) == 1 {
		h.d.w.loop.StopTimer(&h.d.timer)
	}
	s.x.begin(h.d, s, head)
	s.acted()
}

// acted has sent what a step of the exchange made, and frees the stream if that
// was the last.
func (s *h2downStream) acted() {
	if s.h == nil {
		return
	}
	if s.x.up != nil {
		s.x.up.push()
	}
	s.settle()
}

// consume gives the window back for what was handed on, unless the endpoint does
// not keep up.
func (s *h2downStream) consume() {
	if s.unconsumed > 0 && s.x.ready() {
		s.h.conn.Consumed(s.id, s.unconsumed)
		s.unconsumed = 0
	}
}

func (s *h2downStream) respond(head *message.Head) {
	if err := s.h.conn.WriteHeaders(s.id, head, head.End && head.Status >= 200); err != nil {
		s.h.conn.Reset(s.id, http2.InternalError)
		s.sent, s.received = true, true
	} else if head.Status >= 200 && head.End {
		s.sent = true
	}
	s.h.push()
}

func (s *h2downStream) data(p []byte) {
	if s.sent || s.ending {
		return
	}
	if s.queued() == 0 {
		n, err := s.h.conn.WriteData(s.id, p, false)
		if err != nil {
			s.sent = true
			return
		}
		p = p[n:]
	}
	if len(p) > 0 {
		s.enqueue(s.h.d.w, p)
	}
	s.h.push()
}

func (q *sendQueue) enqueue(w *worker, p []byte) {
	had := cap(q.out)
	if q.outAt > 0 {
		q.out = append(q.out[:0], q.out[q.outAt:]...)
		q.outAt = 0
	}
	q.out = append(w.loop.Buffers.Grow(q.out, len(p)), p...)
	q.wire.extra += cap(q.out) - had
}

func (q *sendQueue) drop(w *worker) {
	if q.out != nil {
		q.wire.extra -= cap(q.out)
		w.loop.Buffers.Put(q.out)
		q.out, q.outAt = nil, 0
	}
}

func (q *sendQueue) reset(w *worker) {
	q.drop(w)
	clear(q.trailers)
	*q = sendQueue{trailers: q.trailers[:0]}
}

func (q *sendQueue) end(trailers []message.Field) {
	q.ending = true
	for _, f := range trailers {
		q.trailers = append(q.trailers, message.Field{Name: cloneBytes(f.Name), Value: cloneBytes(f.Value)})
	}
}

// write sends what is queued as far as the engine takes it. done says that the end
// went too.
func (q *sendQueue) write(w *worker, c *http2.Conn, id uint32) (done bool, err error) {
	if p := q.out[q.outAt:]; len(p) > 0 {
		end := q.ending && len(q.trailers) == 0
		n, err := c.WriteData(id, p, end)
		if err != nil {
			return false, err
		}
		q.outAt += n
		if q.outAt < len(q.out) {
			return false, nil
		}
		q.drop(w)
		if end {
			return true, nil
		}
	}
	if !q.ending {
		return false, nil
	}
	if len(q.trailers) > 0 {
		return true, c.WriteTrailers(id, q.trailers)
	}
	_, err = c.WriteData(id, nil, true)
	return true, err
}

func (s *h2downStream) end(trailers []message.Field) {
	if !s.sent && !s.ending {
		if s.queued() == 0 && len(trailers) > 0 {
			s.sent = true
			if s.h.conn.WriteTrailers(s.id, trailers) != nil {
				s.h.conn.Reset(s.id, http2.InternalError)
				s.received = true
			}
		} else {
			s.sendQueue.end(trailers)
			s.write()
		}
	}
	s.h.push()
}

// write continues with what waits.
func (s *h2downStream) write() {
	had := s.queued()
	done, err := s.sendQueue.write(s.h.d.w, s.h.conn, s.id)
	if err != nil {
		s.sent = true
	}
	s.sent = s.sent || done
	if s.x.active {
		if had > 0 && !s.full() {
			s.x.drained()
		}
		return
	}
	s.settle()
}

// settle frees a stream on which nothing is left to do. A request that was answered
// before its end is cut off without blame (RFC 9113 §8.1).
func (s *h2downStream) settle() {
	if s.x.active || !s.sent {
		return
	}
	if !s.received {
		s.received = true
		s.h.conn.Reset(s.id, http2.NoError)
	}
	s.free()
}

func (s *h2downStream) free() {
	h := s.h
	if h == nil || h.streams[s.id] != s {
		return
	}
	delete(h.streams, s.id)
	if s.unconsumed > 0 {
		h.conn.Consumed(s.id, s.unconsumed)
		s.unconsumed = 0
	}
	h.d.w.putH2down(s)
	if len(h.streams) == 0 {
		h.d.after(int64(h.d.w.limits.IdleTimeout))
	}
	h.push()
}

func (s *h2downStream) abort() {
	if !s.sent {
		s.sent, s.received = true, true
		code := http2.InternalError
		if s.x.upgraded || s.x.reason == flow.ReasonRequestTimeout {
			code = http2.Cancel // RFC 8441 §5 of a reset
		}
		s.h.conn.Reset(s.id, code)
	}
	s.h.push()
}

func (s *h2downStream) full() bool {
	return s.queued() >= streamFull
}

func (s *h2downStream) wake() {
	if s.h == nil {
		return
	}
	s.consume()
	s.h.push()
}

func (s *h2downStream) push() {
	if s.h == nil {
		return
	}
	h := s.h
	if !s.x.active {
		s.settle()
	}
	h.push()
}

// push has the output written at the end of the round, together with that of the
// other streams.
func (h *h2down) push() {
	if h.dirty || h.d.mode != modeHTTP2 {
		return
	}
	h.dirty = true
	h.d.w.loop.Defer(h)
}

// Flush writes the engine's output.
func (h *h2down) Flush() {
	h.dirty = false
	d := h.d
	if d.mode != modeHTTP2 {
		return
	}
	for round := 0; ; round++ {
		blocked := false
		for {
			p := h.conn.Out()
			if len(p) == 0 {
				break
			}
			n, err := d.Send(p)
			if err == loop.ErrAgain {
				blocked = true
				break
			}
			if err != nil {
				h.gone(flow.ReasonDownstreamReset)
				return
			}
			h.conn.Sent(n)
			if n < len(p) {
				blocked = true
				break
			}
		}
		if blocked || h.ended || round == maxTurns {
			break
		}
		// What was sent may let streams go on that waited for room.
		rest := h.feed(d.unread())
		if d.mode != modeHTTP2 {
			return
		}
		d.keepSame(rest)
		if len(h.conn.Out()) == 0 {
			break
		}
	}
	if d.tls != nil && d.pending() > 0 {
		if err := d.flush(); err != nil {
			h.gone(flow.ReasonDownstreamReset)
			return
		}
	}
	if (h.ended || h.conn.Done()) && len(h.conn.Out()) == 0 && len(h.streams) == 0 {
		d.h2 = nil
		d.startLinger()
		return
	}
	if d.settle() != nil {
		h.gone(flow.ReasonOverLimit)
	}
}

// fail ends all exchanges.
func (h *h2down) fail(reason flow.Reason, err error) {
	for _, s := range h.streams {
		if err != nil {
			s.x.detail = err.Error()
		}
		s.sent, s.received = true, true
		s.x.requestReset(reason)
		s.free()
	}
}

// gone ends the connection.
func (h *h2down) gone(reason flow.Reason) {
	if reason == flow.ReasonNone {
		reason = flow.ReasonDownstreamReset
	}
	h.ended = true
	h.fail(reason, nil)
	h.d.close()
}

func (h *h2down) drain() {
	h.conn.Shutdown()
	h.push()
}

// timeout is the connection's own timer.
func (h *h2down) timeout() {
	if len(h.streams) > 0 {
		return
	}
	if h.ended {
		h.d.close()
		return
	}
	h.ended = true
	h.conn.GoAway(http2.NoError)
	h.push()
}
