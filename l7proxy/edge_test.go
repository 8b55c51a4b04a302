package l7proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/l7proxy/loop"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// TestLateHTTP: a client of unknown protocol that is silent for longer than the
// grace, and then speaks HTTP, is routed all the same.
func TestLateHTTP(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits.SniffGrace = time.Millisecond })
	opened := make(chan struct{}, 10)
	quiet := tcpServer(t, func(c *net.TCPConn) { opened <- struct{}{}; io.Copy(io.Discard, c) })
	all := routed(web(mesh.AppProtocolUnknown, quiet), to("shop/other/80"))
	l.commit(all...)
	l.commit(cluster("shop/other/80", ""), clusterEndpoints("shop/other/80", httpServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "routed")
	}))))
	c := dial(t, l.outbound(vip))
	<-opened // the grace is over: the endpoint was asked to speak first
	io.WriteString(c, "GET / HT")
	io.WriteString(c, "TP/1.1\r\nHost: web\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(res.Body); string(b) != "routed" {
		t.Errorf("%d %q", res.StatusCode, b)
	}
}

// TestUnknownProtocolOverRoutes: what is not HTTP goes to the service itself.
func TestUnknownProtocolOverRoutes(t *testing.T) {
	l := newLab(t)
	l.commit(routed(web(mesh.AppProtocolUnknown, tcpServer(t, echo)), to("shop/other/80"))...)
	c := dial(t, l.outbound(vip))
	io.WriteString(c, "\x16\x03\x01 not quite TLS")
	if _, err := io.ReadFull(c, make([]byte, 17)); err != nil {
		t.Error(err)
	}
	c = dial(t, l.outbound(vip))
	io.WriteString(c, "GE") // and the end: no HTTP any more
	c.CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "GE" {
		t.Errorf("%q %v", b, err)
	}
}

// fakeSockets has no socket at first, makes one for each Wait, and counts.
type fakeSockets struct {
	mu    sync.Mutex
	fds   []int
	taken map[mesh.WorkloadIndex]int
	never bool
}

func (s *fakeSockets) Take(w mesh.WorkloadIndex, v6 bool) (int, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.fds) == 0 {
		return -1, false
	}
	fd := s.fds[0]
	s.fds = s.fds[1:]
	s.taken[w]++
	return fd, true
}

func (s *fakeSockets) Wait(w mesh.WorkloadIndex, v6 bool, f func(int, bool)) {
	go func() {
		s.mu.Lock()
		if !s.never {
			fd, err := loop.NewSocket(v6)
			if err == nil {
				// Recognisable by its source address.
				_ = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, byte(w)}})
				s.fds = append(s.fds, fd)
			}
		}
		s.mu.Unlock()
		f(s.Take(w, v6))
	}()
}

// TestSocketsOfTheWorkload: upstream connections are made from sockets of the
// client's namespace, and never shared between workloads.
func TestSocketsOfTheWorkload(t *testing.T) {
	sockets := &fakeSockets{taken: map[mesh.WorkloadIndex]int{}}
	l := newLab(t, func(c *Config) { c.Sockets = sockets })
	backend := httpServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		io.WriteString(w, host)
	}))
	l.commit(routed(web(mesh.AppProtocolHTTP, backend), to(webCluster))...)
	for _, index := range []mesh.WorkloadIndex{7, 8} {
		addr := l.outbound(vip)
		if index != 7 {
			l.proxy.RemoveSocket(Socket{Type: SocketOutbound, Workload: 7, Addr: addr})
			fd, a := listenFD(t)
			l.mu.Lock()
			l.origins[a] = Origin{Dest: vip, Workload: index}
			l.mu.Unlock()
			if err := l.proxy.AddSocket(Socket{FD: fd, Type: SocketOutbound, Workload: index, Addr: a}); err != nil {
				t.Fatal(err)
			}
			addr = a
		}
		c := h1client(t, addr)
		for range 3 {
			if _, body := get(t, c, "http://web/"); body != fmt.Sprintf("127.0.0.%d", index) {
				t.Errorf("workload %d: the endpoint saw %s", index, body)
			}
		}
	}
	sockets.mu.Lock()
	defer sockets.mu.Unlock()
	if sockets.taken[7] != 1 || sockets.taken[8] != 1 {
		t.Errorf("sockets taken: %v", sockets.taken)
	}
}

func TestNoSocketOfTheWorkload(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Sockets = &fakeSockets{never: true} })
	l.commit(routed(web(mesh.AppProtocolHTTP, netip.MustParseAddrPort("127.0.0.1:1")), to(webCluster))...)
	res, _ := get(t, h1client(t, l.outbound(vip)), "http://web/")
	if res.StatusCode != 503 || res.Header.Get("X-Sluice-Reason") != "connect-failed" {
		t.Errorf("%d %v", res.StatusCode, res.Header)
	}
}

// TestOriginOfAnotherWorkload: a record that names another workload than the one
// whose listener took the connection is not believed.
func TestOriginOfAnotherWorkload(t *testing.T) {
	l := newLab(t)
	addr := l.outbound(vip)
	l.mu.Lock()
	l.origins[addr] = Origin{Dest: vip, Workload: 9}
	l.mu.Unlock()
	wantReset(t, addr)
	if f := l.flow("drop", func(f *flow.Flow) bool { return true }); f.Reason != flow.ReasonNoOriginalDestination {
		t.Errorf("flow %+v", f)
	}
}

func TestHTTP10AndClose(t *testing.T) {
	l := newLab(t)
	l.serve(h1, h1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "one ")
		w.(http.Flusher).Flush() // no content-length
		io.WriteString(w, r.Proto)
	}))
	addr := l.outbound(vip)
	for _, request := range []string{
		"GET / HTTP/1.0\r\nHost: web\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n",
	} {
		c := dial(t, addr)
		io.WriteString(c, request)
		b, err := io.ReadAll(c) // the end of the connection comes by itself
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), nil)
		if err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if body, _ := io.ReadAll(res.Body); string(body) != "one HTTP/1.1" {
			t.Errorf("%q", b)
		}
	}
}

// TestUpstreamCloseDelimited: a response that ends with its connection.
func TestUpstreamCloseDelimited(t *testing.T) {
	for _, down := range []speaker{h1, h2} {
		l := newLab(t)
		backend := tcpServer(t, func(c *net.TCPConn) {
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\nuntil the end")
		})
		l.commit(routed(web(mesh.AppProtocolHTTP, backend), to(webCluster))...)
		c := down.client(t, l.outbound(vip))
		for range 3 {
			if res, body := get(t, c, "http://web/"); res.StatusCode != 200 || body != "until the end" {
				t.Errorf("%s: %d %q", down, res.StatusCode, body)
			}
		}
	}
}

// TestUpstreamCutOff: a response that ends too early is not passed off as whole.
func TestUpstreamCutOff(t *testing.T) {
	for _, down := range []speaker{h1, h2} {
		l := newLab(t)
		backend := tcpServer(t, func(c *net.TCPConn) {
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
		})
		l.commit(routed(web(mesh.AppProtocolHTTP, backend), to(webCluster))...)
		res, err := down.client(t, l.outbound(vip)).Get("http://web/")
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(res.Body); err == nil {
			t.Errorf("%s: %q without an error", down, b)
		}
		res.Body.Close()
		f := l.flow("cut", func(f *flow.Flow) bool { return f.Type == flow.TypeHTTP })
		if f.Reason != flow.ReasonUpstreamReset || f.Verdict != flow.VerdictError || f.HTTP.Status != 200 {
			t.Errorf("flow %+v", f)
		}
	}
}

func TestTimeoutsOfConnections(t *testing.T) {
	const short = 20 * time.Millisecond
	t.Run("incomplete head", func(t *testing.T) {
		l := newLab(t, func(c *Config) { c.Limits.HeadTimeout = short })
		l.serve(h1, h1, http.NotFoundHandler())
		c := dial(t, l.outbound(vip))
		io.WriteString(c, "GET / HTTP/1.1\r\nHost:")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || res.StatusCode != 408 || res.Header.Get("X-Sluice-Reason") != "idle-timeout" {
			t.Errorf("%v %v", res, err)
		}
	})
	for _, s := range []speaker{h1, h2} {
		t.Run("idle "+string(s), func(t *testing.T) {
			l := newLab(t, func(c *Config) { c.Limits.IdleTimeout = short })
			c := s.client(t, l.outbound(vip))
			l.serve(s, h1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
			get(t, c, "http://web/")
			for deadline := time.Now().Add(patience); ; {
				conns, err := l.proxy.Snapshot(context.Background())
				if err != nil || time.Now().After(deadline) {
					t.Fatalf("%v %v", conns, err)
				}
				if len(conns) == 0 {
					break
				}
			}
		})
		t.Run("stalled exchange "+string(s), func(t *testing.T) {
			l := newLab(t, func(c *Config) { c.Limits.StreamIdleTimeout = short })
			c := l.serve(s, s, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
			res, _ := get(t, c, "http://web/")
			if res.StatusCode != 504 || res.Header.Get("X-Sluice-Reason") != "idle-timeout" {
				t.Errorf("%d %v", res.StatusCode, res.Header)
			}
		})
	}
	t.Run("tcp", func(t *testing.T) {
		l := newLab(t, func(c *Config) { c.Limits.TCPIdleTimeout = short })
		l.commit(web(mesh.AppProtocolTCP, tcpServer(t, echo))...)
		wantReset(t, l.outbound(vip))
		if f := l.flow("idle", func(f *flow.Flow) bool { return true }); f.Reason != flow.ReasonIdleTimeout {
			t.Errorf("flow %+v", f)
		}
	})
	t.Run("handshake", func(t *testing.T) {
		l := newLab(t, func(c *Config) { c.Limits.HandshakeTimeout = short })
		l.commit(gatewayListener(mesh.Chain{Name: "x", RouteTable: "x"}))
		wantReset(t, l.gateway(edge))
	})
	t.Run("connect", func(t *testing.T) {
		// A backlog that is full answers nobody.
		fd, addr := listenFD(t)
		defer unix.Close(fd)
		unix.Listen(fd, 0)
		for range 2 {
			s, _ := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			defer unix.Close(s)
			unix.Connect(s, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()})
		}
		l := newLab(t, func(c *Config) { c.Limits.ConnectTimeout = short })
		l.commit(routed(web(mesh.AppProtocolHTTP, addr), to(webCluster))...)
		res, _ := get(t, h1client(t, l.outbound(vip)), "http://web/")
		if res.StatusCode != 503 || res.Header.Get("X-Sluice-Reason") != "connect-timeout" {
			t.Errorf("%d %v", res.StatusCode, res.Header)
		}
	})
}

// TestUpstreamGoesAway: an HTTP/2 endpoint that shuts down in good order costs no
// request.
func TestUpstreamGoesAway(t *testing.T) {
	for _, up := range []speaker{h1, h2} {
		t.Run(string(up), func(t *testing.T) {
			l := newLab(t)
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
			serve := func() (*http.Server, netip.AddrPort) {
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				s := &http.Server{Handler: handler, Protocols: new(http.Protocols)}
				s.Protocols.SetHTTP1(true)
				s.Protocols.SetUnencryptedHTTP2(true)
				go s.Serve(ln)
				return s, ln.Addr().(*net.TCPAddr).AddrPort()
			}
			current, addr := serve()
			l.commit(routed(web(up.protocol(), addr), to(webCluster))...)
			l.commit(cluster(webCluster, up.protocol()))
			front := l.outbound(vip)
			stop := make(chan struct{})
			var served atomic.Int64
			var wg sync.WaitGroup
			for i := range 4 {
				c := []speaker{h1, h2}[i%2].client(t, front)
				wg.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						req, _ := http.NewRequest("PUT", "http://web/", strings.NewReader("body"))
						res, err := c.Do(req)
						if err != nil {
							t.Error(err)
							return
						}
						b, _ := io.ReadAll(res.Body)
						res.Body.Close()
						if res.StatusCode != 200 || string(b) != "body" {
							t.Errorf("%d %v %q", res.StatusCode, res.Header, b)
							return
						}
						served.Add(1)
					}
				})
			}
			for range 10 {
				for n := served.Load(); served.Load() < n+20 && !t.Failed(); {
					time.Sleep(100 * time.Microsecond)
				}
				next, addr := serve()
				l.commit(clusterEndpoints(webCluster, addr))
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				if err := current.Shutdown(ctx); err != nil {
					t.Errorf("Shutdown: %v", err)
				}
				cancel()
				current = next
			}
			close(stop)
			wg.Wait()
			current.Close()
		})
	}
}

// TestManyStreams needs more streams than an endpoint allows on one connection.
func TestManyStreams(t *testing.T) {
	l := newLab(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns atomic.Int32
	s := &http.Server{
		Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 10},
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				conns.Add(1)
			}
		},
	}
	s.Protocols.SetUnencryptedHTTP2(true)
	const n = 100
	var inside sync.WaitGroup
	inside.Add(n)
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inside.Done()
		inside.Wait() // all must be under way at once
	})
	go s.Serve(ln)
	t.Cleanup(func() { s.Close() })
	l.commit(routed(web(mesh.AppProtocolHTTP2, ln.Addr().(*net.TCPAddr).AddrPort()), to(webCluster))...)
	l.commit(cluster(webCluster, mesh.AppProtocolHTTP2))
	c := h2client(t, l.outbound(vip))
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			res, err := c.Get("http://web/")
			if err != nil {
				t.Error(err)
				return
			}
			res.Body.Close()
			if res.StatusCode != 200 {
				t.Errorf("%d %v", res.StatusCode, res.Header)
			}
		})
	}
	wg.Wait()
	if c := conns.Load(); c < 10 || c > 30 {
		t.Errorf("%d connections for %d requests of 10 each", c, n)
	}
}

// TestUpgradeOverTLS: a WebSocket of a client that came by TLS.
func TestUpgradeOverTLS(t *testing.T) {
	l := newLab(t)
	cert, roots := certificate(t, "infra/cert", "ws.example.com")
	backend := tcpServer(t, func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
		io.Copy(c, br)
	})
	l.commit(cert, gatewayListener(mesh.Chain{Name: "https", Certificates: []string{"infra/cert"}, RouteTable: edge + "/https"}),
		virtualHost(edge+"/https", "*", to(webCluster)), cluster(webCluster, ""), clusterEndpoints(webCluster, backend))
	c := tls.Client(dial(t, l.gateway(edge)), &tls.Config{ServerName: "ws.example.com", RootCAs: roots})
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: ws.example.com\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nearly")
	br := bufio.NewReader(c)
	res, err := http.ReadResponse(br, nil)
	if err != nil || res.StatusCode != 101 {
		t.Fatalf("%v %v", res, err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(br, got); err != nil || string(got) != "early" {
		t.Fatalf("%q %v", got, err)
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	go c.Write(big)
	back := make([]byte, len(big))
	if _, err := io.ReadFull(br, back); err != nil || !bytes.Equal(back, big) {
		t.Fatalf("other bytes, or %v", err)
	}
	c.CloseWrite()
	if rest, err := io.ReadAll(br); err != nil || len(rest) > 0 {
		t.Errorf("%q %v", rest, err)
	}
}

// TestUnaskedUpgrade: 101 in answer to a plain request is the endpoint's fault.
func TestUnaskedUpgrade(t *testing.T) {
	l := newLab(t)
	backend := tcpServer(t, func(c *net.TCPConn) {
		http.ReadRequest(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
		io.Copy(io.Discard, c)
	})
	l.commit(routed(web(mesh.AppProtocolHTTP, backend), to(webCluster))...)
	res, _ := get(t, h1client(t, l.outbound(vip)), "http://web/")
	if res.StatusCode != 502 || res.Header.Get("X-Sluice-Reason") != "upstream-protocol" {
		t.Errorf("%d %v", res.StatusCode, res.Header)
	}
}

// TestBufferedBytesBudget: a slow receiver may make the proxy hold so much and no
// more.
func TestBufferedBytesBudget(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits.MaxBufferedBytes = 1 })
	l.serve(h1, h1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		piece := make([]byte, 1<<20)
		for {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	}))
	c := dial(t, l.outbound(vip))
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: web\r\n\r\n")
	if f := l.flow("over", func(f *flow.Flow) bool { return true }); f.Reason != flow.ReasonOverLimit {
		t.Errorf("flow %+v", f)
	}
	c.Close()
}

// TestServerSpeaksFirst: a client that waits for its server's greeting gets it without
// the grace that clients of unknown protocol have.
func TestServerSpeaksFirst(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits.SniffGrace = time.Hour })
	backend := tcpServer(t, func(c *net.TCPConn) {
		io.WriteString(c, "\x0a8.4.0\x00") // as MySQL does
		io.Copy(c, c)
	})
	l.commit(routed(web(mesh.AppProtocolUnknown, backend), to(webCluster))...)
	for range 3 {
		c := dial(t, l.outbound(vip))
		got := make([]byte, 7)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "\x0a8.4.0\x00" {
			t.Fatalf("%q %v", got, err)
		}
		io.WriteString(c, "login")
		if _, err := io.ReadFull(c, got[:5]); err != nil || string(got[:5]) != "login" {
			t.Fatalf("%q %v", got, err)
		}
	}
}

// speaking waits until the proxy takes its only connection for what protocol says.
func (l *lab) speaking(protocol string) {
	l.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); runtime.Gosched() {
		conns, err := l.proxy.Snapshot(context.Background())
		if err != nil {
			l.t.Fatal(err)
		}
		if len(conns) == 1 && conns[0].Protocol == protocol {
			return
		}
	}
	l.t.Fatalf("the connection does not become %s", protocol)
}

// TestSlowBeginning: a client that begins as only HTTP does, and is slow, does not get
// around the routes when the grace is over; one that begins with what may be anything
// reaches the service itself.
func TestSlowBeginning(t *testing.T) {
	for _, test := range []struct {
		first, rest string
		protocol    string
	}{
		{"GET /", " HTTP/1.1\r\nHost: web\r\n\r\n", "http/1.1"},
		{"PRI * HTTP", "/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", "h2"},
		{"PING", "", "tcp"},
		{"\x16\x03\x01", "", "tcp"},
	} {
		for _, silent := range []bool{false, true} { // at first, so that the server is asked to speak
			t.Run(fmt.Sprintf("%q silent=%v", test.first, silent), func(t *testing.T) {
				l := newLab(t, func(c *Config) { c.Limits.SniffGrace = time.Millisecond })
				raw := make(chan string, 4)
				all := routed(web(mesh.AppProtocolUnknown, tcpServer(t, func(c *net.TCPConn) {
					b, _ := io.ReadAll(c)
					raw <- string(b)
				})), to("shop/other/80"))
				l.commit(append(all, cluster("shop/other/80", ""), clusterEndpoints("shop/other/80", httpServer(t, http.NotFoundHandler())))...)
				c := dial(t, l.outbound(vip))
				if silent {
					l.speaking("tcp")
				}
				io.WriteString(c, test.first)
				if test.protocol == "tcp" {
					c.CloseWrite()
					for got := range raw {
						if got == test.first {
							return
						}
					}
				}
				l.speaking(test.protocol)
				io.WriteString(c, test.rest)
				if b, err := bufio.NewReader(c).Peek(9); err != nil || test.protocol == "http/1.1" && string(b) != "HTTP/1.1 " || test.protocol == "h2" && b[3] != 4 {
					t.Fatalf("%q %v", b, err)
				}
				select {
				case got := <-raw:
					if got != "" {
						t.Errorf("the service itself got %q", got)
					}
				default:
				}
			})
		}
	}
}

// TestUnknownTLS: TLS on a port of unknown protocol passes to the service itself.
func TestUnknownTLS(t *testing.T) {
	ca := newAuthority(t)
	l := newLab(t)
	l.commit(routed(web(mesh.AppProtocolUnknown, tlsServer(t, "hello", ca.issue("s", "a.test"))), to("shop/other/80"))...)
	c := tls.Client(dial(t, l.outbound(vip)), &tls.Config{ServerName: "a.test", RootCAs: ca.pool()})
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// TestTunnelReset: a reset of either side reaches the other as one, also while the
// proxy reads neither because the other is slow.
func TestTunnelReset(t *testing.T) {
	for _, full := range []bool{false, true} {
		t.Run(fmt.Sprintf("client full=%v", full), func(t *testing.T) {
			l := newLab(t)
			ended := make(chan error, 1)
			begun, read := make(chan struct{}), make(chan struct{})
			l.commit(web(mesh.AppProtocolTCP, tcpServer(t, func(c *net.TCPConn) {
				close(begun)
				<-read
				_, err := io.Copy(io.Discard, c)
				ended <- err
			}))...)
			c := dial(t, l.outbound(vip))
			io.WriteString(c, "x")
			<-begun
			if full {
				c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
				for err := error(nil); err == nil; {
					_, err = c.Write(make([]byte, 1<<20))
				}
			}
			c.SetLinger(0)
			c.Close()
			if f := l.flow("reset", func(f *flow.Flow) bool { return f.Type == flow.TypeTCP }); f.Reason != flow.ReasonDownstreamReset {
				t.Errorf("%s %s", f.Reason, f.Detail)
			}
			close(read)
			if err := <-ended; err == nil {
				t.Error("the endpoint saw an end in good order")
			}
		})
	}
	t.Run("endpoint", func(t *testing.T) {
		l := newLab(t)
		l.commit(web(mesh.AppProtocolTCP, tcpServer(t, func(c *net.TCPConn) { c.Read(make([]byte, 1)); c.SetLinger(0) }))...)
		c := dial(t, l.outbound(vip))
		io.WriteString(c, "x")
		if _, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the client saw %v", err)
		}
	})
}
