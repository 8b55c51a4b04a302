package l7proxy

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

func echo(c *net.TCPConn) { io.Copy(c, c) }

func TestTunnelPlainRelay(t *testing.T) {
	l := newLab(t)
	backend := tcpServer(t, echo)
	l.commit(web(mesh.AppProtocolTCP, backend)...)
	c := dial(t, l.outbound(vip))
	for _, text := range []string{"hello", "again"} {
		io.WriteString(c, text)
		got := make([]byte, len(text))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
			t.Fatalf("echo: %q, %v", got, err)
		}
	}
	c.CloseWrite()
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Fatalf("end: %q, %v", rest, err)
	}
	f := l.flow("tcp", func(f *flow.Flow) bool { return f.Type == flow.TypeTCP })
	if f.Verdict != flow.VerdictForwarded || f.BytesIn != 10 || f.BytesOut != 10 ||
		f.Source.Workload != client || f.Destination.AddrPort != backend || f.Original != vip ||
		f.Destination.Service != (mesh.Name{Namespace: "shop", Name: "web"}) || f.Node != "node-1" {
		t.Errorf("flow %+v", f)
	}
	if n := l.metric("sluice_proxy_tcp_connections_total", "journey", "outbound", "reason", ""); n != 1 {
		t.Errorf("tcp connections: %v", n)
	}
	if n := l.metric("sluice_proxy_bytes_total", "direction", "in"); n != 10 {
		t.Errorf("bytes in: %v", n)
	}
}

// TestTunnelHalfClose: the answer comes after the client has ended its direction.
func TestTunnelHalfClose(t *testing.T) {
	l := newLab(t)
	backend := tcpServer(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		c.Write(bytes.ToUpper(b))
	})
	l.commit(web(mesh.AppProtocolTCP, backend)...)
	c := dial(t, l.outbound(vip))
	io.WriteString(c, "half")
	c.CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "HALF" {
		t.Fatalf("%q, %v", b, err)
	}
}

func TestTunnelBulk(t *testing.T) {
	l := newLab(t)
	const size = 48 << 20
	src := rand.NewChaCha8([32]byte{1})
	sum := make(chan [32]byte, 1)
	backend := tcpServer(t, func(c *net.TCPConn) {
		h := sha256.New()
		io.Copy(h, c)
		sum <- [32]byte(h.Sum(nil))
		// And the same amount back.
		io.CopyN(c, rand.NewChaCha8([32]byte{2}), size)
	})
	l.commit(web(mesh.AppProtocolTCP, backend)...)
	c := dial(t, l.outbound(vip))
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(c, h), src, size); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	if got := <-sum; got != [32]byte(h.Sum(nil)) {
		t.Error("the endpoint got other bytes")
	}
	back, want := sha256.New(), sha256.New()
	if n, err := io.Copy(back, c); err != nil || n != size {
		t.Fatalf("back: %d, %v", n, err)
	}
	io.CopyN(want, rand.NewChaCha8([32]byte{2}), size)
	if !bytes.Equal(back.Sum(nil), want.Sum(nil)) {
		t.Error("the client got other bytes")
	}
	f := l.flow("tcp", func(f *flow.Flow) bool { return f.Type == flow.TypeTCP })
	if f.BytesIn != size || f.BytesOut != size {
		t.Errorf("flow counts %d in, %d out", f.BytesIn, f.BytesOut)
	}
	if s := l.loopStats(); s.Splices == 0 {
		t.Error("bulk was not spliced")
	}
}

// TestTunnelServerFirst: a client of unknown protocol that waits for the server's
// greeting gets it, although a route is attached.
func TestTunnelServerFirst(t *testing.T) {
	l := newLab(t)
	backend := tcpServer(t, func(c *net.TCPConn) {
		io.WriteString(c, "220 ready\r\n")
		io.Copy(c, c)
	})
	l.commit(routed(web(mesh.AppProtocolUnknown, backend), to(webCluster))...)
	c := dial(t, l.outbound(vip))
	got := make([]byte, 11)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "220 ready\r\n" {
		t.Fatalf("greeting: %q, %v", got, err)
	}
	// What comes now looks like HTTP and is none.
	io.WriteString(c, "GET / HTTP/1.1\r\n")
	got = make([]byte, 16)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "GET / HTTP/1.1\r\n" {
		t.Fatalf("echo: %q, %v", got, err)
	}
}

// wantReset connects and wants a reset, which may come before connect returns.
func wantReset(t *testing.T, addr netip.AddrPort) {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err == nil {
		defer c.Close()
		_, err = io.ReadAll(c)
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

func TestTunnelRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		setup  func(l *lab)
		reason flow.Reason
	}{
		{"connect failed", func(l *lab) { l.commit(web(mesh.AppProtocolTCP, refusing(t))...) }, flow.ReasonConnectFailed},
		{"no endpoint", func(l *lab) { l.commit(web(mesh.AppProtocolTCP)...) }, flow.ReasonNoHealthyEndpoint},
		{"no service", func(l *lab) {}, flow.ReasonNoRoute},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLab(t)
			test.setup(l)
			wantReset(t, l.outbound(vip))
			f := l.flow("refusal", func(f *flow.Flow) bool { return f.Type == flow.TypeTCP })
			if f.Reason != test.reason || f.Verdict == flow.VerdictForwarded {
				t.Errorf("%s %s, want %s", f.Verdict, f.Reason, test.reason)
			}
		})
	}
}

// TestTunnelNextEndpoint: an endpoint that refuses does not cost the connection.
func TestTunnelNextEndpoint(t *testing.T) {
	l := newLab(t)
	backend := tcpServer(t, echo)
	l.commit(web(mesh.AppProtocolTCP, refusing(t), backend)...)
	addr := l.outbound(vip)
	for range 10 {
		c := dial(t, addr)
		io.WriteString(c, "x")
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

func TestNoOriginalDestination(t *testing.T) {
	l := newLab(t)
	addr := l.outbound(vip)
	l.mu.Lock()
	clear(l.origins)
	l.mu.Unlock()
	wantReset(t, addr)
	f := l.flow("drop", func(f *flow.Flow) bool { return true })
	if f.Verdict != flow.VerdictDropped || f.Reason != flow.ReasonNoOriginalDestination || f.Source.Workload != client {
		t.Errorf("flow %+v", f)
	}
}
