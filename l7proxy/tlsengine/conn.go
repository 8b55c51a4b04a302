package tlsengine

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// HandshakeTimeout bounds a handshake from Server or Client on. Long enough for a
// lost flight to be sent again twice (RFC 6298: 1 s, then 2 s), short enough that
// silent clients do not pile up.
const HandshakeTimeout = 10 * time.Second

var (
	// ErrDry means that more ciphertext is needed.
	ErrDry = errors.New("more ciphertext needed")
	// ErrHandshakeTimeout is the handshake error after HandshakeTimeout.
	ErrHandshakeTimeout = errors.New("TLS handshake timed out")
)

// Conn is one side of a TLS connection. Its methods are for one goroutine, the
// owner of the socket, except where they say otherwise.
type Conn struct {
	tls  *tls.Conn
	mem  memory
	wake func()

	established bool  // HandshakeDone returned true and no error
	err         error // what Read returned last, once it can only return that
}

// Server starts the handshake of a server on a goroutine of its own. wake is called
// from that goroutine when there is output to send and when the handshake ended;
// it must not block and must not call the Conn.
func Server(cfg *tls.Config, wake func()) *Conn { return start(cfg, wake, tls.Server) }

// Client is Server for the other side. cfg must name the server or verify it by
// itself, as crypto/tls wants.
func Client(cfg *tls.Config, wake func()) *Conn { return start(cfg, wake, tls.Client) }

func start(cfg *tls.Config, wake func(), side func(net.Conn, *tls.Config) *tls.Conn) *Conn {
	c := &Conn{wake: wake}
	c.mem.more.L = &c.mem.mu
	c.mem.wake = wake
	c.mem.shared = true
	c.tls = side(&c.mem, cfg)
	timeout := time.AfterFunc(HandshakeTimeout, func() { c.mem.fail(ErrHandshakeTimeout) })
	go func() {
		err := c.tls.Handshake()
		timeout.Stop()
		c.mem.handshakeEnded(err)
		c.wake()
	}()
	return c
}

// Feed takes bytes from the socket, and copies them. During the handshake the caller
// should read no further from the socket while Buffered is more than it likes to
// keep; after it, not before Read returned ErrDry.
func (c *Conn) Feed(cipher []byte) {
	if len(cipher) == 0 {
		return
	}
	if c.mem.lock() {
		defer c.mem.mu.Unlock()
		c.mem.more.Signal()
	}
	if c.mem.failed == nil {
		c.mem.in.append(cipher)
	}
}

// FeedEOF says that the socket will bring no more bytes.
func (c *Conn) FeedEOF() {
	if c.mem.lock() {
		defer c.mem.mu.Unlock()
		c.mem.more.Signal()
	}
	c.mem.eof = true
}

// Buffered returns how many bytes that were fed are not looked at yet.
func (c *Conn) Buffered() int {
	if c.mem.lock() {
		defer c.mem.mu.Unlock()
	}
	return c.mem.in.len()
}

// HandshakeDone reports whether the handshake ended, and how. Once it did, Read may
// have plaintext without another Feed. After an error Out may hold the alert that
// tells the peer why.
func (c *Conn) HandshakeDone() (done bool, err error) {
	if c.established {
		return true, nil
	}
	c.mem.mu.Lock()
	done, err = c.mem.handshaken, c.mem.handshakeErr
	if c.mem.failed != nil && !done {
		// The goroutine is about to notice.
		done, err = true, c.mem.failed
	}
	established := done && err == nil
	c.mem.mu.Unlock()
	if established {
		// The handshake's goroutine touches the memory no more: from here on it
		// belongs to the caller alone.
		c.established, c.mem.shared = true, false
	}
	return done, err
}

// ALPN returns the protocol agreed on, empty if none, or before the handshake is done.
func (c *Conn) ALPN() string {
	if !c.established {
		return ""
	}
	return c.tls.ConnectionState().NegotiatedProtocol
}

// ServerName returns the name that the client asked for, empty if none, or before the
// handshake is done.
func (c *Conn) ServerName() string {
	if !c.established {
		return ""
	}
	return c.tls.ConnectionState().ServerName
}

// ConnectionState returns what crypto/tls tells of a connection; zero before the
// handshake is done.
func (c *Conn) ConnectionState() tls.ConnectionState {
	if !c.established {
		return tls.ConnectionState{}
	}
	return c.tls.ConnectionState()
}

// Read returns plaintext. It returns ErrDry when more ciphertext is needed or the
// handshake is not done, io.EOF after the peer's close_notify, io.ErrUnexpectedEOF
// if the socket ended without one, and any other error for ever. It may leave bytes
// in Out, such as an alert or the answer to a key update.
func (c *Conn) Read(p []byte) (n int, err error) {
	if !c.established {
		return 0, ErrDry
	}
	if c.err != nil {
		return 0, c.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err = c.tls.Read(p)
	switch {
	case err == nil:
		return n, nil
	case err == dry:
		if n > 0 {
			return n, nil
		}
		return 0, ErrDry
	case err == io.EOF && c.mem.eofSeen:
		// crypto/tls does not tell a cut connection from a closed one if the cut lies
		// between two records.
		err = io.ErrUnexpectedEOF
	}
	c.err = err
	if n > 0 {
		return n, nil
	}
	return 0, err
}

// Write encrypts all of p into Out. It fails before the handshake is done, after
// CloseNotify, and when the connection is broken.
func (c *Conn) Write(p []byte) (n int, err error) {
	if !c.established {
		return 0, errors.New("write before the TLS handshake is done")
	}
	return c.tls.Write(p)
}

// Out returns the bytes to send. They stay valid until the next call of Sent.
func (c *Conn) Out() []byte {
	if c.mem.lock() {
		defer c.mem.mu.Unlock()
	}
	return c.mem.out.bytes()
}

// Sent says how many bytes of Out were sent.
func (c *Conn) Sent(n int) {
	if c.mem.lock() {
		defer c.mem.mu.Unlock()
	}
	c.mem.out.discard(n)
}

// CloseNotify queues the close_notify alert into Out. Nothing can be written after
// it; the peer's bytes can still be read. Before the handshake is done it does nothing.
func (c *Conn) CloseNotify() {
	if c.established {
		// It fails if the connection is broken, and then there is nobody to tell.
		_ = c.tls.CloseWrite()
	}
}

// Close ends a handshake that is under way and frees the memory. Nothing is sent.
// Only Close may be called after it.
func (c *Conn) Close() {
	c.err = net.ErrClosed
	if c.mem.lock() {
		c.mem.mu.Unlock()
		c.mem.fail(net.ErrClosed)
		return
	}
	c.mem.in.free()
	c.mem.out.free()
}

// dryError is what the memory connection answers when it has no bytes. crypto/tls
// remembers errors of a read except those whose Temporary is true.
type dryError struct{}

func (dryError) Error() string   { return ErrDry.Error() }
func (dryError) Timeout() bool   { return true }
func (dryError) Temporary() bool { return true }

var dry net.Error = dryError{}

// memory is the net.Conn below a tls.Conn. While shared, the owner of the Conn and
// the handshake's goroutine use it under mu, and Read blocks.
type memory struct {
	mu   sync.Mutex
	more sync.Cond // on mu: in, eof or failed changed
	wake func()

	in, out      buffer
	eof          bool
	eofSeen      bool  // Read returned io.EOF
	failed       error // ends the handshake
	handshaken   bool
	handshakeErr error

	shared bool // written by the owner, once the handshake's goroutine has ended
}

// lock locks mu if that is needed at all, and reports whether it did.
func (m *memory) lock() bool {
	if m.shared {
		m.mu.Lock()
		return true
	}
	return false
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed == nil && !m.handshaken {
		m.failed = err
	}
	if err == net.ErrClosed {
		m.failed = err
		m.in.free()
		m.out.free()
	}
	m.more.Broadcast()
}

func (m *memory) handshakeEnded(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		err = m.failed
	}
	m.handshaken, m.handshakeErr = true, err
}

func (m *memory) Read(p []byte) (int, error) {
	if m.lock() {
		defer m.mu.Unlock()
		for m.in.len() == 0 && !m.eof && m.failed == nil {
			m.more.Wait()
		}
		if m.failed != nil {
			return 0, m.failed
		}
	}
	if m.in.len() == 0 {
		if m.eof {
			m.eofSeen = true
			return 0, io.EOF
		}
		return 0, dry
	}
	n := copy(p, m.in.bytes())
	m.in.discard(n)
	return n, nil
}

func (m *memory) Write(p []byte) (int, error) {
	if m.lock() {
		if m.failed != nil {
			m.mu.Unlock()
			return 0, m.failed
		}
		m.out.append(p)
		m.mu.Unlock()
		m.wake()
		return len(p), nil
	}
	m.out.append(p)
	return len(p), nil
}

func (m *memory) Close() error                     { return nil }
func (m *memory) LocalAddr() net.Addr              { return address{} }
func (m *memory) RemoteAddr() net.Addr             { return address{} }
func (m *memory) SetDeadline(time.Time) error      { return nil }
func (m *memory) SetReadDeadline(time.Time) error  { return nil }
func (m *memory) SetWriteDeadline(time.Time) error { return nil }

type address struct{}

func (address) Network() string { return "memory" }
func (address) String() string  { return "memory" }

// buffer is a queue of bytes that holds memory only while it holds bytes.
type buffer struct {
	data  *[]byte // from buffers
	start int
}

// Buffers that grew beyond maxPooled are left to the collector: they were needed
// for one burst. One record and its framing (RFC 8446 §5.2) is 16,645 bytes.
const (
	bufferSize = 18 << 10
	maxPooled  = 128 << 10
)

var buffers = sync.Pool{New: func() any {
	b := make([]byte, 0, bufferSize)
	return &b
}}

func (b *buffer) append(p []byte) {
	if b.data == nil {
		b.data = buffers.Get().(*[]byte)
	}
	*b.data = append(*b.data, p...)
}

func (b *buffer) bytes() []byte {
	if b.data == nil {
		return nil
	}
	return (*b.data)[b.start:]
}

func (b *buffer) len() int { return len(b.bytes()) }

func (b *buffer) discard(n int) {
	if b.start += min(n, b.len()); b.len() == 0 {
		b.free()
	}
}

func (b *buffer) free() {
	if b.data != nil && cap(*b.data) <= maxPooled {
		*b.data = (*b.data)[:0]
		buffers.Put(b.data)
	}
	b.data, b.start = nil, 0
}
