package l7proxy

import (
	"errors"
	"io"
	"slices"

	"github.com/sluice-mesh/sluice/l7proxy/http2"
	"github.com/sluice-mesh/sluice/l7proxy/loop"
	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/l7proxy/upstream"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// h2up is an HTTP/2 connection to an endpoint, in its pool as long as it may take
// more streams.
type h2up struct {
	wire
	pool     *upstream.Pool
	conn     *http2.Conn
	streams  map[uint32]*h2upStream
	dirty    bool // queued for Flush
	settled  bool // the endpoint's SETTINGS are here
	leaving  bool // out of the pool: closes when no stream is left
	asking   []*h2upStream
	timer    loop.Timer
	lastTick int64
	served   int    // streams that were opened
	wrote    uint64 // bytes that reached the kernel
}

// h2upStream is one try of an exchange.
type h2upStream struct {
	u    *h2up
	id   uint32
	x    *exchange
	down downstream
	sendQueue
	unconsumed int
	at         uint64 // u.wrote when the next byte is the request's first
	heard      bool   // some of the response came
	asked      bool   // the whole request was written
}

func newH2up(w *worker, c *loop.Conn, pool *upstream.Pool) *h2up {
	u := &h2up{pool: pool, streams: map[uint32]*h2upStream{}, conn: http2.NewClient(http2.Config{
		InitialWindow:      streamWindow,
		ConnWindow:         4 * connWindow,
		MaxHeaderListBytes: w.limits.MaxHeadBytes,
		MaxOutBytes:        highWater,
	})}
	u.init(w, c, &w.proxy.upstreamBudget)
	u.timer.Handler = u
	c.SetHandler(u)
	u.push()
	return u
}

// CanOpen is how many more streams it would take.
func (u *h2up) CanOpen() int {
	if u.leaving || u.c.HungUp() {
		return 0
	}
	if !u.settled {
		// How many the endpoint allows is not known: one does not have to wait.
		return 1 - min(1, len(u.streams)+len(u.asking))
	}
	return u.conn.CanOpen()
}

// Retire closes it when no stream is left.
func (u *h2up) Retire() {
	u.leaving = true
	if len(u.streams) == 0 {
		u.conn.GoAway(http2.NoError)
		u.push()
	}
}

// open starts a stream for x.
func (u *h2up) open(x *exchange) (*h2upStream, error) {
	h, end := x.head, x.head.End
	if len(h.Upgrade) > 0 {
		if !u.settled {
			return u.ask(x), nil
		}
		if !u.conn.ExtendedConnect() {
			return nil, errExtendedConnect
		}
		h.Method, end = methodCONNECT, false
	}
	at := u.wrote + uint64(len(u.conn.Out()))
	id, err := u.conn.OpenStream(&h, end)
	if err != nil {
		return nil, err
	}
	s := u.w.takeH2up()
	s.at = at
	s.u, s.id, s.x, s.down = u, id, x, x.down
	s.asked = end
	s.wire = &u.wire
	u.streams[id] = s
	u.w.loop.StopTimer(&u.timer)
	u.served++
	if limit := u.pool.Endpoint.RequestsPerConnection(); limit > 0 && u.served >= limit {
		u.leave()
	}
	u.push()
	return s, nil
}

// ask keeps an extended CONNECT until the endpoint's settings say whether there is such
// a thing (RFC 8441 §3). Its stream has no number yet.
func (u *h2up) ask(x *exchange) *h2upStream {
	s := u.w.takeH2up()
	s.u, s.x, s.down, s.wire = u, x, x.down, &u.wire
	u.asking = append(u.asking, s)
	return s
}

// answerAsking opens the streams that waited for the settings.
func (u *h2up) answerAsking() {
	for len(u.asking) > 0 {
		s := u.asking[0]
		x, down := s.x, s.down
		s.forget()
		x.up = nil
		x.attach(u)
		x.push(down)
	}
}

// forget takes back a stream that was never opened.
func (s *h2upStream) forget() {
	u := s.u
	u.asking = slices.DeleteFunc(u.asking, func(o *h2upStream) bool { return o == s })
	u.w.putH2up(s)
}

func (s *h2upStream) data(p []byte) {
	if s.asked || s.ending {
		return
	}
	if s.queued() == 0 {
		n, err := s.u.conn.WriteData(s.id, p, false)
		if err != nil {
			s.fail(flow.ReasonUpstreamReset, err, false)
			return
		}
		p = p[n:]
	}
	if len(p) > 0 {
		s.enqueue(s.u.w, p)
	}
}

func (s *h2upStream) end(trailers []message.Field) {
	if s.asked || s.ending {
		return
	}
	if s.queued() == 0 && len(trailers) > 0 {
		s.asked = true
		if err := s.u.conn.WriteTrailers(s.id, trailers); err != nil {
			s.fail(flow.ReasonDownstreamProtocol, err, false)
		}
		return
	}
	s.sendQueue.end(trailers)
	s.write()
}

// write continues with what waits.
func (s *h2upStream) write() {
	had := s.queued()
	done, err := s.sendQueue.write(s.u.w, s.u.conn, s.id)
	if err != nil {
		s.fail(flow.ReasonUpstreamReset, err, false)
		return
	}
	s.asked = s.asked || done
	if had > 0 && !s.full() && !done {
		s.down.wake()
	}
}

func (s *h2upStream) full() bool { return s.queued() >= streamFull }

func (s *h2upStream) cancel() {
	u := s.u
	if s.id == 0 {
		s.forget()
		return
	}
	u.conn.Reset(s.id, http2.Cancel)
	s.free()
	u.push()
}

func (s *h2upStream) wake() {
	if s.unconsumed > 0 {
		s.u.conn.Consumed(s.id, s.unconsumed)
		s.unconsumed = 0
		s.u.push()
	}
}

func (s *h2upStream) push() {
	if s.u != nil {
		s.u.push()
	}
}

// free takes the stream out of the connection.
func (s *h2upStream) free() {
	u := s.u
	if u == nil {
		return
	}
	if s.unconsumed > 0 {
		u.conn.Consumed(s.id, s.unconsumed)
	}
	delete(u.streams, s.id)
	u.w.putH2up(s)
	if len(u.streams) == 0 && !u.leaving {
		u.w.loop.SetTimer(&u.timer, u.w.loop.Now()+int64(u.w.limits.PoolIdleTimeout))
	}
	u.push()
}

// fail ends the try. unsent says that the endpoint promised not to have acted on it.
func (s *h2upStream) fail(reason flow.Reason, err error, unsent bool) {
	x, died := s.x, reason == flow.ReasonUpstreamReset && !s.heard
	unsent = unsent || s.u.wrote <= s.at
	s.free()
	if err != nil {
		x.detail = err.Error()
	}
	x.tryFailed(reason, died && unsent, died)
}

// Ready is called by the loop.
func (u *h2up) Ready(*loop.Conn) {
	if now := u.w.loop.Now(); now-u.lastTick > tickEvery {
		u.lastTick = now
		u.conn.Tick()
	}
	for turn := 0; !u.c.Closed() && u.readable(); turn++ {
		if turn == maxTurns {
			u.c.Again()
			break
		}
		buf, err := u.wire.read()
		if len(buf) > 0 {
			rest := u.feed(buf)
			if u.c.Closed() {
				return
			}
			u.keep(rest)
		}
		if err == loop.ErrAgain {
			break
		}
		if err == io.EOF {
			u.fail(flow.ReasonUpstreamReset, io.ErrUnexpectedEOF)
			return
		}
		if err != nil {
			u.fail(flow.ReasonUpstreamReset, err)
			return
		}
	}
	u.push()
}

// feed gives buf to the engine and returns the rest.
func (u *h2up) feed(buf []byte) []byte {
	for !u.c.Closed() {
		n, ev, err := u.conn.Next(buf)
		buf = buf[n:]
		if err != nil {
			if p := u.conn.Out(); len(p) > 0 {
				_, _ = u.Send(p) // the GOAWAY, a courtesy
			}
			u.fail(flow.ReasonUpstreamProtocol, err)
			return nil
		}
		switch ev.Kind {
		case http2.NeedMore:
			return buf
		case http2.GoAway:
			u.leave()
			continue
		case http2.Settings:
			u.known()
			u.answerAsking()
			u.pool.Serve(u)
			u.w.dialPool(u.pool)
			continue
		}
		s := u.streams[ev.Stream]
		if s == nil {
			if ev.Kind == http2.Data {
				u.conn.Consumed(ev.Stream, len(ev.Data))
			}
			continue
		}
		down := s.down
		switch ev.Kind {
		case http2.Headers:
			h := u.conn.Head()
			s.heard = true
			if h.Status == 101 {
				u.conn.Reset(s.id, http2.ProtocolError)
				s.fail(flow.ReasonUpstreamProtocol, nil, false)
				break
			}
			x := s.x
			if len(x.head.Upgrade) > 0 && h.Status >= 200 && h.Status < 300 {
				x.switched(h)
			} else {
				x.response(h)
			}
			if ev.End && s.u == u && s.x == x {
				s.finished(nil)
			}
		case http2.Data:
			if len(ev.Data) > 0 {
				s.unconsumed += len(ev.Data)
				s.x.responseData(ev.Data)
			}
			if !s.down.full() {
				s.wake()
			}
			if ev.End {
				s.finished(nil)
			}
		case http2.Trailers:
			s.finished(u.conn.Trailers())
		case http2.Reset:
			if ev.Text != "" {
				s.fail(flow.ReasonUpstreamProtocol, errors.New(ev.Text), false)
				break
			}
			s.fail(flow.ReasonUpstreamReset, nil, ev.Code == http2.RefusedStream)
		case http2.Writable:
			s.write()
		}
		down.push()
	}
	return nil
}

// finished ends the exchange well.
func (s *h2upStream) finished(trailers []message.Field) {
	u, x := s.u, s.x
	if !s.asked {
		u.conn.Reset(s.id, http2.Cancel)
	}
	x.responseEnd(trailers)
	s.free()
	if u.pool.Waiting() > 0 {
		u.pool.Serve(u)
	}
}

// leave takes the connection out of the pool.
func (u *h2up) leave() {
	u.leaving = true
	u.pool.Remove(u)
	u.w.dialPool(u.pool)
}

// push has the output written at the end of the round.
func (u *h2up) push() {
	if u.dirty || u.c.Closed() {
		return
	}
	u.dirty = true
	u.w.loop.Defer(u)
}

// Flush writes the engine's output.
func (u *h2up) Flush() {
	u.dirty = false
	if u.c.Closed() {
		return
	}
	for round := 0; ; round++ {
		p := u.conn.Out()
		if len(p) > 0 {
			n, err := u.Send(p)
			if err == loop.ErrAgain {
				break
			}
			if err != nil {
				// What the endpoint said before it closed is worth more.
				u.conn.Sent(len(p))
				u.leave()
				u.c.Again()
				return
			}
			u.wrote += uint64(n)
			u.conn.Sent(n)
			if n < len(p) {
				break
			}
		}
		// What was sent may let streams go on that waited for room.
		rest := u.feed(u.unread())
		if u.c.Closed() {
			return
		}
		u.keepSame(rest)
		if len(u.conn.Out()) == 0 || round == maxTurns {
			break
		}
	}
	if u.tls != nil && u.pending() > 0 {
		if err := u.flush(); err != nil {
			u.fail(flow.ReasonUpstreamReset, err)
			return
		}
	}
	if u.leaving && len(u.streams) == 0 && len(u.conn.Out()) == 0 && u.pending() == 0 {
		u.close()
		return
	}
	if u.settle() != nil {
		u.fail(flow.ReasonOverLimit, errOverLimit)
	}
}

// known ends the time in which nobody knows how many streams the connection takes;
// it counts as connecting until then, so that those who wait do not dial.
func (u *h2up) known() {
	if !u.settled {
		u.settled = true
		u.pool.Connecting--
	}
}

func (u *h2up) close() {
	u.known()
	u.leaving = true
	u.pool.Remove(u)
	u.w.loop.DropTimer(&u.timer)
	u.wire.close()
}

// fail ends the connection and the tries on it.
func (u *h2up) fail(reason flow.Reason, err error) {
	u.close()
	for _, s := range u.streams {
		down := s.down
		s.fail(reason, err, false)
		down.push()
	}
	for len(u.asking) > 0 {
		s := u.asking[0]
		x, down := s.x, s.down
		s.forget()
		x.tryFailed(reason, true, true)
		down.push()
	}
	if u.pool.Waiting() > 0 {
		u.w.dialPool(u.pool)
	}
}

// OnTimer closes a connection that nobody used for long.
func (u *h2up) OnTimer(*loop.Timer) {
	if len(u.streams) == 0 {
		u.pool.Remove(u)
		u.Retire()
	}
}
