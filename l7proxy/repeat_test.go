package l7proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
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
