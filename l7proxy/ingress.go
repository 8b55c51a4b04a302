package l7proxy

import (
	"errors"

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
	d.mode = modeDetect
	d.after(int64(d.w.limits.HandshakeTimeout))
	d.detect()
}

func (d *downConn) gatewayDetected(kind detect.Kind) {
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
		d.after(int64(d.w.limits.HandshakeTimeout))
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
	if !ok || cfg == nil || chain == nil {
		d.fail(flow.ReasonNoChain, "server name "+hello.ServerName)
		return
	}
	d.chainName, d.isTLS = chain.Name, true
	d.mode = modeHandshake
	d.after(int64(d.w.limits.HandshakeTimeout))
	l := d.w.loop
	d.tls = tlsengine.Server(cfg, func() { l.Post(d.tlsWake) })
	d.tls.Feed(d.unread())
	d.keep(nil)
	d.handshake()
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
	d.w.loop.StopTimer(&d.timer)
	switch d.tls.ALPN() {
	case "h2":
		d.speakHTTP2()
	default:
		d.speakHTTP1()
	}
}
