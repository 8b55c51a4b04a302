// Package lab gives tests of the dataplane a node of their own: cgroups, a bpffs, a
// network namespace with a bridge, and pods on it whose sockets a separate
// process uses as an application would. Only tests import it.
//
// Everything is named after the process that made it and goes with the test; what a
// killed run left behind goes with the next one. Nothing of the machine's own
// network is touched.
package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// prefix names everything that tests make on the machine.
const prefix = "sluice-dataplane-"

// Node is a node of its own.
type Node struct {
	// Cgroup has the children node, in which the test process sits while the test
	// runs, and workloads.
	Cgroup, NodeCgroup, WorkloadsCgroup string
	// BPFFS is a mount of its own.
	BPFFS string
	// Netns is the node's namespace: the pods' bridge with the addresses Addr4 and Addr6.
	Netns *Netns

	pods int
}

// Addresses of the node's bridge. Pods follow.
var (
	Addr4 = netip.MustParseAddr("10.201.0.1")
	Addr6 = netip.MustParseAddr("fd53:201::1")
)

// Netns is a network namespace.
type Netns struct{ FD int }

// Pod is a network namespace with addresses and a cgroup.
type Pod struct {
	*Netns
	Name   string
	Cgroup string
	Addr4  netip.Addr
	Addr6  netip.Addr
}

// moved keeps tests of one process from moving it about at the same time.
var moved sync.Mutex

// NewNode makes a node and moves the test process into its node cgroup. Tests that use it
// cannot be parallel. Without root the test is skipped; with it, it must work.
func NewNode(t testing.TB) *Node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	moved.Lock()
	t.Cleanup(moved.Unlock)
	root := cgroupRoot(t)
	sweep(t, root)
	n := &Node{Cgroup: filepath.Join(root, prefix+strconv.Itoa(os.Getpid()))}
	n.NodeCgroup, n.WorkloadsCgroup = filepath.Join(n.Cgroup, "node"), filepath.Join(n.Cgroup, "workloads")
	home := ownCgroup(t, root)
	t.Cleanup(func() {
		join(t, home)
		if err := removeCgroup(n.Cgroup); err != nil {
			t.Errorf("remove the cgroup: %v", err)
		}
	})
	for _, dir := range []string{n.Cgroup, n.NodeCgroup, n.WorkloadsCgroup} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	join(t, n.NodeCgroup)

	n.BPFFS = filepath.Join(os.TempDir(), prefix+strconv.Itoa(os.Getpid()))
	if err := os.MkdirAll(n.BPFFS, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bpf", n.BPFFS, "bpf", 0, "mode=0700"); err != nil {
		t.Fatalf("mount a bpffs: %v", err)
	}
	t.Cleanup(func() { removeMount(t, n.BPFFS) })

	n.Netns = newNetns(t)
	h := n.Netns.handle(t)
	defer h.Close()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	must(t, h.LinkAdd(bridge))
	n.Netns.up(t, h, "br0", Addr4, Addr6)
	return n
}

// Pod makes a pod whose cgroup is in workloads.
func (n *Node) Pod(t testing.TB, name string) *Pod {
	t.Helper()
	n.pods++
	host := byte(10 + n.pods)
	a4, a6 := Addr4.As4(), Addr6.As16()
	a4[3], a6[15] = host, host
	p := &Pod{
		Netns: newNetns(t), Name: name, Cgroup: filepath.Join(n.WorkloadsCgroup, "lab_"+name),
		Addr4: netip.AddrFrom4(a4), Addr6: netip.AddrFrom16(a6),
	}
	if err := os.Mkdir(p.Cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	nh, ph := n.Netns.handle(t), p.handle(t)
	defer nh.Close()
	defer ph.Close()
	// Not named veth*: the other end lives in the pod from the start.
	outer := fmt.Sprintf("p%d", n.pods)
	must(t, nh.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: outer}, PeerName: "eth0", PeerNamespace: netlink.NsFd(p.FD),
	}))
	link, err := nh.LinkByName(outer)
	must(t, err)
	bridge, err := nh.LinkByName("br0")
	must(t, err)
	must(t, nh.LinkSetMaster(link, bridge))
	must(t, nh.LinkSetUp(link))
	p.up(t, ph, "eth0", p.Addr4, p.Addr6)
	for _, gw := range []netip.Addr{Addr4, Addr6} {
		must(t, ph.RouteAdd(&netlink.Route{Gw: gw.AsSlice()}))
	}
	return p
}

// AddAddr gives the namespace's loopback an address: a local one for sk_lookup.
func (n *Netns) AddAddr(t testing.TB, a netip.Addr) {
	t.Helper()
	h := n.handle(t)
	defer h.Close()
	lo, err := h.LinkByName("lo")
	must(t, err)
	must(t, h.AddrAdd(lo, addr(a, a.BitLen())))
}

// Do runs f in the namespace, on a thread of its own.
func (n *Netns) Do(t testing.TB, f func() error) {
	t.Helper()
	must(t, n.do(f))
}

func (n *Netns) do(f func() error) error {
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Setns(n.FD, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

func newNetns(t testing.TB) *Netns {
	t.Helper()
	n := &Netns{}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		n.FD = fd
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { unix.Close(n.FD) })
	return n
}

func (n *Netns) handle(t testing.TB) *netlink.Handle {
	t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(n.FD), unix.NETLINK_ROUTE)
	must(t, err)
	return h
}

func (n *Netns) up(t testing.TB, h *netlink.Handle, name string, addrs ...netip.Addr) {
	t.Helper()
	for _, link := range []string{"lo", name} {
		l, err := h.LinkByName(link)
		must(t, err)
		must(t, h.LinkSetUp(l))
	}
	l, err := h.LinkByName(name)
	must(t, err)
	for _, a := range addrs {
		bits := 24
		if a.Is6() {
			bits = 64
		}
		must(t, h.AddrAdd(l, addr(a, bits)))
	}
}

func addr(a netip.Addr, bits int) *netlink.Addr {
	out, err := netlink.ParseAddr(netip.PrefixFrom(a, bits).String())
	if err != nil {
		panic(err)
	}
	if a.Is6() {
		out.Flags = unix.IFA_F_NODAD
	}
	return out
}

func cgroupRoot(t testing.TB) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1]
		}
	}
	t.Fatal("no cgroup v2 is mounted")
	return ""
}

func ownCgroup(t testing.TB, root string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/cgroup")
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join(root, path)
		}
	}
	t.Fatal("this process has no cgroup v2")
	return ""
}

func join(t testing.TB, cgroup string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte("0"), 0))
}

// removeCgroup removes a cgroup with its children; their processes have ended.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, removeCgroup(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(append(errs, os.Remove(dir))...)
}

func removeMount(t testing.TB, dir string) {
	t.Helper()
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		t.Errorf("unmount %s: %v", dir, err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("remove %s: %v", dir, err)
	}
}

// sweep removes what processes that are gone left behind.
func sweep(t testing.TB, root string) {
	t.Helper()
	gone := func(path string) bool {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(path), prefix))
		// Greater numbers are no processes (PID_MAX_LIMIT), and the name is somebody else's.
		return err == nil && pid > 0 && pid <= 1<<22 && errors.Is(unix.Kill(pid, 0), unix.ESRCH)
	}
	cgroups, _ := filepath.Glob(filepath.Join(root, prefix+"*"))
	for _, dir := range cgroups {
		if !gone(dir) {
			continue
		}
		// Its applications, which the test process started.
		if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0); err != nil {
			t.Logf("sweep %s: %v", dir, err)
		}
		waitEmpty(dir)
		if err := removeCgroup(dir); err != nil {
			t.Logf("sweep %s: %v", dir, err)
		}
	}
	mounts, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	for _, dir := range mounts {
		if gone(dir) {
			removeMount(t, dir)
		}
	}
}

// waitEmpty returns once no process is in the cgroup.
func waitEmpty(dir string) {
	path := filepath.Join(dir, "cgroup.events")
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	for {
		b, err := os.ReadFile(path)
		if err != nil || bytes.Contains(b, []byte("populated 0")) {
			return
		}
		// The kernel notifies of changes of the file by POLLPRI.
		unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}, 1000)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TemporaryNetns calls f with a namespace and returns what ends the namespace, after which
// its links are dead.
func (n *Node) TemporaryNetns(t testing.TB, f func(fd int)) (end func()) {
	t.Helper()
	fds, done, ended := make(chan int), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			close(fds)
			return
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			close(fds)
			return
		}
		fds <- fd
		<-done
		unix.Close(fd)
		// Back to a namespace that stays; the kernel ends the other one in its own time.
		if err := unix.Setns(n.Netns.FD, unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		}
	}()
	fd, ok := <-fds
	if !ok {
		t.FailNow()
	}
	f(fd)
	return func() {
		close(done)
		<-ended
	}
}
