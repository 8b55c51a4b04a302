package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mounts are what tests find on an ordinary machine.
var mounts = []struct{ kind, on, data string }{
	{"devtmpfs", "/dev", ""},
	{"proc", "/proc", ""},
	{"sysfs", "/sys", ""},
	{"tmpfs", "/tmp", ""},
	{"tmpfs", "/run", ""},
	{"cgroup2", "/sys/fs/cgroup", ""},
	{"bpf", "/sys/fs/bpf", ""},
}

// descriptors is below fs.nr_open's default, above what any test opens.
const descriptors = 1 << 18

// initMain is the guest's first process. It does not return.
func initMain() {
	if err := prepare(); err != nil {
		fmt.Println(failed+"init:", err)
	} else {
		runPlan()
	}
	fmt.Println(ended)
	// The serial line is drained by the time that the machine is off.
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // -no-reboot ends qemu on either
	select {}
}

func prepare() error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.on, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.on, m.kind, 0, m.data); err != nil {
			return fmt.Errorf("mounting %s: %w", m.on, err)
		}
	}
	// Tests of many connections need many descriptors.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: descriptors, Max: descriptors}); err != nil {
		return fmt.Errorf("limit of descriptors: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	order, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(order)) {
		f, err := os.Open("/modules/" + name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	fmt.Printf("Linux %s\n", unix.ByteSliceToString(name.Release[:]))
	return nil
}

// loopbackUp sets IFF_UP (netdevice(7)), as every machine's boot does.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}

// runPlan runs the test programs in order and says how each ended. Their children
// that outlive them are reaped by nobody: the machine ends soon.
func runPlan() {
	plan, err := os.ReadFile("/plan")
	if err != nil {
		fmt.Println(failed+"plan:", err)
		return
	}
	for line := range strings.Lines(string(plan)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		args := []string{"-test.timeout=20m"}
		if f[3] != "" {
			args = append(args, "-test.run="+f[3])
		}
		if f[4] != "" {
			args = append(args, "-test.v")
		}
		start := time.Now()
		c := exec.Command(f[1], args...)
		c.Dir = f[2]
		c.Env = []string{"PATH=/usr/bin:/bin", "HOME=/tmp", "TMPDIR=/tmp"}
		c.Stdout, c.Stderr = os.Stdout, os.Stdout
		if err := c.Run(); err != nil {
			fmt.Printf("%s%s\t%v\t%s\n", failed, f[0], err, time.Since(start).Round(time.Second))
		} else {
			fmt.Printf("%s%s\t%s\n", passed, f[0], time.Since(start).Round(time.Second))
		}
	}
}
