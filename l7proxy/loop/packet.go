package loop

import (
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Packet is a UDP socket that a loop watches. It belongs to the loop's goroutine.
type Packet struct {
	loop  *Loop
	fd    int
	slot  uint32
	ready func()
}

// WatchPacket has ready called whenever the UDP socket fd, which stays the caller's, has
// a datagram or an error: again in the next round if some is left.
func (l *Loop) WatchPacket(fd int, ready func()) (*Packet, error) {
	p := &Packet{loop: l, fd: fd, ready: ready}
	p.slot = l.register(entry{packet: p})
	if err := l.add(fd, p.slot, unix.EPOLLIN); err != nil {
		l.release(p.slot)
		return nil, err
	}
	return p, nil
}

// Close stops watching. It may be called twice.
func (p *Packet) Close() {
	if p.fd >= 0 {
		_ = unix.EpollCtl(p.loop.epfd, unix.EPOLL_CTL_DEL, p.fd, nil)
		p.loop.release(p.slot)
		p.fd = -1
	}
}

// NewPacketSocket makes a non-blocking UDP socket that is connected to an address, so
// that it hears of errors there and of nobody else.
func NewPacketSocket(to netip.AddrPort) (fd int, err error) {
	domain := unix.AF_INET
	if to.Addr().Is6() {
		domain = unix.AF_INET6
	}
	fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	var sa unix.RawSockaddrAny
	if errno := sysConnect(fd, &sa, rawSockaddr(&sa, to)); errno != 0 {
		unix.Close(fd)
		return -1, os.NewSyscallError("connect", errno)
	}
	return fd, nil
}

// batchSize is how many datagrams one system call moves, maxDatagram the largest of them
// (RFC 768: a length of 16 bits; jumbograms of RFC 2675 do not exist in practice).
const (
	batchSize   = 16
	maxDatagram = 1 << 16
)

// mmsghdr is struct mmsghdr of <sys/socket.h>.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// Batch is memory for datagrams, which one goroutine uses at a time.
type Batch struct {
	msgs  [batchSize]mmsghdr
	iovs  [batchSize]unix.Iovec
	names [batchSize]unix.RawSockaddrAny
	data  []byte
}

// NewBatch makes a Batch.
func NewBatch() *Batch { return &Batch{data: make([]byte, batchSize*maxDatagram)} }

// Recv reads datagrams from a non-blocking socket, and says how many. The error is
// ErrAgain if there are none, else the socket's.
func (b *Batch) Recv(fd int) (int, error) {
	for i := range b.msgs {
		b.iovs[i].Base = &b.data[i*maxDatagram]
		b.iovs[i].SetLen(maxDatagram)
		b.msgs[i] = mmsghdr{hdr: unix.Msghdr{Name: (*byte)(unsafe.Pointer(&b.names[i])), Namelen: unix.SizeofSockaddrAny, Iov: &b.iovs[i]}}
		b.msgs[i].hdr.SetIovlen(1)
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs)), batchSize, unix.MSG_DONTWAIT, 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.EAGAIN, unix.EINTR:
		return 0, ErrAgain
	}
	return 0, os.NewSyscallError("recvmmsg", errno)
}

// Datagram returns one of the datagrams that Recv read, valid until the next Recv.
func (b *Batch) Datagram(i int) (data []byte, from netip.AddrPort) {
	at := i * maxDatagram
	return b.data[at : at+int(b.msgs[i].n)], addrPort(&b.names[i])
}

// SendAll sends the first n datagrams that Recv read to one address, and says how many
// the kernel took.
func (b *Batch) SendAll(fd, n int, to netip.AddrPort) (int, error) {
	size := rawSockaddr(&b.names[0], to)
	for i := range n {
		b.iovs[i].SetLen(int(b.msgs[i].n))
		b.msgs[i].hdr.Name, b.msgs[i].hdr.Namelen = (*byte)(unsafe.Pointer(&b.names[0])), size
	}
	sent, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs)), uintptr(n), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, os.NewSyscallError("sendmmsg", errno)
	}
	return int(sent), nil
}

// SendDatagram sends p on a connected UDP socket.
func SendDatagram(fd int, p []byte) error {
	if _, errno := sysSend(fd, p); errno != 0 {
		return os.NewSyscallError("send", errno)
	}
	return nil
}
