package l7proxy

import (
	"context"
	"net/netip"
	"sync/atomic"

	"github.com/sluice-mesh/sluice/l7proxy/http1"
	"github.com/sluice-mesh/sluice/l7proxy/loop"
	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/l7proxy/relay"
	"github.com/sluice-mesh/sluice/l7proxy/upstream"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// waiter is a connection or exchange that waits for configuration.
type waiter interface {
	configChanged()
}

// wantAgain is how long a resource that was asked for and did not come is not
// asked for again, in nanoseconds.
const wantAgain = 1_000_000_000

// spare bounds the unused exchanges of one kind that a worker keeps.
const spare = 1024

// worker is one loop with all that belongs to it. But for the atomics, everything
// is the loop's goroutine's.
type worker struct {
	proxy      *Proxy
	id         int
	loop       *loop.Loop
	limits     Limits
	headLimits http1.Limits
	metrics    *metrics
	set        *upstream.Set
	dialer     upstream.Dialer
	pipes      relay.Pipes
	cipher     []byte // ciphertext, and what is thrown away

	listeners map[*socket]*loop.Listener
	conns     []*downConn
	open      atomic.Int64 // len(conns), for who asks
	accepted  uint64
	drained   []chan struct{} // closed when conns is empty

	waiters  []waiter
	spareW   []waiter
	awaiting atomic.Int32 // len(waiters), for the committer
	recheck  atomic.Bool  // a recheck is posted
	wanted   map[mesh.Ref]int64

	httpPorts map[string]struct{} // listeners of unknown protocol whose last client spoke HTTP

	udp   map[*socket]*udpListener
	batch *loop.Batch // made with the first of them

	originations map[string]*origination // by cluster
	securing     map[*securing]struct{}
	mirrors      []*mirror // under way
	freeMirrors  []*mirror

	freeH1 []*h1down
	freeH2 []*h2downStream
	freeUp []*h2upStream

	record     httpFlow // the one that is being reported
	answer     message.Head
	answerBody []byte
	noRequest  message.Head
	number     []byte
}

func newWorker(p *Proxy, id int) (*worker, error) {
	l, err := loop.New()
	if err != nil {
		return nil, err
	}
	w := &worker{
		proxy: p, id: id, loop: l, limits: p.limits, metrics: p.metrics,
		headLimits: http1.Limits{MaxHeadBytes: p.limits.MaxHeadBytes, MaxFields: p.limits.MaxFields},
		set:        upstream.NewSet(p.registry, upstream.Here{Node: p.cfg.Node, Zone: p.cfg.Zone}),
		cipher:     make([]byte, 64<<10),
		listeners:  map[*socket]*loop.Listener{},
		wanted:     map[mesh.Ref]int64{},
		httpPorts:  map[string]struct{}{},

		udp:          map[*socket]*udpListener{},
		originations: map[string]*origination{},
		securing:     map[*securing]struct{}{},
	}
	w.dialer = upstream.Dialer{Loop: l, Timeout: p.limits.ConnectTimeout}
	if p.cfg.Sockets != nil {
		w.dialer.Sockets = p.cfg.Sockets
	}
	return w, nil
}

func (w *worker) run(ctx context.Context) error {
	return w.loop.Run(ctx, w.closeAll)
}

// closeAll ends everything.
func (w *worker) closeAll() {
	for s := range w.listeners {
		w.unlisten(s)
	}
	for s := range w.udp {
		w.unlistenUDP(s)
	}
	for len(w.conns) > 0 {
		w.conns[len(w.conns)-1].kill(flow.ReasonDraining)
	}
	for s := range w.securing {
		s.cancel()
	}
	w.closeMirrors()
	w.set.Close()
	w.pipes.Close()
}

func (w *worker) listen(s *socket) {
	if w.proxy.draining.Load() || s.removed.Load() {
		return
	}
	if s.Protocol == mesh.ProtocolUDP {
		w.listenUDP(s)
		return
	}
	ln, err := w.loop.Listen(s.FD, func(fd int, peer netip.AddrPort) { w.accept(s, fd, peer) })
	if err != nil {
		w.proxy.log.Error("cannot accept from a socket", "journey", s.Type, "address", s.Addr, "error", err)
		return
	}
	w.listeners[s] = ln
}

func (w *worker) unlisten(s *socket) {
	w.unlistenUDP(s)
	if ln := w.listeners[s]; ln != nil {
		delete(w.listeners, s)
		ln.Close()
	}
}

// accept begins the journey of a connection.
func (w *worker) accept(s *socket, fd int, peer netip.AddrPort) {
	d := &downConn{
		sock: s, journey: s.Type, peer: peer, workload: s.Workload, source: s.WorkloadName,
		opened: w.loop.Now(),
	}
	d.timer.Handler = d
	refuse := func(reason flow.Reason, detail string) {
		d.w = w
		w.recordConn(d, reason, detail, 0, 0, nil)
		loop.Abort(fd)
		loop.CloseFD(fd)
	}
	switch s.Type {
	case SocketOutbound:
		if w.proxy.cfg.Origins == nil {
			refuse(flow.ReasonNoOriginalDestination, "")
			return
		}
		origin, ok := w.proxy.cfg.Origins.Lookup(fd)
		if !ok || s.Workload != 0 && origin.Workload != s.Workload {
			refuse(flow.ReasonNoOriginalDestination, "")
			return
		}
		d.dest, d.workload = origin.Dest, origin.Workload
	case SocketGateway:
		d.dest = loop.LocalAddr(fd)
		d.workload = 0
		if wl := w.proxy.cfg.Store.WorkloadByAddress(peer.Addr()); wl != nil {
			d.source = wl.Name
		}
	case SocketInbound:
		d.dest = loop.LocalAddr(fd)
		if wl := w.proxy.cfg.Store.WorkloadByAddress(peer.Addr()); wl != nil {
			d.source = wl.Name
		} else {
			d.source = mesh.Name{}
		}
	}
	if !s.budget.open() {
		refuse(flow.ReasonOverLimit, "connections")
		return
	}
	c, err := w.loop.Attach(fd, d)
	if err != nil {
		s.budget.close()
		w.proxy.log.Error("cannot watch a connection", "error", err)
		return
	}
	d.wire.init(w, c, s.budget)
	w.accepted++
	d.id = w.accepted*uint64(len(w.proxy.workers)) + uint64(w.id)
	d.index = len(w.conns)
	w.conns = append(w.conns, d)
	w.open.Store(int64(len(w.conns)))
	w.metrics.connsActive[d.journey].Inc()
	w.metrics.conns[d.journey].Inc()
	switch s.Type {
	case SocketOutbound:
		d.startOutbound()
	case SocketGateway:
		d.startGateway()
	case SocketInbound:
		d.startInbound()
	}
}

// removeConn is the last that a connection does.
func (w *worker) removeConn(d *downConn) {
	last := len(w.conns) - 1
	w.conns[d.index] = w.conns[last]
	w.conns[d.index].index = d.index
	w.conns[last] = nil
	w.conns = w.conns[:last]
	w.open.Store(int64(last))
	d.sock.budget.close()
	w.metrics.connsActive[d.journey].Dec()
	w.checkDrained()
}

// drain stops accepting and asks all clients to go.
func (w *worker) drain(done chan struct{}) {
	for s := range w.listeners {
		w.unlisten(s)
	}
	for s := range w.udp {
		w.unlistenUDP(s)
	}
	w.drained = append(w.drained, done)
	conns := append([]*downConn(nil), w.conns...)
	for _, d := range conns {
		if d.mode != modeClosed {
			d.drain()
		}
	}
	w.checkDrained()
}

func (w *worker) checkDrained() {
	if len(w.conns) > 0 {
		return
	}
	for _, done := range w.drained {
		close(done)
	}
	w.drained = nil
}

// cluster returns a cluster as the store has it now, or nil and the kind of what
// is not known yet.
func (w *worker) cluster(name string) (*upstream.Cluster, mesh.Kind) {
	generation := w.proxy.generation.Load()
	if c := w.set.Get(name); c != nil && c.Checked == generation {
		return c, ""
	}
	config, _ := w.proxy.cfg.Store.Get(mesh.KindCluster, name).(*mesh.Cluster)
	if config == nil {
		w.set.Remove(name)
		w.want(mesh.KindClusterEndpoints, name)
		return nil, mesh.KindCluster
	}
	var endpoints *mesh.ClusterEndpoints
	if config.Hostname != "" {
		endpoints = w.proxy.names.of(config)
	} else {
		endpoints, _ = w.proxy.cfg.Store.Get(mesh.KindClusterEndpoints, name).(*mesh.ClusterEndpoints)
	}
	if endpoints == nil {
		w.set.Remove(name)
		return nil, mesh.KindClusterEndpoints
	}
	c := w.set.Update(name, config, generation, endpoints, endpoints.Endpoints)
	c.Checked = generation
	return c, ""
}

// want asks for a resource, unless it was asked for a moment ago. It reports
// whether it did.
func (w *worker) want(kind mesh.Kind, key string) bool {
	ref := mesh.Ref{Kind: kind, Key: key}
	now := w.loop.Now()
	if at, ok := w.wanted[ref]; ok && now-at < wantAgain {
		return false
	}
	if len(w.wanted) >= spare {
		clear(w.wanted)
	}
	w.wanted[ref] = now
	if w.proxy.cfg.Want != nil {
		w.proxy.cfg.Want(kind, key)
	}
	return true
}

// await has x told of each change of the configuration, until it waits no more.
func (w *worker) await(x waiter) {
	w.waiters = append(w.waiters, x)
	w.awaiting.Store(int32(len(w.waiters)))
	// What was committed before the store above is seen by this look; what comes
	// after it, the committer tells.
	w.recheckSoon()
}

// committed is called by the committer of the store.
func (w *worker) committed() {
	if w.awaiting.Load() > 0 {
		w.recheckSoon()
	}
}

// recheckSoon tells the waiters, in the loop's goroutine. Any goroutine may call it.
func (w *worker) recheckSoon() {
	if !w.recheck.Swap(true) {
		w.loop.Post(w.tellWaiters)
	}
}

func (w *worker) tellWaiters() {
	w.recheck.Store(false)
	waiters := w.waiters
	w.waiters = w.spareW[:0]
	for _, x := range waiters {
		x.configChanged()
		if w.stillWaiting(x) {
			w.waiters = append(w.waiters, x)
		}
	}
	clear(waiters)
	w.spareW = waiters[:0]
	w.awaiting.Store(int32(len(w.waiters)))
}

func (w *worker) stillWaiting(x waiter) bool {
	switch x := x.(type) {
	case *exchange:
		return x.waiting
	case *downConn:
		return x.waiting
	}
	return false
}

// poolDial is an attempt on behalf of a pool.
type poolDial struct {
	upstream.Dial
	w       *worker
	pool    *upstream.Pool
	release func() // of the cluster's limit
	// secured is the handshake, which follows the connection.
	secured *securing
}

// dialPool starts as many attempts as those who wait need.
func (w *worker) dialPool(pool *upstream.Pool) {
	for pool.Waiting() > 0 {
		if pool.Protocol == upstream.HTTP2 && pool.Connecting > 0 || pool.Connecting >= pool.Waiting() {
			return
		}
		release, ok := pool.Endpoint.Connect()
		if !ok {
			if pool.Open+pool.Connecting > 0 {
				return // those who wait get one that is in use now
			}
			w.loop.Post(func() {
				if pool.Waiting() > 0 && pool.Open+pool.Connecting == 0 {
					pool.Failed(upstream.ErrConnectionLimit)
					w.dialPool(pool)
				}
			})
			return
		}
		pool.Connecting++
		w.metrics.connects.Inc()
		p := &poolDial{w: w, pool: pool, release: release}
		p.Done, p.Source, p.Fallback = p.done, pool.Endpoint.Source, pool.Endpoint.Additional
		w.dialer.Start(pool.Workload, pool.Endpoint.AddrPort, &p.Dial)
	}
}

func (p *poolDial) done(_ *upstream.Dial, c *loop.Conn, err error) {
	w, pool := p.w, p.pool
	if err == nil && pool.TLS != nil && p.secured == nil {
		p.secured = w.secure(c, pool.TLS, func(s *securing, err error) { p.done(nil, s.c, err) })
		return
	}
	if err != nil || pool.Protocol == upstream.HTTP1 {
		pool.Connecting-- // of HTTP/2 when the SETTINGS are here
	}
	if err != nil {
		p.release()
		w.metrics.connectFailures.Inc()
		pool.Failed(err)
		w.dialPool(pool)
		return
	}
	pool.Open++
	release := p.release
	c.OnClose = func() {
		pool.Open--
		release()
		if pool.Waiting() > 0 {
			// Somebody waits who was not let dial.
			w.loop.Post(func() { w.dialPool(pool) })
		}
	}
	var conn upstream.Conn
	if pool.Protocol == upstream.HTTP2 {
		u := newH2up(w, c, pool)
		u.own(p.secured)
		conn = u
	} else {
		u := newH1up(w, c, pool)
		u.own(p.secured)
		w.loop.SetTimer(&u.timer, w.loop.Now()+int64(w.limits.PoolIdleTimeout))
		conn = u
	}
	if !pool.Put(conn) {
		conn.Retire()
		return
	}
	w.dialPool(pool)
}

func (w *worker) takeH1down(d *downConn) *h1down {
	var h *h1down
	if n := len(w.freeH1); n > 0 {
		h = w.freeH1[n-1]
		w.freeH1 = w.freeH1[:n-1]
	} else {
		h = &h1down{parser: http1.NewRequestParser(w.headLimits)}
		h.x.prepare(w)
	}
	h.d = d
	h.reading, h.last, h.timed, h.due, h.broken, h.excess = false, false, false, false, nil, 0
	h.starved, h.ahead = false, false
	d.h1 = h
	return h
}

func (w *worker) putH1down(h *h1down) {
	if h.d != nil && h.d.h1 == h {
		h.d.h1 = nil
	}
	h.d = nil
	h.parser.Reset()
	h.writer.Reset()
	if len(w.freeH1) >= spare {
		h.x.forget()
		return
	}
	w.freeH1 = append(w.freeH1, h)
}

func (w *worker) takeH2down(h *h2down, id uint32) *h2downStream {
	var s *h2downStream
	if n := len(w.freeH2); n > 0 {
		s = w.freeH2[n-1]
		w.freeH2 = w.freeH2[:n-1]
	} else {
		s = &h2downStream{}
		s.x.prepare(w)
	}
	s.h, s.id = h, id
	s.wire = &h.d.wire
	s.unconsumed, s.received, s.sent = 0, false, false
	return s
}

func (w *worker) putH2down(s *h2downStream) {
	s.sendQueue.reset(w)
	s.h = nil
	if len(w.freeH2) >= spare {
		s.x.forget()
		return
	}
	w.freeH2 = append(w.freeH2, s)
}

func (w *worker) takeH2up() *h2upStream {
	if n := len(w.freeUp); n > 0 {
		s := w.freeUp[n-1]
		w.freeUp = w.freeUp[:n-1]
		return s
	}
	return &h2upStream{}
}

func (w *worker) putH2up(s *h2upStream) {
	s.sendQueue.reset(w)
	queue := s.sendQueue
	*s = h2upStream{sendQueue: queue}
	if len(w.freeUp) < spare {
		w.freeUp = append(w.freeUp, s)
	}
}
