package http2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sluice-mesh/sluice/l7proxy/message"
)

// peer writes frames for a Conn with x/net's Framer, and reads what the Conn answers with it.
type peer struct {
	bytes.Buffer
	*http2.Framer
	enc   *hpack.Encoder
	block bytes.Buffer
}

func newPeer() *peer {
	p := &peer{}
	p.Framer = http2.NewFramer(&p.Buffer, nil)
	p.AllowIllegalWrites = true
	p.enc = hpack.NewEncoder(&p.block)
	return p
}

// hello writes a client's preface and settings, or a server's settings.
func (p *peer) hello(client bool, settings ...http2.Setting) {
	if client {
		p.WriteString(preface)
	}
	must(p.WriteSettings(settings...))
	must(p.WriteSettingsAck())
}

// fields encodes "name: value" lines.
func (p *peer) fields(lines ...string) []byte {
	p.block.Reset()
	for _, l := range lines {
		i := strings.Index(l[1:], ": ") + 1
		must(p.enc.WriteField(hpack.HeaderField{Name: l[:i], Value: l[i+2:]}))
	}
	return bytes.Clone(p.block.Bytes())
}

// head writes a header block in one frame.
func (p *peer) head(id uint32, end bool, lines ...string) {
	must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.fields(lines...), EndStream: end, EndHeaders: true}))
}

var getHead = []string{":method: GET", ":scheme: http", ":authority: x", ":path: /"}
var postHead = []string{":method: POST", ":scheme: http", ":authority: x", ":path: /"}

func (p *peer) get(id uint32)  { p.head(id, true, getHead...) }
func (p *peer) post(id uint32) { p.head(id, false, postHead...) }

func headText(h *message.Head) string {
	var b strings.Builder
	if h.Status > 0 {
		fmt.Fprintf(&b, "%d", h.Status)
	} else {
		fmt.Fprintf(&b, "%s %s %s %s", h.Method, h.Scheme, h.Authority, h.Path)
	}
	for _, f := range h.Fields {
		fmt.Fprintf(&b, " [%s: %s]", f.Name, f.Value)
	}
	if len(h.Upgrade) > 0 {
		fmt.Fprintf(&b, " upgrade=%s", h.Upgrade)
	}
	if h.ContentLength >= 0 {
		fmt.Fprintf(&b, " length=%d", h.ContentLength)
	}
	if h.Expect100 {
		b.WriteString(" expect")
	}
	return b.String()
}

// feed gives input to c in steps and returns the events as lines, adjacent pieces of a body joined.
func feed(c *Conn, input []byte, step int) (events []string, err error) {
	var buf []byte
	var data []byte
	stream, end := uint32(0), false
	flush := func() {
		if stream != 0 {
			events = append(events, fmt.Sprintf("Data %d %q", stream, data))
			if end {
				events[len(events)-1] += " end"
			}
			data, stream, end = nil, 0, false
		}
	}
	for {
		for {
			n, ev, err := c.Next(buf)
			if n < 0 || n > len(buf) {
				panic(fmt.Sprintf("took %d of %d", n, len(buf)))
			}
			buf = append([]byte(nil), buf[n:]...)
			if err != nil {
				flush()
				return events, err
			}
			if ev.Kind == NeedMore {
				break
			}
			if ev.Kind == Data {
				if stream != ev.Stream {
					flush()
				}
				stream, data, end = ev.Stream, append(data, ev.Data...), ev.End
				if end {
					flush()
				}
				c.Consumed(ev.Stream, len(ev.Data))
				continue
			}
			flush()
			line := ev.Kind.String()
			if ev.Stream != 0 {
				line += fmt.Sprintf(" %d", ev.Stream)
			}
			switch ev.Kind {
			case Headers:
				line += " " + headText(c.Head())
			case Trailers:
				for _, f := range c.Trailers() {
					line += fmt.Sprintf(" [%s: %s]", f.Name, f.Value)
				}
			case Reset, GoAway:
				line += " " + ev.Code.String()
			case Ping:
				line += fmt.Sprintf(" %q", ev.Data)
			case Settings:
				continue
			}
			if ev.End {
				line += " end"
			}
			events = append(events, line)
		}
		if len(input) == 0 {
			flush()
			return events, nil
		}
		k := min(step, len(input))
		buf = append(buf, input[:k]...)
		input = input[k:]
	}
}

// said reads what c wants to send, without its first settings, as lines.
func said(t testing.TB, c *Conn, client bool) (frames []string) {
	t.Helper()
	out := bytes.Clone(c.Out())
	c.Sent(len(out))
	if client {
		out = bytes.TrimPrefix(out, []byte(preface))
	}
	fr := http2.NewFramer(nil, bytes.NewReader(out))
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	fr.SetMaxReadFrameSize(minMaxFrame)
	for {
		f, err := fr.ReadFrame()
		if errors.Is(err, io.EOF) {
			return frames
		}
		if err != nil {
			t.Fatalf("our own frames cannot be read: %v", err)
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
		case *http2.WindowUpdateFrame:
			frames = append(frames, fmt.Sprintf("WINDOW_UPDATE %d %d", f.StreamID, f.Increment))
		case *http2.RSTStreamFrame:
			frames = append(frames, fmt.Sprintf("RST_STREAM %d %s", f.StreamID, ErrCode(f.ErrCode)))
		case *http2.GoAwayFrame:
			frames = append(frames, fmt.Sprintf("GOAWAY %d %s", f.LastStreamID, ErrCode(f.ErrCode)))
		case *http2.MetaHeadersFrame:
			line := fmt.Sprintf("HEADERS %d", f.StreamID)
			for _, h := range f.Fields {
				line += fmt.Sprintf(" [%s: %s]", h.Name, h.Value)
			}
			if f.StreamEnded() {
				line += " end"
			}
			frames = append(frames, line)
		case *http2.DataFrame:
			line := fmt.Sprintf("DATA %d %d", f.StreamID, len(f.Data()))
			if f.StreamEnded() {
				line += " end"
			}
			frames = append(frames, line)
		case *http2.PingFrame:
			frames = append(frames, fmt.Sprintf("PING %v %q", f.IsAck(), f.Data[:]))
		default:
			frames = append(frames, f.Header().String())
		}
	}
}

var small = Config{MaxConcurrentStreams: 3, MaxHeaderListBytes: 4096, MaxFields: 20, MaxResets: 5, MaxIdleFrames: 50, ExtendedConnect: true}

// TestServerEvents: what a client's frames mean to a server, whole and byte by byte.
func TestServerEvents(t *testing.T) {
	unknown := func(p *peer, size int) { must(p.WriteRawFrame(0xfa, 0xff, 7, make([]byte, size))) }
	refused := func(text string) []string { return []string{text} }
	for _, test := range []struct {
		name   string
		send   func(p *peer)
		events []string
		out    []string // frames; the connection's end shows as GOAWAY
	}{
		{"get", func(p *peer) { p.get(1) }, []string{"Headers 1 GET http x / end"}, nil},
		{
			"post with padding and trailers", func(p *peer) {
				p.head(1, false, append(postHead, "content-length: 10", "te: trailers", "expect: 100-continue")...)
				must(p.WriteDataPadded(1, false, []byte("hello"), make([]byte, 9)))
				must(p.WriteDataPadded(1, false, []byte("world"), nil))
				p.head(1, true, "grpc-status: 0")
			},
			[]string{"Headers 1 POST http x / [content-length: 10] [te: trailers] [expect: 100-continue] length=10 expect", `Data 1 "helloworld"`, "Trailers 1 [grpc-status: 0] end"}, nil,
		},
		{
			"end in an empty frame", func(p *peer) { p.post(1); must(p.WriteData(1, true, nil)) },
			[]string{"Headers 1 POST http x /", `Data 1 "" end`}, nil,
		},
		{
			"end in a padded frame", func(p *peer) {
				p.post(1)
				must(p.WriteDataPadded(1, true, []byte("a"), make([]byte, 255)))
				p.get(3)
			},
			[]string{"Headers 1 POST http x /", `Data 1 "a" end`, "Headers 3 GET http x / end"}, nil,
		},
		{
			"priority and padding in HEADERS", func(p *peer) {
				must(p.WriteHeaders(http2.HeadersFrameParam{
					StreamID: 1, BlockFragment: p.fields(getHead...), EndStream: true, EndHeaders: true,
					PadLength: 3, Priority: http2.PriorityParam{StreamDep: 7, Weight: 3, Exclusive: true},
				}))
			}, []string{"Headers 1 GET http x / end"}, nil,
		},
		{
			"continuation", func(p *peer) {
				b := p.fields(append(getHead, "a: b", "cookie: c=d", "x: y", "cookie: e=f")...)
				must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:3], EndStream: true}))
				must(p.WriteContinuation(1, false, b[3:12]))
				must(p.WriteContinuation(1, false, nil))
				must(p.WriteContinuation(1, true, b[12:]))
			}, []string{"Headers 1 GET http x / [a: b] [cookie: c=d; e=f] [x: y] end"}, nil,
		},
		{"host instead of authority", func(p *peer) { p.head(1, true, ":method: GET", ":scheme: https", ":path: /", "host: y") }, []string{"Headers 1 GET https y / end"}, nil},
		{"host equal to authority", func(p *peer) { p.head(1, true, append(getHead, "host: X")...) }, []string{"Headers 1 GET http x / end"}, nil},
		{"connect", func(p *peer) { p.head(1, false, ":method: CONNECT", ":authority: x:1") }, []string{"Headers 1 CONNECT  x:1 "}, nil},
		{
			"extended connect", func(p *peer) {
				p.head(1, false, ":method: CONNECT", ":protocol: websocket", ":scheme: https", ":path: /chat", ":authority: x")
			},
			[]string{"Headers 1 CONNECT https x /chat upgrade=websocket"}, nil,
		},
		{"ping", func(p *peer) { must(p.WritePing(false, [8]byte{'a'})) }, nil, []string{`PING true "a\x00\x00\x00\x00\x00\x00\x00"`}},
		{"unknown frames", func(p *peer) { unknown(p, 0); p.post(1); unknown(p, 16384); must(p.WriteData(1, true, []byte("a"))) }, []string{"Headers 1 POST http x /", `Data 1 "a" end`}, nil},
		{"unknown setting", func(p *peer) { must(p.WriteSettings(http2.Setting{ID: 0xff, Val: 1})) }, nil, nil},
		{"reset", func(p *peer) { p.post(1); must(p.WriteRSTStream(1, http2.ErrCodeCancel)); p.get(3) }, []string{"Headers 1 POST http x /", "Reset 1 CANCEL", "Headers 3 GET http x / end"}, nil},
		{"goaway", func(p *peer) { must(p.WriteGoAway(0, http2.ErrCodeNo, nil)) }, []string{"GoAway NO_ERROR"}, nil},
		{"too many streams", func(p *peer) {
			p.post(1)
			p.post(3)
			p.post(5)
			p.head(7, false, append(postHead, "new: entry")...)
			must(p.WriteData(7, true, []byte("a")))
			must(p.WriteRSTStream(5, http2.ErrCodeCancel))
			p.head(9, true, append(getHead, "new: entry")...)
		}, []string{
			"Headers 1 POST http x /", "Headers 3 POST http x /", "Headers 5 POST http x /", "Reset 5 CANCEL",
			"Headers 9 GET http x / [new: entry] end",
		}, []string{"RST_STREAM 7 REFUSED_STREAM"}},

		// Errors in a stream: nobody hears of a request that never was one.
		{"upper case", func(p *peer) { p.head(1, true, append(getHead, "A: b")...); p.get(3) }, []string{"Headers 3 GET http x / end"}, []string{"RST_STREAM 1 PROTOCOL_ERROR"}},
		{"connection", func(p *peer) { p.head(1, true, append(getHead, "connection: close")...) }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"transfer-encoding", func(p *peer) { p.head(1, true, append(getHead, "transfer-encoding: chunked")...) }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"upgrade", func(p *peer) { p.head(1, true, append(getHead, "upgrade: h2c")...) }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"te gzip", func(p *peer) { p.head(1, true, append(getHead, "te: gzip")...) }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"LF in a value", func(p *peer) { p.head(1, true, append(getHead, "a: b\nc: d")...) }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"CR in a value", func(p *peer) { p.head(1, true, append(getHead, "a: b\rc")...) }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"NUL in a value", func(p *peer) { p.head(1, true, append(getHead, "a: b\x00c")...) }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"space before a value", func(p *peer) { p.head(1, true, append(getHead, "a:  b")...) }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"colon in a name", func(p *peer) { p.head(1, true, append(getHead, "a:b: c")...) }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"line end in the path", func(p *peer) {
			p.head(1, true, ":method: GET", ":scheme: http", ":authority: x", ":path: / HTTP/1.1\r\nHost: y\r\n\r\n")
		}, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"space in the path", func(p *peer) { p.head(1, true, ":method: GET", ":scheme: http", ":authority: x", ":path: /a b") }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"space in the method", func(p *peer) {
			p.head(1, true, ":method: GET / HTTP/1.1", ":scheme: http", ":authority: x", ":path: /")
		}, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"relative path", func(p *peer) { p.head(1, true, ":method: GET", ":scheme: http", ":authority: x", ":path: a") }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"empty path", func(p *peer) { p.head(1, true, ":method: GET", ":scheme: http", ":authority: x", ":path: ") }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"no path", func(p *peer) { p.head(1, true, ":method: GET", ":scheme: http", ":authority: x") }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"no method", func(p *peer) { p.head(1, true, ":path: /", ":scheme: http", ":authority: x") }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"no scheme", func(p *peer) { p.head(1, true, ":method: GET", ":path: /", ":authority: x") }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"other scheme", func(p *peer) { p.head(1, true, ":method: GET", ":scheme: ftp", ":path: /", ":authority: x") }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"two methods", func(p *peer) { p.head(1, true, append(getHead, ":method: GET")...) }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"pseudo-header field after others", func(p *peer) {
			p.head(1, true, ":method: GET", ":scheme: http", ":path: /", "a: b", ":authority: x")
		}, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"status in a request", func(p *peer) { p.head(1, true, append([]string{":status: 200"}, getHead...)...) }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"unknown pseudo-header field", func(p *peer) { p.head(1, true, append([]string{":a: b"}, getHead...)...) }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"host unlike authority", func(p *peer) { p.head(1, true, append(getHead, "host: y")...) }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"two hosts", func(p *peer) { p.head(1, true, append(getHead, "host: x", "host: x")...) }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"authority with user information", func(p *peer) { p.head(1, true, ":method: GET", ":scheme: http", ":path: /", ":authority: a@x") }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"connect without authority", func(p *peer) { p.head(1, true, ":method: CONNECT") }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"connect with a path", func(p *peer) { p.head(1, true, ":method: CONNECT", ":authority: x:1", ":path: /") }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"protocol without connect", func(p *peer) { p.head(1, true, append([]string{":protocol: websocket"}, getHead...)...) }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"length without a body", func(p *peer) { p.head(1, true, append(postHead, "content-length: 1")...) }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"malformed length", func(p *peer) { p.head(1, false, append(postHead, "content-length: +1")...) }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"different lengths", func(p *peer) { p.head(1, false, append(postHead, "content-length: 1", "content-length: 2")...) }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"other expectation", func(p *peer) { p.head(1, false, append(postHead, "expect: a")...) }, nil, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"body longer than its length", func(p *peer) {
			p.head(1, false, append(postHead, "content-length: 1")...)
			must(p.WriteData(1, false, []byte("ab")))
			must(p.WriteData(1, true, []byte("ab")))
			p.get(3)
		}, []string{"Headers 1 POST http x / [content-length: 1] length=1", "Reset 1 PROTOCOL_ERROR", "Headers 3 GET http x / end"}, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"body shorter than its length", func(p *peer) {
			p.head(1, false, append(postHead, "content-length: 3")...)
			must(p.WriteData(1, true, []byte("ab")))
		}, []string{"Headers 1 POST http x / [content-length: 3] length=3", "Reset 1 PROTOCOL_ERROR"}, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"trailers before the length", func(p *peer) {
			p.head(1, false, append(postHead, "content-length: 3")...)
			p.head(1, true, "a: b")
		}, []string{"Headers 1 POST http x / [content-length: 3] length=3", "Reset 1 PROTOCOL_ERROR"}, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"trailers without an end", func(p *peer) { p.post(1); p.head(1, false, "a: b") }, []string{"Headers 1 POST http x /", "Reset 1 PROTOCOL_ERROR"}, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"trailers with a pseudo-header field", func(p *peer) { p.post(1); p.head(1, true, ":path: /") }, []string{"Headers 1 POST http x /", "Reset 1 PROTOCOL_ERROR"}, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"trailers with a length", func(p *peer) { p.post(1); p.head(1, true, "content-length: 0") }, []string{"Headers 1 POST http x /", "Reset 1 PROTOCOL_ERROR"}, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"data after the end", func(p *peer) { p.get(1); must(p.WriteData(1, true, []byte("a"))) }, []string{"Headers 1 GET http x / end", "Reset 1 STREAM_CLOSED"}, refused("RST_STREAM 1 STREAM_CLOSED")},
		{"head after the end", func(p *peer) { p.get(1); p.get(1) }, []string{"Headers 1 GET http x / end", "Reset 1 STREAM_CLOSED"}, refused("RST_STREAM 1 STREAM_CLOSED")},
		{"window update of nothing", func(p *peer) { p.post(1); must(p.WriteWindowUpdate(1, 0)) }, []string{"Headers 1 POST http x /", "Reset 1 PROTOCOL_ERROR"}, refused("RST_STREAM 1 PROTOCOL_ERROR")},
		{"stream window too large", func(p *peer) { p.post(1); must(p.WriteWindowUpdate(1, 1<<31-1)) }, []string{"Headers 1 POST http x /", "Reset 1 FLOW_CONTROL_ERROR"}, refused("RST_STREAM 1 FLOW_CONTROL_ERROR")},
		{"too large a head", func(p *peer) {
			p.head(1, true, append(getHead, "a: "+strings.Repeat("b", 3000), "c: "+strings.Repeat("d", 3000))...)
			p.head(3, false, append(getHead, "a: "+strings.Repeat("b", 3000), "c: "+strings.Repeat("d", 3000))...)
			must(p.WriteData(3, true, []byte("a")))
			p.get(5)
		}, []string{"Headers 5 GET http x / end"}, []string{"HEADERS 1 [:status: 431] end", "HEADERS 3 [:status: 431] end", "RST_STREAM 3 NO_ERROR"}},
		{"too many fields", func(p *peer) {
			lines := slices.Clone(getHead)
			for i := range 20 {
				lines = append(lines, fmt.Sprintf("a%d: b", i))
			}
			p.head(1, true, lines...)
		}, nil, []string{"HEADERS 1 [:status: 431] end"}},

		// Errors of the connection.
		{"even stream", func(p *peer) { p.get(2) }, nil, refused("GOAWAY 0 PROTOCOL_ERROR")},
		{"lower stream", func(p *peer) { p.get(5); p.get(3) }, []string{"Headers 5 GET http x / end"}, refused("GOAWAY 5 STREAM_CLOSED")},
		{"data on an idle stream", func(p *peer) { must(p.WriteData(1, true, nil)) }, nil, refused("GOAWAY 0 PROTOCOL_ERROR")},
		{"data on stream 0", func(p *peer) { must(p.WriteData(0, true, nil)) }, nil, refused("GOAWAY 0 PROTOCOL_ERROR")},
		{"reset of an idle stream", func(p *peer) { must(p.WriteRSTStream(1, http2.ErrCodeCancel)) }, nil, refused("GOAWAY 0 PROTOCOL_ERROR")},
		{"window of an idle stream", func(p *peer) { must(p.WriteWindowUpdate(1, 1)) }, nil, refused("GOAWAY 0 PROTOCOL_ERROR")},
		{"window of the connection too large", func(p *peer) { must(p.WriteWindowUpdate(0, 1<<31-1)) }, nil, refused("GOAWAY 0 FLOW_CONTROL_ERROR")},
		{"padding too long", func(p *peer) {
			p.post(1)
			must(p.WriteRawFrame(http2.FrameData, 0x8, 1, []byte{5, 1, 2, 3, 4}))
		}, []string{"Headers 1 POST http x /"}, refused("GOAWAY 1 PROTOCOL_ERROR")},
		{"head padding too long", func(p *peer) { must(p.WriteRawFrame(http2.FrameHeaders, 0xd, 1, []byte{5, 1, 2, 3, 4})) }, nil, refused("GOAWAY 0 PROTOCOL_ERROR")},
		{"push", func(p *peer) { must(p.WriteRawFrame(http2.FramePushPromise, 4, 1, []byte{0, 0, 0, 2})) }, nil, refused("GOAWAY 0 PROTOCOL_ERROR")},
		{"continuation alone", func(p *peer) { must(p.WriteContinuation(1, true, nil)) }, nil, refused("GOAWAY 0 PROTOCOL_ERROR")},
		{"frame inside of a head", func(p *peer) {
			must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.fields(getHead...)}))
			must(p.WritePing(false, [8]byte{}))
		}, nil, refused("GOAWAY 1 PROTOCOL_ERROR")},
		{"undecodable head", func(p *peer) { must(p.WriteRawFrame(http2.FrameHeaders, 5, 1, []byte{0xff, 0xff, 0xff})) }, nil, refused("GOAWAY 1 COMPRESSION_ERROR")},
		{"cut head", func(p *peer) {
			must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82, 0x40}, EndHeaders: true}))
		}, nil, refused("GOAWAY 1 COMPRESSION_ERROR")},
		{"frame too large", func(p *peer) { unknown(p, 16385) }, nil, refused("GOAWAY 0 FRAME_SIZE_ERROR")},
		{"ping of a wrong size", func(p *peer) { must(p.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 7))) }, nil, refused("GOAWAY 0 FRAME_SIZE_ERROR")},
		{"ping on a stream", func(p *peer) { must(p.WriteRawFrame(http2.FramePing, 0, 1, make([]byte, 8))) }, nil, refused("GOAWAY 0 PROTOCOL_ERROR")},
		{"settings of a wrong size", func(p *peer) { must(p.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 7))) }, nil, refused("GOAWAY 0 FRAME_SIZE_ERROR")},
		{"settings on a stream", func(p *peer) { must(p.WriteRawFrame(http2.FrameSettings, 0, 1, nil)) }, nil, refused("GOAWAY 0 PROTOCOL_ERROR")},
		{"window setting too large", func(p *peer) { must(p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})) }, nil, refused("GOAWAY 0 FLOW_CONTROL_ERROR")},
		{"frame size setting too small", func(p *peer) { must(p.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 16383})) }, nil, refused("GOAWAY 0 PROTOCOL_ERROR")},
		{"push setting", func(p *peer) { must(p.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 2})) }, nil, refused("GOAWAY 0 PROTOCOL_ERROR")},
		{"short goaway", func(p *peer) { must(p.WriteRawFrame(http2.FrameGoAway, 0, 0, make([]byte, 7))) }, nil, refused("GOAWAY 0 FRAME_SIZE_ERROR")},
		{"data beyond the connection's window", func(p *peer) {
			p.post(1)
			// A server whose application consumes at once announces more in time; nobody may send 65536 bytes
			// in one frame of 16384, so the frame that is too large comes first.
			must(p.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 20000)))
		}, []string{"Headers 1 POST http x /"}, refused("GOAWAY 1 FRAME_SIZE_ERROR")},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, step := range []int{1 << 20, 1} {
				p := newPeer()
				p.hello(true)
				test.send(p)
				c := NewServer(small)
				events, err := feed(c, p.Bytes(), step)
				out := said(t, c, false)
				// A request that becomes no stream is told of, so that it can be recorded.
				var told []string
				for _, line := range out {
					f := strings.Fields(line)
					seen := slices.ContainsFunc(test.events, func(ev string) bool { return strings.HasPrefix(ev, "Headers "+f[1]+" ") })
					if (f[0] == "RST_STREAM" || f[0] == "HEADERS") && !seen && !slices.Contains(told, "Refused "+f[1]) {
						told = append(told, "Refused "+f[1])
					}
				}
				others := slices.DeleteFunc(slices.Clone(events), func(ev string) bool { return slices.Contains(told, ev) })
				if !slices.Equal(others, test.events) || len(others)+len(told) != len(events) {
					t.Errorf("step %d: events\n got %q\nwant %q and %q", step, events, test.events, told)
				}
				out = slices.DeleteFunc(out, func(s string) bool { return strings.HasPrefix(s, "WINDOW_UPDATE") })
				if !slices.Equal(out, test.out) {
					t.Errorf("step %d: out\n got %q\nwant %q", step, out, test.out)
				}
				fatal := len(out) > 0 && strings.HasPrefix(out[len(out)-1], "GOAWAY")
				if fatal != (err != nil) || fatal != c.Done() {
					t.Errorf("step %d: error %v, done %v", step, err, c.Done())
				}
			}
		})
	}
}

func TestPreface(t *testing.T) {
	for _, input := range []string{"GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nXX", preface + "\x00\x00\x08\x06\x00\x00\x00\x00\x00aaaaaaaa", preface + "\x00\x00\x00\x04\x01\x00\x00\x00\x00"} {
		c := NewServer(Config{})
		_, err := feed(c, []byte(input), 1)
		var e *Error
		if !errors.As(err, &e) || e.Code != ProtocolError {
			t.Errorf("%q: %v", input, err)
		}
	}
}

// What a peer makes us do for nothing has an end.
func TestAbuse(t *testing.T) {
	for _, test := range []struct {
		name string
		send func(p *peer)
	}{
		{"rapid reset", func(p *peer) {
			for id := uint32(1); id < 20; id += 2 {
				p.get(id)
				must(p.WriteRSTStream(id, http2.ErrCodeCancel))
			}
		}},
		{"streams that break a rule", func(p *peer) {
			for id := uint32(1); id < 20; id += 2 {
				p.get(id)
				must(p.WriteWindowUpdate(id, 0))
			}
		}},
		{"malformed requests", func(p *peer) {
			for id := uint32(1); id < 20; id += 2 {
				p.head(id, true, "a: b")
			}
		}},
		{"refused streams", func(p *peer) {
			for id := uint32(1); id < 40; id += 2 {
				p.get(id)
			}
		}},
		{"too large heads", func(p *peer) {
			for id := uint32(1); id < 40; id += 2 {
				p.head(id, true, append(getHead, "a: "+strings.Repeat("b", 3000), "c: "+strings.Repeat("d", 3000))...)
			}
		}},
		{"ping", func(p *peer) {
			for range 60 {
				must(p.WritePing(false, [8]byte{}))
			}
		}},
		{"settings", func(p *peer) {
			for range 60 {
				must(p.WriteSettings())
			}
		}},
		{"parameters", func(p *peer) {
			must(p.WriteSettings(slices.Repeat([]http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 1}}, 100)...))
		}},
		{"priority", func(p *peer) {
			for range 60 {
				must(p.WritePriority(7, http2.PriorityParam{}))
			}
		}},
		{"window updates", func(p *peer) {
			for range 60 {
				must(p.WriteWindowUpdate(0, 1))
			}
		}},
		{"unknown frames", func(p *peer) {
			for range 60 {
				must(p.WriteRawFrame(0xee, 0, 0, nil))
			}
		}},
		{"empty data", func(p *peer) {
			p.post(1)
			for range 101 {
				must(p.WriteData(1, false, nil))
			}
		}},
		{"empty padded data", func(p *peer) {
			p.post(1)
			for range 101 {
				must(p.WriteDataPadded(1, false, nil, make([]byte, 1)))
			}
		}},
		{"empty continuations", func(p *peer) {
			must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.fields(getHead...)}))
			for range 40 {
				must(p.WriteContinuation(1, false, nil))
			}
		}},
		{"continuations with content", func(p *peer) {
			must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.fields(getHead...)}))
			for range 4 {
				must(p.WriteContinuation(1, false, bytes.Repeat([]byte{0x82}, 16000)))
			}
		}},
		{"a huge field", func(p *peer) {
			must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: p.fields(append(getHead, "a: "+strings.Repeat("\x00", 5000))...)}))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPeer()
			p.hello(true)
			test.send(p)
			c := NewServer(small)
			_, err := feed(c, p.Bytes(), 1<<20)
			var e *Error
			if !errors.As(err, &e) || e.Code != EnhanceYourCalm {
				t.Fatalf("%v", err)
			}
			if out := said(t, c, false); !strings.HasSuffix(out[len(out)-1], "ENHANCE_YOUR_CALM") {
				t.Errorf("%q", out)
			}
		})
	}
	// Answers that the peer does not read are not heaped up, even if it does something useful meanwhile.
	p := newPeer()
	p.hello(true)
	p.post(1)
	for range maxAcks + 1 {
		must(p.WritePing(false, [8]byte{}))
		must(p.WriteData(1, false, []byte("a")))
	}
	if _, err := feed(NewServer(small), p.Bytes(), 1<<20); err == nil {
		t.Error("endless answers")
	}
	// A table bomb: one entry of 4 KB, named a thousand times, is a head that is too large and nothing more.
	p = newPeer()
	p.hello(true)
	block := p.fields(append(getHead, "a: "+strings.Repeat("b", 3900))...)
	must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: append(block, bytes.Repeat([]byte{0x80 | 62}, 8000)...), EndHeaders: true, EndStream: true}))
	p.get(3)
	c := NewServer(small)
	if events, err := feed(c, p.Bytes(), 1<<20); err != nil || fmt.Sprint(events) != "[Refused 1 Headers 3 GET http x / end]" {
		t.Errorf("%q, %v", events, err)
	}
	if cap(c.arena) > 16<<10 {
		t.Errorf("%d bytes of fields kept", cap(c.arena))
	}
}

// What the abuse limits must not hit: streams that come to an end make up for those that are reset, and time heals.
func TestHonestResets(t *testing.T) {
	c := NewServer(small)
	p := newPeer()
	p.hello(true)
	if _, err := feed(c, p.Bytes(), 1<<20); err != nil {
		t.Fatal(err)
	}
	id := uint32(1)
	round := func(finish, tick bool) error {
		p.Buffer.Reset()
		p.get(id)
		must(p.WriteRSTStream(id, http2.ErrCodeCancel))
		if finish {
			p.get(id + 2)
		}
		if _, err := feed(c, p.Bytes(), 1<<20); err != nil {
			return err
		}
		if finish {
			must(c.WriteHeaders(id+2, &message.Head{Status: 204, ContentLength: -1}, true))
		}
		if tick {
			c.Tick()
		}
		c.Sent(len(c.Out()))
		id += 4
		return nil
	}
	for range 50 {
		if err := round(true, false); err != nil {
			t.Fatal(err)
		}
	}
	for range 50 {
		if err := round(false, true); err != nil {
			t.Fatal(err)
		}
	}
}

// opened is a client with its settings exchanged and streams 1, 3, 5 open.
func opened(t *testing.T, cfg Config, settings ...http2.Setting) (*Conn, *peer) {
	t.Helper()
	c := NewClient(cfg)
	p := newPeer()
	p.hello(false, settings...)
	if _, err := feed(c, p.Bytes(), 1<<20); err != nil {
		t.Fatal(err)
	}
	p.Buffer.Reset()
	for _, method := range []string{"GET", "HEAD", "CONNECT"} {
		h := &message.Head{Method: []byte(method), Authority: []byte("x:1"), Path: []byte("/"), ContentLength: -1}
		if _, err := c.OpenStream(h, method != "CONNECT"); err != nil {
			t.Fatal(err)
		}
	}
	said(t, c, true)
	return c, p
}

func TestClientEvents(t *testing.T) {
	for _, test := range []struct {
		name   string
		send   func(p *peer)
		events []string
		out    []string
	}{
		{
			"interim, body, trailers", func(p *peer) {
				p.head(1, false, ":status: 103", "link: a")
				p.head(1, false, ":status: 200", "set-cookie: a", "set-cookie: b", "content-length: 2")
				must(p.WriteData(1, false, []byte("ok")))
				p.head(1, true, "a: b")
			},
			[]string{"Headers 1 103 [link: a]", "Headers 1 200 [set-cookie: a] [set-cookie: b] [content-length: 2] length=2", `Data 1 "ok"`, "Trailers 1 [a: b] end"}, nil,
		},
		{"head with a length", func(p *peer) { p.head(3, true, ":status: 200", "content-length: 2") }, []string{"Headers 3 200 [content-length: 2] length=2 end"}, nil},
		{
			"tunnel", func(p *peer) {
				p.head(5, false, ":status: 200", "content-length: 0")
				must(p.WriteData(5, true, []byte("a")))
			},
			[]string{"Headers 5 200", `Data 5 "a" end`}, nil,
		},
		{"frames of a stream that has ended", func(p *peer) {
			p.head(1, true, ":status: 204", "a: b")
			p.head(1, true, "a: b")
			must(p.WriteData(1, true, []byte("a")))
			p.head(3, true, ":status: 204", "a: b")
		}, []string{"Headers 1 204 [a: b] end", "Headers 3 204 [a: b] end"}, nil},
		{"push", func(p *peer) { must(p.WriteRawFrame(http2.FramePushPromise, 4, 1, []byte{0, 0, 0, 2})) }, nil, []string{"GOAWAY 0 PROTOCOL_ERROR"}},
		{"push setting", func(p *peer) { must(p.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 1})) }, nil, []string{"GOAWAY 0 PROTOCOL_ERROR"}},
		{"response to nothing", func(p *peer) { p.head(7, true, ":status: 200") }, nil, []string{"GOAWAY 0 PROTOCOL_ERROR"}},
		{"response on an even stream", func(p *peer) { p.head(2, true, ":status: 200") }, nil, []string{"GOAWAY 0 PROTOCOL_ERROR"}},
		{"no status", func(p *peer) { p.head(1, true, "a: b") }, []string{"Reset 1 PROTOCOL_ERROR"}, []string{"RST_STREAM 1 PROTOCOL_ERROR"}},
		{"method in a response", func(p *peer) { p.head(1, true, ":status: 200", ":method: GET") }, []string{"Reset 1 PROTOCOL_ERROR"}, []string{"RST_STREAM 1 PROTOCOL_ERROR"}},
		{"two statuses", func(p *peer) { p.head(1, true, ":status: 200", ":status: 200") }, []string{"Reset 1 PROTOCOL_ERROR"}, []string{"RST_STREAM 1 PROTOCOL_ERROR"}},
		{"status of two digits", func(p *peer) { p.head(1, true, ":status: 20") }, []string{"Reset 1 PROTOCOL_ERROR"}, []string{"RST_STREAM 1 PROTOCOL_ERROR"}},
		{"switch", func(p *peer) { p.head(1, false, ":status: 101") }, []string{"Reset 1 PROTOCOL_ERROR"}, []string{"RST_STREAM 1 PROTOCOL_ERROR"}},
		{"interim with an end", func(p *peer) { p.head(1, true, ":status: 103") }, []string{"Reset 1 PROTOCOL_ERROR"}, []string{"RST_STREAM 1 PROTOCOL_ERROR"}},
		{"data before the head", func(p *peer) { must(p.WriteData(1, true, []byte("a"))) }, []string{"Reset 1 PROTOCOL_ERROR"}, []string{"RST_STREAM 1 PROTOCOL_ERROR"}},
		{"body of HEAD", func(p *peer) { p.head(3, false, ":status: 200"); must(p.WriteData(3, true, []byte("a"))) }, []string{"Headers 3 200", "Reset 3 PROTOCOL_ERROR"}, []string{"RST_STREAM 3 PROTOCOL_ERROR"}},
		{"body of 204", func(p *peer) { p.head(1, false, ":status: 204"); must(p.WriteData(1, true, []byte("a"))) }, []string{"Headers 1 204", "Reset 1 PROTOCOL_ERROR"}, []string{"RST_STREAM 1 PROTOCOL_ERROR"}},
		{"length without a body", func(p *peer) { p.head(1, true, ":status: 200", "content-length: 1") }, []string{"Reset 1 PROTOCOL_ERROR"}, []string{"RST_STREAM 1 PROTOCOL_ERROR"}},
		{"goaway", func(p *peer) { must(p.WriteGoAway(3, http2.ErrCodeNo, nil)); p.head(1, true, ":status: 200") }, []string{"GoAway NO_ERROR", "Reset 5 REFUSED_STREAM", "Headers 1 200 end"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, step := range []int{1 << 20, 1} {
				c, p := opened(t, Config{})
				test.send(p)
				events, _ := feed(c, p.Bytes(), step)
				if !slices.Equal(events, test.events) {
					t.Errorf("step %d: events\n got %q\nwant %q", step, events, test.events)
				}
				if out := said(t, c, true); !slices.Equal(out, test.out) {
					t.Errorf("step %d: out\n got %q\nwant %q", step, out, test.out)
				}
			}
		})
	}
}

func TestCanOpen(t *testing.T) {
	c, p := opened(t, Config{MaxConcurrentStreams: 10}, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 4})
	h := &message.Head{Method: []byte("GET"), Authority: []byte("x"), Path: []byte("/"), ContentLength: -1}
	if c.CanOpen() != 1 || c.OpenStreams() != 3 {
		t.Errorf("can open %d beside %d", c.CanOpen(), c.OpenStreams())
	}
	if id, err := c.OpenStream(h, true); id != 7 || err != nil {
		t.Error(id, err)
	}
	if _, err := c.OpenStream(h, true); err != ErrLimit {
		t.Error(err)
	}
	must(p.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 100}))
	if _, err := feed(c, p.Bytes(), 1000); err != nil {
		t.Fatal(err)
	}
	if c.CanOpen() != 6 {
		t.Errorf("can open %d", c.CanOpen())
	}
	c.Reset(7, Cancel)
	if c.CanOpen() != 7 {
		t.Errorf("can open %d", c.CanOpen())
	}
	c.nextOwn = maxStreamID
	if id, err := c.OpenStream(h, true); id != maxStreamID || err != nil || c.CanOpen() != 0 {
		t.Error(id, err, c.CanOpen())
	}
	if _, err := c.OpenStream(h, true); err != ErrConn {
		t.Error(err)
	}
	p.Buffer.Reset()
	must(p.WriteGoAway(1<<31-1, http2.ErrCodeNo, nil))
	if _, err := feed(c, p.Bytes(), 1000); err != nil || c.Done() {
		t.Error(err, c.Done())
	}
	for id := uint32(1); id < 6; id += 2 {
		c.Reset(id, Cancel)
	}
	c.Reset(maxStreamID, Cancel)
	if !c.Done() {
		t.Error("not done after the last stream")
	}
}

// Receiving: announcements come as the application consumes, and padding and dead streams do not leak the window.
func TestReceiveWindow(t *testing.T) {
	c := NewServer(Config{InitialWindow: 100_000, ConnWindow: 200_000})
	p := newPeer()
	p.hello(true)
	p.post(1)
	p.post(3)
	data := make([]byte, 10_000)
	for range 9 {
		must(p.WriteData(1, false, data))
	}
	run := func() (taken int) {
		t.Helper()
		buf := bytes.Clone(p.Bytes())
		p.Buffer.Reset()
		for {
			n, ev, err := c.Next(buf)
			if err != nil {
				t.Fatal(err)
			}
			buf = buf[n:]
			taken += len(ev.Data)
			if ev.Kind == NeedMore {
				return taken
			}
		}
	}
	expect := func(want ...string) {
		t.Helper()
		if out := said(t, c, false); !slices.Equal(out, want) {
			t.Errorf("got %q, want %q", out, want)
		}
	}
	if n := run(); n != 90_000 {
		t.Fatalf("%d bytes", n)
	}
	expect("WINDOW_UPDATE 0 134465")
	c.Consumed(1, 49_999)
	expect()
	c.Consumed(1, 1)
	expect("WINDOW_UPDATE 1 50000")
	// More than there is counts for what there is.
	c.Consumed(1, 1_000_000)
	expect()
	for range 6 {
		must(p.WriteData(1, false, data))
	}
	run()
	// A reset gives back what nobody will consume, once.
	c.Reset(1, Cancel)
	expect("RST_STREAM 1 CANCEL", "WINDOW_UPDATE 0 150000")
	c.Consumed(1, 60_000)
	expect()
	// What comes late is not delivered and not lost from the window.
	for range 10 {
		must(p.WriteData(1, false, data))
	}
	if n := run(); n != 0 {
		t.Errorf("%d bytes of a stream that was reset", n)
	}
	expect("WINDOW_UPDATE 0 100000")
	// Padding is consumed at once: 400 frames of 1 + 255 bytes, 256 of overhead each.
	for range 400 {
		must(p.WriteDataPadded(3, false, []byte("a"), make([]byte, 255)))
	}
	for i := range 4 {
		_ = i
		run()
	}
	out := said(t, c, false)
	if len(out) != 3 || !strings.HasPrefix(out[0], "WINDOW_UPDATE 3 ") {
		t.Errorf("%q", out)
	}
	// More than the stream's window is refused.
	p.post(5)
	for range 8 {
		must(p.WriteData(5, false, make([]byte, 16_000)))
	}
	buf := p.Bytes()
	reset := false
	for {
		n, ev, err := c.Next(buf)
		if err != nil {
			t.Fatal(err)
		}
		buf = buf[n:]
		if ev.Kind == Reset {
			reset = ev.Stream == 5 && ev.Code == FlowControlError
		}
		if ev.Kind == NeedMore {
			break
		}
	}
	if !reset {
		t.Error("stream window was not enforced")
	}
	// So is more than the connection's.
	c = NewServer(Config{InitialWindow: 100_000, ConnWindow: 100_000})
	p = newPeer()
	p.hello(true)
	p.post(1)
	p.post(3)
	for range 4 {
		must(p.WriteData(1, false, make([]byte, 16_000)))
		must(p.WriteData(3, false, make([]byte, 16_000)))
	}
	buf = p.Bytes()
	for {
		n, ev, err := c.Next(buf)
		buf = buf[n:]
		var e *Error
		if errors.As(err, &e) && e.Code == FlowControlError {
			break
		}
		if err != nil || ev.Kind == NeedMore {
			t.Fatal("connection window was not enforced", err)
		}
	}
}

// Many streams are ended early while their uploads, in small frames, are on the way.
func TestLateUploads(t *testing.T) {
	c := NewServer(Config{MaxConcurrentStreams: 300, MaxIdleFrames: 100})
	p := newPeer()
	p.hello(true)
	for i := range uint32(300) {
		p.post(2*i + 1)
	}
	if _, err := feed(c, p.Bytes(), 1<<20); err != nil {
		t.Fatal(err)
	}
	for i := range uint32(300) {
		must(c.WriteHeaders(2*i+1, &message.Head{Status: 403, ContentLength: -1}, true))
		c.Reset(2*i+1, NoError)
	}
	p.Buffer.Reset()
	for i := range uint32(300) {
		must(p.WriteData(2*i+1, false, []byte("a")))
		must(p.WriteData(2*i+1, false, []byte("b")))
	}
	p.get(601)
	if events, err := feed(c, p.Bytes(), 1<<20); err != nil || fmt.Sprint(events) != "[Headers 601 GET http x / end]" {
		t.Errorf("%q %v", events, err)
	}
}

// Sending: windows, frame size and MaxOutBytes bound WriteData, and Writable comes when they allow more, in turn.
func TestSendWindow(t *testing.T) {
	c := NewServer(Config{MaxOutBytes: 40_000})
	p := newPeer()
	p.hello(true, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 30_000})
	for id := uint32(1); id < 8; id += 2 {
		p.get(id)
	}
	next := func() []string {
		t.Helper()
		events, err := feed(c, p.Bytes(), 1<<20)
		p.Buffer.Reset()
		if err != nil {
			t.Fatal(err)
		}
		return events
	}
	next()
	for id := uint32(1); id < 8; id += 2 {
		must(c.WriteHeaders(id, &message.Head{Status: 200, ContentLength: -1}, false))
	}
	said(t, c, false)
	body := make([]byte, 100_000)
	write := func(id uint32, want int) {
		t.Helper()
		if n, err := c.WriteData(id, body, true); n != want || err != nil {
			t.Errorf("stream %d: %d, %v, want %d", id, n, err, want)
		}
	}
	expect := func(got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	write(1, 30_000) // the stream's window
	write(3, 16_384) // MaxOutBytes
	write(5, 0)
	expect(next())
	expect(said(t, c, false), "DATA 1 16384", "DATA 1 13616", "DATA 3 16384")
	expect(next(), "Writable 3", "Writable 5") // stream 1 has no window
	write(3, 13_616)
	write(5, 5_535) // the connection's window
	write(7, 0)
	said(t, c, false)
	expect(next())
	must(p.WriteWindowUpdate(1, 1000))
	expect(next())
	must(p.WriteWindowUpdate(0, 10_000))
	expect(next(), "Writable 1", "Writable 5", "Writable 7")
	write(1, 1000)
	write(7, 9_000)
	said(t, c, false)
	// A smaller initial window may make a window negative.
	must(p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
	must(p.WriteWindowUpdate(0, 100_000))
	next()
	write(7, 0)
	must(p.WriteWindowUpdate(7, 9_000))
	expect(next())
	must(p.WriteWindowUpdate(7, 1))
	expect(next(), "Writable 7")
	write(7, 1)
	must(p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 90_999}))
	if events := next(); !slices.Contains(events, "Writable 7") {
		t.Errorf("%q", events)
	}
	body = body[:90_999]
	if n, err := c.WriteData(7, body, true); n > len(body) || n < 40_000 || err != nil {
		t.Error(n, err)
	}
	// A stream that goes away is not writable.
	c.Reset(7, Cancel)
	said(t, c, false)
	for _, e := range next() {
		if e == "Writable 7" {
			t.Error(e)
		}
	}
	if len(c.waiting) > 4 {
		t.Errorf("%d streams in the queue", len(c.waiting))
	}
}

func TestWriteOrder(t *testing.T) {
	c := NewServer(Config{})
	p := newPeer()
	p.hello(true, http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 1000})
	p.head(1, true, getHead...)
	p.head(3, true, ":method: HEAD", ":scheme: http", ":authority: x", ":path: /")
	p.get(5)
	if _, err := feed(c, p.Bytes(), 1<<20); err != nil {
		t.Fatal(err)
	}
	said(t, c, false)
	ok := &message.Head{Status: 200, ContentLength: 3}
	is := func(err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	_, err := c.WriteData(1, nil, false)
	is(err, ErrOrder)
	is(c.WriteTrailers(1, nil), ErrOrder)
	is(c.WriteHeaders(1, &message.Head{Status: 100}, true), ErrHead)
	is(c.WriteHeaders(1, &message.Head{Status: 101}, false), ErrHead)
	is(c.WriteHeaders(1, &message.Head{Status: 20}, false), ErrHead)
	is(c.WriteHeaders(1, ok, true), ErrLength)
	is(c.WriteHeaders(9, ok, true), ErrStream)
	bad := func(name, value string) *message.Head {
		return &message.Head{Status: 200, ContentLength: -1, Fields: []message.Field{field([]byte(name), []byte(value))}}
	}
	is(c.WriteHeaders(1, bad("A", "b"), true), ErrField)
	is(c.WriteHeaders(1, bad("a", "b\r\nc"), true), ErrField)
	is(c.WriteHeaders(1, bad("a:", "b"), true), ErrField)
	is(c.WriteHeaders(1, bad(":status", "b"), true), ErrField)
	is(c.WriteHeaders(1, bad("a", strings.Repeat("b", 1000)), true), ErrHeadSize)
	_, err = c.OpenStream(&message.Head{}, true)
	is(err, ErrConn)
	if out := said(t, c, false); len(out) != 0 {
		t.Errorf("refusals left %q", out)
	}
	is(c.WriteHeaders(1, &message.Head{Status: 100, ContentLength: -1}, false), nil)
	hop := bad("a", " b ")
	for _, name := range []string{"connection", "upgrade", "keep-alive", "transfer-encoding", "content-length", "proxy-connection", "host"} {
		hop.Add([]byte(name), []byte("x"))
	}
	hop.ContentLength = 3
	is(c.WriteHeaders(1, hop, false), nil)
	is(c.WriteHeaders(1, ok, false), ErrOrder)
	_, err = c.WriteData(1, []byte("abcd"), false)
	is(err, ErrLength)
	_, err = c.WriteData(1, []byte("ab"), true)
	is(err, ErrLength)
	_, err = c.WriteData(1, []byte("ab"), false)
	is(err, nil)
	is(c.WriteTrailers(1, nil), ErrLength)
	_, err = c.WriteData(1, []byte("c"), false)
	is(err, nil)
	is(c.WriteTrailers(1, []message.Field{field([]byte("connection"), []byte("x"))}), nil)
	_, err = c.WriteData(1, nil, true)
	is(err, ErrStream)
	is(c.WriteHeaders(3, ok, true), nil)
	is(c.WriteHeaders(5, &message.Head{Status: 200, ContentLength: -1}, false), nil)
	is(c.WriteTrailers(5, []message.Field{field([]byte("a"), []byte("b"))}), nil)
	want := []string{
		"HEADERS 1 [:status: 100]", "HEADERS 1 [:status: 200] [content-length: 3] [a: b]", "DATA 1 2", "DATA 1 1", "DATA 1 0 end",
		"HEADERS 3 [:status: 200] [content-length: 3] end", "HEADERS 5 [:status: 200]", "HEADERS 5 [a: b] end",
	}
	if out := said(t, c, false); !slices.Equal(out, want) {
		t.Errorf("got  %q\nwant %q", out, want)
	}
	c.GoAway(NoError)
	is(c.WriteHeaders(5, ok, true), ErrConn)
}

func TestOpenStreamRefuses(t *testing.T) {
	c := NewClient(Config{})
	for _, h := range []*message.Head{
		{Method: []byte("G T"), Path: []byte("/"), ContentLength: -1},
		{Method: []byte("GET"), Path: []byte("a"), ContentLength: -1},
		{Method: []byte("GET"), Path: []byte("/ a"), ContentLength: -1},
		{Method: []byte("GET"), Path: []byte("/"), Authority: []byte("a@b"), ContentLength: -1},
		{Method: []byte("GET"), Path: []byte("/"), Scheme: []byte("ftp"), ContentLength: -1},
		{Method: []byte("GET"), Path: []byte("/"), Upgrade: []byte("websocket"), ContentLength: -1},
		{Method: []byte("CONNECT"), Authority: []byte("a"), ContentLength: -1},
		{Method: []byte("CONNECT"), Authority: []byte("a"), Path: []byte("/"), Upgrade: []byte("websocket"), ContentLength: -1}, // the server has not said so
		{Method: []byte("GET"), Path: []byte("/"), ContentLength: 1},
	} {
		if id, err := c.OpenStream(h, true); err == nil || id != 0 || c.OpenStreams() != 0 {
			t.Errorf("%s: %v", headText(h), err)
		}
	}
	if out := said(t, c, true); len(out) != 1 || !strings.HasPrefix(out[0], "WINDOW_UPDATE") {
		t.Errorf("refusals left %q", out)
	}
}

// A GOAWAY that leaves nobody out, then, when the client has seen it, one that does.
func TestShutdownInTwoSteps(t *testing.T) {
	c := NewServer(Config{})
	p := newPeer()
	p.hello(true)
	p.get(1)
	if _, err := feed(c, p.Bytes(), 1<<20); err != nil {
		t.Fatal(err)
	}
	said(t, c, false)
	c.Shutdown()
	out := said(t, c, false)
	if len(out) != 2 || out[0] != "GOAWAY 2147483647 NO_ERROR" || out[1] != `PING false "`+shutdownData+`"` {
		t.Fatalf("%q", out)
	}
	p.Buffer.Reset()
	p.get(3) // on its way when GOAWAY came
	must(p.WritePing(true, [8]byte([]byte(shutdownData))))
	p.head(5, true, append(getHead, "a: b")...)
	must(p.WriteData(7, true, nil))
	events, err := feed(c, p.Bytes(), 1<<20)
	if err != nil || fmt.Sprint(events) != "[Headers 3 GET http x / end]" {
		t.Errorf("%q %v", events, err)
	}
	if out := said(t, c, false); fmt.Sprint(out) != "[GOAWAY 3 NO_ERROR]" {
		t.Errorf("%q", out)
	}
	for _, id := range []uint32{1, 3} {
		if c.Done() {
			t.Error("done too early")
		}
		must(c.WriteHeaders(id, &message.Head{Status: 204, ContentLength: -1}, true))
	}
	if !c.Done() {
		t.Error("not done")
	}
}

// A window smaller than the default holds from the moment that the peer has heard of it.
func TestSmallInitialWindow(t *testing.T) {
	for _, acked := range []string{"never", "before", "after"} {
		c := NewServer(Config{InitialWindow: 1000})
		p := newPeer()
		p.WriteString(preface)
		must(p.WriteSettings())
		if acked == "before" {
			must(p.WriteSettingsAck())
		}
		p.post(1)
		if acked == "after" {
			must(p.WriteSettingsAck())
		}
		must(p.WriteData(1, false, make([]byte, 1001)))
		events, err := feed(c, p.Bytes(), 1<<20)
		if err != nil || (events[len(events)-1] == "Reset 1 FLOW_CONTROL_ERROR") != (acked != "never") {
			t.Errorf("acknowledged %s the head: %.100q %v", acked, events, err)
		}
	}
}

// What we encode: no dynamic table, said once and first; frames no larger than the peer takes.
func TestHeaderBlocks(t *testing.T) {
	c := NewClient(Config{})
	c.Sent(len(c.Out()))
	h := &message.Head{Method: []byte("GET"), Path: []byte("/"), ContentLength: -1}
	for id := range 2 {
		if _, err := c.OpenStream(h, true); err != nil {
			t.Fatal(err)
		}
		out := c.Out()
		block := out[headerSize:]
		if (block[0] == 0x20) != (id == 0) {
			t.Errorf("request %d begins with %x", id, block)
		}
		c.Sent(len(out))
	}
	h.Add([]byte("a"), bytes.Repeat([]byte("b"), 60_000))
	h.Add([]byte("c"), []byte("d"))
	if _, err := c.OpenStream(h, true); err != nil {
		t.Fatal(err)
	}
	out := said(t, c, true)
	if len(out) != 1 || !strings.HasPrefix(out[0], "HEADERS 5 ") || !strings.HasSuffix(out[0], "b] [c: d] end") {
		t.Errorf("%d frames, %.100q", len(out), out)
	}
}
