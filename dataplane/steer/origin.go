package steer

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/mesh"
)

// Origin is where a steered connection was going and whose it is.
type Origin struct {
	// Destination is as the client dialled it, IPv4 never in mapped form.
	Destination netip.AddrPort
	Workload    mesh.WorkloadIndex
}

// HeartbeatTimeout is how long after the last Beat the kernel refuses connections
// that need the node proxy (HEARTBEAT_TIMEOUT_NS in bpf/socket.h). Beat three
// times as often, at least.
const HeartbeatTimeout = 3 * time.Second

// LookupOrigin returns where the accepted connection sockFD was going. False: it
// was not steered here, and must be refused. mapFD is what OriginMapFD returned,
// or a descriptor received from the process that called it.
//
// It needs no capability, allocates nothing and may be called concurrently.
func LookupOrigin(mapFD, sockFD int) (Origin, bool, error) {
	key := uint32(sockFD)
	var value bpf.MeshOrigin
	err := mapElem(unix.BPF_MAP_LOOKUP_ELEM, mapFD, unsafe.Pointer(&key), unsafe.Pointer(&value))
	if err == unix.ENOENT {
		return Origin{}, false, nil
	}
	if err != 0 {
		return Origin{}, false, fmt.Errorf("look up the original destination of descriptor %d: %w", sockFD, err)
	}
	return Origin{
		Destination: netip.AddrPortFrom(value.Addr.Addr(), bpf.Port(value.Port)),
		Workload:    mesh.WorkloadIndex(value.Workload),
	}, true, nil
}

// Beat says that the node proxy accepts connections now. mapFD is what
// HeartbeatMapFD returned, or a descriptor received from the process that called it.
//
// It needs no capability and may be called concurrently.
func Beat(mapFD int) error {
	var now unix.Timespec
	// The clock of bpf_ktime_get_ns.
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("read the clock: %w", err)
	}
	key, value := uint32(0), uint64(now.Nano())
	if err := mapElem(unix.BPF_MAP_UPDATE_ELEM, mapFD, unsafe.Pointer(&key), unsafe.Pointer(&value)); err != 0 {
		return fmt.Errorf("write the heartbeat: %w", err)
	}
	return nil
}

// mapElem is the part of union bpf_attr that commands on one element use (bpf(2)).
// ebpf.Map asks the kernel about the map first, which an unprivileged process may not.
func mapElem(command int, mapFD int, key, value unsafe.Pointer) unix.Errno {
	attr := struct {
		mapFD uint32
		_     uint32
		key   uint64
		value uint64
		flags uint64
	}{mapFD: uint32(mapFD), key: uint64(uintptr(key)), value: uint64(uintptr(value))}
	for {
		_, _, err := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		runtime.KeepAlive(key)
		runtime.KeepAlive(value)
		return err
	}
}

// NetnsCookie returns the cookie of the network namespace that the descriptor
// refers to. It needs CAP_SYS_ADMIN.
func NetnsCookie(netns int) (cookie uint64, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		// The thread ends with the goroutine when it could not return.
		home, e := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if e != nil {
			err = e
			return
		}
		defer unix.Close(home)
		if err = unix.Setns(netns, unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("enter the namespace: %w", err)
			return
		}
		cookie, err = ownNetnsCookie()
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	<-done
	if err != nil {
		return 0, fmt.Errorf("read the namespace's cookie: %w", err)
	}
	return cookie, nil
}

func ownNetnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return 0, fmt.Errorf("this kernel tells no cookies (requires 5.14): %w", err)
	}
	return cookie, err
}
