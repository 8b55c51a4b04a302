package trace

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// maxTries of one request have a span; the endpoints of later ones get the request's
// own as their parent.
const maxTries = 32

// Request is a request that is recorded. It belongs to whoever carries the request,
// until Finish.
type Request struct {
	Context
	parent SpanID // zero: this is the root
	state  string
	// keepState says that the tracestate was valid; it may be empty.
	keepState bool
	opened    int64 // when it began, on the clock that the caller uses throughout

	tries []try
	flow  flow.Flow
	http  flow.HTTP
	about About
}

// About is what a flow does not say of a request.
type About struct {
	Scheme    string
	UserAgent string
	// Template is the path that the rule matches.
	Template string
	// RPC is "package.Service/Method" of a gRPC call, else empty.
	RPC string
}

// try is one attempt to have the request answered.
type try struct {
	span       SpanID
	began, end int64 // end is zero while it lasts
	endpoint   netip.AddrPort
	workload   mesh.Name
	status     int
	reason     flow.Reason
}

// KeepsState reports whether the tracestate of the caller goes on: that of a root, and
// one that is malformed, does not (W3C Trace Context §3.3).
func (r *Request) KeepsState() bool { return r.keepState }

// Try begins an attempt at a time and returns the span that its endpoint is to have as
// its parent. An attempt that still lasts ends.
func (r *Request) Try(now int64, endpoint netip.AddrPort, workload mesh.Name) SpanID {
	r.EndTry(now, flow.ReasonNone)
	if len(r.tries) == maxTries {
		return r.Span
	}
	t := try{span: NewSpanID(), began: now, endpoint: endpoint, workload: workload}
	r.tries = append(r.tries, t)
	return t.span
}

// Answered notes the status of the current attempt's response.
func (r *Request) Answered(status int) {
	if t := r.current(); t != nil {
		t.status = status
	}
}

// EndTry ends the current attempt, if one lasts.
func (r *Request) EndTry(now int64, reason flow.Reason) {
	if t := r.current(); t != nil {
		t.end, t.reason = max(now, t.began+1), reason
	}
}

func (r *Request) current() *try {
	if n := len(r.tries); n > 0 && r.tries[n-1].end == 0 {
		return &r.tries[n-1]
	}
	return nil
}

// take copies what the spans need of f, whose strings its owner will use again.
func (r *Request) take(f *flow.Flow, about About) {
	r.flow = *f
	r.flow.Source.Labels, r.flow.Destination.Labels = nil, nil
	r.flow.Detail = strings.Clone(f.Detail)
	r.http = flow.HTTP{}
	if h := f.HTTP; h != nil {
		r.http = *h
		r.http.Method, r.http.Authority = strings.Clone(h.Method), strings.Clone(h.Authority)
		r.http.Path, r.http.GRPC = strings.Clone(h.Path), strings.Clone(h.GRPC)
	}
	r.flow.HTTP = &r.http
	about.UserAgent, about.RPC = strings.Clone(about.UserAgent), strings.Clone(about.RPC)
	r.about = about
}

// reset makes r fit for another request.
func (r *Request) reset() {
	*r = Request{tries: slices.Delete(r.tries, 0, len(r.tries))}
}
