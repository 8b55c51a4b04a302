package l7proxy

import (
	"math/rand/v2"
	"slices"

	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/l7proxy/route"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// mirror is the copy of a request for another backend: an exchange of its own whose
// client takes everything and wants nothing. It never makes the request that it
// copies wait: what its endpoint does not take in time is kept up to a limit, and
// beyond that the mirror ends. What happens to it is a flow of its own.
//
// A mirror belongs to its worker. It is freed by Flush alone, so that nobody up the
// stack still uses it.
type mirror struct {
	w     *worker
	x     exchange
	of    *exchange // whose body it still gets, nil once it has it all
	index int       // in worker.mirrors

	rule    route.Rule
	spec    mesh.Rule
	backend mesh.WeightedCluster

	pend   []byte // body that the exchange has not taken
	pendAt int
	booked int  // of pend, in the node's budget
	whole  bool // all of the body came
	ended  bool // and was handed on

	started bool
	dirty   bool // queued for Flush
}

// mirrorTo makes a copy of the request for each mirror among filters that takes it.
// An upgrade is not copied: what follows it is no request.
func (x *exchange) mirrorTo(filters []mesh.Filter) {
	for i := range filters {
		if m := filters[i].Mirror; m != nil && len(x.head.Upgrade) == 0 && rand.Uint32N(mesh.EveryRequest) < m.PerMillion {
			x.mirrors = append(x.mirrors, x.w.takeMirror(x, m))
		}
	}
}

func (x *exchange) mirrorData(p []byte) {
	for _, m := range x.mirrors {
		m.take(p)
	}
}

func (x *exchange) mirrorEnd() {
	for _, m := range x.mirrors {
		for _, f := range x.trailers {
			m.x.trailers = append(m.x.trailers, message.Field{Name: cloneBytes(f.Name), Value: cloneBytes(f.Value)})
		}
		m.of, m.whole = nil, true
		m.later()
	}
	x.mirrors = x.mirrors[:0]
}

// leaveMirrors ends those that will not get the whole request; x is over.
func (x *exchange) leaveMirrors() {
	for _, m := range x.mirrors {
		m.of = nil
		if !m.whole {
			m.cut(flow.ReasonMirrorCut)
		}
		m.later()
	}
	x.mirrors = x.mirrors[:0]
}

func (w *worker) takeMirror(of *exchange, to *mesh.Mirror) *mirror {
	var m *mirror
	if n := len(w.freeMirrors); n > 0 {
		m = w.freeMirrors[n-1]
		w.freeMirrors = w.freeMirrors[:n-1]
	} else {
		m = &mirror{w: w}
		m.x.prepare(w)
		m.x.mirror = m
	}
	from := of.rule
	m.spec = mesh.Rule{Route: from.Route, RouteKind: from.RouteKind, RuleIndex: from.RuleIndex, MatchIndex: from.MatchIndex, RuleName: from.RuleName, Timeouts: from.Timeouts}
	if m.spec.Timeouts.Request == 0 {
		m.spec.Timeouts.Request = w.limits.MirrorTimeout
	}
	m.rule = route.Rule{Rule: &m.spec, Metrics: from.Metrics}
	m.backend = mesh.WeightedCluster{Cluster: to.Cluster, Weight: 1}
	m.of, m.whole, m.ended, m.started = of, of.head.End, of.head.End, false
	m.index = len(w.mirrors)
	w.mirrors = append(w.mirrors, m)
	m.x.begun(of.d, m, &of.head)
	m.x.head.Expect100 = false
	m.x.rule, m.x.backend, m.x.decided = &m.rule, &m.backend, true
	if len(of.body) > 0 {
		m.take(of.body) // came while the request waited for configuration
	}
	m.later()
	return m
}

// start sends the copy, or has it wait for configuration.
func (m *mirror) start() {
	x := &m.x
	if !x.active {
		return
	}
	if len(m.w.mirrors) > m.w.limits.MaxMirrors {
		x.detail = "mirrors under way"
		m.cut(flow.ReasonOverLimit)
		return
	}
	if m.whole {
		m.w.loop.SetTimer(&x.deadline, x.started+int64(m.spec.Timeouts.Request))
	}
	x.decide()
}

// take copies or hands on body bytes.
func (m *mirror) take(p []byte) {
	if !m.x.active {
		return
	}
	if m.pend == nil && m.x.ready() {
		m.x.requestData(p)
		m.later()
		return
	}
	if len(m.pend)-m.pendAt+len(p) > m.w.limits.MirrorBodyBytes || !m.w.proxy.mirrorBudget.Hold(len(p)) {
		m.cut(flow.ReasonMirrorBehind)
		return
	}
	m.booked += len(p)
	if m.pendAt > 0 {
		m.pend = append(m.pend[:0], m.pend[m.pendAt:]...)
		m.pendAt = 0
	}
	m.pend = append(m.w.loop.Buffers.Grow(m.pend, len(p)), p...)
}

// cut ends the copy before its time.
func (m *mirror) cut(reason flow.Reason) {
	m.x.requestReset(reason)
	m.later()
}

// mirrorPiece is how much of what waits is handed on before the endpoint is asked
// whether it keeps up.
const mirrorPiece = 16 << 10

// goOn hands on what waits.
func (m *mirror) goOn() {
	x := &m.x
	for x.active && x.up != nil && !x.up.full() && m.pendAt < len(m.pend) {
		n := min(len(m.pend)-m.pendAt, mirrorPiece)
		x.requestData(m.pend[m.pendAt : m.pendAt+n])
		m.pendAt += n
	}
	if m.pendAt == len(m.pend) {
		m.drop()
		if x.active && x.up != nil && m.whole && !m.ended {
			m.ended = true
			trailers := x.trailers
			x.trailers = nil
			x.requestEnd(trailers)
		}
	}
	if x.up != nil {
		x.up.push()
	}
}

func (m *mirror) drop() {
	if m.booked > 0 {
		m.w.proxy.mirrorBudget.Free(m.booked)
		m.booked = 0
	}
	if m.pend != nil {
		m.w.loop.Buffers.Put(m.pend)
		m.pend, m.pendAt = nil, 0
	}
}

// later has Flush called at the end of the loop's round.
func (m *mirror) later() {
	if !m.dirty {
		m.dirty = true
		m.w.loop.Defer(m)
	}
}

// Flush goes on, or frees the mirror if it is over.
func (m *mirror) Flush() {
	m.dirty = false
	if !m.started {
		m.started = true
		m.start()
	}
	if m.x.active {
		m.goOn()
	}
	if !m.x.active {
		m.free()
	}
}

func (m *mirror) free() {
	w := m.w
	if m.index < 0 {
		return
	}
	m.drop()
	if m.of != nil {
		m.of.mirrors = slices.DeleteFunc(m.of.mirrors, func(o *mirror) bool { return o == m })
		m.of = nil
	}
	last := len(w.mirrors) - 1
	w.mirrors[m.index] = w.mirrors[last]
	w.mirrors[m.index].index = m.index
	w.mirrors[last] = nil
	w.mirrors = w.mirrors[:last]
	m.index = -1
	if m.dirty || len(w.freeMirrors) >= spare {
		m.x.forget()
		return
	}
	w.freeMirrors = append(w.freeMirrors, m)
}

// dropMirrors ends the copies of a workload's requests: their connections would keep
// its network namespace.
func (w *worker) dropMirrors(workload mesh.WorkloadIndex) {
	for _, m := range w.mirrors {
		if m.x.d.workload == workload {
			m.cut(flow.ReasonMirrorCut)
		}
	}
}

func (w *worker) closeMirrors() {
	for len(w.mirrors) > 0 {
		m := w.mirrors[len(w.mirrors)-1]
		m.x.requestReset(flow.ReasonDraining)
		m.free()
	}
}

// What follows makes a mirror the client of its exchange.

func (m *mirror) respond(*message.Head) {}

func (m *mirror) data([]byte) {}

func (m *mirror) end([]message.Field) { m.later() }

func (m *mirror) abort() { m.later() }

func (m *mirror) full() bool { return false }

func (m *mirror) wake() { m.later() }

func (m *mirror) push() { m.later() }
