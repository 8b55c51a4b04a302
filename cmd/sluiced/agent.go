package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/admin"
	"github.com/sluice-mesh/sluice/admin/version"
	"github.com/sluice-mesh/sluice/dataplane/destroy"
	"github.com/sluice-mesh/sluice/dataplane/events"
	"github.com/sluice-mesh/sluice/dataplane/forward"
	"github.com/sluice-mesh/sluice/dataplane/gatewayaddr"
	"github.com/sluice-mesh/sluice/dataplane/loader"
	"github.com/sluice-mesh/sluice/dataplane/netns"
	"github.com/sluice-mesh/sluice/dataplane/probe"
	"github.com/sluice-mesh/sluice/dataplane/service"
	"github.com/sluice-mesh/sluice/dataplane/steer"
	"github.com/sluice-mesh/sluice/dataplane/workload"
	"github.com/sluice-mesh/sluice/handoff"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/mesh/store"
	"github.com/sluice-mesh/sluice/observe/feed"
	"github.com/sluice-mesh/sluice/observe/flow"
	"github.com/sluice-mesh/sluice/observe/metrics"
	"github.com/sluice-mesh/sluice/observe/ring"
	"github.com/sluice-mesh/sluice/xds/client"
)

func agentCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the node's agent: kernel programs, workloads, flows (started by sluiced node)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := os.Open(file)
			if err != nil {
				return fmt.Errorf("%w: --settings: %w", errUsage, err)
			}
			defer f.Close()
			s, err := readSettings(f)
			if err != nil {
				return err
			}
			return runAgent(cmd.Context(), s)
		},
	}
	cmd.Flags().StringVar(&file, "settings", "/run/sluice/settings.json", "what sluiced node wrote")
	return cmd
}

// agent is the parts of the agent process, in the order in which they are made.
type agent struct {
	s        *settings
	logger   *slog.Logger
	reg      *prometheus.Registry
	store    *store.Store
	ring     *ring.Ring
	datapath *loader.Datapath
	steer    *steer.Table
	services *service.Table
	forward  *forward.Table
	destroy  *destroy.Destroyer // nil: the kernel cannot
	handoff  *handoff.Server
	gateways *gatewayaddr.Table
	registry *workload.Registry
	xds      *client.Client
	flows    metrics.Sink
	names    localNames

	// proxied is closed when a proxy has said what it holds, or has had its time.
	proxied     chan struct{}
	proxiedOnce sync.Once
	// attached is closed when the kernel programs are in force with full tables.
	attached chan struct{}
}

// proxyWait is how long a new agent waits for a proxy to give listening sockets
// back before it makes them anew.
const proxyWait = 3 * time.Second

func runAgent(ctx context.Context, s *settings) error {
	logger, levels, err := s.logger("agent")
	if err != nil {
		return err
	}
	if err := checkMachine(probe.Config{BPFFS: s.BPFFS}); err != nil {
		return err
	}
	a := &agent{
		s: s, logger: logger, reg: prometheus.NewRegistry(), store: store.New(),
		proxied: make(chan struct{}), attached: make(chan struct{}),
	}
	component := func(name string) *slog.Logger { return logger.With("component", name) }
	if a.ring, err = ring.New(ring.DefaultSize); err != nil {
		return err
	}
	counted, err := metrics.NewFlows(a.reg)
	if err != nil {
		return err
	}
	if err := errors.Join(metrics.RegisterRing(a.reg, a.ring), registerBuild(a.reg, "agent")); err != nil {
		return err
	}
	a.flows = metrics.Sink{Ring: a.ring, Flows: counted}

	// The kernel side.
	a.datapath, err = loader.Load(loader.Config{
		WorkloadsCgroup: s.workloadsCgroup(), NodeCgroup: s.nodeCgroup(), Dir: s.pins(),
		Sizes: loader.DefaultSizes(), Logger: component("loader"),
	})
	if err != nil {
		return err
	}
	defer a.datapath.Close()
	if a.steer, err = steer.New(steer.Config{Datapath: a.datapath, Logger: component("steer")}); err != nil {
		return err
	}
	if a.services, err = service.New(service.Config{Datapath: a.datapath, DNS: s.dns(), Node: s.NodeName, Gone: a.endpointsGone,
		Alive:      func(addr netip.Addr) bool { return a.store.WorkloadByAddress(addr) != nil },
		Registerer: a.reg, Logger: component("service")}); err != nil {
		return err
	}
	reader, err := events.New(events.Config{
		Datapath: a.datapath, Node: s.NodeName, Workload: a.names.index, Address: a.workloadByAddress,
		Service: a.frontendName, Sink: func(f *flow.Flow) { a.flows.Add(f) }, Logger: component("events"),
	})
	if err != nil {
		return err
	}
	node, err := netns.Current()
	if err != nil {
		return err
	}
	defer node.Close()
	if err := a.steer.AttachNode(node.FD()); err != nil {
		return err
	}
	if a.forward, err = forward.New(forward.Config{
		Datapath: a.datapath, Netns: node, ThroughStack: s.NodeStack, Registerer: a.reg, Logger: component("forward"),
	}); err != nil {
		return err
	}

	if a.destroy, err = destroy.New(destroy.Config{
		Datapath: a.datapath, Node: s.NodeName, Namespaces: a.namespaces, Service: a.frontendName,
		Sink: func(f *flow.Flow) { a.flows.Add(f) }, Logger: component("destroy"),
	}); err != nil {
		logger.Warn("connections to endpoints that are gone are not ended", "error", err)
	}

	// Workloads and gateways, and the proxy that serves them.
	a.handoff, err = handoff.NewServer(handoff.ServerConfig{
		Path: s.handoffSocket(), ProxyUID: s.ProxyUser,
		Origins: a.steer.OriginMapFD(), Heartbeat: a.steer.HeartbeatMapFD(),
		TakeBack:  a.takeBack,
		Connected: a.proxyConnected,
		Logger:    component("handoff"),
	})
	if err != nil {
		return err
	}
	a.registry, err = workload.New(workload.Config{
		RunDir: s.RunDir, CgroupRoot: s.workloadsCgroup(), PoolV4: s.pool(true), PoolV6: s.pool(false),
		Node: s.NodeName, AllowHostSysctl: s.AllowHostSysctl, DNS: s.dns(), ClusterDomain: s.ClusterDomain,
		Hooks: workloadHooks{a}, Logger: logger,
	})
	if err != nil {
		return err
	}
	defer a.registry.Close()
	gatewayState := filepath.Join(s.RunDir, "gateways.json")
	a.gateways, err = gatewayaddr.New(gatewayaddr.Config{
		StateFile: gatewayState, Hooks: gatewayHooks{a}, Logger: logger,
	})
	if err != nil {
		return err
	}
	defer a.gateways.Close()
	_, noGateways := os.Stat(gatewayState)
	if err := errors.Join(a.registry.Restore(ctx), a.gateways.Restore()); err != nil {
		logger.Error("something of an earlier agent could not be taken over", "error", err)
	}
	if len(a.registry.List()) == 0 && noGateways != nil {
		a.proxiedOnce.Do(func() { close(a.proxied) }) // nothing to be given back
	}

	// The mesh.
	a.xds, err = client.New(client.Config{
		Target: s.xdsSocket(), Node: s.NodeName, Role: client.RoleAgent, StateDir: filepath.Join(s.State, "agent"),
		Store: a.store, Logger: logger, Registerer: a.reg,
		Initial: map[mesh.Kind][]string{
			mesh.KindWorkload: {"*"}, mesh.KindService: {"*"}, mesh.KindListener: {"gateway/*"},
		},
	})
	if err != nil {
		return err
	}
	projector := newProjector(a)
	a.store.Subscribe(projector.add)

	// What people and the proxy ask.
	receiver, err := feed.NewReceiver(feed.ReceiverConfig{
		Sink: a.flows, Node: s.NodeName, Workload: a.workloadByAddress, Logger: component("feed"), Registerer: a.reg,
	})
	if err != nil {
		return err
	}
	feedListener, err := feed.Listen(s.flowSocket(), s.ProxyUser)
	if err != nil {
		return err
	}
	adminServer, err := admin.New(admin.Config{
		Process: admin.ProcessAgent, Path: admin.SocketPath(s.RunDir, admin.ProcessAgent), Levels: levels, Logger: component("admin"),
	}, a)
	if err != nil {
		return err
	}
	adminServer.HandleHTTP("/v1/", a.whenAttached(a.registry.Handler()))

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return reader.Run(ctx) })
	g.Go(func() error { return a.handoff.Run(ctx) })
	g.Go(func() error { return a.xds.Run(ctx) })
	g.Go(func() error { return receiver.Serve(ctx, feedListener) })
	g.Go(func() error { return adminServer.Run(ctx) })
	g.Go(func() error { return serveMetrics(ctx, s.AgentMetrics, a.reg, component("metrics")) })
	g.Go(func() error { return projector.run(ctx) })
	if a.destroy != nil {
		g.Go(func() error { return a.destroy.Run(ctx) })
	}
	g.Go(func() error {
		select {
		case <-time.After(proxyWait):
			a.proxyConnected()
		case <-a.proxied:
		case <-ctx.Done():
		}
		return nil
	})
	return g.Wait()
}

// endpointsGone has the sockets ended that an endpoint's end leaves without one.
func (a *agent) endpointsGone(gone []service.Gone) {
	if a.destroy == nil {
		return
	}
	victims := make([]destroy.Victim, len(gone))
	for i, g := range gone {
		victims[i] = destroy.Victim(g)
	}
	a.destroy.Add(victims)
}

// namespaces are those of this node's workloads.
func (a *agent) namespaces() []destroy.Namespace {
	var out []destroy.Namespace
	for _, s := range a.registry.List() {
		out = append(out, destroy.Namespace{Workload: s.Workload(), Index: s.Index, Path: s.NetnsPath})
	}
	return out
}

// localNames are this node's own workloads, by number and by address. They are
// known here before the control plane tells of them, and stay for a while after
// their end, because what they did is read a little later.
type localNames struct{ byIndex, byAddress sync.Map }

// namesOutlive is how long a workload that is gone can be named.
const namesOutlive = 10 * time.Second

func (l *localNames) add(s *workload.Sandbox) {
	w := s.Workload()
	l.byIndex.Store(s.Index, w)
	for _, a := range w.Addresses {
		l.byAddress.Store(a, w)
	}
}

func (l *localNames) remove(s *workload.Sandbox) {
	kept, ok := l.byIndex.Load(s.Index)
	if !ok {
		return
	}
	time.AfterFunc(namesOutlive, func() {
		l.byIndex.Delete(s.Index)
		for _, a := range s.Addresses {
			l.byAddress.CompareAndDelete(a, kept) // unless another has it by now
		}
	})
}

func (l *localNames) index(i mesh.WorkloadIndex) *mesh.Workload { return named(&l.byIndex, i) }

func named(m *sync.Map, key any) *mesh.Workload {
	v, _ := m.Load(key)
	w, _ := v.(*mesh.Workload)
	return w
}

// workloadByAddress names the owner of an address, this node's own first.
func (a *agent) workloadByAddress(addr netip.Addr) *mesh.Workload {
	if w := named(&a.names.byAddress, addr.Unmap()); w != nil {
		return w
	}
	return a.store.WorkloadByAddress(addr)
}

func (a *agent) frontendName(f mesh.Frontend) mesh.Name {
	if svc, _ := a.store.ServiceByFrontend(f); svc != nil {
		return svc.Name
	}
	return mesh.Name{}
}

// takeBack takes a listening socket that the proxy holds and this agent does not.
func (a *agent) takeBack(_ handoff.Socket, fd int) bool {
	if len(a.registry.Adopt([]int{fd})) == 0 {
		return true
	}
	if len(a.gateways.Adopt([]int{fd})) == 0 {
		return true
	}
	unix.Close(fd)
	return false
}

// proxyConnected makes the sockets of restored workloads that no proxy gave back.
func (a *agent) proxyConnected() {
	a.proxiedOnce.Do(func() {
		if err := a.registry.Activate(context.Background()); err != nil {
			a.logger.Error("workloads of an earlier agent could not be taken over", "error", err)
		}
		close(a.proxied)
	})
}

// whenAttached refuses to add workloads before their connections would be steered.
func (a *agent) whenAttached(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-a.attached:
			h.ServeHTTP(w, r)
		default:
			http.Error(w, "the agent has no full configuration yet: see sluice status", http.StatusServiceUnavailable)
		}
	})
}

// workloadHooks joins workloads with the kernel programs and the proxy.
type workloadHooks struct{ *agent }

func (h workloadHooks) OnAdd(_ context.Context, s *workload.Sandbox) error {
	w := steer.Workload{Index: s.Index, Name: s.Spec.Name, NetnsCookie: s.NetnsCookie}
	for _, addr := range s.Addresses {
		if addr.Is4() {
			w.Addr4 = addr
		} else {
			w.Addr6 = addr
		}
	}
	host, own := s.HardwareAddrs()
	if err := h.forward.Add(forward.Interface{
		Workload: s.Index, Name: s.Spec.Name, NetnsCookie: s.NetnsCookie, HostIfindex: s.HostIfindex,
		HostMAC: host, MAC: own, Addresses: s.Addresses,
	}); err != nil {
		return err
	}
	if err := h.steer.Enrol(w); err != nil {
		return errors.Join(err, h.forward.Remove(s.Index, s.NetnsCookie))
	}
	if err := h.serve(s); err != nil {
		h.OnRemove(s)
		return err
	}
	return nil
}

// serve hands the workload and its sockets to the proxy, those for inbound connections
// only if the workload wants it.
func (h workloadHooks) serve(s *workload.Sandbox) error {
	inbound, err := s.Spec.Inbound()
	if err != nil {
		return err
	}
	h.names.add(s)
	h.handoff.AddWorkload(handoff.Workload{Index: s.Index, Name: s.Spec.Name, Netns: filepath.Base(s.NetnsPath)})
	for _, sock := range s.ListenerFDs() {
		if sock.Purpose == workload.PurposeInbound {
			if len(inbound.Ports) > 0 {
				h.handoff.AddSocket(handoffSocket(s, sock), sock.FD)
			}
			if err := h.capture(s, sock, inbound); err != nil {
				return err
			}
			continue
		}
		if err := h.steer.Guard(sock.Protocol, sock.FD); err != nil {
			return err
		}
		h.handoff.AddSocket(handoffSocket(s, sock), sock.FD)
	}
	return nil
}

// capture has connections to the workload's ports taken by the socket, those of the
// socket's family.
func (h workloadHooks) capture(s *workload.Sandbox, sock workload.Socket, inbound workload.Inbound) error {
	if len(inbound.Ports) == 0 {
		return nil
	}
	ns, err := netns.Open(s.NetnsPath)
	if err != nil {
		return err
	}
	defer ns.Close()
	for _, addr := range s.Addresses {
		for _, port := range inbound.Ports {
			if addr.Is4() != sock.AddrPort.Addr().Is4() {
				continue
			}
			if err := h.steer.SetInbound(netip.AddrPortFrom(addr, port), sock.FD, inbound.Required); err != nil {
				return err
			}
		}
	}
	return h.steer.AttachPod(s.Index, ns.FD())
}

func (h workloadHooks) OnRemove(s *workload.Sandbox) {
	for _, sock := range s.ListenerFDs() {
		h.handoff.RemoveSocket(handoffSocket(s, sock))
	}
	h.handoff.RemoveWorkload(handoff.Workload{Index: s.Index, Name: s.Spec.Name, Netns: filepath.Base(s.NetnsPath)})
	if err := h.steer.Withdraw(s.Index); err != nil {
		h.logger.Error("a workload stays enrolled in the kernel", "workload", s.Spec.Name, "error", err)
	}
	if err := h.forward.Remove(s.Index, s.NetnsCookie); err != nil {
		h.logger.Error("a workload's interface stays in the kernel", "workload", s.Spec.Name, "error", err)
	}
	h.names.remove(s)
}

func handoffSocket(s *workload.Sandbox, sock workload.Socket) handoff.Socket {
	t := handoff.SocketOutbound
	switch sock.Purpose {
	case workload.PurposeOutbound:
	case workload.PurposeInbound:
		t = handoff.SocketInbound
	case workload.PurposeDNS:
		t = handoff.SocketDNS
	}
	return handoff.Socket{Type: t, Protocol: sock.Protocol, Workload: s.Index, Name: s.Spec.Name, Address: sock.AddrPort}
}

// gatewayHooks joins Gateways' addresses with the kernel programs and the proxy.
type gatewayHooks struct{ *agent }

func (h gatewayHooks) OnAdd(s gatewayaddr.Socket) error {
	if err := h.steer.SetGateway(mesh.Frontend{AddrPort: s.AddrPort, Protocol: s.Protocol}, s.FD); err != nil {
		return err
	}
	h.handoff.AddSocket(h.socket(s), s.FD)
	return nil
}

func (h gatewayHooks) OnRemove(s gatewayaddr.Socket) {
	h.handoff.RemoveSocket(h.socket(s))
	if err := h.steer.RemoveGateway(mesh.Frontend{AddrPort: s.AddrPort, Protocol: s.Protocol}); err != nil {
		h.logger.Error("a gateway's address stays in the kernel", "address", s.AddrPort, "error", err)
	}
}

func (h gatewayHooks) socket(s gatewayaddr.Socket) handoff.Socket {
	sock := handoff.Socket{Type: handoff.SocketGateway, Protocol: s.Protocol, Listener: s.Listener, Address: s.AddrPort}
	if l := h.store.Listener(s.Listener); l != nil {
		sock.Name = l.Parent
	}
	return sock
}

// projector applies the store's deltas to the kernel's tables, one after another,
// without holding up the store: whatever gathers while a delta is being written
// is the next delta.
type projector struct {
	*agent
	wake    chan struct{}
	mu      sync.Mutex
	pending mesh.Delta // guarded by mu
}

func newProjector(a *agent) *projector { return &projector{agent: a, wake: make(chan struct{}, 1)} }

func (p *projector) add(d mesh.Delta) {
	p.mu.Lock()
	p.pending.Upserts = append(p.pending.Upserts, d.Upserts...)
	p.pending.Removes = append(p.pending.Removes, d.Removes...)
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// take returns what gathered, with the store's word on each resource, so that
// the order of what happened to one does not matter.
func (p *projector) take() mesh.Delta {
	p.mu.Lock()
	pending := p.pending
	p.pending = mesh.Delta{}
	p.mu.Unlock()
	var now mesh.Delta
	seen := map[mesh.Ref]bool{}
	look := func(ref mesh.Ref) {
		if seen[ref] {
			return
		}
		seen[ref] = true
		if r := p.store.Get(ref.Kind, ref.Key); r != nil {
			now.Upserts = append(now.Upserts, r)
		} else {
			now.Removes = append(now.Removes, ref)
		}
	}
	for _, r := range pending.Upserts {
		look(mesh.Ref{Kind: r.Kind(), Key: r.Key()})
	}
	for _, ref := range pending.Removes {
		look(ref)
	}
	return now
}

// run writes the first full state, puts the programs in force, and then follows.
func (p *projector) run(ctx context.Context) error {
	for _, ready := range []<-chan struct{}{p.proxied, p.xds.Ready()} {
		select {
		case <-ready:
		case <-ctx.Done():
			return nil
		}
	}
	p.apply(p.take())
	if removed, err := p.services.Prune(); err != nil {
		p.logger.Error("old services stay in the kernel", "error", err)
	} else if removed > 0 {
		p.logger.Info("removed services of an earlier agent from the kernel", "frontends", removed)
	}
	if err := p.steer.Prune(); err != nil {
		p.logger.Error("old addresses stay in the kernel", "error", err)
	}
	if err := p.gateways.Retain(func(name string) bool { return p.store.Listener(name) != nil }); err != nil {
		p.logger.Error("old gateways stay", "error", err)
	}
	if err := p.datapath.Attach(); err != nil {
		return err
	}
	close(p.attached)
	p.logger.Info("steering", "workloads", p.s.workloadsCgroup())
	for {
		select {
		case <-p.wake:
			p.apply(p.take())
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *projector) apply(d mesh.Delta) {
	if err := p.services.Apply(d); err != nil {
		p.logger.Error("services could not be written to the kernel", "error", err)
	}
	if err := p.steer.Apply(d); err != nil {
		p.logger.Error("addresses of workloads could not be written to the kernel", "error", err)
	}
	for _, r := range d.Upserts {
		if l, ok := r.(*mesh.Listener); ok && l.Type == mesh.ListenerGateway {
			if err := p.gateways.Set(l); err != nil {
				p.logger.Error("a gateway cannot be served", "listener", l.Name, "error", err)
			}
		}
	}
	for _, ref := range d.Removes {
		if ref.Kind == mesh.KindListener {
			if err := p.gateways.Remove(ref.Key); err != nil {
				p.logger.Error("a gateway's address stays", "listener", ref.Key, "error", err)
			}
		}
	}
}

// registerBuild has a process's metrics say which build it is.
func registerBuild(reg prometheus.Registerer, process string) error {
	v := version.Get()
	return metrics.RegisterBuild(reg, process, v.Version, v.Revision, v.Go)
}

// serveMetrics serves a registry on addr until ctx ends; an empty addr serves nothing.
func serveMetrics(ctx context.Context, addr string, reg *prometheus.Registry, logger *slog.Logger) error {
	if addr == "" {
		<-ctx.Done()
		return nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return metrics.Serve(ctx, l, reg, logger)
}

// AgentView of the admin socket.

// Workloads lists the mesh's workloads, with what the registry knows of its own.
func (a *agent) Workloads() []admin.Workload {
	out := admin.StoredWorkloads(a.store, a.s.NodeName)
	for i := range out {
		if s := a.registry.Get(out[i].Name); s != nil {
			out[i].Local, out[i].Cgroup, out[i].Command, out[i].Started = true, s.CgroupPath, s.Spec.Command, s.Created
		}
	}
	return out
}

// Services lists the services.
func (a *agent) Services() []admin.Service { return admin.StoredServices(a.store) }

// Flows returns the ring.
func (a *agent) Flows() *ring.Ring { return a.ring }

// Config returns the settings.
func (a *agent) Config() any { return a.s }

// Status says what the agent waits for, and what it has.
func (a *agent) Status() admin.Status {
	st := admin.Status{Component: admin.Component{OK: true}}
	select {
	case <-a.attached:
		if a.handoff.Proxies() == 0 {
			st.Component.OK, st.Component.Detail = false, "no proxy is connected: connections that need it are refused"
		}
	default:
		st.Component.OK, st.Component.Detail = false, "waiting for a first full configuration from the control plane"
	}
	for _, f := range probe.Features(probe.Config{BPFFS: a.s.BPFFS}) {
		st.Features = append(st.Features, admin.Feature{Name: f.Name, Needed: f.Needed, Have: f.Have, Detail: f.Detail})
	}
	count := func(name string, kind mesh.Kind) {
		n := 0
		a.store.Range(kind, func(mesh.Resource) bool { n++; return true })
		st.Counts = append(st.Counts, admin.Count{Name: name, Value: n})
	}
	st.Counts = append(st.Counts, admin.Count{Name: "local workloads", Value: len(a.registry.List())})
	count("workloads", mesh.KindWorkload)
	count("services", mesh.KindService)
	st.Counts = append(st.Counts, admin.Count{Name: "gateway addresses", Value: len(a.gateways.Sockets())})
	st.XDS = clientXDS(a.xds)
	stats := a.ring.Stats()
	st.Losses = []admin.Loss{
		{Source: flow.LostByKernel, Events: stats.LostByKernel},
		{Source: flow.LostByProxy, Events: stats.LostByProxy},
		{Source: flow.LostByRing, Events: stats.Overwritten},
	}
	return st
}

// clientXDS sums a client's resources up by type.
func clientXDS(c *client.Client) []admin.XDSType {
	byKind := map[mesh.Kind]*admin.XDSType{}
	var order []mesh.Kind
	for _, r := range c.Resources() {
		t := byKind[r.Kind]
		if t == nil {
			t = &admin.XDSType{Type: string(r.Kind)}
			byKind[r.Kind] = t
			order = append(order, r.Kind)
		}
		t.Resources++
		if r.Rejected != "" {
			t.Nacked, t.Error = r.Key, r.Rejected
		}
	}
	out := make([]admin.XDSType, 0, len(order))
	for _, k := range order {
		out = append(out, *byKind[k])
	}
	return out
}
