package steer_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/internal/lab"
	"github.com/sluice-mesh/sluice/dataplane/loader"
	"github.com/sluice-mesh/sluice/dataplane/steer"
)

// A process may have 20,000 descriptors where the tests run, so several make the 40,000
// connections, and several accept them.
const (
	crowdSize    = 40_000
	crowdParts   = 3
	acceptedEach = crowdSize/crowdParts + 1000
)

// waitFor calls f for each descriptor of an epoll set that is ready, until it returns false.
func waitFor(epoll int, f func(fd int) (bool, error)) error {
	events := make([]unix.EpollEvent, 512)
	for {
		n, err := unix.EpollWait(epoll, events, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range events[:n] {
			if more, err := f(int(e.Fd)); err != nil || !more {
				return err
			}
		}
	}
}

func watch(epoll, op, fd int, events uint32) error {
	return unix.EpollCtl(epoll, op, fd, &unix.EpollEvent{Fd: int32(fd), Events: events})
}

// acceptor accepts at most acceptedEach connections on the listening sockets that follow the
// map of origins, which is descriptor 3, answers each with "y" or "n", as it was steered to
// ADDR or not, and then each byte with itself.
var acceptor = lab.Child("acceptor", func(args []string) error {
	want := netip.MustParseAddrPort(args[0])
	listeners, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	const origins = 3
	epoll, err := unix.EpollCreate1(0)
	if err != nil {
		return err
	}
	for fd := origins + 1; fd <= origins+listeners; fd++ {
		if err := errors.Join(unix.SetNonblock(fd, true), watch(epoll, unix.EPOLL_CTL_ADD, fd, unix.EPOLLIN)); err != nil {
			return err
		}
	}
	buf, accepted := make([]byte, 1), 0
	return waitFor(epoll, func(fd int) (bool, error) {
		if fd > origins+listeners {
			n, err := unix.Read(fd, buf)
			if err != nil || n == 0 {
				return true, unix.Close(fd)
			}
			_, err = unix.Write(fd, buf)
			return true, err
		}
		if accepted == acceptedEach {
			return true, watch(epoll, unix.EPOLL_CTL_DEL, fd, 0)
		}
		c, _, err := unix.Accept4(fd, unix.SOCK_NONBLOCK)
		if errors.Is(err, unix.EAGAIN) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		accepted++
		o, ok, err := steer.LookupOrigin(origins, c)
		if err != nil {
			return false, err
		}
		answer := "n"
		if ok && o.Destination == want {
			answer = "y"
		}
		if _, err := unix.Write(c, []byte(answer)); err != nil {
			return false, err
		}
		return true, watch(epoll, unix.EPOLL_CTL_ADD, c, unix.EPOLLIN)
	})
})

// crowd opens COUNT connections to ADDR at once, says so when each has its answer, and for
// each line of input has a byte echoed on each.
var crowd = lab.Child("crowd", func(args []string) error {
	to := netip.MustParseAddrPort(args[0])
	count, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	epoll, err := unix.EpollCreate1(0)
	if err != nil {
		return err
	}
	domain := unix.AF_INET6
	if to.Addr().Is4() {
		domain = unix.AF_INET
	}
	var fds []int
	for range count {
		fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
		if err := unix.Connect(fd, lab.Sockaddr(to)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return fmt.Errorf("connection %d: %w", len(fds), err)
		}
		if err := watch(epoll, unix.EPOLL_CTL_ADD, fd, unix.EPOLLIN); err != nil {
			return err
		}
	}
	each := func(want string) error {
		left, buf := count, make([]byte, 1)
		err := waitFor(epoll, func(fd int) (bool, error) {
			n, err := unix.Read(fd, buf)
			if err != nil || string(buf[:n]) != want {
				return false, fmt.Errorf("with %d of %d connections left: %q, %w", left, count, buf[:n], err)
			}
			left--
			return left > 0, nil
		})
		fmt.Println(count - left)
		return err
	}
	if err := each("y"); err != nil {
		return err
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		for _, fd := range fds {
			if _, err := unix.Write(fd, []byte("e")); err != nil {
				return err
			}
		}
		if err := each("e"); err != nil {
			return err
		}
	}
	// Resets leave no TIME_WAIT.
	for _, fd := range fds {
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return err
		}
	}
	return nil
})

// TestCrowd: one workload holds 40,000 steered connections to one service, more than it has
// ephemeral ports. Each is known to the proxy for what it is.
func TestCrowd(t *testing.T) {
	if testing.Short() {
		t.Skip("40,000 connections")
	}
	m := lab.NewMeshSized(t, func(c *loader.Config) { c.Sizes.Handshakes = 2 * crowdSize })
	p := m.Enrol(t, "client")
	m.SetService(t, steered())
	for _, f := range families[:2] {
		t.Run(f.name, func(t *testing.T) {
			to := at(f.of(vip4, vip6), 80)
			var files []*os.File
			for port := steer.OutboundPort; port <= steer.LastOutboundPort; port++ {
				l, err := p.Listen(t, at(f.of(p.Addr4, p.Addr6), port)).File()
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { l.Close() })
				files = append(files, l)
			}
			for range crowdParts {
				cmd := lab.ChildCommand(acceptor, to.String(), fmt.Sprint(len(files)))
				cmd.ExtraFiles = append([]*os.File{dup(t, m.Steer.OriginMapFD())}, files...)
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					cmd.Process.Kill()
					cmd.Wait()
				})
			}
			type part struct {
				cmd *exec.Cmd
				in  io.WriteCloser
				out *bufio.Scanner
			}
			var parts []part
			for i := range crowdParts {
				count := crowdSize / crowdParts
				if i == 0 {
					count += crowdSize % crowdParts
				}
				cmd := lab.ChildCommand(crowd, to.String(), fmt.Sprint(count))
				in, err := cmd.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				p.Start(t, cmd)
				parts = append(parts, part{cmd, in, bufio.NewScanner(out)})
			}
			sum := func(what string) {
				t.Helper()
				total := 0
				for _, p := range parts {
					if !p.out.Scan() {
						t.Fatalf("%s: a part of the crowd ended", what)
					}
					n, err := strconv.Atoi(p.out.Text())
					if err != nil {
						t.Fatal(err)
					}
					total += n
				}
				if total != crowdSize {
					t.Fatalf("%s: %d connections, want %d", what, total, crowdSize)
				}
			}
			sum("opened")
			for _, p := range parts {
				fmt.Fprintln(p.in, "all")
			}
			sum("spoke when all were open")
			for _, p := range parts {
				p.in.Close()
				if err := p.cmd.Wait(); err != nil {
					t.Error(err)
				}
			}
			if n := count(t, m.Datapath.Maps().Pending); n != 0 {
				t.Errorf("%d original destinations were left behind", n)
			}
		})
	}
}
