package steer_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/dataplane/internal/lab"
	"github.com/sluice-mesh/sluice/dataplane/steer"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// answer has a listener answer each connection with a name and its own address.
func answer(t *testing.T, l *net.TCPListener, name string) {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%s %s", name, c.LocalAddr())
			c.Close()
		}
	}()
}

// dialFrom connects from a namespace as a process of the node, bound to an address if it is
// valid, and returns what it reads.
func dialFrom(t *testing.T, n *lab.Netns, from netip.Addr, to netip.AddrPort) (string, error) {
	t.Helper()
	var got string
	var err error
	n.Do(t, func() error {
		d := net.Dialer{}
		if from.IsValid() {
			d.LocalAddr = net.TCPAddrFromAddrPort(at(from, 0))
		}
		var c net.Conn
		// The dialer stays on this thread: the address is literal.
		if c, err = d.Dial("tcp", to.String()); err != nil {
			return nil
		}
		defer c.Close()
		b, rerr := io.ReadAll(c)
		got, err = string(b), rerr
		return nil
	})
	return got, err
}

func TestGateway(t *testing.T) {
	m := lab.NewMesh(t)
	p := m.Enrol(t, "client")
	if err := m.Steer.AttachNode(m.Netns.FD); err != nil {
		t.Fatal(err)
	}
	gw4, gw6 := netip.MustParseAddr("10.97.0.1"), netip.MustParseAddr("fd97::1")
	m.Netns.AddAddr(t, gw4)
	m.Netns.AddAddr(t, gw6)
	front := func(a netip.Addr, p mesh.Protocol) mesh.Frontend {
		return mesh.Frontend{AddrPort: at(a, 80), Protocol: p}
	}
	set := func(f mesh.Frontend, l syscall.Conn) {
		t.Helper()
		lab.FD(t, l, func(fd int) {
			if err := m.Steer.SetGateway(f, fd); err != nil {
				t.Fatal(err)
			}
		})
	}
	l4 := m.Netns.Listen(t, netip.MustParseAddrPort("127.0.0.1:18080"))
	l6 := m.Netns.Listen(t, netip.MustParseAddrPort("[::1]:18080"))
	answer(t, l4, "one")
	answer(t, l6, "one")
	set(front(gw4, mesh.ProtocolTCP), l4)
	set(front(gw6, mesh.ProtocolTCP), l6)
	u := m.Netns.ListenPacket(t, netip.MustParseAddrPort("127.0.0.1:18080"))
	set(front(gw4, mesh.ProtocolUDP), u)

	app := p.App(t)
	ask := func(to netip.AddrPort) (string, error) {
		domain := unix.AF_INET6
		if to.Addr().Is4() {
			domain = unix.AF_INET
		}
		fd := app.Socket(domain, unix.SOCK_STREAM)
		defer app.Close(fd)
		if err := app.Connect(fd, to); err != nil {
			return "", err
		}
		return app.Recv(fd), nil
	}
	for _, to := range []netip.AddrPort{at(gw4, 80), at(gw6, 80)} {
		want := "one " + to.String()
		if got, err := ask(to); err != nil || got != want {
			t.Errorf("from a pod: %q, %v; want %q", got, err, want)
		}
		if got, err := dialFrom(t, m.Netns, netip.Addr{}, to); err != nil || got != want {
			t.Errorf("from the node: %q, %v; want %q", got, err, want)
		}
	}
	fd := app.Socket(unix.AF_INET, unix.SOCK_DGRAM)
	if err := app.SendTo(fd, "ping", at(gw4, 80)); err != nil {
		t.Fatal(err)
	}
	var buf [16]byte
	if n, from, err := u.ReadFromUDPAddrPort(buf[:]); err != nil || string(buf[:n]) != "ping" || from.Addr() != p.Addr4 {
		t.Errorf("UDP: %q from %s, %v", buf[:n], from, err)
	}

	// Another listener in its place, with no moment without.
	second := m.Netns.Listen(t, netip.MustParseAddrPort("127.0.0.1:18081"))
	answer(t, second, "two")
	counts := make(chan map[string]int)
	go func() { counts <- app.Hammer(unix.AF_INET, at(gw4, 80), 500) }()
	for range 50 {
		set(front(gw4, mesh.ProtocolTCP), second)
		set(front(gw4, mesh.ProtocolTCP), l4)
	}
	set(front(gw4, mesh.ProtocolTCP), second)
	got := <-counts
	if got["one 10.97.0.1:80"]+got["two 10.97.0.1:80"] != 500 {
		t.Errorf("while the listener was replaced: %v", got)
	}
	if got, err := ask(at(gw4, 80)); err != nil || got != "two 10.97.0.1:80" {
		t.Errorf("after the replacement: %q, %v", got, err)
	}

	// A listener that is gone lets nobody else have the connection.
	wild := m.Netns.Listen(t, netip.MustParseAddrPort("0.0.0.0:80"))
	answer(t, wild, "wild")
	second.Close()
	if got, err := ask(at(gw4, 80)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("with the listener gone: %q, %v; want ECONNREFUSED", got, err)
	}
	f := m.WaitFlow(t, "listener-closed", func(f *flow.Flow) bool { return f.Reason == flow.ReasonListenerClosed })
	if f.Verdict != flow.VerdictDropped || f.Original != at(gw4, 80) || f.Source.AddrPort.Addr() != p.Addr4 ||
		f.Source.AddrPort.Port() == 0 || f.Source.Workload.Name != "client" || !f.Ingress {
		t.Errorf("flow: %+v", f)
	}
	for range 2 {
		if err := m.Steer.RemoveGateway(front(gw4, mesh.ProtocolTCP)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := ask(at(gw4, 80)); err != nil || got != "wild 10.97.0.1:80" {
		t.Errorf("after RemoveGateway: %q, %v", got, err)
	}
	// Slots come back: more rounds than there are.
	for i := range 200 {
		f := mesh.Frontend{AddrPort: at(gw4, uint16(1000+i)), Protocol: mesh.ProtocolTCP}
		set(f, l4)
		if err := m.Steer.RemoveGateway(f); err != nil {
			t.Fatal(err)
		}
	}
	// What cannot be steered to is refused when it is set, not when it is used.
	mptcp := -1
	m.Netns.Do(t, func() (err error) {
		mptcp, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
		return err
	})
	defer unix.Close(mptcp)
	if err := m.Steer.SetGateway(front(gw4, mesh.ProtocolTCP), mptcp); err == nil || !strings.Contains(err.Error(), gw4.String()) {
		t.Errorf("an MPTCP socket: %v", err)
	}
	if got := len(m.Steer.Gateways()); got != 2 {
		t.Errorf("%d gateways, want 2", got)
	}
}

func TestInbound(t *testing.T) {
	m := lab.NewMesh(t)
	p, c := m.Enrol(t, "server"), m.Enrol(t, "client")
	if err := m.Steer.AttachPod(p.Index(), p.FD); err != nil {
		t.Fatal(err)
	}
	if err := m.Steer.AttachPod(4711, p.FD); err == nil {
		t.Error("attached to a workload that is not enrolled")
	}
	own4, own6 := p.Listen(t, at(p.Addr4, 8080)), p.Listen(t, at(p.Addr6, 8080))
	answer(t, own4, "app")
	answer(t, own6, "app")
	proxy := map[netip.Addr]*net.TCPListener{}
	for _, a := range []netip.Addr{p.Addr4, p.Addr6} {
		proxy[a] = p.Listen(t, at(a, steer.InboundPort))
		answer(t, proxy[a], "proxy")
		lab.FD(t, proxy[a], func(fd int) {
			if err := m.Steer.SetInbound(at(a, 8080), fd, true); err != nil {
				t.Fatal(err)
			}
		})
	}
	client, self := c.App(t), p.App(t)
	ask := func(app *lab.App, to netip.AddrPort) (string, error) {
		domain := unix.AF_INET6
		if to.Addr().Is4() {
			domain = unix.AF_INET
		}
		fd := app.Socket(domain, unix.SOCK_STREAM)
		defer app.Close(fd)
		if err := app.Connect(fd, to); err != nil {
			return "", err
		}
		return app.Recv(fd), nil
	}
	for _, a := range []netip.Addr{p.Addr4, p.Addr6} {
		to := at(a, 8080)
		for name, app := range map[string]*lab.App{"another pod": client, "the pod itself": self} {
			if got, err := ask(app, to); err != nil || got != "proxy "+to.String() {
				t.Errorf("from %s: %q, %v; want the proxy as %s", name, got, err, to)
			}
		}
		// The node proxy's own connections, from the client's namespace and from the pod's.
		for name, n := range map[string]*lab.Netns{"the client's": c.Netns, "the pod's": p.Netns} {
			if got, err := dialFrom(t, n, netip.Addr{}, to); err != nil || got != "app "+to.String() {
				t.Errorf("the node proxy from %s namespace: %q, %v; want the app", name, got, err)
			}
		}
	}
	if n := lengthOf(t, m); n != 0 {
		t.Errorf("%d own tuples are left", n)
	}
	// Other ports are the application's.
	answer(t, p.Listen(t, at(p.Addr4, 9090)), "app")
	if got, err := ask(client, at(p.Addr4, 9090)); err != nil || got != "app "+at(p.Addr4, 9090).String() {
		t.Errorf("another port: %q, %v", got, err)
	}
	proxy[p.Addr4].Close()
	if got, err := ask(client, at(p.Addr4, 8080)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("with the listener gone: %q, %v; want ECONNREFUSED", got, err)
	}
	f := m.WaitFlow(t, "listener-closed", func(f *flow.Flow) bool { return f.Reason == flow.ReasonListenerClosed })
	if f.Source.Workload.Name != "client" || f.Original != at(p.Addr4, 8080) || f.Ingress {
		t.Errorf("flow: %+v", f)
	}
	if err := m.Steer.RemoveInbound(at(p.Addr4, 8080)); err != nil {
		t.Fatal(err)
	}
	if got, err := ask(client, at(p.Addr4, 8080)); err != nil || !strings.HasPrefix(got, "app") {
		t.Errorf("after RemoveInbound: %q, %v", got, err)
	}
	// Withdrawal takes the rest away.
	if err := m.Steer.Withdraw(p.Index()); err != nil {
		t.Fatal(err)
	}
	var key bpf.MeshFrontend
	if err := m.Datapath.Maps().Inbound.NextKey(nil, &key); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("an inbound listener of %s is left: %v", key.AddrPort(), err)
	}
	if got, err := ask(client, at(p.Addr6, 8080)); err != nil || !strings.HasPrefix(got, "app") {
		t.Errorf("after the withdrawal: %q, %v", got, err)
	}
}

func lengthOf(t *testing.T, m *lab.Mesh) int {
	t.Helper()
	var key [36]byte
	var value uint32
	n := 0
	it := m.Datapath.Maps().OwnTuples.Iterate()
	for it.Next(&key, &value) {
		n++
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}
