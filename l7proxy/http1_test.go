package l7proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// TestHalfClose: a client that ends its direction behind its requests gets all their
// responses, whichever protocol the endpoint speaks, and the end of the connection.
func TestHalfClose(t *testing.T) {
	for _, up := range []speaker{h1, h2} {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s late=%v", up, late), func(t *testing.T) {
				l := newLab(t)
				begun, release := make(chan struct{}, 10), make(chan struct{})
				l.serve(h1, up, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					begun <- struct{}{}
					<-release
					b, err := io.ReadAll(r.Body)
					if err != nil {
						return
					}
					fmt.Fprintf(w, "%s %d", r.URL.Path, len(b))
				}))
				c := dial(t, l.outbound(vip))
				if late { // the end comes while the first response is awaited
					io.WriteString(c, "GET /1 HTTP/1.1\r\nHost: web\r\n\r\n")
					<-begun
				} else {
					io.WriteString(c, "GET /1 HTTP/1.1\r\nHost: web\r\n\r\n")
				}
				fmt.Fprintf(c, "POST /2 HTTP/1.1\r\nHost: web\r\nContent-Length: 4000\r\n\r\n%s", strings.Repeat("x", 4000))
				io.WriteString(c, "GET /3 HTTP/1.1\r\nHost: web\r\n\r\n")
				c.CloseWrite()
				if !late {
					<-begun
				}
				close(release)
				br := bufio.NewReader(c)
				wantResponse(t, br, 200, "/1 0")
				wantResponse(t, br, 200, "/2 4000")
				wantResponse(t, br, 200, "/3 0")
				if b, err := io.ReadAll(br); err != nil || len(b) > 0 {
					t.Errorf("then %q %v", b, err)
				}
				for range 3 {
					if f := l.flow("http", func(f *flow.Flow) bool { return f.Type == flow.TypeHTTP }); f.Reason != flow.ReasonNone {
						t.Errorf("%s: %s %s", f.HTTP.Path, f.Reason, f.Detail)
					}
				}
			})
		}
	}
}

// TestHalfCloseOfARefusal: what the proxy answers itself begins with the same bytes.
func TestHalfCloseOfARefusal(t *testing.T) {
	l := newLab(t)
	asked, release := make(chan struct{}), make(chan struct{})
	backend := tcpServer(t, func(c *net.TCPConn) {
		http.ReadRequest(bufio.NewReader(c))
		close(asked)
		<-release
		io.WriteString(c, "nonsense\r\n\r\n")
	})
	l.commit(routed(web(mesh.AppProtocolHTTP, backend), to(webCluster))...)
	c := dial(t, l.outbound(vip))
	io.WriteString(c, "GET / HTTP/1.0\r\nHost: web\r\n\r\n")
	<-asked
	c.CloseWrite()
	// The first bytes come at once: they find out who has closed altogether.
	br := bufio.NewReader(c)
	if b, err := br.Peek(9); err != nil || string(b) != "HTTP/1.1 " {
		t.Fatalf("%q %v", b, err)
	}
	close(release)
	wantResponse(t, br, 502, "sluice: upstream-protocol\n")
}

// TestHalfCloseWithinABody: a request that the client's end cut off is not answered as
// if it were whole, and the endpoint does not see it as whole.
func TestHalfCloseWithinABody(t *testing.T) {
	for _, up := range []speaker{h1, h2} {
		t.Run(string(up), func(t *testing.T) {
			l := newLab(t)
			got := make(chan error, 1)
			l.serve(h1, up, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, err := io.ReadAll(r.Body)
				got <- err
			}))
			c := dial(t, l.outbound(vip))
			io.WriteString(c, "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 10\r\n\r\n12345")
			c.CloseWrite()
			if err := <-got; err == nil {
				t.Error("the endpoint took it for whole")
			}
			if f := l.flow("cut", func(f *flow.Flow) bool { return f.Type == flow.TypeHTTP }); f.Reason != flow.ReasonDownstreamReset {
				t.Errorf("%s %s", f.Reason, f.Detail)
			}
		})
	}
}

// TestClientResets: a client that resets its connection while its request is served has
// the endpoint told, although nothing of it is read at the time.
func TestClientResets(t *testing.T) {
	l := newLab(t)
	begun, gone := make(chan struct{}), make(chan struct{})
	l.serve(h1, h1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
		close(gone)
	}))
	c := dial(t, l.outbound(vip))
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: web\r\n\r\n"+strings.Repeat("GET /next HTTP/1.1\r\nHost: web\r\n\r\n", 2000))
	<-begun
	c.SetLinger(0)
	c.Close()
	<-gone
	l.flow("reset", func(f *flow.Flow) bool { return f.Reason == flow.ReasonDownstreamReset && f.HTTP.Path == "/" })
}

// TestInterimResponses: 103 (Early Hints) and 102 reach the client before the final
// response, in all pairings, with their fields; a client of HTTP/1.0 gets none.
func TestInterimResponses(t *testing.T) {
	pairings(t, func(t *testing.T, down, up speaker) {
		l := newLab(t)
		seen := make(chan struct{})
		c := l.serve(down, up, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</style.css>; rel=preload")
			w.WriteHeader(103)
			<-seen // not held back until the response
			w.WriteHeader(102)
			w.Header().Set("X-Last", "yes")
			io.WriteString(w, "final")
		}))
		var hints []string
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				if hints = append(hints, fmt.Sprint(code, h.Get("Link"))); code == 103 {
					close(seen)
				}
				return nil
			},
		})
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://web/", nil)
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if b, _ := io.ReadAll(res.Body); string(b) != "final" || res.Header.Get("X-Last") != "yes" ||
			len(hints) != 2 || hints[0] != "103</style.css>; rel=preload" || !strings.HasPrefix(hints[1], "102") {
			t.Errorf("%q %v, hints %q", b, res.Header, hints)
		}
	})
	l := newLab(t)
	l.serve(h1, h1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(103); io.WriteString(w, "final") }))
	conn := dial(t, l.outbound(vip))
	io.WriteString(conn, "GET / HTTP/1.0\r\nHost: web\r\n\r\n")
	wantResponse(t, bufio.NewReader(conn), 200, "final")
}

// TestExpectations: Expect: 100-continue goes end to end. The endpoint's 100 comes
// before the body is sent; a refusal comes instead of it, and then no body has to be
// sent; a client that does not wait is served too; any other expectation is 417.
func TestExpectations(t *testing.T) {
	pairings(t, func(t *testing.T, down, up speaker) {
		l := newLab(t)
		var bodies atomic.Int32
		c := l.serve(down, up, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if up == h1 && r.Header.Get("Expect") != "100-continue" { // net/http's HTTP/2 hides it
				w.WriteHeader(400)
				return
			}
			if r.URL.Path == "/no" {
				w.WriteHeader(417)
				return
			}
			b, _ := io.ReadAll(r.Body)
			w.Write(b)
		}))
		tr := c.Transport.(*http.Transport)
		tr.ExpectContinueTimeout = patience // no body before a 100
		do := func(path string) (*http.Response, string) {
			req, _ := http.NewRequest("POST", "http://web"+path, &countingReader{r: strings.NewReader("body"), n: &bodies})
			req.ContentLength = 4
			req.Header.Set("Expect", "100-continue")
			res, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			b, _ := io.ReadAll(res.Body)
			return res, string(b)
		}
		if res, body := do("/yes"); res.StatusCode != 200 || body != "body" {
			t.Errorf("%d %q", res.StatusCode, body)
		}
		bodies.Store(0)
		if res, _ := do("/no"); res.StatusCode != 417 || bodies.Load() != 0 {
			t.Errorf("refused: %d, %d reads of the body", res.StatusCode, bodies.Load())
		}
		if res, body := do("/yes"); res.StatusCode != 200 || body != "body" {
			t.Errorf("afterwards: %d %q", res.StatusCode, body)
		}
	})
	l := newLab(t)
	l.serve(h1, h1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))
	conn := dial(t, l.outbound(vip))
	br := bufio.NewReader(conn)
	io.WriteString(conn, "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nbody")
	res, err := http.ReadResponse(br, nil)
	if err == nil && res.StatusCode == 100 {
		res, err = http.ReadResponse(br, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(res.Body); res.StatusCode != 200 || string(b) != "body" {
		t.Errorf("a client that does not wait: %d %q", res.StatusCode, b)
	}
	conn = dial(t, l.outbound(vip))
	io.WriteString(conn, "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\nExpect: tea\r\n\r\nbody")
	wantResponse(t, bufio.NewReader(conn), 417, "sluice: downstream-protocol\n")
}

type countingReader struct {
	r io.Reader
	n *atomic.Int32
}

func (c *countingReader) Read(p []byte) (int, error) { c.n.Add(1); return c.r.Read(p) }

// TestTrailers: trailers pass both ways, whichever version carries them.
func TestTrailers(t *testing.T) {
	pairings(t, func(t *testing.T, down, up speaker) {
		l := newLab(t)
		c := l.serve(down, up, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			w.Header().Set("Trailer", "X-Back")
			fmt.Fprintf(w, "%s %s", b, r.Trailer.Get("X-There"))
			if r.URL.Path == "/unannounced" {
				w.(http.Flusher).Flush() // no content-length, and so room for any
				w.Header().Set(http.TrailerPrefix+"X-Unannounced", "too")
			}
			w.Header().Set("X-Back", "back")
		}))
		for _, path := range []string{"/", "/unannounced"} {
			req, _ := http.NewRequest("POST", "http://web"+path, strings.NewReader("body"))
			req.Trailer = http.Header{"X-There": {"there"}}
			req.ContentLength = -1
			if down == h2 {
				req.ContentLength = 4
			}
			res, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || string(b) != "body there" || res.Trailer.Get("X-Back") != "back" ||
				path == "/unannounced" && res.Trailer.Get("X-Unannounced") != "too" {
				t.Errorf("%s: %q %v %v", path, b, res.Trailer, err)
			}
		}
	})
}

// TestBodiless: responses to HEAD, and 204 and 304, have no body whatever their fields
// say, and the connection goes on behind them.
func TestBodiless(t *testing.T) {
	for _, down := range []speaker{h1, h2} {
		t.Run(string(down), func(t *testing.T) {
			l := newLab(t)
			backend := tcpServer(t, func(c *net.TCPConn) {
				br := bufio.NewReader(c)
				for {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					switch r.URL.Path {
					case "/head":
						io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
					case "/head-chunked":
						io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
					case "/204":
						io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
					case "/304":
						io.WriteString(c, "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: \"x\"\r\n\r\n")
					default:
						io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
					}
				}
			})
			l.commit(routed(web(mesh.AppProtocolHTTP, backend), to(webCluster))...)
			c := down.client(t, l.outbound(vip))
			for _, test := range []struct {
				method, path string
				status       int
				length       int64
			}{
				{"HEAD", "/head", 200, 1000}, {"HEAD", "/head-chunked", 200, -1}, {"GET", "/204", 204, 0}, {"GET", "/304", 304, -2},
			} {
				req, _ := http.NewRequest(test.method, "http://web"+test.path, nil)
				res, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || len(b) > 0 || res.StatusCode != test.status || test.length >= -1 && res.ContentLength != test.length {
					t.Errorf("%s: %d %q, length %d, %v", test.path, res.StatusCode, b, res.ContentLength, err)
				}
				if _, body := get(t, c, "http://web/"); body != "ok" {
					t.Fatalf("behind %s: %q", test.path, body)
				}
			}
			if n := l.metric("sluice_proxy_upstream_connects_total"); n != 1 {
				t.Errorf("%v connections to the endpoint", n)
			}
		})
	}
}

// TestPersistence: who keeps a connection, and who ends it (RFC 9112 §9.3).
func TestPersistence(t *testing.T) {
	l := newLab(t)
	l.serve(h1, h1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }))
	addr := l.outbound(vip)
	for _, test := range []struct {
		request    string
		connection string // of the response
		stays      bool
	}{
		{"GET / HTTP/1.1\r\nHost: web\r\n\r\n", "", true},
		{"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n", "close", false},
		{"GET / HTTP/1.0\r\nHost: web\r\n\r\n", "close", false},
		{"GET / HTTP/1.0\r\nHost: web\r\nConnection: keep-alive\r\n\r\n", "keep-alive", true},
	} {
		c := dial(t, addr)
		io.WriteString(c, test.request)
		br := bufio.NewReader(c)
		line, _ := br.ReadString('\n')
		h, err := textproto.NewReader(br).ReadMIMEHeader()
		if err != nil || line != "HTTP/1.1 200 OK\r\n" || h.Get("Connection") != test.connection {
			t.Errorf("%q: %q %v %v", test.request, line, h, err)
			continue
		}
		io.ReadFull(br, make([]byte, 2))
		if test.stays {
			io.WriteString(c, test.request)
			wantResponse(t, br, 200, "ok")
		} else if b, err := io.ReadAll(br); err != nil || len(b) > 0 {
			t.Errorf("%q: then %q %v", test.request, b, err)
		}
	}
}

// TestChunkExtensions: extensions of chunks are hop by hop and dropped; their content
// is not.
func TestChunkExtensions(t *testing.T) {
	l := newLab(t)
	got := make(chan string, 1)
	backend := tcpServer(t, func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		for {
			line, err := br.ReadString('\n')
			if err != nil || line == "\r\n" {
				break
			}
		}
		var raw strings.Builder
		for !strings.HasSuffix(raw.String(), "0\r\n\r\n") {
			b, err := br.ReadByte()
			if err != nil {
				break
			}
			raw.WriteByte(b)
		}
		got <- raw.String()
		io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b;c=\"d;e\"\r\nok\r\n0;last\r\n\r\n")
		io.Copy(io.Discard, c)
	})
	l.commit(routed(web(mesh.AppProtocolHTTP, backend), to(webCluster))...)
	c := dial(t, l.outbound(vip))
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n5;x=\"y\";z\r\nhello\r\n0;q\r\n\r\n")
	wantResponse(t, bufio.NewReader(c), 200, "ok")
	if raw := <-got; raw != "5\r\nhello\r\n0\r\n\r\n" {
		t.Errorf("the endpoint got %q", raw)
	}
}

// TestPipelining: responses come in the order of the requests, bodies and refusals
// among them, and none is lost on the endpoint's connections.
func TestPipelining(t *testing.T) {
	for _, up := range []speaker{h1, h2} {
		t.Run(string(up), func(t *testing.T) {
			l := newLab(t)
			var calls atomic.Int32
			rule := to(webCluster)
			rule.Match = mesh.Match{PathKind: mesh.MatchPrefix, Path: "/to"}
			l.serve(h1, up, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				b, _ := io.ReadAll(r.Body)
				fmt.Fprintf(w, "%s %d", r.URL.Path, len(b))
			}), rule)
			c := dial(t, l.outbound(vip))
			const n = 300
			go func() {
				w := bufio.NewWriter(c)
				for i := range n {
					switch i % 3 {
					case 0:
						fmt.Fprintf(w, "GET /to/%d HTTP/1.1\r\nHost: web\r\n\r\n", i)
					case 1:
						fmt.Fprintf(w, "POST /to/%d HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n%s", i, i*10, strings.Repeat("x", i*10))
					case 2:
						fmt.Fprintf(w, "PUT /elsewhere HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
					}
				}
				w.Flush()
			}()
			br := bufio.NewReader(c)
			for i := range n {
				switch i % 3 {
				case 0:
					wantResponse(t, br, 200, fmt.Sprintf("/to/%d 0", i))
				case 1:
					wantResponse(t, br, 200, fmt.Sprintf("/to/%d %d", i, i*10))
				case 2:
					wantResponse(t, br, 404, "sluice: no-route\n")
				}
			}
			if calls.Load() != 2*n/3 {
				t.Errorf("%d calls", calls.Load())
			}
		})
	}
}

// TestEarlyResponseKeepsOrder: an endpoint answers before the request's body is there.
// The client gets the response at once. If it then sends the rest of the body, little
// as it is, its connection goes on, and the endpoint's, on which a half request
// stands, does not.
func TestEarlyResponseKeepsOrder(t *testing.T) {
	l := newLab(t)
	var conns atomic.Int32
	backend := tcpServer(t, func(c *net.TCPConn) {
		conns.Add(1)
		br := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			if r.URL.Path == "/early" {
				io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
			} else {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return
			}
		}
	})
	l.commit(routed(web(mesh.AppProtocolHTTP, backend), to(webCluster))...)
	c := dial(t, l.outbound(vip))
	br := bufio.NewReader(c)
	io.WriteString(c, "POST /early HTTP/1.1\r\nHost: web\r\nContent-Length: 10\r\n\r\n12345")
	wantResponse(t, br, 403, "no")
	io.WriteString(c, "67890GET / HTTP/1.1\r\nHost: web\r\n\r\n")
	wantResponse(t, br, 200, "ok")
	if n := conns.Load(); n != 2 || l.metric("sluice_proxy_repeats_total") != 0 {
		t.Errorf("%d connections to the endpoint, %v repeats", n, l.metric("sluice_proxy_repeats_total"))
	}
	// More than the proxy wants to throw away ends the connection, behind the response.
	io.WriteString(c, "POST /early HTTP/1.1\r\nHost: web\r\nContent-Length: 100000000\r\n\r\n12345")
	wantResponse(t, br, 403, "no")
	piece := make([]byte, 64<<10)
	sent := 0
	for err := error(nil); err == nil && sent < 100_000_000; sent += len(piece) {
		_, err = c.Write(piece)
	}
	if sent >= 100_000_000 {
		t.Error("all of it was taken")
	}
}

// TestUpgrades: any protocol can be switched to; what either side sends right behind
// the switch reaches the other; a refused upgrade is an ordinary exchange, and the
// connections go on.
func TestUpgrades(t *testing.T) {
	l := newLab(t)
	backend := tcpServer(t, func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			if r.Header.Get("Upgrade") != "chat/2" {
				io.WriteString(c, "HTTP/1.1 426 Upgrade Required\r\nUpgrade: chat/2\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\nno")
				continue
			}
			// Banner and switch in one segment.
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat/2\r\n\r\nbanner")
			io.Copy(c, br)
			return
		}
	})
	l.commit(routed(web(mesh.AppProtocolHTTP, backend), to(webCluster))...)
	c := dial(t, l.outbound(vip))
	br := bufio.NewReader(c)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n")
	if res := wantResponse(t, br, 426, "no"); res.Header.Get("Upgrade") != "chat/2" {
		t.Errorf("%v", res.Header)
	}
	// Data sent right behind the request, before the switch is known.
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: chat/2\r\n\r\nahead")
	res, err := http.ReadResponse(br, nil)
	if err != nil || res.StatusCode != 101 || res.Header.Get("Upgrade") != "chat/2" {
		t.Fatalf("%v %v", res, err)
	}
	got := make([]byte, len("bannerahead"))
	if _, err := io.ReadFull(br, got); err != nil || string(got) != "bannerahead" {
		t.Fatalf("%q %v", got, err)
	}
	io.WriteString(c, "half")
	c.CloseWrite()
	if b, err := io.ReadAll(br); err != nil || string(b) != "half" {
		t.Errorf("%q %v", b, err)
	}
	if n := l.metric("sluice_proxy_upstream_connects_total"); n != 1 {
		t.Errorf("%v connections", n)
	}
}
