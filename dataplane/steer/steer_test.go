package steer_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/dataplane/internal/lab"
	"github.com/sluice-mesh/sluice/dataplane/steer"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

func TestMain(m *testing.M) { lab.Main(m) }

var (
	vip4 = netip.MustParseAddr("10.96.1.1")
	vip6 = netip.MustParseAddr("fd96::1:1")
)

func mapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// steered is a service whose TCP port 80 goes to the node proxy.
func steered() *mesh.Service {
	return &mesh.Service{
		Name: mesh.Name{Namespace: "lab", Name: "web"}, VIPs: []netip.Addr{vip4, vip6},
		Ports: []mesh.ServicePort{{Port: 80, Protocol: mesh.ProtocolTCP, Steered: true}},
	}
}

func TestUnmodifiedPrograms(t *testing.T) {
	m := lab.NewMesh(t)
	p, b := m.Enrol(t, "client"), m.Enrol(t, "backend")
	m.ProxyHTTP(t, p)
	b.HTTP(t, at(b.Addr4, 8080))
	b.HTTP(t, at(b.Addr6, 8080))
	s := steered()
	s.Ports = append(s.Ports, mesh.ServicePort{Port: 81, Protocol: mesh.ProtocolTCP, Endpoints: []mesh.Endpoint{
		{AddrPort: at(b.Addr4, 8080)}, {AddrPort: at(b.Addr6, 8080)},
	}})
	m.SetService(t, s)
	for _, to := range []netip.AddrPort{at(vip4, 81), at(vip6, 81)} {
		out, err := p.Output(t, "curl", "-sS", "-m", "10", "-w", " %{remote_ip}", "http://"+to.String()+"/")
		if err != nil || out != "hello "+to.Addr().String() {
			t.Errorf("curl %s: %q, %v", to, out, err)
		}
	}
	for _, to := range []netip.AddrPort{at(vip4, 80), at(vip6, 80)} {
		out, err := p.Output(t, "curl", "-sS", "-m", "10", "-w", " %{remote_ip}", "http://"+to.String()+"/")
		if want := fmt.Sprintf("%s %d %s", to, p.Index(), to.Addr()); err != nil || out != want {
			t.Errorf("curl %s through the proxy: %q, %v, want %q", to, out, err, want)
		}
	}
}

// TestProxyUnavailable: nobody gets past a node proxy that does not serve.
func TestProxyUnavailable(t *testing.T) {
	m := lab.NewMesh(t)
	p := m.Enrol(t, "client")
	m.Proxy(t, p)
	m.SetService(t, steered())
	app := p.App(t)
	fd := app.Socket(unix.AF_INET, unix.SOCK_STREAM)

	m.StopProxy(t, steer.HeartbeatTimeout+time.Second)
	if err := app.Connect(fd, at(vip4, 80)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("connect with an old heartbeat: %v", err)
	}
	f := m.WaitFlow(t, "proxy-unavailable", func(f *flow.Flow) bool { return f.Reason == flow.ReasonProxyUnavailable })
	if f.Verdict != flow.VerdictDropped || f.Original != at(vip4, 80) {
		t.Errorf("flow: %+v", f)
	}
	// The same socket works once the proxy serves.
	m.StartProxy(t)
	if err := app.Connect(fd, at(vip4, 80)); err != nil {
		t.Fatalf("second connect after a failure: %v", err)
	}
	if got, want := app.Recv(fd), fmt.Sprintf("%s %d", at(vip4, 80), p.Index()); got != want {
		t.Errorf("the proxy saw %q, want %q", got, want)
	}
}

// TestCapturePorts: a workload cannot reach or take the proxy's ports.
func TestCapturePorts(t *testing.T) {
	m := lab.NewMesh(t)
	p, other := m.Enrol(t, "client"), m.Enrol(t, "other")
	m.Proxy(t, p)
	m.Proxy(t, other)
	app := p.App(t)
	for _, port := range []uint16{steer.OutboundPort, steer.LastOutboundPort, steer.InboundPort, steer.TunnelPort, steer.DNSPort} {
		for _, a := range []netip.Addr{
			p.Addr4, p.Addr6, other.Addr4, other.Addr6,
			netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.1.2.3"), netip.IPv6Loopback(),
			netip.IPv4Unspecified(), netip.IPv6Unspecified(),
		} {
			domain := unix.AF_INET6
			if a.Is4() {
				domain = unix.AF_INET
			}
			domains := []int{domain}
			if a.Is4() {
				domains = append(domains, unix.AF_INET6) // mapped
			}
			for _, domain := range domains {
				for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
					fd := app.Socket(domain, typ)
					if err := app.Connect(fd, at(a, port)); !errors.Is(err, unix.EPERM) {
						t.Errorf("connect to %s, domain %d, type %d: %v, want EPERM", at(a, port), domain, typ, err)
					}
					if typ == unix.SOCK_DGRAM {
						if err := app.SendTo(fd, "x", at(a, port)); !errors.Is(err, unix.EPERM) {
							t.Errorf("sendto %s, domain %d: %v, want EPERM", at(a, port), domain, err)
						}
					}
					app.Close(fd)
				}
			}
		}
		for _, a := range []netip.Addr{p.Addr4, p.Addr6, netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			domain := unix.AF_INET6
			if a.Is4() {
				domain = unix.AF_INET
			}
			for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
				fd := app.Socket(domain, typ)
				app.SetOption(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
				app.SetOption(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
				if err := app.Bind(fd, at(a, port)); !errors.Is(err, unix.EADDRINUSE) {
					t.Errorf("bind %s, type %d: %v, want EADDRINUSE", at(a, port), typ, err)
				}
				app.Close(fd)
			}
		}
	}
	f := m.WaitFlow(t, "capture-port", func(f *flow.Flow) bool {
		return f.Reason == flow.ReasonCapturePort && f.Original == at(other.Addr4, steer.OutboundPort)
	})
	if f.Verdict != flow.VerdictDropped || f.Source.Workload.Name != "client" {
		t.Errorf("flow: %+v", f)
	}
	f = m.WaitFlow(t, "bind-reserved", func(f *flow.Flow) bool { return f.Reason == flow.ReasonBindReserved })
	if f.Verdict != flow.VerdictDropped || f.Source.Workload.Name != "client" || f.Source.AddrPort.Port() != f.Original.Port() {
		t.Errorf("flow: %+v", f)
	}
	// Neighbours of the ports are free.
	fd := app.Socket(unix.AF_INET, unix.SOCK_STREAM)
	if err := app.Bind(fd, at(p.Addr4, steer.LastOutboundPort+1)); err != nil {
		t.Errorf("bind a port that is not the proxy's: %v", err)
	}
}

// TestForgery: the record of a connection that failed says nothing about the next one.
func TestForgery(t *testing.T) {
	m := lab.NewMesh(t)
	p, b := m.Enrol(t, "client"), m.Enrol(t, "backend")
	m.SetService(t, steered())
	app := p.App(t)
	type pair struct {
		family
		fds [2]int
	}
	var pairs []pair
	for _, f := range families {
		pairs = append(pairs, pair{f, [2]int{app.Socket(f.domain, unix.SOCK_STREAM), app.Socket(f.domain, unix.SOCK_STREAM)}})
	}
	for _, f := range pairs {
		for _, fd := range f.fds {
			// Redirected to a port where nobody listens yet.
			if err := app.Connect(fd, at(f.of(vip4, vip6), 80)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Fatalf("%s: connect without a listener: %v", f.name, err)
			}
		}
	}
	if n := count(t, m.Datapath.Maps().Pending); n != 0 {
		t.Errorf("%d records outlive their connection", n)
	}
	m.Proxy(t, p)
	// A service behind which the capture port hides is a way in that connect cannot see;
	// nothing vouches for it.
	hidden4, hidden6 := netip.MustParseAddr("10.96.9.9"), netip.MustParseAddr("fd96::9:9")
	m.SetService(t, &mesh.Service{
		Name: mesh.Name{Namespace: "lab", Name: "hidden"}, VIPs: []netip.Addr{hidden4, hidden6},
		Ports: []mesh.ServicePort{{Port: 1, Protocol: mesh.ProtocolTCP, Endpoints: []mesh.Endpoint{
			{AddrPort: at(p.Addr4, steer.OutboundPort)}, {AddrPort: at(p.Addr6, steer.OutboundPort)},
		}}},
	})
	b.Echo(t, "b", at(b.Addr4, 80))
	b.Echo(t, "b", at(b.Addr6, 80))
	for _, f := range pairs {
		for i := range 3 {
			if err := app.Connect(f.fds[0], at(f.of(p.Addr4, p.Addr6), steer.OutboundPort)); !errors.Is(err, unix.EPERM) {
				t.Fatalf("%s: direct connect %d to the proxy: %v", f.name, i, err)
			}
		}
		for _, fd := range f.fds {
			if err := app.Connect(fd, at(f.of(hidden4, hidden6), 1)); err != nil {
				t.Fatalf("%s: connect: %v", f.name, err)
			}
			if got := app.Recv(fd); got != "unknown" {
				t.Errorf("%s: the proxy believed %q", f.name, got)
			}
		}
		// What is no service is left alone.
		fd := app.Socket(f.domain, unix.SOCK_STREAM)
		if err := app.Connect(fd, at(f.of(b.Addr4, b.Addr6), 80)); err != nil {
			t.Errorf("%s: connect to an address that is no service: %v", f.name, err)
		}
	}
}

// TestNestedNamespace: a namespace made inside a workload has no identity and opens nothing.
func TestNestedNamespace(t *testing.T) {
	m := lab.NewMesh(t)
	p := m.Enrol(t, "client")
	m.Proxy(t, p)
	m.SetService(t, steered())
	app := p.App(t)
	app.Unshare()
	for _, to := range []netip.AddrPort{at(vip4, 80), at(p.Addr4, 9), at(netip.MustParseAddr("127.0.0.1"), 9)} {
		fd := app.Socket(unix.AF_INET, unix.SOCK_STREAM)
		if err := app.Connect(fd, to); !errors.Is(err, unix.EPERM) {
			t.Errorf("connect to %s: %v, want EPERM", to, err)
		}
	}
	fd := app.Socket(unix.AF_INET6, unix.SOCK_DGRAM)
	if err := app.SendTo(fd, "x", at(vip6, 53)); !errors.Is(err, unix.EPERM) {
		t.Errorf("sendto: %v, want EPERM", err)
	}
	m.WaitFlow(t, "foreign-namespace", func(f *flow.Flow) bool {
		return f.Reason == flow.ReasonForeignNamespace && f.Original == at(vip4, 80)
	})
}

// TestOpenBeforeEnrolment: enrolment touches no connection that is open.
func TestOpenBeforeEnrolment(t *testing.T) {
	m := lab.NewMesh(t)
	p, b := m.Pod(t, "client"), m.Enrol(t, "backend")
	b.Echo(t, "b", at(b.Addr4, 80))
	b.EchoPacket(t, "b", at(b.Addr4, 80))
	// Without enrolment its cgroup opens nothing, so the sockets are made outside of it.
	outside := *p
	outside.Cgroup = m.NodeCgroup
	app := outside.App(t)
	tcp, udp := app.Socket(unix.AF_INET, unix.SOCK_STREAM), app.Socket(unix.AF_INET, unix.SOCK_DGRAM)
	for _, fd := range []int{tcp, udp} {
		if err := app.Connect(fd, at(b.Addr4, 80)); err != nil {
			t.Fatal(err)
		}
	}
	app.Recv(tcp)
	app.MoveTo(p.Cgroup)
	m.EnrolPod(t, p)
	m.SetService(t, &mesh.Service{
		Name: mesh.Name{Namespace: "lab", Name: "late"}, VIPs: []netip.Addr{b.Addr4},
		Ports: []mesh.ServicePort{{Port: 80, Protocol: mesh.ProtocolTCP, Steered: true}},
	})
	app.Send(tcp, "still here")
	if got := app.Recv(tcp); got != "still here" {
		t.Errorf("TCP: %q", got)
	}
	app.Send(udp, "too")
	if got := app.Recv(udp); got != "b too" {
		t.Errorf("UDP: %q", got)
	}
	if got := app.Peer(tcp); got != at(b.Addr4, 80) {
		t.Errorf("getpeername: %s", got)
	}
	// And after it goes, nothing new is opened.
	if err := m.Steer.Withdraw(p.Index()); err != nil {
		t.Fatal(err)
	}
	app.Send(tcp, "and now")
	if got := app.Recv(tcp); got != "and now" {
		t.Errorf("TCP after the withdrawal: %q", got)
	}
	if err := app.Connect(app.Socket(unix.AF_INET, unix.SOCK_STREAM), at(b.Addr4, 80)); !errors.Is(err, unix.EPERM) {
		t.Errorf("connect after the withdrawal: %v, want EPERM", err)
	}
}

// worker looks up origins and beats as the unprivileged process does.
var worker = lab.Child("worker", func([]string) error {
	const origins, beat, sock = 3, 4, 5
	o, ok, err := steer.LookupOrigin(origins, sock)
	if err != nil {
		return err
	}
	fmt.Print(o.Destination, " ", o.Workload, " ", ok)
	return steer.Beat(beat)
})

// TestUnprivileged: a process with nothing but descriptors can be the node proxy.
func TestUnprivileged(t *testing.T) {
	m := lab.NewMesh(t)
	p := m.Enrol(t, "client")
	l := p.ListenSteered(t, p.Addr4)
	m.SetService(t, steered())
	app := p.App(t)
	fd := app.Socket(unix.AF_INET, unix.SOCK_STREAM)
	if err := app.Connect(fd, at(vip4, 80)); err != nil {
		t.Fatal(err)
	}
	c := l.Accept(t)
	conn, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	m.StopProxy(t, steer.HeartbeatTimeout+time.Second)
	cmd := lab.ChildCommand(worker)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
	cmd.ExtraFiles = append(cmd.ExtraFiles, dup(t, m.Steer.OriginMapFD()), dup(t, m.Steer.HeartbeatMapFD()), conn)
	out, err := cmd.Output()
	if want := fmt.Sprintf("%s %d true", at(vip4, 80), p.Index()); err != nil || string(out) != want {
		t.Fatalf("the worker says %q, %v; want %q", out, err, want)
	}
	fd = app.Socket(unix.AF_INET, unix.SOCK_STREAM)
	if err := app.Connect(fd, at(vip4, 80)); err != nil {
		t.Errorf("connect after the worker's beat: %v", err)
	}
	var o steer.Origin
	var ok bool
	lab.FD(t, c, func(fd int) {
		if n := testing.AllocsPerRun(100, func() {
			o, ok, err = steer.LookupOrigin(m.Steer.OriginMapFD(), fd)
		}); n > 0 {
			t.Errorf("LookupOrigin allocates %v times", n)
		}
	})
	if !ok || err != nil || o.Destination != at(vip4, 80) {
		t.Errorf("LookupOrigin: %v %v %v", o, ok, err)
	}
	if err := steer.Beat(m.Steer.OriginMapFD()); err == nil {
		t.Error("the map of origins can be written")
	}
}

func dup(t *testing.T, fd int) *os.File {
	t.Helper()
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(n), "map")
	t.Cleanup(func() { f.Close() })
	return f
}

// TestRestore: a table finds what another one wrote.
func TestRestore(t *testing.T) {
	m := lab.NewMesh(t)
	p := m.Enrol(t, "client")
	gateway := mesh.Frontend{AddrPort: at(netip.MustParseAddr("10.97.0.1"), 80), Protocol: mesh.ProtocolTCP}
	lab.FD(t, m.Netns.Listen(t, netip.MustParseAddrPort("127.0.0.1:8000")), func(fd int) {
		if err := m.Steer.SetGateway(gateway, fd); err != nil {
			t.Fatal(err)
		}
	})
	again, err := steer.New(steer.Config{Datapath: m.Datapath})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got, want := again.Gateways(), []mesh.Frontend{gateway}; !slices.Equal(got, want) {
		t.Errorf("gateways: %v, want %v", got, want)
	}
	want := m.Steer.Workloads()
	want[0].Name = mesh.Name{}
	if got := again.Workloads(); !slices.Equal(got, want) {
		t.Errorf("workloads: %v, want %v", got, want)
	}
	w := want[0]
	for _, bad := range []steer.Workload{
		{Index: 0, NetnsCookie: 1, Addr4: w.Addr4},
		{Index: 9, NetnsCookie: 0, Addr4: w.Addr4},
		{Index: 9, NetnsCookie: 1},
		{Index: 9, NetnsCookie: 1, Addr4: w.Addr6},
		{Index: 9, NetnsCookie: 1, Addr6: w.Addr4},
		{Index: 9, NetnsCookie: w.NetnsCookie, Addr4: netip.MustParseAddr("10.0.0.1")},
		{Index: 9, NetnsCookie: 1, Addr4: w.Addr4},
	} {
		if err := again.Enrol(bad); err == nil {
			t.Errorf("enrolled %+v", bad)
		}
	}
	// A workload whose namespace and addresses changed leaves nothing of the old ones.
	moved := w
	moved.NetnsCookie, moved.Addr4 = 4711, netip.MustParseAddr("10.0.0.1")
	if err := again.Enrol(moved); err != nil {
		t.Fatal(err)
	}
	third, err := steer.New(steer.Config{Datapath: m.Datapath})
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if got := third.Workloads(); len(got) != 1 || got[0] != moved {
		t.Errorf("workloads: %v, want %v", got, moved)
	}
	if err := third.Withdraw(p.Index()); err != nil {
		t.Fatal(err)
	}
	var index uint32
	for _, a := range []netip.Addr{p.Addr4, p.Addr6, moved.Addr4} {
		if err := m.Datapath.Maps().Addresses.Lookup(bpf.AddrFrom(a), &index); !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Errorf("address %s after the withdrawal: %v", a, err)
		}
	}
}
