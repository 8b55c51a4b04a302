package listen

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/mesh"
)

func open(t *testing.T, protocol mesh.Protocol, at string) int {
	t.Helper()
	fd, err := Open(protocol, netip.MustParseAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func TestOpenAndIdentify(t *testing.T) {
	for _, protocol := range []mesh.Protocol{mesh.ProtocolTCP, mesh.ProtocolUDP} {
		for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
			fd := open(t, protocol, at)
			id, err := Identify(fd)
			if err != nil {
				t.Fatal(err)
			}
			if id.Protocol != protocol || id.AddrPort.Addr() != netip.MustParseAddrPort(at).Addr() || id.AddrPort.Port() == 0 || id.NetnsCookie == 0 {
				t.Errorf("%s %s is %+v", protocol, at, id)
			}
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
				t.Error("it blocks")
			}
			if id.AddrPort.Addr().Is6() {
				if only, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY); err != nil || only != 1 {
					t.Error("it takes IPv4 too")
				}
			}
			if _, err := Open(protocol, id.AddrPort); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("twice on %s: %v", id.AddrPort, err)
			}
		}
	}
}

// TestRebind: a socket whose connections still hold the port can be made anew.
func TestRebind(t *testing.T) {
	fd := open(t, mesh.ProtocolTCP, "127.0.0.1:0")
	id, err := Identify(fd)
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial("tcp", id.AddrPort.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	conn, _, err := unix.Accept(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(conn) }()
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
	again := open(t, mesh.ProtocolTCP, id.AddrPort.String())
	if got, err := Identify(again); err != nil || got != id {
		t.Errorf("%+v, %v; was %+v", got, err, id)
	}
	if _, err := Identify(conn); err == nil {
		t.Error("a connection was taken for a listener")
	}
}

func TestIdentifyOther(t *testing.T) {
	udp, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(udp) }()
	if err := unix.Connect(udp, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 9}); err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, fd := range append(pair[:], pipe[:]...) {
			_ = unix.Close(fd)
		}
	}()
	for name, fd := range map[string]int{"connected UDP": udp, "unix": pair[0], "pipe": pipe[0], "closed": 1 << 20} {
		if id, err := Identify(fd); err == nil {
			t.Errorf("%s was taken for %+v", name, id)
		}
	}
}
