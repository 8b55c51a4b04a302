package launch

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// newNamespaces are the flags of clone(2) and unshare(2) that make namespaces. A
// user namespace would give all capabilities inside it, and with them much of the
// kernel that the command has no business with.
const newNamespaces = unix.CLONE_NEWCGROUP | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWNS |
	unix.CLONE_NEWPID | unix.CLONE_NEWUSER | unix.CLONE_NEWUTS | unix.CLONE_NEWTIME

// refusedCalls need a capability on most machines but not on all, or reach objects
// that no namespace separates. Each is refused unless its capability was added.
var refusedCalls = []struct {
	number     uintptr
	capability int
}{
	{unix.SYS_ADD_KEY, unix.CAP_SYS_ADMIN},
	{unix.SYS_BPF, unix.CAP_BPF},
	{unix.SYS_FSOPEN, unix.CAP_SYS_ADMIN},
	{unix.SYS_KEYCTL, unix.CAP_SYS_ADMIN},
	{unix.SYS_MOUNT, unix.CAP_SYS_ADMIN},
	{unix.SYS_MOVE_MOUNT, unix.CAP_SYS_ADMIN},
	{unix.SYS_OPEN_BY_HANDLE_AT, unix.CAP_DAC_READ_SEARCH},
	{unix.SYS_OPEN_TREE, unix.CAP_SYS_ADMIN},
	{unix.SYS_PERF_EVENT_OPEN, unix.CAP_PERFMON},
	{unix.SYS_PIVOT_ROOT, unix.CAP_SYS_ADMIN},
	{unix.SYS_REQUEST_KEY, unix.CAP_SYS_ADMIN},
	{unix.SYS_SETNS, unix.CAP_SYS_ADMIN},
	{unix.SYS_UMOUNT2, unix.CAP_SYS_ADMIN},
	{unix.SYS_USERFAULTFD, unix.CAP_SYS_PTRACE},
}

// Offsets in struct seccomp_data (linux/seccomp.h); arguments are 64 bits, and both
// supported architectures are little-endian, so that the low half comes first.
const (
	offNumber = 0
	offArch   = 4
	offArg0   = 16
)

// x32Bit marks calls of the x32 ABI, which has numbers of its own.
const x32Bit = 0x40000000

// filter builds the program. It refuses calls with EPERM, and clone3, whose flags
// are in memory that a filter cannot read, with ENOSYS, so that the C library uses clone.
func filter(c capabilities) ([]unix.SockFilter, error) {
	arch, ok := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("seccomp filter: architecture %s is not supported", runtime.GOARCH)
	}
	refuse := func(errno unix.Errno) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)}
	}
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	jump := func(test uint16, k uint32, ifTrue, ifFalse uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | test, K: k, Jt: ifTrue, Jf: ifFalse}
	}
	program := []unix.SockFilter{
		load(offArch),
		jump(unix.BPF_JEQ, arch, 1, 0),
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_KILL_PROCESS},
		load(offNumber),
	}
	if runtime.GOARCH == "amd64" {
		program = append(program, jump(unix.BPF_JSET, x32Bit, 0, 1), refuse(unix.ENOSYS))
	}
	for _, call := range refusedCalls {
		if !c.bounds(call.capability) {
			program = append(program, jump(unix.BPF_JEQ, uint32(call.number), 0, 1), refuse(unix.EPERM))
		}
	}
	if !c.bounds(unix.CAP_SYS_ADMIN) {
		program = append(program, jump(unix.BPF_JEQ, unix.SYS_CLONE3, 0, 1), refuse(unix.ENOSYS))
		for _, call := range []uintptr{unix.SYS_CLONE, unix.SYS_UNSHARE} {
			program = append(program,
				jump(unix.BPF_JEQ, uint32(call), 0, 4),
				load(offArg0),
				jump(unix.BPF_JSET, newNamespaces, 0, 1),
				refuse(unix.EPERM),
				load(offNumber),
			)
		}
	}
	// Sockets to the hypervisor belong to no network namespace.
	program = append(program,
		jump(unix.BPF_JEQ, unix.SYS_SOCKET, 0, 3),
		load(offArg0),
		jump(unix.BPF_JEQ, unix.AF_VSOCK, 0, 1),
		refuse(unix.EAFNOSUPPORT),
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	)
	return program, nil
}

// confine puts the calling thread, which must have no_new_privs, under the filter.
func confine(c capabilities) error {
	program, err := filter(c)
	if err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(program)
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	return nil
}
