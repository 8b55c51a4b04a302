package l7proxy

import (
	"github.com/sluice-mesh/sluice/l7proxy/filter"
	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/mesh"
)

// answerByFilter answers the request if a filter of the rule, or of a backend, does so in
// place of an endpoint, and notes which CORS filter applies to the answer: the
// backend's goes before the rule's.
func (x *exchange) answerByFilter(backend *mesh.WeightedCluster) bool {
	filters := x.rule.Filters
	if backend != nil {
		filters = backend.Filters
	}
	if len(filters) == 0 {
		return false
	}
	if c := filter.CORS(filters); c != nil {
		x.cors = c
		x.origin, _ = x.head.Get("origin")
		if filter.Preflight(&x.head) {
			x.preflight()
			return true
		}
	}
	status, location, ok := filter.Redirect(x.rule.Rule, filters, &x.head, filter.Origin{Scheme: x.d.scheme(), Port: x.d.dest.Port()}, &x.scratch)
	if ok {
		x.redirect(status, location)
	}
	return ok
}

// preflight answers with what the request asked for, or with nothing of it.
func (x *exchange) preflight() {
	c := x.cors
	x.cors = nil // said already
	x.status = 200
	h := &x.w.answer
	h.Reset()
	h.Proto = message.HTTP11
	h.Status = x.status
	filter.AnswerPreflight(h, &x.head, c, &x.scratch)
	x.answer(h, nil)
}

// edit changes the head into what the backend gets. The copies that mirrors of the
// rule get have the rule's edits, those that mirrors of the backend get have both.
func (x *exchange) edit() {
	x.forwardedFields()
	x.traceBegin()
	path := x.head.Path
	filter.Request(&x.head, x.rule.Rule, &x.scratch)
	x.mirrorTo(x.rule.Filters)
	if len(x.backend.Filters) > 0 {
		filter.ToBackend(&x.head, path, x.rule.Rule, x.backend, &x.scratch)
		x.mirrorTo(x.backend.Filters)
	}
	if x.reqEnded && len(x.mirrors) > 0 {
		x.mirrorEnd()
	}
}
