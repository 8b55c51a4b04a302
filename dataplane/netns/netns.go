// Package netns holds network namespaces: it makes them, keeps them by a bind
// mount, and runs functions inside them. Callers own the handles; every function
// may be called concurrently. Nothing here survives a failure: a namespace that
// could not be bound to its path is gone.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace is an open reference to a network namespace, which keeps it alive
// until Close.
type Namespace struct {
	file *os.File
}

// Open returns the namespace at path, such as /proc/self/ns/net or a bind mount
// of one. It is an error if path is anything else than a network namespace.
func Open(path string) (*Namespace, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	kind, err := unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		_ = file.Close()
		return nil, fmt.Errorf("open network namespace %s: not a network namespace", path)
	}
	return &Namespace{file: file}, nil
}

// Current returns the namespace of the calling thread.
func Current() (*Namespace, error) { return Open("/proc/thread-self/ns/net") }

// Create makes a namespace and keeps it by a bind mount on the new file at path,
// whose folder must exist. An existing file is an error (os.ErrExist).
func Create(path string) (*Namespace, error) {
	keep, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o400)
	if err != nil {
		return nil, fmt.Errorf("create network namespace: %w", err)
	}
	_ = keep.Close()
	var ns *Namespace
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind network namespace to %s: %w", path, err)
		}
		var err error
		ns, err = Current()
		return err
	})
	if err != nil {
		return nil, errors.Join(err, Delete(path))
	}
	return ns, nil
}

// Delete takes the bind mount and the file at path away. The namespace itself
// ends when the last process, socket or handle in it is gone. A path that does not
// exist is no error.
func Delete(path string) error {
	// EINVAL: the file is there and nothing is mounted on it.
	err := unix.Unmount(path, unix.MNT_DETACH)
	for err == nil {
		err = unix.Unmount(path, unix.MNT_DETACH)
	}
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete network namespace: %w", err)
	}
	return nil
}

// FD returns the descriptor, valid until Close.
func (n *Namespace) FD() int { return int(n.file.Fd()) }

// Close releases the reference.
func (n *Namespace) Close() error { return n.file.Close() }

// Do runs f on a thread that sits in the namespace and returns its error. Sockets
// and netlink handles that f makes belong to the namespace; goroutines that f
// starts do not run in it.
func (n *Namespace) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// Cookie returns the number by which the kernel's socket programs name the
// namespace (SO_NETNS_COOKIE, bpf_get_netns_cookie). It is unique until reboot.
func (n *Namespace) Cookie() (uint64, error) {
	var cookie uint64
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("read network namespace cookie: %w", err)
		}
		defer func() { _ = unix.Close(fd) }()
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		if err != nil {
			return fmt.Errorf("read network namespace cookie: %w", err)
		}
		return nil
	})
	return cookie, err
}

// Same reports whether both name one namespace.
func (n *Namespace) Same(o *Namespace) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Fstat(n.FD(), &a); err != nil {
		return false, fmt.Errorf("stat network namespace: %w", err)
	}
	if err := unix.Fstat(o.FD(), &b); err != nil {
		return false, fmt.Errorf("stat network namespace: %w", err)
	}
	return a.Dev == b.Dev && a.Ino == b.Ino, nil
}

// OfInit reports whether this is the namespace of process 1: the machine's own,
// unless the caller sits in a container. Where that cannot be known it is true.
func (n *Namespace) OfInit() (bool, error) {
	first, err := Open("/proc/1/ns/net")
	if err != nil {
		// Process 1 may hold a capability that the caller lacks, which hides its
		// namespaces (ptrace(2), access mode checking). Kernel threads hide nothing, and
		// the first of them is process 2 in the machine's own PID namespace.
		comm, commErr := os.ReadFile("/proc/2/comm")
		if commErr != nil || string(comm) != "kthreadd\n" {
			return true, nil
		}
		if first, err = Open("/proc/2/ns/net"); err != nil {
			return true, nil
		}
	}
	defer func() { _ = first.Close() }()
	return n.Same(first)
}

// onThread runs f on a locked thread and brings the thread's network namespace
// back. A thread that cannot go back ends with its goroutine.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		back, err := Current()
		if err != nil {
			runtime.UnlockOSThread()
			result <- err
			return
		}
		err = f()
		if unix.Setns(back.FD(), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		_ = back.Close()
		result <- err
	}()
	return <-result
}
