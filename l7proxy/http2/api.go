// Package http2 is HTTP/2 as RFC 9113 has it, without any I/O: a Conn takes the bytes that a peer
// sent and gives events, takes messages and gives bytes to send.
package http2

import "github.com/sluice-mesh/sluice/l7proxy/message"

// EventKind says what Conn.Next found.
type EventKind uint8

// The events.
const (
	NeedMore EventKind = iota // give more bytes
	Headers                   // Conn.Head is valid; a new stream (server), a response (client; status 1xx: more follow)
	Data                      // Event.Data is a piece of the body, may be empty when Event.End
	Trailers                  // Conn.Trailers is valid; Event.End is set
	Reset                     // the stream is gone: Event.Code; by the peer, a stream error, or a GOAWAY that left it out
	GoAway                    // the peer opens or accepts no more streams: Event.Code
	Writable                  // WriteData on this stream, which took less than it was given, may take more
	Settings                  // the peer's settings were applied (CanOpen may have changed)
	Ping                      // the answer to Conn.Ping arrived: Event.Data
)

// Event is one step of a connection or of one of its streams.
type Event struct {
	Kind   EventKind
	Stream uint32
	Data   []byte  // Data: body bytes, a slice of the input
	End    bool    // the peer's half of the stream is finished
	Code   ErrCode // Reset, GoAway
}

// ErrCode is an error code of RFC 9113 §7.
type ErrCode uint32

// The error codes.
const (
	NoError            ErrCode = 0x0
	ProtocolError      ErrCode = 0x1
	InternalError      ErrCode = 0x2
	FlowControlError   ErrCode = 0x3
	SettingsTimeout    ErrCode = 0x4
	StreamClosed       ErrCode = 0x5
	FrameSizeError     ErrCode = 0x6
	RefusedStream      ErrCode = 0x7
	Cancel             ErrCode = 0x8
	CompressionError   ErrCode = 0x9
	ConnectError       ErrCode = 0xa
	EnhanceYourCalm    ErrCode = 0xb
	InadequateSecurity ErrCode = 0xc
	HTTP11Required     ErrCode = 0xd
)

// Config bounds a connection. A zero field means its default.
type Config struct {
	MaxConcurrentStreams int   // server: streams that a peer may have open; client: bound of our own
	InitialWindow        int32 // receive window of a stream
	ConnWindow           int32 // receive window of the connection, at least InitialWindow
	MaxFrameSize         int   // largest frame that the peer may send, 16384..16777215
	MaxHeaderListBytes   int   // uncompressed head, RFC 9113 §6.5.2
	MaxOutBytes          int   // WriteData takes nothing while so many bytes wait in Out
	ExtendedConnect      bool  // server: advertise RFC 8441
}

// Conn is one end of one connection.
type Conn struct {
	head message.Head
}

// NewServer reads what a client sends, its preface included.
func NewServer(cfg Config) *Conn { return &Conn{} }

// NewClient starts with the client's preface in Out.
func NewClient(cfg Config) *Conn { return &Conn{} }

// Next takes n bytes off the front of buf, which holds all bytes that were not taken so far. Call it
// until NeedMore, also with an empty buf: Writable events may be due after Sent. An error ends the
// connection: send what Out holds (a GOAWAY) and close.
func (c *Conn) Next(buf []byte) (n int, ev Event, err error) { return 0, Event{}, nil }

// Head is the head of the Headers event that Next just returned, valid until Next is called again.
func (c *Conn) Head() *message.Head { return &c.head }

// Trailers are those of the Trailers event that Next just returned, valid until Next is called again.
func (c *Conn) Trailers() []message.Field { return nil }

// Consumed says that the application has taken n body bytes of a stream; the peer may then send so many more.
func (c *Conn) Consumed(stream uint32, n int) {}

// OpenStream sends a request head (client).
func (c *Conn) OpenStream(h *message.Head, end bool) (id uint32, err error) { return 0, nil }

// WriteHeaders sends a response head (server); status 1xx may come before the final one.
func (c *Conn) WriteHeaders(id uint32, h *message.Head, end bool) error { return nil }

// WriteData sends the first n bytes of p: what the windows and MaxOutBytes allow. With n < len(p) (or
// a missing end) a Writable event follows. end counts only when all of p was taken.
func (c *Conn) WriteData(id uint32, p []byte, end bool) (n int, err error) { return 0, nil }

// WriteTrailers ends the stream with trailers.
func (c *Conn) WriteTrailers(id uint32, f []message.Field) error { return nil }

// Reset ends a stream at once in both directions. No more events of it follow.
func (c *Conn) Reset(id uint32, code ErrCode) {}

// GoAway ends the connection: after what Out holds, close.
func (c *Conn) GoAway(code ErrCode) {}

// Shutdown is graceful: streams that are open go on, the peer is told to open no more.
func (c *Conn) Shutdown() {}

// Done reports that nothing is left to do after Shutdown, GoAway or an error: close when Out is empty.
func (c *Conn) Done() bool { return false }

// Out is what waits to be written, valid until the next call of any other method.
func (c *Conn) Out() []byte { return nil }

// Sent says that the first n bytes of Out were written.
func (c *Conn) Sent(n int) {}

// CanOpen is how many more streams OpenStream would accept now (client).
func (c *Conn) CanOpen() int { return 0 }

// OpenStreams is how many streams are open or half closed.
func (c *Conn) OpenStreams() int { return 0 }

// Ping sends a PING frame; a Ping event brings the answer.
func (c *Conn) Ping(data [8]byte) {}

// Tick lets the abuse counters forget; call it about once a second while the connection is in use.
func (c *Conn) Tick() {}
