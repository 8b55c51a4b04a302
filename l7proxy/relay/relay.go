// Package relay moves bytes between two connections of one loop, both ways, until
// both directions have ended.
//
// A Relay owns the bytes that were read and could not be sent yet, and nothing
// else: its owner calls Pump when either connection is ready and closes the
// connections when Pump says that it is over. It runs on the loop's goroutine.
//
// Reads go into the loop's shared scratch memory and are sent from there, so that
// a connection whose peer keeps up holds no memory; what the peer does not take
// is kept in a pooled buffer, and nothing more is read until it is gone. The size
// of reads grows from 16 to 256 KiB while they come back full, and bulk between
// two plain sockets moves to splice. Small messages are never spliced: the same
// number of system calls, and each dearer.
package relay

import (
	"errors"
	"fmt"
	"io"

	"github.com/sluice-mesh/sluice/l7proxy/loop"
)

// Stream is one connection, plain or decrypted. *loop.Conn is one.
type Stream interface {
	// Read returns loop.ErrAgain when there is nothing, io.EOF at the end.
	Read(p []byte) (int, error)
	// Send takes what it can, loop.ErrAgain if nothing.
	Send(p []byte) (int, error)
	// Writable reports whether Send may take something.
	Writable() bool
	// CloseWrite says that nothing more is sent.
	CloseWrite()
}

// Account is asked before bytes are kept for a slow peer.
type Account interface {
	// Hold books n bytes, or refuses.
	Hold(n int) bool
	// Free returns what Hold booked.
	Free(n int)
}

// ErrOverLimit says that the Account refused.
var ErrOverLimit = errors.New("too many bytes are waiting to be sent")

// Error says which side failed.
type Error struct {
	Side Side
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %v", e.Side, e.Err) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Side is one of the two connections.
type Side uint8

// The sides.
const (
	Downstream Side = iota
	Upstream
)

// String returns "downstream" or "upstream".
func (s Side) String() string {
	if s == Downstream {
		return "downstream"
	}
	return "upstream"
}

const (
	// smallRead is the size of the first reads.
	smallRead = 16 << 10
	// turnBytes bounds what one direction moves before others have their turn.
	turnBytes = 4 << 20
	// spliceAfter is how many full reads of the largest size in a row are bulk.
	spliceAfter = 2
	// spliceBytes is asked of one splice: more than a pipe's slots can refer to.
	spliceBytes = 1 << 20
	// copyAfter is how many small splices in a row are no bulk any more.
	copyAfter = 4
)

// Relay is one pair. Init before use.
type Relay struct {
	loop    *loop.Loop
	pipes   *Pipes
	account Account
	down    half // from the client
	up      half // to the client
	last    int64
}

// half is one direction.
type half struct {
	src, dst Stream
	srcSide  Side
	buf      []byte // a pooled buffer, nil if nothing waits
	off      int
	limit    int
	streak   int // full reads, or small splices, in a row
	moved    uint64
	eof      bool // src ended
	shut     bool // dst was told
	srcConn  *loop.Conn
	dstConn  *loop.Conn // both nil unless plain
	pipe     *Pipe
	inPipe   int
}

// Init prepares r. account and pipes may be nil (no bound; no splice).
func (r *Relay) Init(l *loop.Loop, down, up Stream, pipes *Pipes, account Account) {
	*r = Relay{loop: l, pipes: pipes, account: account, last: l.Now()}
	r.down = half{src: down, dst: up, srcSide: Downstream, limit: smallRead}
	r.up = half{src: up, dst: down, srcSide: Upstream, limit: smallRead}
	d, dPlain := down.(*loop.Conn)
	u, uPlain := up.(*loop.Conn)
	if dPlain && uPlain && pipes != nil {
		r.down.srcConn, r.down.dstConn = d, u
		r.up.srcConn, r.up.dstConn = u, d
	}
}

// Inject sends p, which was read from one side before the relay began, to the
// other. It copies p. Call it before the first Pump.
func (r *Relay) Inject(from Side, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	h := &r.down
	if from == Upstream {
		h = &r.up
	}
	h.moved += uint64(len(p))
	return r.keep(h, p)
}

// Ended says that a side ended before the relay began.
func (r *Relay) Ended(side Side) {
	if side == Downstream {
		r.down.eof = true
	} else {
		r.up.eof = true
	}
}

// Moved returns the bytes read from the client and from the endpoint.
func (r *Relay) Moved() (fromDown, fromUp uint64) { return r.down.moved, r.up.moved }

// LastMove returns the loop's time when a byte last moved.
func (r *Relay) LastMove() int64 { return r.last }

// Buffered is how many bytes wait.
func (r *Relay) Buffered() int {
	return len(r.down.buf) - r.down.off + r.down.inPipe + len(r.up.buf) - r.up.off + r.up.inPipe
}

// Spliced reports whether a direction is spliced at the moment.
func (r *Relay) Spliced() bool { return r.down.pipe != nil || r.up.pipe != nil }

// Pump moves what can be moved. more says that it stopped for the sake of others
// and wants to be called again; done that both directions have ended. After an
// error, an *Error, or done, call Release.
func (r *Relay) Pump() (more, done bool, err error) {
	moreDown, err := r.pump(&r.down)
	if err != nil {
		return false, false, err
	}
	moreUp, err := r.pump(&r.up)
	if err != nil {
		return false, false, err
	}
	return moreDown || moreUp, r.down.shut && r.up.shut, nil
}

// Release gives back all memory and pipes. It may be called twice.
func (r *Relay) Release() {
	for _, h := range [...]*half{&r.down, &r.up} {
		if h.buf != nil {
			r.free(h)
		}
		if h.pipe != nil {
			if h.inPipe > 0 {
				h.pipe.Close()
			} else {
				r.pipes.put(h.pipe)
			}
			h.pipe, h.inPipe = nil, 0
		}
	}
}

func (r *Relay) pump(h *half) (more bool, err error) {
	if h.shut {
		return false, nil
	}
	dstSide := 1 - h.srcSide
	for turn := 0; turn < turnBytes; {
		if h.buf != nil {
			n, err := h.dst.Send(h.buf[h.off:])
			if err != nil {
				return false, blocked(err, dstSide)
			}
			h.off += n
			r.last = r.loop.Now()
			if h.off < len(h.buf) {
				return false, nil
			}
			r.free(h)
		}
		if h.pipe != nil {
			n, err := r.splice(h, dstSide)
			if err != nil {
				return false, err
			}
			if n == 0 && !h.eof && h.pipe != nil {
				return false, nil
			}
			turn += n
			if h.pipe != nil && !h.eof {
				continue
			}
		}
		if h.eof {
			h.dst.CloseWrite()
			h.shut = true
			return false, nil
		}
		if !h.dst.Writable() {
			return false, nil
		}
		p := r.loop.Scratch[:h.limit]
		n, err := h.src.Read(p)
		if err == io.EOF {
			h.eof = true
			continue
		}
		if err != nil {
			return false, blocked(err, h.srcSide)
		}
		h.moved += uint64(n)
		turn += n
		r.last = r.loop.Now()
		m, err := h.dst.Send(p[:n])
		if err != nil && err != loop.ErrAgain {
			return false, &Error{dstSide, err}
		}
		if m < n {
			h.limit, h.streak = max(smallRead, h.limit/4), 0
			if err := r.keep(h, p[m:n]); err != nil {
				return false, err
			}
			return false, nil
		}
		r.adapt(h, n)
	}
	return true, nil
}

func blocked(err error, side Side) error {
	if err == loop.ErrAgain {
		return nil
	}
	return &Error{side, err}
}

// adapt chooses the size of the next read from the last, or splice.
func (r *Relay) adapt(h *half, n int) {
	switch {
	case n < h.limit:
		h.streak = 0
		if n < h.limit/4 {
			h.limit = max(smallRead, h.limit/4)
		}
	case h.limit < loop.ScratchSize:
		h.limit *= 4
	default:
		h.streak++
		if h.streak >= spliceAfter && h.srcConn != nil {
			h.pipe = r.pipes.get()
			h.streak = 0
		}
	}
}

// splice moves one round through the pipe and returns how much it read.
func (r *Relay) splice(h *half, dstSide Side) (int, error) {
	read := 0
	if h.inPipe == 0 {
		n, err := h.srcConn.SpliceFrom(h.pipe.w, spliceBytes)
		switch {
		case err == io.EOF:
			h.eof = true
			return 0, nil
		case err == loop.ErrAgain:
			return 0, nil
		case err != nil:
			return 0, &Error{h.srcSide, err}
		}
		read = n
		h.inPipe = n
		h.moved += uint64(n)
		r.last = r.loop.Now()
		if n < smallRead {
			h.streak++
		} else {
			h.streak = 0
		}
	}
	n, err := h.dstConn.SpliceTo(h.pipe.r, h.inPipe)
	if err == loop.ErrAgain {
		return 0, nil
	}
	if err != nil {
		return 0, &Error{dstSide, err}
	}
	r.last = r.loop.Now()
	h.inPipe -= n
	if h.inPipe > 0 {
		// A partial splice may also mean that the kernel wants to be asked again.
		return max(n, read), nil
	}
	if h.streak >= copyAfter {
		r.pipes.put(h.pipe)
		h.pipe, h.streak, h.limit = nil, 0, smallRead
	}
	return max(n, read), nil
}

func (r *Relay) keep(h *half, p []byte) error {
	had := cap(h.buf)
	buf := r.loop.Buffers.Grow(h.buf, len(p))
	h.buf = append(buf, p...)
	if more := cap(h.buf) - had; more > 0 && r.account != nil && !r.account.Hold(more) {
		r.loop.Buffers.Put(h.buf)
		if had > 0 {
			r.account.Free(had)
		}
		h.buf, h.off = nil, 0
		return &Error{h.srcSide, ErrOverLimit}
	}
	return nil
}

func (r *Relay) free(h *half) {
	if r.account != nil {
		r.account.Free(cap(h.buf))
	}
	r.loop.Buffers.Put(h.buf)
	h.buf, h.off = nil, 0
}
