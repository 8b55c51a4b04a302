package l7proxy

import (
	"errors"
	"slices"

	"github.com/sluice-mesh/sluice/l7proxy/detect"
	"github.com/sluice-mesh/sluice/l7proxy/loop"
	"github.com/sluice-mesh/sluice/l7proxy/tlsengine"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// startGateway begins the journey of a connection to a Gateway's port.
func (d *downConn) startGateway() {
	d.listenerName = d.sock.Listener
	d.gatewayConfigured()
}

func (d *downConn) gatewayConfigured() {
	l := d.current()
	if l == nil {
		d.awaitConfig(mesh.KindListener, d.listenerName)
		return
	}
	d.stopWaiting()
	d.service = l.Parent
	if c := rawChain(l); c != nil {
		d.chain, d.chainName = c, c.Name
		d.startTunnel()
		return
	}
	d.mode = modeDetect
	d.helloBy = d.w.loop.Now() + int64(d.w.limits.HandshakeTimeout)
	d.w.loop.SetTimer(&d.timer, d.helloBy)
	d.detect()
}

// rawChain returns the chain of a listener that takes any bytes, nil if the listener
// wants HTTP or TLS.
func rawChain(l *mesh.Listener) *mesh.Chain {
	if len(l.Chains) == 1 {
		if c := &l.Chains[0]; !c.Passthrough && len(c.Certificates) == 0 && c.RouteTable == "" {
			return c
		}
	}
	return nil
}

// routesHTTP reports whether some chain of a listener has routes for requests.
func routesHTTP(l *mesh.Listener) bool {
	return slices.ContainsFunc(l.Chains, func(c mesh.Chain) bool { return c.RouteTable != "" })
}

func (d *downConn) gatewayDetected(kind detect.Kind) {
	if l := d.current(); kind != detect.TLS && l != nil && !routesHTTP(l) {
		d.fail(flow.ReasonDownstreamProtocol, "not TLS")
		return
	}
	switch kind {
	case detect.HTTP1:
		d.speakHTTP1()
	case detect.HTTP2:
		d.speakHTTP2()
	case detect.TLS:
		d.clientHello()
	default:
		d.fail(flow.ReasonDownstreamProtocol, "neither HTTP nor TLS")
	}
}

// clientHello chooses the chain and begins the handshake.
func (d *downConn) clientHello() {
	hello, done, err := detect.ParseClientHello(d.unread())
	if err != nil {
		d.fail(flow.ReasonTLSHandshake, err.Error())
		return
	}
	d.mode = modeDetect
	if !done {
		// One deadline for all of it, however slowly the bytes come.
		d.w.loop.SetTimer(&d.timer, d.helloBy)
		if d.settle() != nil {
			d.fail(flow.ReasonOverLimit, "")
		}
		return
	}
	if d.w.proxy.cfg.Certificates == nil {
		d.fail(flow.ReasonNoChain, "no certificates")
		return
	}
	cfg, chain, ok := d.w.proxy.cfg.Certificates.Config(d.listenerName, hello.ServerName)
	d.serverName = hello.ServerName
	if !ok || chain == nil || cfg == nil && !chain.Passthrough {
		d.fail(flow.ReasonNoChain, noChain(hello.ServerName, chain))
		return
	}
	d.chain, d.chainName, d.isTLS = chain, chain.Name, true
	if chain.Passthrough {
		d.startTunnel()
		return
	}
	if refused := d.sock.budget.handshakes.begin(d.peer.Addr(), d.w.limits.MaxHandshakes, d.w.limits.MaxHandshakesPerClient); refused != "" {
		d.fail(flow.ReasonOverLimit, refused)
		return
	}
	d.shaking = true
	d.mode = modeHandshake
	d.after(int64(d.w.limits.HandshakeTimeout))
	l := d.w.loop
	d.tls = tlsengine.Server(cfg, func() { l.Post(d.tlsWake) })
	d.tls.Feed(d.unread())
	d.keep(nil)
	d.handshake()
}

// shaken ends the handshake's share of the limits.
func (d *downConn) shaken() {
	if d.shaking {
		d.shaking = false
		d.sock.budget.handshakes.end(d.peer.Addr())
	}
}

// noChain says in words why no chain takes a client that asked for a server name.
func noChain(serverName string, chain *mesh.Chain) string {
	switch {
	case chain != nil && len(chain.Certificates) > 0:
		return "no certificate is known for listener " + chain.Name
	case serverName == "":
		return "the client sent no server name"
	}
	return "server name " + serverName
}

func (d *downConn) tlsWake() {
	if d.mode == modeHandshake {
		d.handshake()
	}
}

// maxHandshakeBytes bounds what a client may send ahead of its handshake.
const maxHandshakeBytes = 64 << 10

// handshake carries bytes to and from the engine until it is done.
func (d *downConn) handshake() {
	for d.tls.Buffered() < maxHandshakeBytes {
		done, err := d.tls.HandshakeDone()
		if done || err != nil {
			break
		}
		n, err := d.c.Read(d.w.cipher[:16<<10])
		if errors.Is(err, loop.ErrAgain) {
			break
		}
		if err != nil {
			d.tls.FeedEOF()
			d.fail(flow.ReasonTLSHandshake, "connection closed during the handshake")
			return
		}
		d.tls.Feed(d.w.cipher[:n])
	}
	done, err := d.tls.HandshakeDone()
	for {
		p := d.tls.Out()
		if len(p) == 0 {
			break
		}
		n, serr := d.c.Send(p)
		if serr != nil && serr != loop.ErrAgain {
			d.fail(flow.ReasonTLSHandshake, serr.Error())
			return
		}
		if n == 0 {
			break
		}
		d.tls.Sent(n)
	}
	if err != nil {
		d.fail(flow.ReasonTLSHandshake, err.Error())
		return
	}
	if !done {
		return
	}
	d.shaken()
	d.w.loop.StopTimer(&d.timer)
	if d.chain.RouteTable == "" {
		d.startTunnel()
		return
	}
	switch d.tls.ALPN() {
	case "h2":
		d.speakHTTP2()
	default:
		d.speakHTTP1()
	}
}
