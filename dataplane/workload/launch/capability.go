package launch

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// capabilityNames are the names of capabilities(7) by their number.
var capabilityNames = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

// defaultCapabilities are what root keeps: the set of container runtimes without
// MKNOD, and without NET_RAW, whose sockets pass by the hooks at connect and may
// carry any source address. ICMP echo needs neither.
var defaultCapabilities = []int{
	unix.CAP_AUDIT_WRITE, unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL,
	unix.CAP_NET_BIND_SERVICE, unix.CAP_SETFCAP, unix.CAP_SETGID, unix.CAP_SETPCAP, unix.CAP_SETUID,
	unix.CAP_SYS_CHROOT,
}

// capabilities are bit sets, bit n for capability n.
type capabilities struct {
	// Bounding limits whatever the command and its children execute.
	Bounding uint64
	// Held are what a command that is not root has, and passes on (ambient).
	Held uint64
}

func (c capabilities) bounds(number int) bool { return c.Bounding&(1<<number) != 0 }

// chooseCapabilities adds named capabilities to the default set. It is an error to
// name one that does not exist or that the caller does not have.
func chooseCapabilities(add []string, root bool) (capabilities, error) {
	have, err := permitted()
	if err != nil {
		return capabilities{}, err
	}
	var c capabilities
	for _, number := range defaultCapabilities {
		c.Bounding |= 1 << number & have
	}
	for _, name := range add {
		short := strings.TrimPrefix(strings.ToUpper(name), "CAP_")
		number := slices.Index(capabilityNames, short)
		if number < 0 {
			return capabilities{}, fmt.Errorf("capability %q does not exist", name)
		}
		if have&(1<<number) == 0 {
			return capabilities{}, fmt.Errorf("capability %s is not there to give: this process lacks it", short)
		}
		c.Bounding |= 1 << number
		if !root {
			c.Held |= 1 << number
		}
	}
	return c, nil
}

// permitted returns the caller's permitted set, cut to its bounding set.
func permitted() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, os.NewSyscallError("capget", err)
	}
	have := uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted)
	for number := range 64 {
		if bounded, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(number), 0, 0, 0); err != nil || bounded == 0 {
			have &^= 1 << number
		}
	}
	return have, nil
}

// become makes the calling thread the user with the capabilities, and unable to
// gain any. What it executes next has no more.
func become(u user, c capabilities) error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return os.NewSyscallError("clear ambient capabilities", err)
	}
	for number := range 64 {
		if c.bounds(number) {
			continue
		}
		// EINVAL: the kernel has no capability of this or a higher number.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(number), 0, 0, 0); err == unix.EINVAL {
			break
		} else if err != nil {
			return fmt.Errorf("drop capability %d from the bounding set: %w", number, err)
		}
	}
	if err := unix.Setgroups(u.Groups); err != nil {
		return os.NewSyscallError("setgroups", err)
	}
	if err := unix.Setresgid(u.GID, u.GID, u.GID); err != nil {
		return os.NewSyscallError("setresgid", err)
	}
	if u.UID != 0 {
		if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
			return os.NewSyscallError("keep capabilities", err)
		}
	}
	if err := unix.Setresuid(u.UID, u.UID, u.UID); err != nil {
		return os.NewSyscallError("setresuid", err)
	}
	hold, inherit := c.Bounding, uint64(0)
	if u.UID != 0 {
		hold, inherit = c.Held, c.Held
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(hold), Permitted: uint32(hold), Inheritable: uint32(inherit)},
		{Effective: uint32(hold >> 32), Permitted: uint32(hold >> 32), Inheritable: uint32(inherit >> 32)},
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	for number := range 64 {
		if inherit&(1<<number) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(number), 0, 0); err != nil {
			return fmt.Errorf("raise ambient capability %s: %w", capabilityNames[number], err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("set no_new_privs", err)
	}
	return nil
}
