// Package http1 is HTTP/1.1 and HTTP/1.0 as RFC 9112 has it, without any I/O:
// a Parser turns the bytes of one direction of one connection into events, a
// Writer turns message heads and body bytes into the bytes of the other.
package http1

import "github.com/sluice-mesh/sluice/l7proxy/message"

// EventKind says what a Parser found.
type EventKind uint8

// The events. A message is Head, Data*, [Trailers], End.
const (
	NeedMore EventKind = iota // give more bytes (Next), or say EOF
	Head                      // Parser.Head is valid
	Data                      // Event.Data is a piece of the body
	Trailers                  // Parser.Trailers is valid
	End                       // the message is complete
)

// Event is one step of a message.
type Event struct {
	Kind EventKind
	Data []byte // Data only: body bytes, a slice of the input
}

// Limits bound what a peer can make a Parser hold or do. A zero field means its default.
type Limits struct {
	MaxHeadBytes int // start line and fields, and apart from it the trailer section
	MaxFields    int // fields of a head, and apart from it of a trailer section
}

// DefaultLimits returns the limits that a zero Limits stands for.
func DefaultLimits() Limits { return Limits{MaxHeadBytes: 64 << 10, MaxFields: 128} }

// Error is a refusal of what the peer sent. The connection cannot be used further.
type Error struct {
	Status int    // what to answer: 400, 417, 431, 501, 505; 502 when a response was bad
	Text   string // constant, fit for a log and for the peer
}

func (e *Error) Error() string { return "http1: " + e.Text }

// Parser reads one direction of one connection.
type Parser struct {
	head message.Head
}

// NewRequestParser reads what a client sends.
func NewRequestParser(l Limits) *Parser { return &Parser{} }

// NewResponseParser reads what a server sends. ExpectResponseTo comes before each response.
func NewResponseParser(l Limits) *Parser { return &Parser{} }

// Next takes n bytes off the front of buf. buf holds all bytes that were not taken so far.
// Call it until NeedMore, also with an empty buf. NeedMore: call again when buf is longer.
func (p *Parser) Next(buf []byte) (n int, ev Event, err error) { return 0, Event{}, nil }

// Head is the last head, valid until its bytes in buf are overwritten or Next is called after End.
func (p *Parser) Head() *message.Head { return &p.head }

// Trailers are the fields after a chunked body, with the validity of Head.
func (p *Parser) Trailers() []message.Field { return nil }

// ExpectResponseTo tells a response parser the method of a request that was sent; once per
// request, in order.
func (p *Parser) ExpectResponseTo(method []byte) {}

// EOF says that the peer has closed its direction: End for a body or tunnel that ends so, io.EOF
// between messages, an error in the middle of one.
func (p *Parser) EOF() (Event, error) { return Event{}, nil }

// Upgrade makes all that follows Data: for the request parser, when a 101 or a 2xx to CONNECT was
// sent back. A response parser does it by itself.
func (p *Parser) Upgrade() {}

// Upgraded reports whether everything from here on is Data.
func (p *Parser) Upgraded() bool { return false }

// Idle reports whether the parser stands between two messages.
func (p *Parser) Idle() bool { return false }

// Reset prepares p for another connection and keeps its memory.
func (p *Parser) Reset() {}

// Writer frames one direction of one connection. The Append functions return dst extended. When
// they must refuse, they return dst as it was and Err says why; the connection must then be closed.
type Writer struct {
	err error
}

// ReplyTo tells the writer of a server which request its next final response answers: its
// method, version, Upgrade and wish to keep the connection decide about framing.
func (w *Writer) ReplyTo(req *message.Head) {}

// AppendRequest starts a request.
func (w *Writer) AppendRequest(dst []byte, h *message.Head) []byte { return dst }

// AppendResponse starts a response (interim ones, status 1xx, need no AppendEnd).
func (w *Writer) AppendResponse(dst []byte, h *message.Head) []byte { return dst }

// AppendContinue writes "100 Continue".
func (w *Writer) AppendContinue(dst []byte) []byte { return dst }

// AppendData writes body bytes, framed.
func (w *Writer) AppendData(dst, p []byte) []byte { return dst }

// DataFraming returns what goes before and after n body bytes (writev without a copy); both may be
// empty. They are valid until the next call.
func (w *Writer) DataFraming(n int) (prefix, suffix []byte) { return nil, nil }

// AppendEnd ends the message. Trailers are left out where the framing has no room for them.
func (w *Writer) AppendEnd(dst []byte, trailers []message.Field) []byte { return dst }

// Close reports whether the connection ends after this message: the head said so, or the body's end
// is the end of the connection.
func (w *Writer) Close() bool { return false }

// Raw reports whether the body is sent without framing (content-length, close-delimited, tunnel), so
// that bytes may be spliced; such bytes are counted with DataFraming(n).
func (w *Writer) Raw() bool { return false }

// Err is the first refusal since the last head.
func (w *Writer) Err() error { return w.err }
