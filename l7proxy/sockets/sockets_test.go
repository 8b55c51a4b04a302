package sockets

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/mesh"
)

// namespace makes a network namespace, binds it to dir/name and returns its
// cookie.
func namespace(t *testing.T, dir, name string) uint64 {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test makes network namespaces: run it as root")
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cookie := make(chan uint64, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with its namespace
		defer close(cookie)
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			t.Error(err)
			return
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		cookie <- netnsCookie(t, fd)
	}()
	c := <-cookie
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return c
}

func netnsCookie(t *testing.T, fd int) uint64 {
	t.Helper()
	c, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		t.Error(err)
	}
	return c
}

func start(t *testing.T, dir string) *Pool {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	worker, maker := conn(t, pair[0]), conn(t, pair[1])
	pool := NewPool(worker, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- (&Maker{NetnsDir: dir, Logger: slog.New(slog.DiscardHandler)}).Run(maker) }()
	go func() { done <- pool.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		maker.Close()
	})
	return pool
}

func conn(t *testing.T, fd int) *net.UnixConn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "pair")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.UnixConn)
}

// take waits for a socket as the proxy does; false when there is none to be had.
func take(p *Pool, w mesh.WorkloadIndex, v6 bool) (int, bool) {
	if fd, ok := p.Take(w, v6); ok {
		return fd, true
	}
	type given struct {
		fd int
		ok bool
	}
	ready := make(chan given)
	p.Wait(w, v6, func(fd int, ok bool) { ready <- given{fd, ok} })
	g := <-ready
	return g.fd, g.ok
}

// TestCrowd: many that wait at once get a socket each, a batch at a time, and who
// comes later takes none of theirs.
func TestCrowd(t *testing.T) {
	dir := t.TempDir()
	namespace(t, dir, "shop_a")
	pool := start(t, dir)
	pool.AddWorkload(1, "shop_a")
	const crowd = 10 * maxBatch
	fds := make(chan int, crowd)
	for range crowd {
		pool.Wait(1, false, func(fd int, ok bool) {
			if !ok {
				fd = -1
			}
			fds <- fd
			if late, ok := pool.Take(1, false); ok {
				_ = unix.Close(late)
			}
		})
	}
	seen := map[int]bool{}
	for range crowd {
		fd := <-fds
		if fd < 0 || seen[fd] {
			t.Fatalf("somebody got socket %d after %d others", fd, len(seen))
		}
		seen[fd] = true
	}
	for fd := range seen {
		_ = unix.Close(fd)
	}
}

func TestSocketsLiveInTheWorkloadsNamespace(t *testing.T) {
	dir := t.TempDir()
	a, b := namespace(t, dir, "shop_a"), namespace(t, dir, "shop_b")
	pool := start(t, dir)
	pool.AddWorkload(1, "shop_a")
	pool.AddWorkload(2, "shop_b")
	for range 100 {
		for w, want := range map[mesh.WorkloadIndex]uint64{1: a, 2: b} {
			for _, v6 := range []bool{false, true} {
				fd, ok := take(pool, w, v6)
				if !ok {
					t.Fatalf("no socket of workload %d", w)
				}
				if got := netnsCookie(t, fd); got != want {
					t.Fatalf("socket of workload %d is in namespace %d, want %d", w, got, want)
				}
				domain, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
				if (domain == unix.AF_INET6) != v6 {
					t.Fatalf("socket of domain %d, want v6 = %v", domain, v6)
				}
				unix.Close(fd)
			}
		}
	}
}

func TestUnknownAndVanishedNamespaces(t *testing.T) {
	dir := t.TempDir()
	pool := start(t, dir)
	if _, ok := take(pool, 9, false); ok {
		t.Fatal("an unknown workload got a socket")
	}
	if err := os.WriteFile(filepath.Join(dir, "no-namespace"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/self/ns/net", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"absent", "no-namespace", "link"} {
		w := mesh.WorkloadIndex(i + 1)
		pool.AddWorkload(w, name)
		if _, ok := take(pool, w, false); ok {
			t.Fatalf("%s gave a socket", name)
		}
	}
	namespace(t, dir, "good")
	pool.AddWorkload(8, "good")
	if fd, ok := take(pool, 8, true); !ok {
		t.Fatal("the maker did not survive bad namespaces")
	} else {
		unix.Close(fd)
	}
}

func TestRemovedWorkloadHoldsNothing(t *testing.T) {
	dir := t.TempDir()
	namespace(t, dir, "shop_a")
	pool := start(t, dir)
	pool.AddWorkload(1, "shop_a")
	fd, ok := take(pool, 1, false)
	if !ok {
		t.Fatal("no socket")
	}
	unix.Close(fd)
	pool.RemoveWorkload(1)
	if _, ok := take(pool, 1, false); ok {
		t.Fatal("a removed workload still gives sockets")
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add(request{tag: 1, count: 4, netns: "shop_a"}.append(nil))
	f.Add(request{tag: 1, v6: true, count: 64, netns: ".."}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRequest(b)
		if err != nil {
			return
		}
		if r.count < 1 || r.count > maxBatch || filepath.Base(r.netns) != r.netns || r.netns == ".." {
			t.Fatalf("accepted %+v", r)
		}
	})
}
