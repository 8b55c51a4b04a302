package l7proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-mesh/sluice/l7proxy/loop"
	"github.com/sluice-mesh/sluice/l7proxy/upstream"
	"github.com/sluice-mesh/sluice/mesh"
)

// SocketType says what a listening socket takes.
type SocketType uint8

// The types of listening socket.
const (
	SocketOutbound SocketType = iota + 1 // a workload's steered connections
	SocketInbound                        // connections to a workload's own ports
	SocketGateway                        // one address and port of a Gateway
)

// String returns "outbound", "inbound" or "gateway", which is also the value of
// the metrics' label "journey".
func (t SocketType) String() string {
	switch t {
	case SocketOutbound:
		return "outbound"
	case SocketInbound:
		return "inbound"
	case SocketGateway:
		return "gateway"
	}
	return "unknown"
}

// Socket is a TCP socket, bound and listening, or of a Gateway a bound UDP socket.
type Socket struct {
	FD   int
	Type SocketType
	// Protocol is that of the socket; zero stands for ProtocolTCP.
	Protocol mesh.Protocol
	// Workload and WorkloadName are those of the namespace that the socket is in;
	// zero on gateways.
	Workload     mesh.WorkloadIndex
	WorkloadName mesh.Name
	// Listener is the name of the mesh.Listener; gateways only.
	Listener string
	// Addr is what clients dial. It names the socket for RemoveSocket, with Type and
	// Workload.
	Addr netip.AddrPort
}

// Proxy is the data path of a node proxy.
type Proxy struct {
	cfg     Config
	limits  Limits
	log     *slog.Logger
	metrics *metrics
	workers []*worker
	// registry is what the workers know together of endpoints.
	registry *upstream.Registry
	backends *backendMetrics
	names    names
	// upstreamBudget bounds what waits on its way to all endpoints.
	upstreamBudget budget
	// retryBudget bounds the bodies that are kept for another try, mirrorBudget what
	// waits for slow mirrors.
	retryBudget, mirrorBudget budget

	generation atomic.Uint64 // of the store's content
	draining   atomic.Bool

	// addresses of the mesh's workloads, by key. It belongs to whoever commits to the
	// store.
	addresses map[string][]netip.Addr

	mu      sync.Mutex
	sockets map[socketKey]*socket // guarded by mu
	budgets map[string]*budget    // guarded by mu
	running bool                  // guarded by mu
}

type socketKey struct {
	typ      SocketType
	udp      bool
	workload mesh.WorkloadIndex
	addr     netip.AddrPort
}

// socket is a Socket in use.
type socket struct {
	Socket
	budget  *budget
	users   atomic.Int32 // loops that may still accept from it
	removed atomic.Bool
}

// New validates cfg and starts nothing.
func New(cfg Config) (*Proxy, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("l7proxy: %w", err)
	}
	p := &Proxy{
		cfg: cfg, limits: cfg.Limits.withDefaults(), log: cfg.Logger.With("component", "l7proxy"),
		sockets: map[socketKey]*socket{}, budgets: map[string]*budget{}, addresses: map[string][]netip.Addr{},
	}
	var err error
	if p.metrics, err = newMetrics(cfg.Registerer, cfg.Loops); err != nil {
		return nil, fmt.Errorf("l7proxy: %w", err)
	}
	if p.backends, err = newBackendMetrics(cfg.Registerer); err != nil {
		return nil, fmt.Errorf("l7proxy: %w", err)
	}
	p.names.proxy = p
	p.registry = upstream.NewRegistry(p.checkEndpoint, p.endpointChanged)
	p.upstreamBudget.maxBytes = 4 * p.limits.MaxBufferedBytes
	p.retryBudget.maxBytes = p.limits.RetryBufferedBytes
	p.mirrorBudget.maxBytes = p.limits.MirrorBufferedBytes
	p.generation.Store(1)
	cfg.Routes.Prepare = p.metrics.prepareRule
	p.metrics.series.alive = p.workloadAlive
	for i := range cfg.Loops {
		w, err := newWorker(p, i)
		if err != nil {
			for _, w := range p.workers {
				w.loop.Close()
			}
			return nil, fmt.Errorf("l7proxy: make a loop: %w", err)
		}
		p.workers = append(p.workers, w)
	}
	var known mesh.Delta
	cfg.Store.Range(mesh.KindVirtualHost, func(r mesh.Resource) bool {
		known.Upserts = append(known.Upserts, r)
		return true
	})
	p.metrics.series.apply(known)
	cfg.Store.Range(mesh.KindWorkload, func(r mesh.Resource) bool {
		p.addresses[r.Key()] = r.(*mesh.Workload).Addresses
		return true
	})
	cfg.Store.Subscribe(func(d mesh.Delta) {
		p.generation.Add(1)
		for _, w := range p.workers {
			w.committed()
		}
		for _, ref := range d.Removes {
			if ref.Kind != mesh.KindCluster && ref.Kind != mesh.KindClusterEndpoints {
				continue
			}
			p.registry.Remove(ref.Key)
			if ref.Kind == mesh.KindCluster {
				p.names.remove(ref.Key)
			}
			for _, w := range p.workers {
				w.loop.Post(func() {
					w.set.Remove(ref.Key)
					if ref.Kind == mesh.KindCluster {
						w.forgetTLS(ref.Key)
					}
				})
			}
		}
		p.refreshClusters(d)
		p.hangUp(d)
		p.metrics.series.apply(d)
	})
	return p, nil
}

// workloadAlive reports whether a workload is one of the mesh, or has sockets here.
func (p *Proxy) workloadAlive(name mesh.Name) bool {
	if p.cfg.Store.Workload(name) != nil {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sockets {
		if s.WorkloadName == name {
			return true
		}
	}
	return false
}

// hangUp ends the upstream connections to addresses that no workload has any more.
// A workload whose interface is gone can send neither FIN nor RST: without this a
// request under way would wait for its idle timeout.
func (p *Proxy) hangUp(d mesh.Delta) {
	var gone []netip.Addr
	for _, r := range d.Upserts {
		wl, ok := r.(*mesh.Workload)
		if !ok {
			continue
		}
		for _, a := range p.addresses[wl.Key()] {
			if !slices.Contains(wl.Addresses, a) {
				gone = append(gone, a)
			}
		}
		p.addresses[wl.Key()] = wl.Addresses
	}
	for _, ref := range d.Removes {
		if ref.Kind == mesh.KindWorkload {
			gone = append(gone, p.addresses[ref.Key]...)
			delete(p.addresses, ref.Key)
		}
	}
	if len(gone) == 0 {
		return
	}
	for _, w := range p.workers {
		w.loop.Post(func() {
			for _, a := range gone {
				w.loop.HangUp(a)
			}
		})
	}
}

// Run serves until ctx ends, then closes all connections and listening sockets.
func (p *Proxy) Run(ctx context.Context) error {
	p.mu.Lock()
	if p.running {
		p.mu.Unlock()
		return errors.New("l7proxy: already running")
	}
	p.running = true
	p.mu.Unlock()
	g, ctx := errgroup.WithContext(ctx)
	for _, w := range p.workers {
		g.Go(func() error {
			if err := w.run(ctx); err != nil {
				return fmt.Errorf("loop %d: %w", w.id, err)
			}
			return nil
		})
	}
	err := g.Wait()
	p.registry.Close()
	p.names.close()
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, s := range p.sockets {
		loop.CloseFD(s.FD)
		delete(p.sockets, k)
	}
	return err
}

// AddSocket begins to accept on s, which becomes the proxy's, also when it fails.
// A socket of the same type, workload and address that it holds is replaced. Any
// goroutine may call it, before or while Run runs.
func (p *Proxy) AddSocket(s Socket) error {
	if s.Type < SocketOutbound || s.Type > SocketGateway {
		loop.CloseFD(s.FD)
		return fmt.Errorf("l7proxy: socket of unknown type %d", s.Type)
	}
	if s.Protocol == mesh.ProtocolUDP && s.Type != SocketGateway {
		loop.CloseFD(s.FD)
		return fmt.Errorf("l7proxy: %s socket %s: UDP is for Gateways", s.Type, s.Addr)
	}
	if s.Protocol == mesh.ProtocolUDP {
		// Nothing to prepare.
	} else if err := loop.PrepareListener(s.FD); err != nil {
		loop.CloseFD(s.FD)
		return fmt.Errorf("l7proxy: %s socket %s: %w", s.Type, s.Addr, err)
	}
	p.RemoveSocket(s)
	p.mu.Lock()
	defer p.mu.Unlock()
	sock := &socket{Socket: s, budget: p.budget(s)}
	sock.users.Store(int32(len(p.workers)))
	p.sockets[key(s)] = sock
	for _, w := range p.workers {
		if !w.loop.Post(func() { w.listen(sock) }) {
			delete(p.sockets, key(s))
			loop.CloseFD(s.FD)
			return errors.New("l7proxy: not running any more")
		}
	}
	return nil
}

func key(s Socket) socketKey {
	return socketKey{s.Type, s.Protocol == mesh.ProtocolUDP, s.Workload, s.Addr}
}

// budget returns the budget of a socket's workload or Gateway port.
func (p *Proxy) budget(s Socket) *budget {
	name := s.Listener
	if s.Type != SocketGateway {
		name = s.WorkloadName.String()
	}
	b := p.budgets[name]
	if b == nil {
		b = &budget{maxConnections: int64(p.limits.MaxConnections), maxBytes: p.limits.MaxBufferedBytes}
		p.budgets[name] = b
	}
	return b
}

// RemoveSocket closes the listening socket with the type, workload and address of
// s; connections that it accepted go on. It reports whether there was one. With a
// workload's last outbound socket its unused upstream connections are closed,
// because they would keep its network namespace alive.
func (p *Proxy) RemoveSocket(s Socket) bool {
	p.mu.Lock()
	sock := p.sockets[key(s)]
	delete(p.sockets, key(s))
	last := sock != nil && sock.Type == SocketOutbound
	for _, o := range p.sockets {
		if sock != nil && o.Workload == sock.Workload && o.Type == SocketOutbound {
			last = false
		}
	}
	p.mu.Unlock()
	if sock == nil {
		return false
	}
	sock.removed.Store(true)
	if last {
		p.metrics.series.workloadGone(sock.WorkloadName)
	}
	for _, w := range p.workers {
		done := func() {
			if sock.users.Add(-1) == 0 {
				loop.CloseFD(sock.FD)
			}
		}
		if !w.loop.Post(func() {
			w.unlisten(sock)
			if last {
				w.set.DropWorkload(sock.Workload)
				w.dropMirrors(sock.Workload)
			}
			done()
		}) {
			done()
		}
	}
	return true
}

// Sockets returns the listening sockets that the proxy holds. The descriptors
// stay the proxy's: duplicate before use, they close with RemoveSocket and Run.
func (p *Proxy) Sockets() []Socket {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Socket, 0, len(p.sockets))
	for _, s := range p.sockets {
		out = append(out, s.Socket)
	}
	return out
}

// Drain stops accepting on all sockets, which stay open (others who hold them
// accept), asks clients to go (Connection: close, GOAWAY), closes what is idle,
// and returns when no connection is left, or with ctx's error when ctx ends; what
// is left then is closed by the end of Run.
func (p *Proxy) Drain(ctx context.Context) error {
	p.draining.Store(true)
	var waits []chan struct{}
	for _, w := range p.workers {
		done := make(chan struct{})
		if w.loop.Post(func() { w.drain(done) }) {
			waits = append(waits, done)
		}
	}
	for _, done := range waits {
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
