package http1

import (
	"bytes"
	"io"

	"github.com/sluice-mesh/sluice/l7proxy/message"
)

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

// String returns the constant's name.
func (k EventKind) String() string {
	switch k {
	case NeedMore:
		return "NeedMore"
	case Head:
		return "Head"
	case Data:
		return "Data"
	case Trailers:
		return "Trailers"
	case End:
		return "End"
	}
	return ""
}

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

// DefaultLimits returns the limits that a zero Limits stands for: 64 KiB, which holds
// the Kerberos tickets and cookies that are met, and 128 fields.
func DefaultLimits() Limits { return Limits{MaxHeadBytes: 64 << 10, MaxFields: 128} }

const (
	// maxChunkLine is a chunk size with its extensions, which nobody is known to need.
	maxChunkLine = 256
	// maxChunkExcess is how far the framing of chunks may outweigh their content.
	// Each chunk earns twice its content and 16 bytes, so that honest small chunks pass.
	maxChunkExcess = 16 << 10
	// maxInterim is how many 1xx responses may come before the final one.
	maxInterim = 16
	// maxNominated is how many fields Connection may name.
	maxNominated = 32
)

// Error is a refusal of what the peer sent. The connection cannot be used further.
type Error struct {
	Status int    // what to answer: 400, 414, 417, 431, 501, 505; 502 when a response was bad
	Text   string // constant, fit for a log and for the peer
}

func (e *Error) Error() string { return e.Text }

type state uint8

const (
	inHead       state = iota // before or in a head
	inFixed                   // remaining bytes of a body of known length
	inChunkLine               // before a chunk size
	inChunk                   // remaining bytes of a chunk
	inChunkEnd                // before the CRLF after a chunk
	inTrailers                // after the last chunk
	inUntilClose              // a response body that ends with the connection
	inTunnel                  // after 101, or 2xx to CONNECT
	atEnd                     // End is due
	inDiscard                 // after a message that was the last one
	inError
)

// asked is the kind of request that a response answers.
type asked uint8

const (
	askedOther asked = iota
	askedHead
	askedConnect
)

// Parser reads one direction of one connection.
type Parser struct {
	limits   Limits
	response bool

	state    state
	blank    bool // the empty line that may precede a request was there
	startOK  bool // the start line of an incomplete head was checked
	final    bool // the message is not an interim response
	last     bool // the connection ends after the message, whatever becomes of head.Close
	interims int
	err      error

	// Of the section (head, trailers) at the front of the input: ends of its complete lines, and
	// how far it was searched for line ends.
	lines   []uint32
	scanned int

	head      message.Head
	trailers  []message.Field
	nominated [][]byte

	remaining int64
	excess    int64

	// Requests that were sent and not answered, from next on.
	expected []asked
	next     int
}

// NewRequestParser reads what a client sends.
func NewRequestParser(l Limits) *Parser { return newParser(l, false) }

// NewResponseParser reads what a server sends. ExpectResponseTo comes before each response.
func NewResponseParser(l Limits) *Parser { return newParser(l, true) }

func newParser(l Limits, response bool) *Parser {
	d := DefaultLimits()
	if l.MaxHeadBytes > 0 {
		d.MaxHeadBytes = l.MaxHeadBytes
	}
	if l.MaxFields > 0 {
		d.MaxFields = l.MaxFields
	}
	p := &Parser{limits: d, response: response}
	p.head.Reset()
	return p
}

// Reset prepares p for another connection and keeps its memory.
func (p *Parser) Reset() {
	head := p.head
	head.Reset()
	*p = Parser{
		limits: p.limits, response: p.response, head: head,
		lines: p.lines[:0], trailers: p.trailers[:0], nominated: p.nominated[:0], expected: p.expected[:0],
	}
}

// Idle reports whether p stands between two messages and expects no response, so that
// it holds nothing of its connection.
func (p *Parser) Idle() bool {
	return p.state == inHead && p.scanned == 0 && !p.blank && p.next == len(p.expected)
}

// Head is the last head, until its bytes in the input are overwritten or the next
// message begins.
func (p *Parser) Head() *message.Head { return &p.head }

// Trailers are the fields that came after a chunked body, with the validity of Head.
func (p *Parser) Trailers() []message.Field { return p.trailers }

// ExpectResponseTo tells a response parser the method of a request that was sent, once per
// request and in their order: the length of a response depends on it (RFC 9112 §6.3). Bytes
// that nobody asked for are an error.
func (p *Parser) ExpectResponseTo(method []byte) {
	if p.next == len(p.expected) {
		p.expected, p.next = p.expected[:0], 0
	}
	a := askedOther
	switch string(method) {
	case "HEAD":
		a = askedHead
	case "CONNECT":
		a = askedConnect
	}
	p.expected = append(p.expected, a)
}

// Upgrade makes all that follows Data, for the parser of requests when a 101, or a 2xx to
// CONNECT, was sent back. A parser of responses does so by itself; whoever relays a 101 makes
// sure that the request had asked for it.
func (p *Parser) Upgrade() {
	if p.state != inError {
		p.state = inTunnel
	}
}

// Upgraded reports whether everything from here on is Data.
func (p *Parser) Upgraded() bool { return p.state == inTunnel }

// EOF says that the peer has closed its direction. It returns End for a body or tunnel
// that ends so, io.EOF between two messages, and an *Error in the middle of one.
func (p *Parser) EOF() (Event, error) {
	switch p.state {
	case inUntilClose, inTunnel:
		p.state = inDiscard
		return Event{Kind: End}, nil
	case atEnd:
		p.end()
		return Event{Kind: End}, nil
	case inHead:
		if p.scanned == 0 {
			return Event{}, io.EOF
		}
	case inDiscard:
		return Event{}, io.EOF
	case inError:
		return Event{}, p.err
	}
	return Event{}, p.fail(400, "connection closed in the middle of a message")
}

// fail remembers an error. What a server sent is always a bad gateway's fault.
func (p *Parser) fail(status int, text string) error {
	if p.response {
		status = 502
	}
	p.state, p.err = inError, &Error{status, text}
	return p.err
}

// Next takes n bytes off the front of buf, which holds all bytes that were not taken
// so far, and says what they were. NeedMore means: call again when there are more.
// Until then go on, also with an empty buf, because End takes no byte. An error is
// always an *Error and stays.
func (p *Parser) Next(buf []byte) (n int, ev Event, err error) {
	for {
		in := buf[n:]
		switch p.state {
		case inHead:
			if len(in) == 0 {
				return n, Event{}, nil
			}
			if p.response && p.next == len(p.expected) {
				return n, Event{}, p.fail(502, "response without a request")
			}
			// RFC 9112 §2.2: one empty line before a request is forgiven.
			if in[0] == '\r' && !p.response && !p.blank && p.scanned < 2 {
				if len(in) == 1 {
					p.scanned = 1
					return n, Event{}, nil
				}
				if in[1] == '\n' {
					p.blank, p.scanned = true, 0
					n += 2
					continue
				}
			}
			size, err := p.section(in, true)
			if err != nil || size == 0 {
				return n, Event{}, err
			}
			if err := p.parseHead(in[:size]); err != nil {
				return n, Event{}, err
			}
			p.last = p.head.Close
			p.lines, p.scanned, p.startOK, p.blank = p.lines[:0], 0, false, false
			return n + size, Event{Kind: Head}, nil

		case inFixed, inChunk:
			if len(in) == 0 {
				return n, Event{}, nil
			}
			if int64(len(in)) > p.remaining {
				in = in[:p.remaining]
			}
			if p.remaining -= int64(len(in)); p.remaining == 0 {
				if p.state == inFixed {
					p.state = atEnd
				} else {
					p.state = inChunkEnd
				}
			}
			return n + len(in), Event{Kind: Data, Data: in}, nil

		case inChunkEnd:
			if len(in) > 0 && in[0] != '\r' || len(in) > 1 && in[1] != '\n' {
				return n, Event{}, p.fail(400, "chunk longer than its size")
			}
			if len(in) < 2 {
				return n, Event{}, nil
			}
			n += 2
			p.state = inChunkLine

		case inChunkLine:
			window := in[:min(len(in), maxChunkLine)]
			i := bytes.IndexByte(window, '\n')
			if i < 0 {
				if len(window) == maxChunkLine {
					return n, Event{}, p.fail(400, "chunk size line too long")
				}
				return n, Event{}, nil
			}
			size, ok := chunkSize(in[:i])
			if !ok {
				return n, Event{}, p.fail(400, "malformed chunk size")
			}
			p.excess += int64(i) + 3
			if size < maxChunkExcess {
				p.excess = max(p.excess-16-2*size, 0)
			} else {
				p.excess = 0
			}
			if p.excess > maxChunkExcess {
				return n, Event{}, p.fail(400, "chunks with more framing than content")
			}
			n += i + 1
			if p.remaining = size; size > 0 {
				p.state = inChunk
			} else {
				p.state = inTrailers
				p.trailers = p.trailers[:0]
			}

		case inTrailers:
			size, err := p.section(in, false)
			if err != nil || size == 0 {
				return n, Event{}, err
			}
			if err := p.parseTrailers(in[:size]); err != nil {
				return n, Event{}, err
			}
			p.lines, p.scanned = p.lines[:0], 0
			n += size
			p.state = atEnd
			if len(p.trailers) > 0 {
				return n, Event{Kind: Trailers}, nil
			}

		case inUntilClose, inTunnel:
			if len(in) == 0 {
				return n, Event{}, nil
			}
			return n + len(in), Event{Kind: Data, Data: in}, nil

		case atEnd:
			p.end()
			return n, Event{Kind: End}, nil

		case inDiscard:
			return len(buf), Event{}, nil

		default:
			return n, Event{}, p.err
		}
	}
}

// end closes a message.
func (p *Parser) end() {
	p.state = inHead
	if p.response && !p.final {
		return
	}
	if p.response {
		p.next++
		p.interims = 0
	}
	if p.last {
		p.state = inDiscard
	}
}

// section looks for the empty line that ends the section at the front of in and returns the
// section's size with it, zero while it is incomplete. p.lines are then its other lines.
func (p *Parser) section(in []byte, head bool) (int, error) {
	start := 0
	if len(p.lines) > 0 {
		start = int(p.lines[len(p.lines)-1])
	}
	for {
		i := bytes.IndexByte(in[p.scanned:], '\n')
		if i < 0 {
			p.scanned = len(in)
			break
		}
		end := p.scanned + i
		if end == start || in[end-1] != '\r' {
			return 0, p.fail(400, "line ends without CR")
		}
		p.scanned = end + 1
		if p.scanned > p.limits.MaxHeadBytes {
			break
		}
		if end-1 == start {
			if head && len(p.lines) == 0 {
				return 0, p.fail(400, "empty start line")
			}
			return end + 1, nil
		}
		fields := len(p.lines)
		if head {
			fields--
		}
		if fields == p.limits.MaxFields {
			return 0, p.fail(431, "too many fields")
		}
		p.lines = append(p.lines, uint32(end+1))
		start = end + 1
	}
	if p.scanned > p.limits.MaxHeadBytes {
		if head && len(p.lines) == 0 && !p.response {
			return 0, p.fail(414, "request line too long")
		}
		return 0, p.fail(431, "fields too large")
	}
	// Who speaks another protocol is told so before his line limit.
	if head && len(p.lines) > 0 && !p.startOK {
		p.startOK = true
		line := in[:p.lines[0]-2]
		if p.response {
			_, _, err := p.statusLine(line)
			return 0, err
		}
		_, _, _, err := p.requestLine(line)
		return 0, err
	}
	return 0, nil
}

// chunkSize reads a chunk line up to its LF (RFC 9112 §7.1). Extensions are checked for octets
// that could end the line elsewhere, and dropped.
func chunkSize(line []byte) (size int64, ok bool) {
	if len(line) < 2 || line[len(line)-1] != '\r' {
		return 0, false
	}
	line = line[:len(line)-1]
	i := 0
	for ; i < len(line); i++ {
		d := message.Hex(line[i])
		if d < 0 {
			break
		}
		if i == 16 || size > 1<<59-1 {
			return 0, false
		}
		size = size<<4 | int64(d)
	}
	if i == 0 {
		return 0, false
	}
	rest := line[i:]
	if len(rest) == 0 {
		return size, true
	}
	if !message.ValidValue(rest) {
		return 0, false
	}
	rest = message.Trim(rest)
	return size, len(rest) > 0 && rest[0] == ';'
}
