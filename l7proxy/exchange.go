package l7proxy

import (
	"errors"
	"math/rand/v2"
	"strconv"

	"github.com/sluice-mesh/sluice/l7proxy/filter"
	"github.com/sluice-mesh/sluice/l7proxy/http2"
	"github.com/sluice-mesh/sluice/l7proxy/loop"
	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/l7proxy/route"
	"github.com/sluice-mesh/sluice/l7proxy/trace"
	"github.com/sluice-mesh/sluice/l7proxy/upstream"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// downstream is the client's side of an exchange: an HTTP/1 connection or an
// HTTP/2 stream. It calls the exchange's begin, requestData, requestEnd,
// requestReset and drained.
type downstream interface {
	// respond writes the head of an interim or the final response.
	respond(h *message.Head)
	data(p []byte)
	// end ends the response. It is the last call, or abort is.
	end(trailers []message.Field)
	// abort ends an exchange whose response cannot be completed.
	abort()
	// full reports whether the client does not keep up.
	full() bool
	// wake says that the request may be read on.
	wake()
	// push sends what was written, now or with the end of the loop's round. The
	// exchange may be over, and somebody else's, when it returns.
	push()
}

// upstreamStream is the endpoint's side of one try: an HTTP/1 connection or an
// HTTP/2 stream. It calls the exchange's response, responseData, responseEnd,
// tryFailed and wakes the downstream when it drained.
type upstreamStream interface {
	data(p []byte)
	end(trailers []message.Field)
	// cancel gives the try up; nothing of it is heard any more.
	cancel()
	full() bool
	// wake says that the response may be read on.
	wake()
	push()
}

// exchange is one request with its response. It belongs to its downstream, which
// calls begin for each request.
type exchange struct {
	w    *worker
	d    *downConn
	down downstream
	up   upstreamStream // the current try, nil while there is none

	// The request as it came, in memory of the exchange; filters change head.
	head      message.Head
	buf       []byte
	method    []byte
	authority []byte
	path      []byte
	pathBuf   []byte
	proto     message.Proto
	grpc      bool

	req     route.Request
	scratch filter.Scratch
	cors    *mesh.CORS // that applies, if any
	origin  []byte     // of a request that cors applies to
	mirrors []*mirror  // that get the request's body too
	mirror  *mirror    // whose exchange this is
	rule    *route.Rule
	backend *mesh.WeightedCluster
	cluster *upstream.Cluster

	endpoint *upstream.Endpoint // of the current or last try
	counted  bool               // endpoint.Active includes this try
	pool     *upstream.Pool     // waited for

	// body is the request's body so far: always while there is no try under way,
	// and as long as recording.
	body      []byte
	recording bool
	keeping   bool // recording goes on when some of the request was sent
	forgotten bool // the body was too large to be kept for another try
	kept      int  // bytes of body that are booked in the node's budget for that
	trailers  []message.Field

	started int64
	moved   int64 // when a byte last moved
	tries   int
	repeats int // of those that nobody asked for
	status  int
	reason  flow.Reason
	detail  string
	grpcOut []byte
	hash    upstream.Request // what the balancer looks at, once hashed
	hashed  bool
	cookie  []byte // for the response
	// grpcAnswered: the endpoint's outlier detection knows how the try went.
	grpcAnswered bool

	bytesIn, bytesOut uint64

	active    bool // begun and not finished
	decided   bool // the head was filtered, the cluster chosen
	waiting   bool // for configuration
	reqEnded  bool // the request is here as a whole
	bodySent  bool // some of the body was handed to a try
	responded bool // the final head was written
	upgraded  bool
	holding   bool // a stream asks for another protocol: its data waits for the answer
	switchH2  bool // the endpoint is asked for it by extended CONNECT
	socket    *webSocket
	callLimit int64 // when the deadline of a gRPC call ends, 0 if it has none

	span        *trace.Request // nil: not recorded
	traceParent []byte         // the field's value, if it is the proxy's

	deadline loop.Timer // of the request
	pause    loop.Timer // of the try, of a backoff, of a wait for configuration
	idle     loop.Timer
}

// prepare makes x fit for its first begin.
func (x *exchange) prepare(w *worker) {
	x.w = w
	x.deadline.Handler = x
	x.pause.Handler = x
	x.idle.Handler = x
}

// begin takes a request's head, whose bytes it copies, and acts on it.
func (x *exchange) begin(d *downConn, down downstream, h *message.Head) {
	x.begun(d, down, h)
	x.decide()
}

// begun is begin without an act.
func (x *exchange) begun(d *downConn, down downstream, h *message.Head) {
	x.d, x.down = d, down
	x.buf = h.Clone(&x.head, x.buf)
	x.method, x.authority, x.path = x.head.Method, x.head.Authority, x.head.Path
	x.proto = h.Proto
	x.grpc = isGRPC(&x.head)
	x.rule, x.backend, x.cluster, x.endpoint, x.pool = nil, nil, nil, nil, nil
	x.scratch.Reset()
	x.started, x.moved = x.w.loop.Now(), x.w.loop.Now()
	x.tries, x.repeats, x.status, x.reason, x.detail = 0, 0, 0, flow.ReasonNone, ""
	x.grpcOut, x.cookie, x.hashed, x.grpcAnswered = x.grpcOut[:0], nil, false, false
	x.bytesIn, x.bytesOut = 0, 0
	x.trailers = x.trailers[:0]
	x.active, x.decided, x.waiting = true, false, false
	x.reqEnded, x.bodySent, x.responded, x.upgraded = h.End, false, false, false
	x.recording, x.forgotten = false, false
	x.cors, x.origin, x.mirrors = nil, nil, x.mirrors[:0]
	if x.mirror == nil {
		d.exchanges++
		x.w.metrics.active[d.journey].Inc()
	}
	x.w.loop.SetTimer(&x.idle, x.w.loop.Now()+int64(x.w.limits.StreamIdleTimeout))
	x.head.Close = false
	x.holding, x.switchH2, x.socket, x.callLimit = false, false, nil, 0
	if x.proto == message.HTTP2 && len(x.head.Upgrade) > 0 {
		x.holding = true
		x.head.Method, x.method, x.head.End = methodGET, methodGET, false
	}
	if equalFold(x.head.Upgrade, "h2c") {
		x.head.Upgrade = nil // a matter of this hop (RFC 7540 §3.2), and obsolete
	}
}

// decide finds what becomes of the request, and does it. It is called again when
// configuration arrives that it had to wait for.
func (x *exchange) decide() {
	if string(x.method) == "CONNECT" {
		// A tunnel to wherever the client says would get around services and routes.
		x.refuse(501, flow.ReasonUnsupported)
		return
	}
	if x.d.journey == SocketInbound {
		x.inbound()
		return
	}
	if x.rule == nil {
		if !x.match() {
			return
		}
		if x.answerByFilter(nil) {
			return
		}
		x.backend = pickBackend(x.rule.Clusters)
		if x.backend == nil || x.backend.Cluster == "" {
			x.refuse(500, flow.ReasonNoBackend)
			return
		}
		if len(x.backend.Filters) > 0 && x.answerByFilter(x.backend) {
			return
		}
	}
	cluster, kind := x.w.cluster(x.backend.Cluster)
	if cluster == nil {
		status := flow.ReasonNoHealthyEndpoint
		if kind == mesh.KindCluster {
			status = flow.ReasonNoBackend
		}
		x.await(kind, x.backend.Cluster, status)
		return
	}
	if !cluster.Warm() {
		x.hold(flow.ReasonNoHealthyEndpoint) // for the first health check
		return
	}
	x.cluster = cluster
	x.w.loop.StopTimer(&x.pause)
	x.waiting = false
	if !x.decided {
		x.decided = true
		x.edit()
		if len(x.head.Upgrade) > 0 && !x.prepareSwitch() {
			return
		}
		x.callDeadline()
		if t := x.rule.Timeouts.Request; t > 0 && (x.reqEnded || x.holding) {
			x.endBy(x.started + int64(t))
		}
	}
	x.try()
}

// match finds the rule. It reports false when the request was answered or waits.
func (x *exchange) match() bool {
	if len(x.head.Path) > 0 && x.head.Path[0] == '/' {
		path, ok := route.NormalizePath(x.pathBuf[:0], x.head.Path)
		if !ok {
			x.refuse(400, flow.ReasonDownstreamProtocol)
			return false
		}
		if len(path) > 0 && len(x.head.Path) > 0 && &path[0] != &x.head.Path[0] {
			x.pathBuf = path
			x.head.Path = path
		}
	}
	p := x.d.plan(x.head.Authority)
	switch {
	case p.missing != "":
		x.await(mesh.KindListener, p.missing, flow.ReasonNoRoute)
		return false
	case p.reason != flow.ReasonNone:
		status := 404
		if p.reason == flow.ReasonMisdirected {
			status = 421
		}
		x.refuse(status, p.reason)
		return false
	}
	x.req.Method, x.req.Authority, x.req.Path, x.req.Head = x.head.Method, x.head.Authority, x.head.Path, &x.head
	rule, host := x.w.proxy.cfg.Routes.Match(p.table, &x.req)
	if rule != nil {
		x.rule = rule
		return true
	}
	if !host && !x.w.proxy.cfg.Routes.Has(p.table) {
		x.await(mesh.KindVirtualHost, p.table+"/*", flow.ReasonNoRoute)
		return false
	}
	x.refuse(404, flow.ReasonNoRoute)
	return false
}

// await waits for a resource, and refuses with the reason if that takes too long.
func (x *exchange) await(kind mesh.Kind, key string, reason flow.Reason) {
	x.hold(reason)
	if x.w.want(kind, key) {
		// It came between the look and the registration.
		x.w.recheckSoon()
	}
}

// hold waits for a change, and refuses with the reason if that takes too long.
func (x *exchange) hold(reason flow.Reason) {
	x.reason = reason
	if !x.waiting {
		x.waiting = true
		x.w.loop.SetTimer(&x.pause, x.w.loop.Now()+int64(x.w.limits.ConfigWait))
		x.w.await(x)
	}
}

// configChanged looks again.
func (x *exchange) configChanged() {
	if x.waiting {
		x.reason = flow.ReasonNone
		down := x.down
		x.decide()
		x.push(down)
	}
}

func (x *exchange) push(down downstream) {
	if x.up != nil {
		x.up.push()
	}
	down.push()
}

// pickBackend chooses by weight, nil if no backend has any.
func pickBackend(clusters []mesh.WeightedCluster) *mesh.WeightedCluster {
	if len(clusters) == 1 && clusters[0].Weight > 0 {
		return &clusters[0]
	}
	var sum uint64
	for i := range clusters {
		sum += uint64(clusters[i].Weight)
	}
	if sum == 0 {
		return nil
	}
	r := rand.Uint64N(sum)
	for i := range clusters {
		if r < uint64(clusters[i].Weight) {
			return &clusters[i]
		}
		r -= uint64(clusters[i].Weight)
	}
	return nil
}

var (
	fieldRequestID      = []byte("x-request-id")
	fieldForwardedFor   = []byte("x-forwarded-for")
	fieldForwardedProto = []byte("x-forwarded-proto")
	fieldReason         = []byte("x-sluice-reason")
	fieldContentType    = []byte("content-type")
	fieldContentLength  = []byte("content-length")
	fieldLocation       = []byte("location")
	fieldGRPCStatus     = []byte("grpc-status")
	fieldGRPCMessage    = []byte("grpc-message")
	textPlain           = []byte("text/plain; charset=utf-8")
	typeGRPC            = []byte("application/grpc")
	schemeHTTP          = []byte("http")
	schemeHTTPS         = []byte("https")
	zero                = []byte("0")
)

// forwardedFields adds what the proxy says of the client: on a Gateway its address
// and scheme, everywhere a request id if there is none.
func (x *exchange) forwardedFields() {
	if len(x.head.Scheme) == 0 || x.d.journey == SocketGateway {
		if x.d.scheme() == "https" {
			x.head.Scheme = schemeHTTPS
		} else {
			x.head.Scheme = schemeHTTP
		}
	}
	if x.d.journey == SocketGateway {
		forwarded := x.d.forwardedFor()
		found := false
		for i := range x.head.Fields {
			f := &x.head.Fields[i]
			switch string(f.Name) {
			case "x-forwarded-for":
				if !found {
					found = true
					n := len(x.pathBuf)
					x.pathBuf = append(x.pathBuf, f.Value...)
					x.pathBuf = append(x.pathBuf, ", "...)
					x.pathBuf = append(x.pathBuf, forwarded...)
					f.Value = x.pathBuf[n:len(x.pathBuf):len(x.pathBuf)]
				}
			}
		}
		if !found {
			x.head.Add(fieldForwardedFor, forwarded)
		}
		x.head.Del("x-forwarded-proto")
		x.head.Add(fieldForwardedProto, x.head.Scheme)
	}
	if _, ok := x.head.Get("x-request-id"); !ok {
		x.head.Add(fieldRequestID, x.requestID())
	}
}

// requestID makes a random UUID (RFC 9562, version 4) in the exchange's memory.
func (x *exchange) requestID() []byte {
	hi, lo := rand.Uint64(), rand.Uint64()
	hi = hi&^0xf000 | 0x4000
	lo = lo&^(3<<62) | 1<<63
	const digits = "0123456789abcdef"
	n := len(x.pathBuf)
	for i := 0; i < 32; i++ {
		if i == 8 || i == 12 || i == 16 || i == 20 {
			x.pathBuf = append(x.pathBuf, '-')
		}
		v := hi
		if i >= 16 {
			v = lo
		}
		x.pathBuf = append(x.pathBuf, digits[v>>(60-4*(i%16))&15])
	}
	return x.pathBuf[n:len(x.pathBuf):len(x.pathBuf)]
}

// try begins one attempt to have the request answered.
func (x *exchange) try() {
	x.tries++
	if x.tries == 1 {
		x.cluster.Count()
	}
	e := x.cluster.Pick(x.balance(), x.endpoint)
	if e == nil {
		x.refuse(503, flow.ReasonNoHealthyEndpoint)
		return
	}
	x.endpoint = e
	if !e.Begin() {
		x.detail = upstream.ErrRequestLimit.Error()
		x.refuse(503, flow.ReasonBackendRequestLimit)
		return
	}
	x.counted = true
	if t := x.rule.Timeouts.Backend; t > 0 {
		x.w.loop.SetTimer(&x.pause, x.w.loop.Now()+int64(t))
	}
	x.connect(true)
}

// connect gets a connection to x.endpoint; pooled says whether a used one will do.
func (x *exchange) connect(pooled bool) {
	protocol := x.upstreamProtocol()
	cfg, err := x.w.originate(x.cluster, protocol, x.d.current())
	if err != nil {
		x.detail = err.Error()
		x.refuse(failureStatus(flow.ReasonUpstreamTLS), flow.ReasonUpstreamTLS)
		return
	}
	x.traceTry()
	pool := x.endpoint.SecurePool(x.d.workload, protocol, cfg)
	if pooled {
		if c := pool.Get(); c != nil {
			x.attach(c)
			return
		}
	}
	if !pool.Wait(x) {
		x.detail = upstream.ErrPendingLimit.Error()
		x.refuse(503, flow.ReasonBackendPendingLimit)
		return
	}
	x.pool = pool
	x.w.dialPool(pool)
}

func (x *exchange) upstreamProtocol() upstream.Protocol {
	if len(x.head.Upgrade) > 0 {
		if x.switchH2 {
			return upstream.HTTP2
		}
		return upstream.HTTP1
	}
	switch x.cluster.Protocol {
	case mesh.AppProtocolHTTP2:
		return upstream.HTTP2
	case mesh.AppProtocolHTTP:
		return upstream.HTTP1
	}
	if x.grpc || x.rule.RouteKind == "GRPCRoute" {
		return upstream.HTTP2
	}
	return upstream.HTTP1
}

// Dialed continues a try that waited for a connection.
func (x *exchange) Dialed(c upstream.Conn, err error) {
	x.pool = nil
	down := x.down
	if err != nil {
		reason := flow.ReasonConnectFailed
		switch err {
		case upstream.ErrTimeout:
			reason = flow.ReasonConnectTimeout
		case upstream.ErrConnectionLimit:
			reason = flow.ReasonBackendConnectionLimit
		default:
			if _, ok := errors.AsType[*tlsError](err); ok {
				reason = flow.ReasonUpstreamTLS
			}
		}
		x.detail = err.Error()
		x.tryFailed(reason, true, true)
		x.push(down)
		return
	}
	x.attach(c)
	x.push(down)
	down.wake()
}

// attach sends what there is of the request.
func (x *exchange) attach(c upstream.Conn) {
	_, multiplexed := c.(*h2up)
	// An HTTP/2 endpoint says of a request whether it may be repeated, whatever its
	// method (RFC 9113 §8.7).
	x.keeping = x.mirror == nil && !x.forgotten && (x.rule.Retry != nil && x.rule.Retry.Attempts > 0 || multiplexed || idempotent(x.method))
	x.recording = x.keeping
	x.bodySent, x.grpcAnswered = false, false
	var err error
	switch c := c.(type) {
	case *h1up:
		// A used connection may turn out to be dead before a byte of the request is sent.
		x.recording = x.recording || c.used && x.mirror == nil && !x.forgotten
		x.up = c
		err = c.begin(x)
	case *h2up:
		var s *h2upStream
		if s, err = c.open(x); err == nil {
			x.up = s
		}
	}
	switch {
	case err == nil:
	case errors.Is(err, errExtendedConnect):
		x.up = nil
		x.switchH2 = false
		x.connect(true)
		return
	case errors.Is(err, http2.ErrConn) || errors.Is(err, http2.ErrLimit):
		x.up = nil
		x.detail = err.Error()
		x.tryFailed(flow.ReasonUpstreamReset, true, true)
		return
	default:
		// No other connection could say it either.
		x.up = nil
		x.detail = err.Error()
		if errors.Is(err, http2.ErrHeadSize) {
			x.refuse(431, flow.ReasonHeadTooLarge)
			return
		}
		x.refuse(400, flow.ReasonDownstreamProtocol)
		return
	}
	if x.head.End || x.holding || x.up == nil {
		return
	}
	if len(x.body) > 0 {
		x.bodySent = true
		if x.recording {
			x.bookBody()
		}
		x.up.data(x.body)
		if !x.recording {
			x.dropBody()
		}
	}
	if x.reqEnded && x.up != nil {
		x.up.end(x.trailers)
	}
}

// committed says that some of the request reached the kernel: from here on its body
// is kept only if a try may be repeated that the endpoint could have seen.
func (x *exchange) committed() {
	if x.recording && !x.keeping {
		x.recording = false
		x.dropBody()
	}
}

func isGRPC(h *message.Head) bool {
	v, ok := h.Get("content-type")
	return ok && len(v) >= len(typeGRPC) && string(v[:len(typeGRPC)]) == string(typeGRPC) &&
		(len(v) == len(typeGRPC) || v[len(typeGRPC)] == '+' || v[len(typeGRPC)] == ';')
}

// ready reports whether the request's body should be read on.
func (x *exchange) ready() bool {
	return !x.active || x.up != nil && !x.up.full() && !x.holding
}

// requestData takes body bytes, which it copies or sends.
func (x *exchange) requestData(p []byte) {
	if !x.active {
		return
	}
	x.bytesIn += uint64(len(p))
	x.moved = x.w.loop.Now()
	switch {
	case x.holding && x.responded:
		return // refused
	case x.holding:
		x.holdBody(p)
		return
	case x.up == nil || x.recording:
		x.keepBody(p)
	}
	if len(x.mirrors) > 0 {
		x.mirrorData(p)
	}
	if x.up != nil {
		x.bodySent = true
		x.up.data(p)
	}
}

// requestEnd says that the request is complete.
func (x *exchange) requestEnd(trailers []message.Field) {
	if !x.active || x.head.End {
		return
	}
	x.reqEnded = true
	if x.rule != nil && x.rule.Timeouts.Request > 0 && !x.upgraded {
		x.endBy(x.w.loop.Now() + int64(x.rule.Timeouts.Request))
	}
	for _, f := range trailers {
		x.trailers = append(x.trailers, message.Field{Name: cloneBytes(f.Name), Value: cloneBytes(f.Value)})
	}
	if len(x.mirrors) > 0 {
		x.mirrorEnd()
	}
	if x.up != nil && !x.holding {
		x.up.end(trailers)
	}
}

// requestReset says that the client went away or broke its protocol; it must not
// be answered any more.
func (x *exchange) requestReset(reason flow.Reason) {
	if x.active {
		x.reason = reason
		x.finish()
	}
}

// drained says that the client has taken what was written.
func (x *exchange) drained() {
	if x.active && x.up != nil {
		x.up.wake()
	}
}

// response takes the head of an interim or the final response, which it changes.
func (x *exchange) response(h *message.Head) {
	x.moved = x.w.loop.Now()
	if h.Status < 200 && h.Status != 101 {
		x.down.respond(h)
		return
	}
	if x.span != nil {
		x.span.Answered(h.Status)
	}
	if x.rule.Retry != nil && (x.retryCode(h.Status) || x.grpc && unavailable(h)) && x.repeatable() {
		x.status = h.Status
		x.answered(h)
		x.abandon()
		x.backoff()
		return
	}
	x.status = h.Status
	x.answered(h)
	h.Close = false
	x.recording = false
	x.dropBody()
	if x.grpc {
		x.noteGRPC(h.Fields)
	}
	x.rewriteResponse(h)
	x.responded = true
	x.down.respond(h)
}

// rewriteResponse applies the rule's filters to the head of an endpoint's response.
func (x *exchange) rewriteResponse(h *message.Head) {
	filter.Response(h, x.rule.Rule, x.backend, &x.scratch)
	if x.cors != nil {
		filter.ShareResponse(h, x.origin, x.cors, &x.scratch)
	}
	if len(x.cookie) > 0 {
		h.Add(fieldSetCookie, x.cookie)
	}
}

// responseData takes a piece of the response's body.
func (x *exchange) responseData(p []byte) {
	x.bytesOut += uint64(len(p))
	x.moved = x.w.loop.Now()
	x.down.data(p)
}

// responseEnd ends the exchange well.
func (x *exchange) responseEnd(trailers []message.Field) {
	x.up = nil
	if x.grpc && len(trailers) > 0 {
		x.noteGRPC(trailers)
	}
	x.ended()
	x.down.end(trailers)
	x.finish()
}

func (x *exchange) noteGRPC(fields []message.Field) {
	for i := range fields {
		if string(fields[i].Name) == "grpc-status" {
			x.grpcOut = append(x.grpcOut[:0], fields[i].Value...)
		}
	}
}

// abandon gives up the current try.
func (x *exchange) abandon() {
	if x.pool != nil {
		x.pool.Cancel(x)
		x.pool = nil
	}
	if up := x.up; up != nil {
		x.up = nil
		up.cancel()
	}
	x.w.loop.StopTimer(&x.pause)
	x.uncount()
	x.traceTryEnd(x.reason)
}

func (x *exchange) uncount() {
	if x.counted {
		x.counted = false
		x.endpoint.Done()
	}
}

// OnTimer ends a wait.
func (x *exchange) OnTimer(t *loop.Timer) {
	if !x.active {
		return
	}
	down := x.down
	switch {
	case t == &x.idle:
		limit := int64(x.w.limits.StreamIdleTimeout)
		if x.upgraded {
			limit = int64(x.w.limits.TCPIdleTimeout)
		}
		if quiet := x.w.loop.Now() - x.moved; quiet < limit {
			x.w.loop.SetTimer(t, x.moved+limit)
			return
		}
		x.timeout(flow.ReasonIdleTimeout)
	case t == &x.deadline:
		x.timeout(flow.ReasonRequestTimeout)
	case x.waiting:
		x.waiting = false
		x.refuse(503, x.reason)
	case x.up == nil && x.pool == nil: // a backoff is over
		x.try()
		if x.active {
			x.push(down)
			down.wake()
			return
		}
	default:
		// The rule bounds a try and wants others (HTTPRouteRetry.backoff).
		retry := x.rule.Retry != nil && !x.responded && x.repeatable()
		x.traceTryEnd(flow.ReasonBackendTimeout)
		x.endpointFailed(flow.ReasonBackendTimeout, false)
		x.abandon()
		if retry {
			x.backoff()
			return
		}
		x.timeout(flow.ReasonBackendTimeout)
	}
	down.push()
}

func (x *exchange) timeout(reason flow.Reason) {
	x.traceTryEnd(reason)
	x.abandon()
	if x.responded {
		x.reason = reason
		x.down.abort()
		x.finish()
		return
	}
	x.refuse(504, reason)
}

// refuse answers in place of an endpoint.
func (x *exchange) refuse(status int, reason flow.Reason) {
	x.abandon()
	x.reason = reason
	h := &x.w.answer
	h.Reset()
	h.Proto = message.HTTP11
	h.Add(fieldReason, reasonBytes(reason))
	if x.grpc {
		x.status = 200
		h.Status = 200
		h.Add(fieldContentType, typeGRPC)
		code := grpcCode(reason)
		x.grpcOut = append(x.grpcOut[:0], code...)
		h.Add(fieldGRPCStatus, code)
		h.Add(fieldGRPCMessage, reasonBytes(reason))
		h.End = true
		if x.proto != message.HTTP2 {
			h.Add(fieldContentLength, zero)
			h.ContentLength = 0
		}
		x.answer(h, nil)
		return
	}
	x.status = status
	h.Status = status
	body := append(x.w.answerBody[:0], "sluice: "...)
	body = append(body, reasonBytes(reason)...)
	body = append(body, '\n')
	x.w.answerBody = body
	h.Add(fieldContentType, textPlain)
	x.answer(h, body)
}

func (x *exchange) redirect(status int, location []byte) {
	x.status = status
	h := &x.w.answer
	h.Reset()
	h.Proto = message.HTTP11
	h.Status = status
	h.Add(fieldLocation, location)
	filter.Response(h, x.rule.Rule, x.backend, &x.scratch)
	x.answer(h, nil)
}

// answer sends a complete response of the proxy's own.
func (x *exchange) answer(h *message.Head, body []byte) {
	if x.cors != nil && x.rule != nil && x.active {
		filter.ShareResponse(h, x.origin, x.cors, &x.scratch)
	}
	if !h.End {
		h.ContentLength = int64(len(body))
		x.w.number = strconv.AppendInt(x.w.number[:0], int64(len(body)), 10)
		h.Add(fieldContentLength, x.w.number)
		h.End = len(body) == 0
	}
	if string(x.method) == "HEAD" {
		h.End = true
		body = nil
	}
	x.responded = true
	x.bytesOut += uint64(len(body))
	x.down.respond(h)
	if len(body) > 0 {
		x.down.data(body)
	}
	x.down.end(nil)
	x.finish()
}

// grpcCode is the gRPC status for a refusal (grpc.io, statuscodes.md).
func grpcCode(reason flow.Reason) []byte {
	switch reason {
	case flow.ReasonNoRoute, flow.ReasonNoChain, flow.ReasonUnsupported:
		return []byte("12") // UNIMPLEMENTED
	case flow.ReasonRequestTimeout, flow.ReasonBackendTimeout, flow.ReasonIdleTimeout:
		return []byte("4") // DEADLINE_EXCEEDED
	case flow.ReasonDownstreamProtocol:
		return []byte("13") // INTERNAL
	case flow.ReasonOverLimit, flow.ReasonHeadTooLarge:
		return []byte("8") // RESOURCE_EXHAUSTED
	}
	return []byte("14") // UNAVAILABLE
}

// finish ends the exchange: once, whatever the outcome.
func (x *exchange) finish() {
	if !x.active {
		return
	}
	x.active = false
	x.abandon()
	x.waiting = false
	x.recording = false
	x.dropBody()
	x.w.loop.StopTimer(&x.deadline)
	x.w.loop.StopTimer(&x.idle)
	if len(x.mirrors) > 0 {
		x.leaveMirrors()
	}
	if x.mirror == nil {
		x.w.metrics.active[x.d.journey].Dec()
	}
	x.record()
}

// forget drops what would keep memory of x alive in the loop.
func (x *exchange) forget() {
	x.w.loop.DropTimer(&x.deadline)
	x.w.loop.DropTimer(&x.pause)
	x.w.loop.DropTimer(&x.idle)
}

func cloneBytes(p []byte) []byte { return append([]byte(nil), p...) }
