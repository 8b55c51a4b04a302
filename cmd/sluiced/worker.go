package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/admin"
	"github.com/sluice-mesh/sluice/admin/version"
	"github.com/sluice-mesh/sluice/dataplane/steer"
	"github.com/sluice-mesh/sluice/handoff"
	"github.com/sluice-mesh/sluice/l7proxy"
	"github.com/sluice-mesh/sluice/l7proxy/accesslog"
	"github.com/sluice-mesh/sluice/l7proxy/dns"
	"github.com/sluice-mesh/sluice/l7proxy/route"
	"github.com/sluice-mesh/sluice/l7proxy/sockets"
	"github.com/sluice-mesh/sluice/l7proxy/tlsengine"
	"github.com/sluice-mesh/sluice/l7proxy/trace"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/mesh/store"
	"github.com/sluice-mesh/sluice/observe/feed"
	"github.com/sluice-mesh/sluice/observe/flow"
	"github.com/sluice-mesh/sluice/xds/client"
)

func workerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "worker",
		Short:  "Parse traffic (started by sluiced proxy)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f := os.NewFile(workerSettingsFD, "settings")
			s, err := readSettings(f)
			if err != nil {
				return err
			}
			f.Close()
			return runWorker(cmd.Context(), s)
		},
	}
}

// worker is the parts of the proxy's unprivileged process.
type worker struct {
	s      *settings
	logger *slog.Logger
	store  *store.Store
	routes *route.Tables
	proxy  *l7proxy.Proxy
	dns    *dns.Server
	pool   *sockets.Pool
	xds    *client.Client
	origin origins

	synced atomic.Bool
	// serves wakes beat, so that the kernel programs learn at once that it does.
	serves chan struct{}
	// heartbeat is the descriptor of the kernel's map, or -1.
	heartbeat atomic.Int64

	mu         sync.Mutex
	dnsSockets map[handoff.Socket]int // guarded by mu: duplicates, to be given back to an agent
}

func runWorker(ctx context.Context, s *settings) error {
	if os.Geteuid() == 0 {
		return fmt.Errorf("%w: the worker is started by sluiced proxy, without privileges", errUsage)
	}
	if nnp, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || nnp != 1 {
		return fmt.Errorf("%w: the worker must not be able to gain privileges (no_new_privs: %d, %w)", errUsage, nnp, err)
	}
	logger, levels, err := s.logger("proxy")
	if err != nil {
		return err
	}
	component := func(name string) *slog.Logger { return logger.With("component", name) }
	reg := prometheus.NewRegistry()
	if err := registerBuild(reg, "proxy"); err != nil {
		return err
	}
	w := &worker{s: s, logger: logger, store: store.New(), routes: route.NewTables(), dnsSockets: map[handoff.Socket]int{}, serves: make(chan struct{}, 1)}
	w.heartbeat.Store(-1)
	w.origin.maps.Store(-1)

	certificates := tlsengine.NewCertificates()
	w.store.Subscribe(w.routes.Apply)
	w.store.Subscribe(certificates.Apply)
	w.xds, err = client.New(client.Config{
		Target: s.xdsSocket(), Node: s.NodeName, Role: client.RoleProxy, StateDir: s.proxyState(), Store: w.store,
		Validate: validate, FollowReferences: true, Logger: logger, Registerer: reg,
		Initial: map[mesh.Kind][]string{
			mesh.KindWorkload: {"*"}, mesh.KindService: {"*"}, mesh.KindListener: {"gateway/*"},
		},
	})
	if err != nil {
		return err
	}

	sender, err := feed.NewSender(feed.SenderConfig{
		Dial: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unixpacket", s.flowSocket())
		},
		QueueBytes: feed.DefaultQueueBytes, PerSecond: feed.DefaultPerSecond,
		Logger: component("feed"), Registerer: reg,
	})
	if err != nil {
		return err
	}
	queue := sender.NewQueue()
	access, accessRun, err := s.openAccessLog(reg)
	if err != nil {
		return err
	}

	socketsConn, err := inheritedConn(workerSocketsFD)
	if err != nil {
		return err
	}
	w.pool = sockets.NewPool(socketsConn, component("sockets"))

	loops := s.ProxyLoops
	if loops == 0 {
		loops = runtime.GOMAXPROCS(0)
	}
	// One more than there are loops, for everything else: with no P to spare, the
	// runtime's monitor would take the P of each loop that waits for events, every 20
	// microseconds, and wake a thread to do so.
	runtime.GOMAXPROCS(loops + 1)
	cfg := l7proxy.Config{
		Loops: loops, Node: s.NodeName, Zone: s.Zone, Store: w.store, Routes: w.routes, Certificates: certificates,
		Origins: &w.origin, Sockets: w.pool, Want: w.xds.Want,
		Flows: queue.Put, AdmitFlow: queue.Admit, Logger: logger, Registerer: reg, Limits: l7proxy.DefaultLimits(),
	}
	if access != nil {
		cfg.AccessLog = access
	}
	if s.TraceEndpoint != "" {
		share, err := mesh.ParsePercentage(s.TraceSampling)
		if err != nil {
			return err
		}
		cfg.Tracer, err = trace.New(trace.Config{
			Endpoint: s.TraceEndpoint, Protocol: trace.Protocol(s.TraceProtocol), Sampling: share,
			Node: s.NodeName, Version: version.Get().String(), Logger: component("trace"), Registerer: reg,
		})
		if err != nil {
			return err
		}
	}
	upstreams := make([]netip.AddrPort, 0, len(s.DNSUpstreams))
	for _, u := range s.DNSUpstreams {
		upstreams = append(upstreams, netip.MustParseAddrPort(u)) // validated with the settings
	}
	w.dns, err = dns.New(dns.Config{
		Store: w.store, ClusterDomain: s.ClusterDomain, Upstreams: upstreams, Flows: func(f *flow.Flow) { queue.Add(f) },
		Node: s.NodeName, Logger: logger, Registerer: reg,
	})
	if err != nil {
		return err
	}
	cfg.Resolver = w.dns
	if w.proxy, err = l7proxy.New(cfg); err != nil {
		return err
	}
	adminListener, err := net.FileListener(os.NewFile(workerAdminFD, "admin"))
	if err != nil {
		return fmt.Errorf("the inherited admin socket: %w", err)
	}
	adminServer, err := admin.New(admin.Config{
		Process: admin.ProcessProxy, Listener: adminListener, Levels: levels, Logger: component("admin"),
	}, w)
	if err != nil {
		return err
	}

	// serve ends the moment that ctx asks for it; what drains goes on until run ends.
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, run := errgroup.WithContext(run)
	g.Go(func() error { return w.pool.Run(run) })
	g.Go(func() error { return w.xds.Run(run) })
	g.Go(func() error { return sender.Run(run) })
	g.Go(func() error { return accessRun(run) })
	if cfg.Tracer != nil {
		g.Go(func() error { return cfg.Tracer.Run(run) })
	}
	g.Go(func() error { return w.proxy.Run(run) })
	g.Go(func() error { return w.dns.Run(run) })
	g.Go(func() error { return adminServer.Run(run) })
	g.Go(func() error { return serveMetrics(run, s.ProxyMetrics, reg, component("metrics")) })
	serving, stopServing := context.WithCancel(run)
	defer stopServing()
	g.Go(func() error {
		// Listening sockets come only when there is a configuration to serve them with.
		select {
		case <-w.xds.Ready():
		case <-serving.Done():
			return nil
		}
		return (&handoff.Client{Path: s.handoffSocket(), Handler: w, Logger: component("handoff")}).Run(serving)
	})
	g.Go(func() error { return w.beat(serving) })
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-run.Done():
			return nil
		}
		stopServing()
		drain, cancel := context.WithTimeout(run, s.Drain)
		defer cancel()
		if err := w.proxy.Drain(drain); err != nil {
			logger.Info("some connections did not end in time", "drain", s.Drain)
		}
		stop()
		return nil
	})
	return g.Wait()
}

// validate refuses what decodes and cannot be used.
func validate(r mesh.Resource) error {
	switch r := r.(type) {
	case *mesh.VirtualHost:
		return route.Validate(r)
	case *mesh.Certificate:
		return tlsengine.ValidateCertificate(r)
	}
	return nil
}

// beatEvery is well below the kernel programs' patience, steer.HeartbeatTimeoutSeconds.
const beatEvery = 500 * time.Millisecond

// beat tells the kernel programs that connections are accepted.
func (w *worker) beat(ctx context.Context) error {
	t := time.NewTicker(beatEvery)
	defer t.Stop()
	for {
		if fd := w.heartbeat.Load(); fd >= 0 && w.synced.Load() {
			if err := steer.Beat(int(fd)); err != nil {
				return fmt.Errorf("tell the kernel that the proxy serves: %w", err)
			}
		}
		select {
		case <-t.C:
		case <-w.serves:
		case <-ctx.Done():
			return nil
		}
	}
}

// origins looks original destinations up in the kernel's map.
type origins struct{ maps atomic.Int64 }

// Lookup implements l7proxy.Origins.
func (o *origins) Lookup(fd int) (l7proxy.Origin, bool) {
	m := o.maps.Load()
	if m < 0 {
		return l7proxy.Origin{}, false
	}
	origin, ok, err := steer.LookupOrigin(int(m), fd)
	if err != nil || !ok {
		return l7proxy.Origin{}, false
	}
	return l7proxy.Origin{Dest: origin.Destination, Workload: origin.Workload}, true
}

// The worker is the handoff.Handler of what the agent hands over.

// Held returns the listening sockets of the proxy and of the DNS server.
func (w *worker) Held() map[handoff.Socket]int {
	held := map[handoff.Socket]int{}
	for _, s := range w.proxy.Sockets() {
		held[offered(s)] = s.FD
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for s, fd := range w.dnsSockets {
		held[s] = fd
	}
	return held
}

// Maps takes the kernel's maps, in place of those of an agent before.
func (w *worker) Maps(originsFD, heartbeat int) {
	// The old descriptors stay open: a loop may be using one. There are as many as
	// the agent had restarts.
	w.origin.maps.Store(int64(originsFD))
	w.heartbeat.Store(int64(heartbeat))
}

// AddSocket begins to accept on a socket.
func (w *worker) AddSocket(s handoff.Socket, fd int) {
	if s.Type == handoff.SocketDNS {
		w.addDNS(s, fd)
		return
	}
	for _, held := range w.proxy.Sockets() {
		if offered(held).Key() == s.Key() {
			unix.Close(fd)
			return
		}
	}
	if err := w.proxy.AddSocket(accepted(s, fd)); err != nil {
		w.logger.Error("a listening socket cannot be used", "socket", s.Key(), "error", err)
	}
}

func (w *worker) addDNS(s handoff.Socket, fd int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.dnsSockets[s]; ok {
		unix.Close(fd)
		return
	}
	f := os.NewFile(uintptr(fd), "dns")
	dup, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		w.dnsSockets[s] = dup
		if s.Protocol == mesh.ProtocolUDP {
			var c net.PacketConn
			if c, err = net.FilePacketConn(f); err == nil {
				w.dns.AddPacketConn(c, s.Workload, s.Name)
			}
		} else {
			var l net.Listener
			if l, err = net.FileListener(f); err == nil {
				w.dns.AddListener(l, s.Workload, s.Name)
			}
		}
	}
	f.Close()
	if err != nil {
		w.logger.Error("a DNS socket cannot be used", "socket", s.Key(), "error", err)
	}
}

// RemoveSocket stops accepting on a socket.
func (w *worker) RemoveSocket(s handoff.Socket) {
	if s.Type == handoff.SocketDNS {
		w.mu.Lock()
		defer w.mu.Unlock()
		if fd, ok := w.dnsSockets[s]; ok {
			delete(w.dnsSockets, s)
			unix.Close(fd)
			w.dns.Remove(s.Workload)
		}
		return
	}
	w.proxy.RemoveSocket(accepted(s, -1))
}

// AddWorkload makes a workload's upstream sockets possible.
func (w *worker) AddWorkload(wl handoff.Workload) { w.pool.AddWorkload(wl.Index, wl.Netns) }

// RemoveWorkload forgets a workload.
func (w *worker) RemoveWorkload(wl handoff.Workload) {
	w.pool.RemoveWorkload(wl.Index)
	w.dns.Remove(wl.Index)
}

// Synced lets the heartbeat begin.
func (w *worker) Synced() {
	w.synced.Store(true)
	select {
	case w.serves <- struct{}{}:
	default:
	}
}

var socketTypes = map[handoff.SocketType]l7proxy.SocketType{
	handoff.SocketOutbound: l7proxy.SocketOutbound,
	handoff.SocketInbound:  l7proxy.SocketInbound,
	handoff.SocketGateway:  l7proxy.SocketGateway,
}

func accepted(s handoff.Socket, fd int) l7proxy.Socket {
	out := l7proxy.Socket{FD: fd, Type: socketTypes[s.Type], Protocol: s.Protocol, Workload: s.Workload, Listener: s.Listener, Addr: s.Address}
	if s.Type != handoff.SocketGateway {
		out.WorkloadName = s.Name
	}
	return out
}

func offered(s l7proxy.Socket) handoff.Socket {
	out := handoff.Socket{Protocol: s.Protocol, Workload: s.Workload, Name: s.WorkloadName, Listener: s.Listener, Address: s.Addr}
	if out.Protocol == 0 {
		out.Protocol = mesh.ProtocolTCP
	}
	for theirs, ours := range socketTypes {
		if ours == s.Type {
			out.Type = theirs
		}
	}
	return out
}

// openAccessLog returns the access log, nil if there is to be none, and what to run.
func (s *settings) openAccessLog(reg prometheus.Registerer) (*accesslog.Log, func(context.Context) error, error) {
	var out io.Writer
	switch s.AccessLog {
	case "":
		return nil, func(context.Context) error { return nil }, nil
	case "-":
		out = os.Stdout
	default:
		f, err := os.OpenFile(s.AccessLog, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
		if err != nil {
			return nil, nil, fmt.Errorf("open the access log (the user of the proxy must be able to): %w", err)
		}
		out = f
	}
	const bytes = 1 << 20
	log, err := accesslog.New(out, s.accessLogOptions(), bytes, reg)
	if err != nil {
		return nil, nil, err
	}
	return log, log.Run, nil
}

func inheritedConn(fd uintptr) (*net.UnixConn, error) {
	f := os.NewFile(fd, "inherited")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("inherited descriptor %d: %w", fd, err)
	}
	return c.(*net.UnixConn), nil
}

// ProxyView of the admin socket.

// Config returns the settings.
func (w *worker) Config() any { return w.s }

// Status says what the proxy waits for, and what it carries.
func (w *worker) Status() admin.Status {
	st := admin.Status{Component: admin.Component{OK: true}}
	switch {
	case !w.xds.Status().Ready:
		st.Component.OK, st.Component.Detail = false, "waiting for a first configuration from the control plane"
	case !w.synced.Load():
		st.Component.OK, st.Component.Detail = false, "waiting for listening sockets from the agent"
	}
	st.Counts = append(st.Counts,
		admin.Count{Name: "listening sockets", Value: len(w.proxy.Sockets())},
		admin.Count{Name: "connections", Value: w.proxy.Connections()})
	st.XDS = clientXDS(w.xds)
	return st
}

// XDS sums up what the control plane sent.
func (w *worker) XDS() []admin.XDSType { return clientXDS(w.xds) }

// protocolWords are what a connection speaks, once that is known.
var protocolWords = map[string]string{"http/1.1": "HTTP/1.1", "h2": "HTTP/2", "tcp": "TCP"}

// Backends lists the endpoints that the proxy sends to.
func (w *worker) Backends() []admin.Backend {
	out := []admin.Backend{}
	for _, b := range w.proxy.Backends() {
		out = append(out, admin.Backend(b))
	}
	slices.SortFunc(out, func(a, b admin.Backend) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), a.Endpoint.Compare(b.Endpoint))
	})
	return out
}

// Connections lists the downstream connections.
func (w *worker) Connections() []admin.Connection {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	held, err := w.proxy.Snapshot(ctx)
	if err != nil {
		w.logger.Warn("connections could not be listed", "error", err)
	}
	now := time.Now()
	out := make([]admin.Connection, 0, len(held))
	for _, c := range held {
		conn := admin.Connection{
			ID: c.ID, Kind: c.Journey, Client: c.Source, Workload: c.Workload, Original: c.Destination, Service: c.Service,
			Protocol: protocolWords[c.Protocol], Requests: c.Exchanges, Started: now.Add(-c.Age),
			BytesIn: c.BytesIn, BytesOut: c.BytesOut, Buffered: uint64(c.Buffered), Idle: c.Idle,
		}
		if c.Journey == l7proxy.SocketGateway.String() {
			conn.Kind = "ingress"
		}
		if c.TLS != nil {
			conn.TLS = (*admin.ConnectionTLS)(c.TLS)
		}
		out = append(out, conn)
	}
	slices.SortFunc(out, func(a, b admin.Connection) int { return cmp.Compare(a.ID, b.ID) })
	return out
}
