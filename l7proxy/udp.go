package l7proxy

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/l7proxy/loop"
	"github.com/sluice-mesh/sluice/l7proxy/upstream"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// udpTurns bounds the batches that one socket moves before others have their turn.
const udpTurns = 4

// refusalEvery is how far apart the flows that tell of refused datagrams are, in
// nanoseconds: a sender is not told, and may send any number. All are counted.
const refusalEvery = 1_000_000_000

// udpListener is one UDP port of a Gateway. One loop has all of it, because the
// datagrams of a client must meet their flow.
type udpListener struct {
	w       *worker
	sock    *socket
	watch   *loop.Packet
	flows   map[netip.AddrPort]*udpFlow
	refused int64 // when a refusal was last reported
}

// udpFlow is a client of a UDP port with its endpoint: a socket that is connected to the
// endpoint stands for the client there. The flow ends when no datagram has moved for the
// idle timeout.
type udpFlow struct {
	l        *udpListener
	client   netip.AddrPort
	cluster  string
	endpoint *upstream.Endpoint
	fd       int
	watch    *loop.Packet
	timer    loop.Timer
	checked  uint64 // generation of the configuration
	opened   int64
	moved    int64
	in, out  uint64
}

// listenUDP begins to serve a UDP port, if it is this worker's.
func (w *worker) listenUDP(s *socket) {
	if int(s.Addr.Port())%len(w.proxy.workers) != w.id {
		return
	}
	u := &udpListener{w: w, sock: s, flows: map[netip.AddrPort]*udpFlow{}, refused: -refusalEvery}
	var err error
	if u.watch, err = w.loop.WatchPacket(s.FD, u.ready); err != nil {
		w.proxy.log.Error("cannot receive from a socket", "journey", s.Type, "address", s.Addr, "error", err)
		return
	}
	if w.batch == nil {
		w.batch = loop.NewBatch()
	}
	w.udp[s] = u
	// A datagram does not wait for configuration: ask before the first one is here.
	w.want(mesh.KindListener, s.Listener)
}

func (w *worker) unlistenUDP(s *socket) {
	u := w.udp[s]
	if u == nil {
		return
	}
	delete(w.udp, s)
	u.watch.Close()
	for _, f := range u.flows {
		f.end(flow.ReasonNone, "")
	}
}

// ready takes datagrams of clients.
func (u *udpListener) ready() {
	for range udpTurns {
		n, err := u.w.batch.Recv(u.sock.FD)
		if err != nil {
			return // errors of earlier replies are told here, and are nobody's any more
		}
		for i := range n {
			p, from := u.w.batch.Datagram(i)
			if f := u.flowOf(from); f != nil {
				f.send(p)
			}
		}
	}
}

// flowOf returns a client's flow, a new one if need be, nil if it cannot have one.
func (u *udpListener) flowOf(client netip.AddrPort) *udpFlow {
	f := u.flows[client]
	if f != nil && f.stale() {
		f.end(flow.ReasonNone, "")
		f = nil
	}
	if f != nil {
		return f
	}
	w := u.w
	l := w.proxy.cfg.Store.Listener(u.sock.Listener)
	if l == nil {
		w.want(mesh.KindListener, u.sock.Listener)
		u.refuse(client, flow.ReasonNoRoute, "the listener is not known yet", nil)
		return nil
	}
	if len(l.Chains) == 0 || len(l.Chains[0].Default) == 0 {
		u.refuse(client, flow.ReasonNoRoute, "no route is attached", nil)
		return nil
	}
	backend := pickBackend(l.Chains[0].Default)
	if backend == nil || backend.Cluster == "" {
		u.refuse(client, flow.ReasonNoBackend, "", nil)
		return nil
	}
	cluster, kind := w.cluster(backend.Cluster)
	if cluster == nil {
		w.want(kind, backend.Cluster)
		u.refuse(client, flow.ReasonNoBackend, "the backend is not known yet", nil)
		return nil
	}
	e := cluster.Pick(upstream.Request{Client: client.Addr(), Hash: (&downConn{peer: client}).addressHash(), Hashed: true}, nil)
	if e == nil {
		u.refuse(client, flow.ReasonNoHealthyEndpoint, "", nil)
		return nil
	}
	if !u.sock.budget.open() {
		u.refuse(client, flow.ReasonOverLimit, "UDP flows", e)
		return nil
	}
	f = &udpFlow{
		l: u, client: client, cluster: backend.Cluster, endpoint: e,
		checked: w.proxy.generation.Load(), opened: w.loop.Now(), moved: w.loop.Now(),
	}
	f.timer.Handler = f
	var err error
	if f.fd, err = loop.NewPacketSocket(e.AddrPort); err == nil {
		f.watch, err = w.loop.WatchPacket(f.fd, f.ready)
		if err != nil {
			loop.CloseFD(f.fd)
		}
	}
	if err != nil {
		u.sock.budget.close()
		u.refuse(client, flow.ReasonConnectFailed, err.Error(), e)
		return nil
	}
	e.Active++
	u.flows[client] = f
	w.metrics.udpActive.Inc()
	w.loop.SetTimer(&f.timer, w.loop.Now()+int64(w.limits.UDPIdleTimeout))
	return f
}

// stale reports whether the configuration has no place for the flow any more: its
// endpoint is gone, or its route is.
func (f *udpFlow) stale() bool {
	w := f.l.w
	generation := w.proxy.generation.Load()
	if f.checked == generation {
		return false
	}
	f.checked = generation
	l := w.proxy.cfg.Store.Listener(f.l.sock.Listener)
	if l == nil || len(l.Chains) == 0 || !slices.ContainsFunc(l.Chains[0].Default, func(b mesh.WeightedCluster) bool {
		return b.Cluster == f.cluster && b.Weight > 0
	}) {
		return true
	}
	endpoints, _ := w.proxy.cfg.Store.Get(mesh.KindClusterEndpoints, f.cluster).(*mesh.ClusterEndpoints)
	return endpoints == nil || !slices.ContainsFunc(endpoints.Endpoints, func(e mesh.Endpoint) bool {
		return e.AddrPort == f.endpoint.AddrPort
	})
}

// send carries a datagram to the endpoint. What the kernel has no room for is lost, as
// datagrams are.
func (f *udpFlow) send(p []byte) {
	f.moved = f.l.w.loop.Now()
	f.in += uint64(len(p))
	if err := loop.SendDatagram(f.fd, p); errors.Is(err, unix.ECONNREFUSED) {
		f.end(flow.ReasonConnectFailed, err.Error())
	}
}

// ready carries datagrams of the endpoint to the client, from the Gateway's address.
func (f *udpFlow) ready() {
	w := f.l.w
	for range udpTurns {
		n, err := w.batch.Recv(f.fd)
		if err == loop.ErrAgain {
			return
		}
		if err != nil {
			f.end(flow.ReasonConnectFailed, err.Error())
			return
		}
		f.moved = w.loop.Now()
		for i := range n {
			p, _ := w.batch.Datagram(i)
			f.out += uint64(len(p))
		}
		_, _ = w.batch.SendAll(f.l.sock.FD, n, f.client)
	}
}

// OnTimer ends a flow that was quiet for long enough.
func (f *udpFlow) OnTimer(*loop.Timer) {
	w := f.l.w
	limit := int64(w.limits.UDPIdleTimeout)
	if w.loop.Now()-f.moved < limit {
		w.loop.SetTimer(&f.timer, f.moved+limit)
		return
	}
	f.end(flow.ReasonNone, "")
}

// end forgets the flow and leaves its record.
func (f *udpFlow) end(reason flow.Reason, detail string) {
	u := f.l
	if u.flows[f.client] != f {
		return
	}
	delete(u.flows, f.client)
	f.watch.Close()
	loop.CloseFD(f.fd)
	u.w.loop.DropTimer(&f.timer)
	f.endpoint.Done()
	u.sock.budget.close()
	u.w.metrics.udpActive.Dec()
	u.w.metrics.udpFlows.WithLabelValues(reason.String()).Inc()
	u.record(f.client, f.opened, reason, detail, f.in, f.out, f.endpoint)
}

// refuse counts a datagram that gets no flow.
func (u *udpListener) refuse(client netip.AddrPort, reason flow.Reason, detail string, e *upstream.Endpoint) {
	u.w.metrics.udpFlows.WithLabelValues(reason.String()).Inc()
	if now := u.w.loop.Now(); now-u.refused >= refusalEvery {
		u.refused = now
		u.record(client, now, reason, detail, 0, 0, e)
	}
}

func (u *udpListener) record(client netip.AddrPort, opened int64, reason flow.Reason, detail string, in, out uint64, e *upstream.Endpoint) {
	w := u.w
	w.metrics.bytesIn[SocketGateway].Add(float64(in))
	w.metrics.bytesOut[SocketGateway].Add(float64(out))
	if w.proxy.cfg.Flows == nil && w.proxy.cfg.AccessLog == nil {
		return
	}
	d := &downConn{journey: SocketGateway, sock: u.sock, peer: client, dest: u.sock.Addr}
	if l := w.proxy.cfg.Store.Listener(u.sock.Listener); l != nil {
		d.service = l.Parent
	}
	w.record = httpFlow{Flow: flow.Flow{Type: flow.TypeUDP}}
	f := &w.record.Flow
	w.fill(f, d, reason, detail, e)
	f.Protocol = mesh.ProtocolUDP
	f.BytesIn, f.BytesOut = in, out
	f.Duration = time.Duration(w.loop.Now() - opened)
	w.report(f, nil, w.proxy.cfg.Flows != nil)
}
