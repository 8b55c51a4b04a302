package l7proxy

import (
	"github.com/sluice-mesh/sluice/l7proxy/detect"
	"github.com/sluice-mesh/sluice/l7proxy/route"
	"github.com/sluice-mesh/sluice/l7proxy/upstream"
	"github.com/sluice-mesh/sluice/mesh"
)

// startInbound begins the journey of a connection to one of a workload's own ports:
// it is passed on to that port from the client's address, and seen on the way. What
// is no HTTP is carried as bytes; so is what a client says who lets the server speak
// first.
func (d *downConn) startInbound() {
	d.mode = modeDetect
	d.after(int64(d.w.limits.SniffGrace))
	d.detect()
}

func (d *downConn) inboundDetected(kind detect.Kind) {
	switch kind {
	case detect.HTTP1:
		d.speakHTTP1()
	case detect.HTTP2:
		d.speakHTTP2()
	default:
		d.startTunnel()
	}
}

// inboundRule is that of every inbound request: it goes where it was going.
var (
	inboundRule    = &route.Rule{Rule: &mesh.Rule{}}
	inboundBackend = &mesh.WeightedCluster{Weight: 1}
)

// inbound passes a request on to the port that the client dialled. Nothing of its head
// changes but what belongs to the connection alone.
func (x *exchange) inbound() {
	if len(x.head.Scheme) == 0 {
		x.head.Scheme = schemeHTTP
	}
	x.rule, x.backend, x.cluster = inboundRule, inboundBackend, x.d.inboundCluster()
	x.decided = true
	x.try()
}

// inboundCluster is the one endpoint that d's requests go to, in the protocol that the
// client speaks. It is d's alone, because its connections come from d's client, and
// goes with d.
func (d *downConn) inboundCluster() *upstream.Cluster {
	if d.cluster == nil {
		name := "inbound/" + d.dest.String() + "/" + d.peer.String()
		d.cluster = d.w.set.Update(name, nil, 0, d, []mesh.Endpoint{{AddrPort: d.dest}})
		d.cluster.ConnectFrom(d.peer.Addr().Unmap())
		d.cluster.Protocol = mesh.AppProtocolHTTP
		if d.mode == modeHTTP2 {
			d.cluster.Protocol = mesh.AppProtocolHTTP2
		}
	}
	return d.cluster
}

// leaveInbound forgets the endpoint with its connections.
func (d *downConn) leaveInbound() {
	if d.cluster != nil {
		d.w.set.Remove(d.cluster.Name)
		d.cluster = nil
	}
}
