package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// The addresses between the node and the outside world.
const (
	nodeAddress    = "203.0.113.1/24"
	outsideAddress = "203.0.113.2/24"
	gatewayCIDR    = "198.51.100.0/24"
	gatewayAddress = "198.51.100.10"
)

// lab is the node in its network namespace, the world outside of it in another,
// and the programs that run in them. Only the main goroutine uses it.
type lab struct {
	bin, manifests, dir string
	verbose             bool

	cgroup        string
	home          netns.NsHandle
	node, outside netns.NsHandle
	daemon        *process
	outsiders     []*process
	workloads     []*process
	shoppers      int
}

func (l *lab) run() string    { return filepath.Join(l.dir, "run") }
func (l *lab) config() string { return filepath.Join(l.dir, "config") }
func (l *lab) log() string    { return filepath.Join(l.dir, "node.log") }
func (l *lab) ca() string     { return filepath.Join(l.dir, "ca.pem") }

func (l *lab) program(name string) string { return filepath.Join(l.bin, name) }

// nodeFlags are the flags that the daemon's commands share.
func (l *lab) nodeFlags() []string {
	return []string{"--run-dir", l.run(), "--state", filepath.Join(l.dir, "state"), "--cgroup", l.cgroup, "--bpffs", filepath.Join(l.dir, "bpf")}
}

// preflight says in one line what the machine lacks, and removes what an earlier
// run left.
func (l *lab) preflight(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root, to make network namespaces and load BPF programs: run it with sudo")
	}
	root, err := cgroup2()
	if err != nil {
		return err
	}
	l.cgroup = filepath.Join(root, "sluice-demo")
	l.home, err = netns.Get()
	if err != nil {
		return fmt.Errorf("network namespaces: %w", err)
	}
	if err := l.cleanup(); err != nil {
		return err
	}
	if out, err := l.command(ctx, l.home, l.program("sluiced"), "probe").output(); err != nil {
		text := strings.TrimSpace(out.stderr)
		if text == "" {
			text = err.Error()
		}
		return errors.New(text)
	}
	return nil
}

// cleanup removes what a run made, whether it is this one's or an earlier one's.
func (l *lab) cleanup() error {
	out, err := l.command(context.Background(), l.home, l.program("sluiced"), append([]string{"cleanup"}, l.nodeFlags()...)...).output()
	if err != nil {
		return fmt.Errorf("clean up: %w: %s", err, strings.TrimSpace(out.stderr))
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

// up makes the namespaces, starts the node and the shop's programs.
func (l *lab) up(ctx context.Context) error {
	began := time.Now()
	if err := os.MkdirAll(l.config(), 0o755); err != nil {
		return err
	}
	if err := os.CopyFS(l.config(), os.DirFS(l.manifests)); err != nil {
		return fmt.Errorf("copy the manifests: %w", err)
	}
	secret, err := l.command(ctx, l.home, l.program("app"), "cert", "--secret", "shop-tls", "-n", "bookshop", "--ca", l.ca(), "shop.example").output()
	if err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	if err := os.WriteFile(filepath.Join(l.config(), "60-secret.yaml"), []byte(secret.stdout), 0o600); err != nil {
		return err
	}
	if err := l.makeNamespaces(); err != nil {
		return fmt.Errorf("make network namespaces: %w", err)
	}
	log, err := os.Create(l.log())
	if err != nil {
		return err
	}
	defer log.Close()
	daemon := l.command(ctx, l.node, l.program("sluiced"), append([]string{
		"node", "--config", l.config(), "--gateway-addresses", gatewayCIDR, "--log-level", "info",
	}, l.nodeFlags()...)...)
	daemon.Stdout, daemon.Stderr = log, log
	if l.verbose {
		daemon.Stdout, daemon.Stderr = io.MultiWriter(log, os.Stderr), io.MultiWriter(log, os.Stderr)
	}
	if l.daemon, err = daemon.start(); err != nil {
		return err
	}
	if err := l.waitReady(ctx); err != nil {
		return err
	}
	started := time.Since(began)
	bank := l.command(ctx, l.outside, l.program("app"), "serve", "--name=bank", "--tcp="+strings.Split(outsideAddress, "/")[0]+":9000")
	p, err := bank.start()
	if err != nil {
		return err
	}
	l.outsiders = append(l.outsiders, p)
	pods, err := l.pods()
	if err != nil {
		return err
	}
	for i := range pods {
		if err := l.startPod(ctx, &pods[i]); err != nil {
			return err
		}
	}
	fmt.Printf("A node in a network namespace of its own started in %.1f s; %d workloads in theirs %.1f s later.\n",
		started.Seconds(), len(pods), (time.Since(began) - started).Seconds())
	return nil
}

// waitReady waits until every part of the node says that it works.
func (l *lab) waitReady(ctx context.Context) error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		out, err := l.command(ctx, l.home, l.program("sluice"), "--run-dir", l.run(), "status").output()
		if err == nil {
			return nil
		}
		select {
		case <-l.daemon.done:
			return fmt.Errorf("sluiced node ended: %w", l.daemon.err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not ready after 30 s:\n%s%s", out.stdout, out.stderr)
		}
	}
}

// makeNamespaces makes the node's and the outside's network namespace and joins
// them with a veth pair. Neither has a name: they end with their processes.
func (l *lab) makeNamespaces() error {
	defer netns.Set(l.home)
	var err error
	if l.node, err = netns.New(); err != nil {
		return err
	}
	if l.outside, err = netns.New(); err != nil {
		return err
	}
	node, err := netlink.NewHandleAt(l.node)
	if err != nil {
		return err
	}
	defer node.Close()
	outside, err := netlink.NewHandleAt(l.outside)
	if err != nil {
		return err
	}
	defer outside.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "world", PeerNamespace: netlink.NsFd(l.outside)}
	if err := node.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the link between them: %w", err)
	}
	if err := raise(node, "uplink", nodeAddress); err != nil {
		return err
	}
	if err := raise(outside, "world", outsideAddress); err != nil {
		return err
	}
	// The world reaches the gateways' addresses through the node.
	world, err := outside.LinkByName("world")
	if err != nil {
		return err
	}
	pool, err := netlink.ParseIPNet(gatewayCIDR)
	if err != nil {
		return err
	}
	via, err := netlink.ParseIPNet(nodeAddress)
	if err != nil {
		return err
	}
	if err := outside.RouteAdd(&netlink.Route{LinkIndex: world.Attrs().Index, Dst: pool, Gw: via.IP}); err != nil {
		return err
	}
	// And the workloads', for the answers of the bank.
	pods, err := netlink.ParseIPNet("10.77.0.0/16")
	if err != nil {
		return err
	}
	return outside.RouteAdd(&netlink.Route{LinkIndex: world.Attrs().Index, Dst: pods, Gw: via.IP})
}

func raise(h *netlink.Handle, name, address string) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	if err := h.AddrAdd(link, addr); err != nil {
		return err
	}
	return errors.Join(h.LinkSetUp(lo), h.LinkSetUp(link))
}

// pods returns the Pods of the manifests, in the order of files.
func (l *lab) pods() ([]corev1.Pod, error) {
	files, err := filepath.Glob(filepath.Join(l.config(), "*.yaml"))
	if err != nil {
		return nil, err
	}
	var pods []corev1.Pod
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for doc := range bytes.SplitSeq(text, []byte("\n---\n")) {
			var pod corev1.Pod
			if err := yaml.Unmarshal(doc, &pod); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			if pod.Kind == "Pod" {
				pods = append(pods, pod)
			}
		}
	}
	return pods, nil
}

// startPod does with `sluice run` what a kubelet does with a Pod.
func (l *lab) startPod(ctx context.Context, pod *corev1.Pod) error {
	args := []string{"--run-dir", l.run(), "run", "-n", pod.Namespace, "--name", pod.Name, "--service-account", pod.Spec.ServiceAccountName, "--user", "65534:65534"}
	for k, v := range pod.Labels {
		args = append(args, "--label", k+"="+v)
	}
	c := pod.Spec.Containers[0]
	for _, port := range c.Ports {
		spec := port.Name + "=" + strconv.Itoa(int(port.ContainerPort))
		if port.Protocol == corev1.ProtocolUDP {
			spec += "/udp"
		}
		args = append(args, "--port", spec)
	}
	args = append(args, "--", l.program("app"))
	args = append(args, c.Command[1:]...)
	p, err := l.command(ctx, l.home, l.program("sluice"), args...).start()
	if err != nil {
		return err
	}
	l.workloads = append(l.workloads, p)
	return nil
}

// down stops everything and reports what is left.
func (l *lab) down() error {
	var errs []error
	for _, p := range append(l.workloads, l.outsiders...) {
		p.stop()
	}
	if l.daemon != nil {
		l.daemon.stop()
	}
	for _, ns := range []netns.NsHandle{l.node, l.outside} {
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

func (l *lab) showLog() {
	text, err := os.ReadFile(l.log())
	if err != nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	fmt.Printf("\nThe node's last words (%s):\n", l.log())
	for _, line := range lines[max(0, len(lines)-30):] {
		fmt.Println("   ", line)
	}
}

// command is a program that is to run in a network namespace.
type command struct {
	*exec.Cmd
	lab *lab
	ns  netns.NsHandle
}

func (l *lab) command(ctx context.Context, ns netns.NsHandle, path string, args ...string) *command {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 15 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM, Setpgid: true}
	if l.verbose {
		fmt.Fprintln(os.Stderr, "+", filepath.Base(path), strings.Join(args, " "))
	}
	return &command{Cmd: cmd, lab: l, ns: ns}
}

// process is a started command; done closes when it has ended, with err.
type process struct {
	cmd  *command
	done chan struct{}
	err  error
}

func (c *command) start() (*process, error) {
	if c.ns != c.lab.home {
		if err := netns.Set(c.ns); err != nil {
			return nil, err
		}
		defer netns.Set(c.lab.home)
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: c, done: make(chan struct{})}
	go func() {
		p.err = c.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) stop() {
	select {
	case <-p.done:
		return
	default:
	}
	// An error says that it has just ended.
	_ = p.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(15 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// output is what a command printed.
type output struct{ stdout, stderr string }

func (c *command) output() (output, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	p, err := c.start()
	if err != nil {
		return output{}, err
	}
	<-p.done
	return output{stdout.String(), stderr.String()}, p.err
}

// shop runs a client of the bookshop as a workload of its own, and returns its
// name and what it counted.
func (l *lab) shop(ctx context.Context, args ...string) (string, *tally, error) {
	name, cmd := l.shopper(ctx, args...)
	out, err := cmd.output()
	if err != nil {
		return name, nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(out.stderr))
	}
	t, err := parseTally(out.stdout)
	return name, t, err
}

func (l *lab) shopper(ctx context.Context, args ...string) (string, *command) {
	l.shoppers++
	name := fmt.Sprintf("shopper-%d", l.shoppers)
	return name, l.command(ctx, l.home, l.program("sluice"), append([]string{
		"--run-dir", l.run(), "run", "-n", "bookshop", "--name", name, "--service-account", "shopper",
		"--label", "app=shopper", "--user", "65534:65534", "--", l.program("app"),
	}, args...)...)
}

// sluice runs a command of the CLI and returns what it printed.
func (l *lab) sluice(ctx context.Context, args ...string) (string, error) {
	out, err := l.command(ctx, l.home, l.program("sluice"), append([]string{"--run-dir", l.run()}, args...)...).output()
	if err != nil {
		return out.stdout, fmt.Errorf("sluice %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(out.stderr))
	}
	return out.stdout, nil
}

// tally is what the bookshop's clients print.
type tally struct {
	Requests            int
	ServedBy            map[string]int `json:"served_by"`
	Status, Errors      map[string]int
	Last, Local, Remote string
	Location            string
	Headers             map[string]string
}

func parseTally(text string) (*tally, error) {
	t := new(tally)
	if err := json.Unmarshal([]byte(text), t); err != nil {
		return nil, fmt.Errorf("the client printed %q: %w", text, err)
	}
	return t, nil
}

// all says whether every request got the status.
func (t *tally) all(status string) error {
	if t.Requests == 0 || t.Status[status] != t.Requests {
		return fmt.Errorf("%d requests, by status %v, errors %v; want all %s", t.Requests, t.Status, t.Errors, status)
	}
	return nil
}
