package loop

import (
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Bind gives a socket its own address.
func Bind(fd int, to netip.AddrPort) error {
	var sa unix.Sockaddr
	if to.Addr().Is4() {
		sa = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	} else {
		sa = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sa))
}
