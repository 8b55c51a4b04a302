package l7proxy

import (
	"strconv"

	"github.com/sluice-mesh/sluice/l7proxy/detect"
	"github.com/sluice-mesh/sluice/l7proxy/route"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// startOutbound begins the journey of a workload's connection that was steered
// here. d.dest is what the workload dialled.
func (d *downConn) startOutbound() {
	svc, i := d.w.proxy.cfg.Store.ServiceByFrontend(mesh.Frontend{AddrPort: d.dest, Protocol: mesh.ProtocolTCP})
	if svc == nil {
		d.fail(flow.ReasonNoRoute, "no service has the address "+d.dest.String())
		return
	}
	d.service = svc.Name
	d.portSource, d.port = svc, &svc.Ports[i]
	d.listenerName = "service/" + svc.Name.Namespace + "/" + svc.Name.Name + "/" + strconv.Itoa(int(d.port.Port))
	d.outboundConfigured()
}

// outboundConfigured goes on once the listener is known.
func (d *downConn) outboundConfigured() {
	l := d.current()
	if l == nil && d.port.Steered {
		d.awaitConfig(mesh.KindListener, d.listenerName)
		return
	}
	d.stopWaiting()
	if l == nil || route.ServiceTable(l, d.source.Namespace) == "" {
		d.startTunnel()
		return
	}
	// The first request will need the routes: ask before it is here.
	if table := route.ServiceTable(l, d.source.Namespace); !d.w.proxy.cfg.Routes.Has(table) {
		d.w.want(mesh.KindVirtualHost, table+"/*")
	}
	switch d.port.AppProtocol {
	case mesh.AppProtocolHTTP, mesh.AppProtocolHTTP2, mesh.AppProtocolUnknown:
		// Clients speak both versions to one port (KEP-3726): the preface tells.
		d.mode = modeDetect
		d.after(int64(d.w.limits.SniffGrace))
		if d.port.AppProtocol != mesh.AppProtocolUnknown {
			// Nobody waits for such a server to speak first.
			d.after(int64(d.w.limits.IdleTimeout))
		}
		d.detect()
		if d.mode == modeDetect && d.in == nil && d.port.AppProtocol == mesh.AppProtocolUnknown && !d.w.speaksFirst(d.listenerName) {
			// The server may be the one to speak first, and is not kept waiting for the
			// grace: the tunnel listens for a client that speaks HTTP.
			d.startTunnel()
		}
	default:
		d.startTunnel()
	}
}

// speaksFirst reports whether the last client of a port whose protocol is unknown spoke
// HTTP, so that its server will hardly speak first.
func (w *worker) speaksFirst(listener string) bool {
	_, ok := w.httpPorts[listener]
	return ok
}

// noteFirst notes who spoke first on a port whose protocol is unknown.
func (w *worker) noteFirst(listener string, client bool) {
	if !client {
		delete(w.httpPorts, listener)
		return
	}
	if len(w.httpPorts) >= spare {
		clear(w.httpPorts)
	}
	w.httpPorts[listener] = struct{}{}
}

func (d *downConn) outboundDetected(kind detect.Kind) {
	if d.journey == SocketInbound {
		d.inboundDetected(kind)
		return
	}
	if d.port.AppProtocol == mesh.AppProtocolUnknown {
		d.w.noteFirst(d.listenerName, kind == detect.HTTP1 || kind == detect.HTTP2)
	}
	switch kind {
	case detect.HTTP1:
		d.speakHTTP1()
	case detect.HTTP2:
		d.speakHTTP2()
	default:
		if p := d.port.AppProtocol; p == mesh.AppProtocolHTTP || p == mesh.AppProtocolHTTP2 {
			// The port says HTTP: what is none is refused by the parser and does not
			// get around the routes as raw bytes.
			d.speakHTTP1()
			return
		}
		d.startTunnel()
	}
}

// awaitConfig waits for a resource that the whole connection needs.
func (d *downConn) awaitConfig(kind mesh.Kind, key string) {
	d.mode = modeConfig
	if !d.waiting {
		d.waiting = true
		d.after(int64(d.w.limits.ConfigWait))
		d.w.await(d)
	}
	if d.w.want(kind, key) {
		d.w.recheckSoon()
	}
}

func (d *downConn) stopWaiting() {
	if d.waiting {
		d.waiting = false
		d.w.loop.StopTimer(&d.timer)
	}
}

// configChanged looks again.
func (d *downConn) configChanged() {
	if !d.waiting || d.mode != modeConfig && d.mode != modeTunnel {
		return
	}
	if d.mode == modeTunnel {
		d.tunnel.configChanged()
		return
	}
	if d.journey == SocketGateway {
		d.gatewayConfigured()
		return
	}
	d.outboundConfigured()
}

// defaults are the backends of a connection that is not HTTP.
func (d *downConn) defaults() []mesh.WeightedCluster {
	if d.journey == SocketGateway {
		return d.chain.Default
	}
	if l := d.current(); l != nil && len(l.Chains) > 0 {
		return l.Chains[0].Default
	}
	return nil
}
