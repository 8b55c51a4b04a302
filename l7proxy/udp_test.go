package l7proxy

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

const edgeUDP = "gateway/infra/edge/53/udp"

// udpServer answers each datagram with a word, the sender's address and the datagram.
func udpServer(t testing.TB, network, word string) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket(network, loopbackOf(network))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(fmt.Appendf(nil, "%s %s %s", word, from, buf[:n]), from)
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func loopbackOf(network string) string {
	if network == "udp6" {
		return "[::1]:0"
	}
	return "127.0.0.1:0"
}

// gatewayUDP gives the proxy a UDP socket of a Gateway.
func (l *lab) gatewayUDP(network string) netip.AddrPort {
	l.t.Helper()
	c, err := net.ListenPacket(network, loopbackOf(network))
	if err != nil {
		l.t.Fatal(err)
	}
	defer c.Close()
	f, err := c.(*net.UDPConn).File()
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	addr := c.LocalAddr().(*net.UDPAddr).AddrPort()
	dup, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(dup, true)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	if err := l.proxy.AddSocket(Socket{FD: dup, Type: SocketGateway, Protocol: mesh.ProtocolUDP, Listener: edgeUDP, Addr: addr}); err != nil {
		l.t.Fatal(err)
	}
	return addr
}

func udpListenerOf(backends ...mesh.WeightedCluster) *mesh.Listener {
	return &mesh.Listener{
		Name: edgeUDP, Type: mesh.ListenerGateway, Parent: mesh.Name{Namespace: "infra", Name: "edge"}, Port: 53, Protocol: mesh.ProtocolUDP,
		Chains: []mesh.Chain{{Name: "dns", Default: backends}},
	}
}

func dialUDP(t testing.TB, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	// Connected: an answer from any other address would not arrive.
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func askUDP(t testing.TB, c *net.UDPConn, text string) string {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

func TestGatewayUDP(t *testing.T) {
	for _, network := range []string{"udp4", "udp6"} {
		t.Run(network, func(t *testing.T) {
			l := newLab(t, func(c *Config) { c.Loops = 2 })
			a, b := udpServer(t, network, "a"), udpServer(t, network, "b")
			l.commit(udpListenerOf(mesh.WeightedCluster{Cluster: "shop/a/53/udp", Weight: 3}, mesh.WeightedCluster{Cluster: "shop/b/53/udp", Weight: 1}),
				cluster("shop/a/53/udp", ""), clusterEndpoints("shop/a/53/udp", a),
				cluster("shop/b/53/udp", ""), clusterEndpoints("shop/b/53/udp", b))
			addr := l.gatewayUDP(network)
			got := map[string]int{}
			const n = 200
			for i := range n {
				c := dialUDP(t, addr)
				first := strings.Fields(askUDP(t, c, "hello"))
				got[first[0]]++
				// All datagrams of a client come from one socket at one endpoint.
				text := strings.Repeat("x", 100*i)
				if again := strings.Fields(askUDP(t, c, text+".")); again[0] != first[0] || again[1] != first[1] || again[2] != text+"." {
					t.Fatalf("first %v, then %v", first, again[:2])
				}
			}
			// Four standard deviations of the binomial distribution.
			if got["a"] < n*3/4-25 || got["a"] > n*3/4+25 || got["a"]+got["b"] != n {
				t.Errorf("%v of weights 3 and 1", got)
			}
			if flows := l.metric("sluice_proxy_udp_flows_active"); flows != n {
				t.Errorf("%v flows, want %d", flows, n)
			}
		})
	}
}

// TestGatewayUDPMany sends a burst through one flow: batches lose no order.
func TestGatewayUDPMany(t *testing.T) {
	l := newLab(t)
	l.commit(udpListenerOf(mesh.WeightedCluster{Cluster: "shop/a/53/udp", Weight: 1}),
		cluster("shop/a/53/udp", ""), clusterEndpoints("shop/a/53/udp", udpServer(t, "udp4", "a")))
	c := dialUDP(t, l.gatewayUDP("udp4"))
	askUDP(t, c, "first")
	const n = 100
	for i := range n {
		fmt.Fprintf(c, "%d", i)
	}
	buf := make([]byte, 1<<16)
	for i := range n {
		k, err := c.Read(buf)
		if err != nil {
			t.Fatalf("datagram %d: %v", i, err)
		}
		if words := strings.Fields(string(buf[:k])); words[2] != fmt.Sprint(i) {
			t.Fatalf("datagram %d is %q", i, words[2])
		}
	}
}

// TestGatewayUDPEnds has flows end: by silence, with their endpoint, with the socket,
// and never begin above the limit or without a backend.
func TestGatewayUDPEnds(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits.UDPIdleTimeout, c.Limits.MaxConnections = 10*time.Millisecond, 1 })
	backend := udpServer(t, "udp4", "a")
	route := mesh.WeightedCluster{Cluster: "shop/a/53/udp", Weight: 1}
	l.commit(udpListenerOf(route), cluster("shop/a/53/udp", ""), clusterEndpoints("shop/a/53/udp", backend))
	addr := l.gatewayUDP("udp4")
	c := dialUDP(t, addr)
	askUDP(t, c, "hello")
	f := l.flow("idle", func(f *flow.Flow) bool { return f.Type == flow.TypeUDP })
	if f.Reason != flow.ReasonNone || f.BytesIn != 5 || f.BytesOut == 0 || f.Protocol != mesh.ProtocolUDP ||
		f.Destination.AddrPort != backend || f.Original != addr || f.Destination.Service.Name != "edge" || !f.Ingress {
		t.Errorf("flow %+v", f)
	}
	for _, step := range []struct {
		name   string
		change []mesh.Resource
		want   flow.Reason
	}{
		{"no route", []mesh.Resource{udpListenerOf()}, flow.ReasonNoRoute},
		{"invalid backend", []mesh.Resource{udpListenerOf(mesh.WeightedCluster{Weight: 1})}, flow.ReasonNoBackend},
		{"no endpoint", []mesh.Resource{udpListenerOf(route), clusterEndpoints("shop/a/53/udp")}, flow.ReasonNoHealthyEndpoint},
	} {
		l.commit(step.change...)
		// Refusals are reported once a second; all are counted.
		before := l.metric("sluice_proxy_udp_flows_total", "reason", step.want.String())
		fmt.Fprint(c, "x")
		for deadline := time.Now().Add(patience); l.metric("sluice_proxy_udp_flows_total", "reason", step.want.String()) == before; {
			if time.Now().After(deadline) {
				t.Fatalf("%s: not counted", step.name)
			}
		}
	}
}

// TestGatewayUDPEndpointGone moves a client to another endpoint when its own leaves.
func TestGatewayUDPEndpointGone(t *testing.T) {
	l := newLab(t)
	a, b := udpServer(t, "udp4", "a"), udpServer(t, "udp4", "b")
	l.commit(udpListenerOf(mesh.WeightedCluster{Cluster: "shop/a/53/udp", Weight: 1}),
		cluster("shop/a/53/udp", ""), clusterEndpoints("shop/a/53/udp", a))
	c := dialUDP(t, l.gatewayUDP("udp4"))
	if got := askUDP(t, c, "x"); !strings.HasPrefix(got, "a ") {
		t.Fatal(got)
	}
	l.commit(clusterEndpoints("shop/a/53/udp", a, b))
	if got := askUDP(t, c, "x"); !strings.HasPrefix(got, "a ") {
		t.Errorf("%q: an endpoint that is there was left", got)
	}
	l.commit(clusterEndpoints("shop/a/53/udp", b))
	if got := askUDP(t, c, "x"); !strings.HasPrefix(got, "b ") {
		t.Errorf("%q: an endpoint that is gone is still used", got)
	}
}

func TestGatewayUDPLimit(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits.MaxConnections = 2 })
	l.commit(udpListenerOf(mesh.WeightedCluster{Cluster: "shop/a/53/udp", Weight: 1}),
		cluster("shop/a/53/udp", ""), clusterEndpoints("shop/a/53/udp", udpServer(t, "udp4", "a")))
	addr := l.gatewayUDP("udp4")
	for range 2 {
		askUDP(t, dialUDP(t, addr), "x")
	}
	fmt.Fprint(dialUDP(t, addr), "x")
	if f := l.flow("over", func(*flow.Flow) bool { return true }); f.Reason != flow.ReasonOverLimit || f.Type != flow.TypeUDP {
		t.Errorf("flow %+v", f)
	}
}
