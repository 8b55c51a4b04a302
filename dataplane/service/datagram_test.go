package service_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/internal/lab"
	"github.com/sluice-mesh/sluice/dataplane/loader"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// vipOf returns the i-th address of either family for services.
func vipOf(i int, six bool) netip.Addr {
	if six {
		return netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x96, 13: 1, 14: byte(i >> 8), 15: byte(i)})
	}
	return netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)})
}

// asker sends a datagram on a socket and returns who answered; the answer must come from
// the address that was asked.
func asker(t *testing.T, app *lab.App, fd int) func(to netip.AddrPort) string {
	return func(to netip.AddrPort) string {
		t.Helper()
		if err := app.SendTo(fd, "x", to); err != nil {
			t.Fatalf("sendto %s: %v", to, err)
		}
		got, from := app.RecvFrom(fd)
		if from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port()); from != to {
			t.Errorf("the answer of %s came from %s", to, from)
		}
		return strings.TrimSuffix(got, " x")
	}
}

// TestOneSocketManyServices: one unconnected socket sends to a hundred services in turn, keeps
// its endpoint of each while others come, and leaves nothing when it is closed.
func TestOneSocketManyServices(t *testing.T) {
	const services = 100
	m := lab.NewMesh(t)
	p, b := m.Enrol(t, "client"), m.Enrol(t, "backend")
	app := p.App(t)
	for _, f := range []struct {
		name   string
		domain int
		six    bool
	}{{"IPv4", unix.AF_INET, false}, {"IPv6", unix.AF_INET6, true}, {"mapped", unix.AF_INET6, false}} {
		t.Run(f.name, func(t *testing.T) {
			addr := b.Addr4
			if f.six {
				addr = b.Addr6
			}
			endpoint := func(service, n int) netip.AddrPort { return at(addr, uint16(20000+3*service+n)) }
			apply := func(endpoints int) {
				var d mesh.Delta
				for i := range services {
					var all []netip.AddrPort
					for n := range endpoints {
						all = append(all, endpoint(i, n))
					}
					d.Upserts = append(d.Upserts, svc(fmt.Sprint("s", i), []netip.Addr{vipOf(i, f.six)}, udpPort(53, all...)))
				}
				if err := m.Service.Apply(d); err != nil {
					t.Fatal(err)
				}
			}
			for i := range services {
				for n := range 3 {
					b.EchoPacket(t, fmt.Sprint(i, ".", n), endpoint(i, n))
				}
			}
			apply(2)
			fd := app.Socket(f.domain, unix.SOCK_DGRAM)
			ask := asker(t, app, fd)
			kept := map[int]string{}
			for i := range services {
				kept[i] = ask(at(vipOf(i, f.six), 53))
			}
			apply(3)
			for i := range services {
				if got := ask(at(vipOf(i, f.six), 53)); got != kept[i] {
					t.Errorf("service %d: %s answers with more endpoints, %s did", i, got, kept[i])
				}
			}
			apply(1)
			for i := range services {
				if got, want := ask(at(vipOf(i, f.six), 53)), fmt.Sprint(i, ".", 0); got != want {
					t.Errorf("service %d: %s answers, the only endpoint is %s", i, got, want)
				}
			}
			if n := length(t, m.Datapath.Maps().Datagrams); n != services {
				t.Errorf("%d records of %d services", n, services)
			}
			if n := length(t, m.Datapath.Maps().DatagramNames); n != services {
				t.Errorf("%d names of endpoints of %d services", n, services)
			}
			app.Close(fd)
			if n := length(t, m.Datapath.Maps().Datagrams) + length(t, m.Datapath.Maps().DatagramNames); n != 0 {
				t.Errorf("%d records outlive their socket", n)
			}
		})
	}
}

// TestOneEndpointTwoServices: the replies of an endpoint are shown as the service that was
// asked last, and as the endpoint itself where that was asked, also on a socket that was
// connected before.
func TestOneEndpointTwoServices(t *testing.T) {
	m := lab.NewMesh(t)
	p, b := m.Enrol(t, "client"), m.Enrol(t, "backend")
	v4, v6 := backends(t, b, 1)
	app := p.App(t)
	for _, f := range []struct {
		domain   int
		six      bool
		endpoint netip.AddrPort
	}{{unix.AF_INET, false, v4[0]}, {unix.AF_INET6, true, v6[0]}} {
		one, two := at(vipOf(1, f.six), 53), at(vipOf(2, f.six), 53)
		m.SetService(t, svc("one", []netip.Addr{one.Addr()}, udpPort(53, f.endpoint)))
		m.SetService(t, svc("two", []netip.Addr{two.Addr()}, udpPort(53, f.endpoint)))
		for _, connected := range []bool{false, true} {
			fd := app.Socket(f.domain, unix.SOCK_DGRAM)
			if connected {
				if err := app.Connect(fd, one); err != nil {
					t.Fatal(err)
				}
				if err := app.Disconnect(fd); err != nil {
					t.Fatal(err)
				}
			}
			ask := asker(t, app, fd)
			for _, to := range []netip.AddrPort{two, one, two, two, f.endpoint, one, f.endpoint, f.endpoint, two, one} {
				ask(to)
			}
			app.Close(fd)
		}
		if n := length(t, m.Datapath.Maps().Datagrams) + length(t, m.Datapath.Maps().DatagramNames); n != 0 {
			t.Errorf("%d records outlive their sockets", n)
		}
	}
}

// TestDatagramsFull: without room for a record a datagram is refused, and told; the room comes back
// with the socket.
func TestDatagramsFull(t *testing.T) {
	const room = 8
	m := lab.NewMeshSized(t, func(c *loader.Config) { c.Sizes.Datagrams = room })
	p, b := m.Enrol(t, "client"), m.Enrol(t, "backend")
	app := p.App(t)
	for i := range room + 1 {
		endpoint := at(b.Addr4, uint16(20000+i))
		b.EchoPacket(t, fmt.Sprint(i), endpoint)
		m.SetService(t, svc(fmt.Sprint("s", i), []netip.Addr{vipOf(i, false)}, udpPort(53, endpoint)))
	}
	fd := app.Socket(unix.AF_INET, unix.SOCK_DGRAM)
	ask := asker(t, app, fd)
	for i := range room {
		ask(at(vipOf(i, false), 53))
	}
	last := at(vipOf(room, false), 53)
	if err := app.SendTo(fd, "x", last); !errors.Is(err, unix.ENOBUFS) {
		t.Errorf("sendto without room: %v, want ENOBUFS", err)
	}
	f := m.WaitFlow(t, "map-full", func(f *flow.Flow) bool { return f.Reason == flow.ReasonMapFull })
	if f.Verdict != flow.VerdictDropped || f.Original != last || f.Source.Workload.Name != "client" {
		t.Errorf("flow: %+v", f)
	}
	ask(at(vipOf(0, false), 53)) // what is known goes on
	app.Close(fd)
	asker(t, app, app.Socket(unix.AF_INET, unix.SOCK_DGRAM))(last)
}

// TestOldestDatagramForgotten: a socket that speaks with more services than it may remember
// forgets the one it began with, and takes no more room.
func TestOldestDatagramForgotten(t *testing.T) {
	const services, limit = 4200, 4096 // DATAGRAM_SERVICES of bpf/include/types.h
	m := lab.NewMeshSized(t, func(c *loader.Config) {
		c.Sizes.Services, c.Sizes.Endpoints, c.Sizes.Datagrams = 2*services, 2*services, 2*services
	})
	p, b := m.Enrol(t, "client"), m.Enrol(t, "backend")
	app := p.App(t)
	endpoint := at(b.Addr4, 8000)
	b.EchoPacket(t, "b", endpoint)
	var d mesh.Delta
	for i := range services {
		d.Upserts = append(d.Upserts, svc(fmt.Sprint("s", i), []netip.Addr{vipOf(i, false)}, udpPort(53, endpoint)))
	}
	if err := m.Service.Apply(d); err != nil {
		t.Fatal(err)
	}
	fd := app.Socket(unix.AF_INET, unix.SOCK_DGRAM)
	ask := asker(t, app, fd)
	for i := range services {
		ask(at(vipOf(i, false), 53))
	}
	if n := length(t, m.Datapath.Maps().Datagrams); n != limit {
		t.Errorf("%d records of one socket, want %d", n, limit)
	}
	ask(at(vipOf(0, false), 53))
	app.Close(fd)
	if n := length(t, m.Datapath.Maps().Datagrams) + length(t, m.Datapath.Maps().DatagramNames); n != 0 {
		t.Errorf("%d records outlive their socket", n)
	}
}
