package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// probe runs inside a workload. It tries one thing each and prints what came of it.
func probe(argument string) {
	var in escapeInput
	if err := json.Unmarshal([]byte(argument), &in); err != nil {
		panic(err)
	}
	out := make(map[string]string)
	for _, attempt := range attempts {
		out[attempt.name] = word(attempt.try(in))
	}
	_ = json.NewEncoder(os.Stdout).Encode(out)
}

// word is the name of an errno, "done" for nil, or the error's text.
func word(err error) string {
	var errno unix.Errno
	switch {
	case err == nil:
		return "done"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// escapeInput is what an attacker might know of the machine.
type escapeInput struct {
	HostPID   int    // a process outside
	BPFFS     string // where the node's bpffs is on the machine
	Pin       string // a map that is pinned there
	Cgroup    string // the parent of the workload's cgroup on the machine
	NetnsPath string // another workload's namespace
	Disk      uint64 // the device number of the machine's root
	Server    string // a listener in the node's namespace
}

type attempt struct {
	name string
	// want are the words of which one must come.
	want []string
	try  func(in escapeInput) error
}

// openForWriting tries what comes before a write. Where it is done, the test has
// failed already, and the machine need not suffer.
func openForWriting(path string) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return file.Close()
}

func onOwnThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // The thread ends with the goroutine.
		result <- f()
	}()
	return <-result
}

// attempts are the ways out that are known, each with the error that closes it.
var attempts = []attempt{
	{"enter the namespace of process 1", []string{"EPERM", "EACCES"}, func(escapeInput) error {
		fd, err := unix.Open("/proc/1/ns/net", unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		return onOwnThread(func() error { return unix.Setns(fd, unix.CLONE_NEWNET) })
	}},
	{"enter a namespace by descriptor", []string{"EPERM"}, func(escapeInput) error {
		fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		return onOwnThread(func() error { return unix.Setns(fd, unix.CLONE_NEWNET) })
	}},
	{"see a process outside", []string{"ENOENT"}, func(in escapeInput) error {
		_, err := os.Stat("/proc/" + strconv.Itoa(in.HostPID) + "/ns/net")
		return err
	}},
	{"open another workload's namespace", []string{"ENOENT"}, func(in escapeInput) error {
		_, err := os.Open(in.NetnsPath)
		return err
	}},
	{"mount a bpffs", []string{"EPERM"}, func(escapeInput) error {
		return unix.Mount("bpf", "/mnt", "bpf", 0, "")
	}},
	{"mount a bpffs by fsopen", []string{"EPERM"}, func(escapeInput) error {
		_, err := unix.Fsopen("bpf", 0)
		return err
	}},
	{"open a pinned object", []string{"EPERM", "ENOENT"}, func(in escapeInput) error {
		_, err := ebpf.LoadPinnedMap(in.Pin, nil)
		return err
	}},
	{"see the pinned object", []string{"ENOENT"}, func(in escapeInput) error {
		_, err := os.Stat(in.Pin)
		return err
	}},
	{"detach by bpf", []string{"EPERM"}, func(escapeInput) error {
		var attr [64]byte // BPF_LINK_GET_FD_BY_ID of link 1
		_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_LINK_GET_FD_BY_ID, uintptr(unsafe.Pointer(&attr)), 64)
		return errnoOrNil(errno)
	}},
	{"move to the cgroup above", []string{"ENOENT", "EROFS"}, func(in escapeInput) error {
		return openForWriting(filepath.Join(in.Cgroup, "cgroup.procs"))
	}},
	{"write the own cgroup", []string{"EROFS"}, func(escapeInput) error {
		return openForWriting("/sys/fs/cgroup/cgroup.procs")
	}},
	{"make a cgroup", []string{"EROFS"}, func(escapeInput) error { return os.Mkdir("/sys/fs/cgroup/x", 0o755) }},
	{"remount /sys writable", []string{"EPERM"}, func(escapeInput) error {
		return unix.Mount("", "/sys", "", unix.MS_REMOUNT|unix.MS_BIND, "")
	}},
	{"unmount what covers /sys", []string{"EPERM"}, func(escapeInput) error { return unix.Unmount("/sys", unix.MNT_DETACH) }},
	{"make a network namespace", []string{"EPERM"}, func(escapeInput) error {
		return onOwnThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) })
	}},
	{"make a user namespace", []string{"EPERM"}, func(escapeInput) error {
		_, _, errno := unix.RawSyscall(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0, 0)
		return errnoOrNil(errno)
	}},
	{"make a namespace by clone3", []string{"ENOSYS"}, func(escapeInput) error {
		args := struct{ flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls uint64 }{
			flags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET, exitSignal: uint64(unix.SIGCHLD),
		}
		_, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
		return errnoOrNil(errno)
	}},
	{"set the link down", []string{"EPERM"}, func(escapeInput) error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(link)
	}},
	{"add an address", []string{"EPERM"}, func(escapeInput) error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("10.78.0.200/32")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, addr)
	}},
	{"change a route", []string{"EPERM"}, func(escapeInput) error {
		return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4(192, 0, 2, 0), Mask: net.CIDRMask(24, 32)}, Gw: net.IPv4(169, 254, 1, 1)})
	}},
	{"change a setting of the network", []string{"EROFS"}, func(escapeInput) error {
		return openForWriting("/proc/sys/net/ipv4/ip_forward")
	}},
	{"change the firewall by iptables", []string{"EPERM"}, func(escapeInput) error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	}},
	{"change the firewall by netlink", []string{"EPERM", "EPROTONOSUPPORT"}, func(escapeInput) error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		// NFT_MSG_NEWTABLE with a sequence number and no attributes, to be acknowledged.
		const request, ack, newTable = unix.NLM_F_REQUEST, unix.NLM_F_ACK, 10 << 8
		msg := []byte{20, 0, 0, 0, 0, byte(newTable >> 8), request | ack, 0, 1, 0, 0, 0, 0, 0, 0, 0, unix.AF_INET, 0, 0, 0}
		if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
		var buf [256]byte
		n, _, err := unix.Recvfrom(fd, buf[:], 0)
		if err != nil || n < 20 {
			return fmt.Errorf("answer of %d bytes, %w", n, err)
		}
		return errnoOrNil(unix.Errno(-*(*int32)(unsafe.Pointer(&buf[16]))))
	}},
	{"send from another address", []string{"EPERM"}, func(escapeInput) error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1)
	}},
	{"reach the hypervisor", []string{"EAFNOSUPPORT"}, func(escapeInput) error {
		fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	}},
	{"trace process 1", []string{"EPERM"}, func(escapeInput) error { return onOwnThread(func() error { return unix.PtraceAttach(1) }) }},
	{"trace a process outside", []string{"ESRCH"}, func(in escapeInput) error {
		return onOwnThread(func() error { return unix.PtraceAttach(in.HostPID) })
	}},
	{"open the memory of process 1", []string{"EACCES", "EPERM"}, func(escapeInput) error {
		_, err := os.OpenFile("/proc/1/mem", os.O_RDWR, 0)
		return err
	}},
	{"open a descriptor of process 1", []string{"EACCES", "EPERM"}, func(escapeInput) error {
		_, err := os.OpenFile("/proc/1/fd/5", os.O_RDONLY, 0)
		return err
	}},
	{"signal a process outside", []string{"ESRCH"}, func(in escapeInput) error { return unix.Kill(in.HostPID, 0) }},
	{"name the core dump program", []string{"EROFS"}, func(escapeInput) error {
		return openForWriting("/proc/sys/kernel/core_pattern")
	}},
	{"use the magic key", []string{"EROFS", "ENOENT"}, func(escapeInput) error { return openForWriting("/proc/sysrq-trigger") }},
	{"set the hotplug program", []string{"EROFS", "ENOENT"}, func(escapeInput) error { return openForWriting("/sys/kernel/uevent_helper") }},
	{"make a node of the disk", []string{"EPERM"}, func(in escapeInput) error {
		return unix.Mknod("/dev/shm/disk", unix.S_IFBLK|0o600, int(in.Disk))
	}},
	{"open a file by handle", []string{"EPERM"}, func(escapeInput) error {
		handle := unix.NewFileHandle(1, make([]byte, 8))
		_, err := unix.OpenByHandleAt(unix.AT_FDCWD, handle, unix.O_RDONLY)
		return err
	}},
	{"load a module", []string{"EPERM", "ENOSYS"}, func(escapeInput) error { return unix.InitModule([]byte{0}, "") }},
	{"get a capability back", []string{"EPERM"}, func(escapeInput) error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		data := [2]unix.CapUserData{{Effective: 1 << unix.CAP_SYS_ADMIN, Permitted: 1 << unix.CAP_SYS_ADMIN}}
		return unix.Capset(&header, &data[0])
	}},
	{"change the host name", []string{"EPERM"}, func(escapeInput) error { return unix.Sethostname([]byte("machine")) }},
	{"inherit a descriptor", []string{"none"}, func(escapeInput) error {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			return err
		}
		for _, entry := range entries {
			target, err := os.Readlink("/proc/self/fd/" + entry.Name())
			if err == nil && strings.Contains(target, "sluice-leak") {
				return fmt.Errorf("descriptor %s is %s", entry.Name(), target)
			}
		}
		return errors.New("none")
	}},
	// Last, so that what came before is known to run where the network works.
	{"dial the node", []string{"done"}, func(in escapeInput) error {
		conn, err := net.Dial("tcp", in.Server)
		if err != nil {
			return err
		}
		return conn.Close()
	}},
}

func errnoOrNil(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// TestEscape runs all attempts as root with the default capabilities.
func TestEscape(t *testing.T) {
	b := newBed(t)
	in := escapeInput{HostPID: os.Getpid(), Cgroup: b.cfg.CgroupRoot}

	in.BPFFS = filepath.Join(b.dir, "bpffs")
	if err := os.Mkdir(in.BPFFS, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bpf", in.BPFFS, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(in.BPFFS, unix.MNT_DETACH) })
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	in.Pin = filepath.Join(in.BPFFS, "pinned")
	if err := m.Pin(in.Pin); err != nil {
		t.Fatal(err)
	}

	other, err := b.registry.Add(t.Context(), b.options("other").Spec)
	if err != nil {
		t.Fatal(err)
	}
	in.NetnsPath = other.NetnsPath
	var root unix.Stat_t
	if err := unix.Stat("/", &root); err != nil {
		t.Fatal(err)
	}
	in.Disk = root.Dev
	var l net.Listener
	if err := b.netns.Do(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(b.registry.NodeAddresses()[0].String(), "0"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	in.Server = l.Addr().String()

	argument, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	leak, err := os.Create(filepath.Join(b.dir, "sluice-leak"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = leak.Close() }()
	o := b.options("escape", self(t), probeArg, string(argument))
	c := command(t, o)
	// Like a shell that calls with descriptors open; the eighth is 10.
	c.ExtraFiles = slices.Repeat([]*os.File{leak}, 8)
	if err := c.Run(); err != nil {
		t.Fatalf("%v: %s", err, c.stderr.String())
	}
	got := make(map[string]string)
	if err := json.Unmarshal(c.stdout.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s", err, c.stdout.String())
	}
	for _, attempt := range attempts {
		if !slices.Contains(attempt.want, got[attempt.name]) {
			t.Errorf("%s: %s, want one of %v", attempt.name, got[attempt.name], attempt.want)
		}
	}
}
