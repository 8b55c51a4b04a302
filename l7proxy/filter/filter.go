// Package filter changes message heads as the filters of a route's rule say.
//
// It owns nothing: the bytes that it makes live in the caller's Scratch. It is
// called by the goroutine that owns the exchange, does not allocate once the
// Scratch has grown, and cannot fail.
package filter

import (
	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/mesh"
)

// Scratch is reusable memory of one exchange. What the functions of this package
// put into a head stays valid until Reset.
type Scratch struct{ buf []byte }

// Reset makes the memory free for the next request.
func (s *Scratch) Reset() { s.buf = s.buf[:0] }

// Origin says how the client reached the listener.
type Origin struct {
	Scheme string // "http" or "https"
	Port   uint16 // of the listener
}

// Request applies the request header edits and rewrites of the rule, then those
// of the backend (nil: none), to h in place.
func Request(h *message.Head, rule *mesh.Rule, backend *mesh.WeightedCluster, scratch *Scratch) {}

// Response applies the response header edits of the rule, then those of the
// backend (nil: none), to h in place.
func Response(h *message.Head, rule *mesh.Rule, backend *mesh.WeightedCluster, scratch *Scratch) {}

// Redirect returns the status and Location that answer the request, or ok false
// if the rule has no redirect.
func Redirect(rule *mesh.Rule, h *message.Head, origin Origin, scratch *Scratch) (status int, location []byte, ok bool) {
	return 0, nil, false
}
