package loop

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrAgain says that nothing can be read or written now; Ready will be called
// when that has changed.
var ErrAgain = errors.New("try again when ready")

// Conn is a connected or connecting TCP socket of a loop. It belongs to the loop's
// goroutine.
type Conn struct {
	loop    *Loop
	handler Handler
	fd      int
	slot    uint32

	readable bool // a read may succeed
	writable bool // a write may succeed
	hup      bool // the peer closed its direction, or all: read until the end
	failed   bool // EPOLLERR was seen
	queued   bool // in loop.again
	eof      bool // a read returned 0

	peer netip.Addr // of Connect; the key in loop.peers

	// OnClose, if set, is called once, by Close.
	OnClose func()
}

// Attach registers the non-blocking socket fd, which becomes the Conn's, also on
// an error. The socket counts as readable and writable until it says otherwise.
func (l *Loop) Attach(fd int, h Handler) (*Conn, error) {
	c := &Conn{loop: l, handler: h, fd: fd, readable: true, writable: true}
	if err := c.register(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Conn) register() error {
	c.slot = c.loop.register(entry{conn: c})
	if err := c.loop.add(c.fd, c.slot, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET); err != nil {
		c.loop.release(c.slot)
		unix.Close(c.fd)
		c.fd = -1
		c.handler = nil
		return err
	}
	return nil
}

// Connect begins to connect the non-blocking socket fd, which becomes the Conn's,
// also on an error. When the connection stands or has failed, h is called:
// Connected says which.
func (l *Loop) Connect(fd int, to netip.AddrPort, h Handler) (*Conn, error) {
	l.Stats.Connects++
	size := rawSockaddr(&l.sa, to)
	errno := sysConnect(fd, &l.sa, size)
	if errno != 0 && errno != unix.EINPROGRESS && errno != unix.EINTR {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", errno)
	}
	c := &Conn{loop: l, handler: h, fd: fd, peer: to.Addr()}
	if err := c.register(); err != nil {
		return nil, err
	}
	if l.peers[c.peer] == nil {
		l.peers[c.peer] = map[*Conn]struct{}{}
	}
	l.peers[c.peer][c] = struct{}{}
	return c, nil
}

// HangUp shuts all connections that Connect made to an address, in both
// directions, as if the peer had closed them: for a peer that is gone and cannot
// say so any more. Their handlers see the end of the stream.
func (l *Loop) HangUp(addr netip.Addr) {
	for c := range l.peers[addr] {
		// ENOTCONN: it is still connecting, and its attempt has a limit of its own.
		_ = unix.Shutdown(c.fd, unix.SHUT_RDWR)
	}
}

// Connected reports whether the attempt of Connect has ended, and its error.
func (c *Conn) Connected() (done bool, err error) {
	if c.failed || c.hup {
		v, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil {
			return true, os.NewSyscallError("getsockopt SO_ERROR", err)
		}
		if v != 0 {
			return true, os.NewSyscallError("connect", unix.Errno(v))
		}
	}
	return c.writable, nil
}

// NewSocket makes a socket for Connect in the process's own network namespace.
func NewSocket(v6 bool) (int, error) {
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	return fd, nil
}

// SetNoDelay switches Nagle's algorithm off; connections inherit it from the
// listening socket that accepted them.
func SetNoDelay(fd int) error {
	return os.NewSyscallError("setsockopt TCP_NODELAY", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
}

// FD returns the descriptor, -1 when closed. It stays c's.
func (c *Conn) FD() int { return c.fd }

// Loop returns the loop that c belongs to.
func (c *Conn) Loop() *Loop { return c.loop }

// SetHandler gives c to another handler.
func (c *Conn) SetHandler(h Handler) { c.handler = h }

// Readable reports whether a Read may have an answer.
func (c *Conn) Readable() bool { return c.readable && c.fd >= 0 }

// Writable reports whether a Write may have an answer.
func (c *Conn) Writable() bool { return c.writable && c.fd >= 0 }

// KeepAlive has the kernel ask a silent peer, each interval after idle, whether it
// still knows the connection, both in whole seconds. A socket that was closed and
// not only shut answers with a reset once its system has forgotten it.
func (c *Conn) KeepAlive(idle, interval time.Duration) {
	if c.fd < 0 {
		return
	}
	for _, o := range [...]struct{ level, name, value int }{
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(idle / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(interval / time.Second)},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
	} {
		_ = unix.SetsockoptInt(c.fd, o.level, o.name, o.value)
	}
}

// HungUp reports whether the peer closed its direction or the whole connection;
// bytes may still be waiting.
func (c *Conn) HungUp() bool { return c.hup }

// Failed reports whether the socket has an error, as after a reset.
func (c *Conn) Failed() bool { return c.failed }

// Closed reports whether Close was called.
func (c *Conn) Closed() bool { return c.fd < 0 }

// Again has the handler called once more in the next round.
func (c *Conn) Again() {
	if c.queued || c.fd < 0 {
		return
	}
	c.queued = true
	c.loop.again = append(c.loop.again, c)
}

// LocalAddr asks the kernel for the address that the peer dialled.
func (c *Conn) LocalAddr() netip.AddrPort { return LocalAddr(c.fd) }

// LocalAddr returns the local address of a socket, the zero value if it has none.
func LocalAddr(fd int) netip.AddrPort {
	var sa unix.RawSockaddrAny
	if errno := sysGetsockname(fd, &sa); errno != 0 {
		return netip.AddrPort{}
	}
	return addrPort(&sa)
}

// Read returns ErrAgain when there is nothing, io.EOF at the peer's end. A read
// that did not fill p is the last until the kernel reports more, so that no read
// is made in vain.
func (c *Conn) Read(p []byte) (int, error) {
	if c.fd < 0 {
		return 0, os.ErrClosed
	}
	if c.eof {
		return 0, io.EOF
	}
	if !c.readable {
		return 0, ErrAgain
	}
	for {
		c.loop.Stats.Reads++
		n, errno := sysRead(c.fd, p)
		switch {
		case errno == 0 && n > 0:
			// After a hang-up no further event comes: the end must be read.
			if n < len(p) && !c.hup {
				c.readable = false
			}
			return n, nil
		case errno == 0:
			c.eof = true
			return 0, io.EOF
		case errno == unix.EAGAIN:
			c.loop.Stats.ReadAgains++
			c.readable = false
			return 0, ErrAgain
		case errno == unix.EINTR:
		default:
			return 0, os.NewSyscallError("read", errno)
		}
	}
}

// Write sends the pieces in order with one system call and returns how many bytes
// the kernel took, ErrAgain if none. At most four pieces; empty ones are skipped.
func (c *Conn) Write(pieces ...[]byte) (int, error) {
	if c.fd < 0 {
		return 0, os.ErrClosed
	}
	if !c.writable {
		return 0, ErrAgain
	}
	l := c.loop
	iov := l.iov[:0]
	total := 0
	var single []byte
	for _, p := range pieces {
		if len(p) == 0 {
			continue
		}
		if len(iov) == cap(iov) {
			return 0, fmt.Errorf("write of %d pieces: at most %d", len(pieces), cap(l.iov[:]))
		}
		single = p
		total += len(p)
		v := unix.Iovec{Base: unsafe.SliceData(p)}
		v.SetLen(len(p))
		iov = append(iov, v)
	}
	if total == 0 {
		return 0, nil
	}
	for {
		l.Stats.Writes++
		var n int
		var errno unix.Errno
		if len(iov) == 1 {
			n, errno = sysSend(c.fd, single)
		} else {
			l.msg.Iov = &l.iov[0]
			l.msg.SetIovlen(len(iov))
			n, errno = sysSendmsg(c.fd, &l.msg)
		}
		switch {
		case errno == 0:
			if n < total {
				c.writable = false
			}
			clear(l.iov[:])
			return n, nil
		case errno == unix.EAGAIN:
			l.Stats.WriteAgains++
			c.writable = false
			clear(l.iov[:])
			return 0, ErrAgain
		case errno == unix.EINTR:
		default:
			clear(l.iov[:])
			// What the peer said before it went may lie in the receive buffer; its event
			// can be later than this.
			c.readable, c.hup = true, true
			return 0, os.NewSyscallError("write", errno)
		}
	}
}

// Send is Write of one piece.
func (c *Conn) Send(p []byte) (int, error) { return c.Write(p) }

// SpliceFrom moves up to n bytes from the socket into a pipe: ErrAgain when the
// socket has none (the pipe must have room), io.EOF at the peer's end.
func (c *Conn) SpliceFrom(pipe, n int) (int, error) {
	if c.fd < 0 {
		return 0, os.ErrClosed
	}
	if c.eof {
		return 0, io.EOF
	}
	if !c.readable {
		return 0, ErrAgain
	}
	for {
		c.loop.Stats.Splices++
		r, errno := sysSplice(c.fd, pipe, n)
		switch {
		case errno == 0 && r > 0:
			return r, nil
		case errno == 0:
			c.eof = true
			return 0, io.EOF
		case errno == unix.EAGAIN:
			c.readable = false
			return 0, ErrAgain
		case errno == unix.EINTR:
		default:
			return 0, os.NewSyscallError("splice", errno)
		}
	}
}

// SpliceTo moves up to n bytes, which must be in the pipe, to the socket.
func (c *Conn) SpliceTo(pipe, n int) (int, error) {
	if c.fd < 0 {
		return 0, os.ErrClosed
	}
	if !c.writable {
		return 0, ErrAgain
	}
	for {
		c.loop.Stats.Splices++
		r, errno := sysSplice(pipe, c.fd, n)
		switch {
		case errno == 0:
			return r, nil
		case errno == unix.EAGAIN:
			c.writable = false
			return 0, ErrAgain
		case errno == unix.EINTR:
		default:
			return 0, os.NewSyscallError("splice", errno)
		}
	}
}

// CloseWrite tells the peer that nothing more comes.
func (c *Conn) CloseWrite() {
	if c.fd >= 0 {
		_ = unix.Shutdown(c.fd, unix.SHUT_WR)
	}
}

// Close ends the connection and forgets the handler, which is not called again. It
// may be called twice.
func (c *Conn) Close() {
	if c.fd < 0 {
		return
	}
	// Another process may hold the same description for a moment longer, and epoll
	// watches descriptions.
	_ = unix.EpollCtl(c.loop.epfd, unix.EPOLL_CTL_DEL, c.fd, nil)
	unix.Close(c.fd)
	c.loop.Stats.Closes++
	c.loop.release(c.slot)
	c.fd = -1
	c.handler = nil
	if f := c.OnClose; f != nil {
		c.OnClose = nil
		f()
	}
	if peers := c.loop.peers[c.peer]; peers != nil {
		delete(peers, c)
		if len(peers) == 0 {
			delete(c.loop.peers, c.peer)
		}
	}
}

// Reset ends the connection with a RST.
func (c *Conn) Reset() {
	if c.fd >= 0 {
		Abort(c.fd)
	}
	c.Close()
}

// Abort makes the close of a socket send a RST.
func Abort(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

// CloseFD closes a descriptor that no Conn owns.
func CloseFD(fd int) { _ = unix.Close(fd) }

// PrepareListener makes a listening socket fit for Listen: non-blocking, and its
// connections without Nagle's algorithm, which they inherit.
func PrepareListener(fd int) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return os.NewSyscallError("fcntl O_NONBLOCK", err)
	}
	return SetNoDelay(fd)
}
