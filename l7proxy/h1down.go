package l7proxy

import (
	"errors"
	"io"
	"time"

	"github.com/sluice-mesh/sluice/l7proxy/http1"
	"github.com/sluice-mesh/sluice/l7proxy/loop"
	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// h1down is the server's side of HTTP/1 on a downstream connection while a request
// is under way: one exchange at a time. Between requests the connection gives it
// back to the worker, unless bytes of the next one are here already.
type h1down struct {
	d      *downConn
	parser *http1.Parser
	writer http1.Writer
	x      exchange

	reading  bool // the request is not complete
	switched bool // 101 was sent: the exchange became a tunnel
	last     bool // the connection ends after this response
	due      bool // feed stopped within a request: an End may follow that takes no byte
	starved  bool // feed stopped because there were too few bytes
	ahead    bool // the first bytes of the response were sent before there was one
	timed    bool // the timer bounds an incomplete head
	excess   int  // body bytes thrown away after an early answer
	broken   error
}

// http1Ready works off what happened to an HTTP/1 connection.
func (d *downConn) http1Ready() {
	if d.c.Failed() && d.h1 != nil && d.h1.x.active {
		d.http1Gone(flow.ReasonDownstreamReset)
		return
	}
	if !d.http1Send() {
		return
	}
	d.http1Read()
}

// http1Send sends what waits, and has the endpoint read on if it stopped for that. It
// reports false when the connection has ended.
func (d *downConn) http1Send() bool {
	held := d.full()
	if err := d.flush(); err != nil {
		d.http1Gone(flow.ReasonDownstreamReset)
		return false
	}
	if held && d.h1 != nil && !d.full() {
		d.h1.x.drained()
	}
	return true
}

// maxTurns bounds the reads of one connection before others have their turn.
const maxTurns = 32

// http1Read reads requests, as far as the exchange under way wants them.
func (d *downConn) http1Read() {
	for turn := 0; d.mode == modeHTTP1; turn++ {
		if turn == maxTurns {
			d.c.Again()
			d.http1Push()
			return
		}
		h := d.h1
		if h == nil {
			if d.in == nil && !d.readable() {
				return
			}
			h = d.w.takeH1down(d)
		}
		progress := false
		if d.in != nil || h.due {
			h.due = false
			before := len(d.unread())
			rest := h.feed(d.unread())
			if d.mode != modeHTTP1 {
				return
			}
			progress = len(rest) < before
			d.keep(rest)
			h = d.h1
		}
		if h == nil {
			continue
		}
		if d.ended && h.starved {
			d.http1EOF()
			return
		}
		if h.wantsMore() && d.readable() {
			buf, err := d.read()
			if len(buf) > 0 && (err == nil || d.in == nil || err == io.EOF) {
				rest := h.feed(buf)
				if d.mode != modeHTTP1 {
					return
				}
				d.keep(rest)
				if d.h1 == nil {
					h = nil
				}
				progress = progress || len(rest) < len(buf)
			}
			switch {
			case err == loop.ErrAgain:
			case err == io.EOF:
				d.http1EOF()
				return
			case err != nil:
				d.http1Gone(flow.ReasonDownstreamReset)
				return
			default:
				progress = true
			}
		} else if h.x.active && d.c.HungUp() && d.readable() {
			// Nothing is wanted, but the client may have gone away.
			d.http1Probe()
			return
		}
		if !progress || !d.readable() && d.in == nil {
			d.http1Push()
			return
		}
	}
}

// http1Push sends what the pump made, and parks what needs nothing more.
func (d *downConn) http1Push() {
	if d.mode != modeHTTP1 {
		return
	}
	h := d.h1
	if h != nil && h.x.up != nil {
		h.x.up.push()
	}
	d.http1Flush()
}

// http1Flush sends the response's bytes. It ends the connection where they were
// the last, and parks it where nothing is under way.
func (d *downConn) http1Flush() {
	if d.mode != modeHTTP1 {
		return
	}
	if !d.http1Send() {
		return
	}
	h := d.h1
	if h != nil && h.broken != nil {
		d.http1Gone(flow.ReasonInternal)
		return
	}
	if h != nil && !h.x.active {
		switch {
		case h.last:
			// What the client still sends must not turn into a reset that overtakes
			// the response.
			unread := h.reading || d.in != nil || d.c.Readable()
			d.w.putH1down(h)
			if !unread && d.pending() == 0 {
				d.close()
				return
			}
			d.startLinger()
			return
		case h.reading:
			// Answered early; feed throws the rest of the body away.
		case d.in == nil:
			if d.gone || d.ended {
				d.w.putH1down(h)
				d.startLinger()
				return
			}
			if h.parser.Idle() {
				d.w.putH1down(h)
				d.after(int64(d.w.limits.IdleTimeout))
			}
		}
	}
	if d.settle() != nil {
		d.http1Gone(flow.ReasonOverLimit)
	}
}

// http1Probe finds out whether the end of the client's bytes was reached while its
// request is being served: it went away then.
func (d *downConn) http1Probe() {
	if len(d.unread()) >= smallRead {
		return
	}
	buf, err := d.read()
	d.keep(buf)
	switch {
	case err == nil:
		d.c.Again()
	case err == io.EOF:
		d.http1EOF()
	case err != loop.ErrAgain:
		d.http1Gone(flow.ReasonDownstreamReset)
	}
}

// askAfter is how often the kernel asks a client that has ended its direction whether
// it is still there.
const askAfter = 15 * time.Second

// firstBytes begin every response that the proxy writes.
var firstBytes = []byte("HTTP/1.1 ")

// http1EOF is the end of the client's bytes. What is here as a whole is still
// answered: the client may have ended its direction only (RFC 9112 §9.6).
func (d *downConn) http1EOF() {
	h := d.h1
	if h == nil {
		d.closeQuiet()
		return
	}
	if h.x.active && h.x.upgraded && h.reading {
		d.c.KeepAlive(askAfter, askAfter)
		if h.starved || d.in == nil {
			h.reading = false
			h.x.requestEnd(nil)
		}
		d.http1Push()
		return
	}
	if h.x.active && !h.reading || !h.starved && (d.in != nil || h.due) {
		// A client that has closed, and will read nothing, looks the same, but answers
		// data with a reset: the response's first bytes, which are known, find it out.
		// Where they cannot be sent, or are lost, the kernel asks.
		d.c.KeepAlive(askAfter, askAfter)
		if h.x.active && !h.x.responded && !h.ahead {
			h.ahead = true
			d.set(append(d.room(len(firstBytes)), firstBytes...))
		}
		d.http1Push()
		return
	}
	if h.x.active {
		d.http1Gone(flow.ReasonDownstreamReset)
		return
	}
	if d.pending() > 0 {
		d.w.putH1down(h)
		d.startLinger()
		return
	}
	d.w.putH1down(h)
	d.closeQuiet()
}

// http1Gone ends the connection and the exchange on it.
func (d *downConn) http1Gone(reason flow.Reason) {
	if h := d.h1; h != nil {
		h.x.requestReset(reason)
		d.w.putH1down(h)
	}
	d.close()
}

// http1Timeout is the connection's own timer: nothing is under way, or a head is
// incomplete.
func (d *downConn) http1Timeout() {
	h := d.h1
	if h != nil && h.x.active {
		return
	}
	if h != nil {
		if d.in != nil {
			h.refuse(408, flow.ReasonIdleTimeout, "head incomplete")
			d.http1Flush()
			return
		}
		d.w.putH1down(h)
	}
	d.close()
}

// wantsMore reports whether the connection should be read.
func (h *h1down) wantsMore() bool {
	if h.last && !h.reading || h.excess > lingerBytes {
		return false
	}
	return !h.x.active || h.reading && h.x.ready()
}

// feed gives buf to the parser as far as the exchange takes it and returns the
// rest.
func (h *h1down) feed(buf []byte) []byte {
	d := h.d
	h.starved = false
	for d.h1 == h && h.broken == nil {
		if h.x.active && !(h.reading && (h.x.ready() || h.x.head.End)) {
			// Waits for the endpoint, or for the response before a pipelined request.
			d.limit = smallRead
			h.due = h.reading
			return buf
		}
		if h.last && !h.reading {
			return buf
		}
		n, ev, err := h.parser.Next(buf)
		buf = buf[n:]
		if err != nil {
			h.parseError(err)
			return nil
		}
		switch ev.Kind {
		case http1.NeedMore:
			if !h.x.active && !h.timed && !h.parser.Idle() {
				// Once for each head, however slowly its bytes come.
				h.timed = true
				d.after(int64(d.w.limits.HeadTimeout))
			}
			h.starved = true
			return buf
		case http1.Head:
			h.head()
		case http1.Data:
			if !h.x.active {
				if h.excess += len(ev.Data); h.excess > lingerBytes {
					h.last = true // and reading: the client is let down gently
					return nil
				}
				continue
			}
			h.x.requestData(ev.Data)
		case http1.Trailers:
			h.x.requestEnd(h.parser.Trailers())
		case http1.End:
			h.reading = false
			h.x.requestEnd(nil)
		}
	}
	return buf
}

func (h *h1down) head() {
	d := h.d
	head := h.parser.Head()
	h.writer.ReplyTo(head)
	h.reading = true
	h.last = head.Close || d.gone
	h.switched, h.timed, h.excess = false, false, 0
	d.w.loop.StopTimer(&d.timer)
	h.x.begin(d, h, head)
}

// parseError answers a request that breaks the protocol, and ends the connection.
func (h *h1down) parseError(err error) {
	status := 400
	reason := flow.ReasonDownstreamProtocol
	var e *http1.Error
	if errors.As(err, &e) {
		status = e.Status
	}
	if status == 431 || status == 414 {
		reason = flow.ReasonHeadTooLarge
	}
	h.reading = false
	if h.x.active {
		// In the middle of a body: the response can still tell.
		if h.x.responded {
			h.d.http1Gone(reason)
			return
		}
		h.last = true
		h.x.detail = err.Error()
		h.x.refuse(status, reason)
		return
	}
	h.refuse(status, reason, err.Error())
}

// refuse answers what is no request.
func (h *h1down) refuse(status int, reason flow.Reason, detail string) {
	m := &h.d.w.noRequest
	m.Reset()
	m.Proto = message.HTTP11
	m.End = true
	m.Close = true
	h.writer.ReplyTo(m)
	h.last = true
	h.x.begun(h.d, h, m)
	h.x.detail = detail
	h.x.refuse(status, reason)
}

// respond writes a head.
func (h *h1down) respond(head *message.Head) {
	d := h.d
	if head.Status == 101 {
		h.switched = true
	} else if head.Status >= 200 {
		// A client that waits for 100 (Continue) sends no body any more, or does:
		// nobody knows where the next request would begin.
		h.last = h.last || d.gone || d.w.proxy.draining.Load() || h.reading && h.x.head.Expect100 || d.ended && d.in == nil
		head.Close = h.last
	}
	size := headSize(head)
	before := len(d.room(size))
	out := h.writer.AppendResponse(d.out, head)
	if h.ahead && len(out) > before {
		h.ahead = false
		out = append(out[:before], out[before+len(firstBytes):]...)
	}
	d.set(out)
	if err := h.writer.Err(); err != nil {
		h.broken = err
	}
	if head.Status >= 200 && h.writer.Close() {
		h.last = true
	}
}

// headSize is a bound of what a head takes on the wire.
func headSize(h *message.Head) int {
	n := 160 + len(h.Method) + len(h.Path) + len(h.Authority) + len(h.Upgrade)
	for i := range h.Fields {
		n += len(h.Fields[i].Name) + len(h.Fields[i].Value) + 4
	}
	return n
}

func (h *h1down) data(p []byte) {
	if h.broken != nil {
		return
	}
	prefix, suffix := h.writer.DataFraming(len(p))
	if err := h.writer.Err(); err != nil {
		h.broken = err
		return
	}
	if err := h.d.wire.data(prefix, p, suffix); err != nil {
		h.broken = err
	}
}

func (h *h1down) end(trailers []message.Field) {
	if h.broken != nil {
		return
	}
	h.d.set(h.writer.AppendEnd(h.d.room(16+fieldsSize(trailers)), trailers))
	if err := h.writer.Err(); err != nil {
		h.broken = err
		return
	}
	if h.due || h.d.in != nil || h.d.c.Readable() {
		h.d.c.Again()
	}
}

func fieldsSize(fields []message.Field) int {
	n := 0
	for i := range fields {
		n += len(fields[i].Name) + len(fields[i].Value) + 4
	}
	return n
}

// abort ends the connection: an HTTP/1 response that cannot be completed has no
// other sign.
func (h *h1down) abort() {
	if h.broken == nil {
		h.broken = errAborted
	}
}

var errAborted = errors.New("response aborted")

func (h *h1down) full() bool { return h.d.full() }

func (h *h1down) wake() {
	if h.due || h.d.in != nil || h.d.readable() {
		h.d.c.Again()
	}
}

func (h *h1down) push() {
	d := h.d
	if d.h1 != h || d.mode != modeHTTP1 {
		return
	}
	d.http1Flush()
}
