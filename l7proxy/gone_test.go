package l7proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// TestWorkloadGone has a workload vanish while a request waits for its answer: it
// cannot close the connection itself any more, and the request must not hang.
func TestWorkloadGone(t *testing.T) {
	l := newLab(t)
	asked, release := make(chan struct{}, 4), make(chan struct{})
	defer close(release)
	backend := tcpServer(t, func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		for first := true; ; first = false {
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			if first {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				continue
			}
			asked <- struct{}{}
			<-release // never an answer
			return
		}
	})
	gone := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web-0"}, Addresses: []netip.Addr{backend.Addr()}, Ready: true}
	l.commit(append(routed(web(mesh.AppProtocolHTTP, backend), to(webCluster)), gone)...)
	c := h1client(t, l.outbound(vip))
	get(t, c, "http://web/") // so that the second request uses a known connection
	answered := make(chan int, 1)
	go func() {
		res, err := c.Post("http://web/", "", nil) // not repeated: it may have been seen
		if err != nil {
			answered <- 0
			return
		}
		res.Body.Close()
		answered <- res.StatusCode
	}()
	<-asked
	l.store.Commit(mesh.Delta{Removes: []mesh.Ref{{Kind: mesh.KindWorkload, Key: gone.Key()}}})
	if status := <-answered; status != http.StatusBadGateway {
		t.Fatalf("status %d, want 502", status)
	}
	l.flow("the reset", func(f *flow.Flow) bool { return f.Reason == flow.ReasonUpstreamReset })
}

// TestNotHTTPOnAnHTTPPort sends what the detection does not take for HTTP to a port
// that says it speaks HTTP: it must not reach the endpoint around the routes.
func TestNotHTTPOnAnHTTPPort(t *testing.T) {
	for _, first := range []string{"M1 /odd HTTP/1.1\r\nHost: web\r\n\r\n", "get / HTTP/1.1\r\nHost: web\r\n\r\n", "GET / HTTP/1.1x\r\nHost: web\r\n\r\n", "\x00\x01\x02\x03\r\n\r\n"} {
		t.Run(first[:2], func(t *testing.T) {
			l := newLab(t)
			reached := make(chan struct{}, 1)
			backend := tcpServer(t, func(c *net.TCPConn) {
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
				reached <- struct{}{}
			})
			// No rule matches: only the parser's refusal or a 404 may come back.
			rule := to(webCluster)
			rule.Match = mesh.Match{PathKind: mesh.MatchExact, Path: "/elsewhere"}
			l.commit(routed(web(mesh.AppProtocolHTTP, backend), rule)...)
			c := dial(t, l.outbound(vip))
			if _, err := io.WriteString(c, first); err != nil {
				t.Fatal(err)
			}
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != http.StatusBadRequest && res.StatusCode != http.StatusNotFound && res.StatusCode != http.StatusHTTPVersionNotSupported {
				t.Errorf("status %d", res.StatusCode)
			}
			select {
			case <-reached:
				t.Error("it reached the endpoint")
			default:
			}
		})
	}
}
