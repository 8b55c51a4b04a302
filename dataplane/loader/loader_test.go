package loader_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/dataplane/internal/lab"
	"github.com/sluice-mesh/sluice/dataplane/loader"
	"github.com/sluice-mesh/sluice/dataplane/service"
	"github.com/sluice-mesh/sluice/dataplane/steer"
	"github.com/sluice-mesh/sluice/mesh"
)

func TestMain(m *testing.M) { lab.Main(m) }

var vip = netip.MustParseAddr("10.96.1.1")

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// agent loads and attaches as an agent's process does, says so, and stays until it is killed.
var agent = lab.Child("agent", func(args []string) error {
	n := &lab.Node{WorkloadsCgroup: args[0], NodeCgroup: args[1], BPFFS: args[2]}
	d, err := loader.Load(n.Config())
	if err != nil {
		return err
	}
	if err := d.Attach(); err != nil {
		return err
	}
	fmt.Println("attached")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
})

func startAgent(t *testing.T, n *lab.Node) *exec.Cmd {
	t.Helper()
	cmd := lab.ChildCommand(agent, n.WorkloadsCgroup, n.NodeCgroup, n.BPFFS)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	var line [9]byte
	if _, err := io.ReadFull(out, line[:]); err != nil {
		t.Fatalf("the agent did not attach: %v", err)
	}
	return cmd
}

// TestRestart kills the process that attached, and has another take over while connections are made.
func TestRestart(t *testing.T) {
	n := lab.NewNode(t)
	t.Cleanup(func() {
		if err := loader.Remove(n.Config().Dir); err != nil {
			t.Error(err)
		}
	})
	first := startAgent(t, n)
	p, b := n.Pod(t, "client"), n.Pod(t, "backend")
	b.Echo(t, "backend", at(b.Addr4, 8080))

	// Another process writes the maps, and goes.
	d, err := loader.Load(n.Config())
	if err != nil {
		t.Fatal(err)
	}
	st, err := steer.New(steer.Config{Datapath: d})
	if err != nil {
		t.Fatal(err)
	}
	cookie, err := steer.NetnsCookie(p.FD)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Enrol(steer.Workload{Index: 1, NetnsCookie: cookie, Addr4: p.Addr4, Addr6: p.Addr6}); err != nil {
		t.Fatal(err)
	}
	services, err := service.New(service.Config{Datapath: d})
	if err != nil {
		t.Fatal(err)
	}
	if err := services.Apply(mesh.Delta{Upserts: []mesh.Resource{&mesh.Service{
		Name: mesh.Name{Namespace: "lab", Name: "web"}, VIPs: []netip.Addr{vip},
		Ports: []mesh.ServicePort{
			{Port: 80, Protocol: mesh.ProtocolTCP, Endpoints: []mesh.Endpoint{{AddrPort: at(b.Addr4, 8080)}}},
			{Port: 81, Protocol: mesh.ProtocolTCP, Steered: true},
		},
	}}}); err != nil {
		t.Fatal(err)
	}
	origins, err := d.OpenReadOnly(bpf.MeshMapOrigins)
	if err != nil {
		t.Fatal(err)
	}
	defer origins.Close()
	heartbeat, err := d.Maps().Heartbeat.Clone()
	if err != nil {
		t.Fatal(err)
	}
	defer heartbeat.Close()
	st.Close()
	d.Close()

	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	first.Wait()

	app := p.App(t)
	if got := app.Hammer(unix.AF_INET, at(vip, 80), 10); got["backend"] != 10 {
		t.Errorf("with nobody there, translated: %v", got)
	}
	l := p.ListenSteered(t, p.Addr4)
	beat := func() {
		t.Helper()
		if err := steer.Beat(heartbeat.FD()); err != nil {
			t.Fatal(err)
		}
	}
	beat()
	steered := app.Socket(unix.AF_INET, unix.SOCK_STREAM)
	if err := app.Connect(steered, at(vip, 81)); err != nil {
		t.Fatalf("with nobody there, steered: %v", err)
	}
	c := l.Accept(t)
	lab.FD(t, c, func(fd int) {
		if o, ok, err := steer.LookupOrigin(origins.FD(), fd); err != nil || !ok || o.Destination != at(vip, 81) || o.Workload != 1 {
			t.Errorf("origin: %+v %v %v", o, ok, err)
		}
	})
	l.Close()
	beat()
	if err := app.Connect(app.Socket(unix.AF_INET, unix.SOCK_STREAM), at(vip, 81)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("with no listener: %v, want ECONNREFUSED", err)
	}

	// Take over, again and again, while connections are made; each has a program of its own.
	ids := map[ebpf.ProgramID]bool{}
	counts := make(chan map[string]int)
	go func() { counts <- app.Hammer(unix.AF_INET, at(vip, 80), 4000) }()
	took := 0
	for done := false; !done || took < 2; took++ {
		next := startAgent(t, n)
		ids[program(t, n, "connect4")] = true
		next.Process.Kill()
		next.Wait()
		select {
		case got := <-counts:
			done = true
			if got["backend"] != 4000 {
				t.Errorf("during %d take-overs: %v", took, got)
			}
		default:
		}
	}
	if len(ids) != took {
		t.Errorf("%d processes put %d programs into the link", took, len(ids))
	}
	// The connection that was there before still shows its original destination.
	if got := app.Peer(steered); got != at(vip, 81) {
		t.Errorf("getpeername: %s", got)
	}
}

func program(t *testing.T, n *lab.Node, name string) ebpf.ProgramID {
	t.Helper()
	l, err := link.LoadPinnedLink(filepath.Join(n.Config().Dir, "links", name), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		t.Fatal(err)
	}
	return info.Program
}

// TestPins: what is pinned belongs to its hook, cgroup and namespace, or is replaced.
func TestPins(t *testing.T) {
	n := lab.NewNode(t)
	cfg := n.Config()
	load := func() *loader.Datapath {
		t.Helper()
		d, err := loader.Load(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return d
	}
	attach := func() *loader.Datapath {
		t.Helper()
		d := load()
		if err := d.Attach(); err != nil {
			t.Fatal(err)
		}
		return d
	}
	links := filepath.Join(cfg.Dir, "links")
	d := attach()
	pod := n.Pod(t, "pod")
	if err := d.AttachNode(n.Netns.FD); err != nil {
		t.Fatal(err)
	}
	if err := d.AttachPod(42, pod.FD); err != nil {
		t.Fatal(err)
	}

	// A link under the name of another hook takes its programs without a word.
	if err := os.Rename(filepath.Join(links, "connect6"), filepath.Join(links, "connect4")); err != nil {
		t.Fatal(err)
	}
	// A pin of a broken off replacement, a link of a namespace that is gone, a map of another layout.
	if err := os.Rename(filepath.Join(links, "sendmsg4"), filepath.Join(links, "sendmsg4-new")); err != nil {
		t.Fatal(err)
	}
	gone := n.TemporaryNetns(t, func(fd int) {
		if err := d.AttachPod(43, fd); err != nil {
			t.Fatal(err)
		}
	})
	old, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := old.Pin(filepath.Join(cfg.Dir, "maps", "services_v0")); err != nil {
		t.Fatal(err)
	}
	gone()
	waitGone(t, filepath.Join(links, "inbound_pod_43"))
	d = attach()
	for name, want := range map[string]ebpf.AttachType{
		"connect4": ebpf.AttachCGroupInet4Connect, "connect6": ebpf.AttachCGroupInet6Connect,
		"sendmsg4": ebpf.AttachCGroupUDP4Sendmsg,
	} {
		l, err := link.LoadPinnedLink(filepath.Join(links, name), nil)
		if err != nil {
			t.Fatal(err)
		}
		info, err := l.Info()
		l.Close()
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Cgroup().AttachType; uint32(got) != uint32(want) {
			t.Errorf("%s is attached as %d, want %d", name, got, want)
		}
	}
	names := func(dir string) string {
		entries, err := os.ReadDir(filepath.Join(cfg.Dir, dir))
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, e := range entries {
			out = append(out, e.Name())
		}
		return strings.Join(out, " ")
	}
	if got, want := names("links"), "connect4 connect6 getpeername4 getpeername6 inbound_node inbound_pod_42 "+
		"post_bind4 post_bind6 recvmsg4 recvmsg6 sendmsg4 sendmsg6 sock_release sockops_node sockops_pod"; got != want {
		t.Errorf("links:\n got %s\nwant %s", got, want)
	}
	if got := names("maps"); strings.Contains(got, "_v0") || !strings.Contains(got, current("services")) {
		t.Errorf("maps: %s", got)
	}
	if err := d.DetachPod(42); err != nil {
		t.Fatal(err)
	}
	if err := d.DetachPod(42); err != nil {
		t.Errorf("detach what is not attached: %v", err)
	}

	// A cgroup that was made again is another one.
	before := program(t, n, "sockops_node")
	cfg.NodeCgroup = filepath.Join(n.Cgroup, "node2")
	if err := os.Mkdir(cfg.NodeCgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	attach()
	var st unix.Stat_t
	if err := unix.Stat(cfg.NodeCgroup, &st); err != nil {
		t.Fatal(err)
	}
	l, err := link.LoadPinnedLink(filepath.Join(links, "sockops_node"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		t.Fatal(err)
	}
	if info.Cgroup().CgroupId != st.Ino || info.Program == before {
		t.Errorf("sockops_node is at cgroup %d with program %d, want cgroup %d", info.Cgroup().CgroupId, info.Program, st.Ino)
	}

	// Somebody else may hold a link open; Remove detaches it all the same.
	if err := loader.Remove(cfg.Dir); err != nil {
		t.Fatal(err)
	}
	if info, err = l.Info(); err != nil || info.Cgroup().CgroupId != 0 {
		t.Errorf("after Remove the link is at cgroup %+v, %v", info.Cgroup(), err)
	}
	if _, err := os.Stat(cfg.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
	if err := loader.Remove(cfg.Dir); err != nil {
		t.Errorf("Remove of nothing: %v", err)
	}
}

// waitGone returns once the namespace of a pinned link is gone, which takes the kernel
// a moment.
func waitGone(t *testing.T, path string) {
	t.Helper()
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for start := time.Now(); time.Since(start) < 10*time.Second; time.Sleep(time.Millisecond) {
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.NetNs().NetnsInode == 0 {
			return
		}
	}
	t.Fatal("the namespace does not go")
}

// current is the name of a map's pin in this layout.
func current(name string) string { return fmt.Sprintf("%s_v%d", name, bpf.MeshLayoutLAYOUT_VERSION) }

// TestLayout: a map of another shape under a current name is not used.
func TestLayout(t *testing.T) {
	n := lab.NewNode(t)
	cfg := n.Config()
	dir := filepath.Join(cfg.Dir, "maps")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 4, MaxEntries: 64})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	pin := filepath.Join(dir, current("workloads"))
	if err := m.Pin(pin); err != nil {
		t.Fatal(err)
	}
	if _, err := loader.Load(cfg); err == nil || !strings.Contains(err.Error(), current("workloads")) {
		t.Fatalf("loaded with a map of another shape: %v", err)
	}
	if err := os.Remove(pin); err != nil {
		t.Fatal(err)
	}
	d, err := loader.Load(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	// A pinned map keeps its size.
	cfg.Sizes.Services *= 2
	again, err := loader.Load(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got, want := again.Maps().Services.MaxEntries(), d.Maps().Services.MaxEntries(); got != want {
		t.Errorf("%d services fit, want %d as before", got, want)
	}
	if err := loader.Remove(cfg.Dir); err != nil {
		t.Fatal(err)
	}
}

func TestValidate(t *testing.T) {
	n := lab.NewNode(t)
	good := n.Config()
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		change func(*loader.Config)
		want   string
	}{
		"root":       {func(c *loader.Config) { c.WorkloadsCgroup = filepath.Dir(n.Cgroup) }, "root cgroup"},
		"no cgroup":  {func(c *loader.Config) { c.NodeCgroup = "/proc" }, "cgroup v2"},
		"absent":     {func(c *loader.Config) { c.NodeCgroup += "/no" }, "no such file"},
		"nested":     {func(c *loader.Config) { c.NodeCgroup = c.WorkloadsCgroup }, "lies in"},
		"no bpffs":   {func(c *loader.Config) { c.Dir = "/proc/x/y" }, "bpffs"},
		"relative":   {func(c *loader.Config) { c.Dir = "sluice" }, "absolute"},
		"no room":    {func(c *loader.Config) { c.Sizes.Services = 0 }, "Services"},
		"small ring": {func(c *loader.Config) { c.Sizes.EventBytes = 6000 }, "EventBytes"},
	} {
		cfg := good
		c.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", what, err, c.want)
		}
		if _, err := loader.Load(cfg); err == nil {
			t.Errorf("%s: loaded", what)
		}
	}
}

// TestObject compiles the sources again and compares, where the compiler is there.
func TestObject(t *testing.T) {
	for _, tool := range []string{"clang-14", "llvm-strip-14"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s", tool)
		}
	}
	if _, err := os.Stat("/usr/include/bpf/bpf_helpers.h"); err != nil {
		t.Skip("no libbpf headers")
	}
	// Elsewhere in the file system: no path may get into the object.
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../bpf")); err != nil {
		t.Fatal(err)
	}
	object := filepath.Join(dir, "again.o")
	for _, args := range [][]string{
		{"clang-14", "-O2", "-mcpu=v3", "-target", "bpfel", "-c", filepath.Join(dir, "mesh.bpf.c"), "-o", object,
			"-fno-ident", "-fdebug-prefix-map=" + dir + "=.", "-fdebug-compilation-dir", ".", "-g", "-Wall", "-Wextra", "-Werror"},
		{"llvm-strip-14", "-g", object},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", args[0], err, out)
		}
	}
	got, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("../../bpf/mesh_bpfel.o")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Error("bpf/mesh_bpfel.o is not what its sources make: go generate ./bpf")
	}
}
