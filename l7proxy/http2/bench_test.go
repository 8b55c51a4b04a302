package http2

import (
	"bytes"
	"testing"

	"golang.org/x/net/http2"

	"github.com/sluice-mesh/sluice/l7proxy/message"
)

var benchHead = []string{
	":method: POST", ":scheme: http", ":authority: reviews.shop.svc.cluster.local:9080", ":path: /bookshop.Reviews/List",
	"content-type: application/grpc", "user-agent: grpc-go/1.85.0", "te: trailers", "grpc-timeout: 1S",
	"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "x-request-id: 5f0c2a9e-8d2b-4c57-9d0e-0d8f3b0f6a11",
}

// loop is a server engine and the bytes of one gRPC call, after the first of which HPACK's table has all fields.
type loop struct {
	c        *Conn
	call     []byte // HEADERS, DATA of stream 0: the id is patched in
	id       uint32
	data     []byte
	response *message.Head
	trailers []message.Field
}

func newLoop(t testing.TB, message5 int) *loop {
	p := newPeer()
	p.hello(true, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	must(p.WriteWindowUpdate(0, 1<<31-1-65535))
	l := &loop{c: NewServer(Config{}), id: 1, data: make([]byte, message5)}
	if _, err := feed(l.c, p.Bytes(), 1<<20); err != nil {
		t.Fatal(err)
	}
	p.Buffer.Reset()
	p.head(1, false, benchHead...) // fills the table
	must(p.WriteData(1, true, l.data))
	first := bytes.Clone(p.Bytes())
	p.Buffer.Reset()
	p.head(1, false, benchHead...)
	must(p.WriteData(1, true, l.data))
	l.call = bytes.Clone(p.Bytes())
	l.response = &message.Head{Status: 200, ContentLength: -1}
	l.response.Add([]byte("content-type"), []byte("application/grpc"))
	l.trailers = []message.Field{field([]byte("grpc-status"), []byte("0"))}
	l.one(first)
	return l
}

// one runs one call and answers it.
func (l *loop) one(input []byte) {
	for b := input; len(b) > 0; { // patch the stream's number
		b[5], b[6], b[7], b[8] = byte(l.id>>24), byte(l.id>>16), byte(l.id>>8), byte(l.id)
		b = b[headerSize+(int(b[0])<<16|int(b[1])<<8|int(b[2])):]
	}
	c := l.c
	for {
		n, ev, err := c.Next(input)
		must(err)
		input = input[n:]
		if ev.Kind == NeedMore {
			break
		}
		if ev.Kind == Data {
			c.Consumed(ev.Stream, len(ev.Data))
		}
		if ev.End {
			must(c.WriteHeaders(l.id, l.response, false))
			if n, err := c.WriteData(l.id, l.data, false); err != nil || n < len(l.data) {
				panic("send window used up")
			}
			c.sendWindow += int64(len(l.data)) // as a WINDOW_UPDATE would
			must(c.WriteTrailers(l.id, l.trailers))
		}
	}
	c.Sent(len(c.Out()))
	l.id += 2
}

func BenchmarkServerCall(b *testing.B) {
	l := newLoop(b, 128)
	b.ReportAllocs()
	for b.Loop() {
		l.one(l.call)
		if l.id > 1<<30 {
			l.id, l.c.lastPeer = 1, 0
		}
	}
}

func BenchmarkClientCall(b *testing.B) {
	c := NewClient(Config{})
	p := newPeer()
	p.hello(false)
	if _, err := feed(c, p.Bytes(), 1<<20); err != nil {
		b.Fatal(err)
	}
	c.Sent(len(c.Out()))
	response := []string{":status: 200", "content-type: application/grpc", "date: Mon, 23 Nov 2026 21:00:00 GMT"}
	request := &message.Head{Method: []byte("POST"), Authority: []byte("reviews.shop:9080"), Path: []byte("/bookshop.Reviews/List"), ContentLength: -1}
	for _, f := range []string{"content-type", "user-agent", "te", "grpc-timeout", "traceparent", "x-request-id"} {
		request.Add([]byte(f), []byte("trailers"))
	}
	l := &loop{id: 1}
	call := func() []byte {
		p.Buffer.Reset()
		p.head(1, false, response...)
		must(p.WriteData(1, false, make([]byte, 128)))
		p.head(1, true, "grpc-status: 0")
		return bytes.Clone(p.Bytes())
	}
	data := make([]byte, 128)
	one := func(input []byte) {
		id, err := c.OpenStream(request, false)
		must(err)
		c.sendWindow = defaultWindow
		if _, err := c.WriteData(id, data, true); err != nil {
			panic(err)
		}
		l.id = id
		for b := input; len(b) > 0; {
			b[5], b[6], b[7], b[8] = byte(id>>24), byte(id>>16), byte(id>>8), byte(id)
			b = b[headerSize+(int(b[0])<<16|int(b[1])<<8|int(b[2])):]
		}
		for {
			n, ev, err := c.Next(input)
			must(err)
			input = input[n:]
			if ev.Kind == NeedMore {
				break
			}
		}
		c.Sent(len(c.Out()))
		if c.nextOwn > 1<<30 {
			c.nextOwn = 1
		}
	}
	one(call())
	again := call()
	b.ReportAllocs()
	for b.Loop() {
		one(again)
	}
}

// BenchmarkBulk relays one large body: bytes in, events out, bytes out.
func BenchmarkBulk(b *testing.B) {
	c := NewServer(Config{})
	p := newPeer()
	p.hello(true)
	p.post(1)
	if _, err := feed(c, p.Bytes(), 1<<20); err != nil {
		b.Fatal(err)
	}
	must(c.WriteHeaders(1, &message.Head{Status: 200, ContentLength: -1}, false))
	c.Sent(len(c.Out()))
	p.Buffer.Reset()
	must(p.WriteData(1, false, make([]byte, 16<<10)))
	in := p.Bytes()
	s := c.streams[1]
	b.SetBytes(16 << 10)
	b.ReportAllocs()
	for b.Loop() {
		buf := in
		for {
			n, ev, err := c.Next(buf)
			must(err)
			buf = buf[n:]
			if ev.Kind == NeedMore {
				break
			}
			s.sendWindow, c.sendWindow = maxWindow, maxWindow
			if _, err := c.WriteData(1, ev.Data, false); err != nil {
				b.Fatal(err)
			}
			c.Consumed(1, len(ev.Data))
		}
		c.Sent(len(c.Out()))
	}
}

// A call whose fields HPACK's table knows costs no memory.
func TestAllocations(t *testing.T) {
	l := newLoop(t, 128)
	if n := testing.AllocsPerRun(200, func() { l.one(l.call) }); n != 0 {
		t.Errorf("%v allocations per call", n)
	}
}
