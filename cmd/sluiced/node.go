package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/admin"
	"github.com/sluice-mesh/sluice/dataplane/probe"
	"github.com/sluice-mesh/sluice/gateway"
	"github.com/sluice-mesh/sluice/gateway/graph"
	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/kube/readiness"
	"github.com/sluice-mesh/sluice/kube/status"
	"github.com/sluice-mesh/sluice/kube/watch"
	"github.com/sluice-mesh/sluice/l7proxy/healthcheck"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/xds/server"
)

func nodeCommand() *cobra.Command {
	s := defaultSettings()
	var file string
	cmd := &cobra.Command{
		Use:   "node --config DIR",
		Short: "Run a standalone node on a folder of Kubernetes YAML",
		Long: `node runs a whole node without Kubernetes: the control plane, which watches a
folder of Kubernetes YAML, and as its children the agent and the proxy.

Workloads join with "sluice run". See what it does with "sluice status".`,
		Example: "  sluiced node --config examples/bookshop/config --gateway-addresses 198.51.100.0/24",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := load(cmd, file); err != nil {
				return err
			}
			if s.Config == "" {
				return fmt.Errorf("%w: --config: name the folder of YAML files", errUsage)
			}
			if info, err := os.Stat(s.Config); err != nil || !info.IsDir() {
				return fmt.Errorf("%w: --config %s: no such folder", errUsage, s.Config)
			}
			if err := s.validate(); err != nil {
				return err
			}
			return runNode(cmd.Context(), &s)
		},
	}
	cmd.Flags().StringVar(&s.Config, "config", "", "folder of Kubernetes YAML, watched")
	cmd.Flags().StringVar(&file, "settings", "", "YAML file of settings")
	s.flags(cmd.Flags())
	return cmd
}

// node is the control plane of a standalone node.
type node struct {
	s      *settings
	logger *slog.Logger
	server *server.Server
	writer *status.Writer

	mu         sync.Mutex // guards what follows: the translator and what it was given
	translator *gateway.Translator
	objects    map[kube.Key]kube.Object
	statuses   map[kube.Key]kube.Status
	files      map[string]kube.File
	refusals   map[mesh.Ref]bool // resources whose newest version a client refused
	synced     bool
}

func runNode(ctx context.Context, s *settings) error {
	logger, levels, err := s.logger("node")
	if err != nil {
		return err
	}
	if err := checkMachine(probe.Config{}); err != nil {
		return err
	}
	if err := prepare(s); err != nil {
		return err
	}
	component := func(name string) *slog.Logger { return logger.With("component", name) }
	n := &node{
		s: s, logger: logger,
		objects: map[kube.Key]kube.Object{}, statuses: map[kube.Key]kube.Status{}, files: map[string]kube.File{}, refusals: map[mesh.Ref]bool{},
	}
	n.translator, err = gateway.New(gateway.Config{
		GatewayPools: s.GatewayAddresses, StateDir: s.State, Node: s.NodeName, Zone: s.Zone, Logger: logger,
	})
	if err != nil {
		return err
	}
	if n.writer, err = status.New(filepath.Join(s.State, "status"), gateway.DefaultController); err != nil {
		return err
	}
	n.server, err = server.New(server.Config{
		Logger: logger, Registerer: prometheus.NewRegistry(), ProxyUID: uint32(s.ProxyUser),
		OnAck: n.acked, OnNack: n.refused,
	})
	if err != nil {
		return err
	}
	source, err := watch.New(watch.Config{
		Directories: []string{s.Config}, Running: s.podsDir(), ServiceCIDRs: s.ServiceCIDRs, StateDir: s.State, Logger: logger,
	})
	if err != nil {
		return err
	}
	xdsListener, err := server.Listen(s.xdsSocket(), s.ProxyUser)
	if err != nil {
		return err
	}
	adminServer, err := admin.New(admin.Config{
		Process: admin.ProcessNode, Path: admin.SocketPath(s.RunDir, admin.ProcessNode), Levels: levels, Logger: component("admin"),
	}, n)
	if err != nil {
		return err
	}

	g, gctx := errgroup.WithContext(ctx)
	// There is no kubelet that would make the Pods' readiness probes.
	prober := readiness.New(healthcheck.Check, n.changed)
	defer prober.Close()
	g.Go(func() error { return source.Run(gctx, prober.Changed) })
	g.Go(func() error { return adminServer.Run(gctx) })
	// The agent outlives the proxy at the end, so that connections that drain are
	// seen to their end.
	agentCtx, stopAgent := context.WithCancel(context.WithoutCancel(gctx))
	defer stopAgent()
	g.Go(func() error { return n.server.Serve(agentCtx, xdsListener) })
	g.Go(func() error { return supervise(agentCtx, component("supervisor"), "agent", s) })
	g.Go(func() error {
		defer stopAgent()
		return supervise(gctx, component("supervisor"), "proxy", s)
	})
	return g.Wait()
}

// prepare makes the folders that the node's processes meet in, and moves this
// process (and so its children) into the node's own cgroup.
func prepare(s *settings) error {
	for path, mode := range map[string]os.FileMode{
		s.State: 0o711, s.proxyState(): 0o700, s.RunDir: 0o755, s.netnsDir(): 0o700, s.podsDir(): 0o700,
		s.Cgroup: 0o755, s.nodeCgroup(): 0o755, s.workloadsCgroup(): 0o755,
	} {
		if err := errors.Join(os.MkdirAll(path, mode), os.Chmod(path, mode)); err != nil {
			return fmt.Errorf("make the node's folders: %w", err)
		}
	}
	if err := os.Chown(s.proxyState(), s.ProxyUser, s.ProxyUser); err != nil {
		return fmt.Errorf("give the proxy its state folder: %w", err)
	}
	if err := os.WriteFile(filepath.Join(s.nodeCgroup(), "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return fmt.Errorf("enter the cgroup %s: %w", s.nodeCgroup(), err)
	}
	if err := mountBPFFS(s.BPFFS); err != nil {
		return err
	}
	return s.write()
}

// bpffsMagic is BPF_FS_MAGIC of linux/magic.h.
const bpffsMagic = 0xcafe4a11

// mountBPFFS mounts a bpffs at path unless there is one.
func mountBPFFS(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make the mount point of the bpffs: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if st.Type == bpffsMagic {
		return nil
	}
	if err := unix.Mount("bpf", path, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount a bpffs on %s: %w", path, err)
	}
	return nil
}

// changed takes a change of the objects to the nodes and to the objects' statuses.
func (n *node) changed(c kube.Change) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, o := range c.Upserts {
		n.objects[kube.KeyOf(o)] = o
	}
	for _, k := range c.Deletes {
		delete(n.objects, k)
	}
	for _, f := range c.Files {
		if len(f.Problems) == 0 {
			delete(n.files, f.Path)
			continue
		}
		n.files[f.Path] = f
	}
	if err := n.writer.WriteFiles(c.Files); err != nil {
		n.logger.Error("the list of wrong files could not be written", "error", err)
	}
	result := n.translator.Apply(c)
	if err := n.server.Publish(result.Delta); err != nil {
		n.logger.Error("some resources keep their last version", "error", err)
	}
	n.note(result)
	if !n.synced {
		n.synced = true
		keep := map[kube.Key]bool{}
		for k := range n.statuses {
			keep[k] = true
		}
		if err := n.writer.Prune(keep); err != nil {
			n.logger.Error("statuses of an earlier run stay", "error", err)
		}
	}
}

// note keeps and writes the statuses of a result. The caller holds mu.
func (n *node) note(r gateway.Result) {
	for _, st := range r.Statuses {
		n.statuses[st.Key] = st
	}
	for _, k := range r.Gone {
		delete(n.statuses, k)
	}
	if err := n.writer.Write(r.Statuses, r.Gone); err != nil {
		n.logger.Error("a status could not be written", "error", err)
	}
}

// refused puts a node's refusal into the status of the object that is to blame.
func (n *node) refused(c server.Client, ref mesh.Ref, version, text string) {
	n.logger.Warn("a resource was refused", "by", c.Role, "kind", ref.Kind, "key", ref.Key, "version", version, "why", text)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refusals[ref] = true
	n.note(n.translator.Rejected(ref, text))
}

func (n *node) acked(_ server.Client, ref mesh.Ref, _ string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refusals[ref] {
		delete(n.refusals, ref)
		n.note(n.translator.Rejected(ref, ""))
	}
}

// supervise keeps a child process running until ctx ends, then ends it in order.
func supervise(ctx context.Context, logger *slog.Logger, process string, s *settings) error {
	// The child's death signal is bound to the thread that starts it.
	runtime.LockOSThread()
	const minWait, maxWait, healthy = 100 * time.Millisecond, 5 * time.Second, 10 * time.Second
	wait := minWait
	for ctx.Err() == nil {
		cmd := exec.CommandContext(ctx, "/proc/self/exe", process, "--settings", s.settingsFile())
		cmd.Args[0] = "sluiced"
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
		cmd.WaitDelay = s.Drain + 10*time.Second
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM, Setpgid: true}
		began := time.Now()
		err := cmd.Run()
		if ctx.Err() != nil {
			return nil
		}
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == 2 {
			return fmt.Errorf("%w: the %s could not start", errUsage, process)
		}
		if time.Since(began) > healthy {
			wait = minWait
		}
		logger.Error("a process ended and is started again", "process", process, "error", err, "in", wait)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, maxWait)
	}
	return nil
}

// NodeView of the admin socket.

// Config returns the settings.
func (n *node) Config() any { return n.s }

// Status says whether the configuration is read and right.
func (n *node) Status() admin.Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	st := admin.Status{Component: admin.Component{OK: n.synced}}
	if !n.synced {
		st.Component.Detail = "reading " + n.s.Config
	}
	var wrong []string
	for _, f := range n.files {
		for _, p := range f.Problems {
			if !p.Warning {
				wrong = append(wrong, p.Error())
			}
		}
	}
	if len(wrong) > 0 {
		slices.Sort(wrong)
		st.Component.OK, st.Component.Detail = false, strings.Join(wrong, "; ")
	}
	counts := map[kube.Kind]int{}
	for k := range n.objects {
		counts[k.Kind]++
	}
	for _, kind := range kube.Kinds {
		if counts[kind] > 0 {
			st.Counts = append(st.Counts, admin.Count{Name: string(kind), Value: counts[kind]})
		}
	}
	st.XDS = n.XDS()
	return st
}

// XDS lists what each client has of each type.
func (n *node) XDS() []admin.XDSType {
	var out []admin.XDSType
	for _, c := range n.server.Status().Clients {
		for _, k := range c.Kinds {
			t := admin.XDSType{Client: c.Client.String(), Type: string(k.Kind), Resources: k.Sent, Pending: k.Pending, Changed: c.Since}
			for _, r := range k.Rejected {
				t.Nacked, t.Error = r.Key+"@"+r.Version, r.Text
			}
			out = append(out, t)
		}
	}
	return out
}

// sorted returns the keys of a kind, in order. The caller holds mu.
func (n *node) sorted(kinds ...kube.Kind) []kube.Key {
	var keys []kube.Key
	for k := range n.objects {
		if slices.Contains(kinds, k.Kind) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, kube.Key.Compare)
	return keys
}

// Routes lists the routes with the conditions of each parent.
func (n *node) Routes() []admin.Route {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := []admin.Route{}
	for _, k := range n.sorted(kube.RouteKinds...) {
		r := admin.Route{Kind: string(k.Kind), Name: mesh.Name{Namespace: k.Namespace, Name: k.Name}}
		switch o := n.objects[k].(type) {
		case *gatewayv1.HTTPRoute:
			r.Rules = len(o.Spec.Rules)
			for _, h := range o.Spec.Hostnames {
				r.Hostnames = append(r.Hostnames, string(h))
			}
		case *gatewayv1.GRPCRoute:
			r.Rules = len(o.Spec.Rules)
			for _, h := range o.Spec.Hostnames {
				r.Hostnames = append(r.Hostnames, string(h))
			}
		case *gatewayv1.TLSRoute:
			r.Rules = len(o.Spec.Rules)
			for _, h := range o.Spec.Hostnames {
				r.Hostnames = append(r.Hostnames, string(h))
			}
		case *gatewayv1.TCPRoute:
			r.Rules = len(o.Spec.Rules)
		case *gatewayv1.UDPRoute:
			r.Rules = len(o.Spec.Rules)
		}
		if st := n.statuses[k].Route; st != nil {
			for _, p := range st.Parents {
				r.Parents = append(r.Parents, admin.RouteParent{Ref: parentRef(p.ParentRef, k.Namespace), Conditions: conditions(p.Conditions)})
			}
		}
		out = append(out, r)
	}
	return out
}

func parentRef(p gatewayv1.ParentReference, namespace string) string {
	kind := "Gateway"
	if p.Kind != nil {
		kind = string(*p.Kind)
	}
	if p.Namespace != nil {
		namespace = string(*p.Namespace)
	}
	ref := kind + "/" + namespace + "/" + string(p.Name)
	if p.SectionName != nil {
		ref += "/" + string(*p.SectionName)
	}
	if p.Port != nil {
		ref += ":" + strconv.Itoa(int(*p.Port))
	}
	return ref
}

// listenerSets returns the ListenerSets by their Gateway. The caller holds mu.
func (n *node) listenerSets() map[mesh.Name][]admin.ListenerSet {
	out := map[mesh.Name][]admin.ListenerSet{}
	for _, k := range n.sorted(kube.KindListenerSet) {
		o, ok := n.objects[k].(*gatewayv1.ListenerSet)
		if !ok {
			continue
		}
		s := admin.ListenerSet{Name: mesh.Name{Namespace: k.Namespace, Name: k.Name}, Listeners: []admin.GatewayListener{}}
		st := n.statuses[k].ListenerSet
		if st != nil {
			s.Conditions = conditions(st.Conditions)
		}
		for _, l := range o.Spec.Listeners {
			gl := listener(l.Name, l.Port, l.Protocol, l.Hostname)
			if st != nil {
				for _, ls := range st.Listeners {
					if ls.Name == l.Name {
						gl.AttachedRoutes, gl.Conditions = int(ls.AttachedRoutes), conditions(ls.Conditions)
					}
				}
			}
			s.Listeners = append(s.Listeners, gl)
		}
		parent := graph.SetParent(o)
		out[parent] = append(out[parent], s)
	}
	return out
}

func listener(name gatewayv1.SectionName, port gatewayv1.PortNumber, protocol gatewayv1.ProtocolType, hostname *gatewayv1.Hostname) admin.GatewayListener {
	l := admin.GatewayListener{Name: string(name), Port: uint16(port), Protocol: string(protocol)}
	if hostname != nil {
		l.Hostname = string(*hostname)
	}
	return l
}

// Gateways lists the Gateways with the state of each listener.
func (n *node) Gateways() []admin.Gateway {
	n.mu.Lock()
	defer n.mu.Unlock()
	sets := n.listenerSets()
	out := []admin.Gateway{}
	for _, k := range n.sorted(kube.KindGateway) {
		o, ok := n.objects[k].(*gatewayv1.Gateway)
		if !ok {
			continue
		}
		g := admin.Gateway{Name: mesh.Name{Namespace: k.Namespace, Name: k.Name}, Class: string(o.Spec.GatewayClassName)}
		st := n.statuses[k].Gateway
		if st != nil {
			g.Conditions = conditions(st.Conditions)
			for _, a := range st.Addresses {
				g.Addresses = append(g.Addresses, a.Value)
			}
		}
		g.Listeners = []admin.GatewayListener{}
		for _, l := range o.Spec.Listeners {
			gl := listener(l.Name, l.Port, l.Protocol, l.Hostname)
			if st != nil {
				for _, ls := range st.Listeners {
					if ls.Name == l.Name {
						gl.AttachedRoutes, gl.Conditions = int(ls.AttachedRoutes), conditions(ls.Conditions)
					}
				}
			}
			g.Listeners = append(g.Listeners, gl)
		}
		g.ListenerSets = sets[g.Name]
		out = append(out, g)
	}
	return out
}
