// Command kernel runs the tests of packages under another kernel than the machine's.
//
// It builds the packages' test programs, packs them with itself as init, a few tools
// and kernel modules into an initramfs, and boots the kernel on it in qemu, without
// hardware acceleration, network or disk. Inside, init mounts what the tests need,
// runs one program after another and powers the machine off. What they print comes
// out of the serial line; the last line counts the programs, and the exit status is
// 1 if one of them failed or did not come to its end, 2 if nothing could be run.
//
//	kernel -image vmlinuz -modules DIR ./dataplane/loader ./dataplane/steer:^TestSteered
//
// A package may be followed by a colon and the names of the tests to run (-run of
// go test).
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// modules are loaded by init, with what they depend on.
var modules = []string{"veth", "bridge", "dummy", "sch_ingress", "cls_bpf"}

// etc are the files that programs expect of any machine.
var etc = map[string]string{
	"/etc/passwd":      "root:x:0:0::/tmp:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
	"/etc/group":       "root:x:0:\nnogroup:x:65534:\n",
	"/etc/hosts":       "127.0.0.1 localhost\n::1 localhost\n",
	"/etc/resolv.conf": "nameserver 127.0.0.53\n",
}

// What init says of itself. The serial line carries the kernel's words as well.
const (
	mark   = "#sluice-init "
	passed = mark + "pass "
	failed = mark + "fail "
	ended  = mark + "end"
)

func main() {
	if os.Getpid() == 1 {
		initMain()
	}
	image := flag.String("image", "", "the kernel, a bzImage `file`")
	modules := flag.String("modules", "", "the `folder` of its modules (lib/modules/VERSION)")
	tools := flag.String("tools", "curl,sh,cat,sleep,true", "programs of this machine that the tests call, with commas between")
	limit := flag.Duration("timeout", 30*time.Minute, "give up after this `time`")
	verbose := flag.Bool("v", false, "print every test's name and log")
	keep := flag.String("initramfs", "", "keep the initramfs as this `file`")
	flag.Parse()
	if *image == "" || *modules == "" || flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "kernel: -image, -modules and at least one package are needed; see -help")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, *limit)
	ok, err := run(ctx, *image, *modules, *keep, *verbose, strings.Split(*tools, ","), flag.Args())
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kernel:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

// run packs, boots and reads. It reports whether every package's tests passed.
func run(ctx context.Context, image, moduleDir, keep string, verbose bool, tools, packages []string) (bool, error) {
	dir, err := os.MkdirTemp("", "sluice-kernel-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	root := newTree()
	if err := root.program("/proc/self/exe", "/init"); err != nil {
		return false, err
	}
	var plan strings.Builder
	for i, p := range packages {
		path, tests, _ := strings.Cut(p, ":")
		binary := filepath.Join(dir, fmt.Sprintf("%d.test", i))
		build := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, path)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return false, fmt.Errorf("go test -c %s: %w\n%s", path, err, out)
		}
		if err := root.program(binary, fmt.Sprintf("/tests/%d", i)); err != nil {
			return false, err
		}
		// Tests read their golden files relative to their package.
		home := filepath.Join("/src", path)
		root.dir(home)
		if err := root.folder(filepath.Join(path, "testdata"), filepath.Join(home, "testdata")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
		v := ""
		if verbose {
			v = "v"
		}
		fmt.Fprintf(&plan, "%s\t/tests/%d\t%s\t%s\t%s\n", path, i, home, tests, v)
	}
	root.file("/plan", []byte(plan.String()), 0o644)
	for name, text := range etc {
		root.file(name, []byte(text), 0o644)
	}
	for _, tool := range tools {
		if tool == "" {
			continue
		}
		path, err := exec.LookPath(tool)
		if err != nil {
			return false, err
		}
		if err := root.tool(path, "/bin/"+tool); err != nil {
			return false, err
		}
	}
	if err := root.modules(moduleDir, modules); err != nil {
		return false, err
	}
	initramfs := filepath.Join(dir, "initramfs")
	if keep != "" {
		initramfs = keep
	}
	if err := root.write(initramfs); err != nil {
		return false, err
	}
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048",
		"-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio", "-nic", "none",
		"-kernel", image, "-initrd", initramfs, "-append", "console=ttyS0 quiet panic=-1 rdinit=/init")
	qemu.Cancel = func() error { return qemu.Process.Signal(syscall.SIGTERM) }
	qemu.WaitDelay = 5 * time.Second
	qemu.Stderr = os.Stderr
	out, err := qemu.StdoutPipe()
	if err != nil {
		return false, err
	}
	if err := qemu.Start(); err != nil {
		return false, err
	}
	good, bad, whole := read(out, os.Stdout)
	err = qemu.Wait()
	if ctx.Err() != nil {
		err = errors.New("it did not come to its end in time")
	}
	missing := len(packages) - good - bad
	fmt.Printf("test-kernel: %d passed, %d failed, %d not run\n", good, bad, missing)
	return err == nil && whole && bad == 0 && missing == 0, err
}

// read copies the serial line to w and counts what init says of the packages. whole
// tells that init came to its end.
func read(serial io.Reader, w io.Writer) (good, bad int, whole bool) {
	lines := bufio.NewReader(serial)
	for {
		line, err := lines.ReadString('\n')
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, passed):
			good++
			fmt.Fprintln(w, "ok  \t"+strings.TrimPrefix(line, passed))
		case strings.HasPrefix(line, failed):
			bad++
			fmt.Fprintln(w, "FAIL\t"+strings.TrimPrefix(line, failed))
		case line == ended:
			whole = true
		case strings.TrimSpace(line) != "" && !strings.Contains(line, "\x1b"): // the firmware clears its screen
			fmt.Fprintln(w, line)
		}
		if err != nil {
			return good, bad, whole
		}
	}
}
