package workload

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/netns"
)

// network lists links, routes and neighbours of the node's namespace that are not
// there from the start.
func (b *bed) network(t testing.TB) []string {
	t.Helper()
	handle, err := netlink.NewHandleAt(vnetns.NsHandle(b.netns.FD()), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	var out []string
	links, err := handle.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[int]string)
	for _, link := range links {
		names[link.Attrs().Index] = link.Attrs().Name
		if link.Attrs().Name != "lo" {
			out = append(out, "link "+link.Attrs().Name)
		}
	}
	routes, err := handle.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatal(err)
	}
	for _, route := range routes {
		// The kernel adds the multicast route in its own time.
		if names[route.LinkIndex] != "lo" && !route.Dst.IP.IsMulticast() {
			out = append(out, fmt.Sprintf("route %s dev %s", route.Dst, names[route.LinkIndex]))
		}
	}
	neighbours, err := handle.NeighList(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range neighbours {
		if names[n.LinkIndex] != "lo" && n.State == netlink.NUD_PERMANENT {
			out = append(out, fmt.Sprintf("neighbour %s dev %s", n.IP, names[n.LinkIndex]))
		}
	}
	return out
}

// inside runs f in the workload's namespace.
func inside(t testing.TB, s *Sandbox, f func() error) {
	t.Helper()
	ns, err := netns.Open(s.NetnsPath)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	if err := ns.Do(f); err != nil {
		t.Fatal(err)
	}
}

func listenTCP(t testing.TB, s *Sandbox, addr netip.Addr) net.Listener {
	t.Helper()
	var l net.Listener
	inside(t, s, func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func dialTCP(t testing.TB, s *Sandbox, to net.Addr) net.Conn {
	t.Helper()
	var c net.Conn
	inside(t, s, func() (err error) {
		c, err = net.DialTCP("tcp", nil, to.(*net.TCPAddr))
		return err
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func accept(t testing.TB, l net.Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// pass sends a line from one end to the other.
func pass(t testing.TB, from, to net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Fatalf("read %q, %v; want %q", got, err, text)
	}
}

func addrOf(a net.Addr) netip.Addr {
	return netip.MustParseAddrPort(a.String()).Addr()
}

func TestWorkloadsReachEachOther(t *testing.T) {
	b := newBed(t)
	r := b.registry(t, nil)
	boxes := []*Sandbox{mustAdd(t, r, "a"), mustAdd(t, r, "b"), mustAdd(t, r, "c")}
	for _, from := range boxes {
		for _, to := range boxes {
			for i, addr := range to.Addresses {
				t.Run(fmt.Sprintf("%s-%s-%s", from.Spec.Name.Name, to.Spec.Name.Name, addr), func(t *testing.T) {
					l := listenTCP(t, to, addr)
					client := dialTCP(t, from, l.Addr())
					server := accept(t, l)
					pass(t, client, server, "there")
					pass(t, server, client, "and back")
					if got := addrOf(server.RemoteAddr()); got != from.Addresses[i] {
						t.Errorf("server sees %s; the workload has %s", got, from.Addresses[i])
					}

					var ear, mouth *net.UDPConn
					inside(t, to, func() (err error) {
						ear, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
						return err
					})
					defer func() { _ = ear.Close() }()
					inside(t, from, func() (err error) {
						mouth, err = net.DialUDP("udp", nil, ear.LocalAddr().(*net.UDPAddr))
						return err
					})
					defer func() { _ = mouth.Close() }()
					pass(t, mouth, ear, "datagram")
				})
			}
		}
	}
}

func TestNodeReachesWorkload(t *testing.T) {
	b := newBed(t)
	r := b.registry(t, nil)
	s := mustAdd(t, r, "a")
	for i, addr := range s.Addresses {
		l := listenTCP(t, s, addr)
		var client net.Conn
		if err := b.netns.Do(func() (err error) {
			client, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		server := accept(t, l)
		pass(t, client, server, "from the node")
		if got := addrOf(server.RemoteAddr()); got != r.NodeAddresses()[i] {
			t.Errorf("workload sees the node as %s, want %s", got, r.NodeAddresses()[i])
		}
		_ = client.Close()
	}
}

// TestNothingIsResolved: neighbours are permanent, so that the first packet waits for nothing, and no address
// waits for duplicate detection.
func TestNothingIsResolved(t *testing.T) {
	b := newBed(t)
	r := b.registry(t, nil)
	s := mustAdd(t, r, "a")
	inside(t, s, func() error {
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		var got []string
		for _, a := range addrs {
			if a.Flags&unix.IFA_F_TENTATIVE != 0 {
				t.Errorf("address %s is tentative", a.IPNet)
			}
			if !a.IP.IsLoopback() {
				got = append(got, a.IPNet.String())
			}
		}
		slices.Sort(got)
		if want := []string{s.Addresses[0].String() + "/32", s.Addresses[1].String() + "/128"}; !slices.Equal(got, want) {
			t.Errorf("addresses %v, want %v", got, want)
		}
		// The kernel's own local route (metric 0) may not be there yet.
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6,
			&netlink.Route{Table: unix.RT_TABLE_LOCAL, Dst: hostNet(s.Addresses[1])}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Type == unix.RTN_LOCAL && r.Priority != 0 }) {
			t.Errorf("local routes %v", routes)
		}
		neighbours, err := netlink.NeighList(0, 0)
		if err != nil {
			return err
		}
		var hops []string
		for _, n := range neighbours {
			if n.State == netlink.NUD_PERMANENT {
				hops = append(hops, n.IP.String())
			}
		}
		slices.Sort(hops)
		if !slices.Equal(hops, []string{"169.254.1.1", "fe80::1"}) {
			t.Errorf("permanent neighbours %v", hops)
		}
		return nil
	})
	want := []string{
		"link " + s.HostInterface,
		"neighbour " + s.Addresses[0].String() + " dev " + s.HostInterface,
		"neighbour " + s.Addresses[1].String() + " dev " + s.HostInterface,
		"route " + s.Addresses[0].String() + "/32 dev " + s.HostInterface,
		"route " + s.Addresses[1].String() + "/128 dev " + s.HostInterface,
	}
	got := b.network(t)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("node has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestSpoofedSource: what a workload sends from an address that is not its own does
// not arrive.
func TestSpoofedSource(t *testing.T) {
	b := newBed(t)
	r := b.registry(t, nil)
	victim, liar, server := mustAdd(t, r, "victim"), mustAdd(t, r, "liar"), mustAdd(t, r, "server")
	var ear *net.UDPConn
	inside(t, server, func() (err error) {
		ear, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(server.Addresses[0], 0)))
		return err
	})
	defer func() { _ = ear.Close() }()
	send := func(from netip.Addr, text string) error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: from.As4()}); err != nil {
			return err
		}
		to := netip.MustParseAddrPort(ear.LocalAddr().String())
		return unix.Sendto(fd, []byte(text), 0, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	}
	inside(t, liar, func() error { return send(victim.Addresses[0], "forged") })
	inside(t, liar, func() error { return send(liar.Addresses[0], "honest") })
	buf := make([]byte, 64)
	n, from, err := ear.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != "honest" {
		t.Errorf("first datagram is %q from %s, %v", buf[:n], from, err)
	}
}

func TestHostInterfaceName(t *testing.T) {
	seen := make(map[string]bool)
	for i := range 1000 {
		name := hostInterfaceName(spec(hex.EncodeToString([]byte{byte(i >> 8), byte(i)})).Name)
		if len(name) != 15 || !strings.HasPrefix(name, hostInterfacePrefix) || seen[name] {
			t.Fatalf("interface name %q", name)
		}
		seen[name] = true
	}
	host, pod := hardwareAddrs(spec("a").Name)
	for _, mac := range []net.HardwareAddr{host, pod} {
		if mac[0]&3 != 2 {
			t.Errorf("%s is not a locally administered unicast address", mac)
		}
	}
	if bytes.Equal(host, pod) {
		t.Error("both ends have one address")
	}
}

// TestMachineSysctl: the namespace of process 1 is not changed without leave. The
// test only runs where it would not have to be.
func TestMachineSysctl(t *testing.T) {
	b := newBed(t)
	machine, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = machine.Close() }()
	if initial, err := machine.OfInit(); err != nil || !initial {
		t.Skip("the test runs in a namespace of its own")
	}
	before := machineForwarding(t, machine)
	if !strings.Contains(before, "0") {
		t.Skip("forwarding is on, there is nothing to refuse")
	}
	cfg := b.config(t)
	cfg.NodeNetns = machine
	if r, err := New(cfg); err == nil {
		_ = r.Close()
		t.Error("New went on in the machine's own namespace")
	} else if !strings.Contains(err.Error(), "machine's own") {
		t.Error(err)
	}
	if after := machineForwarding(t, machine); after != before {
		t.Errorf("forwarding was %q and is %q", before, after)
	}
}

func machineForwarding(t testing.TB, ns *netns.Namespace) string {
	t.Helper()
	var out string
	if err := ns.Do(func() error {
		for _, path := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
			value, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			out += string(value)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestFirstPacket: once Add has returned, no packet is lost in either direction,
// although the kernel brings carriers and IPv6 addresses into effect in its own time.
func TestFirstPacket(t *testing.T) {
	b := newBed(t)
	r := b.registry(t, nil)
	for i := range 5 {
		s := mustAdd(t, r, fmt.Sprintf("w%d", i))
		for j, addr := range s.Addresses {
			for _, way := range []struct {
				from, to         netip.Addr
				sender, receiver func(func() error)
			}{
				{r.NodeAddresses()[j], addr, func(f func() error) { b.inside(t, f) }, func(f func() error) { inside(t, s, f) }},
				{addr, r.NodeAddresses()[j], func(f func() error) { inside(t, s, f) }, func(f func() error) { b.inside(t, f) }},
			} {
				var ear, mouth *net.UDPConn
				way.receiver(func() (err error) {
					ear, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(way.to, 0)))
					return err
				})
				way.sender(func() (err error) {
					mouth, err = net.DialUDP("udp", nil, ear.LocalAddr().(*net.UDPAddr))
					return err
				})
				if _, err := io.WriteString(mouth, "first"); err != nil {
					t.Fatal(err)
				}
				// Only a packet that is lost takes this long.
				_ = ear.SetReadDeadline(time.Now().Add(10 * time.Second))
				buf := make([]byte, 16)
				if _, from, err := ear.ReadFromUDPAddrPort(buf); err != nil || from.Addr() != way.from {
					t.Errorf("workload %d, %s to %s: came from %s, %v", i, way.from, way.to, from, err)
				}
				_ = ear.Close()
				_ = mouth.Close()
			}
		}
	}
}

func (b *bed) inside(t testing.TB, f func() error) {
	t.Helper()
	if err := b.netns.Do(f); err != nil {
		t.Fatal(err)
	}
}

// TestReplaceQueue: what older kernels need to start an interface does no harm.
func TestReplaceQueue(t *testing.T) {
	b := newBed(t)
	r := b.registry(t, nil)
	s := mustAdd(t, r, "a")
	inside(t, s, func() error {
		handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer handle.Close()
		eth0, err := handle.LinkByName(podInterface)
		if err != nil {
			return err
		}
		if eth0.Attrs().OperState != netlink.OperUp {
			t.Errorf("state is %s", eth0.Attrs().OperState)
		}
		return replaceQueue(handle, eth0.Attrs().Index)
	})
	l := listenTCP(t, s, s.Addresses[0])
	var client net.Conn
	b.inside(t, func() (err error) {
		client, err = net.Dial("tcp", l.Addr().String())
		return err
	})
	defer func() { _ = client.Close() }()
	pass(t, client, accept(t, l), "hello")
}
