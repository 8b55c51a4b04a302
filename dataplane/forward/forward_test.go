package forward_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/dataplane/forward"
	"github.com/sluice-mesh/sluice/dataplane/internal/lab"
	"github.com/sluice-mesh/sluice/dataplane/loader"
	"github.com/sluice-mesh/sluice/dataplane/netns"
	"github.com/sluice-mesh/sluice/dataplane/workload"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

func TestMain(m *testing.M) { lab.Main(m) }

// bed is a node with real workloads whose packets pass a Table's programs.
type bed struct {
	*lab.Mesh
	node     *netns.Namespace
	registry *workload.Registry
	table    *forward.Table
}

func newBed(t testing.TB) *bed {
	m := lab.NewMesh(t)
	node, err := netns.Open(fmt.Sprintf("/proc/self/fd/%d", m.Netns.FD))
	must(t, err)
	t.Cleanup(func() { node.Close() })
	b := &bed{Mesh: m, node: node}
	b.table = b.newTable(t, m.Datapath, false)
	b.registry, err = workload.New(workload.Config{
		RunDir: t.TempDir(), CgroupRoot: filepath.Join(m.WorkloadsCgroup, "forward"),
		PoolV4: netip.MustParsePrefix("10.77.0.0/24"), PoolV6: netip.MustParsePrefix("fd77::/64"),
		Node: "node1", NodeNetns: node, ClusterDomain: "cluster.local", Logger: slog.New(slog.DiscardHandler),
	})
	must(t, err)
	t.Cleanup(func() { b.registry.Close() })
	return b
}

func (b *bed) newTable(t testing.TB, d *loader.Datapath, throughStack bool) *forward.Table {
	t.Helper()
	table, err := forward.New(forward.Config{Datapath: d, Netns: b.node, ThroughStack: throughStack})
	must(t, err)
	return table
}

// box is a workload with its namespace.
type box struct {
	*workload.Sandbox
	ns *netns.Namespace
}

func (b *bed) add(t testing.TB, name string) *box {
	t.Helper()
	s, err := b.registry.Add(t.Context(), workload.Spec{Name: mesh.Name{Namespace: "lab", Name: name}})
	must(t, err)
	t.Cleanup(func() {
		must(t, b.registry.Remove(context.Background(), s.Spec.Name))
	})
	ns, err := netns.Open(s.NetnsPath)
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	must(t, b.table.Add(pair(s)))
	return &box{s, ns}
}

func pair(s *workload.Sandbox) forward.Interface {
	host, own := s.HardwareAddrs()
	return forward.Interface{
		Workload: s.Index, Name: s.Spec.Name, NetnsCookie: s.NetnsCookie, HostIfindex: s.HostIfindex,
		HostMAC: host, MAC: own, Addresses: s.Addresses,
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (b *bed) count(t *testing.T) forward.Count {
	t.Helper()
	c, err := b.table.Count()
	must(t, err)
	return c
}

// udp makes a socket in a namespace that gives up after a while; zero ports are the kernel's to choose.
func udp(t *testing.T, ns *netns.Namespace, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	must(t, ns.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	}))
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(30*time.Second)))
	return c
}

func control(t *testing.T, c *net.UDPConn, f func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	must(t, err)
	var failed error
	must(t, raw.Control(func(fd uintptr) { failed = f(int(fd)) }))
	must(t, failed)
}

// hops receives a datagram and returns the hops that it could still have made.
func hops(t *testing.T, c *net.UDPConn) (text string, left int) {
	t.Helper()
	buf, oob := make([]byte, 2048), make([]byte, 256)
	n, oobn, _, _, err := c.ReadMsgUDP(buf, oob)
	must(t, err)
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	must(t, err)
	for _, m := range messages {
		if len(m.Data) >= 4 {
			left = int(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return string(buf[:n]), left
}

func wantHops(t *testing.T, c *net.UDPConn, is4 bool) {
	control(t, c, func(fd int) error {
		if is4 {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTTL, 1)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
	})
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// TestBetweenWorkloads: packets between workloads arrive as they would by way of the node's stack, and
// pass it only if they are told to.
func TestBetweenWorkloads(t *testing.T) {
	b := newBed(t)
	from, to := b.add(t, "a"), b.add(t, "b")
	for _, throughStack := range []bool{false, true} {
		must(t, b.Datapath.SetRedirectPeer(!throughStack))
		for i := range to.Addresses {
			t.Run(fmt.Sprintf("%s, through the stack %t", family(to.Addresses[i]), throughStack), func(t *testing.T) {
				before := b.count(t)
				server := udp(t, to.ns, netip.AddrPortFrom(to.Addresses[i], 0))
				wantHops(t, server, to.Addresses[i].Is4())
				client := udp(t, from.ns, netip.AddrPortFrom(from.Addresses[i], 0))
				_, err := client.WriteTo([]byte("hello"), server.LocalAddr())
				must(t, err)
				if text, left := hops(t, server); text != "hello" || left != 63 {
					t.Errorf("received %q with %d hops left; want hello with 63, as after one router", text, left)
				}
				exchange(t, from, to, i)
				after := b.count(t)
				one, other := after.Redirected-before.Redirected, after.Stack-before.Stack
				if throughStack {
					one, other = other, one
				}
				// The kernel sends listener reports of its own to the stack.
				if one < 50 || other > 10 {
					t.Errorf("%d packets went the right way and %d the other", one, other)
				}
				if after.Spoofed != before.Spoofed || after.Unexpected != before.Unexpected {
					t.Errorf("packets were dropped: %+v, before %+v", after, before)
				}
			})
		}
	}
}

// exchange sends megabytes each way over TCP, so that packets are as large as the kernel makes them.
func exchange(t *testing.T, from, to *box, family int) {
	t.Helper()
	data := bytes.Repeat([]byte("all work and no play "), 1<<17)
	var l net.Listener
	must(t, to.ns.Do(func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(to.Addresses[family], 0)))
		return err
	}))
	defer l.Close()
	sums := make(chan string, 2)
	serve := func(c *net.TCPConn) {
		h := sha256.New()
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.Write(data)
			c.CloseWrite()
		}()
		io.Copy(h, c)
		<-done
		sums <- string(h.Sum(nil))
	}
	go func() {
		c, err := l.Accept()
		if err != nil {
			sums <- err.Error()
			return
		}
		defer c.Close()
		serve(c.(*net.TCPConn))
	}()
	var c net.Conn
	must(t, from.ns.Do(func() (err error) {
		c, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
		return err
	}))
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(60*time.Second)))
	serve(c.(*net.TCPConn))
	sum := sha256.Sum256(data)
	for range 2 {
		if got := <-sums; got != string(sum[:]) {
			t.Errorf("what arrived is not what was sent (%d bytes)", len(data))
		}
	}
}

// TestLastHop: a packet that may make no more hops is answered by the node, as a router does.
func TestLastHop(t *testing.T) {
	b := newBed(t)
	from, to := b.add(t, "a"), b.add(t, "b")
	for i, addr := range to.Addresses {
		t.Run(family(addr), func(t *testing.T) {
			var c *net.UDPConn
			must(t, from.ns.Do(func() (err error) {
				c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.Addresses[i], 9)))
				return err
			}))
			defer c.Close()
			control(t, c, func(fd int) error {
				if addr.Is4() {
					return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, 1),
						unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1))
				}
				return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 1),
					unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
			})
			_, err := c.Write([]byte("x"))
			must(t, err)
			must(t, c.SetDeadline(time.Now().Add(30*time.Second)))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.EHOSTUNREACH) {
				t.Errorf("the sender is told %v, want time exceeded (EHOSTUNREACH)", err)
			}
		})
	}
}

// TestOutsideWorld: what goes to the node itself is the stack's.
func TestOutsideWorld(t *testing.T) {
	b := newBed(t)
	from := b.add(t, "a")
	for i, addr := range b.registry.NodeAddresses() {
		before := b.count(t)
		node := udp(t, b.node, netip.AddrPortFrom(addr, 0))
		client := udp(t, from.ns, netip.AddrPortFrom(from.Addresses[i], 0))
		_, err := client.WriteTo([]byte("hello"), node.LocalAddr())
		must(t, err)
		buf := make([]byte, 16)
		n, peer, err := node.ReadFromUDPAddrPort(buf)
		must(t, err)
		if string(buf[:n]) != "hello" || peer.Addr().Unmap() != from.Addresses[i] {
			t.Errorf("the node got %q from %s", buf[:n], peer)
		}
		if after := b.count(t); after.Stack == before.Stack || after.Redirected != before.Redirected {
			t.Errorf("counts %+v, before %+v", after, before)
		}
	}
}

// frame is an Ethernet frame with one UDP datagram in it.
type frame struct {
	source, dest net.HardwareAddr
	from, to     netip.AddrPort
	text         string
	vlan         bool
}

func (f frame) bytes() []byte {
	u := make([]byte, 8+len(f.text))
	binary.BigEndian.PutUint16(u[0:], f.from.Port())
	binary.BigEndian.PutUint16(u[2:], f.to.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	copy(u[8:], f.text)
	var ip []byte
	etherType := uint16(unix.ETH_P_IP)
	if f.to.Addr().Is4() {
		ip = make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(u)))
		copy(ip[12:], f.from.Addr().AsSlice())
		copy(ip[16:], f.to.Addr().AsSlice())
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
		// A checksum of zero is none (RFC 768).
	} else {
		etherType = unix.ETH_P_IPV6
		ip = make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, unix.IPPROTO_UDP, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(u)))
		copy(ip[8:], f.from.Addr().AsSlice())
		copy(ip[24:], f.to.Addr().AsSlice())
		pseudo := slices.Concat(ip[8:40], []byte{0, 0, 0, byte(len(u)), 0, 0, 0, unix.IPPROTO_UDP}, u)
		binary.BigEndian.PutUint16(u[6:], checksum(pseudo))
	}
	out := slices.Concat(f.dest, f.source)
	if f.vlan {
		out = append(out, 0x81, 0, 0, 7)
	}
	return slices.Concat(binary.BigEndian.AppendUint16(out, etherType), ip, u)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// packetSocket is a socket for whole frames at an interface.
func packetSocket(t *testing.T, ns *netns.Namespace, name string, protocol uint16) int {
	t.Helper()
	fd := -1
	must(t, ns.Do(func() error {
		i, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bpf.Port(protocol), Ifindex: i.Index})
	}))
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// TestSpoofedSource: nothing leaves a workload with a source that is not its own, whatever socket made
// it, and whoever drops it says so.
func TestSpoofedSource(t *testing.T) {
	b := newBed(t)
	from, to, other := b.add(t, "a"), b.add(t, "b"), b.add(t, "c")
	host, own := from.HardwareAddrs()
	wire := packetSocket(t, from.ns, "eth0", 0)
	for i, addr := range to.Addresses {
		server := udp(t, to.ns, netip.AddrPortFrom(addr, 0))
		at := server.LocalAddr().(*net.UDPAddr).AddrPort()
		stranger := netip.MustParseAddr("192.0.2.1")
		if addr.Is6() {
			stranger = netip.MustParseAddr("2001:db8::1")
		}
		honest := frame{own, nil, netip.AddrPortFrom(from.Addresses[i], 5353), at, "honest", false}
		honest.dest = host
		for _, tc := range []struct {
			name   string
			change func(*frame)
			reason flow.Reason
		}{
			{"another workload's address", func(f *frame) { f.from = netip.AddrPortFrom(other.Addresses[i], 7) }, flow.ReasonSpoofedSource},
			{"a stranger's address", func(f *frame) { f.from = netip.AddrPortFrom(stranger, 7) }, flow.ReasonSpoofedSource},
			{"the receiver's address", func(f *frame) { f.from = netip.AddrPortFrom(addr, 7) }, flow.ReasonSpoofedSource},
			{"no address", func(f *frame) {
				if addr.Is4() {
					f.from = netip.AddrPortFrom(netip.IPv4Unspecified(), 7)
				} else {
					f.from = netip.AddrPortFrom(netip.IPv6Unspecified(), 7)
				}
			}, flow.ReasonSpoofedSource},
			{"another hardware address", func(f *frame) { f.source = net.HardwareAddr{6, 1, 2, 3, 4, 5} }, flow.ReasonSpoofedSource},
			{"a VLAN", func(f *frame) { f.vlan = true }, flow.ReasonUnexpectedFrame},
		} {
			t.Run(family(addr)+" "+tc.name, func(t *testing.T) {
				before := b.count(t)
				forged := honest
				forged.text = "forged"
				tc.change(&forged)
				// Packets of an interface stay in order: what arrives after the honest one was
				// dropped before.
				for _, f := range []frame{forged, honest} {
					if _, err := unix.Write(wire, f.bytes()); err != nil {
						t.Fatal(err)
					}
				}
				buf := make([]byte, 64)
				n, peer, err := server.ReadFromUDPAddrPort(buf)
				must(t, err)
				if string(buf[:n]) != "honest" {
					t.Fatalf("received %q from %s", buf[:n], peer)
				}
				after := b.count(t)
				dropped := after.Spoofed - before.Spoofed
				if tc.reason == flow.ReasonUnexpectedFrame {
					dropped = after.Unexpected - before.Unexpected
				}
				if dropped != 1 {
					t.Errorf("%d packets counted as %s, want 1", dropped, tc.reason)
				}
			})
		}
	}
	f := b.WaitFlow(t, "a spoofed packet", func(f *flow.Flow) bool { return f.Reason == flow.ReasonSpoofedSource })
	if f.Verdict != flow.VerdictDropped || f.Source.AddrPort.Addr() != other.Addresses[0] || f.Destination.AddrPort.Addr() != to.Addresses[0] {
		t.Errorf("flow %+v", f)
	}
}

// TestNeighbourDiscovery: what never leaves the link may come from a link-local address, or from none.
func TestNeighbourDiscovery(t *testing.T) {
	b := newBed(t)
	s := b.add(t, "a")
	handle := func(ns *netns.Namespace) *netlink.Handle {
		h, err := netlink.NewHandleAt(vnetns.NsHandle(ns.FD()), unix.NETLINK_ROUTE)
		must(t, err)
		t.Cleanup(h.Close)
		return h
	}
	inside, node := handle(s.ns), handle(b.node)
	eth0, err := inside.LinkByName("eth0")
	must(t, err)
	veth, err := node.LinkByName(s.HostInterface)
	must(t, err)
	give := func(h *netlink.Handle, link netlink.Link, text string, flags int) {
		t.Helper()
		a, err := netlink.ParseAddr(text)
		must(t, err)
		a.Flags = flags
		must(t, h.AddrAdd(link, a))
	}
	give(node, veth, "fe80::2/64", unix.IFA_F_NODAD)

	// The node has fe80::2 and says so: the solicitation from the unspecified address came through.
	updates := make(chan netlink.AddrUpdate, 16)
	done := make(chan struct{})
	defer close(done)
	must(t, netlink.AddrSubscribeAt(vnetns.NsHandle(s.ns.FD()), updates, done))
	give(inside, eth0, "fe80::2/64", 0)
	state := func(text string, flag int) bool {
		list, err := inside.AddrList(eth0, netlink.FAMILY_V6)
		must(t, err)
		return slices.ContainsFunc(list, func(a netlink.Addr) bool { return a.IP.String() == text && a.Flags&flag != 0 })
	}
	patience := time.After(30 * time.Second)
	for !state("fe80::2", unix.IFA_F_DADFAILED) {
		select {
		case <-updates:
		case <-patience:
			t.Fatal("a duplicate address was not detected")
		}
	}

	failed, err := netlink.ParseAddr("fe80::2/64")
	must(t, err)
	must(t, inside.AddrDel(eth0, failed))

	// An address that nobody has: resolved by the node, no permanent entry stands for it.
	give(inside, eth0, "fe80::3/64", unix.IFA_F_NODAD)
	server := func() *net.UDPConn {
		var c *net.UDPConn
		must(t, s.ns.Do(func() (err error) {
			c, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP("fe80::3"), Zone: "eth0"})
			return err
		}))
		t.Cleanup(func() { c.Close() })
		return c
	}()
	must(t, server.SetDeadline(time.Now().Add(30*time.Second)))
	var client *net.UDPConn
	must(t, b.node.Do(func() (err error) {
		client, err = net.DialUDP("udp", nil, &net.UDPAddr{
			IP: net.ParseIP("fe80::3"), Zone: s.HostInterface, Port: server.LocalAddr().(*net.UDPAddr).Port,
		})
		return err
	}))
	defer client.Close()
	must(t, client.SetDeadline(time.Now().Add(30*time.Second)))
	_, err = client.Write([]byte("there"))
	must(t, err)
	buf := make([]byte, 16)
	_, peer, err := server.ReadFromUDP(buf)
	must(t, err)
	_, err = server.WriteToUDP([]byte("back"), peer)
	must(t, err)
	if n, err := client.Read(buf); err != nil || string(buf[:n]) != "back" {
		t.Fatalf("read %q, %v", buf[:n], err)
	}

	// The node's own name on the link is nobody else's, and link-local reaches nobody else.
	before := b.count(t)
	host, own := s.HardwareAddrs()
	wire := packetSocket(t, s.ns, "eth0", 0)
	for _, f := range []frame{
		{own, host, netip.MustParseAddrPort("[fe80::1]:7"), netip.MustParseAddrPort("[fe80::2]:9"), "forged", false},
		{own, host, netip.MustParseAddrPort("[fe80::3]:7"), netip.MustParseAddrPort("[2001:db8::1]:9"), "forged", false},
	} {
		_, err := unix.Write(wire, f.bytes())
		must(t, err)
	}
	if after := b.count(t); after.Spoofed-before.Spoofed != 2 {
		t.Errorf("%d packets dropped, want 2", after.Spoofed-before.Spoofed)
	}
}

// TestARP: a workload may ask and answer in its own name only.
func TestARP(t *testing.T) {
	b := newBed(t)
	s := b.add(t, "a")
	host, own := s.HardwareAddrs()
	wire := packetSocket(t, s.ns, "eth0", 0)
	seen := packetSocket(t, b.node, s.HostInterface, unix.ETH_P_ARP)
	must(t, unix.SetsockoptTimeval(seen, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}))
	ask := func(mac net.HardwareAddr, from, about string) []byte {
		out := slices.Concat(host, own, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, mac)
		out = append(out, netip.MustParseAddr(from).AsSlice()...)
		return append(append(out, make([]byte, 6)...), netip.MustParseAddr(about).AsSlice()...)
	}
	for _, f := range [][]byte{
		ask(own, "10.77.0.200", "10.77.0.1"),
		ask(net.HardwareAddr{6, 1, 2, 3, 4, 5}, s.Addresses[0].String(), "10.77.0.1"),
		ask(own, s.Addresses[0].String(), "10.77.0.201"),
		ask(own, "0.0.0.0", "10.77.0.202"),
	} {
		_, err := unix.Write(wire, f)
		must(t, err)
	}
	for _, about := range []string{"10.77.0.201", "10.77.0.202"} {
		buf := make([]byte, 64)
		if _, err := unix.Read(seen, buf); err != nil {
			t.Fatal(err)
		}
		if got := netip.AddrFrom4([4]byte(buf[38:42])); got.String() != about {
			t.Errorf("the node saw a question about %s, want only those in the workload's own name (%s)", got, about)
		}
	}
}

// TestTakeover: another process puts its programs into place, and no packet is lost or goes another way.
func TestTakeover(t *testing.T) {
	b := newBed(t)
	from, to := b.add(t, "a"), b.add(t, "b")
	for i, addr := range to.Addresses {
		t.Run(family(addr), func(t *testing.T) {
			server := udp(t, to.ns, netip.AddrPortFrom(addr, 0))
			client := udp(t, from.ns, netip.AddrPortFrom(from.Addresses[i], 0))
			before := b.count(t)
			go func() {
				buf := make([]byte, 16)
				for {
					n, peer, err := server.ReadFromUDPAddrPort(buf)
					if err != nil {
						return
					}
					server.WriteToUDPAddrPort(buf[:n], peer)
				}
			}()
			// One datagram at a time, so that no queue is ever full.
			stop, answered := make(chan struct{}), make(chan uint64, 1)
			go func() {
				buf := make([]byte, 16)
				for n := uint64(0); ; n++ {
					select {
					case <-stop:
						answered <- n
						return
					default:
					}
					if _, err := client.WriteTo(binary.BigEndian.AppendUint64(nil, n), server.LocalAddr()); err != nil {
						t.Error(err)
					}
					if _, _, err := client.ReadFromUDP(buf); err != nil {
						t.Errorf("datagram %d or its answer was lost: %v", n, err)
						answered <- n
						return
					}
				}
			}()
			for range 5 {
				d, err := loader.Load(b.Config())
				must(t, err)
				table := b.newTable(t, d, false)
				for _, s := range []*box{from, to} {
					must(t, table.Add(pair(s.Sandbox)))
				}
				must(t, d.Attach())
				must(t, d.Close())
			}
			close(stop)
			n := <-answered
			if after := b.count(t); n == 0 || after.Redirected-before.Redirected != 2*n || after.Spoofed != before.Spoofed {
				t.Errorf("%d datagrams and answers; counts %+v, before %+v", n, after, before)
			}
		})
	}
}

// TestRemove: nothing of a workload stays, also if another process added it.
func TestRemove(t *testing.T) {
	b := newBed(t)
	from, to := b.add(t, "a"), b.add(t, "b")
	other := b.newTable(t, b.Datapath, false)
	must(t, other.Remove(to.Index, to.NetnsCookie))
	must(t, other.Remove(to.Index, to.NetnsCookie))
	maps := b.Datapath.Maps()
	var key uint32
	var of bpf.MeshInterface
	it := maps.Interfaces.Iterate()
	for it.Next(&key, &of) {
		if of.Workload != uint32(from.Index) {
			t.Errorf("interface %d of workload %d is left", key, of.Workload)
		}
	}
	var a bpf.MeshAddr
	var n bpf.MeshNeighbour
	for it = maps.Neighbours.Iterate(); it.Next(&a, &n); {
		if n.Ifindex != uint32(from.HostIfindex) {
			t.Errorf("address %s is left", a.Addr())
		}
	}
	links, err := os.ReadDir(filepath.Join(b.Config().Dir, "links"))
	must(t, err)
	for _, l := range links {
		if l.Name() == fmt.Sprintf("host_%d", to.NetnsCookie) {
			t.Errorf("link %s is left", l.Name())
		}
	}
	// To a neighbour that is not known packets go by way of the stack.
	before := b.count(t)
	server := udp(t, to.ns, netip.AddrPortFrom(to.Addresses[0], 0))
	client := udp(t, from.ns, netip.AddrPortFrom(from.Addresses[0], 0))
	_, err = client.WriteTo([]byte("hello"), server.LocalAddr())
	must(t, err)
	buf := make([]byte, 16)
	if _, _, err := server.ReadFromUDPAddrPort(buf); err != nil {
		t.Fatal(err)
	}
	if after := b.count(t); after.Stack == before.Stack || after.Redirected != before.Redirected {
		t.Errorf("counts %+v, before %+v", after, before)
	}
}

// TestUnknownInterface: a program without an entry lets nothing pass.
func TestUnknownInterface(t *testing.T) {
	b := newBed(t)
	s := b.add(t, "a")
	must(t, b.Datapath.Maps().Interfaces.Delete(uint32(s.HostIfindex)))
	before := b.count(t)
	client := udp(t, s.ns, netip.AddrPortFrom(s.Addresses[0], 0))
	_, err := client.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.registry.NodeAddresses()[0], 9)))
	must(t, err)
	if after := b.count(t); after.Spoofed == before.Spoofed || after.Stack != before.Stack {
		t.Errorf("counts %+v, before %+v", after, before)
	}
}

// TestBadInterface: what cannot be is refused by name.
func TestBadInterface(t *testing.T) {
	b := newBed(t)
	s := b.add(t, "a")
	for _, change := range []func(*forward.Interface){
		func(i *forward.Interface) { i.Workload = 0 },
		func(i *forward.Interface) { i.NetnsCookie = 0 },
		func(i *forward.Interface) { i.HostIfindex = 0 },
		func(i *forward.Interface) { i.MAC = nil },
		func(i *forward.Interface) { i.Addresses = nil },
	} {
		i := pair(s.Sandbox)
		change(&i)
		if err := b.table.Add(i); err == nil {
			t.Errorf("%+v was taken", i)
		}
	}
}

// TestClassifier: as a classifier, which kernels before tcx have, the program does the same.
func TestClassifier(t *testing.T) {
	b := newBed(t)
	b.table.Classify()
	from, to := b.add(t, "a"), b.add(t, "b")
	links, err := os.ReadDir(filepath.Join(b.Config().Dir, "links"))
	must(t, err)
	for _, l := range links {
		if strings.HasPrefix(l.Name(), "host_") {
			t.Errorf("there is a link %s, too", l.Name())
		}
	}
	for i, addr := range to.Addresses {
		before := b.count(t)
		exchange(t, from, to, i)
		// Another process puts its own in the place.
		d, err := loader.Load(b.Config())
		must(t, err)
		table := b.newTable(t, d, false)
		table.Classify()
		for _, s := range []*box{from, to} {
			must(t, table.Add(pair(s.Sandbox)))
		}
		must(t, d.Close())
		exchange(t, from, to, i)
		after := b.count(t)
		if after.Redirected-before.Redirected < 50 || after.Stack-before.Stack > 10 || after.Spoofed != before.Spoofed {
			t.Errorf("%s: counts %+v, before %+v", family(addr), after, before)
		}
		host, own := from.HardwareAddrs()
		wire := packetSocket(t, from.ns, "eth0", 0)
		f := frame{own, host, netip.AddrPortFrom(addr, 7), netip.AddrPortFrom(addr, 9), "forged", false}
		_, err = unix.Write(wire, f.bytes())
		must(t, err)
		if now := b.count(t); now.Spoofed != after.Spoofed+1 {
			t.Errorf("%s: %d packets dropped, want 1", family(addr), now.Spoofed-after.Spoofed)
		}
	}
}
