package l7proxy

import "github.com/sluice-mesh/sluice/l7proxy/message"

// endBy bounds the exchange: at is a moment of the loop's time. The deadline that a
// gRPC client gave its call is kept if it is earlier.
func (x *exchange) endBy(at int64) {
	if x.callLimit > 0 {
		at = min(at, x.callLimit)
	}
	x.w.loop.SetTimer(&x.deadline, at)
}

// callDeadline reads the deadline of a gRPC call and bounds the exchange by it.
func (x *exchange) callDeadline() {
	if !x.grpc {
		return
	}
	if d, ok := grpcTimeout(&x.head); ok {
		x.callLimit = x.started + d
		x.w.loop.SetTimer(&x.deadline, x.callLimit)
	}
}

// grpcTimeout returns the nanoseconds of a request's grpc-timeout: up to eight digits
// and a unit (gRPC over HTTP2, "Timeout"). What is malformed counts as absent: the
// endpoint will refuse it.
func grpcTimeout(h *message.Head) (ns int64, ok bool) {
	v, ok := h.Get("grpc-timeout")
	if !ok || len(v) < 2 || len(v) > 9 {
		return 0, false
	}
	n, ok := message.ParseNumber(v[:len(v)-1])
	if !ok {
		return 0, false
	}
	switch v[len(v)-1] {
	case 'n':
		return n, true
	case 'u':
		return n * 1e3, true
	case 'm':
		return n * 1e6, true
	case 'S':
		return n * 1e9, true
	case 'M':
		return n * 60e9, true
	case 'H':
		// 99,999,999 hours do not fit; nobody lives to see the difference.
		return min(n, 1<<20) * 3600e9, true
	}
	return 0, false
}
