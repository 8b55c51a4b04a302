package l7proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// speaker is a protocol on one side of an exchange.
type speaker string

const (
	h1 speaker = "h1"
	h2 speaker = "h2"
)

func (s speaker) client(t testing.TB, to netip.AddrPort) *http.Client {
	if s == h2 {
		return h2client(t, to)
	}
	return h1client(t, to)
}

func (s speaker) protocol() mesh.AppProtocol {
	if s == h2 {
		return mesh.AppProtocolHTTP2
	}
	return mesh.AppProtocolHTTP
}

func pairings(t *testing.T, f func(t *testing.T, down, up speaker)) {
	for _, down := range []speaker{h1, h2} {
		for _, up := range []speaker{h1, h2} {
			t.Run(string(down)+"-"+string(up), func(t *testing.T) { f(t, down, up) })
		}
	}
}

// serve routes web to a handler and returns a client for it.
func (l *lab) serve(down, up speaker, h http.Handler, rules ...mesh.Rule) *http.Client {
	l.t.Helper()
	if len(rules) == 0 {
		rules = []mesh.Rule{to(webCluster)}
	}
	l.commit(routed(web(up.protocol(), httpServer(l.t, h)), rules...)...)
	l.commit(cluster(webCluster, up.protocol()))
	return down.client(l.t, l.outbound(vip))
}

func TestExchange(t *testing.T) {
	pairings(t, func(t *testing.T, down, up speaker) {
		l := newLab(t)
		c := l.serve(down, up, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			w.Header().Set("X-Proto", r.Proto)
			w.Header().Set("X-Host", r.Host)
			w.Header().Set("X-Query", r.URL.RawQuery)
			w.Header().Set("X-Id", r.Header.Get("X-Request-Id"))
			w.Header().Set("X-Trace", r.Header.Get("Traceparent"))
			w.Header().Set("X-For", r.Header.Get("X-Forwarded-For"))
			if r.URL.Path == "/none" {
				w.WriteHeader(204)
				return
			}
			fmt.Fprintf(w, "%s %s %s", r.Method, r.URL.Path, b)
		}))
		for i, test := range []struct {
			method, path, body, want string
			status                   int
		}{
			{"GET", "/a/b?q=1", "", "GET /a/b ", 200},
			{"POST", "/post", "some body", "POST /post some body", 200},
			{"PUT", "/put", strings.Repeat("x", 100_000), "PUT /put " + strings.Repeat("x", 100_000), 200},
			{"HEAD", "/head", "", "", 200},
			{"GET", "/none", "", "", 204},
			{"DELETE", "/d", "", "DELETE /d ", 200},
		} {
			var body io.Reader
			if test.body != "" {
				body = strings.NewReader(test.body)
			}
			req, err := http.NewRequest(test.method, "http://web.shop"+test.path, body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Traceparent", "00-1-2-01")
			res, err := c.Do(req)
			if err != nil {
				t.Fatalf("%s %s: %v", test.method, test.path, err)
			}
			b, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || res.StatusCode != test.status || string(b) != test.want {
				t.Fatalf("%s %s: %d %.80q %v", test.method, test.path, res.StatusCode, b, err)
			}
			wantProto := map[speaker]string{h1: "HTTP/1.1", h2: "HTTP/2.0"}
			if res.Proto != wantProto[down] || res.Header.Get("X-Proto") != wantProto[up] {
				t.Errorf("spoke %s down, %s up", res.Proto, res.Header.Get("X-Proto"))
			}
			if res.Header.Get("X-Host") != "web.shop" || len(res.Header.Get("X-Id")) != 36 || res.Header.Get("X-Trace") != "00-1-2-01" {
				t.Errorf("headers %v", res.Header)
			}
			if res.Header.Get("X-For") != "" {
				t.Errorf("x-forwarded-for between workloads: %s", res.Header.Get("X-For"))
			}
			f := l.flow("http", func(f *flow.Flow) bool { return f.Type == flow.TypeHTTP })
			if f.HTTP.Method != test.method || f.HTTP.Status != test.status || f.HTTP.Authority != "web.shop" ||
				!strings.HasPrefix(test.path, f.HTTP.Path[:1]) || f.HTTP.Path != test.path || f.HTTP.Route != "HTTPRoute/shop/web-route" ||
				f.HTTP.Tries != 1 || f.Verdict != flow.VerdictForwarded || f.BytesIn != uint64(len(test.body)) ||
				f.Source.Workload != client || f.Original != vip {
				t.Errorf("flow %d %+v %+v", i, f, f.HTTP)
			}
		}
		if n := l.metric("sluice_proxy_requests_total", "route", "HTTPRoute/shop/web-route", "code_class", "2xx", "reason", ""); n != 6 {
			t.Errorf("requests: %v", n)
		}
		if n := l.metric("sluice_proxy_upstream_connects_total"); n != 1 {
			t.Errorf("upstream connections: %v", n)
		}
		if n := l.metric("sluice_proxy_requests_active"); n != 0 {
			t.Errorf("active: %v", n)
		}
	})
}

func TestExchangeStreamsBothWays(t *testing.T) {
	pairings(t, func(t *testing.T, down, up speaker) {
		l := newLab(t)
		c := l.serve(down, up, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rc := http.NewResponseController(w)
			rc.EnableFullDuplex()
			w.Header().Set("Trailer", "X-Sum")
			w.WriteHeader(200)
			rc.Flush()
			h := sha256.New()
			buf := make([]byte, 4096)
			for {
				n, err := r.Body.Read(buf)
				h.Write(buf[:n])
				if _, werr := w.Write(buf[:n]); werr != nil {
					return
				}
				rc.Flush()
				if err != nil {
					break
				}
			}
			w.Header().Set("X-Sum", fmt.Sprintf("%x %s", h.Sum(nil), r.Trailer.Get("X-Late")))
		}))
		pr, pw := io.Pipe()
		req, _ := http.NewRequest("POST", "http://web/", pr)
		req.Trailer = http.Header{"X-Late": nil}
		go io.WriteString(pw, "ping 0")
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		h := sha256.New()
		for i := range 20 {
			text := fmt.Sprintf("ping %d", i)
			got := make([]byte, len(text))
			if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != text {
				t.Fatalf("echo %d: %q, %v", i, got, err)
			}
			io.WriteString(h, text)
			if i < 19 {
				fmt.Fprintf(pw, "ping %d", i+1)
			}
		}
		req.Trailer.Set("X-Late", "late")
		pw.Close()
		if _, err := io.ReadAll(res.Body); err != nil {
			t.Fatal(err)
		}
		if got, want := res.Trailer.Get("X-Sum"), fmt.Sprintf("%x late", h.Sum(nil)); got != want {
			t.Errorf("trailer %q, want %q", got, want)
		}
	})
}

// TestExchangeLarge moves more than any window or buffer in both directions.
func TestExchangeLarge(t *testing.T) {
	pairings(t, func(t *testing.T, down, up speaker) {
		l := newLab(t)
		const size = 8 << 20
		c := l.serve(down, up, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h := sha256.New()
			io.Copy(h, r.Body)
			w.Header().Set("X-Sum", fmt.Sprintf("%x", h.Sum(nil)))
			w.WriteHeader(200)
			io.CopyN(w, rand.NewChaCha8([32]byte{2}), size)
		}))
		want := sha256.New()
		io.CopyN(want, rand.NewChaCha8([32]byte{1}), size)
		res, err := c.Post("http://web/", "", io.LimitReader(rand.NewChaCha8([32]byte{1}), size))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if got := res.Header.Get("X-Sum"); got != fmt.Sprintf("%x", want.Sum(nil)) {
			t.Error("the endpoint got other bytes")
		}
		got, back := sha256.New(), sha256.New()
		if n, err := io.Copy(got, res.Body); err != nil || n != size {
			t.Fatalf("%d bytes, %v", n, err)
		}
		io.CopyN(back, rand.NewChaCha8([32]byte{2}), size)
		if !bytes.Equal(got.Sum(nil), back.Sum(nil)) {
			t.Error("the client got other bytes")
		}
	})
}

// TestExchangeSlowReader: a client that does not read makes the endpoint stop, and
// the proxy holds little.
func TestExchangeSlowReader(t *testing.T) {
	pairings(t, func(t *testing.T, down, up speaker) {
		l := newLab(t)
		var written atomic.Int64
		const pieces = 1024
		c := l.serve(down, up, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			piece := make([]byte, 64<<10)
			w.Header().Set("Content-Length", fmt.Sprint(pieces*len(piece)))
			for range pieces {
				if _, err := w.Write(piece); err != nil {
					return
				}
				written.Add(int64(len(piece)))
			}
		}))
		res, err := c.Get("http://web/")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		for still, last := 0, int64(-1); still < 20; {
			if n := written.Load(); n == last {
				still++
			} else {
				still, last = 0, n
			}
			time.Sleep(5 * time.Millisecond)
		}
		if n := written.Load(); n == pieces*64<<10 {
			t.Error("the endpoint was not held up")
		}
		lent := make(chan int)
		l.proxy.workers[0].loop.Post(func() { lent <- l.proxy.workers[0].loop.Buffers.Lent() })
		if n := <-lent; n > 1<<20 {
			t.Errorf("the proxy holds %d bytes", n)
		}
		if n, err := io.Copy(io.Discard, res.Body); err != nil || n != pieces*64<<10 {
			t.Errorf("%d bytes, %v", n, err)
		}
		l.proxy.workers[0].loop.Post(func() { lent <- l.proxy.workers[0].loop.Buffers.Lent() })
		if n := <-lent; n != 0 {
			t.Errorf("the proxy still holds %d bytes", n)
		}
	})
}

// TestExchangeSlowEndpoint: an endpoint that reads late makes the client stop, and
// gets the end of the request too, wherever the client was stopped.
func TestExchangeSlowEndpoint(t *testing.T) {
	pairings(t, func(t *testing.T, down, up speaker) {
		l := newLab(t)
		held := make(chan chan struct{})
		c := l.serve(down, up, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			release := make(chan struct{})
			held <- release
			<-release
			n, err := io.Copy(io.Discard, r.Body)
			fmt.Fprintf(w, "%d %v", n, err)
		}))
		lent := make(chan int)
		w := l.proxy.workers[0]
		// Sizes around what the kernel's buffers hold, so that some end in ours.
		for size := 1 << 20; size <= 8<<20; size += 450_000 {
			answer := make(chan string, 1)
			go func() {
				res, err := c.Post("http://web/", "", bytes.NewReader(make([]byte, size)))
				if err != nil {
					answer <- err.Error()
					return
				}
				defer res.Body.Close()
				b, _ := io.ReadAll(res.Body)
				answer <- string(b)
			}()
			release := <-held
			for still, last := 0, -1; still < 5; time.Sleep(time.Millisecond) {
				w.loop.Post(func() { lent <- w.loop.Buffers.Lent() })
				if n := <-lent; n == last {
					still++
				} else {
					still, last = 0, n
				}
			}
			close(release)
			if got, want := <-answer, fmt.Sprintf("%d <nil>", size); got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		}
	})
}

func TestExchangeEarlyAnswer(t *testing.T) {
	pairings(t, func(t *testing.T, down, up speaker) {
		l := newLab(t)
		c := l.serve(down, up, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(413)
			io.WriteString(w, "too much")
		}))
		res, err := c.Post("http://web/", "", io.LimitReader(rand.NewChaCha8([32]byte{1}), 64<<20))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if b, _ := io.ReadAll(res.Body); res.StatusCode != 413 || string(b) != "too much" {
			t.Errorf("%d %q", res.StatusCode, b)
		}
		// The client is served on.
		if res, _ := get(t, c, "http://web/"); res.StatusCode != 413 {
			t.Errorf("then: %d", res.StatusCode)
		}
	})
}

func TestExchangeContinue(t *testing.T) {
	l := newLab(t)
	c := l.serve(h1, h1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(403)
			return
		}
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	}))
	_ = c
	conn := dial(t, l.outbound(vip))
	br := bufio.NewReader(conn)
	io.WriteString(conn, "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
	if line, err := br.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q %v", line, err)
	}
	br.ReadString('\n')
	io.WriteString(conn, "body")
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(res.Body); string(b) != "body" {
		t.Errorf("%q", b)
	}
	io.WriteString(conn, "POST /no HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
	res, err = http.ReadResponse(br, nil)
	if err != nil || res.StatusCode != 403 || !res.Close {
		t.Errorf("%v %v", res, err)
	}
}

func TestExchangePipelined(t *testing.T) {
	l := newLab(t)
	l.serve(h1, h1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.URL.Path)
	}))
	conn := dial(t, l.outbound(vip))
	var b strings.Builder
	const n = 50
	for i := range n {
		fmt.Fprintf(&b, "GET /%d HTTP/1.1\r\nHost: web\r\n\r\n", i)
	}
	io.WriteString(conn, b.String())
	br := bufio.NewReader(conn)
	for i := range n {
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("response %d: %v", i, err)
		}
		if b, _ := io.ReadAll(res.Body); string(b) != fmt.Sprintf("/%d", i) {
			t.Fatalf("response %d: %q", i, b)
		}
	}
}

func TestExchangeRefusals(t *testing.T) {
	for _, down := range []speaker{h1, h2} {
		t.Run(string(down), func(t *testing.T) {
			l := newLab(t)
			rule := func(path string, clusters ...mesh.WeightedCluster) mesh.Rule {
				return mesh.Rule{Match: mesh.Match{PathKind: mesh.MatchPrefix, Path: path}, Clusters: clusters}
			}
			l.commit(routed(web(mesh.AppProtocolHTTP),
				rule("/invalid", mesh.WeightedCluster{Weight: 1}),
				rule("/none"),
				rule("/empty", mesh.WeightedCluster{Cluster: webCluster, Weight: 1}),
				rule("/refused", mesh.WeightedCluster{Cluster: "shop/dead/80", Weight: 1}),
				rule("/reset", mesh.WeightedCluster{Cluster: "shop/reset/80", Weight: 1}),
				rule("/garbage", mesh.WeightedCluster{Cluster: "shop/garbage/80", Weight: 1}),
			)...)
			l.commit(cluster("shop/dead/80", ""), clusterEndpoints("shop/dead/80", refusing(t)))
			l.commit(cluster("shop/reset/80", ""), clusterEndpoints("shop/reset/80", tcpServer(t, func(c *net.TCPConn) { c.Read(make([]byte, 1)) })))
			l.commit(cluster("shop/garbage/80", ""), clusterEndpoints("shop/garbage/80", tcpServer(t, func(c *net.TCPConn) {
				c.Read(make([]byte, 4096))
				io.WriteString(c, "SSH-2.0-none\r\n\r\n")
				io.Copy(io.Discard, c)
			})))
			c := down.client(t, l.outbound(vip))
			for _, test := range []struct {
				path   string
				status int
				reason flow.Reason
			}{
				{"/other", 404, flow.ReasonNoRoute},
				{"/invalid", 500, flow.ReasonNoBackend},
				{"/none", 500, flow.ReasonNoBackend},
				{"/empty", 503, flow.ReasonNoHealthyEndpoint},
				{"/refused", 503, flow.ReasonConnectFailed},
				{"/reset", 502, flow.ReasonUpstreamReset},
				{"/garbage", 502, flow.ReasonUpstreamProtocol},
			} {
				res, body := get(t, c, "http://web"+test.path)
				if res.StatusCode != test.status || res.Header.Get("X-Sluice-Reason") != test.reason.String() || !strings.Contains(body, test.reason.String()) {
					t.Errorf("%s: %d %v %q", test.path, res.StatusCode, res.Header, body)
				}
				f := l.flow(test.path, func(f *flow.Flow) bool { return f.Type == flow.TypeHTTP && f.HTTP.Path == test.path })
				if f.Reason != test.reason || f.HTTP.Status != test.status || f.Verdict == flow.VerdictForwarded {
					t.Errorf("%s: flow %+v", test.path, f)
				}
			}
			if n := l.metric("sluice_proxy_requests_total", "code_class", "5xx", "reason", "connect-failed"); n != 1 {
				t.Errorf("metric %v", n)
			}
		})
	}
}

func TestExchangeBadRequests(t *testing.T) {
	l := newLab(t)
	l.serve(h1, h1, http.NotFoundHandler())
	addr := l.outbound(vip)
	for _, test := range []struct {
		bytes  string
		status int
		reason flow.Reason
	}{
		{"GET / HTTP/1.1\r\nHost: a\r\nBad Header: x\r\n\r\n", 400, flow.ReasonDownstreamProtocol},
		{"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 70_000) + "\r\n\r\n", 431, flow.ReasonHeadTooLarge},
		{"GET /a/../../.. HTTP/1.1\r\nHost: a\r\n\r\n", 404, flow.ReasonNone},
		{"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 501, flow.ReasonUnsupported},
		{"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, flow.ReasonDownstreamProtocol},
	} {
		c := dial(t, addr)
		io.WriteString(c, test.bytes)
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Errorf("%.40q: %v", test.bytes, err)
			continue
		}
		if res.StatusCode != test.status || res.Header.Get("X-Sluice-Reason") != test.reason.String() {
			t.Errorf("%.40q: %d %v", test.bytes, res.StatusCode, res.Header)
		}
	}
}

func TestExchangeClientGoesAway(t *testing.T) {
	pairings(t, func(t *testing.T, down, up speaker) {
		l := newLab(t)
		begun, cancelled := make(chan struct{}), make(chan struct{})
		c := l.serve(down, up, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(begun)
			<-r.Context().Done()
			close(cancelled)
		}))
		ctx, cancel := context.WithCancel(context.Background())
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://web/away", nil)
		go func() { <-begun; cancel() }()
		if _, err := c.Do(req); err == nil {
			t.Fatal("answered")
		}
		select {
		case <-cancelled:
		case <-time.After(patience):
			t.Fatal("the endpoint was not told")
		}
		f := l.flow("away", func(f *flow.Flow) bool { return f.Type == flow.TypeHTTP })
		if f.Reason != flow.ReasonDownstreamReset || f.HTTP.Status != 0 {
			t.Errorf("flow %+v %+v", f, f.HTTP)
		}
	})
}

// TestExchangeStaleConnection: an endpoint that closes a pooled connection just as
// it is used costs no idempotent request.
func TestExchangeStaleConnection(t *testing.T) {
	l := newLab(t)
	var conns atomic.Int32
	backend := tcpServer(t, func(c *net.TCPConn) {
		conns.Add(1)
		br := bufio.NewReader(c)
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		// The second request is read and the connection closed.
		http.ReadRequest(br)
	})
	l.commit(routed(web(mesh.AppProtocolHTTP, backend), to(webCluster))...)
	c := h1client(t, l.outbound(vip))
	for i := range 4 {
		res, body := get(t, c, "http://web/")
		if res.StatusCode != 200 || body != "ok" {
			t.Fatalf("request %d: %d %q", i, res.StatusCode, body)
		}
	}
	if conns.Load() != 4 || l.metric("sluice_proxy_repeats_total") != 3 {
		t.Errorf("%d connections, %v repeats", conns.Load(), l.metric("sluice_proxy_repeats_total"))
	}
	// One that is not idempotent is not repeated.
	res, err := c.Post("http://web/", "", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 502 {
		t.Errorf("POST: %d", res.StatusCode)
	}
	get(t, c, "http://web/")
	// Nor is one without a body, of which the endpoint may have seen all.
	before := conns.Load()
	if res, err = c.Post("http://web/", "", nil); err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 502 || conns.Load() != before {
		t.Errorf("POST without a body: %d, %d more connections", res.StatusCode, conns.Load()-before)
	}
}

func TestExchangeRetry(t *testing.T) {
	pairings(t, func(t *testing.T, down, up speaker) {
		l := newLab(t)
		var tries atomic.Int32
		rule := to(webCluster)
		rule.Retry = &mesh.Retry{Codes: []int{500, 503}, Attempts: 3, Backoff: time.Millisecond}
		c := l.serve(down, up, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			n := tries.Add(1)
			if r.URL.Path == "/always" || n < 3 {
				w.WriteHeader(503)
				io.WriteString(w, "not yet")
				return
			}
			w.Write(b)
		}), rule)
		res, err := c.Post("http://web/some", "", strings.NewReader("kept"))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != 200 || string(b) != "kept" || tries.Load() != 3 {
			t.Errorf("%d %q after %d tries", res.StatusCode, b, tries.Load())
		}
		f := l.flow("retried", func(f *flow.Flow) bool { return f.Type == flow.TypeHTTP })
		if f.HTTP.Tries != 3 || f.Reason != flow.ReasonNone {
			t.Errorf("flow %+v %+v", f, f.HTTP)
		}
		tries.Store(0)
		res, body := get(t, c, "http://web/always")
		if res.StatusCode != 503 || body != "not yet" || tries.Load() != 4 || res.Header.Get("X-Sluice-Reason") != "" {
			t.Errorf("exhausted: %d %q after %d tries", res.StatusCode, body, tries.Load())
		}
		if n := l.metric("sluice_proxy_retries_total"); n != 5 {
			t.Errorf("retries: %v", n)
		}
	})
}

// TestExchangeRetryConnect: an endpoint that refuses connections costs nothing when
// there is another.
func TestExchangeRetryConnect(t *testing.T) {
	l := newLab(t)
	rule := to(webCluster)
	rule.Retry = &mesh.Retry{Attempts: 20, Backoff: time.Millisecond}
	c := l.serve(h1, h1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}), rule)
	good := l.store.Get(mesh.KindClusterEndpoints, webCluster).(*mesh.ClusterEndpoints).Endpoints[0].AddrPort
	l.commit(clusterEndpoints(webCluster, refusing(t), good, refusing(t)))
	for range 20 {
		if res, _ := get(t, c, "http://web/"); res.StatusCode != 200 {
			t.Fatalf("%d %v", res.StatusCode, res.Header)
		}
	}
}

func TestExchangeTimeouts(t *testing.T) {
	pairings(t, func(t *testing.T, down, up speaker) {
		for _, test := range []struct {
			timeouts mesh.Timeouts
			reason   flow.Reason
		}{
			{mesh.Timeouts{Request: 30 * time.Millisecond}, flow.ReasonRequestTimeout},
			{mesh.Timeouts{Backend: 30 * time.Millisecond}, flow.ReasonBackendTimeout},
		} {
			t.Run(test.reason.String(), func(t *testing.T) {
				l := newLab(t)
				cancelled := make(chan struct{}, 1)
				rule := to(webCluster)
				rule.Timeouts = test.timeouts
				c := l.serve(down, up, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/slow" {
						<-r.Context().Done()
						cancelled <- struct{}{}
					}
				}), rule)
				res, _ := get(t, c, "http://web/slow")
				if res.StatusCode != 504 || res.Header.Get("X-Sluice-Reason") != test.reason.String() {
					t.Errorf("%d %v", res.StatusCode, res.Header)
				}
				<-cancelled
				if res, _ := get(t, c, "http://web/quick"); res.StatusCode != 200 {
					t.Errorf("then: %d", res.StatusCode)
				}
			})
		}
	})
}

func TestExchangeRedirectAndFilters(t *testing.T) {
	pairings(t, func(t *testing.T, down, up speaker) {
		l := newLab(t)
		redirect := mesh.Rule{
			Match:   mesh.Match{PathKind: mesh.MatchPrefix, Path: "/old"},
			Filters: []mesh.Filter{{Redirect: &mesh.Redirect{Path: &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: "/new"}, Status: 301}}},
		}
		rewrite := to(webCluster)
		rewrite.Match = mesh.Match{PathKind: mesh.MatchPrefix, Path: "/in"}
		rewrite.Filters = []mesh.Filter{
			{RequestHeaders: &mesh.HeaderEdit{Set: []mesh.HeaderValue{{Name: "x-set", Value: "1"}}, Remove: []string{"x-gone"}}},
			{Rewrite: &mesh.Rewrite{Hostname: "inner", Path: &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: "/out"}}},
			{ResponseHeaders: &mesh.HeaderEdit{Add: []mesh.HeaderValue{{Name: "x-added", Value: "2"}}}},
		}
		c := l.serve(down, up, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s %s|%s", r.Host, r.URL, r.Header.Get("X-Set"), r.Header.Get("X-Gone"))
		}), redirect, rewrite)
		res, _ := get(t, c, "http://web.shop/old/a?b=c")
		if loc := res.Header.Get("Location"); res.StatusCode != 301 || !strings.HasSuffix(loc, "/new/a?b=c") || !strings.HasPrefix(loc, "http://web.shop") {
			t.Errorf("%d %q", res.StatusCode, loc)
		}
		req, _ := http.NewRequest("GET", "http://web.shop/in/x?y", nil)
		req.Header.Set("X-Gone", "here")
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if string(b) != "inner /out/x?y 1|" || res.Header.Get("X-Added") != "2" {
			t.Errorf("%q %v", b, res.Header)
		}
		f := l.flow("rewritten", func(f *flow.Flow) bool { return f.HTTP.Path == "/in/x?y" })
		if f.HTTP.Authority != "web.shop" {
			t.Errorf("flow %+v", f.HTTP)
		}
	})
}

func TestExchangeWeights(t *testing.T) {
	l := newLab(t)
	answer := func(text string) netip.AddrPort {
		return httpServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, text) }))
	}
	rule := mesh.Rule{Clusters: []mesh.WeightedCluster{
		{Cluster: "shop/v1/80", Weight: 90}, {Cluster: "shop/v2/80", Weight: 10}, {Cluster: "shop/v3/80", Weight: 0},
	}}
	l.commit(routed(web(mesh.AppProtocolHTTP), rule)...)
	for _, v := range []string{"v1", "v2", "v3"} {
		l.commit(cluster("shop/"+v+"/80", ""), clusterEndpoints("shop/"+v+"/80", answer(v)))
	}
	c := h1client(t, l.outbound(vip))
	count := map[string]int{}
	for range 1000 {
		_, body := get(t, c, "http://web/")
		count[body]++
	}
	// Five standard deviations of a binomial distribution.
	if n := count["v2"]; n < 52 || n > 148 || count["v3"] > 0 {
		t.Errorf("%v", count)
	}
}

// TestExchangeUpgrade tunnels a WebSocket-like protocol.
func TestExchangeUpgrade(t *testing.T) {
	l := newLab(t)
	l.serve(h1, h1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Sec-Websocket-Key") != "abc" {
			w.WriteHeader(400)
			return
		}
		c, brw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: xyz\r\n\r\nhello")
		io.Copy(c, brw)
	}))
	c := dial(t, l.outbound(vip))
	io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: web\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: abc\r\n\r\n")
	br := bufio.NewReader(c)
	res, err := http.ReadResponse(br, nil)
	if err != nil || res.StatusCode != 101 || res.Header.Get("Upgrade") != "websocket" || res.Header.Get("Sec-Websocket-Accept") != "xyz" {
		t.Fatalf("%v %v", res, err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(br, got); err != nil || string(got) != "hello" {
		t.Fatalf("%q %v", got, err)
	}
	for i := range 10 {
		text := fmt.Sprintf("frame %d", i)
		io.WriteString(c, text)
		got := make([]byte, len(text))
		if _, err := io.ReadFull(br, got); err != nil || string(got) != text {
			t.Fatalf("%q %v", got, err)
		}
	}
	c.CloseWrite()
	if rest, err := io.ReadAll(br); err != nil || len(rest) > 0 {
		t.Fatalf("%q %v", rest, err)
	}
	f := l.flow("upgrade", func(f *flow.Flow) bool { return f.Type == flow.TypeHTTP })
	if f.HTTP.Status != 101 || f.BytesIn != 70 || f.BytesOut != 75 || f.Reason != flow.ReasonNone {
		t.Errorf("flow %+v %+v", f, f.HTTP)
	}
}

// TestExchangeSwap changes endpoints and rules while requests run: none may fail.
func TestExchangeSwap(t *testing.T) {
	for _, s := range []speaker{h1, h2} {
		t.Run(string(s), func(t *testing.T) {
			l := newLab(t, func(c *Config) { c.Loops = 2 })
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") })
			a, b := httpServer(t, handler), httpServer(t, handler)
			l.commit(routed(web(s.protocol(), a), to(webCluster))...)
			l.commit(cluster(webCluster, s.protocol()))
			addr := l.outbound(vip)
			stop := make(chan struct{})
			var wg sync.WaitGroup
			var served atomic.Int64
			for range 4 {
				c := s.client(t, addr)
				wg.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						res, err := c.Get("http://web/")
						if err != nil {
							t.Error(err)
							return
						}
						io.Copy(io.Discard, res.Body)
						res.Body.Close()
						if res.StatusCode != 200 {
							t.Errorf("%d %v", res.StatusCode, res.Header)
							return
						}
						served.Add(1)
					}
				})
			}
			for i := range 200 {
				rule := to(webCluster)
				rule.Match = mesh.Match{PathKind: mesh.MatchPrefix, Path: "/"}
				rule.RuleName = fmt.Sprint(i)
				l.commit(virtualHost(webListener, "*", rule))
				l.commit(clusterEndpoints(webCluster, [][]netip.AddrPort{{a}, {b}, {a, b}}[i%3]...))
				for n := served.Load(); served.Load() < n+5 && !t.Failed(); {
					time.Sleep(100 * time.Microsecond)
				}
			}
			close(stop)
			wg.Wait()
		})
	}
}

// TestExchangeConfigOnDemand: nothing is known when the request comes, and all of
// it is asked for.
func TestExchangeConfigOnDemand(t *testing.T) {
	l := newLab(t)
	backend := httpServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }))
	all := routed(web(mesh.AppProtocolUnknown, backend), to(webCluster))
	l.commit(all[0])
	var mu sync.Mutex
	l.onWant = func(kind mesh.Kind, key string) {
		go func() {
			mu.Lock()
			defer mu.Unlock()
			for _, r := range all[1:] {
				if r.Kind() == kind && (r.Key() == key || strings.HasSuffix(key, "/*") && strings.HasPrefix(r.Key(), key[:len(key)-1])) {
					l.commit(r)
				}
			}
		}()
	}
	res, body := get(t, h1client(t, l.outbound(vip)), "http://web/")
	if res.StatusCode != 200 || body != "ok" {
		t.Errorf("%d %q %v", res.StatusCode, body, res.Header)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ref := range []mesh.Ref{
		{Kind: mesh.KindListener, Key: webListener}, {Kind: mesh.KindVirtualHost, Key: webListener + "/*"},
		{Kind: mesh.KindCluster, Key: webCluster}, {Kind: mesh.KindClusterEndpoints, Key: webCluster},
	} {
		if l.wanted[ref] != 1 {
			t.Errorf("wanted %v %d times", ref, l.wanted[ref])
		}
	}
}

func TestExchangeConfigNeverComes(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits.ConfigWait = 20 * time.Millisecond })
	all := routed(web(mesh.AppProtocolHTTP), to(webCluster))
	l.commit(all[0], all[1], all[4])
	res, _ := get(t, h1client(t, l.outbound(vip)), "http://web/")
	if res.StatusCode != 503 || res.Header.Get("X-Sluice-Reason") != "no-backend" {
		t.Errorf("%d %v", res.StatusCode, res.Header)
	}
}

func TestExchangeConsumerRoutes(t *testing.T) {
	l := newLab(t)
	all := routed(web(mesh.AppProtocolHTTP), to("shop/producer/80"))
	listener := all[1].(*mesh.Listener)
	listener.ConsumerTables = map[string]string{"shop": webListener + "/@shop"}
	l.commit(all...)
	l.commit(virtualHost(webListener+"/@shop", "*", to("shop/consumer/80")))
	for _, v := range []string{"producer", "consumer"} {
		addr := httpServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, v) }))
		l.commit(cluster("shop/"+v+"/80", ""), clusterEndpoints("shop/"+v+"/80", addr))
	}
	if _, body := get(t, h1client(t, l.outbound(vip)), "http://web/"); body != "consumer" {
		t.Errorf("client of the consumer's namespace: %q", body)
	}
	listener2 := *listener
	listener2.ConsumerTables = map[string]string{"elsewhere": webListener + "/@elsewhere"}
	l.commit(&listener2)
	if _, body := get(t, h1client(t, l.outbound(vip)), "http://web/"); body != "producer" {
		t.Errorf("any other client: %q", body)
	}
}
