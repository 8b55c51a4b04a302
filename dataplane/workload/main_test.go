package workload

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/netns"
	"github.com/sluice-mesh/sluice/mesh"
)

// bed is a node for one test: a network namespace, a run folder and a cgroup of its
// own, all gone afterwards.
type bed struct {
	netns  *netns.Namespace
	runDir string
	cgroup string
}

// cgroup2Mount returns where the v2 hierarchy is mounted.
func cgroup2Mount(t testing.TB) string {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); fields[2] == "cgroup2" {
			return fields[1]
		}
	}
	t.Fatal("no cgroup2 mount")
	return ""
}

const cgroupPrefix = "sluice-workload-test-"

func newBed(t testing.TB) *bed {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	mount := cgroup2Mount(t)
	b := &bed{runDir: t.TempDir(), cgroup: filepath.Join(mount, fmt.Sprintf("%s%d-%d", cgroupPrefix, os.Getpid(), len(t.Name())))}
	// What a test that was killed has left: its process number is nobody's.
	old, _ := filepath.Glob(filepath.Join(mount, cgroupPrefix+"*"))
	for _, path := range old {
		var pid, n int
		if _, err := fmt.Sscanf(filepath.Base(path), cgroupPrefix+"%d-%d", &pid, &n); err == nil && unix.Kill(pid, 0) != nil {
			_ = emptyCgroup(t.Context(), path)
			_ = removeCgroup(path)
		}
	}
	path := filepath.Join(b.runDir, "node")
	ns, err := netns.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	b.netns = ns
	t.Cleanup(func() {
		if err := errors.Join(emptyCgroup(context.Background(), b.cgroup), removeCgroup(b.cgroup), ns.Close(), netns.Delete(path)); err != nil {
			t.Error(err)
		}
		// What a failed test leaves would keep the run folder from being deleted.
		left, _ := filepath.Glob(filepath.Join(b.runDir, "netns", "*"))
		for _, path := range left {
			_ = netns.Delete(path)
		}
	})
	return b
}

func (b *bed) config(t testing.TB) Config {
	return Config{
		RunDir: b.runDir, CgroupRoot: filepath.Join(b.cgroup, "workloads"),
		PoolV4: netip.MustParsePrefix("10.77.0.0/24"), PoolV6: netip.MustParsePrefix("fd77::/64"),
		Node: "node1", NodeNetns: b.netns, ClusterDomain: "cluster.local",
		DNS:    []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd96::a")},
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

func (b *bed) registry(t testing.TB, change func(*Config)) *Registry {
	t.Helper()
	cfg := b.config(t)
	if change != nil {
		change(&cfg)
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func spec(name string) Spec { return Spec{Name: mesh.Name{Namespace: "shop", Name: name}} }

func mustAdd(t testing.TB, r *Registry, name string) *Sandbox {
	t.Helper()
	s, err := r.Add(t.Context(), spec(name))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// pieces lists everything that workloads have on this node, in words.
func (b *bed) pieces(t testing.TB) []string {
	t.Helper()
	var out []string
	for _, dir := range []string{"netns", "pods", "workloads"} {
		entries, err := os.ReadDir(filepath.Join(b.runDir, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, entry := range entries {
			if entry.Name() != "next-index" {
				out = append(out, "file "+dir+"/"+entry.Name())
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[1], b.runDir+"/netns/") {
			out = append(out, "mount "+fields[1])
		}
	}
	cgroups, err := os.ReadDir(filepath.Join(b.cgroup, "workloads"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, entry := range cgroups {
		if entry.IsDir() {
			out = append(out, "cgroup "+entry.Name())
		}
	}
	return append(out, b.network(t)...)
}

var quiet = slog.New(slog.DiscardHandler)

// sleeper is a process in a cgroup that does nothing.
type sleeper struct{ cmd *exec.Cmd }

func sleepIn(t testing.TB, cgroup string) *sleeper {
	t.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return &sleeper{cmd}
}

func (s *sleeper) wait() string {
	_ = s.cmd.Wait()
	return s.cmd.ProcessState.String()
}
