package service_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/dataplane/internal/lab"
	"github.com/sluice-mesh/sluice/dataplane/loader"
	"github.com/sluice-mesh/sluice/dataplane/service"
	"github.com/sluice-mesh/sluice/dataplane/steer"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

func TestMain(m *testing.M) { lab.Main(m) }

var (
	vip4  = netip.MustParseAddr("10.96.1.1")
	vip6  = netip.MustParseAddr("fd96::1:1")
	other = netip.MustParseAddr("10.96.2.2")
)

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func mapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
}

func endpoints(as ...netip.AddrPort) []mesh.Endpoint {
	var out []mesh.Endpoint
	for _, a := range as {
		out = append(out, mesh.Endpoint{AddrPort: a})
	}
	return out
}

func svc(name string, vips []netip.Addr, ports ...mesh.ServicePort) *mesh.Service {
	return &mesh.Service{Name: mesh.Name{Namespace: "lab", Name: name}, VIPs: vips, Ports: ports}
}

func tcpPort(port uint16, as ...netip.AddrPort) mesh.ServicePort {
	return mesh.ServicePort{Port: port, Protocol: mesh.ProtocolTCP, Endpoints: endpoints(as...)}
}

func udpPort(port uint16, as ...netip.AddrPort) mesh.ServicePort {
	return mesh.ServicePort{Port: port, Protocol: mesh.ProtocolUDP, Endpoints: endpoints(as...)}
}

// backends starts n TCP and UDP echo servers named 0, 1, … on ports from 8000 of a pod.
func backends(t testing.TB, p *lab.Pod, n int) (v4, v6 []netip.AddrPort) {
	for i := range n {
		a4, a6 := at(p.Addr4, uint16(8000+i)), at(p.Addr6, uint16(8000+i))
		for _, a := range []netip.AddrPort{a4, a6} {
			p.Echo(t, fmt.Sprint(i), a)
			p.EchoPacket(t, fmt.Sprint(i), a)
		}
		v4, v6 = append(v4, a4), append(v6, a6)
	}
	return v4, v6
}

// dialTCP opens a connection and returns which backend answered.
func dialTCP(t *testing.T, app *lab.App, domain int, to netip.AddrPort) (fd int, backend string) {
	t.Helper()
	fd = app.Socket(domain, unix.SOCK_STREAM)
	if err := app.Connect(fd, to); err != nil {
		t.Fatalf("connect to %s: %v", to, err)
	}
	return fd, strings.TrimSpace(app.Recv(fd))
}

func TestTCP(t *testing.T) {
	m := lab.NewMesh(t)
	p, b := m.Enrol(t, "client"), m.Enrol(t, "backend")
	v4, v6 := backends(t, b, 3)
	m.SetService(t, svc("web", []netip.Addr{vip4, vip6}, tcpPort(80, append(v4, v6...)...)))
	app := p.App(t)
	for _, c := range []struct {
		name     string
		domain   int
		to, seen netip.AddrPort
		local    netip.Addr
	}{
		{"IPv4", unix.AF_INET, at(vip4, 80), at(vip4, 80), p.Addr4},
		{"IPv6", unix.AF_INET6, at(vip6, 80), at(vip6, 80), p.Addr6},
		{"mapped", unix.AF_INET6, at(vip4, 80), mapped(at(vip4, 80)), netip.AddrFrom16(p.Addr4.As16())},
	} {
		t.Run(c.name, func(t *testing.T) {
			seen := map[string]int{}
			for range 60 {
				fd, backend := dialTCP(t, app, c.domain, c.to)
				seen[backend]++
				if got := app.Peer(fd); got != c.seen {
					t.Fatalf("getpeername: %s, want %s", got, c.seen)
				}
				if got := app.Local(fd).Addr(); got != c.local {
					t.Fatalf("getsockname: %s, want %s", got, c.local)
				}
				app.Send(fd, "ping")
				if got := app.Recv(fd); got != "ping" {
					t.Fatalf("echo: %q", got)
				}
				app.Close(fd)
			}
			// The chance that one of three is left out 60 times is below 1e-10.
			if len(seen) != 3 {
				t.Errorf("backends that answered: %v, want 3", seen)
			}
		})
	}
	f := m.WaitFlow(t, "translated", func(f *flow.Flow) bool { return f.Verdict == flow.VerdictTranslated })
	if f.Original != at(vip4, 80) || !slices.Contains(v4, f.Destination.AddrPort) || f.Source.Workload.Name != "client" {
		t.Errorf("flow: %+v", f)
	}
	if n := length(t, m.Datapath.Maps().Translated); n != 0 {
		t.Errorf("%d notes outlive their sockets", n)
	}
	fd := app.SocketOf(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	if err := app.Connect(fd, at(vip4, 80)); err != nil {
		t.Errorf("MPTCP: %v", err)
	}
	app.Send(fd, "ping")
	app.Close(fd)
	if n := length(t, m.Datapath.Maps().Translated); n != 0 {
		t.Errorf("%d notes outlive their MPTCP sockets", n)
	}
	// The port next door is no service, and neither is UDP.
	fd = app.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
	if err := app.Connect(fd, at(vip4, 81)); !errors.Is(err, unix.EINPROGRESS) {
		t.Errorf("connect to a port that is no service: %v", err)
	}
}

// TestSecondConnect: what a failed connect noted says nothing about the next one.
func TestSecondConnect(t *testing.T) {
	m := lab.NewMesh(t)
	p, b := m.Enrol(t, "client"), m.Enrol(t, "backend")
	endpoint := at(b.Addr4, 8080)
	m.SetService(t, svc("web", []netip.Addr{vip4}, tcpPort(80, endpoint), udpPort(80, endpoint)))
	app := p.App(t)
	fd := app.Socket(unix.AF_INET, unix.SOCK_STREAM)
	again := app.Socket(unix.AF_INET, unix.SOCK_STREAM)
	for _, fd := range []int{fd, again} {
		// The endpoint itself refuses.
		if err := app.Connect(fd, at(vip4, 80)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatalf("connect without a server: %v", err)
		}
	}
	b.Echo(t, "b", endpoint)
	if err := app.Connect(fd, endpoint); err != nil {
		t.Fatal(err)
	}
	if got := app.Peer(fd); got != endpoint {
		t.Errorf("getpeername: %s, want the address that was dialled, %s", got, endpoint)
	}
	if err := app.Connect(again, at(vip4, 80)); err != nil {
		t.Fatal(err)
	}
	if got := app.Peer(again); got != at(vip4, 80) {
		t.Errorf("getpeername: %s, want %s", got, at(vip4, 80))
	}
}

func TestNoEndpoint(t *testing.T) {
	m := lab.NewMesh(t)
	p := m.Enrol(t, "client")
	m.SetService(t, svc("empty", []netip.Addr{vip4, vip6},
		tcpPort(80, at(p.Addr4, 1)), udpPort(53))) // the IPv6 side of port 80 is empty
	app := p.App(t)
	for _, c := range []struct {
		domain, typ int
		to          netip.AddrPort
	}{
		{unix.AF_INET6, unix.SOCK_STREAM, at(vip6, 80)},
		{unix.AF_INET6, unix.SOCK_STREAM | unix.SOCK_NONBLOCK, at(vip6, 80)},
		{unix.AF_INET, unix.SOCK_DGRAM, at(vip4, 53)},
	} {
		fd := app.Socket(c.domain, c.typ)
		if err := app.Connect(fd, c.to); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("connect to %s: %v, want ECONNREFUSED", c.to, err)
		}
		if c.typ == unix.SOCK_DGRAM {
			if err := app.SendTo(fd, "x", c.to); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("sendto %s: %v, want ECONNREFUSED", c.to, err)
			}
		}
	}
	f := m.WaitFlow(t, "no-endpoint", func(f *flow.Flow) bool { return f.Reason == flow.ReasonNoEndpoint })
	if f.Verdict != flow.VerdictDropped || f.Original != at(vip6, 80) || f.Source.Workload.Name != "client" {
		t.Errorf("flow: %+v", f)
	}
}

func TestUDP(t *testing.T) {
	m := lab.NewMesh(t)
	p, b := m.Enrol(t, "client"), m.Enrol(t, "backend")
	v4, v6 := backends(t, b, 20)
	a := svc("a", []netip.Addr{vip4, vip6}, udpPort(53, v4[0], v4[1], v6[0], v6[1]))
	m.SetService(t, a)
	m.SetService(t, svc("b", []netip.Addr{other}, udpPort(99, v4[2], v4[3])))
	app := p.App(t)

	for _, c := range []struct {
		name     string
		domain   int
		to, seen netip.AddrPort
	}{
		{"IPv4", unix.AF_INET, at(vip4, 53), at(vip4, 53)},
		{"IPv6", unix.AF_INET6, at(vip6, 53), at(vip6, 53)},
		{"mapped", unix.AF_INET6, at(vip4, 53), mapped(at(vip4, 53))},
	} {
		t.Run(c.name+" connected", func(t *testing.T) {
			fd := app.Socket(c.domain, unix.SOCK_DGRAM)
			defer app.Close(fd)
			if err := app.Connect(fd, c.to); err != nil {
				t.Fatal(err)
			}
			if got := app.Peer(fd); got != c.seen {
				t.Errorf("getpeername: %s, want %s", got, c.seen)
			}
			app.Send(fd, "ping")
			if got, from := app.RecvFrom(fd); !strings.HasSuffix(got, " ping") || from != c.seen {
				t.Errorf("%q from %s, want it from %s", got, from, c.seen)
			}
		})
		t.Run(c.name+" unconnected", func(t *testing.T) {
			fd := app.Socket(c.domain, unix.SOCK_DGRAM)
			defer app.Close(fd)
			first := ""
			for i := range 5 {
				if err := app.SendTo(fd, "ping", c.to); err != nil {
					t.Fatal(err)
				}
				got, from := app.RecvFrom(fd)
				if first == "" {
					first = got
				}
				if got != first || from != c.seen {
					t.Errorf("datagram %d: %q from %s, want %q from %s", i, got, from, first, c.seen)
				}
			}
		})
	}
	t.Run("two services on one socket", func(t *testing.T) {
		fd := app.Socket(unix.AF_INET, unix.SOCK_DGRAM)
		defer app.Close(fd)
		for range 2 {
			for _, to := range []netip.AddrPort{at(vip4, 53), at(other, 99)} {
				if err := app.SendTo(fd, to.String(), to); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				got, from := app.RecvFrom(fd)
				if !strings.HasSuffix(got, " "+from.String()) {
					t.Errorf("%q from %s", got, from)
				}
			}
		}
	})
	t.Run("the address itself", func(t *testing.T) {
		fd := app.Socket(unix.AF_INET, unix.SOCK_DGRAM)
		defer app.Close(fd)
		for _, to := range []netip.AddrPort{at(vip4, 53), v4[0], v4[1], at(vip4, 53), v4[0], v4[1]} {
			if err := app.SendTo(fd, "ping", to); err != nil {
				t.Fatal(err)
			}
			if got, from := app.RecvFrom(fd); from != to {
				t.Errorf("%q from %s, want it from %s", got, from, to)
			}
		}
		// Connected to the service and then spoken to by its own address.
		fd2 := app.Socket(unix.AF_INET, unix.SOCK_DGRAM)
		defer app.Close(fd2)
		if err := app.Connect(fd2, at(vip4, 53)); err != nil {
			t.Fatal(err)
		}
		for _, to := range v4[:2] {
			if err := app.Connect(fd2, to); err != nil {
				t.Fatal(err)
			}
			app.Send(fd2, "ping")
			if got, from := app.RecvFrom(fd2); from != to || app.Peer(fd2) != to {
				t.Errorf("%q from %s, peer %s, want both %s", got, from, app.Peer(fd2), to)
			}
		}
	})
	t.Run("the endpoint is kept while it lives", func(t *testing.T) {
		var fds []int
		kept := map[int]string{}
		ask := func(fd int) string {
			if err := app.SendTo(fd, "x", at(other, 99)); err != nil {
				t.Fatal(err)
			}
			got, from := app.RecvFrom(fd)
			if from != at(other, 99) {
				t.Fatalf("reply from %s", from)
			}
			return got
		}
		for range 16 {
			fd := app.Socket(unix.AF_INET, unix.SOCK_DGRAM)
			fds = append(fds, fd)
			kept[fd] = ask(fd)
		}
		m.SetService(t, svc("b", []netip.Addr{other}, udpPort(99, v4[0], v4[1], v4[2], v4[3])))
		for _, fd := range fds {
			if got := ask(fd); got != kept[fd] {
				t.Errorf("with more endpoints: %q, want %q", got, kept[fd])
			}
		}
		m.SetService(t, svc("b", []netip.Addr{other}, udpPort(99, v4[0], v4[2])))
		for _, fd := range fds {
			got := ask(fd)
			if kept[fd] == "2 x" && got != "2 x" || got != "0 x" && got != "2 x" {
				t.Errorf("with fewer endpoints: %q, was %q", got, kept[fd])
			}
			app.Close(fd)
		}
	})
	t.Run("more services than a socket remembers", func(t *testing.T) {
		fd := app.Socket(unix.AF_INET, unix.SOCK_DGRAM)
		defer app.Close(fd)
		const n = 45
		for i := range n {
			vip := netip.AddrFrom4([4]byte{10, 98, 0, byte(i)})
			m.SetService(t, svc(fmt.Sprintf("many-%d", i), []netip.Addr{vip}, udpPort(53, v4[i%20])))
			if err := app.SendTo(fd, "ping", at(vip, 53)); err != nil {
				t.Fatal(err)
			}
			if got, from := app.RecvFrom(fd); from != at(vip, 53) {
				t.Errorf("%q from %s, want it from %s", got, from, at(vip, 53))
			}
		}
	})
}

func TestDNS(t *testing.T) {
	m := lab.NewMesh(t)
	p := m.Enrol(t, "client")
	for _, a := range []netip.Addr{p.Addr4, p.Addr6} {
		p.Echo(t, "dns", at(a, steer.DNSPort))
		p.EchoPacket(t, "dns", at(a, steer.DNSPort))
	}
	// A Service of the same address changes nothing of the DNS port.
	m.SetService(t, svc("kube-dns", []netip.Addr{lab.DNS}, udpPort(53, at(p.Addr4, 9)), tcpPort(53, at(p.Addr4, 9))))
	app := p.App(t)
	for _, domain := range []int{unix.AF_INET, unix.AF_INET6} {
		seen := at(lab.DNS, 53)
		if domain == unix.AF_INET6 {
			seen = mapped(seen)
		}
		udp := app.Socket(domain, unix.SOCK_DGRAM)
		if err := app.SendTo(udp, "q", at(lab.DNS, 53)); err != nil {
			t.Fatal(err)
		}
		if got, from := app.RecvFrom(udp); got != "dns q" || from != seen {
			t.Errorf("%q from %s, want it from %s", got, from, seen)
		}
		connected := app.Socket(domain, unix.SOCK_DGRAM)
		if err := app.Connect(connected, at(lab.DNS, 53)); err != nil {
			t.Fatal(err)
		}
		app.Send(connected, "q")
		if got, from := app.RecvFrom(connected); got != "dns q" || from != seen || app.Peer(connected) != seen {
			t.Errorf("%q from %s, peer %s, want both %s", got, from, app.Peer(connected), seen)
		}
		tcp, name := dialTCP(t, app, domain, at(lab.DNS, 53))
		if name != "dns" || app.Peer(tcp) != seen {
			t.Errorf("%q, peer %s", name, app.Peer(tcp))
		}
	}
	m.StopProxy(t, time.Minute)
	fd := app.Socket(unix.AF_INET, unix.SOCK_DGRAM)
	if err := app.SendTo(fd, "q", at(lab.DNS, 53)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("sendto without a node proxy: %v, want ECONNREFUSED", err)
	}
}

func TestAffinity(t *testing.T) {
	m := lab.NewMesh(t)
	p, b := m.Enrol(t, "client"), m.Enrol(t, "backend")
	v4, _ := backends(t, b, 3)
	s := svc("sticky", []netip.Addr{vip4}, tcpPort(80, v4...), udpPort(80, v4...))
	s.AffinityTimeout = time.Hour
	m.SetService(t, s)
	app := p.App(t)
	ask := func() string {
		fd, got := dialTCP(t, app, unix.AF_INET, at(vip4, 80))
		app.Close(fd)
		return got
	}
	first := ask()
	for range 20 {
		if got := ask(); got != first {
			t.Fatalf("backend %s, want %s", got, first)
		}
	}
	// UDP sockets of the client agree with each other.
	udp := ""
	for range 10 {
		fd := app.Socket(unix.AF_INET, unix.SOCK_DGRAM)
		if err := app.SendTo(fd, "x", at(vip4, 80)); err != nil {
			t.Fatal(err)
		}
		got := app.Recv(fd)
		if udp == "" {
			udp = got
		}
		if got != udp {
			t.Errorf("UDP backend %q, want %q", got, udp)
		}
		app.Close(fd)
	}
	// A change elsewhere in the set keeps it; its own end does not.
	keep := slices.DeleteFunc(slices.Clone(v4), func(a netip.AddrPort) bool {
		return a.Port() == 8000+(uint16(first[0]-'0')+1)%3
	})
	slices.Reverse(keep)
	s2 := *s
	s2.Ports = []mesh.ServicePort{tcpPort(80, keep...)}
	m.SetService(t, &s2)
	for range 10 {
		if got := ask(); got != first {
			t.Fatalf("after a change: backend %s, want %s", got, first)
		}
	}
	rest := slices.DeleteFunc(slices.Clone(keep), func(a netip.AddrPort) bool { return a.Port() == 8000+uint16(first[0]-'0') })
	s3 := s2
	s3.Ports = []mesh.ServicePort{tcpPort(80, rest...)}
	m.SetService(t, &s3)
	if got := ask(); got == first {
		t.Fatalf("backend %s is gone and still chosen", got)
	}
	// The time since the last use counts: an old entry says nothing.
	s4 := *s
	s4.AffinityTimeout = 5 * time.Second
	m.SetService(t, &s4)
	affinities := m.Datapath.Maps().Affinities
	seen := map[string]bool{}
	for range 60 {
		var key bpf.MeshAffinityKey
		var value bpf.MeshAffinity
		it := affinities.Iterate()
		for it.Next(&key, &value) {
			value.Used -= uint64(6 * time.Second)
			if err := affinities.Put(key, value); err != nil {
				t.Fatal(err)
			}
		}
		seen[ask()] = true
	}
	if len(seen) != 3 {
		t.Errorf("after the timeout only %v answered", seen)
	}
}

// TestChangeWhileConnecting: no connect sees half of a change, or is refused for one.
func TestChangeWhileConnecting(t *testing.T) {
	m := lab.NewMesh(t)
	p, b := m.Enrol(t, "client"), m.Enrol(t, "backend")
	v4, _ := backends(t, b, 6)
	mine, theirs := v4[:3], v4[3:]
	m.SetService(t, svc("a", []netip.Addr{vip4}, tcpPort(80, mine...)))
	app := p.App(t)
	var stop atomic.Bool
	done := make(chan int)
	go func() {
		n := 0
		for ; !stop.Load(); n++ {
			// What else comes and goes uses the same memory again.
			d := mesh.Delta{
				Upserts: []mesh.Resource{svc("a", []netip.Addr{vip4}, tcpPort(80, mine[n%3:]...))},
			}
			if n%2 == 0 {
				d.Upserts = append(d.Upserts, svc("b", []netip.Addr{other}, tcpPort(80, theirs[n%3:]...), udpPort(80, theirs...)))
			} else {
				d.Removes = append(d.Removes, mesh.Ref{Kind: mesh.KindService, Key: "lab/b"})
			}
			if err := m.Service.Apply(d); err != nil {
				t.Error(err)
			}
		}
		done <- n
	}()
	got := app.Hammer(unix.AF_INET, at(vip4, 80), 3000)
	stop.Store(true)
	changes := <-done
	t.Logf("%v during %d changes", got, changes)
	if got["0"]+got["1"]+got["2"] != 3000 || len(got) != 3 {
		t.Errorf("answers: %v, want 0, 1 and 2 only", got)
	}
}

// TestRecycled: an element that is used again for another key while a program reads it, which the
// test imitates by what such an element looks like, is not believed.
func TestRecycled(t *testing.T) {
	m := lab.NewMesh(t)
	p, b := m.Enrol(t, "client"), m.Enrol(t, "backend")
	v4, _ := backends(t, b, 1)
	m.SetService(t, svc("a", []netip.Addr{vip4}, tcpPort(80, v4...)))
	m.SetService(t, svc("b", []netip.Addr{other}, tcpPort(80, v4...)))
	app := p.App(t)
	maps := m.Datapath.Maps()
	key := bpf.FrontendFrom(at(vip4, 80), uint8(mesh.ProtocolTCP))
	var good, wrong bpf.MeshService
	if err := errors.Join(maps.Services.Lookup(key, &good),
		maps.Services.Lookup(bpf.FrontendFrom(at(other, 80), uint8(mesh.ProtocolTCP)), &wrong)); err != nil {
		t.Fatal(err)
	}
	slot := bpf.MeshEndpointKey{Service: good.Id, Generation: good.Generation}
	var endpoint bpf.MeshEndpoint
	if err := maps.Endpoints.Lookup(slot, &endpoint); err != nil {
		t.Fatal(err)
	}
	refused := func(what string) {
		t.Helper()
		if err := app.Connect(app.Socket(unix.AF_INET, unix.SOCK_STREAM), at(vip4, 80)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v, want ECONNREFUSED", what, err)
		}
	}
	put := func(m *ebpf.Map, key, value any) {
		t.Helper()
		if err := m.Put(key, value); err != nil {
			t.Fatal(err)
		}
	}
	put(maps.Services, key, wrong)
	refused("the service of another frontend")
	put(maps.Services, key, good)
	dialTCP(t, app, unix.AF_INET, at(vip4, 80))
	for _, change := range []func(*bpf.MeshEndpoint){
		func(e *bpf.MeshEndpoint) { e.Service++ }, func(e *bpf.MeshEndpoint) { e.Generation++ },
	} {
		e := endpoint
		change(&e)
		put(maps.Endpoints, slot, e)
		refused("the endpoint of another set")
	}
}

// dump returns what the kernel has, ids and generations left out.
func dump(t *testing.T, d *loader.Datapath) map[string]string {
	t.Helper()
	maps := d.Maps()
	out := map[string]string{}
	var f bpf.MeshFrontend
	var s bpf.MeshService
	rows := 0
	it := maps.Services.Iterate()
	for it.Next(&f, &s) {
		text := fmt.Sprintf("flags %d affinity %d:", s.Flags, s.AffinitySeconds)
		for slot := range s.Count {
			var e bpf.MeshEndpoint
			if err := maps.Endpoints.Lookup(bpf.MeshEndpointKey{Service: s.Id, Generation: s.Generation, Slot: slot}, &e); err != nil {
				t.Fatalf("slot %d of %s: %v", slot, f.AddrPort(), err)
			}
			rows++
			text += " " + at(e.Addr.Addr(), bpf.Port(e.Port)).String()
			var one uint32
			if err := maps.Members.Lookup(bpf.MeshMemberKey{Addr: e.Addr, Port: e.Port, Service: s.Id}, &one); err == nil {
				text += "*"
			}
		}
		out[mesh.Frontend{AddrPort: f.AddrPort(), Protocol: mesh.Protocol(f.Protocol)}.String()] = text
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	if n := length(t, maps.Endpoints); n != rows {
		t.Errorf("%d endpoints in the kernel, %d of them used", n, rows)
	}
	stars := 0
	for _, text := range out {
		stars += strings.Count(text, "*")
	}
	if n := length(t, maps.Members); n != stars {
		t.Errorf("%d members in the kernel, %d of them used", n, stars)
	}
	return out
}

func length(t *testing.T, m *ebpf.Map) int {
	t.Helper()
	n := 0
	it := m.Iterate()
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	for it.Next(&key, &value) {
		n++
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}

func load(t *testing.T, n *lab.Node, change func(*loader.Config)) *loader.Datapath {
	t.Helper()
	cfg := n.Config()
	if change != nil {
		change(&cfg)
	}
	d, err := loader.Load(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func table(t *testing.T, d *loader.Datapath, reg prometheus.Registerer) *service.Table {
	t.Helper()
	table, err := service.New(service.Config{Datapath: d, DNS: []netip.Addr{lab.DNS}, Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// TestApply brings the tables into the same state on many ways.
func TestApply(t *testing.T) {
	n := lab.NewNode(t)
	d := load(t, n, nil)
	a := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	sticky := svc("sticky", []netip.Addr{netip.MustParseAddr("10.96.3.3")}, tcpPort(80, a("10.0.0.1:1"), a("10.0.0.2:2")))
	sticky.AffinityTimeout = 1500 * time.Millisecond
	headless := svc("headless", nil, tcpPort(80, a("10.0.0.1:1")))
	headless.Headless = true
	steered := svc("steered", []netip.Addr{netip.MustParseAddr("10.96.4.4")},
		mesh.ServicePort{Port: 80, Protocol: mesh.ProtocolTCP, Steered: true, Endpoints: endpoints(a("10.0.0.1:1"))},
		udpPort(80, a("10.0.0.1:1")))
	states := []mesh.Delta{
		{Upserts: []mesh.Resource{
			svc("web", []netip.Addr{vip4, vip6}, tcpPort(80, a("10.0.0.1:1"), a("10.0.0.2:2"), a("[fd00::1]:1")), udpPort(80, a("[fd00::1]:2"))),
			sticky, headless, steered, &mesh.Workload{Name: mesh.Name{Namespace: "x", Name: "y"}},
		}},
		{Upserts: []mesh.Resource{svc("web", []netip.Addr{vip4}, tcpPort(80), tcpPort(81, a("10.0.0.3:3")))}},
		{Removes: []mesh.Ref{{Kind: mesh.KindService, Key: "lab/sticky"}, {Kind: mesh.KindService, Key: "lab/never"}}},
		// Another service takes an address over, in one step.
		{
			Upserts: []mesh.Resource{svc("taker", []netip.Addr{vip4}, tcpPort(81, a("10.0.0.3:3")))},
			Removes: []mesh.Ref{{Kind: mesh.KindService, Key: "lab/web"}},
		},
	}
	dns := map[string]string{"UDP 10.96.0.10:53": "flags 4 affinity 0:", "TCP 10.96.0.10:53": "flags 4 affinity 0:"}
	want := []map[string]string{
		{
			"TCP 10.96.1.1:80": "flags 0 affinity 0: 10.0.0.1:1 10.0.0.2:2", "TCP [fd96::1:1]:80": "flags 0 affinity 0: [fd00::1]:1",
			"UDP 10.96.1.1:80": "flags 0 affinity 0:", "UDP [fd96::1:1]:80": "flags 0 affinity 0: [fd00::1]:2*",
			"TCP 10.96.3.3:80": "flags 2 affinity 2: 10.0.0.1:1* 10.0.0.2:2*",
			"TCP 10.96.4.4:80": "flags 1 affinity 0:", "UDP 10.96.4.4:80": "flags 0 affinity 0: 10.0.0.1:1*",
		},
		{
			"TCP 10.96.1.1:80": "flags 0 affinity 0:", "TCP 10.96.1.1:81": "flags 0 affinity 0: 10.0.0.3:3",
			"TCP 10.96.3.3:80": "flags 2 affinity 2: 10.0.0.1:1* 10.0.0.2:2*",
			"TCP 10.96.4.4:80": "flags 1 affinity 0:", "UDP 10.96.4.4:80": "flags 0 affinity 0: 10.0.0.1:1*",
		},
		{
			"TCP 10.96.1.1:80": "flags 0 affinity 0:", "TCP 10.96.1.1:81": "flags 0 affinity 0: 10.0.0.3:3",
			"TCP 10.96.4.4:80": "flags 1 affinity 0:", "UDP 10.96.4.4:80": "flags 0 affinity 0: 10.0.0.1:1*",
		},
		{
			"TCP 10.96.1.1:81": "flags 0 affinity 0: 10.0.0.3:3",
			"TCP 10.96.4.4:80": "flags 1 affinity 0:", "UDP 10.96.4.4:80": "flags 0 affinity 0: 10.0.0.1:1*",
		},
	}
	for i := range want {
		maps.Copy(want[i], dns)
	}
	check := func(what string, i int) {
		t.Helper()
		if got := dump(t, d); !maps.Equal(got, want[i]) {
			t.Errorf("%s, state %d:\n got %v\nwant %v", what, i, got, want[i])
		}
	}
	apply := func(table *service.Table, delta mesh.Delta) {
		t.Helper()
		if err := table.Apply(delta); err != nil {
			t.Fatal(err)
		}
	}
	one := table(t, d, nil)
	for i, s := range states {
		apply(one, s)
		check("forward", i)
		apply(one, s)
		check("repeated", i)
	}
	// In a process of its own for each step, from what the last one left.
	for i, s := range states {
		again := table(t, d, nil)
		apply(again, s)
		if i == 0 {
			// The last service of the round before is known to no one now.
			if n, err := again.Prune(); err != nil || n != 1 {
				t.Errorf("pruned %d, %v; want 1", n, err)
			}
			check("restored", i)
			continue
		}
		// A removal cannot name the frontends that the last process made of a service.
		full := mesh.Delta{}
		for _, r := range states[:i+1] {
			full.Upserts = append(full.Upserts, r.Upserts...)
			full.Removes = append(full.Removes, r.Removes...)
		}
		apply(again, last(full))
		if _, err := again.Prune(); err != nil {
			t.Fatal(err)
		}
		check("restored", i)
	}
	// A torn end of an earlier process: half a generation written, members missing.
	broken := table(t, d, nil)
	apply(broken, states[0])
	orphan := bpf.MeshEndpointKey{Service: 1, Generation: 4711, Slot: 0}
	if err := d.Maps().Endpoints.Put(orphan, bpf.MeshEndpoint{}); err != nil {
		t.Fatal(err)
	}
	var key bpf.MeshMemberKey
	if err := d.Maps().Members.NextKey(nil, &key); err != nil {
		t.Fatal(err)
	}
	if err := d.Maps().Members.Delete(key); err != nil {
		t.Fatal(err)
	}
	if err := d.Maps().Members.Put(bpf.MeshMemberKey{Service: 4711}, uint32(1)); err != nil {
		t.Fatal(err)
	}
	healed := table(t, d, nil)
	apply(healed, states[0])
	if _, err := healed.Prune(); err != nil {
		t.Fatal(err)
	}
	check("healed", 0)
}

// last keeps of several changes of a resource the last one.
func last(d mesh.Delta) mesh.Delta {
	byKey := map[string]mesh.Resource{}
	for _, r := range d.Upserts {
		byKey[r.Key()] = r
	}
	for _, ref := range d.Removes {
		delete(byKey, ref.Key)
	}
	return mesh.Delta{Upserts: slices.Collect(maps.Values(byKey))}
}

// TestFull: services that find no room keep what they were, and come later.
func TestFull(t *testing.T) {
	n := lab.NewNode(t)
	d := load(t, n, func(c *loader.Config) { c.Sizes.Endpoints = 8 })
	reg := prometheus.NewRegistry()
	table := table(t, d, reg)
	a := func(i int) netip.AddrPort { return at(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80) }
	small := svc("small", []netip.Addr{vip4}, tcpPort(80, a(1), a(2)))
	if err := table.Apply(mesh.Delta{Upserts: []mesh.Resource{small}}); err != nil {
		t.Fatal(err)
	}
	before := dump(t, d)
	var many []netip.AddrPort
	for i := range 100 {
		many = append(many, a(i))
	}
	big := svc("small", []netip.Addr{vip4}, tcpPort(80, many...))
	ok := svc("ok", []netip.Addr{other}, tcpPort(80, a(1)))
	err := table.Apply(mesh.Delta{Upserts: []mesh.Resource{big}})
	if err == nil || !strings.Contains(err.Error(), "lab/small") || !errors.Is(err, unix.E2BIG) {
		t.Fatalf("error: %v", err)
	}
	if got := dump(t, d); !maps.Equal(got, before) {
		t.Errorf("after a failure: %v, want %v", got, before)
	}
	// Others are not harmed, and the failed one is tried again.
	if err := table.Apply(mesh.Delta{Upserts: []mesh.Resource{ok}}); err == nil || strings.Contains(err.Error(), "lab/ok") {
		t.Errorf("error: %v", err)
	}
	if got := gauge(t, reg, "sluice_kernel_services_failed", ""); got != 1 {
		t.Errorf("%v services failed, want 1", got)
	}
	if err := table.Apply(mesh.Delta{Upserts: []mesh.Resource{svc("small", []netip.Addr{vip4}, tcpPort(80, a(3)))}}); err != nil {
		t.Fatal(err)
	}
	if got := gauge(t, reg, "sluice_kernel_services_failed", ""); got != 0 {
		t.Errorf("%v services failed, want 0", got)
	}
	if got, capacity := gauge(t, reg, "sluice_kernel_map_entries", "endpoints"), gauge(t, reg, "sluice_kernel_map_capacity", "endpoints"); got != 2 || capacity != 8 {
		t.Errorf("%v of %v endpoints, want 2 of 8", got, capacity)
	}
	if got := dump(t, d)["TCP 10.96.1.1:80"]; got != "flags 0 affinity 0: 10.0.0.3:80" {
		t.Errorf("in the end: %q", got)
	}
}

func gauge(t *testing.T, reg *prometheus.Registry, name, mapName string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == name && (mapName == "" || m.Label[0].GetValue() == mapName) {
				return m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s %s", name, mapName)
	return 0
}

// fill makes n services with ten endpoints each.
func fill(n int) mesh.Delta {
	var d mesh.Delta
	for i := range n {
		var as []netip.AddrPort
		for e := range 10 {
			as = append(as, at(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(e)}), 80))
		}
		vip := netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)})
		d.Upserts = append(d.Upserts, svc(fmt.Sprintf("s-%d", i), []netip.Addr{vip}, tcpPort(80, as...), udpPort(80, as...)))
	}
	return d
}

// TestBulk: ten thousand services, and back to none.
func TestBulk(t *testing.T) {
	n := lab.NewNode(t)
	d := load(t, n, func(c *loader.Config) { c.Sizes = loader.DefaultSizes() })
	one := table(t, d, nil)
	all := fill(10000)
	if err := one.Apply(all); err != nil {
		t.Fatal(err)
	}
	two := table(t, d, nil)
	if err := two.Apply(all); err != nil {
		t.Fatal(err)
	}
	rand.Shuffle(len(all.Upserts), func(i, j int) { all.Upserts[i], all.Upserts[j] = all.Upserts[j], all.Upserts[i] })
	var gone mesh.Delta
	for _, r := range all.Upserts {
		gone.Removes = append(gone.Removes, mesh.Ref{Kind: mesh.KindService, Key: r.Key()})
	}
	if err := two.Apply(gone); err != nil {
		t.Fatal(err)
	}
	if got := dump(t, d); len(got) != 2 {
		t.Errorf("%d frontends are left, want the DNS service's 2", len(got))
	}
}
