package lab_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/lab"
)

// These tests run a whole node and ask it only what a person could. Most share one
// (shared); a test that kills parts of a node has one of its own.

// bin is the folder of the programs under test.
var bin string

// shared is a node with testdata/config and the workload shop/web-a.
var shared *node

// names of the Gateway's listeners, and its addresses.
const (
	edge4 = "198.51.100.10"
	edge6 = "2001:db8:2::10"
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == peerName {
		if err := peerMain(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "peer:", err)
			os.Exit(1)
		}
		return
	}
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (code int, err error) {
	if os.Geteuid() != 0 {
		fmt.Println("lab: skipped, a node needs root")
		return 0, nil
	}
	if dir := os.Getenv(holderBin); dir != "" {
		bin = dir
		return m.Run(), nil
	}
	if bin, err = os.MkdirTemp("", "sluice-lab-"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(bin)
	if err := build(); err != nil {
		return 0, err
	}
	before, err := links()
	if err != nil {
		return 0, err
	}
	ctx := context.Background()
	shared, err = start(ctx, "test")
	defer func() {
		if code != 0 && shared != nil {
			fmt.Printf("The node's last words:\n%s\n", shared.LogTail(60))
		}
		if shared != nil {
			err = errors.Join(err, shared.Down(), goneWithout(before, "test"))
		}
	}()
	if err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// build makes the programs, and the peer of the test's own binary.
func build() error {
	if err := os.Chmod(bin, 0o755); err != nil { // workloads need not be root
		return err
	}
	cmd := exec.Command("go", "build", "-o", bin+"/", "./cmd/sluice", "./cmd/sluiced", "./examples/bookshop/app")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs: %w: %s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	program, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(bin, peerName), program, 0o755)
}

// node is a lab with a program that serves and three consoles.
type node struct {
	*lab.Lab
	ctx context.Context
	// The consoles: a workload, a program outside, and one on the node itself.
	client, outside, local *console
	started                atomic.Int64
}

// start starts a node, the workload shop/web-a and the consoles. Whatever it
// returns must be taken down.
func start(ctx context.Context, name string, flags ...string) (*node, error) {
	l, err := lab.New(ctx, lab.Config{Bin: bin, Name: name, NodeFlags: flags})
	if err != nil {
		return nil, err
	}
	n := &node{Lab: l, ctx: ctx}
	if err := l.Up(ctx, n.prepare); err != nil {
		return n, err
	}
	if _, err := n.serve("shop", "web-a", "app=web"); err != nil {
		return n, err
	}
	if n.client, err = newConsole(n.Workload(ctx, "shop", "client", []string{"--label", "app=client", "--user", "65534:65534"}, peerName, "console")); err != nil {
		return n, err
	}
	if n.outside, err = newConsole(n.Command(ctx, lab.Outside, peerName, "console")); err != nil {
		return n, err
	}
	if n.local, err = newConsole(n.Command(ctx, lab.Node, peerName, "console")); err != nil {
		return n, err
	}
	// Served, by name, in every way: what a test dials later is there.
	for _, url := range []string{"http://web/", "http://plain/"} {
		if err := within(func() error { return n.answers(call{Do: "http", URL: url}, 200) }); err != nil {
			return n, err
		}
	}
	for _, addr := range []string{edge4, edge6} {
		q := call{Do: "http", URL: "http://www.example/web", Resolve: net.JoinHostPort(addr, "80")}
		if err := within(func() error { return answers(n.outside, q, 200) }); err != nil {
			return n, err
		}
	}
	return n, nil
}

// prepare copies the manifests and makes the Gateway's certificates.
func (n *node) prepare(config string) error {
	if err := os.CopyFS(config, os.DirFS("testdata/config")); err != nil {
		return err
	}
	for _, host := range []string{"www", "b"} {
		secret, err := n.Command(n.ctx, lab.Home, "app", "cert", "--secret", host+"-tls", "-n", "shop", "--ca", n.ca(host), host+".example").Output()
		if err != nil {
			return fmt.Errorf("make a certificate: %w: %s", err, secret.Stderr)
		}
		if err := os.WriteFile(filepath.Join(config, "secret-"+host+".yaml"), []byte(secret.Stdout), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) ca(host string) string { return filepath.Join(n.Dir(), "ca-"+host+".pem") }

func (n *node) caPEM(t *testing.T, host string) string {
	t.Helper()
	pem, err := os.ReadFile(n.ca(host))
	if err != nil {
		t.Fatal(err)
	}
	return string(pem)
}

// serve starts a peer as a workload.
func (n *node) serve(namespace, name, label string) (*lab.Process, error) {
	ports := []string{"--port", "8080", "--port", "9090", "--port", "7000", "--port", "7001/udp", "--port", "7002"}
	return n.Workload(n.ctx, namespace, name, append(ports, "--label", label, "--user", "65534:65534"), peerName, "serve", name).Start()
}

// unique returns a name that no workload had.
func (n *node) unique(prefix string) string { return fmt.Sprintf("%s-%d", prefix, n.started.Add(1)) }

func (n *node) answers(q call, status int) error { return answers(n.client, q, status) }

func answers(c *console, q call, status int) error {
	a, err := c.try(q)
	switch {
	case err != nil:
		return err
	case a.Error != "":
		return fmt.Errorf("%s: %s", q.URL, a.Error)
	case a.Status != status:
		return fmt.Errorf("%s: status %d (%s), want %d", q.URL, a.Status, a.Header.Get("X-Sluice-Reason"), status)
	}
	return nil
}

// patience is far above what anything takes on a busy machine.
const patience = 20 * time.Second

// within repeats try until it succeeds.
func within(try func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("even after %s: %w", patience, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// eventually is within for tests.
func eventually(t *testing.T, try func() error) {
	t.Helper()
	if err := within(try); err != nil {
		t.Fatal(err)
	}
}

// sluice runs the CLI, which may end with status 3.
func (n *node) sluice(t *testing.T, args ...string) string {
	t.Helper()
	text, err := n.Sluice(n.ctx, args...)
	if err != nil && exitCode(err) != 3 {
		t.Fatal(err)
	}
	return text
}

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

// read is sluice with -o json, into v.
func (n *node) read(t *testing.T, v any, args ...string) {
	t.Helper()
	text := n.sluice(t, append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("sluice %s printed %q: %v", strings.Join(args, " "), text, err)
	}
}

// vip returns a service's address of a family.
func (n *node) vip(t *testing.T, service string, six bool) netip.Addr {
	t.Helper()
	var list []struct{ VIPs []netip.Addr }
	n.read(t, &list, "service", "list", service)
	for _, s := range list {
		for _, a := range s.VIPs {
			if a.Is6() == six {
				return a
			}
		}
	}
	t.Fatalf("%s has no such address: %+v", service, list)
	return netip.Addr{}
}

// record is what tests read of a flow.
type record struct {
	Type, Verdict, Reason, Protocol string
	Source, Destination             struct {
		Address           netip.AddrPort
		Workload, Service string
	}
	Original netip.AddrPort
	HTTP     struct {
		Method, Path, Proto, Route string
		Status                     int
	}
	DNS struct{ Query, RCode string }
}

func (n *node) observe(t *testing.T, args ...string) []record {
	t.Helper()
	text := n.sluice(t, append([]string{"observe", "-o", "jsonl"}, args...)...)
	var out []record
	for line := range strings.Lines(text) {
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("sluice observe printed %q: %v", line, err)
		}
		out = append(out, r)
	}
	return out
}

// flow waits for a flow among those that the arguments select.
func (n *node) flow(t *testing.T, want func(record) bool, args ...string) record {
	t.Helper()
	var found record
	eventually(t, func() error {
		all := n.observe(t, append(args, "--last", "200")...)
		i := slices.IndexFunc(all, want)
		if i < 0 {
			return fmt.Errorf("no such flow among those of observe %s: %+v", strings.Join(args, " "), all)
		}
		found = all[i]
		return nil
	})
	return found
}

// pid returns the number of one of the node's processes.
func (n *node) pid(t *testing.T, process string) int {
	t.Helper()
	var st struct {
		Processes []struct {
			Process string
			Status  struct{ Component struct{ PID int } }
		}
	}
	n.read(t, &st, "status")
	for _, p := range st.Processes {
		if p.Process == process && p.Status.Component.PID > 0 {
			return p.Status.Component.PID
		}
	}
	t.Fatalf("sluice status has no %s: %+v", process, st)
	return 0
}

// write writes a file of the configuration for the time of the test.
func (n *node) write(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(n.ConfigDir(), name)
	// In one step, as editors do: the folder is watched.
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
}

// links returns the names of the machine's own links. The node's are not among them.
func links() ([]string, error) {
	list, err := net.Interfaces()
	var names []string
	for _, l := range list {
		names = append(names, l.Name)
	}
	slices.Sort(names)
	return names, err
}

// goneWithout says what a lab of the name left.
func goneWithout(linksBefore []string, name string) error {
	var errs []error
	// Tests of other packages may make links for a moment.
	errs = append(errs, within(func() error {
		after, err := links()
		if err == nil && !slices.Equal(linksBefore, after) {
			err = fmt.Errorf("links were %v and are %v", linksBefore, after)
		}
		return err
	}))
	dir := "/run/sluice-" + name
	if _, err := os.Stat(dir); err == nil {
		errs = append(errs, fmt.Errorf("folder %s", dir))
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) > 2 && (f[1] == dir || strings.HasPrefix(f[1], dir+"/")) {
			errs = append(errs, fmt.Errorf("mount %s", f[1]))
		}
		if len(f) > 2 && f[2] == "cgroup2" {
			if _, err := os.Stat(filepath.Join(f[1], "sluice-"+name)); err == nil {
				errs = append(errs, fmt.Errorf("cgroup sluice-%s", name))
			}
		}
	}
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, path := range commands {
		text, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(text), dir+"/") {
			errs = append(errs, fmt.Errorf("process %s: %s", path, strings.ReplaceAll(string(text), "\x00", " ")))
		}
	}
	return errors.Join(errs...)
}
