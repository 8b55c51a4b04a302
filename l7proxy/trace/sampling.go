package trace

import (
	"math/rand/v2"

	"github.com/sluice-mesh/sluice/mesh"
)

// randomBits of a trace identifier, its last, decide about sampling (W3C Trace
// Context Level 2 §3.2.2.5.2, OpenTelemetry "Consistent Probability Sampling").
const randomBits = 56

// Sampled reports whether a trace is of the share. It depends on the identifier
// alone, and a trace of a smaller share is of each greater one too.
func Sampled(share mesh.PerMillion, id ID) bool {
	switch {
	case share == 0:
		return false
	case share >= mesh.AllPerMillion:
		return true
	}
	var r uint64
	for _, b := range id[9:] {
		r = r<<8 | uint64(b)
	}
	return r >= (1<<randomBits)/uint64(mesh.AllPerMillion)*uint64(mesh.AllPerMillion-share)
}

// NewID returns a random identifier. It is no secret.
func NewID() ID {
	var id ID
	for id.IsZero() {
		put64(id[:8], rand.Uint64())
		put64(id[8:], rand.Uint64())
	}
	return id
}

// NewSpanID returns a random identifier.
func NewSpanID() SpanID {
	var id SpanID
	for id == (SpanID{}) {
		put64(id[:], rand.Uint64())
	}
	return id
}

func put64(b []byte, v uint64) {
	for i := range 8 {
		b[i] = byte(v >> (56 - 8*i))
	}
}

// Decision is what becomes of a request's trace.
type Decision uint8

// The decisions.
const (
	// Leave passes the header fields on as they came: the caller does not record the
	// trace, or none is to be started.
	Leave Decision = iota
	// Start passes a new trace on that nobody records, so that it is not decided anew
	// further on.
	Start
	// Record makes spans.
	Record
)

// Decide returns the trace of a request and what becomes of it: the caller's decision
// where there is one, else by the share of the route.
func Decide(parent Context, hasParent bool, share mesh.PerMillion) (Context, Decision) {
	switch {
	case hasParent && parent.Sampled():
		parent.Span = NewSpanID()
		return parent, Record
	case hasParent, share == 0:
		return parent, Leave
	}
	c := Context{Trace: NewID(), Span: NewSpanID(), Flags: flagRandom}
	if !Sampled(share, c.Trace) {
		return c, Start
	}
	c.Flags |= flagSampled
	return c, Record
}
