package launch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// kernelFilesystems show or control the kernel beyond the workload, wherever they
// are mounted. An nsfs mount holds another workload's namespace.
var kernelFilesystems = []string{
	"binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "efivarfs", "nsfs", "pstore", "resctrl",
	"securityfs", "selinuxfs", "tracefs",
}

// devices are the device nodes that every program may expect.
var devices = []string{"full", "null", "random", "tty", "urandom", "zero"}

const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mountAll makes the command's view of the file system, in the mount namespace of
// the calling process, which must be a new one. The calling thread gets a cgroup
// namespace.
func mountAll(p *plan) error {
	// No mount goes out to the machine, and none of the machine's comes in.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	nodes := make(map[string]int)
	for _, name := range devices {
		fd, err := unix.OpenTree(unix.AT_FDCWD, "/dev/"+name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open /dev/%s: %w", name, err)
		}
		nodes[name] = fd
	}
	hide := make([]string, 0, len(p.Hide))
	for _, path := range p.Hide {
		real, err := filepath.EvalSymlinks(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("hide %s: %w", path, err)
		}
		hide = append(hide, real)
	}
	if err := detachMounts(slices.Concat(hide, []string{"/sys", "/dev", "/proc"})); err != nil {
		return err
	}
	if err := mountKernel(); err != nil {
		return err
	}
	if err := mountDevices(nodes); err != nil {
		return err
	}
	if err := maskProc(); err != nil {
		return err
	}
	for _, path := range hide {
		// One that is below a hidden one, /sys or /dev is gone already.
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := unix.Mount("hidden", path, "tmpfs", quiet|unix.MS_RDONLY, "size=4k,mode=755"); err != nil {
			return fmt.Errorf("hide %s: %w", path, err)
		}
	}
	if err := coverEtc(p); err != nil {
		return err
	}
	// Programs with file capabilities outside the bounding set could not be executed
	// (capabilities(7), safety checking for capability-dumb binaries); without set-uid
	// they run with what they have.
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("set mounts nosuid: %w", err)
	}
	return nil
}

// mount is a line of /proc/PID/mountinfo.
type mount struct {
	path, fsType string
}

// parseMountinfo reads proc_pid_mountinfo(5): path is field 5, with spaces, tabs,
// newlines and backslashes in octal; the type follows a field "-".
func parseMountinfo(text string) ([]mount, error) {
	var out []mount
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		dash := slices.Index(fields, "-")
		if len(fields) < 6 || dash < 6 || len(fields) < dash+2 {
			return nil, fmt.Errorf("read mounts: unknown line %q", line)
		}
		path, err := unescapeOctal(fields[4])
		if err != nil {
			return nil, err
		}
		out = append(out, mount{path: path, fsType: fields[dash+1]})
	}
	return out, nil
}

func unescapeOctal(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		if i+4 > len(s) {
			return "", fmt.Errorf("read mounts: unknown escape in %q", s)
		}
		c, err := strconv.ParseUint(s[i+1:i+4], 8, 8)
		if err != nil {
			return "", fmt.Errorf("read mounts: unknown escape in %q", s)
		}
		b.WriteByte(byte(c))
		i += 3
	}
	return b.String(), nil
}

// detachMounts takes away all mounts at and below the folders, and kernel file
// systems wherever they are. Mounts that others cover cannot be reached by a path
// and stay, covered.
func detachMounts(folders []string) error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	mounts, err := parseMountinfo(string(text))
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		below := slices.ContainsFunc(folders, func(folder string) bool {
			return m.path == folder || strings.HasPrefix(m.path, strings.TrimSuffix(folder, "/")+"/")
		})
		if !below && !slices.Contains(kernelFilesystems, m.fsType) {
			continue
		}
		err := unix.Unmount(m.path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", m.path, err)
		}
	}
	return nil
}

// mountKernel mounts the process's own view of proc, sysfs and its cgroup.
func mountKernel() error {
	if err := unix.Mount("proc", "/proc", "proc", quiet, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", quiet|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	// In the namespace, the workload's cgroup is the root of the hierarchy. It comes
	// before the mount, which would change the options of the machine's otherwise.
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make cgroup namespace: %w", err)
	}
	if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", quiet|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount /sys/fs/cgroup: %w", err)
	}
	return nil
}

// mountDevices makes a /dev with the given nodes (descriptors of open_tree(2)), which
// it closes, and its own terminals and shared memory.
func mountDevices(nodes map[string]int) error {
	if err := unix.Mount("dev", "/dev", "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "size=1m,mode=755"); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	for name, fd := range nodes {
		path := "/dev/" + name
		if err := os.WriteFile(path, nil, 0o666); err != nil {
			return fmt.Errorf("make %s: %w", path, err)
		}
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("mount %s: %w", path, err)
		}
		_ = unix.Close(fd)
	}
	for link, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
		"ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, "/dev/"+link); err != nil {
			return fmt.Errorf("make /dev/%s: %w", link, err)
		}
	}
	for _, m := range []struct {
		path, fsType, options string
		flags                 uintptr
		optional              bool
	}{
		{"/dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5", unix.MS_NOSUID | unix.MS_NOEXEC, false},
		{"/dev/shm", "tmpfs", "mode=1777", quiet, false},
		{"/dev/mqueue", "mqueue", "", quiet, true}, // CONFIG_POSIX_MQUEUE
	} {
		if err := os.Mkdir(m.path, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", m.path, err)
		}
		err := unix.Mount(m.fsType, m.path, m.fsType, m.flags, m.options)
		if err != nil && (!m.optional || !errors.Is(err, unix.ENODEV)) {
			return fmt.Errorf("mount %s: %w", m.path, err)
		}
	}
	return nil
}

// maskProc makes what in /proc concerns the whole machine read-only or empty: root
// may write there without any capability, such as kernel.core_pattern, whose
// program the kernel runs outside of all namespaces.
func maskProc() error {
	for _, name := range []string{"bus", "fs", "irq", "sys", "sysrq-trigger"} {
		path := "/proc/" + name
		err := unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, "")
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err == nil {
			err = unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|quiet, "")
		}
		if err != nil {
			return fmt.Errorf("make %s read-only: %w", path, err)
		}
	}
	for _, name := range []string{"acpi", "kcore", "keys", "latency_stats", "sched_debug", "scsi", "timer_list"} {
		path := "/proc/" + name
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("mask %s: %w", path, err)
		}
		if info.IsDir() {
			err = unix.Mount("masked", path, "tmpfs", quiet|unix.MS_RDONLY, "size=4k")
		} else {
			err = unix.Mount("/dev/null", path, "", unix.MS_BIND, "")
		}
		if err != nil {
			return fmt.Errorf("mask %s: %w", path, err)
		}
	}
	return nil
}

// coverEtc gives the command its own name resolution.
func coverEtc(p *plan) error {
	for _, file := range []struct {
		path, content string
		required      bool
	}{
		{"/etc/resolv.conf", p.ResolvConf, true},
		{"/etc/hosts", p.Hosts, false},
		{"/etc/hostname", p.Hostname + "\n", false},
	} {
		source := "/dev/." + filepath.Base(file.path)
		if err := os.WriteFile(source, []byte(file.content), 0o644); err != nil {
			return fmt.Errorf("write %s: %w", file.path, err)
		}
		// The mode must not depend on the caller's umask: all users read these files.
		if err := os.Chmod(source, 0o644); err != nil {
			return fmt.Errorf("write %s: %w", file.path, err)
		}
		// The mount keeps the file, and its name goes.
		err := errors.Join(unix.Mount(source, file.path, "", unix.MS_BIND, ""), os.Remove(source))
		if errors.Is(err, fs.ErrNotExist) && !file.required {
			continue
		}
		if err != nil {
			return fmt.Errorf("cover %s, which must exist on the machine: %w", file.path, err)
		}
	}
	return nil
}
