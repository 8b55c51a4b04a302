package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Feature is an ability of the machine.
type Feature struct {
	Name string `json:"name"`
	// Needed features are those without which the node does not start.
	Needed bool `json:"needed"`
	Have   bool `json:"have"`
	// Detail says what was found, or why it is missing and what uses it.
	Detail string `json:"detail,omitempty"`

	// cure is how a person gets a needed feature.
	cure string
}

// Config names the places that are looked at.
type Config struct {
	// Cgroup is a folder on a cgroup v2, or empty: any mounted one.
	Cgroup string
	// BPFFS is a folder on a bpffs, or empty: any mounted one, or the ability to mount one.
	BPFFS string
}

// OldestKernel is the oldest version that the programs are tested on.
const OldestKernel = "6.1"

// oldestKernelCode is OldestKernel as LINUX_VERSION_CODE.
const oldestKernelCode = 6<<16 | 1<<8

// check is how one feature is looked for. It returns what was found, or an error that says what is not there.
type check struct {
	name   string
	needed bool
	use    string // what it is for
	cure   string
	look   func() (string, error)
}

const newKernel = "run Linux " + OldestKernel + " or newer with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_DEBUG_INFO_BTF"

func checks(cfg Config) []check {
	all := []check{
		{"privileges", true, "", "run it as root", privileges},
		{"kernel", true, "", newKernel, kernelVersion},
		{"cgroup-v2", true, "hooks at workloads' sockets", "mount one: mount -t cgroup2 none /sys/fs/cgroup/unified",
			func() (string, error) { return mounted(cfg.Cgroup, "cgroup2", unix.CGROUP2_SUPER_MAGIC) }},
		{"bpffs", true, "links and maps that outlive the agent", "mount one: mount -t bpf bpf /sys/fs/bpf",
			func() (string, error) { return bpffs(cfg.BPFFS) }},
		{"bpf-isa-v3", true, "", newKernel, func() (string, error) { return "", features.HaveV3ISA() }},
		{"bounded-loops", true, "", newKernel, func() (string, error) { return "", features.HaveBoundedLoops() }},
		{"ring-buffer", true, "events", newKernel, func() (string, error) { return "", features.HaveMapType(ebpf.RingBuf) }},
		{"sockmap", true, "handing connections to listeners", newKernel, func() (string, error) { return "", features.HaveMapType(ebpf.SockMap) }},
		{"map-batches", true, "thousands of services at once", newKernel, mapBatches},
		{"netns-cookie", true, "telling workloads apart", newKernel, netnsCookie},
	}
	for _, a := range []struct {
		name string
		typ  ebpf.ProgramType
		at   ebpf.AttachType
	}{
		{"connect4", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect},
		{"connect6", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet6Connect},
		{"sendmsg4", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP4Sendmsg},
		{"sendmsg6", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP6Sendmsg},
		{"recvmsg4", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP4Recvmsg},
		{"recvmsg6", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP6Recvmsg},
		{"getpeername4", ebpf.CGroupSockAddr, ebpf.AttachCgroupInet4GetPeername},
		{"getpeername6", ebpf.CGroupSockAddr, ebpf.AttachCgroupInet6GetPeername},
		{"post-bind4", ebpf.CGroupSock, ebpf.AttachCGroupInet4PostBind},
		{"post-bind6", ebpf.CGroupSock, ebpf.AttachCGroupInet6PostBind},
		{"sockops", ebpf.SockOps, ebpf.AttachCGroupSockOps},
		{"sk-lookup", ebpf.SkLookup, ebpf.AttachSkLookup},
	} {
		all = append(all, check{"hook-" + a.name, true, "", newKernel, func() (string, error) { return "", loads(a.typ, a.at) }})
	}
	for _, h := range []struct {
		name   string
		typ    ebpf.ProgramType
		helper asm.BuiltinFunc
		use    string
	}{
		{"sk-storage", ebpf.CGroupSockAddr, asm.FnSkStorageGet, "what a socket's owner dialled"},
		{"sk-storage-in-sockops", ebpf.SockOps, asm.FnSkStorageGet, "original destinations"},
		{"netns-cookie-in-connect", ebpf.CGroupSockAddr, asm.FnGetNetnsCookie, "telling workloads apart"},
		{"netns-cookie-in-sockops", ebpf.SockOps, asm.FnGetNetnsCookie, "original destinations"},
		{"set-retval", ebpf.CGroupSockAddr, asm.FnSetRetval, "refusals that say why"},
		{"sk-assign", ebpf.SkLookup, asm.FnSkAssign, "gateways"},
	} {
		all = append(all, check{"helper-" + h.name, true, h.use, newKernel, func() (string, error) {
			return "", features.HaveProgramHelper(h.typ, h.helper)
		}})
	}
	return append(all,
		check{"btf", false, "kernel functions called by programs", newKernel, kernelBTF},
		check{"tcx", false, "packet programs that share a device", newKernel, tcx},
		check{"sock-destroy", false, "ending connections to endpoints that are gone", newKernel, sockDestroy},
	)
}

// Features returns every ability that is asked for, needed ones first. Without
// privileges most of them show as missing.
func Features(cfg Config) []Feature {
	var out []Feature
	for _, c := range checks(cfg) {
		f := Feature{Name: c.name, Needed: c.needed, Detail: c.use, cure: c.cure}
		found, err := c.look()
		f.Have = err == nil
		switch {
		case err != nil && c.use != "":
			f.Detail = fmt.Sprintf("%v (for %s)", err, c.use)
		case err != nil:
			f.Detail = err.Error()
		case found != "":
			f.Detail = found
		}
		f.Detail = strings.ReplaceAll(f.Detail, "\n", " ")
		out = append(out, f)
	}
	return out
}

// Check returns nil if all needed features are there, else an error of one line that names
// what is missing and how to get it.
func Check(cfg Config) error { return verdict(Features(cfg)) }

// verdict names the first cause only where the others follow from it.
func verdict(features []Feature) error {
	var missing []string
	var cures []string
	for _, f := range features {
		if !f.Needed || f.Have {
			continue
		}
		if f.Name == "privileges" || f.Name == "kernel" {
			return fmt.Errorf("%s: %s; %s", f.Name, f.Detail, f.cure)
		}
		missing = append(missing, fmt.Sprintf("%s: %s", f.Name, f.Detail))
		if len(cures) == 0 || cures[len(cures)-1] != f.cure {
			cures = append(cures, f.cure)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("this machine lacks %s; %s", strings.Join(missing, ", "), strings.Join(cures, "; "))
}

func privileges() (string, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return "", fmt.Errorf("read the capabilities: %w", err)
	}
	var missing []string
	for _, c := range []struct {
		name string
		bit  int
	}{
		{"CAP_BPF", unix.CAP_BPF}, {"CAP_NET_ADMIN", unix.CAP_NET_ADMIN},
		{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN}, {"CAP_PERFMON", unix.CAP_PERFMON},
	} {
		if data[c.bit/32].Effective&(1<<(c.bit%32)) == 0 {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return "", fmt.Errorf("no root: %s missing", strings.Join(missing, ", "))
	}
	// Without the system call nothing else is worth asking.
	if _, _, err := unix.Syscall(unix.SYS_BPF, ^uintptr(0), 0, 0); err == unix.ENOSYS {
		return "", errors.New("no BPF: the kernel has no bpf system call")
	}
	return "root", nil
}

func kernelVersion() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("read the kernel's version: %w", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	code, err := features.LinuxVersionCode()
	if err != nil {
		return "", fmt.Errorf("read the version of kernel %s: %w", release, err)
	}
	if code < oldestKernelCode {
		return "", fmt.Errorf("Linux %s is older than %s", release, OldestKernel)
	}
	return release, nil
}

// mounted returns the folder if it is on the file system, or where one is mounted.
func mounted(dir, fstype string, magic int64) (string, error) {
	if dir != "" {
		at := dir
		for {
			var st unix.Statfs_t
			err := unix.Statfs(at, &st)
			if errors.Is(err, fs.ErrNotExist) && at != "/" {
				at = filepath.Dir(at)
				continue
			}
			if err != nil {
				return "", fmt.Errorf("stat %s: %w", at, err)
			}
			if int64(st.Type) != magic {
				return "", fmt.Errorf("%s is not on a %s", dir, fstype)
			}
			return dir, nil
		}
	}
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", fmt.Errorf("read the mounts: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == fstype {
			return f[1], nil
		}
	}
	return "", fmt.Errorf("no %s is mounted", fstype)
}

func bpffs(dir string) (string, error) {
	found, err := mounted(dir, "bpf", unix.BPF_FS_MAGIC)
	if err == nil || dir != "" {
		return found, err
	}
	b, rerr := os.ReadFile("/proc/filesystems")
	if rerr != nil {
		return "", rerr
	}
	for line := range strings.Lines(string(b)) {
		if strings.TrimSpace(strings.TrimPrefix(line, "nodev")) == "bpf" {
			return "not mounted, but can be", nil
		}
	}
	return "", err
}

// loads tries a program that does nothing.
func loads(typ ebpf.ProgramType, at ebpf.AttachType) error {
	p, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Type: typ, AttachType: at, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	}, ebpf.ProgramOptions{LogDisabled: true})
	if err != nil {
		return fmt.Errorf("load a program: %w", err)
	}
	return p.Close()
}

func mapBatches() (string, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 2})
	if err != nil {
		return "", fmt.Errorf("make a map: %w", err)
	}
	defer m.Close()
	_, err = m.BatchUpdate([]uint32{1, 2}, []uint32{1, 2}, nil)
	return "", err
}

func netnsCookie() (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("make a socket: %w", err)
	}
	defer unix.Close(fd)
	if _, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err != nil {
		return "", fmt.Errorf("SO_NETNS_COOKIE: %w", err)
	}
	return "", nil
}

func kernelBTF() (string, error) {
	_, err := btf.LoadKernelSpec()
	return "", err
}

func tcx() (string, error) {
	// The loopback device of this namespace; asking changes nothing.
	_, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXIngress})
	return "", err
}

func sockDestroy() (string, error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return "", err
	}
	var f *btf.Func
	if err := spec.TypeByName("bpf_sock_destroy", &f); err != nil {
		return "", errors.New("no bpf_sock_destroy in this kernel (6.5 and newer)")
	}
	return "", nil
}
