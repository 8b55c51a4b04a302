package http2

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"

	"github.com/sluice-mesh/sluice/l7proxy/message"
)

// driver runs a Conn over a socket, as simply as possible: one goroutine reads, one writes, and
// the application is called with the lock held.
type driver struct {
	mu     sync.Mutex
	wake   sync.Cond
	c      *Conn
	conn   net.Conn
	handle func(ev Event)
	err    error // of the engine
	closed bool
	done   chan struct{}
}

// pump takes all events; the lock is held.
func (d *driver) pump(buf []byte) []byte {
	for d.err == nil {
		n, ev, err := d.c.Next(buf)
		buf = buf[n:]
		if err != nil {
			d.err = err
			break
		}
		if ev.Kind == NeedMore {
			break
		}
		d.handle(ev)
	}
	d.wake.Broadcast()
	return buf
}

func (d *driver) read() {
	defer close(d.done)
	var buf []byte
	chunk := make([]byte, 7001) // frames never begin where reads do
	for {
		n, err := d.conn.Read(chunk)
		d.mu.Lock()
		buf = append([]byte(nil), d.pump(append(buf, chunk[:n]...))...)
		if err != nil {
			d.closed = true
			d.wake.Broadcast()
			d.mu.Unlock()
			return
		}
		d.mu.Unlock()
	}
}

func (d *driver) write() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for !d.closed {
		out := bytes.Clone(d.c.Out())
		if len(out) == 0 {
			if d.c.Done() {
				d.conn.Close()
				return
			}
			d.wake.Wait()
			continue
		}
		d.mu.Unlock()
		_, err := d.conn.Write(out)
		d.mu.Lock()
		if err != nil {
			return
		}
		d.c.Sent(len(out))
		d.pump(nil)
	}
}

// do runs f with the lock held and writes what it leaves.
func (d *driver) do(f func()) {
	d.mu.Lock()
	f()
	d.pump(nil)
	d.mu.Unlock()
}

// outgoing is a body on its way out.
type outgoing struct {
	data     []byte
	end      bool
	trailers []message.Field
	// consumed is called with the bytes that went.
	consumed func(n int)
}

// app is a small HTTP server on a Conn.
type app struct {
	d       *driver
	out     map[uint32]*outgoing
	resets  chan Event
	started chan uint32
	parked  []uint32
}

func (a *app) push(id uint32) {
	o := a.out[id]
	if o == nil {
		return
	}
	end := o.end && o.trailers == nil
	if len(o.data) > 0 || end {
		n, err := a.d.c.WriteData(id, o.data, end)
		if err != nil {
			delete(a.out, id)
			return
		}
		o.data = o.data[n:]
		if o.consumed != nil {
			o.consumed(n)
		}
	}
	if len(o.data) == 0 && o.end {
		if o.trailers != nil {
			if err := a.d.c.WriteTrailers(id, o.trailers); err != nil {
				panic(err)
			}
		}
		delete(a.out, id)
	}
}

func (a *app) handle(ev Event) {
	c := a.d.c
	id := ev.Stream
	switch ev.Kind {
	case Headers:
		h := c.Head()
		reply := &message.Head{Status: 200, ContentLength: -1, Fields: []message.Field{field([]byte("x-method"), h.Method)}}
		path, query, _ := strings.Cut(string(h.Path), "?")
		if h.Expect100 {
			must(c.WriteHeaders(id, &message.Head{Status: 100, ContentLength: -1}, false))
		}
		switch path {
		case "/echo":
			reply.Fields = append(reply.Fields, h.Fields...)
			must(c.WriteHeaders(id, reply, false))
			a.out[id] = &outgoing{trailers: []message.Field{field([]byte("x-trailer"), []byte("yes"))}, consumed: func(n int) { c.Consumed(id, n) }}
			if ev.End {
				a.out[id].end = true
				a.push(id)
			}
		case "/big":
			n, _ := strconv.Atoi(query)
			reply.ContentLength = int64(n)
			must(c.WriteHeaders(id, reply, false))
			a.out[id] = &outgoing{data: pattern(n), end: true}
			a.push(id)
		case "/hints":
			must(c.WriteHeaders(id, &message.Head{Status: 103, ContentLength: -1, Fields: []message.Field{field([]byte("link"), []byte("</a>"))}}, false))
			must(c.WriteHeaders(id, reply, true))
		case "/park":
			a.parked = append(a.parked, id)
			a.started <- id
		case "/early":
			reply.Status = 403
			must(c.WriteHeaders(id, reply, true))
			if !ev.End {
				c.Reset(id, NoError)
			}
		case "/head":
			reply.ContentLength = 12345
			must(c.WriteHeaders(id, reply, true))
		default:
			must(c.WriteHeaders(id, reply, true))
		}
	case Data:
		if o := a.out[id]; o != nil {
			o.data = append(o.data, ev.Data...)
			o.end = ev.End
			a.push(id)
		} else {
			c.Consumed(id, len(ev.Data))
		}
	case Trailers:
		if o := a.out[id]; o != nil {
			for _, f := range c.Trailers() {
				o.trailers = append(o.trailers, field(bytes.Clone(f.Name), bytes.Clone(f.Value)))
			}
			o.end = true
			a.push(id)
		}
	case Writable:
		a.push(id)
	case Reset:
		delete(a.out, id)
		select {
		case a.resets <- ev:
		default:
		}
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// pattern is a body whose misplaced parts show.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8*13)
	}
	return b
}

// sockets are two ends of a loopback connection.
func sockets(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// serve runs our engine as a server and returns a client connection of x/net to it.
func serve(t testing.TB, cfg Config) (*http2.ClientConn, *app) {
	t.Helper()
	near, far := sockets(t)
	a := &app{out: map[uint32]*outgoing{}, resets: make(chan Event, 100), started: make(chan uint32, 100)}
	d := &driver{c: NewServer(cfg), conn: far, handle: a.handle, done: make(chan struct{})}
	d.wake.L = &d.mu
	a.d = d
	go d.write()
	go d.read()
	tr := &http2.Transport{AllowHTTP: true, DialTLSContext: func(context.Context, string, string, *tls.Config) (net.Conn, error) { return near, nil }}
	cc, err := tr.NewClientConn(near)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		near.Close()
		far.Close()
		<-d.done
	})
	return cc, a
}

func get(t testing.TB, cc *http2.ClientConn, method, path string, body io.Reader) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://x.example"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := cc.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, got
}

func TestServer(t *testing.T) {
	cc, a := serve(t, Config{})
	resp, body := get(t, cc, "GET", "/", nil)
	if resp.StatusCode != 200 || len(body) != 0 || resp.Header.Get("X-Method") != "GET" {
		t.Errorf("%v %q", resp, body)
	}
	resp, body = get(t, cc, "HEAD", "/head", nil)
	if resp.ContentLength != 12345 || len(body) != 0 {
		t.Errorf("HEAD: %v %q", resp, body)
	}
	for _, n := range []int{1, 16384, 100_000, 3 << 20} {
		_, body = get(t, cc, "GET", "/big?"+strconv.Itoa(n), nil)
		if !bytes.Equal(body, pattern(n)) {
			t.Errorf("big: %d bytes of %d, or wrong ones", len(body), n)
		}
		resp, body = get(t, cc, "POST", "/echo", bytes.NewReader(pattern(n)))
		if !bytes.Equal(body, pattern(n)) || resp.Trailer.Get("X-Trailer") != "yes" {
			t.Errorf("echo: %d bytes of %d, or wrong ones, trailers %v", len(body), n, resp.Trailer)
		}
	}
	hints := 0
	trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		if code != 103 || h.Get("Link") != "</a>" {
			t.Errorf("interim %d %v", code, h)
		}
		hints++
		return nil
	}}
	req, _ := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), "GET", "http://x/hints", nil)
	if resp, err := cc.RoundTrip(req); err != nil || resp.StatusCode != 200 || hints != 1 {
		t.Errorf("hints: %v %v, %d", resp, err, hints)
	}
	// The rest of an upload that nobody reads is not waited for.
	resp, _ = get(t, cc, "POST", "/early", bytes.NewReader(pattern(2<<20)))
	if resp.StatusCode != 403 {
		t.Errorf("early: %v", resp)
	}
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			n := 1000 + 200*i
			if _, body := get(t, cc, "POST", "/echo", bytes.NewReader(pattern(n))); !bytes.Equal(body, pattern(n)) {
				t.Errorf("%d of %d bytes", len(body), n)
			}
		})
	}
	wg.Wait()
	a.d.do(func() {
		if n := a.d.c.OpenStreams(); n != 0 {
			t.Errorf("%d streams left", n)
		}
	})
}

func TestServerHeads(t *testing.T) {
	cc, _ := serve(t, Config{})
	request := func(edit func(h http.Header)) (*http.Response, error) {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://x/echo", strings.NewReader("a"))
		edit(req.Header)
		return cc.RoundTrip(req)
	}
	// A head of several CONTINUATION frames comes and goes.
	long := strings.Repeat("0123456789", 4000)
	resp, err := request(func(h http.Header) {
		h.Set("X-Long", long)
		h.Add("X-Two", "1")
		h.Add("X-Two", "2")
		h.Set("Te", "trailers")
		h.Set("Expect", "100-continue")
		h.Add("Cookie", "a=b; c=d")
	})
	if err != nil {
		t.Fatal(err)
	}
	if h := resp.Header; h.Get("X-Long") != long || fmt.Sprint(h["X-Two"]) != "[1 2]" || h.Get("Te") != "trailers" || h.Get("Cookie") != "a=b; c=d" {
		t.Errorf("%.200v", h)
	}
	// The second time HPACK's table has them.
	for range 2 {
		resp, err = request(func(h http.Header) { h.Set("Authorization", "secret"); h.Set("X-Repeated", "again") })
		if err != nil || resp.Header.Get("X-Repeated") != "again" || resp.Header.Get("Authorization") != "secret" {
			t.Errorf("%v %v", resp, err)
		}
	}
	many := func(h http.Header) {
		for i := range 3000 {
			h.Set("X-"+strconv.Itoa(i), "a")
		}
	}
	if resp, err = request(many); err == nil && resp.StatusCode != 431 || err != nil && !strings.Contains(err.Error(), "header list") {
		t.Errorf("too many fields: %v %v", resp, err)
	}
	if resp, err = request(func(h http.Header) { h.Set("A", "b") }); err != nil || resp.StatusCode != 200 {
		t.Errorf("after that: %v %v", resp, err)
	}
}

func TestServerCancel(t *testing.T) {
	cc, a := serve(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://x/park", nil)
	go func() {
		<-a.started
		cancel()
	}()
	if _, err := cc.RoundTrip(req); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if ev := <-a.resets; ev.Code != Cancel {
		t.Errorf("%+v", ev)
	}
	if err := cc.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// Shutdown lets what runs come to its end, and the client hears of it.
func TestServerShutdown(t *testing.T) {
	cc, a := serve(t, Config{})
	result := make(chan error, 1)
	go func() {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://x/park", nil)
		resp, err := cc.RoundTrip(req)
		if err == nil && resp.StatusCode != 200 {
			err = fmt.Errorf("status %d", resp.StatusCode)
		}
		result <- err
	}()
	id := <-a.started
	a.d.do(a.d.c.Shutdown)
	a.d.do(func() { must(a.d.c.WriteHeaders(id, &message.Head{Status: 200, ContentLength: -1}, true)) })
	if err := <-result; err != nil {
		t.Error(err)
	}
	<-a.d.done // the driver closes when the engine is Done and all is sent
	if cc.CanTakeNewRequest() {
		t.Error("the client did not see GOAWAY")
	}
}

// client is our engine as a client of a net/http server.
type client struct {
	d       *driver
	changed sync.Cond
	streams map[uint32]*exchange
}

type exchange struct {
	interim  []int
	head     message.Head
	body     []byte
	trailers map[string]string
	end      bool
	reset    *Event
	out      []byte
	outEnd   bool
	lazy     bool // does not consume
}

func dial(t testing.TB, cfg Config, handler http.Handler) *client {
	t.Helper()
	near, far := sockets(t)
	served := make(chan struct{})
	go func() {
		(&http2.Server{MaxConcurrentStreams: 50}).ServeConn(far, &http2.ServeConnOpts{Handler: handler})
		close(served)
	}()
	c := &client{streams: map[uint32]*exchange{}}
	d := &driver{c: NewClient(cfg), conn: near, done: make(chan struct{})}
	d.wake.L, c.changed.L = &d.mu, &d.mu
	d.handle, c.d = c.handle, d
	go d.write()
	go d.read()
	t.Cleanup(func() {
		near.Close()
		far.Close()
		<-d.done
		<-served
	})
	return c
}

func (c *client) push(id uint32, x *exchange) {
	n, err := c.d.c.WriteData(id, x.out, x.outEnd)
	if err != nil {
		return
	}
	x.out = x.out[n:]
}

func (c *client) handle(ev Event) {
	x := c.streams[ev.Stream]
	switch ev.Kind {
	case Headers:
		if h := c.d.c.Head(); h.Status < 200 {
			x.interim = append(x.interim, h.Status)
		} else {
			h.Clone(&x.head, nil)
		}
	case Data:
		x.body = append(x.body, ev.Data...)
		if !x.lazy {
			c.d.c.Consumed(ev.Stream, len(ev.Data))
		}
	case Trailers:
		x.trailers = map[string]string{}
		for _, f := range c.d.c.Trailers() {
			x.trailers[string(f.Name)] = string(f.Value)
		}
	case Writable:
		c.push(ev.Stream, x)
	case Reset:
		x.reset = &ev
	}
	if ev.End {
		x.end = true
	}
	c.changed.Broadcast()
}

// do sends a request when the limit allows and waits for its end.
func (c *client) do(method, path string, body []byte, fields ...message.Field) (*exchange, error) {
	x := &exchange{out: body, outEnd: true}
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	for c.d.c.CanOpen() == 0 {
		if c.d.closed || c.d.c.Done() {
			return x, ErrConn
		}
		c.changed.Wait()
	}
	h := &message.Head{Method: []byte(method), Scheme: []byte("http"), Authority: []byte("x.example"), Path: []byte(path), Fields: fields, ContentLength: -1}
	id, err := c.d.c.OpenStream(h, len(body) == 0)
	if err != nil {
		return x, err
	}
	c.streams[id] = x
	if len(body) > 0 {
		c.push(id, x)
	}
	c.d.pump(nil)
	for !x.end && x.reset == nil {
		c.changed.Wait()
	}
	return x, nil
}

func TestClient(t *testing.T) {
	big := pattern(400 << 10)
	handler := http.NewServeMux()
	handler.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Set("X-Host", r.Host)
		w.Header().Set("X-A", strings.Join(r.Header["X-A"], "+"))
		n, _ := io.Copy(w, r.Body)
		w.Header().Set("X-Sum", strconv.FormatInt(n, 10))
	})
	handler.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) { w.Write(big) })
	handler.HandleFunc("/hints", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(103)
		w.WriteHeader(204)
	})
	handler.HandleFunc("/abort", func(w http.ResponseWriter, r *http.Request) {
		w.Write(big[:100])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	c := dial(t, Config{}, handler)
	two := []message.Field{field([]byte("x-a"), []byte("1")), field([]byte("x-a"), []byte("2"))}
	x, err := c.do("GET", "/echo", nil, two...)
	if err != nil || x.head.Status != 200 || len(x.body) != 0 {
		t.Fatal(x, err)
	}
	if v, _ := x.head.Get("x-host"); string(v) != "x.example" {
		t.Errorf("host %q", v)
	}
	if v, _ := x.head.Get("x-a"); string(v) != "1+2" {
		t.Errorf("x-a %q", v)
	}
	for _, n := range []int{1, 65535, 65536, 2 << 20} {
		if x, err := c.do("POST", "/echo", pattern(n)); err != nil || !bytes.Equal(x.body, pattern(n)) || x.trailers["x-sum"] != strconv.Itoa(n) {
			t.Errorf("%d of %d bytes, trailers %v, %v", len(x.body), n, x.trailers, err)
		}
	}
	if x, err := c.do("HEAD", "/big", nil); err != nil || len(x.body) != 0 || x.head.Status != 200 {
		t.Error(x, err)
	}
	if x, err := c.do("GET", "/hints", nil); err != nil || fmt.Sprint(x.interim) != "[103]" || x.head.Status != 204 {
		t.Error(x, err)
	}
	if x, err := c.do("GET", "/abort", nil); err != nil || x.reset == nil || x.reset.Code != InternalError {
		t.Error(x.reset, err)
	}
	var wg sync.WaitGroup
	for range 120 { // the server allows 50
		wg.Go(func() {
			if x, err := c.do("GET", "/big", nil); err != nil || !bytes.Equal(x.body, big) {
				t.Errorf("%d bytes, %v", len(x.body), err)
			}
		})
	}
	wg.Wait()
	c.d.do(func() {
		if n := c.d.c.OpenStreams(); n != 0 {
			t.Errorf("%d streams left", n)
		}
	})
}

// A stream that nobody reads stops at its window and does not stop the others.
func TestClientSlowStream(t *testing.T) {
	body := pattern(1 << 20)
	c := dial(t, Config{InitialWindow: 100_000, ConnWindow: 300_000}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(body) }))
	slow := &exchange{lazy: true}
	var id uint32
	c.d.do(func() {
		h := &message.Head{Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte("x"), Path: []byte("/"), ContentLength: -1}
		var err error
		id, err = c.d.c.OpenStream(h, true)
		must(err)
		c.streams[id] = slow
	})
	c.d.mu.Lock()
	for len(slow.body) < 100_000 {
		c.changed.Wait()
	}
	c.d.mu.Unlock()
	for range 3 {
		if x, err := c.do("GET", "/", nil); err != nil || !bytes.Equal(x.body, body) {
			t.Fatalf("%d bytes, %v", len(x.body), err)
		}
	}
	c.d.mu.Lock()
	if len(slow.body) != 100_000 || slow.end {
		t.Errorf("%d bytes of the slow stream", len(slow.body))
	}
	slow.lazy = false
	c.d.c.Consumed(id, 100_000)
	c.d.pump(nil)
	for !slow.end {
		c.changed.Wait()
	}
	if !bytes.Equal(slow.body, body) {
		t.Error("wrong body")
	}
	c.d.mu.Unlock()
}

// A tunnel, as HBONE uses it.
func TestClientConnect(t *testing.T) {
	c := dial(t, Config{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "CONNECT" || r.Host != "10.0.0.1:8080" {
			t.Errorf("%s %s", r.Method, r.Host)
		}
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			w.Write(bytes.ToUpper(buf[:n]))
			w.(http.Flusher).Flush()
			if err != nil {
				return
			}
		}
	}))
	x := &exchange{}
	var id uint32
	c.d.do(func() {
		var err error
		id, err = c.d.c.OpenStream(&message.Head{Method: []byte("CONNECT"), Authority: []byte("10.0.0.1:8080"), ContentLength: -1}, false)
		must(err)
		c.streams[id] = x
		if n, err := c.d.c.WriteData(id, []byte("hello"), false); n != 5 || err != nil {
			t.Error(n, err)
		}
	})
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	for string(x.body) != "HELLO" {
		c.changed.Wait()
	}
	if _, err := c.d.c.WriteData(id, []byte("!"), true); err != nil {
		t.Error(err)
	}
	c.d.pump(nil)
	for !x.end {
		c.changed.Wait()
	}
	if string(x.body) != "HELLO!" || x.head.Status != 200 {
		t.Errorf("%q %d", x.body, x.head.Status)
	}
}
