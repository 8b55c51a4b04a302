package lab

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/steer"
)

// Listen makes a plain TCP listening socket in the namespace, owned by the test process.
func (n *Netns) Listen(t testing.TB, at netip.AddrPort) *net.TCPListener {
	t.Helper()
	f := n.socket(t, at, unix.SOCK_STREAM)
	defer f.Close()
	l, err := net.FileListener(f)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// ListenPacket makes a UDP socket in the namespace, owned by the test process.
func (n *Netns) ListenPacket(t testing.TB, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	f := n.socket(t, at, unix.SOCK_DGRAM)
	defer f.Close()
	c, err := net.FilePacketConn(f)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

func (n *Netns) socket(t testing.TB, at netip.AddrPort, typ int) *os.File {
	t.Helper()
	var f *os.File
	n.Do(t, func() error {
		domain := unix.AF_INET
		if at.Addr().Is6() {
			domain = unix.AF_INET6
		}
		fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "socket")
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, sockaddr(at, domain)); err != nil {
			return fmt.Errorf("bind %s: %w", at, err)
		}
		if typ == unix.SOCK_STREAM {
			// Of use where FastOpen allowed it.
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 4096); err != nil {
				return err
			}
			return unix.Listen(fd, 4096)
		}
		return nil
	})
	return f
}

// Steered are the listening sockets of an address for steered connections.
type Steered struct {
	listeners []*net.TCPListener
	accepted  chan *net.TCPConn
}

// ListenSteered listens on all ports that take steered connections.
func (n *Netns) ListenSteered(t testing.TB, addr netip.Addr) *Steered {
	t.Helper()
	s := &Steered{accepted: make(chan *net.TCPConn)}
	done := make(chan struct{})
	var accepting sync.WaitGroup
	for port := steer.OutboundPort; port <= steer.LastOutboundPort; port++ {
		l := n.Listen(t, netip.AddrPortFrom(addr, port))
		s.listeners = append(s.listeners, l)
		accepting.Go(func() {
			for {
				c, err := l.AcceptTCP()
				if err != nil {
					return
				}
				select {
				case s.accepted <- c:
				case <-done:
					c.Close()
				}
			}
		})
	}
	t.Cleanup(func() {
		close(done)
		s.Close()
		accepting.Wait()
		close(s.accepted)
	})
	return s
}

// Accept returns the next connection, which goes with the test.
func (s *Steered) Accept(t testing.TB) *net.TCPConn {
	t.Helper()
	c := <-s.accepted
	t.Cleanup(func() { c.Close() })
	return c
}

// Close stops to listen.
func (s *Steered) Close() {
	for _, l := range s.listeners {
		l.Close()
	}
}

// Each calls f with the descriptor of each socket.
func (s *Steered) Each(t testing.TB, f func(fd int)) {
	t.Helper()
	for _, l := range s.listeners {
		FD(t, l, f)
	}
}

// Stream makes a non-blocking TCP socket in the namespace, to dial an address of to's family.
// The caller closes it.
func (n *Netns) Stream(t testing.TB, to netip.Addr) (fd int) {
	t.Helper()
	n.Do(t, func() (err error) {
		domain := unix.AF_INET
		if to.Is6() {
			domain = unix.AF_INET6
		}
		fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	})
	return fd
}

// Sockaddr is the form of an address that system calls on a socket of its family take.
func Sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return sockaddr(a, unix.AF_INET)
	}
	return sockaddr(a, unix.AF_INET6)
}

// FastOpen lets sockets of the namespace take data in a SYN (RFC 7413).
func (n *Netns) FastOpen(t testing.TB) {
	t.Helper()
	n.Do(t, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/tcp_fastopen", []byte("3"), 0)
	})
}

// Echo answers each connection with name and the client's address, and then with what it
// receives, until the test ends.
func (n *Netns) Echo(t testing.TB, name string, at netip.AddrPort) {
	t.Helper()
	l := n.Listen(t, at)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintf(c, "%s\n", name)
				echo(c)
			}()
		}
	}()
}

// Drain accepts connections and closes them.
func (n *Netns) Drain(t testing.TB, at netip.AddrPort) {
	t.Helper()
	l := n.Listen(t, at)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
}

// HTTP answers each request with "hello".
func (n *Netns) HTTP(t testing.TB, at netip.AddrPort) {
	t.Helper()
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "hello")
	})}
	go s.Serve(n.Listen(t, at))
	t.Cleanup(func() { s.Close() })
}

// EchoPacket answers each datagram with name, a space and the datagram.
func (n *Netns) EchoPacket(t testing.TB, name string, at netip.AddrPort) {
	t.Helper()
	c := n.ListenPacket(t, at)
	go func() {
		buf := make([]byte, 65536)
		for {
			size, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			c.WriteToUDPAddrPort(append([]byte(name+" "), buf[:size]...), from)
		}
	}()
}

// FD calls f with the descriptor of a socket.
func FD(t testing.TB, c syscall.Conn, f func(fd int)) {
	t.Helper()
	raw, err := c.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { f(int(fd)) }))
}

// echo answers with what it receives until the client is done.
func echo(c net.Conn) { io.Copy(c, c) }
