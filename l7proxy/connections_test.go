package l7proxy

import (
	"context"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
)

// TestConnections: a connection is shown with what the kernel counted, under an
// identifier that stays while others come and go; more of them than a loop describes
// at a time are all shown.
func TestConnections(t *testing.T) {
	l := newLab(t)
	l.commit(web(mesh.AppProtocolTCP, tcpServer(t, func(c *net.TCPConn) { io.Copy(c, c) }))...)
	addr := l.outbound(vip)
	const n = 3 * snapshotBatch / 2
	var conns []*net.TCPConn
	for i := range n {
		c := dial(t, addr)
		if _, err := c.Write(make([]byte, 10+i)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 10+i)); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	list := func() map[uint64]Connection {
		held, err := l.proxy.Snapshot(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		out := map[uint64]Connection{}
		for _, c := range held {
			if out[c.ID].ID != 0 {
				t.Fatalf("two connections have the identifier %d", c.ID)
			}
			out[c.ID] = c
		}
		return out
	}
	of := func(all map[uint64]Connection, c *net.TCPConn) Connection {
		t.Helper()
		for _, conn := range all {
			if conn.Source == c.LocalAddr().(*net.TCPAddr).AddrPort() {
				return conn
			}
		}
		t.Fatalf("no connection of %s", c.LocalAddr())
		return Connection{}
	}
	before := list()
	if len(before) != n || l.proxy.Connections() != n {
		t.Fatalf("%d connections, %d counted, want %d", len(before), l.proxy.Connections(), n)
	}
	for i, c := range conns {
		conn := of(before, c)
		if conn.BytesIn != uint64(10+i) || conn.BytesOut != uint64(10+i) || conn.Idle > conn.Age || conn.Protocol != "tcp" || conn.Service != (mesh.Name{Namespace: "shop", Name: "web"}) || conn.TLS != nil {
			t.Fatalf("connection %d is %+v", i, conn)
		}
	}
	// The first goes, and the last takes its place in the list.
	conns[0].Close()
	for deadline := time.Now().Add(patience); l.proxy.Connections() != n-1; {
		if time.Now().After(deadline) {
			t.Fatal("a closed connection stays")
		}
	}
	after := list()
	for _, c := range slices.Backward(conns[1:]) {
		if a, b := of(after, c), of(before, c); a.ID != b.ID {
			t.Fatalf("the connection %d became %d", b.ID, a.ID)
		}
	}
	if c := dial(t, addr); c != nil {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		io.ReadFull(c, make([]byte, 1))
		if id := of(list(), c).ID; before[id].ID != 0 {
			t.Errorf("a new connection has the identifier %d of an old one", id)
		}
	}
}
