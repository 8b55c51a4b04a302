package l7proxy

import (
	"time"
	"unsafe"

	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/l7proxy/upstream"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// httpFlow is a flow with its HTTP part, in one piece of memory.
type httpFlow struct {
	flow.Flow
	http flow.HTTP
}

// unsafeString is b as a string, as long as b does not change.
func unsafeString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// reasonTexts are the reasons' words as bytes.
var reasonTexts = func() map[flow.Reason][]byte {
	out := map[flow.Reason][]byte{}
	for r, text := range flow.Reasons() {
		out[r] = []byte(text)
	}
	return out
}()

func reasonBytes(r flow.Reason) []byte { return reasonTexts[r] }

// verdict is what a reason amounts to: a refusal on purpose, or a failure.
func verdict(r flow.Reason) flow.Verdict {
	switch r {
	case flow.ReasonNone:
		return flow.VerdictForwarded
	case flow.ReasonNoOriginalDestination, flow.ReasonNoRoute, flow.ReasonNoChain, flow.ReasonMisdirected,
		flow.ReasonOverLimit, flow.ReasonDraining, flow.ReasonUnsupported, flow.ReasonHeadTooLarge,
		flow.ReasonDownstreamProtocol, flow.ReasonBackendConnectionLimit, flow.ReasonBackendPendingLimit,
		flow.ReasonBackendRequestLimit, flow.ReasonRetryBudget, flow.ReasonMirrorBehind, flow.ReasonMirrorCut:
		return flow.VerdictDropped
	}
	return flow.VerdictError
}

// record counts and reports an exchange that ended.
func (x *exchange) record() {
	w, d := x.w, x.d
	took := w.loop.Now() - x.started
	status := x.status
	if !x.responded {
		status = 0
	}
	rm := w.metrics.of(x.rule)
	if x.mirror != nil {
		w.metrics.mirrors.WithLabelValues(rm.name, x.reason.String()).Inc()
	} else {
		var dest mesh.Name
		if x.endpoint != nil {
			dest = x.endpoint.Workload
		}
		w.countRequest(d, rm, dest, status, x.reason, float64(took)/1e9)
		w.metrics.bytesIn[d.journey].Add(float64(x.bytesIn))
		w.metrics.bytesOut[d.journey].Add(float64(x.bytesOut))
	}
	cfg := &w.proxy.cfg
	if x.reason != flow.ReasonNone {
		x.traceRefused()
	}
	wanted := cfg.Flows != nil && (x.reason != flow.ReasonNone || cfg.AdmitFlow == nil || cfg.AdmitFlow())
	if !wanted && cfg.AccessLog == nil && x.span == nil {
		return
	}
	f := &w.record
	*f = httpFlow{}
	f.Type = flow.TypeHTTP
	f.HTTP = &f.http
	w.fill(&f.Flow, d, x.reason, x.detail, x.endpoint)
	f.BytesIn, f.BytesOut = x.bytesIn, x.bytesOut
	f.Duration = time.Duration(took)
	// In memory of the exchange, which the receiver of the record may not keep.
	f.http.Method, f.http.Authority = unsafeString(x.method), unsafeString(x.authority)
	f.http.Path, f.http.GRPC = unsafeString(x.path), unsafeString(x.grpcOut)
	f.http.Proto = x.proto.String()
	f.http.Status = status
	f.http.Tries = x.tries
	f.http.Mirror = x.mirror != nil
	if x.rule != nil {
		f.http.Route = rm.name
		f.http.Rule, f.http.RuleName = x.rule.RuleIndex, x.rule.RuleName
	}
	f.http.TraceID = x.traceID()
	w.report(&f.Flow, &x.head, wanted)
	if x.span != nil {
		x.traceEnd(&f.Flow)
	}
}

// recordConn counts and reports a connection that ended and was no HTTP.
func (w *worker) recordConn(d *downConn, reason flow.Reason, detail string, in, out uint64, e *upstream.Endpoint) {
	w.metrics.closed.WithLabelValues(d.journey.String(), reason.String()).Inc()
	w.metrics.bytesIn[d.journey].Add(float64(in))
	w.metrics.bytesOut[d.journey].Add(float64(out))
	if w.proxy.cfg.Flows == nil && w.proxy.cfg.AccessLog == nil {
		return
	}
	w.record = httpFlow{Flow: flow.Flow{Type: flow.TypeTCP}}
	f := &w.record.Flow
	w.fill(f, d, reason, detail, e)
	f.BytesIn, f.BytesOut = in, out
	f.Duration = time.Duration(w.loop.Now() - d.opened)
	w.report(f, nil, w.proxy.cfg.Flows != nil)
}

// fill writes what all flows have.
func (w *worker) fill(f *flow.Flow, d *downConn, reason flow.Reason, detail string, e *upstream.Endpoint) {
	f.Time = time.Now()
	f.Node = w.proxy.cfg.Node
	f.Verdict = verdict(reason)
	f.Reason = reason
	f.Detail = detail
	f.Protocol = mesh.ProtocolTCP
	f.Source.AddrPort = d.peer
	f.Source.Workload = d.source
	f.Ingress = d.journey == SocketGateway
	f.Destination.Service = d.service
	// Labels are found by whoever receives the flow.
	store := w.proxy.cfg.Store
	if d.source.IsZero() {
		if wl := store.WorkloadByAddress(d.peer.Addr()); wl != nil {
			f.Source.Workload = wl.Name
		}
	}
	if e == nil {
		f.Destination.AddrPort = d.dest
		return
	}
	f.Destination.AddrPort = e.AddrPort
	f.Destination.Workload = e.Workload
	if e.Workload.IsZero() {
		if wl := store.WorkloadByAddress(e.AddrPort.Addr()); wl != nil {
			f.Destination.Workload = wl.Name
		}
	}
	if d.dest != e.AddrPort {
		f.Original = d.dest
	}
}

func (w *worker) report(f *flow.Flow, head *message.Head, wanted bool) {
	cfg := &w.proxy.cfg
	if cfg.AccessLog != nil {
		cfg.AccessLog.Add(f, head)
	}
	if wanted {
		cfg.Flows(f)
	}
}
