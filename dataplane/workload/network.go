package workload

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/listen"
	"github.com/sluice-mesh/sluice/dataplane/netns"
	"github.com/sluice-mesh/sluice/mesh"
)

// The next hops of every workload. No interface has these addresses: permanent
// neighbour entries stand for the node's end of the veth pair.
var (
	nextHopV4 = netip.MustParseAddr("169.254.1.1")
	nextHopV6 = netip.MustParseAddr("fe80::1")
)

// podInterface is what a workload's interface is called inside.
const podInterface = "eth0"

// hostInterfacePrefix begins the names of the node's ends of veth pairs. With the 8
// characters of a hash they fill IFNAMSIZ (15 and a zero).
const hostInterfacePrefix = "sluice-"

// hostInterfaceName derives the name of the node's end from the workload's.
func hostInterfaceName(name mesh.Name) string {
	sum := sha256.Sum256([]byte(name.String()))
	return hostInterfacePrefix + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5]))
}

// hardwareAddrs derives the addresses of both ends: locally administered unicast.
func hardwareAddrs(name mesh.Name) (host, pod net.HardwareAddr) {
	sum := sha256.Sum256([]byte("mac " + name.String()))
	host, pod = net.HardwareAddr(sum[0:6]), net.HardwareAddr(sum[6:12])
	host[0], pod[0] = 0x02, 0x06
	return host, pod
}

// node is the node's network namespace as the registry changes it.
type node struct {
	netns *netns.Namespace
	link  *netlink.Handle
	// addrV4 and addrV6 are the node's own addresses in the pools, or zero. They are
	// the source of what the node itself sends to workloads.
	addrV4, addrV6 netip.Addr
	mtu            int
}

// newNode turns forwarding on and gives lo the node's pool addresses.
func newNode(ns *netns.Namespace, addrV4, addrV6 netip.Addr, mtu int, allowHostSysctl bool) (*node, error) {
	handle, err := netlink.NewHandleAt(vnetns.NsHandle(ns.FD()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink in the node's namespace: %w", err)
	}
	n := &node{netns: ns, link: handle, addrV4: addrV4, addrV6: addrV6, mtu: mtu}
	if err := n.prepare(allowHostSysctl); err != nil {
		handle.Close()
		return nil, err
	}
	return n, nil
}

func (n *node) prepare(allowHostSysctl bool) error {
	initial, err := n.netns.OfInit()
	if err != nil {
		return err
	}
	for _, want := range []struct {
		addr netip.Addr
		path string
	}{
		{n.addrV4, "net/ipv4/ip_forward"},
		{n.addrV6, "net/ipv6/conf/all/forwarding"},
	} {
		if !want.addr.IsValid() {
			continue
		}
		if err := n.netns.Do(func() error {
			value, err := readSysctl(want.path)
			switch {
			case err != nil:
				return err
			case value != "0":
				return nil
			case initial && !allowHostSysctl:
				return fmt.Errorf("%s is 0 in the machine's own network namespace, which this node may not change: "+
					"set it to 1, or allow the node to", strings.ReplaceAll(want.path, "/", "."))
			}
			return writeSysctl(want.path, "1")
		}); err != nil {
			return fmt.Errorf("enable forwarding: %w", err)
		}
	}
	lo, err := n.link.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo in the node's namespace: %w", err)
	}
	if lo.Attrs().Flags&net.FlagUp == 0 {
		if err := n.link.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set lo up in the node's namespace: %w", err)
		}
	}
	for _, addr := range n.addresses() {
		err := n.link.AddrAdd(lo, hostAddr(addr))
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add node address %s to lo: %w", addr, err)
		}
		if err := takeNow(n.link, lo.Attrs().Index, addr); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) addresses() (out []netip.Addr) {
	for _, addr := range []netip.Addr{n.addrV4, n.addrV6} {
		if addr.IsValid() {
			out = append(out, addr)
		}
	}
	return out
}

// connect gives the namespace of s its interface, addresses and routes, and the
// node's namespace the way to it. It fills in HostIfindex.
func (n *node) connect(s *Sandbox, pod *netns.Namespace) error {
	hostMAC, podMAC := hardwareAddrs(s.Spec.Name)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = s.HostInterface, n.mtu, hostMAC
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: podInterface, PeerHardwareAddr: podMAC, PeerMTU: uint32(n.mtu),
		PeerNamespace: netlink.NsFd(pod.FD()),
	}
	if err := n.link.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth pair %s: %w", s.HostInterface, err)
	}
	s.HostIfindex = veth.Index
	inside, err := netlink.NewHandleAt(vnetns.NsHandle(pod.FD()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the workload's namespace: %w", err)
	}
	defer inside.Close()
	eth0, err := connectPod(s, pod, inside, hostMAC)
	if err != nil {
		return err
	}
	if in, err := s.Spec.Inbound(); err != nil {
		return err
	} else if len(in.Ports) > 0 {
		if err := prepareInbound(s, pod, inside); err != nil {
			return err
		}
	}
	// Without a link-local address there is neither duplicate detection nor router
	// solicitation.
	if n.addrV6.IsValid() {
		if err := n.link.LinkSetIP6AddrGenMode(veth, addrGenModeNone); err != nil {
			return fmt.Errorf("set address generation of %s: %w", s.HostInterface, err)
		}
	}
	// A workload sends from its own addresses only (RFC 3704 §2.2).
	if n.addrV4.IsValid() {
		if err := n.netns.Do(func() error {
			return writeSysctl("net/ipv4/conf/"+s.HostInterface+"/rp_filter", "1")
		}); err != nil {
			return err
		}
	}
	if err := n.link.LinkSetUp(veth); err != nil {
		return fmt.Errorf("set %s up: %w", s.HostInterface, err)
	}
	for _, addr := range s.Addresses {
		if err := n.link.NeighSet(permanent(veth.Index, addr, podMAC)); err != nil {
			return fmt.Errorf("add neighbour %s on %s: %w", addr, s.HostInterface, err)
		}
		source := n.addrV4
		if addr.Is6() {
			source = n.addrV6
		}
		if err := n.link.RouteAdd(&netlink.Route{
			LinkIndex: veth.Index, Dst: hostNet(addr), Src: source.AsSlice(), Scope: netlink.SCOPE_LINK,
		}); err != nil {
			return fmt.Errorf("add route to %s by %s: %w", addr, s.HostInterface, err)
		}
	}
	return startQueue(inside, eth0)
}

// startQueue makes an interface send whose other end has come up after it. The kernel
// would begin to on its own when it looks at changed carriers, up to a second later,
// and drops all packets until then.
func startQueue(handle *netlink.Handle, ifindex int) error {
	// Since Linux 6.8 the question alone makes it look (rtnl_getlink).
	link, err := handle.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("find %s: %w", podInterface, err)
	}
	if link.Attrs().OperState == netlink.OperUp {
		return nil
	}
	return replaceQueue(handle, ifindex)
}

// replaceQueue puts the queueing discipline that veth has by default in its own
// place, which starts it if there is a carrier (qdisc_graft).
func replaceQueue(handle *netlink.Handle, ifindex int) error {
	attrs := netlink.QdiscAttrs{LinkIndex: ifindex, Parent: netlink.HANDLE_ROOT}
	if err := handle.QdiscReplace(&netlink.GenericQdisc{QdiscAttrs: attrs, QdiscType: "noqueue"}); err != nil {
		return fmt.Errorf("start the queue of %s: %w", podInterface, err)
	}
	return nil
}

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE (linux/if_link.h).
const addrGenModeNone = 1

// connectPod sets up the inside of a namespace and returns the number of its
// interface, which has no carrier until the other end is up.
func connectPod(s *Sandbox, pod *netns.Namespace, handle *netlink.Handle, hostMAC net.HardwareAddr) (ifindex int, err error) {
	lo, err := handle.LinkByName("lo")
	if err != nil {
		return 0, fmt.Errorf("find lo: %w", err)
	}
	if err := handle.LinkSetUp(lo); err != nil {
		return 0, fmt.Errorf("set lo up: %w", err)
	}
	eth0, err := handle.LinkByName(podInterface)
	if err != nil {
		return 0, fmt.Errorf("find %s: %w", podInterface, err)
	}
	index := eth0.Attrs().Index
	if slices.ContainsFunc(s.Addresses, netip.Addr.Is6) {
		if err := handle.LinkSetIP6AddrGenMode(eth0, addrGenModeNone); err != nil {
			return 0, fmt.Errorf("set address generation of %s: %w", podInterface, err)
		}
	}
	if err := handle.LinkSetUp(eth0); err != nil {
		return 0, fmt.Errorf("set %s up: %w", podInterface, err)
	}
	for _, addr := range s.Addresses {
		nextHop, all := nextHopV4, &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		if addr.Is6() {
			nextHop, all = nextHopV6, &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		}
		if err := handle.AddrAdd(eth0, hostAddr(addr)); err != nil {
			return 0, fmt.Errorf("add address %s: %w", addr, err)
		}
		if err := takeNow(handle, index, addr); err != nil {
			return 0, err
		}
		if err := handle.NeighSet(permanent(index, nextHop, hostMAC)); err != nil {
			return 0, fmt.Errorf("add neighbour %s: %w", nextHop, err)
		}
		if err := handle.RouteAdd(&netlink.Route{
			LinkIndex: index, Dst: all, Gw: nextHop.AsSlice(), Src: addr.AsSlice(), Flags: int(netlink.FLAG_ONLINK),
		}); err != nil {
			return 0, fmt.Errorf("add default route by %s: %w", nextHop, err)
		}
	}
	// What container runtimes give a pod as well: ports below 1024 and ICMP echo
	// without a capability. The namespace is the workload's own.
	return index, pod.Do(func() error {
		if err := writeSysctl("net/ipv4/ip_unprivileged_port_start", "0"); err != nil {
			return err
		}
		return writeSysctl("net/ipv4/ping_group_range", "0 2147483647")
	})
}

// takeNow makes an interface take packets for its new address at once. The kernel
// adds the local route of an IPv6 address from a work queue, whenever that comes to
// it (addrconf_dad_work), and drops all packets until then. Its route is preferred
// to this one by its metric.
func takeNow(handle *netlink.Handle, ifindex int, addr netip.Addr) error {
	if !addr.Is6() {
		return nil
	}
	if err := handle.RouteReplace(&netlink.Route{
		LinkIndex: ifindex, Dst: hostNet(addr), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL,
	}); err != nil {
		return fmt.Errorf("add local route to %s: %w", addr, err)
	}
	return nil
}

// disconnect deletes the node's end of a veth pair, and with it routes, neighbours
// and the other end. One that does not exist is no error.
func (n *node) disconnect(hostInterface string) error {
	link, err := n.link.LinkByName(hostInterface)
	if err == nil {
		err = n.link.LinkDel(link)
	}
	var notFound netlink.LinkNotFoundError
	if err != nil && !errors.As(err, &notFound) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete veth pair %s: %w", hostInterface, err)
	}
	return nil
}

// hostInterfaces returns the names of all node ends that exist.
func (n *node) hostInterfaces() ([]string, error) {
	links, err := n.link.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links of the node's namespace: %w", err)
	}
	var names []string
	for _, link := range links {
		if name := link.Attrs().Name; link.Type() == "veth" && strings.HasPrefix(name, hostInterfacePrefix) {
			names = append(names, name)
		}
	}
	return names, nil
}

// wantSockets lists the sockets of a workload, without descriptors.
func wantSockets(addresses []netip.Addr) []Socket {
	var out []Socket
	for _, addr := range addresses {
		loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if addr.Is6() {
			loopback = netip.IPv6Loopback()
		}
		for port := uint16(PortOutbound); port <= PortOutboundLast; port++ {
			out = append(out, Socket{
				Purpose: PurposeOutbound, Protocol: mesh.ProtocolTCP, AddrPort: netip.AddrPortFrom(addr, port), FD: -1,
			})
		}
		for _, s := range []Socket{
			{Purpose: PurposeInbound, Protocol: mesh.ProtocolTCP, AddrPort: netip.AddrPortFrom(loopback, PortInbound)},
			{Purpose: PurposeDNS, Protocol: mesh.ProtocolUDP, AddrPort: netip.AddrPortFrom(addr, PortDNS)},
			{Purpose: PurposeDNS, Protocol: mesh.ProtocolTCP, AddrPort: netip.AddrPortFrom(addr, PortDNS)},
		} {
			s.FD = -1
			out = append(out, s)
		}
	}
	return out
}

// openSockets opens those of sockets that have no descriptor. On error the ones that
// were opened stay in sockets.
func openSockets(pod *netns.Namespace, sockets []Socket) error {
	return pod.Do(func() error {
		for i := range sockets {
			if sockets[i].FD >= 0 {
				continue
			}
			fd, err := listen.Open(sockets[i].Protocol, sockets[i].AddrPort)
			if err != nil {
				return err
			}
			sockets[i].FD = fd
		}
		return nil
	})
}

func hostNet(addr netip.Addr) *net.IPNet {
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}
}

func hostAddr(addr netip.Addr) *netlink.Addr {
	out := &netlink.Addr{IPNet: hostNet(addr)}
	if addr.Is6() {
		out.Flags = unix.IFA_F_NODAD
	}
	return out
}

func permanent(ifindex int, addr netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: ifindex, IP: addr.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}
}

// readSysctl and writeSysctl work on the network namespace of the calling thread.
func readSysctl(path string) (string, error) {
	value, err := os.ReadFile(filepath.Join("/proc/sys", path))
	return strings.TrimSpace(string(value)), err
}

func writeSysctl(path, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0)
}
