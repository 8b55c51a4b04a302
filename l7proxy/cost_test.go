package l7proxy

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// rawServer answers each head that ends in an empty line with a fixed response, and
// allocates nothing.
func rawServer(response []byte) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		buf := make([]byte, 16<<10)
		have := 0
		for {
			n, err := c.Read(buf[have:])
			if err != nil {
				return
			}
			have += n
			for {
				i := bytes.Index(buf[:have], []byte("\r\n\r\n"))
				if i < 0 {
					break
				}
				have = copy(buf, buf[i+4:have])
				if _, err := c.Write(response); err != nil {
					return
				}
			}
		}
	}
}

// rawClient sends requests one after the other and allocates nothing.
type rawClient struct {
	c        net.Conn
	request  []byte
	buf      []byte
	response int // its size
}

func newRawClient(t testing.TB, c net.Conn, request string) *rawClient {
	r := &rawClient{c: c, request: []byte(request), buf: make([]byte, 64<<10)}
	// The first response tells the size of all.
	if _, err := c.Write(r.request); err != nil {
		t.Fatal(err)
	}
	have := 0
	for {
		n, err := c.Read(r.buf[have:])
		if err != nil {
			t.Fatal(err)
		}
		have += n
		if i := bytes.Index(r.buf[:have], []byte("\r\n\r\n")); i >= 0 {
			head := string(r.buf[:i])
			var length int
			for _, line := range strings.Split(strings.ToLower(head), "\r\n") {
				fmt.Sscanf(line, "content-length: %d", &length)
			}
			r.response = i + 4 + length
			break
		}
	}
	for have < r.response {
		n, err := c.Read(r.buf[have:])
		if err != nil {
			t.Fatal(err)
		}
		have += n
	}
	return r
}

func (r *rawClient) do() error {
	if _, err := r.c.Write(r.request); err != nil {
		return err
	}
	_, err := io.ReadFull(r.c, r.buf[:r.response])
	return err
}

const browserRequest = "GET /a/b/c?x=1 HTTP/1.1\r\nHost: web.shop\r\nUser-Agent: test/1.0 (some words)\r\nAccept: */*\r\n" +
	"Accept-Language: en\r\nX-Request-Id: 7b2f\r\nTraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n"

func kilobyte() []byte {
	return []byte("HTTP/1.1 200 OK\r\nServer: x\r\nDate: Mon, 23 Nov 2026 21:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\n" + strings.Repeat("x", 1000))
}

// TestCostHTTP1 bounds what a request of a keep-alive connection costs in system
// calls and memory. Data moves with four system calls: a read and a write on each
// side.
func TestCostHTTP1(t *testing.T) {
	var bytes uint64
	l := newLab(t, func(c *Config) { c.Flows = func(f *flow.Flow) { bytes += f.BytesOut } })
	l.commit(routed(web(mesh.AppProtocolHTTP, tcpServer(t, rawServer(kilobyte()))), to(webCluster))...)
	r := newRawClient(t, dial(t, l.outbound(vip)), browserRequest)
	run := func() {
		if err := r.do(); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		run()
	}
	const n = 2000
	before := l.loopStats()
	for range n {
		run()
	}
	after := l.loopStats()
	data := float64(after.Reads+after.Writes-before.Reads-before.Writes) / n
	if data > 4.05 {
		t.Errorf("%.3f reads and writes per request; in vain: %d reads, %d writes", data, after.ReadAgains-before.ReadAgains, after.WriteAgains-before.WriteAgains)
	}
	if allocs := testing.AllocsPerRun(n, run); allocs > 0.5 {
		t.Errorf("%v allocations per request", allocs)
	}
}

// TestCostHTTP1Concurrent counts all system calls, those of waiting included, when
// connections share a wake-up.
func TestCostHTTP1Concurrent(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Flows = nil })
	l.commit(routed(web(mesh.AppProtocolHTTP, tcpServer(t, rawServer(kilobyte()))), to(webCluster))...)
	addr := l.outbound(vip)
	const clients, each = 64, 300
	var rs []*rawClient
	for range clients {
		rs = append(rs, newRawClient(t, dial(t, addr), browserRequest))
	}
	before := l.loopStats()
	done := make(chan error)
	for _, r := range rs {
		go func() {
			for range each {
				if err := r.do(); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range rs {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	after := l.loopStats()
	data := float64(after.Reads+after.Writes-before.Reads-before.Writes) / (clients * each)
	all := data + float64(after.Polls+after.Waits-before.Polls-before.Waits)/(clients*each)
	t.Logf("%.3f system calls per request, %.3f of them for data", all, data)
	if data > 4.05 {
		t.Errorf("%.3f reads and writes per request", data)
	}
}

// TestCostIdle: a connection on which there is no request keeps no buffer and no
// parser.
func TestCostIdle(t *testing.T) {
	l := newLab(t)
	l.commit(routed(web(mesh.AppProtocolHTTP, tcpServer(t, rawServer(kilobyte()))), to(webCluster))...)
	r := newRawClient(t, dial(t, l.outbound(vip)), browserRequest)
	_ = r
	type held struct {
		lent int
		h1   bool
	}
	got := make(chan held)
	w := l.proxy.workers[0]
	w.loop.Post(func() { got <- held{w.loop.Buffers.Lent(), w.conns[0].h1 != nil} })
	if h := <-got; h.lent != 0 || h.h1 {
		t.Errorf("an idle connection holds %d bytes, parser %v", h.lent, h.h1)
	}
}

func BenchmarkHTTP1(b *testing.B) {
	l := newLab(b, func(c *Config) { c.Flows = nil })
	l.commit(routed(web(mesh.AppProtocolHTTP, tcpServer(b, rawServer(kilobyte()))), to(webCluster))...)
	r := newRawClient(b, dial(b, l.outbound(vip)), browserRequest)
	b.ReportAllocs()
	for b.Loop() {
		if err := r.do(); err != nil {
			b.Fatal(err)
		}
	}
}
