package l7proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// TestRepeatOnPooledConnection has one of two endpoints end its connections when
// it is asked a second time: the request is repeated on a connection to the other
// that is in the pool already.
func TestRepeatOnPooledConnection(t *testing.T) {
	l := newLab(t)
	var dead atomic.Bool
	answer := func(mortal bool) func(c *net.TCPConn) {
		return func(c *net.TCPConn) {
			br := bufio.NewReader(c)
			for {
				if _, err := http.ReadRequest(br); err != nil || mortal && dead.Load() {
					return
				}
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		}
	}
	good, bad := tcpServer(t, answer(false)), tcpServer(t, answer(true))
	for range 20 {
		dead.Store(false)
		l.commit(routed(web("http", good, bad), to(webCluster))...)
		for range 8 { // both have a connection in the pool now
			c := h1client(t, l.outbound(vip))
			if res, body := get(t, c, "http://web/"); res.StatusCode != 200 || body != "ok" {
				t.Fatalf("%d %q", res.StatusCode, body)
			}
		}
		dead.Store(true)
		for range 8 {
			c := h1client(t, l.outbound(vip))
			if res, body := get(t, c, "http://web/"); res.StatusCode != 200 || body != "ok" {
				t.Fatalf("after it died: %d %q", res.StatusCode, body)
			}
		}
	}
}

// hold stops the proxy's only loop until the function that it returns is called.
func (l *lab) hold() (release func()) {
	l.t.Helper()
	held, gate := make(chan struct{}), make(chan struct{})
	l.proxy.workers[0].loop.Post(func() { close(held); <-gate })
	<-held
	return func() { close(gate) }
}

// post sends a small POST on an HTTP/1.1 connection.
func post(t testing.TB, c net.Conn, path string) {
	t.Helper()
	if _, err := io.WriteString(c, "POST "+path+" HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nbody"); err != nil {
		t.Fatal(err)
	}
}

// wantResponse reads a response and wants its status and body.
func wantResponse(t testing.TB, br *bufio.Reader, status int, body string) *http.Response {
	t.Helper()
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != status || string(b) != body {
		t.Fatalf("%d %v %q %v, want %d %q", res.StatusCode, res.Header, b, err, status, body)
	}
	return res
}

// TestPooledConnectionClosedAtOnce has the endpoint close the pooled connection in the
// very moment in which the next request arrives: one that must not be repeated is not
// lost on it, because nothing was sent there.
func TestPooledConnectionClosedAtOnce(t *testing.T) {
	for _, how := range []string{"fin", "reset"} {
		t.Run(how, func(t *testing.T) {
			l := newLab(t)
			end, ended := make(chan struct{}), make(chan struct{})
			var conns atomic.Int32
			backend := tcpServer(t, func(c *net.TCPConn) {
				first := conns.Add(1) == 1
				br := bufio.NewReader(c)
				for {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					io.Copy(io.Discard, r.Body)
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
					if first {
						<-end
						if how == "reset" {
							c.SetLinger(0)
						}
						c.Close()
						close(ended)
						return
					}
				}
			})
			l.commit(routed(web(mesh.AppProtocolHTTP, backend), to(webCluster))...)
			c := dial(t, l.outbound(vip))
			br := bufio.NewReader(c)
			post(t, c, "/1")
			wantResponse(t, br, 200, "ok")
			release := l.hold()
			post(t, c, "/2")
			close(end)
			<-ended
			release()
			wantResponse(t, br, 200, "ok")
			if n := conns.Load(); n != 2 {
				t.Errorf("%d connections", n)
			}
			if n := l.metric("sluice_proxy_repeats_total"); n != 0 {
				t.Errorf("%v repeats: the dead connection was used", n)
			}
		})
	}
}

// TestUnsentIsRepeated has the endpoint reset a connection after it went back to the
// pool and before the next request is written, all in one round of the loop: writing
// fails, so that any request may be repeated, also at the only endpoint.
func TestUnsentIsRepeated(t *testing.T) {
	reporting, goOn := make(chan struct{}), make(chan struct{})
	reported := false
	l := newLab(t, func(c *Config) {
		c.Flows = func(*flow.Flow) {
			if !reported { // the loop stands still in the first exchange's record
				reported = true
				close(reporting)
				<-goOn
			}
		}
	})
	asked, answer, answered, end, ended := make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})
	var conns atomic.Int32
	backend := tcpServer(t, func(c *net.TCPConn) {
		mortal := conns.Add(1) == 1
		br := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			b, _ := io.ReadAll(r.Body)
			if mortal {
				close(asked)
				<-answer
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"+string(b))
			if mortal {
				close(answered)
				<-end
				c.SetLinger(0)
				c.Close()
				close(ended)
				return
			}
		}
	})
	l.commit(routed(web(mesh.AppProtocolHTTP, backend), to(webCluster))...)
	addr := l.outbound(vip)
	a, b := dial(t, addr), dial(t, addr)
	post(t, a, "/a")
	<-asked
	// The answer to a and the request of b come in the same round, in this order.
	release := l.hold()
	close(answer)
	<-answered
	post(t, b, "/b")
	release()
	<-reporting
	close(end)
	<-ended
	close(goOn)
	wantResponse(t, bufio.NewReader(a), 200, "body")
	wantResponse(t, bufio.NewReader(b), 200, "body")
	if n := l.metric("sluice_proxy_repeats_total"); n != 1 || conns.Load() != 2 {
		t.Errorf("%v repeats, %d connections", n, conns.Load())
	}
}

// TestIdle408: an endpoint that gave up waiting on a pooled connection says 408 there,
// which crosses the next request and is no answer to it (RFC 9110 §15.5.9).
func TestIdle408(t *testing.T) {
	l := newLab(t)
	var conns atomic.Int32
	backend := tcpServer(t, func(c *net.TCPConn) {
		conns.Add(1)
		br := bufio.NewReader(c)
		for n := 0; ; n++ {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			if n == 1 || r.URL.Path == "/slow" {
				io.WriteString(c, "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 4\r\n\r\nslow")
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	l.commit(routed(web(mesh.AppProtocolHTTP, backend), to(webCluster))...)
	c := h1client(t, l.outbound(vip))
	for range 3 {
		if res, body := get(t, c, "http://web/"); res.StatusCode != 200 || body != "ok" {
			t.Fatalf("%d %q", res.StatusCode, body)
		}
	}
	if n := l.metric("sluice_proxy_repeats_total"); n != 2 || conns.Load() != 3 {
		t.Errorf("%v repeats, %d connections", n, conns.Load())
	}
	// One that is not idempotent gets it: nobody knows what the endpoint has seen.
	res, err := c.Post("http://web/", "", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 408 {
		t.Errorf("POST: %d", res.StatusCode)
	}
	// On a fresh connection it is the answer.
	if res, body := get(t, c, "http://web/slow"); res.StatusCode != 408 || body != "slow" {
		t.Errorf("fresh: %d %q", res.StatusCode, body)
	}
}

// TestGoAwayRepeats: streams that an HTTP/2 endpoint's GOAWAY leaves out, or that it
// refuses, go to another connection, also to the only endpoint and whatever their
// method (RFC 9113 §6.8, §8.7); one that it has acted on does not.
func TestGoAwayRepeats(t *testing.T) {
	for _, test := range []struct {
		name   string
		method string
		end    func(fr *http2.Framer, id uint32)
		status int
	}{
		{"left out", "POST", func(fr *http2.Framer, id uint32) { fr.WriteGoAway(id-2, http2.ErrCodeNo, nil) }, 200},
		{"refused", "POST", func(fr *http2.Framer, id uint32) { fr.WriteRSTStream(id, http2.ErrCodeRefusedStream) }, 200},
		{"acted on, and lost", "POST", func(fr *http2.Framer, id uint32) { fr.WriteGoAway(id, http2.ErrCodeInternal, nil) }, 502},
		{"idempotent, and lost", "PUT", func(fr *http2.Framer, id uint32) { fr.WriteGoAway(id, http2.ErrCodeInternal, nil) }, 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLab(t)
			var conns atomic.Int32
			backend := tcpServer(t, func(c *net.TCPConn) {
				mortal := conns.Add(1) == 1
				io.ReadFull(c, make([]byte, len(http2.ClientPreface)))
				fr := http2.NewFramer(c, c)
				fr.WriteSettings()
				for {
					f, err := fr.ReadFrame()
					if err != nil {
						return
					}
					if h, ok := f.(*http2.HeadersFrame); ok && mortal && h.StreamID == 3 {
						test.end(fr, 3)
						if test.name != "refused" {
							c.CloseWrite() // all is said: what was acted on ends with it
							io.Copy(io.Discard, c)
							return
						}
						continue
					}
					if f.Header().Flags.Has(http2.FlagDataEndStream) && (f.Header().Type == http2.FrameData || f.Header().Type == http2.FrameHeaders) &&
						!(mortal && f.Header().StreamID == 3) {
						fr.WriteHeaders(http2.HeadersFrameParam{StreamID: f.Header().StreamID, BlockFragment: []byte{0x88}, EndHeaders: true, EndStream: true})
					}
				}
			})
			l.commit(routed(web(mesh.AppProtocolHTTP2, backend), to(webCluster))...)
			l.commit(cluster(webCluster, mesh.AppProtocolHTTP2))
			c := h1client(t, l.outbound(vip))
			get(t, c, "http://web/")
			req, _ := http.NewRequest(test.method, "http://web/", strings.NewReader("body"))
			res, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != test.status {
				t.Errorf("%d %v", res.StatusCode, res.Header)
			}
		})
	}
}
