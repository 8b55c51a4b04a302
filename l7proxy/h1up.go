package l7proxy

import (
	"errors"
	"io"

	"github.com/sluice-mesh/sluice/l7proxy/http1"
	"github.com/sluice-mesh/sluice/l7proxy/loop"
	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/l7proxy/upstream"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// h1up is an HTTP/1 connection to an endpoint: in its pool, or with one exchange.
type h1up struct {
	wire
	pool   *upstream.Pool
	parser *http1.Parser
	writer http1.Writer
	x      *exchange
	down   downstream // x's, to push when x is over

	used    bool // it has carried an exchange before
	sent    bool // some of the request reached the kernel
	heard   bool // some of the response came
	asked   bool // the whole request was written
	closing bool // the endpoint ends the connection after this response
	retired bool
	raw     bool // the protocol was switched: bytes both ways, of an exchange
	shut    bool // raw: the client has ended its direction
	served  int  // requests that began here
	due     bool // feed stopped for the client's sake: an End may follow that takes no byte
	timer   loop.Timer
}

func newH1up(w *worker, c *loop.Conn, pool *upstream.Pool) *h1up {
	u := &h1up{pool: pool, parser: http1.NewResponseParser(w.headLimits)}
	u.init(w, c, &w.proxy.upstreamBudget)
	u.timer.Handler = u
	c.SetHandler(u)
	return u
}

// CanOpen is one, unless the endpoint has said something that nobody asked for, such
// as its end.
func (u *h1up) CanOpen() int {
	if u.c.HungUp() || !u.quiet() {
		return 0
	}
	return 1
}

// Retire closes an unused connection.
func (u *h1up) Retire() {
	u.retired = true
	if u.x == nil {
		u.close()
	}
}

func (u *h1up) close() {
	u.w.loop.DropTimer(&u.timer)
	u.wire.close()
}

// begin writes the head of x's request.
func (u *h1up) begin(x *exchange) error {
	u.w.loop.StopTimer(&u.timer)
	u.x, u.down = x, x.down
	u.served++
	u.sent, u.heard, u.closing, u.due = false, false, false, false
	u.asked = x.head.End || x.holding
	u.parser.ExpectResponseTo(x.head.Method)
	h := x.head
	if x.socket != nil {
		h.Add(fieldSocketKey, x.socket.key[:])
	}
	h.End = u.asked
	out := u.writer.AppendRequest(u.room(headSize(&h)), &h)
	if h.End {
		out = u.writer.AppendEnd(out, nil)
	}
	u.set(out)
	if err := u.writer.Err(); err != nil {
		u.x = nil
		u.close()
		return err
	}
	return nil
}

func (u *h1up) data(p []byte) {
	prefix, suffix := u.writer.DataFraming(len(p))
	if err := u.writer.Err(); err != nil {
		u.fail(flow.ReasonDownstreamProtocol, err)
		return
	}
	before := u.pending()
	if err := u.wire.data(prefix, p, suffix); err != nil {
		u.unwritable(err)
		return
	}
	if !u.sent && u.pending() < before+len(prefix)+len(p)+len(suffix) {
		u.wasSent()
	}
}

func (u *h1up) end(trailers []message.Field) {
	if u.asked {
		return
	}
	u.asked = true
	if u.raw {
		if u.shut = true; u.pending() == 0 {
			u.CloseWrite()
		}
		return
	}
	u.set(u.writer.AppendEnd(u.room(16+fieldsSize(trailers)), trailers))
	if err := u.writer.Err(); err != nil {
		u.fail(flow.ReasonDownstreamProtocol, err)
	}
}

func (u *h1up) cancel() {
	u.x = nil
	if u.raw && !u.c.Closed() {
		loop.Abort(u.c.FD())
	}
	u.close()
}

func (u *h1up) full() bool { return u.wire.full() }

func (u *h1up) wake() {
	if u.due || u.in != nil || u.readable() {
		u.c.Again()
	}
}

func (u *h1up) push() {
	if u.x == nil {
		return
	}
	before, held := u.pending(), u.full()
	if before == 0 {
		return
	}
	if err := u.flush(); err != nil {
		u.unwritable(err)
		return
	}
	if u.pending() < before {
		u.wasSent()
	}
	if held && !u.full() {
		u.down.wake()
	}
	if u.shut && u.pending() == 0 {
		u.CloseWrite()
	}
	if u.settle() != nil {
		u.fail(flow.ReasonOverLimit, errOverLimit)
	}
}

// unwritable says that the endpoint takes nothing more. Its response may lie in the
// receive buffer already: one that answers early and closes makes writing fail.
func (u *h1up) unwritable(err error) {
	if !u.sent {
		u.fail(flow.ReasonUpstreamReset, err)
		return
	}
	u.drop()
	u.retired = true
	u.c.Again()
}

// wasSent notes that some of the request reached the kernel.
func (u *h1up) wasSent() {
	u.sent = true
	if u.x != nil {
		u.x.committed()
	}
}

// fail ends the connection and the try on it.
func (u *h1up) fail(reason flow.Reason, err error) {
	x, heard, unsent := u.x, u.heard, !u.sent
	u.x = nil
	u.close()
	if x == nil {
		return
	}
	if err != nil {
		x.detail = err.Error()
	}
	died := reason == flow.ReasonUpstreamReset && !heard
	x.tryFailed(reason, died && unsent, died)
}

// Ready is called by the loop.
func (u *h1up) Ready(*loop.Conn) {
	if u.x == nil {
		// In the pool, where an endpoint has nothing to say but goodbye.
		if !u.quiet() {
			u.pool.Remove(u)
			u.close()
		}
		return
	}
	down := u.down
	u.push()
	u.read()
	down.push()
}

// read takes the response as far as the client keeps up.
func (u *h1up) read() {
	for turn := 0; u.x != nil; turn++ {
		if turn == maxTurns {
			u.c.Again()
			return
		}
		if u.down.full() {
			u.limit = smallRead
			u.settled()
			return
		}
		if u.in != nil || u.due {
			u.due = false
			rest := u.feed(u.unread())
			if u.c.Closed() {
				return
			}
			u.keep(rest)
			if u.x == nil || u.down.full() {
				u.settled()
				return
			}
		}
		if !u.readable() {
			u.settled()
			return
		}
		buf, err := u.wire.read()
		switch {
		case err == nil:
			rest := u.feed(buf)
			if u.c.Closed() {
				return
			}
			u.keep(rest)
		case err == loop.ErrAgain:
			u.keep(buf)
			u.settled()
			return
		case err == io.EOF:
			u.eof()
			return
		default:
			u.fail(flow.ReasonUpstreamReset, err)
			return
		}
	}
}

func (u *h1up) settled() {
	if u.settle() != nil {
		u.fail(flow.ReasonOverLimit, errOverLimit)
	}
}

// feed gives buf to the parser and returns the rest, which is empty once the
// response is complete.
func (u *h1up) feed(buf []byte) []byte {
	for u.x != nil {
		n, ev, err := u.parser.Next(buf)
		buf = buf[n:]
		if err != nil {
			u.fail(flow.ReasonUpstreamProtocol, err)
			return nil
		}
		switch ev.Kind {
		case http1.NeedMore:
			return buf
		case http1.Head:
			u.head(buf)
		case http1.Data:
			u.x.responseData(ev.Data)
			if u.x != nil && u.down.full() {
				u.due = true
				return buf
			}
		case http1.Trailers:
			u.finished(u.parser.Trailers(), len(buf) == 0)
		case http1.End:
			if u.parser.Idle() || u.closing {
				u.finished(nil, len(buf) == 0)
			}
		}
	}
	return nil
}

func (u *h1up) head(rest []byte) {
	h := u.parser.Head()
	u.heard = true
	if h.Status == 101 {
		if len(u.x.head.Upgrade) == 0 {
			u.fail(flow.ReasonUpstreamProtocol, http1.ErrUpgrade)
			return
		}
		if err := u.x.accepted(h); err != nil {
			u.fail(flow.ReasonUpstreamProtocol, err)
			return
		}
		if !u.x.holding {
			u.x.upgrade(u, h, rest)
			return
		}
		u.raw, u.asked = true, false
		u.writer.Upgrade()
		u.x.switched(h)
		return
	}
	if h.Status >= 200 && h.Status < 300 && u.x.holding {
		// RFC 8441 §5: to the client's stream any such answer would be the switch.
		u.fail(flow.ReasonUpstreamProtocol, errNoSwitch)
		return
	}
	closing := h.Close
	if h.Status >= 200 {
		u.closing = closing
	}
	if h.Status == 408 && closing && u.used && u.asked && u.x.mayRepeat(false) {
		// Said of the silence before the request, which it crossed on its way (RFC 9110
		// §15.5.9).
		u.heard = false
		u.fail(flow.ReasonUpstreamReset, errIdleTimeout)
		return
	}
	u.x.response(h)
	// The client's side set its own wish, in a head that is the parser's.
	h.Close = closing
}

var errIdleTimeout = errors.New("the endpoint had given up waiting for a request")

// eof is the end of the endpoint's bytes.
func (u *h1up) eof() {
	ev, err := u.parser.EOF()
	if err == io.EOF {
		u.fail(flow.ReasonUpstreamReset, io.EOF)
		return
	}
	if err != nil {
		u.fail(flow.ReasonUpstreamReset, io.ErrUnexpectedEOF)
		return
	}
	if ev.Kind == http1.End {
		u.closing = true
		u.finished(nil, true)
	}
}

// finished ends the exchange well, and gives the connection back if it is clean.
func (u *h1up) finished(trailers []message.Field, clean bool) {
	x := u.x
	u.x = nil
	u.used = true
	limit := u.pool.Endpoint.RequestsPerConnection()
	reusable := clean && (limit == 0 || u.served < limit) && !u.closing && u.asked && u.pending() == 0 && !u.retired && !u.c.HungUp()
	x.responseEnd(trailers)
	if trailers != nil {
		// The End that follows the trailers takes no byte.
		_, _, _ = u.parser.Next(nil)
	}
	if reusable && u.tls == nil && u.c.Readable() {
		// The last read was full to its end by chance: that there is no more must be known.
		_, err := u.c.Read(u.w.loop.Scratch[:1])
		reusable = err == loop.ErrAgain
	}
	if !reusable || !u.parser.Idle() {
		u.close()
		return
	}
	if u.in != nil {
		u.keep(nil)
	}
	u.settled()
	u.w.loop.SetTimer(&u.timer, u.w.loop.Now()+int64(u.w.limits.PoolIdleTimeout))
	if !u.pool.Put(u) {
		u.close()
	}
}

// OnTimer closes a connection that nobody used for long.
func (u *h1up) OnTimer(*loop.Timer) {
	if u.x == nil {
		u.pool.Remove(u)
		u.close()
	}
}
