package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// report tells Run how the start went.
func report(s status) {
	pipe := os.NewFile(statusFD, "status")
	_ = json.NewEncoder(pipe).Encode(s)
	_ = pipe.Close()
}

// abandon ends an inner process that could not go on, and with it the namespace.
func abandon(code int, err error) {
	report(status{Error: err.Error(), Code: code})
	os.Exit(code)
}

// setUp is the first inner process: privileged, process 1 of a new PID namespace,
// already in the workload's cgroup and network namespace. It never returns.
func setUp() {
	// What follows concerns the thread that executes the next program.
	runtime.LockOSThread()
	// Descriptors that the caller's shell left open would reach beyond the sandbox.
	if err := unix.CloseRange(lifeFD+1, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		abandon(ExitSetup, os.NewSyscallError("close_range", err))
	}
	p, err := readPlan()
	if err != nil {
		abandon(ExitSetup, err)
	}
	if err := unix.Sethostname([]byte(p.Hostname)); err != nil {
		abandon(ExitSetup, os.NewSyscallError("sethostname", err))
	}
	if err := mountAll(p); err != nil {
		abandon(ExitSetup, err)
	}
	// Also an old working directory would be a way out of the mounts.
	if err := os.Chdir(p.Dir); err != nil {
		abandon(ExitSetup, err)
	}
	if err := become(p.User, p.Caps); err != nil {
		abandon(ExitSetup, err)
	}
	if err := confine(p.Caps); err != nil {
		abandon(ExitSetup, err)
	}
	err = syscall.Exec("/proc/self/exe", []string{initName}, nil)
	abandon(ExitSetup, os.NewSyscallError("execute the sandbox's first process", err))
}

// supervise is the second inner process, process 1 of the command's PID namespace.
// It never returns.
func supervise() {
	for _, fd := range []int{planFD, statusFD, lifeFD} {
		unix.CloseOnExec(fd)
	}
	// The command runs as the same user. It may neither trace this process nor open
	// what it has open.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		abandon(ExitSetup, os.NewSyscallError("set not dumpable", err))
	}
	// A change of user has cleared the signal that Run asked for. If Run ended before
	// this, the pipe says so.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		abandon(ExitSetup, os.NewSyscallError("set parent death signal", err))
	}
	p, err := readPlan()
	if err != nil {
		abandon(ExitSetup, err)
	}
	_ = unix.Close(planFD)
	go func() {
		var b [1]byte
		for {
			n, err := unix.Read(lifeFD, b[:])
			if n == 0 && err == nil || err != nil && !errors.Is(err, unix.EINTR) {
				os.Exit(128 + int(unix.SIGKILL))
			}
		}
	}()
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, forwarded...)
	path, err := findExecutable(p.Command[0], p.Env)
	if err != nil {
		abandon(exitCodeOfStart(err), err)
	}
	pid, err := syscall.ForkExec(path, p.Command, &syscall.ProcAttr{Env: p.Env, Files: []uintptr{0, 1, 2}})
	if err != nil {
		abandon(exitCodeOfStart(err), err)
	}
	report(status{})
	go func() {
		for sig := range signals {
			if !p.Terminal || !fromTerminal(sig) {
				_ = unix.Kill(pid, sig.(syscall.Signal))
			}
		}
	}()
	for {
		var ws unix.WaitStatus
		ended, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			os.Exit(ExitSetup)
		case ended == pid && ws.Exited():
			// The kernel kills whatever else is in the PID namespace.
			os.Exit(ws.ExitStatus())
		case ended == pid && ws.Signaled():
			os.Exit(128 + int(ws.Signal()))
		}
	}
}

// findExecutable looks a command up in the PATH of the environment that it gets.
func findExecutable(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	var search string
	for _, entry := range env {
		if value, ok := strings.CutPrefix(entry, "PATH="); ok {
			search = value
		}
	}
	err := error(&exec.Error{Name: name, Err: exec.ErrNotFound})
	for _, dir := range filepath.SplitList(search) {
		if !filepath.IsAbs(dir) {
			continue
		}
		path := filepath.Join(dir, name)
		info, statErr := os.Stat(path)
		if statErr != nil || info.IsDir() {
			continue
		}
		if accessErr := unix.Access(path, unix.X_OK); accessErr != nil {
			err = fmt.Errorf("%s: %w", path, accessErr)
			continue
		}
		return path, nil
	}
	return "", err
}

func exitCodeOfStart(err error) int {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		return ExitNotFound
	}
	return ExitNotExecutable
}
