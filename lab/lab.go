// Package lab runs a standalone node the way a person would: `sluiced node` in a
// network namespace of its own, a second namespace for the world outside it, and
// programs inside either or as workloads. It uses public commands only; the demo
// and the benchmarks are built on it.
//
// Any goroutine may use a Lab; Up and Down are called once. Children are started
// from one thread (thread.go) and end with the process. What a lab made is gone
// after Down, and what a killed one left is gone after the next New.
package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The addresses between the node and the outside world, of ranges that are kept
// for documentation (RFC 5737, RFC 3849), and of what is behind the node.
const (
	NodeAddress     = "203.0.113.1"
	OutsideAddress  = "203.0.113.2"
	GatewayCIDR     = "198.51.100.0/24"
	PodCIDR         = "10.77.0.0/16"
	NodeAddress6    = "2001:db8:1::1"
	OutsideAddress6 = "2001:db8:1::2"
	GatewayCIDR6    = "2001:db8:2::/112"
	PodCIDR6        = "fd77::/112"
)

// Namespace says where a command runs.
type Namespace int

// The namespaces.
const (
	Home    Namespace = iota // where the lab's own process is
	Node                     // the node's
	Outside                  // the world's
)

// Config of a Lab.
type Config struct {
	// Bin is the folder of sluice, sluiced and other programs.
	Bin string
	// Name tells labs apart: "sluice-NAME" is the cgroup and the folder below /run.
	Name string
	// NodeFlags are added to those of `sluiced node`.
	NodeFlags []string
	// Verbose shows commands and the node's log on standard error.
	Verbose bool
}

// Lab is a node, its outside and the programs that were started.
type Lab struct {
	cfg        Config
	dir        string
	cgroup     string
	namespaces [3]netns.NsHandle
	daemon     *Process

	mu        sync.Mutex
	processes []*Process // guarded by mu: those that run
}

// ErrMachine says that the machine lacks what a node needs.
var ErrMachine = errors.New("this machine cannot run a node")

// New removes what an earlier lab of the name left. An error that is ErrMachine has
// one line.
func New(ctx context.Context, cfg Config) (*Lab, error) {
	l := &Lab{cfg: cfg, dir: "/run/sluice-" + cfg.Name}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w: needs root, to make network namespaces and load BPF programs", ErrMachine)
	}
	root, err := cgroup2()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMachine, err)
	}
	l.cgroup = filepath.Join(root, "sluice-"+cfg.Name)
	if l.namespaces[Home], err = netns.Get(); err != nil {
		return nil, fmt.Errorf("%w: network namespaces: %w", ErrMachine, err)
	}
	if err := l.cleanup(); err != nil {
		return nil, err
	}
	if out, err := l.Command(ctx, Home, "sluiced", "probe").Output(); err != nil {
		text := strings.TrimSpace(out.Stderr)
		if text == "" {
			text = err.Error()
		}
		return nil, fmt.Errorf("%w: %s", ErrMachine, text)
	}
	return l, nil
}

// Dir returns the lab's own folder.
func (l *Lab) Dir() string { return l.dir }

// RunDir returns the node's run folder, for `sluice --run-dir`.
func (l *Lab) RunDir() string { return filepath.Join(l.dir, "run") }

// ConfigDir returns the folder of YAML that the node watches.
func (l *Lab) ConfigDir() string { return filepath.Join(l.dir, "config") }

// Cgroup returns the node's cgroup; its own processes are in Cgroup/node.
func (l *Lab) Cgroup() string { return l.cgroup }

// LogFile returns the path of the node's log.
func (l *Lab) LogFile() string { return filepath.Join(l.dir, "node.log") }

// Program returns the path of a program of the project.
func (l *Lab) Program(name string) string {
	path, err := filepath.Abs(filepath.Join(l.cfg.Bin, name))
	if err != nil {
		return filepath.Join(l.cfg.Bin, name)
	}
	return path
}

func (l *Lab) nodeFlags() []string {
	return []string{"--run-dir", l.RunDir(), "--state", filepath.Join(l.dir, "state"), "--cgroup", l.cgroup, "--bpffs", filepath.Join(l.dir, "bpf")}
}

// cleanup removes what a lab made, whether it is this one or an earlier one.
func (l *Lab) cleanup() error {
	out, err := l.Command(context.Background(), Home, "sluiced", append([]string{"cleanup"}, l.nodeFlags()...)...).Output()
	if err != nil {
		return fmt.Errorf("clean up: %w: %s", err, strings.TrimSpace(out.Stderr))
	}
	return os.RemoveAll(l.dir)
}

// cgroup2 returns where the cgroup v2 hierarchy is mounted.
func cgroup2() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1], nil
		}
	}
	return "", errors.New("needs a cgroup v2 hierarchy: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

// Up makes the namespaces, has prepare fill the folder of YAML, starts the node and
// returns when it says that it is ready.
func (l *Lab) Up(ctx context.Context, prepare func(config string) error) error {
	if err := os.MkdirAll(l.ConfigDir(), 0o755); err != nil {
		return err
	}
	if err := prepare(l.ConfigDir()); err != nil {
		return err
	}
	if err := onThread(l.makeNamespaces); err != nil {
		return fmt.Errorf("make network namespaces: %w", err)
	}
	log, err := os.Create(l.LogFile())
	if err != nil {
		return err
	}
	defer log.Close()
	args := append([]string{
		"node", "--config", l.ConfigDir(), "--gateway-addresses", GatewayCIDR + "," + GatewayCIDR6, "--pod-cidrs", PodCIDR + "," + PodCIDR6,
	}, l.nodeFlags()...)
	daemon := l.Command(ctx, Node, "sluiced", append(args, l.cfg.NodeFlags...)...)
	daemon.Stdout, daemon.Stderr = log, log
	if l.cfg.Verbose {
		both := io.MultiWriter(log, os.Stderr)
		daemon.Stdout, daemon.Stderr = both, both
	}
	if l.daemon, err = daemon.Start(); err != nil {
		return err
	}
	return l.WaitReady(ctx)
}

// readyLimit is far more than a node takes to start on a busy machine.
const readyLimit = 30 * time.Second

// WaitReady waits until every part of the node says that it works.
func (l *Lab) WaitReady(ctx context.Context) error {
	deadline := time.Now().Add(readyLimit)
	for {
		out, err := l.Command(ctx, Home, "sluice", "--run-dir", l.RunDir(), "status").Output()
		if err == nil {
			return nil
		}
		select {
		case <-l.daemon.Done:
			return fmt.Errorf("sluiced node ended: %w", l.daemon.Err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not ready after %s:\n%s%s", readyLimit, out.Stdout, out.Stderr)
		}
	}
}

// makeNamespaces makes the node's and the outside's network namespace and joins
// them with a veth pair. Neither has a name: they end with their processes.
func (l *Lab) makeNamespaces() error {
	defer netns.Set(l.namespaces[Home])
	var err error
	if l.namespaces[Node], err = netns.New(); err != nil {
		return err
	}
	if l.namespaces[Outside], err = netns.New(); err != nil {
		return err
	}
	node, err := netlink.NewHandleAt(l.namespaces[Node])
	if err != nil {
		return err
	}
	defer node.Close()
	outside, err := netlink.NewHandleAt(l.namespaces[Outside])
	if err != nil {
		return err
	}
	defer outside.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "world", PeerNamespace: netlink.NsFd(l.namespaces[Outside])}
	if err := node.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the link between them: %w", err)
	}
	if err := raise(node, "uplink", NodeAddress+"/24", NodeAddress6+"/64"); err != nil {
		return err
	}
	if err := raise(outside, "world", OutsideAddress+"/24", OutsideAddress6+"/64"); err != nil {
		return err
	}
	world, err := outside.LinkByName("world")
	if err != nil {
		return err
	}
	// The world reaches Gateways and answers workloads through the node.
	for prefix, via := range map[string]string{GatewayCIDR: NodeAddress, PodCIDR: NodeAddress, GatewayCIDR6: NodeAddress6, PodCIDR6: NodeAddress6} {
		dst, err := netlink.ParseIPNet(prefix)
		if err != nil {
			return err
		}
		if err := outside.RouteAdd(&netlink.Route{LinkIndex: world.Attrs().Index, Dst: dst, Gw: net.ParseIP(via)}); err != nil {
			return fmt.Errorf("route to %s: %w", prefix, err)
		}
	}
	return nil
}

// raise gives a link its addresses and sets it and lo up.
func raise(h *netlink.Handle, name string, addresses ...string) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	for _, address := range addresses {
		addr, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD // usable at once: nobody else is on the link
		}
		if err := h.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("give %s the address %s: %w", name, address, err)
		}
	}
	return errors.Join(h.LinkSetUp(lo), h.LinkSetUp(link))
}

// Down stops what was started and removes what was made; the error says what is left.
func (l *Lab) Down() error {
	l.mu.Lock()
	running := slices.Clone(l.processes)
	l.mu.Unlock()
	for _, p := range slices.Backward(running) {
		if p != l.daemon {
			p.Signal()
		}
	}
	for _, p := range running {
		if p != l.daemon {
			p.Stop()
		}
	}
	if l.daemon != nil {
		l.daemon.Stop()
	}
	var errs []error
	for _, ns := range l.namespaces[Node:] {
		if ns > 0 {
			errs = append(errs, ns.Close())
		}
	}
	errs = append(errs, l.cleanup())
	if _, err := os.Stat(l.cgroup); err == nil {
		errs = append(errs, fmt.Errorf("cgroup %s", l.cgroup))
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || bytes.Contains(mounts, []byte(l.dir)) {
		errs = append(errs, fmt.Errorf("mounts below %s", l.dir))
	}
	return errors.Join(errs...)
}

// LogTail returns the last lines of the node's log.
func (l *Lab) LogTail(lines int) string {
	text, err := os.ReadFile(l.LogFile())
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Command is a program that is to run in a namespace.
type Command struct {
	*exec.Cmd
	lab *Lab
	ns  Namespace
}

// Command returns a command. A program without a slash is one of the project's.
func (l *Lab) Command(ctx context.Context, ns Namespace, program string, args ...string) *Command {
	if !strings.Contains(program, "/") {
		program = l.Program(program)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 15 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM, Setpgid: true}
	if l.cfg.Verbose {
		fmt.Fprintln(os.Stderr, "+", filepath.Base(program), strings.Join(args, " "))
	}
	return &Command{Cmd: cmd, lab: l, ns: ns}
}

// Process is a started command.
type Process struct {
	cmd *Command
	// Done is closed when it has ended, with Err.
	Done chan struct{}
	Err  error
}

// Start starts the command; Down stops it if nobody did before.
func (c *Command) Start() (*Process, error) {
	err := onThread(func() error {
		if c.ns != Home {
			if err := netns.Set(c.lab.namespaces[c.ns]); err != nil {
				return err
			}
			defer netns.Set(c.lab.namespaces[Home])
		}
		return c.Cmd.Start()
	})
	if err != nil {
		return nil, err
	}
	l := c.lab
	p := &Process{cmd: c, Done: make(chan struct{})}
	l.mu.Lock()
	l.processes = append(l.processes, p)
	l.mu.Unlock()
	go func() {
		p.Err = c.Wait()
		l.mu.Lock()
		l.processes = slices.DeleteFunc(l.processes, func(other *Process) bool { return other == p })
		l.mu.Unlock()
		close(p.Done)
	}()
	return p, nil
}

// PID returns the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal asks the process to end.
func (p *Process) Signal() {
	select {
	case <-p.Done:
	default:
		// An error says that it has just ended.
		_ = p.cmd.Process.Signal(unix.SIGTERM)
	}
}

// Stop asks the process to end and waits until it has.
func (p *Process) Stop() {
	p.Signal()
	select {
	case <-p.Done:
	case <-time.After(15 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.Done
	}
}

// Output is what a command printed.
type Output struct{ Stdout, Stderr string }

// Output runs the command to its end.
func (c *Command) Output() (Output, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	p, err := c.Start()
	if err != nil {
		return Output{}, err
	}
	<-p.Done
	return Output{stdout.String(), stderr.String()}, p.Err
}

// Sluice runs a command of the CLI and returns what it printed.
func (l *Lab) Sluice(ctx context.Context, args ...string) (string, error) {
	out, err := l.Command(ctx, Home, "sluice", append([]string{"--run-dir", l.RunDir()}, args...)...).Output()
	if err != nil {
		return out.Stdout, fmt.Errorf("sluice %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(out.Stderr))
	}
	return out.Stdout, nil
}

// Workload returns a program of the project, or one by its path, as a workload:
// flags are those of `sluice run` besides the name.
func (l *Lab) Workload(ctx context.Context, namespace, name string, flags []string, program string, args ...string) *Command {
	if !strings.Contains(program, "/") {
		program = l.Program(program)
	}
	all := append([]string{"--run-dir", l.RunDir(), "run", "-n", namespace, "--name", name}, flags...)
	all = append(append(all, "--", program), args...)
	return l.Command(ctx, Home, "sluice", all...)
}
