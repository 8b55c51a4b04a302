package steer_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/internal/lab"
	"github.com/sluice-mesh/sluice/dataplane/steer"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

func elsewhere(name string, addrs ...netip.Addr) *mesh.Workload {
	return &mesh.Workload{Name: mesh.Name{Namespace: "lab", Name: name}, Node: "another", Addresses: addrs, Ready: true}
}

// TestCapturePortsElsewhere: the capture ports of workloads of other nodes are refused while
// they are in the mesh, and an earlier process's knowledge is used and then pruned.
func TestCapturePortsElsewhere(t *testing.T) {
	m := lab.NewMesh(t)
	p := m.Enrol(t, "client")
	app := p.App(t)
	// Pods that are not enrolled here stand for other nodes'.
	far, farther := m.Pod(t, "far"), m.Pod(t, "farther")
	refused := func(a netip.Addr, want error) {
		t.Helper()
		f := families[0]
		if a.Is6() {
			f = families[1]
		}
		for _, port := range []uint16{steer.OutboundPort, steer.LastOutboundPort, steer.InboundPort, steer.TunnelPort, steer.DNSPort} {
			for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
				fd := app.Socket(f.domain, typ)
				err, want := app.Connect(fd, at(a, port)), want
				if typ == unix.SOCK_DGRAM && !errors.Is(want, unix.EPERM) {
					want = nil // UDP's connect asks nobody
				}
				if !errors.Is(err, want) {
					t.Errorf("connect to %s, type %d: %v, want %v", at(a, port), typ, err, want)
				}
				app.Close(fd)
			}
		}
		if fd := app.Socket(f.domain, unix.SOCK_STREAM); !errors.Is(app.Connect(fd, at(a, 9)), unix.ECONNREFUSED) {
			t.Error("another port of the workload is refused, but not by itself")
		}
	}
	apply := func(table *steer.Table, d mesh.Delta) {
		t.Helper()
		if err := table.Apply(d); err != nil {
			t.Fatal(err)
		}
	}
	apply(m.Steer, mesh.Delta{Upserts: []mesh.Resource{elsewhere("far", far.Addr4, far.Addr6), elsewhere("farther", farther.Addr4)}})
	refused(far.Addr4, unix.EPERM)
	refused(far.Addr6, unix.EPERM)
	refused(farther.Addr4, unix.EPERM)
	f := m.WaitFlow(t, "capture-port", func(f *flow.Flow) bool {
		return f.Reason == flow.ReasonCapturePort && f.Original == at(far.Addr6, steer.TunnelPort)
	})
	if f.Verdict != flow.VerdictDropped || f.Source.Workload.Name != "client" {
		t.Errorf("flow: %+v", f)
	}
	// An address that goes from one workload to the next stays one of the mesh, whichever
	// is told first.
	apply(m.Steer, mesh.Delta{Upserts: []mesh.Resource{elsewhere("next", far.Addr4)}})
	apply(m.Steer, mesh.Delta{
		Upserts: []mesh.Resource{elsewhere("farther")},
		Removes: []mesh.Ref{{Kind: mesh.KindWorkload, Key: "lab/far"}},
	})
	refused(far.Addr4, unix.EPERM)
	refused(far.Addr6, unix.ECONNREFUSED)
	refused(farther.Addr4, unix.ECONNREFUSED)

	again, err := steer.New(steer.Config{Datapath: m.Datapath})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	apply(again, mesh.Delta{Upserts: []mesh.Resource{elsewhere("farther", farther.Addr6)}})
	refused(far.Addr4, unix.EPERM)
	if err := again.Prune(); err != nil {
		t.Fatal(err)
	}
	refused(far.Addr4, unix.ECONNREFUSED)
	refused(farther.Addr6, unix.EPERM)
}

// TestGuard: what comes to a capture port from outside the workload never arrives there,
// and is told; what was steered does.
func TestGuard(t *testing.T) {
	m := lab.NewMesh(t)
	p := m.Enrol(t, "client")
	m.SetService(t, steered())
	app := p.App(t)
	for _, a := range []netip.Addr{p.Addr4, p.Addr6} {
		from, vip, domain := lab.Addr4, vip4, unix.AF_INET
		if a.Is6() {
			from, vip, domain = lab.Addr6, vip6, unix.AF_INET6
		}
		l, u := p.ListenSteered(t, a), p.ListenPacket(t, at(a, steer.DNSPort))
		l.Each(t, func(fd int) {
			if err := m.Steer.Guard(mesh.ProtocolTCP, fd); err != nil {
				t.Fatal(err)
			}
		})
		lab.FD(t, u, func(fd int) {
			if err := m.Steer.Guard(mesh.ProtocolUDP, fd); err != nil {
				t.Fatal(err)
			}
		})
		out := m.Netns.Stream(t, a)
		defer unix.Close(out)
		if err := unix.Connect(out, lab.Sockaddr(at(a, steer.OutboundPort))); !errors.Is(err, unix.EINPROGRESS) {
			t.Fatalf("connect from outside: %v", err)
		}
		told := func(to netip.AddrPort, protocol mesh.Protocol) {
			t.Helper()
			f := m.WaitFlow(t, "capture-port of "+to.String(), func(f *flow.Flow) bool {
				return f.Reason == flow.ReasonCapturePort && f.Original == to && f.Protocol == protocol
			})
			if f.Verdict != flow.VerdictDropped || f.Source.AddrPort.Addr() != from || f.Source.AddrPort.Port() == 0 || f.Detail != "capture" {
				t.Errorf("flow: %+v", f)
			}
		}
		told(at(a, steer.OutboundPort), mesh.ProtocolTCP)
		// Nobody answered the SYN, and nothing waits to be accepted.
		if _, err := unix.Getpeername(out); !errors.Is(err, unix.ENOTCONN) {
			t.Errorf("getpeername of the connection from outside: %v", err)
		}
		steered := app.Socket(domain, unix.SOCK_STREAM)
		if err := app.Connect(steered, at(vip, 80)); err != nil {
			t.Fatal(err)
		}
		c := l.Accept(t)
		if got := c.RemoteAddr().(*net.TCPAddr).AddrPort(); got != app.Local(steered) {
			t.Errorf("accepted %s first, want %s", got, app.Local(steered))
		}
		app.Send(steered, spoken)
		buf := make([]byte, 64)
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != spoken {
			t.Errorf("steered: %q, %v", buf[:n], err)
		}

		m.Netns.Do(t, func() error {
			stranger, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at(a, steer.DNSPort)))
			if err != nil {
				return err
			}
			defer stranger.Close()
			_, err = stranger.Write([]byte("from outside"))
			return err
		})
		told(at(a, steer.DNSPort), mesh.ProtocolUDP)
		p.Do(t, func() error { // as a process of the node, which no program of the workloads refuses
			own, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at(a, steer.DNSPort)))
			if err != nil {
				return err
			}
			defer own.Close()
			_, err = own.Write([]byte("from inside"))
			return err
		})
		if n, err := u.Read(buf); err != nil || string(buf[:n]) != "from inside" {
			t.Errorf("the first datagram is %q, %v", buf[:n], err)
		}
	}
}
