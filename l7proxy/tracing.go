package l7proxy

import (
	"github.com/sluice-mesh/sluice/l7proxy/trace"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

var fieldTraceParent = []byte(trace.FieldParent)

// traceBegin decides about the trace of a request whose rule is known, and writes
// what the endpoint is to know of it.
func (x *exchange) traceBegin() {
	t := x.w.proxy.cfg.Tracer
	if t == nil {
		return
	}
	c, decision, span := t.Begin(&x.head, x.started, x.rule.Tracing)
	if decision == trace.Leave {
		return
	}
	x.span = span
	if span == nil || !span.KeepsState() {
		x.head.Del(trace.FieldState) // of a trace that is not this one, or malformed
	}
	x.head.Del(trace.FieldParent)
	n := len(x.pathBuf)
	x.pathBuf = c.Append(x.pathBuf)
	x.traceParent = x.pathBuf[n:len(x.pathBuf):len(x.pathBuf)]
	x.head.Add(fieldTraceParent, x.traceParent)
}

// traceTry begins the span of a try, whose identifier goes into the request's head.
func (x *exchange) traceTry() {
	if x.span != nil {
		trace.PutSpan(x.traceParent, x.span.Try(x.w.loop.Now(), x.endpoint.AddrPort, x.endpoint.Workload))
	}
}

// traceTryEnd ends the span of the current try, if there is one.
func (x *exchange) traceTryEnd(reason flow.Reason) {
	if x.span != nil {
		x.span.EndTry(x.w.loop.Now(), reason)
	}
}

// traceRefused begins the span of a request that no rule took, if its caller records
// the trace.
func (x *exchange) traceRefused() {
	if t := x.w.proxy.cfg.Tracer; t != nil && x.rule == nil {
		_, _, x.span = t.Begin(&x.head, x.started, &mesh.Tracing{})
	}
}

// traceEnd hands the spans over.
func (x *exchange) traceEnd(f *flow.Flow) {
	about := trace.About{Scheme: x.d.scheme()}
	if ua, ok := x.head.Get("user-agent"); ok {
		about.UserAgent = unsafeString(ua)
	}
	if x.grpc && len(x.path) > 1 {
		about.RPC = unsafeString(x.path[1:])
	}
	if x.rule != nil {
		about.Template = template(&x.rule.Match)
	}
	x.w.proxy.cfg.Tracer.Finish(x.span, f, about)
	x.span = nil
}

// template is the path of a rule's match as http.route wants it: of low cardinality.
func template(m *mesh.Match) string {
	switch m.PathKind {
	case mesh.MatchPrefix:
		if m.Path == "/" {
			return "/*"
		}
		return m.Path + "/*"
	case mesh.MatchExact, mesh.MatchRegexp:
		return m.Path
	}
	return ""
}

// traceID returns the trace of the request as its endpoint got it, zero if it has
// none.
func (x *exchange) traceID() flow.TraceID {
	if c, ok := trace.FromHead(&x.head); ok {
		return c.Trace
	}
	return flow.TraceID{}
}
