package l7proxy

import (
	"math/rand/v2"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// idempotent reports whether a request may be repeated without being asked (RFC
// 9110 §9.2.2).
func idempotent(method []byte) bool {
	switch string(method) {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// maxRepeats bounds the tries that are repeated although no rule says so.
const maxRepeats = 2

// tryFailed says that the current try ended without a complete response. unsent
// says that the endpoint cannot have acted on the request, silent that no byte of
// a response came.
func (x *exchange) tryFailed(reason flow.Reason, unsent, silent bool) {
	x.up = nil
	x.w.loop.StopTimer(&x.pause)
	if !x.active {
		return
	}
	x.endpointFailed(reason, unsent)
	x.uncount()
	x.traceTryEnd(reason)
	if x.responded {
		x.reason = reason
		x.down.abort()
		x.finish()
		return
	}
	if (unsent || silent) && x.repeat(unsent, reason != flow.ReasonUpstreamReset) {
		return
	}
	if x.rule.Retry != nil && (unsent || silent && idempotent(x.method)) && x.repeatable() {
		x.backoff()
		return
	}
	x.refuse(failureStatus(reason), reason)
}

// mayRepeat reports whether a request may be sent once more: unsent says that the
// endpoint has not acted on it; otherwise it must be idempotent (RFC 9110 §9.2.2), or
// so far have been without the content that it announces.
func (x *exchange) mayRepeat(unsent bool) bool {
	whole := x.head.End || x.recording || !x.bodySent
	return x.repeats < maxRepeats && whole && !x.responded &&
		(unsent || idempotent(x.method) || !x.head.End && !x.bodySent)
}

// repeat tries once more, at once, where that is safe: the endpoint has not acted on
// the request, or the request is idempotent and ended in silence, as on a pooled
// connection that has died. An endpoint that takes no connection (unreachable) is not
// asked again.
func (x *exchange) repeat(unsent, unreachable bool) bool {
	if !x.mayRepeat(unsent) {
		return false
	}
	if c, _ := x.w.cluster(x.backend.Cluster); c != nil {
		x.cluster = c
	}
	e := x.cluster.Pick(x.balance(), x.endpoint)
	if e == nil || e == x.endpoint && unreachable || !e.Begin() {
		return false
	}
	x.repeats++
	x.w.metrics.repeats.Inc()
	another := e != x.endpoint
	x.endpoint = e
	x.counted = true
	if t := x.rule.Timeouts.Backend; t > 0 {
		x.w.loop.SetTimer(&x.pause, x.w.loop.Now()+int64(t))
	}
	x.connect(another)
	if x.active && x.up != nil {
		// A connection of the pool: nobody else will send what it was just given, or
		// have the rest of the request read.
		x.up.push()
		x.down.wake()
	}
	return true
}

// failureStatus is the status that answers a failed try.
func failureStatus(reason flow.Reason) int {
	switch reason {
	case flow.ReasonUpstreamReset, flow.ReasonUpstreamProtocol, flow.ReasonUpstreamTLS:
		return 502
	case flow.ReasonRequestTimeout, flow.ReasonBackendTimeout:
		return 504
	case flow.ReasonDownstreamProtocol:
		return 400
	}
	return 503
}

// retryCode reports whether the rule has responses of a status repeated.
func (x *exchange) retryCode(status int) bool {
	r := x.rule.Retry
	if r == nil {
		return false
	}
	for _, c := range r.Codes {
		if c == status {
			return true
		}
	}
	return false
}

// repeatable reports whether another try is allowed and possible.
func (x *exchange) repeatable() bool {
	r := x.rule.Retry
	if r == nil || x.tries > r.Attempts {
		return false
	}
	if x.forgotten {
		x.detail = notKept
	}
	return x.head.End || x.recording || !x.bodySent
}

// backoff waits before the next try: the rule's backoff, doubled with each try up
// to ten times, with jitter.
func (x *exchange) backoff() {
	if !x.cluster.Retry() {
		x.refuse(503, flow.ReasonRetryBudget)
		return
	}
	x.w.metrics.retries.Inc()
	wait := x.rule.Retry.Backoff
	if wait <= 0 {
		wait = 25 * time.Millisecond
	}
	longest := 10 * wait
	for i := 1; i < x.tries && wait < longest; i++ {
		wait *= 2
	}
	wait = min(wait, longest)
	wait += rand.N(wait/4 + 1)
	x.w.loop.SetTimer(&x.pause, x.w.loop.Now()+int64(wait))
}

// unavailable reports whether a response that is nothing but its head says that a
// gRPC call was not processed (HTTPRouteRetry names UNAVAILABLE).
func unavailable(h *message.Head) bool {
	status, ok := h.Get("grpc-status")
	return h.End && ok && string(status) == "14"
}

// keepBody keeps bytes of the request for a try to come. Without a try under way
// they are all that there is of them, and the client is not read on; with one they
// are kept as long as the request, and all requests of the node together, keep to
// their limits.
func (x *exchange) keepBody(p []byte) {
	if x.up != nil {
		if len(x.body)+len(p) > x.w.limits.RetryBodyBytes {
			x.forgetBody(x.w.metrics.bodyTooLarge)
			return
		}
		if !x.w.proxy.retryBudget.Hold(len(p)) {
			x.forgetBody(x.w.metrics.bodiesTooMany)
			return
		}
		x.kept += len(p)
	}
	had := cap(x.body)
	x.body = append(x.w.loop.Buffers.Grow(x.body, len(p)), p...)
	x.d.extra += cap(x.body) - had
}

// notKept is the detail of a request that a rule would have had tried again.
const notKept = "not tried again: the body was too large to be kept"

// bookBody books what came before the try began.
func (x *exchange) bookBody() {
	switch n := len(x.body) - x.kept; {
	case n == 0:
	case len(x.body) > x.w.limits.RetryBodyBytes:
		x.noteForgotten(x.w.metrics.bodyTooLarge)
	case !x.w.proxy.retryBudget.Hold(n):
		x.noteForgotten(x.w.metrics.bodiesTooMany)
	default:
		x.kept += n
	}
}

// forgetBody gives up the possibility of another try.
func (x *exchange) forgetBody(counter prometheus.Counter) {
	x.noteForgotten(counter)
	x.dropBody()
}

func (x *exchange) noteForgotten(counter prometheus.Counter) {
	x.recording, x.forgotten = false, true
	if x.rule.Retry != nil {
		counter.Inc()
	}
}

func (x *exchange) dropBody() {
	if x.kept > 0 {
		x.w.proxy.retryBudget.Free(x.kept)
		x.kept = 0
	}
	if x.body != nil {
		x.d.extra -= cap(x.body)
		x.w.loop.Buffers.Put(x.body)
		x.body = nil
	}
}
