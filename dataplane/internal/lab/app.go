package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// childEnv names what the test's own program is to do instead of tests.
const childEnv = "SLUICE_LAB_CHILD"

var children = map[string]func(args []string) error{"app": serveApp}

// Child registers what Start can run in a process of its own. Call it from an init
// function or a package variable.
func Child(name string, f func(args []string) error) string {
	children[name] = f
	return name
}

// Main is a TestMain that runs the children.
func Main(m *testing.M) {
	name := os.Getenv(childEnv)
	if name == "" {
		os.Exit(m.Run())
	}
	runtime.LockOSThread()
	if err := children[name](os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// ChildCommand returns the command that runs a child, not started.
func ChildCommand(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	// The runtime's signals would interrupt the blocking calls that a child makes by itself.
	cmd.Env = append(os.Environ(), childEnv+"="+name, "GODEBUG=asyncpreemptoff=1")
	cmd.Stderr = os.Stderr
	return cmd
}

// Start starts a command in the pod's cgroup and network namespace, and has the
// test end it.
func (p *Pod) Start(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	cgroup, err := os.Open(p.Cgroup)
	must(t, err)
	defer cgroup.Close()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(cgroup.Fd())
	p.Do(t, cmd.Start)
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
}

// Output runs a program in the pod and returns what it wrote, on either stream.
func (p *Pod) Output(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	var out strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	p.Start(t, cmd)
	err := cmd.Wait()
	return out.String(), err
}

// App is a process in a pod that makes the socket calls that a test asks for, one
// after the other, as an application would.
type App struct {
	t    testing.TB
	in   io.WriteCloser
	out  *json.Decoder
	enc  *json.Encoder
	name string
}

// call is one system call of the App.
type call struct {
	Op   string
	FD   int
	Args []int
	Addr netip.AddrPort
	Data []byte
}

type result struct {
	N     int
	Errno int
	Addr  netip.AddrPort
	Data  []byte
}

// App starts an application in the pod.
func (p *Pod) App(t testing.TB) *App {
	t.Helper()
	cmd := ChildCommand("app")
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	p.Start(t, cmd)
	return &App{t: t, in: in, out: json.NewDecoder(out), enc: json.NewEncoder(in), name: p.Name}
}

func (a *App) call(c call) (result, error) {
	a.t.Helper()
	var r result
	if err := a.enc.Encode(c); err != nil {
		a.t.Fatalf("%s in %s: %v", c.Op, a.name, err)
	}
	if err := a.out.Decode(&r); err != nil {
		a.t.Fatalf("%s in %s: %v", c.Op, a.name, err)
	}
	if r.Errno != 0 {
		return r, syscall.Errno(r.Errno)
	}
	return r, nil
}

func (a *App) must(c call) result {
	a.t.Helper()
	r, err := a.call(c)
	if err != nil {
		a.t.Fatalf("%s in %s: %v", c.Op, a.name, err)
	}
	return r
}

// Socket makes a socket, blocking, with timeouts that end a test that hangs.
func (a *App) Socket(domain, typ int) int {
	a.t.Helper()
	return a.SocketOf(domain, typ, 0)
}

// SocketOf makes a socket of a protocol that is not the type's first.
func (a *App) SocketOf(domain, typ, protocol int) int {
	a.t.Helper()
	return a.must(call{Op: "socket", Args: []int{domain, typ, protocol}}).N
}

// Connect connects; on an AF_INET6 socket an IPv4 address is used in mapped form.
func (a *App) Connect(fd int, to netip.AddrPort) error {
	a.t.Helper()
	_, err := a.call(call{Op: "connect", FD: fd, Addr: to})
	return err
}

// Bind binds.
func (a *App) Bind(fd int, to netip.AddrPort) error {
	a.t.Helper()
	_, err := a.call(call{Op: "bind", FD: fd, Addr: to})
	return err
}

// Peer is getpeername; mapped addresses stay mapped.
func (a *App) Peer(fd int) netip.AddrPort {
	a.t.Helper()
	return a.must(call{Op: "getpeername", FD: fd}).Addr
}

// Local is getsockname.
func (a *App) Local(fd int) netip.AddrPort {
	a.t.Helper()
	return a.must(call{Op: "getsockname", FD: fd}).Addr
}

// Send sends on a connected socket.
func (a *App) Send(fd int, data string) {
	a.t.Helper()
	a.must(call{Op: "send", FD: fd, Data: []byte(data)})
}

// Recv receives once; empty at the end of the stream.
func (a *App) Recv(fd int) string {
	a.t.Helper()
	return string(a.must(call{Op: "recv", FD: fd}).Data)
}

// SendTo sends a datagram to an address.
func (a *App) SendTo(fd int, data string, to netip.AddrPort) error {
	a.t.Helper()
	_, err := a.call(call{Op: "sendto", FD: fd, Data: []byte(data), Addr: to})
	return err
}

// RecvFrom receives a datagram with its sender's address.
func (a *App) RecvFrom(fd int) (string, netip.AddrPort) {
	a.t.Helper()
	r := a.must(call{Op: "recv", FD: fd})
	return string(r.Data), r.Addr
}

// WaitWritable waits until a socket can be written and returns its pending error.
func (a *App) WaitWritable(fd int) error {
	a.t.Helper()
	_, err := a.call(call{Op: "waitwritable", FD: fd})
	return err
}

// SetOption sets an integer socket option.
func (a *App) SetOption(fd, level, name, value int) error {
	a.t.Helper()
	_, err := a.call(call{Op: "setsockopt", FD: fd, Args: []int{level, name, value}})
	return err
}

// BindToDevice is SO_BINDTODEVICE.
func (a *App) BindToDevice(fd int, device string) error {
	a.t.Helper()
	_, err := a.call(call{Op: "bindtodevice", FD: fd, Data: []byte(device)})
	return err
}

// FastOpen is sendto with MSG_FASTOPEN: it connects and sends.
func (a *App) FastOpen(fd int, data string, to netip.AddrPort) error {
	a.t.Helper()
	_, err := a.call(call{Op: "sendto", FD: fd, Data: []byte(data), Addr: to, Args: []int{unix.MSG_FASTOPEN}})
	return err
}

// SentInSYN reports whether the peer acknowledged data that was sent in the SYN.
func (a *App) SentInSYN(fd int) bool {
	a.t.Helper()
	return a.must(call{Op: "sentinsyn", FD: fd}).N == 1
}

// Disconnect is connect to AF_UNSPEC.
func (a *App) Disconnect(fd int) error {
	a.t.Helper()
	_, err := a.call(call{Op: "disconnect", FD: fd})
	return err
}

// PassTo passes a socket to another application by SCM_RIGHTS and returns its descriptor
// there; it stays open here too. path names a socket that does not exist yet.
func (a *App) PassTo(to *App, fd int, path string) int {
	a.t.Helper()
	at := to.must(call{Op: "receiver", Data: []byte(path)}).N
	a.must(call{Op: "pass", FD: fd, Data: []byte(path)})
	return to.must(call{Op: "receive", FD: at}).N
}

// PeerError is getpeername of a socket that may not be connected.
func (a *App) PeerError(fd int) error {
	a.t.Helper()
	_, err := a.call(call{Op: "getpeername", FD: fd})
	return err
}

// Unshare puts the application into a network namespace of its own making.
func (a *App) Unshare() {
	a.t.Helper()
	a.must(call{Op: "unshare"})
}

// Hammer connects n times, one after the other, and counts what it received first on each
// connection, without spaces; failures count under the error's text.
func (a *App) Hammer(domain int, to netip.AddrPort, n int) map[string]int {
	a.t.Helper()
	out := map[string]int{}
	if err := json.Unmarshal(a.must(call{Op: "hammer", Args: []int{domain, n}, Addr: to}).Data, &out); err != nil {
		a.t.Fatal(err)
	}
	return out
}

// Connects opens and closes n connections, one after the other, and returns the nanoseconds
// of CPU time that this took.
func (a *App) Connects(domain int, to netip.AddrPort, n int) int64 {
	a.t.Helper()
	return int64(a.must(call{Op: "connects", Args: []int{domain, n}, Addr: to}).N)
}

// MoveTo moves the application into a cgroup; its sockets stay where they were made.
func (a *App) MoveTo(cgroup string) {
	a.t.Helper()
	a.must(call{Op: "join", Data: []byte(cgroup)})
}

// Block takes O_NONBLOCK off a socket.
func (a *App) Block(fd int) {
	a.t.Helper()
	a.must(call{Op: "block", FD: fd})
}

// Reset closes a socket without leaving anything of its connection.
func (a *App) Reset(fd int) {
	a.t.Helper()
	a.must(call{Op: "reset", FD: fd})
}

// Close closes a socket.
func (a *App) Close(fd int) {
	a.t.Helper()
	a.must(call{Op: "close", FD: fd})
}

// serveApp is the process behind App.
func serveApp([]string) error {
	dec, enc := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	domains := map[int]int{}
	for {
		var c call
		if err := dec.Decode(&c); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		r, err := c.run(domains)
		var errno syscall.Errno
		if errors.As(err, &errno) {
			r.Errno = int(errno)
		} else if err != nil {
			return err
		}
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
}

func (c call) run(domains map[int]int) (r result, err error) {
	switch c.Op {
	case "socket":
		r.N, err = unix.Socket(c.Args[0], c.Args[1]|unix.SOCK_CLOEXEC, c.Args[2])
		if err == nil {
			domains[r.N] = c.Args[0]
			patience := unix.Timeval{Sec: 10}
			err = errors.Join(unix.SetsockoptTimeval(r.N, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience),
				unix.SetsockoptTimeval(r.N, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience))
		}
	case "connect":
		err = unix.Connect(c.FD, sockaddr(c.Addr, domains[c.FD]))
	case "bind":
		err = unix.Bind(c.FD, sockaddr(c.Addr, domains[c.FD]))
	case "getpeername":
		var sa unix.Sockaddr
		sa, err = unix.Getpeername(c.FD)
		r.Addr = addrPort(sa)
	case "getsockname":
		var sa unix.Sockaddr
		sa, err = unix.Getsockname(c.FD)
		r.Addr = addrPort(sa)
	case "send":
		r.N, err = unix.Write(c.FD, c.Data)
	case "sendto":
		flags := 0
		if len(c.Args) > 0 {
			flags = c.Args[0]
		}
		err = unix.Sendto(c.FD, c.Data, flags, sockaddr(c.Addr, domains[c.FD]))
	case "sentinsyn":
		var info *unix.TCPInfo
		info, err = unix.GetsockoptTCPInfo(c.FD, unix.IPPROTO_TCP, unix.TCP_INFO)
		const synData = 32 // TCPI_OPT_SYN_DATA of linux/tcp.h
		if err == nil && info.Options&synData != 0 {
			r.N = 1
		}
	case "disconnect":
		unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
		if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(c.FD), uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec)); errno != 0 {
			err = errno
		}
	case "receiver":
		if r.N, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
			err = unix.Bind(r.N, &unix.SockaddrUnix{Name: string(c.Data)})
		}
	case "pass":
		var fd int
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
			domain := []byte{byte(domains[c.FD])}
			err = unix.Sendmsg(fd, domain, unix.UnixRights(c.FD), &unix.SockaddrUnix{Name: string(c.Data)}, 0)
			unix.Close(fd)
		}
	case "receive":
		r.N, err = receive(c.FD, domains)
	case "recv":
		buf := make([]byte, 65536)
		var sa unix.Sockaddr
		r.N, sa, err = unix.Recvfrom(c.FD, buf, 0)
		if err == nil {
			r.Data, r.Addr = buf[:r.N], addrPort(sa)
		}
	case "waitwritable":
		if _, err = unix.Poll([]unix.PollFd{{Fd: int32(c.FD), Events: unix.POLLOUT}}, 10000); err != nil {
			return r, err
		}
		r.Errno, err = unix.GetsockoptInt(c.FD, unix.SOL_SOCKET, unix.SO_ERROR)
	case "setsockopt":
		err = unix.SetsockoptInt(c.FD, c.Args[0], c.Args[1], c.Args[2])
	case "bindtodevice":
		err = unix.BindToDevice(c.FD, string(c.Data))
	case "unshare":
		err = unix.Unshare(unix.CLONE_NEWNET)
	case "hammer":
		out := map[string]int{}
		for range c.Args[1] {
			got, err := ask(c.Args[0], c.Addr)
			if err != nil {
				got = err.Error()
			}
			out[got]++
		}
		r.Data, err = json.Marshal(out)
	case "connects":
		var before, after unix.Rusage
		if err = unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
			return r, err
		}
		for range c.Args[1] {
			if err = open(c.Args[0], c.Addr); err != nil {
				return r, err
			}
		}
		err = unix.Getrusage(unix.RUSAGE_SELF, &after)
		r.N = int(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	case "join":
		err = os.WriteFile(filepath.Join(string(c.Data), "cgroup.procs"), []byte("0"), 0)
	case "block":
		err = unix.SetNonblock(c.FD, false)
	case "reset":
		delete(domains, c.FD)
		err = errors.Join(unix.SetsockoptLinger(c.FD, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), unix.Close(c.FD))
	case "close":
		delete(domains, c.FD)
		err = unix.Close(c.FD)
	default:
		return r, fmt.Errorf("no such call: %s", c.Op)
	}
	return r, err
}

// receive receives a socket that "pass" sent.
func receive(at int, domains map[int]int) (int, error) {
	defer unix.Close(at)
	domain, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(at, domain, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return -1, err
	}
	if len(messages) != 1 {
		return -1, fmt.Errorf("%d control messages", len(messages))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, err
	}
	domains[fds[0]] = int(domain[0])
	return fds[0], nil
}

// open opens a connection and resets it, which leaves no TIME_WAIT behind.
func open(domain int, to netip.AddrPort) error {
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	return unix.Connect(fd, sockaddr(to, domain))
}

// ask opens a connection and returns what it receives first.
func ask(domain int, to netip.AddrPort) (string, error) {
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(to, domain)); err != nil {
		return "", err
	}
	var buf [256]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(buf[:n])), nil
}

func sockaddr(a netip.AddrPort, domain int) unix.Sockaddr {
	if domain == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
