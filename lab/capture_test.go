package lab_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// knock sends one packet to an address, a SYN or a datagram, and waits for nothing.
func knock(c call) error {
	to, err := netip.ParseAddrPort(c.Addr)
	if err != nil {
		return err
	}
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	if strings.HasPrefix(c.Network, "udp") {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	sa := sockaddrOf(to, to.Addr().Is6())
	if kind == unix.SOCK_DGRAM {
		return unix.Sendto(fd, []byte("knock"), 0, sa)
	}
	if err := unix.Connect(fd, sa); !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	return nil
}

// TestCapturePortsFromOutside: what the world sends to the proxy's sockets in a workload's
// namespace never arrives there, and is told.
func TestCapturePortsFromOutside(t *testing.T) {
	for _, network := range []string{"ip4", "ip6"} {
		own := netip.MustParseAddr(shared.client.must(t, call{Do: "own", Network: network}).Text)
		for _, to := range []struct {
			network string
			port    uint16
		}{{"tcp", 15001}, {"tcp", 15053}, {"udp", 15053}} {
			addr := netip.AddrPortFrom(own, to.port)
			shared.outside.must(t, call{Do: "knock", Network: to.network, Addr: addr.String()})
			r := shared.flow(t, func(r record) bool {
				return r.Reason == "capture-port" && r.Original == addr && strings.EqualFold(r.Protocol, to.network)
			}, "--verdict", "dropped")
			if r.Destination.Workload != "shop/client" || r.Source.Workload != "" || r.Source.Address.Port() == 0 {
				t.Errorf("%s %s: flow %+v", to.network, addr, r)
			}
		}
	}
}
