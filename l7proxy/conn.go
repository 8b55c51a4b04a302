package l7proxy

import (
	"io"
	"net/netip"

	"github.com/sluice-mesh/sluice/l7proxy/detect"
	"github.com/sluice-mesh/sluice/l7proxy/loop"
	"github.com/sluice-mesh/sluice/l7proxy/route"
	"github.com/sluice-mesh/sluice/l7proxy/upstream"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// mode is what a downstream connection is about.
type mode uint8

const (
	modeConfig    mode = iota // waits for its listener's configuration
	modeDetect                // the client's first bytes are awaited
	modeHandshake             // TLS
	modeHTTP1
	modeHTTP2
	modeTunnel
	modeLinger // everything is said; the client's last bytes are thrown away
	modeClosed
)

var modeNames = [...]string{"config", "detect", "tls", "http/1.1", "h2", "tcp", "closing", "closed"}

// lingerTime and lingerBytes bound what a client may still send after it was
// answered early: closing at once would reset the connection, and the answer with it.
const (
	lingerTime  = 1_000_000_000
	lingerBytes = 1 << 20
)

// downConn is a connection that the proxy accepted. What it needs beside this
// while a request is under way is lent by the worker.
type downConn struct {
	wire
	id      uint64
	sock    *socket
	journey SocketType
	mode    mode
	index   int // in worker.conns

	peer     netip.AddrPort
	dest     netip.AddrPort // what the client dialled
	workload mesh.WorkloadIndex
	source   mesh.Name // the client's, zero if unknown

	service      mesh.Name
	listenerName string
	chainName    string      // TLS only
	chain        *mesh.Chain // gateways, once it is chosen for the connection as a whole
	serverName   string      // that the client asked for
	helloBy      int64       // when the ClientHello must be complete
	isTLS        bool
	shaking      bool           // counts among the handshakes under way
	listener     *mesh.Listener // as of checked
	checked      uint64
	port         *mesh.ServicePort // outbound; nil without a listener of its own
	portSource   *mesh.Service
	cluster      *upstream.Cluster // inbound HTTP

	opened    int64
	exchanges uint64
	series    lastSeries
	lingered  int
	alone     bool // no byte of the client was seen before the tunnel began
	waiting   bool // for configuration
	gone      bool // drain: closes when idle

	h1     *h1down
	h2     *h2down
	tunnel *tunnel

	timer        loop.Timer
	forwardedBuf []byte
}

// Ready is called by the loop.
func (d *downConn) Ready(*loop.Conn) {
	switch d.mode {
	case modeConfig:
		if d.c.HungUp() && d.c.Failed() {
			d.fail(flow.ReasonDownstreamReset, "")
		}
	case modeDetect:
		d.detect()
	case modeHandshake:
		d.handshake()
	case modeHTTP1:
		d.http1Ready()
	case modeHTTP2:
		d.h2.ready()
	case modeTunnel:
		d.tunnel.ready()
	case modeLinger:
		d.linger()
	}
}

// OnTimer ends a wait of the connection itself.
func (d *downConn) OnTimer(*loop.Timer) {
	switch d.mode {
	case modeConfig:
		d.waiting = false
		d.fail(flow.ReasonNoRoute, "configuration did not arrive in time")
	case modeDetect:
		if d.journey == SocketGateway {
			d.fail(flow.ReasonIdleTimeout, "")
			return
		}
		if d.in != nil {
			d.outboundDetected(detect.Guess(d.unread()))
			return
		}
		// A server that speaks first must not be kept waiting.
		d.startTunnel()
	case modeHandshake:
		d.fail(flow.ReasonTLSHandshake, "timed out")
	case modeHTTP1:
		d.http1Timeout()
	case modeHTTP2:
		d.h2.timeout()
	case modeTunnel:
		d.tunnel.timeout()
	case modeLinger:
		d.close()
	}
}

func (d *downConn) after(n int64) { d.w.loop.SetTimer(&d.timer, d.w.loop.Now()+n) }

func (d *downConn) scheme() string {
	if d.isTLS {
		return "https"
	}
	return "http"
}

// forwardedFor is the client's address for x-forwarded-for.
func (d *downConn) forwardedFor() []byte {
	if d.forwardedBuf == nil {
		d.forwardedBuf = d.peer.Addr().AppendTo(nil)
	}
	return d.forwardedBuf
}

// current returns the connection's listener as the store has it now, nil if it is
// not known.
func (d *downConn) current() *mesh.Listener {
	if generation := d.w.proxy.generation.Load(); d.checked != generation || d.listener == nil {
		d.listener = d.w.proxy.cfg.Store.Listener(d.listenerName)
		d.checked = generation
	}
	return d.listener
}

// plan finds where a request's rules are.
func (d *downConn) plan(authority []byte) plan {
	l := d.current()
	if l == nil {
		return plan{missing: d.listenerName}
	}
	if d.journey == SocketGateway {
		return gatewayPlan(l, authority, d.isTLS, d.chainName)
	}
	table := route.ServiceTable(l, d.source.Namespace)
	if table == "" {
		return plan{reason: flow.ReasonNoRoute}
	}
	return plan{table: table}
}

// detect looks at the client's first bytes.
func (d *downConn) detect() {
	buf, err := d.read()
	d.keep(buf)
	buf = d.unread()
	kind, decided := detect.Other, false
	if len(buf) > 0 {
		kind, decided = detect.Detect(buf)
	}
	switch {
	case decided:
	case err == io.EOF && len(buf) == 0:
		d.closeQuiet()
		return
	case err == io.EOF:
		kind = detect.Other
	case err != nil && err != loop.ErrAgain:
		d.fail(flow.ReasonDownstreamReset, err.Error())
		return
	default:
		if d.settle() != nil {
			d.fail(flow.ReasonOverLimit, "")
		}
		return
	}
	d.w.loop.StopTimer(&d.timer)
	if d.journey == SocketGateway {
		d.gatewayDetected(kind)
		return
	}
	d.outboundDetected(kind)
}

// speakHTTP1 goes on as HTTP/1.
func (d *downConn) speakHTTP1() {
	d.mode = modeHTTP1
	d.after(int64(d.w.limits.IdleTimeout))
	d.http1Ready()
}

// speakHTTP2 goes on as HTTP/2.
func (d *downConn) speakHTTP2() {
	d.mode = modeHTTP2
	d.h2 = newH2down(d)
	d.after(int64(d.w.limits.IdleTimeout))
	d.h2.ready()
}

// startLinger closes after the client has taken what was written.
func (d *downConn) startLinger() {
	d.mode = modeLinger
	d.after(lingerTime)
	d.linger()
}

func (d *downConn) linger() {
	if d.pending() > 0 {
		if err := d.flush(); err != nil {
			d.close()
			return
		}
		if d.pending() > 0 {
			return
		}
	}
	if d.lingered == 0 {
		d.lingered = 1
		d.CloseWrite()
	}
	// A client that sends on and on is left blocked until the time is over, so that
	// it sees the answer.
	for d.lingered < lingerBytes {
		n, err := d.c.Read(d.w.cipher)
		d.lingered += n
		if err == loop.ErrAgain {
			return
		}
		if err != nil {
			d.close()
			return
		}
	}
}

// fail ends a connection that got no answer, with a record of why.
func (d *downConn) fail(reason flow.Reason, detail string) {
	if d.mode == modeClosed {
		return
	}
	d.w.recordConn(d, reason, detail, 0, 0, nil)
	if reason != flow.ReasonDownstreamReset && reason != flow.ReasonTLSHandshake {
		loop.Abort(d.c.FD())
	}
	d.close()
}

// closeQuiet ends a connection on which nothing happened.
func (d *downConn) closeQuiet() {
	d.close()
}

// close ends the connection. Its exchanges and tunnel have ended before.
func (d *downConn) close() {
	if d.mode == modeClosed {
		return
	}
	d.mode = modeClosed
	d.shaken()
	d.w.loop.DropTimer(&d.timer)
	d.wire.close()
	d.leaveInbound()
	d.w.removeConn(d)
}

// kill ends the connection with all that is under way on it.
func (d *downConn) kill(reason flow.Reason) {
	switch d.mode {
	case modeHTTP1:
		d.http1Gone(reason)
	case modeHTTP2:
		d.h2.gone(reason)
	case modeTunnel:
		d.tunnel.end(reason, "")
	case modeConfig, modeDetect, modeHandshake:
		d.fail(reason, "")
	default:
		d.close()
	}
}

// drain asks the client to go.
func (d *downConn) drain() {
	d.gone = true
	switch d.mode {
	case modeHTTP1:
		if d.h1 == nil {
			d.close()
		}
	case modeHTTP2:
		d.h2.drain()
	case modeDetect:
		if d.in == nil {
			d.closeQuiet()
		}
	}
}
