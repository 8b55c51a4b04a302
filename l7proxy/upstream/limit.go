package upstream

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
)

// Errors of limits, one for each bound of mesh.BackendLimits.
var (
	ErrConnectionLimit = errors.New("the backend's limit of connections is reached")
	ErrPendingLimit    = errors.New("the backend's limit of pending requests is reached")
	ErrRequestLimit    = errors.New("the backend's limit of requests is reached")
)

// enter counts one more against a limit, and reports whether it is within it.
func enter(n *atomic.Int64, limit int) bool {
	if n.Add(1) > int64(limit) {
		n.Add(-1)
		return false
	}
	return true
}

// Begin counts a request that begins at e, and reports false if the cluster's limit is
// reached. Done ends it.
func (e *Endpoint) Begin() bool {
	if l := e.limits(); l != nil && l.Requests > 0 {
		s := e.host.shared
		if !enter(&s.requests, l.Requests) {
			return false
		}
		if e.limitedBy != s {
			e.limited, e.limitedBy = 0, s
		}
		e.limited++
	}
	e.Active++
	return true
}

// limits are those of e's cluster, nil without any.
func (e *Endpoint) limits() *mesh.BackendLimits {
	if e.cluster == nil || e.cluster.config == nil || e.host == nil {
		return nil
	}
	return &e.cluster.config.Policy.Limits
}

// RequestsPerConnection is after how many a connection to e is replaced; zero: never.
func (e *Endpoint) RequestsPerConnection() int {
	if l := e.limits(); l != nil {
		return l.RequestsPerConnection
	}
	return 0
}

// Connect counts a connection to e, and reports false if the cluster's limit is
// reached even after an unused one of this loop was closed. release, which is never
// nil then, ends it.
func (e *Endpoint) Connect() (release func(), ok bool) {
	l := e.limits()
	if l == nil || l.Connections == 0 {
		return noRelease, true
	}
	s := e.host.shared
	if !enter(&s.connections, l.Connections) {
		if !e.cluster.closeUnused() || !enter(&s.connections, l.Connections) {
			return nil, false
		}
	}
	return func() { s.connections.Add(-1) }, true
}

func noRelease() {}

// closeUnused closes a connection that waits in a pool, and reports whether there was
// one.
func (c *Cluster) closeUnused() bool {
	for _, e := range c.endpoints {
		for _, p := range e.pools {
			if p.Protocol == HTTP1 && len(p.conns) > 0 {
				conn := p.conns[0]
				p.conns = append(p.conns[:0], p.conns[1:]...)
				conn.Retire()
				return true
			}
		}
	}
	return false
}

// Count notes a request for the retry budget.
func (c *Cluster) Count() {
	if b := c.retryBudget(); b != nil {
		c.shared.budget.count(b, 0)
	}
}

// Retry reports whether the retry budget allows one more, and counts it.
func (c *Cluster) Retry() bool {
	b := c.retryBudget()
	return b == nil || c.shared.budget.retry(b)
}

func (c *Cluster) retryBudget() *mesh.RetryBudget {
	if c.config == nil || c.shared == nil {
		return nil
	}
	return c.config.Policy.RetryBudget
}

// budgetSlots is into how many parts the interval of a budget is cut: the window ends
// at a border of two.
const budgetSlots = 16

// budget counts the requests and retries of the last interval. A slot that is reused
// is emptied by whoever comes first; what another loop counts at that moment may be
// lost, which is a part of a slot.
type budget struct {
	epoch time.Time // where the numbers of slots begin
	slots [budgetSlots]struct {
		at                atomic.Int64 // number of the slot since the epoch
		requests, retries atomic.Int64
	}
}

func (b *budget) slot(r *mesh.RetryBudget) int64 {
	width := max(r.Interval, time.Second) / budgetSlots
	return int64(time.Since(b.epoch)/width) + 1
}

// count adds to the present slot: a request, or a retry.
func (b *budget) count(r *mesh.RetryBudget, retries int64) {
	now := b.slot(r)
	s := &b.slots[now%budgetSlots]
	if at := s.at.Load(); at != now && s.at.CompareAndSwap(at, now) {
		s.requests.Store(0)
		s.retries.Store(0)
	}
	if retries > 0 {
		s.retries.Add(retries)
		return
	}
	s.requests.Add(1)
}

func (b *budget) retry(r *mesh.RetryBudget) bool {
	now := b.slot(r)
	var requests, retries int64
	for i := range b.slots {
		if s := &b.slots[i]; s.at.Load() > now-budgetSlots {
			requests += s.requests.Load()
			retries += s.retries.Load()
		}
	}
	if retries >= max(requests*int64(r.Percent)/100, int64(r.Minimum)) {
		return false
	}
	b.count(r, 1)
	return true
}
