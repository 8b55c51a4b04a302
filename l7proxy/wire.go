package l7proxy

import (
	"errors"
	"io"

	"github.com/sluice-mesh/sluice/l7proxy/loop"
	"github.com/sluice-mesh/sluice/l7proxy/tlsengine"
)

const (
	// smallRead is the size of a connection's first reads; a connection whose
	// reads come back full and whose receiver keeps up reads up to largeRead.
	smallRead = 16 << 10
	largeRead = loop.ScratchSize
	// copyBelow is the size of body pieces that are copied behind their head, so
	// that both go out in one write; larger ones are written from where they lie.
	copyBelow = 4 << 10
	// highWater is how much may wait for a slow receiver before its source is not
	// read any more.
	highWater = 64 << 10
)

// errOverLimit says that the budget of the workload or Gateway is used up.
var errOverLimit = errors.New("over limit: too many buffered bytes")

// wire is a connection as a protocol engine sees it: bytes that were read and not
// consumed, bytes that were written and not sent. Its memory is the loop's scratch
// while a handler runs; what is left when it returns lies in pooled buffers, and
// counts against the budget.
type wire struct {
	w      *worker
	c      *loop.Conn
	tls    *tlsengine.Conn // nil: plain text
	budget *budget

	in    []byte // unconsumed bytes, nil if none
	inAt  int    // where they begin in in
	out   []byte // unsent bytes, nil if none
	outAt int
	extra int // memory of exchanges and streams on this connection
	held  int // booked in budget
	limit int // size of the next read
	ended bool
	dry   bool // TLS: no plain text without another read of the socket
}

func (x *wire) init(w *worker, c *loop.Conn, b *budget) {
	*x = wire{w: w, c: c, budget: b, limit: smallRead}
}

// read returns all unconsumed bytes, after one attempt to read more; an error
// (loop.ErrAgain, io.EOF) comes with those that there are. They are valid until
// the handler returns; keep must be called before that.
func (x *wire) read() ([]byte, error) {
	if x.ended {
		return x.in[x.inAt:], io.EOF
	}
	if x.in == nil {
		n, err := x.readInto(x.w.loop.Scratch[:x.limit])
		x.adapt(n)
		return x.w.loop.Scratch[:n], err
	}
	if x.inAt > 0 {
		x.in = append(x.in[:0], x.in[x.inAt:]...)
		x.inAt = 0
	}
	if cap(x.in)-len(x.in) < smallRead/2 {
		x.in = x.w.loop.Buffers.Grow(x.in, smallRead/2)
	}
	n, err := x.readInto(x.in[len(x.in):cap(x.in)])
	x.in = x.in[:len(x.in)+n]
	return x.in, err
}

// unread returns the unconsumed bytes without a read.
func (x *wire) unread() []byte { return x.in[x.inAt:] }

// keep says that rest, the end of what read or waiting returned, was not consumed.
func (x *wire) keep(rest []byte) {
	if x.in != nil {
		x.inAt = len(x.in) - len(rest)
		if len(rest) == 0 {
			x.w.loop.Buffers.Put(x.in)
			x.in, x.inAt = nil, 0
		}
		return
	}
	if len(rest) > 0 {
		x.in = append(x.w.loop.Buffers.Get(len(rest)), rest...)
		x.inAt = 0
	}
}

func (x *wire) adapt(n int) {
	switch {
	case n < x.limit/4:
		x.limit = smallRead
	case n == x.limit && x.limit < largeRead:
		x.limit *= 4
	}
}

// readInto reads plain text.
func (x *wire) readInto(p []byte) (int, error) {
	if x.tls == nil {
		n, err := x.c.Read(p)
		if err == io.EOF {
			x.ended = true
		}
		return n, err
	}
	for {
		n, err := x.tls.Read(p)
		if n > 0 {
			x.dry = false
			return n, nil
		}
		x.dry = true
		if err == io.EOF {
			x.ended = true
			return 0, err
		}
		if err != tlsengine.ErrDry {
			return 0, err
		}
		cipher := x.w.cipher
		n, err = x.c.Read(cipher)
		if err == io.EOF {
			x.tls.FeedEOF()
			x.ended = true
			return 0, err
		}
		if err != nil {
			return 0, err
		}
		x.tls.Feed(cipher[:n])
	}
}

// readable reports whether read may find something.
func (x *wire) readable() bool {
	return !x.ended && (x.c.Readable() || x.tls != nil && !x.dry)
}

// room makes sure that n bytes can be appended to out, and returns it.
func (x *wire) room(n int) []byte {
	x.out = x.w.loop.Buffers.Grow(x.out, n)
	return x.out
}

// set takes back what room returned, appended to.
func (x *wire) set(out []byte) {
	if cap(out) != cap(x.out) {
		x.w.loop.Buffers.Swapped(x.out, out)
	}
	x.out = out
}

// data writes body bytes with their framing. Short ones are queued, long ones
// are sent at once behind what is queued; what the kernel does not take waits.
func (x *wire) data(prefix, p, suffix []byte) error {
	size := len(prefix) + len(p) + len(suffix)
	if len(p) < copyBelow || x.tls != nil && len(x.tls.Out()) > 0 || len(x.out)-x.outAt >= highWater {
		out := x.room(size)
		out = append(out, prefix...)
		out = append(out, p...)
		x.set(append(out, suffix...))
		return nil
	}
	if x.tls != nil {
		out := x.room(len(prefix))
		x.set(append(out, prefix...))
		if err := x.encrypt(); err != nil {
			return err
		}
		if _, err := x.tls.Write(p); err != nil {
			return err
		}
		if len(suffix) > 0 {
			x.set(append(x.room(len(suffix)), suffix...))
		}
		return x.flush()
	}
	queued := len(x.out) - x.outAt
	n, err := x.c.Write(x.out[x.outAt:], prefix, p, suffix)
	if err != nil && err != loop.ErrAgain {
		return err
	}
	if n < queued {
		x.outAt += n
		n = 0
	} else {
		n -= queued
		x.drop()
	}
	if n < size {
		out := x.room(size - n)
		for _, piece := range [...][]byte{prefix, p, suffix} {
			skip := min(n, len(piece))
			out = append(out, piece[skip:]...)
			n -= skip
		}
		x.set(out)
	}
	return nil
}

func (x *wire) drop() {
	if x.out != nil {
		x.w.loop.Buffers.Put(x.out)
		x.out, x.outAt = nil, 0
	}
}

func (x *wire) encrypt() error {
	if x.outAt < len(x.out) {
		if _, err := x.tls.Write(x.out[x.outAt:]); err != nil {
			return err
		}
	}
	x.drop()
	return nil
}

// flush sends what waits, as far as the kernel takes it.
func (x *wire) flush() error {
	if x.tls != nil {
		if len(x.tls.Out()) < highWater {
			if err := x.encrypt(); err != nil {
				return err
			}
		}
		for {
			p := x.tls.Out()
			if len(p) == 0 {
				if x.outAt < len(x.out) {
					if err := x.encrypt(); err != nil {
						return err
					}
					continue
				}
				return nil
			}
			n, err := x.c.Send(p)
			if err == loop.ErrAgain {
				return nil
			}
			if err != nil {
				return err
			}
			x.tls.Sent(n)
		}
	}
	if x.outAt == len(x.out) {
		x.drop()
		return nil
	}
	n, err := x.c.Send(x.out[x.outAt:])
	if err == loop.ErrAgain {
		return nil
	}
	if err != nil {
		return err
	}
	x.outAt += n
	if x.outAt == len(x.out) {
		x.drop()
	}
	return nil
}

// pending is how many bytes wait to be sent.
func (x *wire) pending() int {
	n := len(x.out) - x.outAt
	if x.tls != nil {
		n += len(x.tls.Out())
	}
	return n
}

// full reports whether nothing more should be written now.
func (x *wire) full() bool { return x.pending() >= highWater }

// buffered is how much memory is held between events.
func (x *wire) buffered() int { return cap(x.in) + cap(x.out) + x.extra }

// settle books what the handler leaves behind. It fails when that is too much.
func (x *wire) settle() error {
	now := x.buffered()
	if now == x.held {
		return nil
	}
	if now < x.held {
		x.budget.Free(x.held - now)
		x.held = now
		return nil
	}
	if !x.budget.Hold(now - x.held) {
		return errOverLimit
	}
	x.held = now
	return nil
}

// Read, Send, Writable and CloseWrite make a wire a relay.Stream.

// Read returns plain text.
func (x *wire) Read(p []byte) (int, error) { return x.readInto(p) }

// Send encrypts and sends p, whole, unless earlier bytes still wait.
func (x *wire) Send(p []byte) (int, error) {
	if x.pending() > 0 {
		if err := x.flush(); err != nil {
			return 0, err
		}
		if x.pending() > 0 {
			return 0, loop.ErrAgain
		}
	}
	if x.tls == nil {
		return x.c.Send(p)
	}
	n, err := x.tls.Write(p)
	if err != nil {
		return n, err
	}
	return n, x.flush()
}

// Writable reports whether Send may take something.
func (x *wire) Writable() bool { return x.pending() == 0 && x.c.Writable() }

// CloseWrite ends this direction: with close_notify where there is TLS.
func (x *wire) CloseWrite() {
	if x.tls != nil {
		x.tls.CloseNotify()
		_ = x.flush()
		return
	}
	x.c.CloseWrite()
}

// close gives back all memory and closes the connection.
func (x *wire) close() {
	if x.tls != nil {
		x.tls.CloseNotify()
		if p := x.tls.Out(); len(p) > 0 && !x.c.Closed() {
			_, _ = x.c.Send(p) // a courtesy
		}
		x.tls.Close()
		x.tls = nil
	}
	x.release()
	x.c.Close()
}

// release gives back all memory.
func (x *wire) release() {
	x.drop()
	if x.in != nil {
		x.w.loop.Buffers.Put(x.in)
		x.in, x.inAt = nil, 0
	}
	if x.held > 0 {
		x.budget.Free(x.held)
		x.held = 0
	}
}

// keepSame is keep for what unread returned, consumed or not.
func (x *wire) keepSame(rest []byte) {
	if x.in != nil {
		x.keep(rest)
	}
}
