package steer_test

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/internal/lab"
	"github.com/sluice-mesh/sluice/dataplane/steer"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// clients is a workload with two processes, an endpoint, the node proxy, and two services: one
// goes to the proxy, the other to the endpoint.
type clients struct {
	*lab.Mesh
	pod, backend *lab.Pod
	app, second  *lab.App
	dir          string // for sockets that pass sockets
	passed       int
}

// family is one way to name a destination.
type family struct {
	name   string
	domain int
	six    bool // the wire is IPv6
}

var families = []family{
	{"IPv4", unix.AF_INET, false},
	{"IPv6", unix.AF_INET6, true},
	{"mapped", unix.AF_INET6, false},
}

// of returns the one of two addresses that is of the family on the wire.
func (f family) of(four, six netip.Addr) netip.Addr {
	if f.six {
		return six
	}
	return four
}

// shown is how system calls on a socket of the family show an address.
func (f family) shown(a netip.AddrPort) netip.AddrPort {
	if f.domain == unix.AF_INET6 {
		return mapped(a)
	}
	return a
}

// client is a kind of client: a way to get from a new socket to a connected one.
type client struct {
	name string
	// connect returns the application that has the connected socket in the end, and its
	// descriptor. Nil: connect(2) on a blocking TCP socket, after prepare.
	connect func(t *testing.T, c *clients, f family, to netip.AddrPort) (*lab.App, int)
	prepare func(t *testing.T, c *clients, f family, fd int) error
}

// spoken is what a client sends first.
const spoken = "ping"

func (c *clients) socket(f family) int { return c.app.Socket(f.domain, unix.SOCK_STREAM) }

// pass hands a socket of app to second.
func (c *clients) pass(fd int) int {
	c.passed++
	return c.app.PassTo(c.second, fd, filepath.Join(c.dir, fmt.Sprint(c.passed)))
}

var clientKinds = []client{
	{name: "blocking"},
	{name: "non-blocking", connect: func(t *testing.T, c *clients, f family, to netip.AddrPort) (*lab.App, int) {
		fd := c.app.Socket(f.domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
		err := c.app.Connect(fd, to)
		if !errors.Is(err, unix.EINPROGRESS) {
			t.Fatalf("connect: %v, want EINPROGRESS", err)
		}
		if err := c.app.WaitWritable(fd); err != nil {
			t.Fatal(err)
		}
		c.app.Block(fd)
		return c.app, fd
	}},
	{name: "bound to its address", prepare: func(t *testing.T, c *clients, f family, fd int) error {
		return c.app.Bind(fd, at(f.of(c.pod.Addr4, c.pod.Addr6), 0))
	}},
	{name: "bound to its address and a port", prepare: func(t *testing.T, c *clients, f family, fd int) error {
		return c.app.Bind(fd, at(f.of(c.pod.Addr4, c.pod.Addr6), 25000))
	}},
	{name: "bound to its device", prepare: func(t *testing.T, c *clients, f family, fd int) error {
		return c.app.BindToDevice(fd, "eth0")
	}},
	{name: "marked", prepare: func(t *testing.T, c *clients, f family, fd int) error {
		return c.app.SetOption(fd, unix.SOL_SOCKET, unix.SO_MARK, 7)
	}},
	{name: "fast open, MSG_FASTOPEN", connect: func(t *testing.T, c *clients, f family, to netip.AddrPort) (*lab.App, int) {
		return c.fastOpen(t, f, func(fd int) error { return c.app.FastOpen(fd, spoken, to) })
	}},
	{name: "fast open, TCP_FASTOPEN_CONNECT", connect: func(t *testing.T, c *clients, f family, to netip.AddrPort) (*lab.App, int) {
		return c.fastOpen(t, f, func(fd int) error {
			if err := c.app.SetOption(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1); err != nil {
				return err
			}
			if err := c.app.Connect(fd, to); err != nil {
				return err
			}
			c.app.Send(fd, spoken)
			return nil
		})
	}},
	{name: "MPTCP", connect: func(t *testing.T, c *clients, f family, to netip.AddrPort) (*lab.App, int) {
		fd := c.app.SocketOf(f.domain, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
		if err := c.app.Connect(fd, to); err != nil {
			t.Fatal(err)
		}
		return c.app, fd
	}},
	{name: "connected, then passed to another process", connect: func(t *testing.T, c *clients, f family, to netip.AddrPort) (*lab.App, int) {
		fd := c.socket(f)
		if err := c.app.Connect(fd, to); err != nil {
			t.Fatal(err)
		}
		passed := c.pass(fd)
		c.app.Close(fd)
		return c.second, passed
	}},
	{name: "passed to another process, then connected", connect: func(t *testing.T, c *clients, f family, to netip.AddrPort) (*lab.App, int) {
		fd := c.socket(f)
		passed := c.pass(fd)
		c.app.Close(fd)
		if err := c.second.Connect(passed, to); err != nil {
			t.Fatal(err)
		}
		return c.second, passed
	}},
	{name: "second connect after a refusal", prepare: func(t *testing.T, c *clients, f family, fd int) error {
		for _, to := range []netip.AddrPort{
			at(f.of(vip4, vip6), deafPort), at(f.of(vip4, vip6), emptyPort), at(f.of(c.backend.Addr4, c.backend.Addr6), 9),
		} {
			if err := c.app.Connect(fd, to); !errors.Is(err, unix.ECONNREFUSED) {
				return fmt.Errorf("connect to %s: %w, want ECONNREFUSED", to, err)
			}
		}
		return nil
	}},
	{name: "second connect after AF_UNSPEC", prepare: func(t *testing.T, c *clients, f family, fd int) error {
		for _, port := range []uint16{steeredPort, servicePort} {
			if err := c.app.Connect(fd, at(f.of(vip4, vip6), port)); err != nil {
				return err
			}
			if err := c.app.Disconnect(fd); err != nil {
				return err
			}
			if err := c.app.PeerError(fd); !errors.Is(err, unix.ENOTCONN) {
				return fmt.Errorf("getpeername after AF_UNSPEC: %w, want ENOTCONN", err)
			}
		}
		return nil
	}},
}

// fastOpen opens a connection twice: the first brings a cookie (RFC 7413), the second
// carries data in its SYN.
func (c *clients) fastOpen(t *testing.T, f family, open func(fd int) error) (*lab.App, int) {
	for _, last := range []bool{false, true} {
		fd := c.socket(f)
		if err := open(fd); err != nil {
			t.Fatal(err)
		}
		// The answer says that the handshake is over.
		if !last {
			c.app.Recv(fd)
			c.app.Close(fd)
			continue
		}
		return c.app, fd
	}
	return nil, -1
}

// The services' ports: what goes to the proxy, to the endpoint, to an endpoint that does not
// listen, and to none at all.
const (
	steeredPort, servicePort, deafPort, emptyPort uint16 = 80, 81, 82, 83
	backendPort                                   uint16 = 8080
)

// TestClients: every kind of client reaches the node proxy or an endpoint, whoever it
// dials is told to it as the peer, its own address is its own, the proxy learns where it
// was going, and nothing is left of it.
func TestClients(t *testing.T) {
	m := lab.NewMesh(t)
	c := &clients{Mesh: m, pod: m.Enrol(t, "client"), backend: m.Enrol(t, "backend"), dir: t.TempDir()}
	c.pod.FastOpen(t)
	c.backend.FastOpen(t)
	c.app, c.second = c.pod.App(t), c.pod.App(t)
	m.Proxy(t, c.pod)
	service := mesh.ServicePort{Port: servicePort, Protocol: mesh.ProtocolTCP}
	deaf := mesh.ServicePort{Port: deafPort, Protocol: mesh.ProtocolTCP}
	for _, a := range []netip.Addr{c.backend.Addr4, c.backend.Addr6} {
		c.backend.Echo(t, "backend", at(a, backendPort))
		service.Endpoints = append(service.Endpoints, mesh.Endpoint{AddrPort: at(a, backendPort)})
		deaf.Endpoints = append(deaf.Endpoints, mesh.Endpoint{AddrPort: at(a, 9)})
	}
	s := steered()
	s.Ports = append(s.Ports, service, deaf, mesh.ServicePort{Port: emptyPort, Protocol: mesh.ProtocolTCP})
	m.SetService(t, s)

	for _, kind := range clientKinds {
		for _, f := range families {
			for _, port := range []uint16{steeredPort, servicePort, 0} {
				name := map[uint16]string{steeredPort: "steered", servicePort: "translated", 0: "no service"}[port]
				t.Run(kind.name+"/"+f.name+"/"+name, func(t *testing.T) { c.try(t, kind, f, port) })
			}
		}
	}
	for what, table := range map[string]*ebpf.Map{"original destinations": m.Datapath.Maps().Pending, "translations": m.Datapath.Maps().Translated} {
		if n := count(t, table); n != 0 {
			t.Errorf("%d %s were left behind", n, what)
		}
	}
	flows := m.WaitFlow(t, "redirected", func(f *flow.Flow) bool { return f.Verdict == flow.VerdictRedirected })
	if flows.Original != at(vip4, 80) || flows.Destination.AddrPort.Addr() != c.pod.Addr4 ||
		flows.Destination.AddrPort.Port() < steer.OutboundPort || flows.Destination.AddrPort.Port() > steer.LastOutboundPort ||
		flows.Source.Workload.Name != "client" || flows.Source.AddrPort.Addr() != c.pod.Addr4 || flows.Protocol != mesh.ProtocolTCP {
		t.Errorf("flow: %+v", flows)
	}
}

// try connects one client to a service's port, or with port zero to the endpoint itself.
func (c *clients) try(t *testing.T, kind client, f family, port uint16) {
	to := at(f.of(vip4, vip6), port)
	want := fmt.Sprintf("%s %d", to, c.pod.Index())
	if port == 0 {
		to = at(f.of(c.backend.Addr4, c.backend.Addr6), backendPort)
	}
	if port != steeredPort {
		want = "backend\n"
	}
	var app *lab.App
	var fd int
	if kind.connect != nil {
		app, fd = kind.connect(t, c, f, to)
	} else {
		app, fd = c.app, c.socket(f)
		if kind.prepare != nil {
			if err := kind.prepare(t, c, f, fd); err != nil {
				t.Fatal(err)
			}
		}
		if err := app.Connect(fd, to); err != nil {
			t.Fatalf("connect: %v", err)
		}
	}
	// Resets, so that a port that was bound is free again.
	defer app.Reset(fd)
	got := app.Recv(fd)
	if strings.HasPrefix(kind.name, "fast open") {
		if !app.SentInSYN(fd) {
			t.Error("the data was not in the SYN")
		}
	} else {
		app.Send(fd, spoken)
	}
	for len(got) < len(want)+len(spoken) {
		more := app.Recv(fd)
		if more == "" {
			break
		}
		got += more
	}
	if got != want+spoken {
		t.Errorf("answered %q, want %q", got, want+spoken)
	}
	if got := app.Peer(fd); got != f.shown(to) {
		t.Errorf("getpeername: %s, want %s", got, f.shown(to))
	}
	if got, want := app.Local(fd).Addr(), f.shown(at(f.of(c.pod.Addr4, c.pod.Addr6), 0)).Addr(); got != want {
		t.Errorf("getsockname: %s, want %s", got, want)
	}
}

// count returns how many entries a map has.
func count(t *testing.T, m *ebpf.Map) int {
	t.Helper()
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	n := 0
	it := m.Iterate()
	for it.Next(&key, &value) {
		n++
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}
