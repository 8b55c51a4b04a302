// Package listen makes the sockets on which a node proxy takes connections, and
// recognises them when they come back from another process. Sockets are plain
// descriptors, because they are handed over by SCM_RIGHTS and never read here.
// They belong to the network namespace of the thread that makes them.
package listen

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/mesh"
)

// backlog is the length of the accept queue that is asked for: a restarting proxy
// leaves connections waiting in it. The kernel cuts it to net.core.somaxconn.
const backlog = 16384

// Identity is what tells sockets of one protocol apart: where they are bound.
type Identity struct {
	Protocol    mesh.Protocol
	AddrPort    netip.AddrPort
	NetnsCookie uint64
}

// Open binds a non-blocking, close-on-exec socket to addr in the calling thread's
// network namespace and, for TCP, listens on it. It is plain TCP and never MPTCP,
// whose listeners cannot go into socket maps and hide socket storage. An IPv6
// socket takes IPv6 only. Port 0 lets the kernel choose.
func Open(protocol mesh.Protocol, addr netip.AddrPort) (fd int, err error) {
	return openSocket(protocol, addr, false)
}

// OpenFree is Open for an address that need not be the namespace's yet.
func OpenFree(protocol mesh.Protocol, addr netip.AddrPort) (fd int, err error) {
	return openSocket(protocol, addr, true)
}

func openSocket(protocol mesh.Protocol, addr netip.AddrPort, free bool) (fd int, err error) {
	domain, kind := unix.AF_INET, unix.SOCK_STREAM
	if addr.Addr().Is6() {
		domain = unix.AF_INET6
	}
	if protocol == mesh.ProtocolUDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err = unix.Socket(domain, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(protocol))
	if err != nil {
		return -1, fmt.Errorf("open %s socket on %s: %w", protocol, addr, err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
			fd = -1
		}
	}()
	if domain == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return -1, os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
		}
	}
	if protocol == mesh.ProtocolTCP {
		// Connections that a lost listener accepted still hold the port.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return -1, os.NewSyscallError("setsockopt SO_REUSEADDR", err)
		}
	}
	if free {
		level, option := unix.IPPROTO_IP, unix.IP_FREEBIND
		if domain == unix.AF_INET6 {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_FREEBIND
		}
		if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
			return -1, os.NewSyscallError("setsockopt IP_FREEBIND", err)
		}
	}
	if err := unix.Bind(fd, sockaddr(addr)); err != nil {
		return -1, fmt.Errorf("bind %s socket to %s: %w", protocol, addr, err)
	}
	if protocol == mesh.ProtocolTCP {
		if err := unix.Listen(fd, backlog); err != nil {
			return -1, fmt.Errorf("listen on %s %s: %w", protocol, addr, err)
		}
	}
	return fd, nil
}

// Identify says what the socket fd is. It is an error if fd is not a socket that
// Open could have returned, such as a connected one.
func Identify(fd int) (Identity, error) {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return Identity{}, os.NewSyscallError("getsockopt SO_PROTOCOL", err)
	}
	id := Identity{Protocol: mesh.Protocol(protocol)}
	switch protocol {
	case unix.IPPROTO_TCP:
		listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if err != nil {
			return Identity{}, os.NewSyscallError("getsockopt SO_ACCEPTCONN", err)
		}
		if listening == 0 {
			return Identity{}, fmt.Errorf("TCP socket does not listen")
		}
	case unix.IPPROTO_UDP:
		if _, err := unix.Getpeername(fd); err == nil {
			return Identity{}, fmt.Errorf("UDP socket is connected")
		}
	default:
		return Identity{}, fmt.Errorf("socket of protocol %d is neither TCP nor UDP", protocol)
	}
	id.NetnsCookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return Identity{}, os.NewSyscallError("getsockopt SO_NETNS_COOKIE", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return Identity{}, os.NewSyscallError("getsockname", err)
	}
	switch sa := name.(type) {
	case *unix.SockaddrInet4:
		id.AddrPort = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		id.AddrPort = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	default:
		return Identity{}, fmt.Errorf("socket is not bound to an IP address")
	}
	return id, nil
}

func sockaddr(addr netip.AddrPort) unix.Sockaddr {
	if addr.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
}
