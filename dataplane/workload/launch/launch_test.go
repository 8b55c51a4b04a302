package launch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/netns"
	"github.com/sluice-mesh/sluice/dataplane/workload"
	"github.com/sluice-mesh/sluice/mesh"
)

// The test binary is also the process that launches (runVar holds Options as JSON)
// and the command that is launched (its first argument is probeArg).
const (
	runVar   = "SLUICE_LAUNCH_TEST_RUN"
	probeArg = "sluice-launch-test-probe"
)

func TestMain(m *testing.M) {
	Init()
	if len(os.Args) > 1 && os.Args[1] == probeArg {
		probe(os.Args[2])
		os.Exit(0)
	}
	if text := os.Getenv(runVar); text != "" {
		_ = os.Unsetenv(runVar)
		var o order
		if err := json.Unmarshal([]byte(text), &o); err != nil {
			panic(err)
		}
		code, err := Run(context.Background(), Options{
			Socket: o.Socket, Spec: o.Spec, User: o.User, CapAdd: o.CapAdd, Command: o.Command, Dir: o.Dir, Hide: o.Hide,
			Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// order is the part of Options that is passed to the process that launches.
type order struct {
	Socket          string
	Spec            workload.Spec
	User            string
	CapAdd, Command []string
	Dir             string
	Hide            []string
}

// bed is a node with an agent for one test.
type bed struct {
	netns    *netns.Namespace
	cfg      workload.Config
	registry *workload.Registry
	server   *http.Server
	listener net.Listener
	socket   string
	dir      string
}

const cgroupPrefix = "sluice-launch-test-"

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

// newBed starts an agent in this process. Its run folder is outside of what /tmp of
// the test may be, so that hiding it hides nothing else.
func newBed(t *testing.T) *bed {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	mount := cgroup2Mount(t)
	old, _ := filepath.Glob(filepath.Join(mount, cgroupPrefix+"*"))
	for _, path := range old {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(path), cgroupPrefix))
		if err == nil && pid != os.Getpid() && unix.Kill(pid, 0) != nil {
			removeCgroups(path)
		}
	}
	root := filepath.Join(mount, cgroupPrefix+strconv.Itoa(os.Getpid()))
	b := &bed{dir: t.TempDir()}
	node := filepath.Join(b.dir, "node")
	var err error
	if b.netns, err = netns.Create(node); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, _ := filepath.Glob(filepath.Join(b.cfg.RunDir, "netns", "*"))
		for _, path := range left {
			_ = netns.Delete(path)
		}
		if err := errors.Join(b.netns.Close(), netns.Delete(node)); err != nil {
			t.Error(err)
		}
		removeCgroups(root)
	})
	b.cfg = workload.Config{
		RunDir: filepath.Join(b.dir, "run"), CgroupRoot: filepath.Join(root, "workloads"),
		PoolV4: netip.MustParsePrefix("10.78.0.0/24"), PoolV6: netip.MustParsePrefix("fd78::/64"),
		Node: "node1", NodeNetns: b.netns, ClusterDomain: "cluster.local",
		DNS:    []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd96::a")},
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	b.socket = filepath.Join(b.dir, "agent.sock")
	b.startAgent(t)
	t.Cleanup(func() { b.stopAgent(t) })
	return b
}

func removeCgroups(root string) {
	_ = os.WriteFile(filepath.Join(root, "cgroup.kill"), []byte("1"), 0)
	children, _ := filepath.Glob(filepath.Join(root, "workloads", "*_*"))
	for _, path := range append(children, filepath.Join(root, "workloads"), root) {
		_ = unix.Rmdir(path)
	}
}

func (b *bed) startAgent(t *testing.T) {
	t.Helper()
	var err error
	if b.registry, err = workload.New(b.cfg); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.registry.Restore(t.Context()), b.registry.Activate(t.Context())); err != nil {
		t.Fatal(err)
	}
	if b.listener, err = net.Listen("unix", b.socket); err != nil {
		t.Fatal(err)
	}
	b.server = &http.Server{Handler: b.registry.Handler()}
	go func() { _ = b.server.Serve(b.listener) }()
}

// stopAgent ends the agent as a restart does: workloads stay.
func (b *bed) stopAgent(t *testing.T) {
	t.Helper()
	_ = b.listener.Close() // Serve may not have begun.
	if err := errors.Join(b.server.Close(), b.registry.Close()); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

func (b *bed) options(name string, command ...string) order {
	return order{
		Socket: b.socket, Spec: workload.Spec{Name: mesh.Name{Namespace: "shop", Name: name}}, Command: command,
	}
}

// launched is a process of its own that called Run.
type launched struct {
	*exec.Cmd
	stdout bytes.Buffer
	stderr bytes.Buffer
}

// command prepares a process that calls Run.
func command(t testing.TB, o order) *launched {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	l := &launched{Cmd: exec.Command("/proc/self/exe")}
	l.Env = append(os.Environ(), runVar+"="+string(text))
	l.Stdout, l.Stderr = &l.stdout, &l.stderr
	return l
}

// run calls Run in a process of its own and returns what it did.
func run(t testing.TB, o order) (stdout, stderr string, code int) {
	t.Helper()
	l := command(t, o)
	err := l.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return l.stdout.String(), l.stderr.String(), l.ProcessState.ExitCode()
}

// self is the path of the test binary, which the command can execute as well.
func self(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func (b *bed) mustBeEmpty(t testing.TB) {
	t.Helper()
	if left := b.registry.List(); len(left) != 0 {
		t.Errorf("workloads left: %v", left[0].Spec.Name)
	}
	for _, pattern := range []string{
		b.cfg.RunDir + "/netns/*", b.cfg.RunDir + "/pods/*", b.cfg.RunDir + "/workloads/*.json", b.cfg.CgroupRoot + "/shop_*",
	} {
		if left, _ := filepath.Glob(pattern); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	}
}

func TestExitCode(t *testing.T) {
	b := newBed(t)
	for _, test := range []struct {
		name    string
		command []string
		code    int
		stderr  string
	}{
		{"zero", []string{"true"}, 0, ""},
		{"status", []string{"sh", "-c", "exit 7"}, 7, ""},
		{"signal", []string{"sh", "-c", "kill -TERM $$"}, 128 + 15, ""},
		{"missing", []string{"no-such-program"}, ExitNotFound, "not found"},
		{"missing-path", []string{"/no/such/program"}, ExitNotFound, "no such file"},
		{"directory", []string{"/usr"}, ExitNotExecutable, "permission denied"},
		{"orphans", []string{"sh", "-c", "sleep 1000 & exit 3"}, 3, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			stdout, stderr, code := run(t, b.options("w-"+test.name, test.command...))
			if code != test.code || !strings.Contains(stderr, test.stderr) || test.stderr == "" && stderr != "" {
				t.Errorf("code %d, stdout %q, stderr %q", code, stdout, stderr)
			}
			b.mustBeEmpty(t)
		})
	}
}

// TestView: what the command sees of the machine.
func TestView(t *testing.T) {
	b := newBed(t)
	script := `
echo "pid=$$ host=$(hostname) uid=$(id -u)"
cat /etc/resolv.conf /etc/hosts
ls -1 /sys/class/net /dev
echo "run=$(ls -A ` + b.cfg.RunDir + `)"
cat /proc/self/cgroup
cat /sys/fs/cgroup/cgroup.procs | wc -l
`
	stdout, stderr, code := run(t, b.options("view", "sh", "-c", script))
	if code != 0 || stderr != "" {
		t.Fatalf("code %d, stderr %q", code, stderr)
	}
	for _, want := range []string{
		"host=view uid=0\n", "nameserver 10.96.0.10\nnameserver fd96::a\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
		"10.78.0.2\tview\n", "fd78::2\tview\n", "/sys/class/net:\neth0\nlo\n", "run=\n", "0::/\n",
		"/dev:\nfd\nfull\n",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	if strings.Contains(stdout, "vda") || strings.Contains(stdout, "sda") {
		t.Error("the machine's disks are there")
	}
}

// capabilitySets reads the five sets of the test's child from what it prints.
func capabilitySets(t testing.TB, status string) map[string]uint64 {
	t.Helper()
	sets := make(map[string]uint64)
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		if strings.HasPrefix(name, "Cap") {
			set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			sets[name] = set
		}
	}
	if len(sets) != 5 {
		t.Fatalf("sets %v in %q", sets, status)
	}
	return sets
}

func TestCapabilities(t *testing.T) {
	b := newBed(t)
	const never = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_BPF | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_SYS_PTRACE |
		1<<unix.CAP_SYS_MODULE | 1<<unix.CAP_PERFMON | 1<<unix.CAP_SYS_RAWIO | 1<<unix.CAP_DAC_READ_SEARCH |
		1<<unix.CAP_SYS_BOOT | 1<<unix.CAP_MKNOD | 1<<unix.CAP_NET_RAW
	var defaults uint64
	for _, number := range defaultCapabilities {
		defaults |= 1 << number
	}
	const raw = 1 << unix.CAP_NET_RAW
	for _, test := range []struct {
		name string
		user string
		add  []string
		want map[string]uint64
	}{
		{"root", "", nil, map[string]uint64{"CapInh": 0, "CapPrm": defaults, "CapEff": defaults, "CapBnd": defaults, "CapAmb": 0}},
		{"root-added", "0:0", []string{"net_raw"}, map[string]uint64{
			"CapInh": 0, "CapPrm": defaults | raw, "CapEff": defaults | raw, "CapBnd": defaults | raw, "CapAmb": 0,
		}},
		{"user", "65534:65534", nil, map[string]uint64{"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": defaults, "CapAmb": 0}},
		{"user-added", "65534", []string{"CAP_NET_RAW"}, map[string]uint64{
			"CapInh": raw, "CapPrm": raw, "CapEff": raw, "CapBnd": defaults | raw, "CapAmb": raw,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := b.options("caps-"+test.name, "cat", "/proc/self/status")
			o.User, o.CapAdd, o.Dir = test.user, test.add, "/"
			stdout, stderr, code := run(t, o)
			if code != 0 {
				t.Fatalf("code %d, stderr %q", code, stderr)
			}
			for set, got := range capabilitySets(t, stdout) {
				if got != test.want[set] {
					t.Errorf("%s is %#x, want %#x", set, got, test.want[set])
				}
				if test.add == nil && got&never != 0 {
					t.Errorf("%s holds %#x", set, got&never)
				}
			}
			if !strings.Contains(stdout, "NoNewPrivs:\t1\n") || !strings.Contains(stdout, "Seccomp:\t2\n") {
				t.Error("no no_new_privs or no seccomp filter")
			}
			id := "0"
			if strings.HasPrefix(test.user, "65534") {
				id = "65534"
			}
			for _, line := range []string{"Uid", "Gid"} {
				if want := fmt.Sprintf("%[1]s:\t%[2]s\t%[2]s\t%[2]s\t%[2]s\n", line, id); !strings.Contains(stdout, want) {
					t.Errorf("no %q", want)
				}
			}
		})
	}
}

func TestOptions(t *testing.T) {
	for _, test := range []struct {
		want string
		o    Options
	}{
		{"no command", Options{}},
		{"does not exist", Options{Command: []string{"true"}, CapAdd: []string{"FLY"}}},
		{"neither a name", Options{Command: []string{"true"}, User: "nobody-has-this-name"}},
		{"neither a name", Options{Command: []string{"true"}, User: "0:4294967295"}},
		{"zero byte", Options{Command: []string{"true\x00"}}},
		{"hide", Options{Command: []string{"true"}, Hide: []string{"/run/.."}}},
		{"is it running", Options{Command: []string{"true"}, Socket: "/nonexistent/agent.sock"}},
	} {
		if code, err := Run(t.Context(), test.o); code != ExitSetup || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %d, %v; want %q", test.o, code, err, test.want)
		}
	}
}

// TestSignals: each signal reaches the command once.
func TestSignals(t *testing.T) {
	b := newBed(t)
	l := command(t, b.options("signals", "sh", "-c", `trap 'echo int' INT; trap 'echo term; exit 5' TERM
echo ready; while :; do read -r line; done`))
	stdin, err := l.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string)
	l.Stdout = writerFunc(func(p []byte) {
		for line := range strings.Lines(string(p)) {
			lines <- strings.TrimSpace(line)
		}
	})
	// A process group of its own takes what a terminal or a Makefile sends to all.
	l.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := l.Start(); err != nil {
		t.Fatal(err)
	}
	if got := <-lines; got != "ready" {
		t.Fatalf("read %q", got)
	}
	// The command's processes are in another group, so that the signal comes once.
	pids, err := os.ReadFile(filepath.Join(b.registry.List()[0].CgroupPath, "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	for field := range strings.FieldsSeq(string(pids)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		if group, err := unix.Getpgid(pid); err != nil || group == l.Process.Pid {
			t.Errorf("process %d is in the launcher's group", pid)
		}
	}
	_ = unix.Kill(-l.Process.Pid, unix.SIGINT)
	_, _ = stdin.Write([]byte("\n"))
	if got := <-lines; got != "int" {
		t.Fatalf("read %q", got)
	}
	_ = unix.Kill(l.Process.Pid, unix.SIGTERM)
	_, _ = stdin.Write([]byte("\n"))
	if got := <-lines; got != "term" {
		t.Fatalf("read %q; SIGINT came twice?", got)
	}
	_ = l.Wait()
	if code := l.ProcessState.ExitCode(); code != 5 {
		t.Errorf("exit code %d", code)
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}
