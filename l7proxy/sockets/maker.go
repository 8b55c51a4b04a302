package sockets

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Maker answers requests for sockets. It needs CAP_SYS_ADMIN, to enter
// namespaces, and CAP_NET_ADMIN, for sockets that may be bound to any address.
type Maker struct {
	// NetnsDir is the folder of the namespaces' files.
	NetnsDir string
	// Mark is that of sockets which may be bound to any address.
	Mark   int
	Logger *slog.Logger
}

// Run answers requests on c (SOCK_SEQPACKET) until the worker closes it, which is
// no error. It holds one OS thread, which never leaves its own namespace but for
// the system calls that make a batch.
func (m *Maker) Run(c *net.UnixConn) error {
	dir, err := unix.Open(m.NetnsDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the folder of namespaces %s: %w", m.NetnsDir, err)
	}
	defer unix.Close(dir)
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the own network namespace: %w", err)
	}
	defer unix.Close(home)

	buf := make([]byte, requestHeaderBytes+maxNameBytes+1)
	fds := make([]int, 0, maxBatch)
	for {
		n, err := c.Read(buf)
		if err != nil || n == 0 {
			if n == 0 || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("read a request: %w", err)
		}
		r, err := parseRequest(buf[:n])
		if err != nil {
			return fmt.Errorf("the worker sent: %w", err)
		}
		fds, err = m.make(dir, home, r, fds[:0])
		var errno unix.Errno
		var oob []byte
		if err != nil {
			if !errors.As(err, &errno) {
				return err
			}
			m.Logger.Debug("no sockets", "netns", r.netns, "error", err)
		} else {
			oob = unix.UnixRights(fds...)
		}
		_, _, err = c.WriteMsgUnix(appendAnswer(nil, r.tag, errno), oob, nil)
		closeFDs(fds)
		if err != nil {
			return fmt.Errorf("answer a request: %w", err)
		}
	}
}

// errLost says that the thread could not come home; the process must end.
var errLost = errors.New("the thread cannot return to its own network namespace")

// make appends sockets of one namespace to fds. An errno in the error concerns
// that namespace only; any other error is the end of the Maker.
func (m *Maker) make(dir, home int, r request, fds []int) ([]int, error) {
	ns, err := unix.Openat(dir, r.netns, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fds, os.NewSyscallError("open", err)
	}
	defer unix.Close(ns)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Setns checks that the file is a network namespace.
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return fds, os.NewSyscallError("setns", err)
	}
	family := unix.AF_INET
	if r.v6 {
		family = unix.AF_INET6
	}
	var failed error
	for range r.count {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			failed = os.NewSyscallError("socket", err)
			break
		}
		fds = append(fds, fd)
		if r.transparent {
			if failed = m.transparent(fd, r.v6); failed != nil {
				break
			}
		}
	}
	if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread with its goroutine
		// Not wrapped: an errno would concern the one namespace only.
		return fds, fmt.Errorf("%w: %s", errLost, err.Error())
	}
	if failed != nil {
		closeFDs(fds)
		return fds[:0], failed
	}
	return fds, nil
}

// transparent lets a socket be bound to any address, its port chosen when it connects.
func (m *Maker) transparent(fd int, v6 bool) error {
	level, option := unix.IPPROTO_IP, unix.IP_TRANSPARENT
	if v6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT
	}
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return os.NewSyscallError("setsockopt IP_TRANSPARENT", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, m.Mark); err != nil {
		return os.NewSyscallError("setsockopt SO_MARK", err)
	}
	return os.NewSyscallError("setsockopt IP_BIND_ADDRESS_NO_PORT",
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1))
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
