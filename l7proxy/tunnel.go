package l7proxy

import (
	"crypto/tls"
	"errors"
	"io"

	"github.com/sluice-mesh/sluice/l7proxy/detect"
	"github.com/sluice-mesh/sluice/l7proxy/loop"
	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/l7proxy/relay"
	"github.com/sluice-mesh/sluice/l7proxy/route"
	"github.com/sluice-mesh/sluice/l7proxy/upstream"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// tunnelTries is how many endpoints a raw connection is offered to.
const tunnelTries = 3

// tunnel is a downstream connection that is carried as bytes: raw TCP, or what an
// HTTP/1.1 Upgrade became.
type tunnel struct {
	d        *downConn
	up       *loop.Conn
	upWire   *wire // around up, over TLS only
	securing *securing
	relay    relay.Relay
	running  bool
	dial     *upstream.Dial
	cluster  *upstream.Cluster
	endpoint *upstream.Endpoint
	counted  bool
	unlimit  func() // of the cluster's limit of connections
	tries    int
	guessing bool // too few bytes of the client are here to tell its protocol; the timer bounds that

	x  *exchange // of an upgrade
	h1 *h1down
	u1 *h1up
}

// startTunnel carries the connection to one of the service's endpoints as bytes.
func (d *downConn) startTunnel() {
	d.mode = modeTunnel
	t := &tunnel{d: d}
	d.tunnel = t
	d.alone = d.in == nil && (d.journey == SocketInbound || d.journey == SocketOutbound && d.port != nil && d.port.AppProtocol == mesh.AppProtocolUnknown && d.routed())
	d.after(int64(d.w.limits.TCPIdleTimeout))
	t.choose()
}

// routed reports whether routes are attached for the connection's client.
func (d *downConn) routed() bool {
	l := d.current()
	return l != nil && route.ServiceTable(l, d.source.Namespace) != ""
}

func (t *tunnel) configChanged() { t.choose() }

// choose picks an endpoint and dials it.
func (t *tunnel) choose() {
	d := t.d
	if d.journey == SocketInbound {
		t.connect(d.w.set.Endpoint(mesh.Endpoint{AddrPort: d.dest, Workload: d.source}))
		return
	}
	clusters := d.defaults()
	if len(clusters) == 0 && d.journey == SocketGateway {
		t.end(flow.ReasonNoRoute, "no route is attached to listener "+d.chain.Name)
		return
	}
	if len(clusters) == 0 {
		// Not steered any more: what the kernel would have done.
		svc, i := d.w.proxy.cfg.Store.ServiceByFrontend(mesh.Frontend{AddrPort: d.dest, Protocol: mesh.ProtocolTCP})
		if svc == nil {
			t.end(flow.ReasonNoHealthyEndpoint, "the service is gone")
			return
		}
		t.cluster = d.w.set.Update(d.listenerName, nil, 0, svc, svc.Ports[i].Endpoints)
	} else {
		backend := pickBackend(clusters)
		if backend == nil || backend.Cluster == "" {
			t.end(flow.ReasonNoBackend, "")
			return
		}
		cluster, kind := d.w.cluster(backend.Cluster)
		if cluster == nil {
			if !d.waiting {
				d.waiting = true
				d.after(int64(d.w.limits.ConfigWait))
				d.w.await(d)
			}
			if d.w.want(kind, backend.Cluster) {
				d.w.recheckSoon()
			}
			return
		}
		t.cluster = cluster
	}
	if !t.cluster.Warm() {
		if !d.waiting {
			d.waiting = true
			d.after(int64(d.w.limits.ConfigWait))
			d.w.await(d)
		}
		return
	}
	if d.waiting {
		d.waiting = false
		d.after(int64(d.w.limits.TCPIdleTimeout))
	}
	e := t.cluster.Pick(upstream.Request{Client: d.peer.Addr(), Hash: d.addressHash(), Hashed: true}, t.endpoint)
	if e == nil {
		t.end(flow.ReasonNoHealthyEndpoint, "")
		return
	}
	t.connect(e)
}

func (t *tunnel) connect(e *upstream.Endpoint) {
	t.tries++
	t.endpoint = e
	release, ok := e.Connect()
	if !ok {
		t.end(flow.ReasonBackendConnectionLimit, upstream.ErrConnectionLimit.Error())
		return
	}
	t.unlimit = release
	e.Active++
	t.counted = true
	t.dial = &upstream.Dial{Done: t.dialed, Fallback: e.Additional}
	if t.d.journey == SocketInbound {
		t.dial.Source = t.d.peer.Addr().Unmap() // the server sees its client
	}
	t.d.w.dialer.Start(t.d.workload, e.AddrPort, t.dial)
}

func (t *tunnel) uncount() {
	if t.counted {
		t.counted = false
		if t.unlimit != nil {
			t.unlimit()
			t.unlimit = nil
		}
		t.endpoint.Done()
	}
}

func (t *tunnel) dialed(_ *upstream.Dial, c *loop.Conn, err error) {
	t.dial = nil
	if err != nil {
		if t.cluster != nil && !errors.Is(err, upstream.ErrNoSocket) {
			t.endpoint.Failed()
		}
		t.uncount()
		if t.tries < tunnelTries && t.cluster != nil && t.cluster.Len() > 1 {
			t.choose()
			return
		}
		reason := flow.ReasonConnectFailed
		if errors.Is(err, upstream.ErrTimeout) {
			reason = flow.ReasonConnectTimeout
		}
		t.end(reason, err.Error())
		return
	}
	cfg, err := t.originate()
	if err != nil {
		c.Close()
		t.end(flow.ReasonUpstreamTLS, err.Error())
		return
	}
	if cfg != nil {
		t.securing = t.d.w.secure(c, cfg, t.secured)
		return
	}
	c.SetHandler(t)
	t.up = c
	t.start(c)
}

// originate returns the settings of TLS towards the endpoint. What a client encrypts
// by itself is not encrypted again.
func (t *tunnel) originate() (*tls.Config, error) {
	d := t.d
	if d.journey != SocketGateway || d.chain.Passthrough {
		return nil, nil
	}
	return d.w.originate(t.cluster, raw, d.current())
}

// secured goes on after the handshake with the endpoint.
func (t *tunnel) secured(s *securing, err error) {
	t.securing = nil
	if err != nil {
		t.endpoint.Failed()
		t.uncount()
		if t.tries < tunnelTries && t.cluster.Len() > 1 {
			t.choose()
			return
		}
		t.end(flow.ReasonUpstreamTLS, err.Error())
		return
	}
	s.c.SetHandler(t)
	t.up = s.c
	t.upWire = new(wire)
	t.upWire.init(t.d.w, s.c, &t.d.w.proxy.upstreamBudget)
	t.upWire.own(s)
	t.start(t.upWire)
}

// start begins to relay, with what the client sent already.
func (t *tunnel) start(up relay.Stream) {
	d := t.d
	var down relay.Stream = d.c
	if d.tls != nil || d.pending() > 0 {
		down = &d.wire
	}
	t.relay.Init(d.w.loop, down, up, &d.w.pipes, d.budget)
	t.running = true
	if d.alone {
		// What the client has begun to say may be HTTP: listen holds it until that is
		// known, or it would get around the routes.
		t.ready()
		return
	}
	if err := t.relay.Inject(relay.Downstream, d.unread()); err != nil {
		t.end(flow.ReasonOverLimit, "")
		return
	}
	d.keep(nil)
	_ = d.settle() // less than before
	if d.ended {
		t.relay.Ended(relay.Downstream)
	}
	t.ready()
}

// Ready is called by the loop for the endpoint's side.
func (t *tunnel) Ready(*loop.Conn) {
	if t.d.mode == modeTunnel {
		t.ready()
	}
}

func (t *tunnel) ready() {
	d := t.d
	if d.alone && !t.listen() {
		return
	}
	if d.alone && t.running {
		// Neither side has said enough; the relay must not read what listen holds.
		switch {
		case d.c.Failed():
			t.end(flow.ReasonDownstreamReset, "")
		case d.gone:
			t.end(flow.ReasonNone, "")
		case d.readable():
			d.c.Again()
		}
		return
	}
	if !t.running {
		if d.c.Failed() {
			t.end(flow.ReasonDownstreamReset, "")
		}
		return
	}
	if d.tls != nil && d.pending() > 0 {
		if err := d.flush(); err != nil {
			t.end(flow.ReasonDownstreamReset, err.Error())
			return
		}
	}
	if t.upWire != nil && t.upWire.pending() > 0 {
		if err := t.upWire.flush(); err != nil {
			t.end(flow.ReasonUpstreamReset, err.Error())
			return
		}
	}
	more, done, err := t.relay.Pump()
	if err != nil {
		t.failed(err)
		return
	}
	if d.c.Failed() {
		// It is not read while the endpoint is slow; nobody wants what waits.
		t.end(flow.ReasonDownstreamReset, "reset")
		return
	}
	if done && d.pending() == 0 && (t.upWire == nil || t.upWire.pending() == 0) {
		t.end(flow.ReasonNone, "")
		return
	}
	if more {
		d.c.Again()
	}
}

// listen watches for a client that turns out to speak HTTP although it was silent
// for the grace. It reports whether the connection is still a tunnel.
func (t *tunnel) listen() bool {
	d := t.d
	if _, fromUp := t.relay.Moved(); t.running && (fromUp > 0 || t.up.Readable()) {
		d.alone = false // the server speaks first
		if d.journey == SocketOutbound {
			d.w.noteFirst(d.listenerName, false)
		}
		if d.in != nil {
			if err := t.relay.Inject(relay.Downstream, d.unread()); err != nil {
				t.end(flow.ReasonOverLimit, "")
				return false
			}
			d.keep(nil)
		}
		return true
	}
	if !d.readable() {
		return true
	}
	buf, err := d.read()
	d.keep(buf)
	buf = d.unread()
	if len(buf) == 0 {
		if err == io.EOF {
			d.alone = false
			if t.running {
				t.relay.Ended(relay.Downstream)
			}
		}
		return true
	}
	kind, decided := detect.Detect(buf)
	if err == io.EOF && !decided {
		kind, decided = detect.Other, true
	}
	if !decided {
		if !t.guessing {
			t.guessing = true
			d.after(int64(d.w.limits.SniffGrace))
		}
		return true
	}
	return t.heard(kind)
}

// heard acts on what the client, the first to speak, turned out to speak. It reports
// whether the connection is still a tunnel.
func (t *tunnel) heard(kind detect.Kind) bool {
	d := t.d
	d.alone = false
	if kind == detect.HTTP1 || kind == detect.HTTP2 {
		t.abandon()
		d.outboundDetected(kind)
		return false
	}
	if t.guessing {
		t.guessing = false
		d.after(int64(d.w.limits.TCPIdleTimeout))
	}
	if t.running {
		if err := t.relay.Inject(relay.Downstream, d.unread()); err != nil {
			t.end(flow.ReasonOverLimit, "")
			return false
		}
		d.keep(nil)
		if d.ended {
			t.relay.Ended(relay.Downstream)
		}
	}
	return true
}

// abandon lets go of the endpoint.
func (t *tunnel) abandon() {
	t.d.tunnel = nil
	t.d.waiting = false
	t.release()
}

func (t *tunnel) release() {
	if t.dial != nil {
		t.dial.Cancel()
		t.dial = nil
	}
	if t.running {
		t.relay.Release()
		t.running = false
	}
	if t.securing != nil {
		t.securing.cancel()
		t.securing = nil
	}
	if t.upWire != nil {
		t.upWire.close()
		t.upWire, t.up = nil, nil
	}
	if t.up != nil {
		t.up.Close()
		t.up = nil
	}
	t.uncount()
}

func (t *tunnel) failed(err error) {
	reason := flow.ReasonUpstreamReset
	var re *relay.Error
	detail := err.Error()
	if errors.As(err, &re) {
		detail = re.Err.Error()
		switch {
		case errors.Is(err, relay.ErrOverLimit):
			reason = flow.ReasonOverLimit
		case re.Side == relay.Downstream:
			reason = flow.ReasonDownstreamReset
		}
	}
	t.end(reason, detail)
}

func (t *tunnel) timeout() {
	d := t.d
	if d.waiting {
		d.waiting = false
		t.end(flow.ReasonNoBackend, "configuration did not arrive in time")
		return
	}
	if t.guessing {
		if d.alone {
			if t.heard(detect.Guess(d.unread())) {
				t.ready()
			}
			return
		}
		t.guessing = false
	}
	limit := int64(d.w.limits.TCPIdleTimeout)
	last := d.opened
	if t.running {
		last = t.relay.LastMove()
	}
	if d.w.loop.Now()-last < limit {
		d.w.loop.SetTimer(&d.timer, last+limit)
		return
	}
	t.end(flow.ReasonIdleTimeout, "")
}

// end closes both sides and leaves the record.
func (t *tunnel) end(reason flow.Reason, detail string) {
	d := t.d
	if d.mode != modeTunnel {
		return
	}
	var in, out uint64
	if t.running {
		in, out = t.relay.Moved()
	}
	abort := reason != flow.ReasonNone
	if abort && t.up != nil {
		loop.Abort(t.up.FD())
	}
	if t.x != nil {
		t.endUpgrade(reason, detail, in, out)
	} else {
		d.w.recordConn(d, reason, detail, in, out, t.endpoint)
	}
	t.release()
	if abort && !d.c.Closed() {
		loop.Abort(d.c.FD())
	}
	d.waiting = false
	d.close()
}

// upgrade turns an exchange, whose response is 101, into a tunnel between its two
// connections.
func (x *exchange) upgrade(u *h1up, h *message.Head, rest []byte) {
	h1, ok := x.down.(*h1down)
	if !ok {
		u.fail(flow.ReasonUpstreamProtocol, errUpgradeStream)
		return
	}
	d := x.d
	x.status = 101
	x.responded, x.upgraded = true, true
	x.w.loop.StopTimer(&x.pause)
	x.w.loop.StopTimer(&x.deadline)
	x.w.loop.StopTimer(&x.idle)
	x.recording = false
	x.dropBody()
	h1.respond(h)
	if h1.broken != nil {
		d.http1Gone(flow.ReasonInternal)
		return
	}
	x.up = nil
	t := &tunnel{d: d, x: x, h1: h1, u1: u, up: u.c, endpoint: x.endpoint}
	d.tunnel = t
	d.mode = modeTunnel
	u.x = nil
	u.w.loop.DropTimer(&u.timer)
	if err := d.flush(); err != nil {
		t.end(flow.ReasonDownstreamReset, err.Error())
		return
	}
	var down relay.Stream = d.c
	if d.tls != nil || d.pending() > 0 {
		down = &d.wire
	}
	var up relay.Stream = u.c
	if u.tls != nil {
		t.upWire = new(wire)
		t.upWire.init(u.w, u.c, u.budget)
		t.upWire.tls, t.upWire.dry = u.tls, u.dry
		up = t.upWire
	}
	t.relay.Init(d.w.loop, down, up, &d.w.pipes, d.budget)
	t.running = true
	// A request with an Upgrade has no body, or it went before the 101; what the
	// client sent behind it is for the new protocol.
	err := t.relay.Inject(relay.Downstream, d.unread())
	if err == nil {
		err = t.relay.Inject(relay.Upstream, rest)
	}
	d.keep(nil)
	u.keep(nil)
	u.release()
	if err != nil {
		t.failed(err)
		return
	}
	u.c.SetHandler(t)
	d.after(int64(d.w.limits.TCPIdleTimeout))
	d.c.Again()
}

var errUpgradeStream = errors.New("101 in answer to a stream")

// endUpgrade ends the exchange that became t.
func (t *tunnel) endUpgrade(reason flow.Reason, detail string, in, out uint64) {
	x := t.x
	x.bytesIn += in
	x.bytesOut += out
	x.reason, x.detail = reason, detail
	x.finish()
	t.d.w.putH1down(t.h1)
}
