package workload

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// owner is the process that a workload lives as long as: `sluice run`. Zero means
// that it lives until it is removed.
type owner struct {
	PID int `json:"pid,omitempty"`
	// StartTicks is when the process started, which tells it from a later one with
	// its number: field 22 of proc_pid_stat(5).
	StartTicks uint64 `json:"startTicks,omitempty"`
}

// peerOwner returns the process at the other end of a unix socket, which must run
// as root.
func peerOwner(conn *net.UnixConn) (owner, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return owner{}, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return owner{}, err
	}
	if credErr != nil {
		return owner{}, os.NewSyscallError("getsockopt SO_PEERCRED", credErr)
	}
	if cred.Uid != 0 {
		return owner{}, fmt.Errorf("process %d of user %d is not root", cred.Pid, cred.Uid)
	}
	ticks, err := startTicks(int(cred.Pid))
	if err != nil {
		return owner{}, err
	}
	return owner{PID: int(cred.Pid), StartTicks: ticks}, nil
}

// startTicks reads when a process started, in clock ticks since boot.
func startTicks(pid int) (uint64, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	// The second field is the command's name in parentheses and may hold anything.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("read start time of process %d: unknown format", pid)
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

// watch is a wait for the end of a process.
type watch struct{ pidfd *os.File }

var errOwnerGone = errors.New("the process that runs it has ended")

// watchOwner calls gone, on a goroutine of its own, when the process ends. It is
// errOwnerGone if it has ended already. Close ends the watch.
func watchOwner(o owner, gone func()) (*watch, error) {
	fd, err := unix.PidfdOpen(o.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, errOwnerGone
	}
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	w := &watch{pidfd: os.NewFile(uintptr(fd), "pidfd")}
	// Only once it is pinned does the start time tell whether it is the process.
	if ticks, err := startTicks(o.PID); err != nil || ticks != o.StartTicks {
		_ = w.Close()
		return nil, errOwnerGone
	}
	raw, err := w.pidfd.SyscallConn()
	if err != nil {
		_ = w.Close()
		return nil, err
	}
	go func() {
		err := raw.Read(func(fd uintptr) bool {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(fds, 0)
			return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
		})
		if err == nil {
			gone()
		}
	}()
	return w, nil
}

// Close ends the watch. The function may still be running.
func (w *watch) Close() error { return w.pidfd.Close() }
