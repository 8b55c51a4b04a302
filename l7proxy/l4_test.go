package l7proxy

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// tlsServer answers each connection with a word and the server name that the client
// asked for, and then echoes.
func tlsServer(t testing.TB, word string, cert *mesh.Certificate) netip.AddrPort {
	t.Helper()
	pair, err := tls.X509KeyPair(cert.ChainPEM, cert.KeyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return tcpServer(t, func(c *net.TCPConn) {
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"own"}})
		if s.Handshake() != nil {
			return
		}
		fmt.Fprintf(s, "%s %s\n", word, s.ConnectionState().ServerName)
		io.Copy(s, s)
		s.Close()
	})
}

// line reads up to a line feed.
func line(t testing.TB, r io.Reader) string {
	t.Helper()
	var out []byte
	for b := make([]byte, 1); ; out = append(out, b[0]) {
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatalf("after %q: %v", out, err)
		}
		if b[0] == '\n' {
			return string(out)
		}
	}
}

// dribble writes a ClientHello one byte at a time, in records of one byte each for
// the first bytes of it.
type dribble struct {
	net.Conn
	began bool
}

func (d *dribble) Write(p []byte) (int, error) {
	if d.began {
		return d.Conn.Write(p)
	}
	d.began = true
	var wire []byte
	body := p[5:]
	for range 3 {
		wire = append(wire, p[0], p[1], p[2], 0, 1, body[0])
		body = body[1:]
	}
	wire = append(wire, p[0], p[1], p[2], byte(len(body)>>8), byte(len(body)))
	wire = append(wire, body...)
	for i := range wire {
		if _, err := d.Conn.Write(wire[i : i+1]); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// TestGatewaySNI has HTTPS, TLS passthrough and TLS termination on one port.
func TestGatewaySNI(t *testing.T) {
	l := newLab(t)
	edgeCert, edgeRoots := certificate(t, "infra/edge", "www.example.com", "term.example.com")
	ownCert, ownRoots := certificate(t, "", "a.pass.example.com", "exact.pass.example.com")
	to := func(name string) []mesh.WeightedCluster { return []mesh.WeightedCluster{{Cluster: name, Weight: 1}} }
	wild, exact := "shop/wild/443", "shop/exact/443"
	l.commit(edgeCert, gatewayListener(
		mesh.Chain{Name: "pass", ServerNames: []string{"exact.pass.example.com"}, Passthrough: true, Default: to(exact)},
		mesh.Chain{Name: "term", ServerNames: []string{"term.example.com"}, Certificates: []string{"infra/edge"}, Default: to("shop/plain/80")},
		mesh.Chain{Name: "pass", ServerNames: []string{"*.pass.example.com"}, Passthrough: true, Default: to(wild)},
		mesh.Chain{Name: "pass", ServerNames: []string{"none.example.com"}, Passthrough: true},
		mesh.Chain{Name: "https", ServerNames: []string{"*.example.com"}, Certificates: []string{"infra/edge"}, RouteTable: edge + "/https"},
	),
		cluster(wild, mesh.AppProtocolTLS), clusterEndpoints(wild, tlsServer(t, "wild", ownCert)),
		cluster(exact, mesh.AppProtocolTLS), clusterEndpoints(exact, tlsServer(t, "exact", ownCert)),
		cluster("shop/plain/80", ""), clusterEndpoints("shop/plain/80", tcpServer(t, func(c *net.TCPConn) {
			io.WriteString(c, "plain\n") // the server speaks first
			io.Copy(c, c)
			c.Close()
		})),
	)
	addr := l.gateway(edge)
	for _, test := range []struct {
		name, want string
		slow       bool
	}{
		{"a.pass.example.com", "wild a.pass.example.com", false},
		{"exact.pass.example.com", "exact exact.pass.example.com", false},
		{"exact.pass.example.com", "exact exact.pass.example.com", true},
		{"term.example.com", "plain", false},
		{"term.example.com", "plain", true},
	} {
		var raw net.Conn = dial(t, addr)
		if test.slow {
			raw = &dribble{Conn: raw}
		}
		roots, alpn := ownRoots, "own"
		if test.want == "plain" {
			roots, alpn = edgeRoots, ""
		}
		c := tls.Client(raw, &tls.Config{ServerName: test.name, RootCAs: roots, NextProtos: []string{"own"}})
		if got := line(t, c); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
		if got := c.ConnectionState().NegotiatedProtocol; got != alpn {
			t.Errorf("%s: ALPN %q, want %q", test.name, got, alpn)
		}
		io.WriteString(c, "bytes both ways\n")
		if got := line(t, c); got != "bytes both ways" {
			t.Errorf("%s: echo %q", test.name, got)
		}
		// A half-close goes through, and back.
		c.CloseWrite()
		if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
			t.Errorf("%s: %q, %v after the half-close", test.name, rest, err)
		}
		c.Close()
		f := l.flow(test.name, func(f *flow.Flow) bool { return f.Type == flow.TypeTCP })
		if f.Reason != flow.ReasonNone || !f.Ingress || f.BytesIn == 0 || f.BytesOut == 0 {
			t.Errorf("%s: flow %+v", test.name, f)
		}
	}
	for name, want := range map[string]flow.Reason{
		"none.example.com": flow.ReasonNoRoute, "other.test": flow.ReasonNoChain, "": flow.ReasonNoChain,
	} {
		err := tls.Client(dial(t, addr), &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
		if err == nil {
			t.Errorf("%q: shook hands", name)
		}
		if f := l.flow(name, func(f *flow.Flow) bool { return f.Type == flow.TypeTCP }); f.Reason != want || f.Detail == "" {
			t.Errorf("%q: flow %+v, want %s", name, f, want)
		}
	}
}

// TestGatewayNotTLS sends what is no ClientHello to a port that has only TLS routes.
func TestGatewayNotTLS(t *testing.T) {
	l := newLab(t)
	l.commit(gatewayListener(mesh.Chain{Name: "pass", ServerNames: []string{"a.test"}, Passthrough: true, Default: to("shop/x/1").Clusters}))
	addr := l.gateway(edge)
	for _, first := range []string{
		"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", "SSH-2.0-x\r\n",
		"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00", "\x16\x03\x01\x40\x01\x01\x00\x40\x00",
	} {
		c := dial(t, addr)
		io.WriteString(c, first)
		if rest, err := io.ReadAll(c); err == nil && len(rest) > 0 {
			t.Errorf("%q: answered %q", first, rest)
		}
		f := l.flow(first, func(f *flow.Flow) bool { return true })
		if f.Reason != flow.ReasonDownstreamProtocol && f.Reason != flow.ReasonTLSHandshake {
			t.Errorf("%q: flow %+v", first, f)
		}
	}
}

// TestGatewayTCP relays bytes of a server that speaks first, by weight, and refuses
// what no route takes.
func TestGatewayTCP(t *testing.T) {
	l := newLab(t)
	greeter := func(word string) netip.AddrPort {
		return tcpServer(t, func(c *net.TCPConn) { fmt.Fprintln(c, word); io.Copy(c, c); c.Close() })
	}
	backends := []mesh.WeightedCluster{{Cluster: "shop/a/1", Weight: 3}, {Cluster: "shop/b/1", Weight: 1}}
	l.commit(gatewayListener(mesh.Chain{Name: "db", Default: backends}),
		cluster("shop/a/1", ""), clusterEndpoints("shop/a/1", greeter("a")),
		cluster("shop/b/1", ""), clusterEndpoints("shop/b/1", greeter("b")))
	addr := l.gateway(edge)
	got := map[string]int{}
	const n = 200
	for range n {
		c := dial(t, addr)
		got[line(t, c)]++
		c.Close()
	}
	// Four standard deviations of the binomial distribution.
	if a := got["a"]; a < n*3/4-25 || a > n*3/4+25 || got["b"] != n-a {
		t.Errorf("%v of weights 3 and 1", got)
	}
	l.commit(gatewayListener(mesh.Chain{Name: "db"}))
	wantReset(t, addr)
	if f := l.flow("no route", func(f *flow.Flow) bool { return f.Reason != flow.ReasonNone }); f.Reason != flow.ReasonNoRoute {
		t.Errorf("flow %+v", f)
	}
	l.commit(gatewayListener(mesh.Chain{Name: "db", Default: []mesh.WeightedCluster{{Weight: 1}}}))
	wantReset(t, addr)
	if f := l.flow("no backend", func(f *flow.Flow) bool { return f.Reason != flow.ReasonNone }); f.Reason != flow.ReasonNoBackend {
		t.Errorf("flow %+v", f)
	}
}
