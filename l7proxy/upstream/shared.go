package upstream

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
)

// State is why an endpoint gets no requests, or that it does.
type State uint8

// The states of an endpoint.
const (
	StateHealthy   State = iota
	StateUnchecked       // no health check has ended yet
	StateFailed          // by its health checks
	StateEjected         // for its answers
)

// String returns the state's word.
func (s State) String() string {
	switch s {
	case StateHealthy:
		return "healthy"
	case StateUnchecked:
		return "unchecked"
	case StateFailed:
		return "failed"
	case StateEjected:
		return "ejected"
	}
	return "unknown"
}

// Event is a change of an endpoint's state.
type Event struct {
	Cluster  string
	Service  mesh.Name
	Endpoint mesh.Endpoint
	State    State
	// Why is the failed check or the detector, as text.
	Why string
}

// Registry is what all loops know together of their clusters: health, ejections,
// limits and budgets. Requests meet it in atomics; its locks are taken when a
// cluster's endpoints or an endpoint's state change.
type Registry struct {
	// check asks an endpoint once.
	check Checker
	// changed is called after each Event, without locks, on any goroutine.
	changed func(Event)
	slots   chan struct{} // one element for each check under way

	mu       sync.Mutex
	clusters map[string]*Shared // guarded by mu
	closed   bool               // guarded by mu
}

// Checker asks an endpoint of a cluster once and returns what is wrong, or nil. It is
// called on many goroutines, and ends when ctx does.
type Checker func(ctx context.Context, h *mesh.HealthCheck, cluster string, to netip.AddrPort) error

// maxChecks bounds the health checks that are under way at once.
const maxChecks = 128

// NewRegistry returns an empty registry. changed may be nil; if check is, no health
// checks are made and all endpoints count as checked.
func NewRegistry(check Checker, changed func(Event)) *Registry {
	if changed == nil {
		changed = func(Event) {}
	}
	return &Registry{check: check, changed: changed, slots: make(chan struct{}, maxChecks), clusters: map[string]*Shared{}}
}

// Close ends all health checks; those under way are cut off.
func (r *Registry) Close() {
	r.mu.Lock()
	r.closed = true
	clusters := r.clusters
	r.clusters = map[string]*Shared{}
	r.mu.Unlock()
	for _, s := range clusters {
		s.close()
	}
}

// Remove forgets a cluster.
func (r *Registry) Remove(name string) {
	r.mu.Lock()
	s := r.clusters[name]
	delete(r.clusters, name)
	r.mu.Unlock()
	if s != nil {
		s.close()
	}
}

// View is one endpoint of a cluster, as the admin socket shows it.
type View struct {
	Cluster  string
	Endpoint mesh.Endpoint
	State    State
	Why      string
}

// Clusters calls f with each endpoint's state. It holds no lock while it does.
func (r *Registry) Clusters(f func(View)) {
	r.mu.Lock()
	all := make([]*Shared, 0, len(r.clusters))
	for _, s := range r.clusters {
		all = append(all, s)
	}
	r.mu.Unlock()
	for _, s := range all {
		s.mu.Lock()
		list := s.list
		s.mu.Unlock()
		for _, h := range list {
			v := View{Cluster: s.name, Endpoint: h.endpoint, State: h.State()}
			if v.State != StateHealthy {
				if why := h.why.Load(); why != nil {
					v.Why = *why
				}
			}
			f(v)
		}
	}
}

func (r *Registry) shared(name string) *Shared {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.clusters[name]
	if s == nil {
		s = &Shared{registry: r, name: name, hosts: map[netip.AddrPort]*Host{}}
		s.budget.epoch = time.Now()
		s.closed = r.closed
		r.clusters[name] = s
	}
	return s
}

// Shared is what all loops know together of one cluster.
type Shared struct {
	registry *Registry
	name     string

	// health counts the changes of its endpoints' states: a loop that has seen the
	// latest need not look at them.
	health atomic.Uint64

	connections, pending, requests atomic.Int64
	budget                         budget
	affinity                       affinity

	mu      sync.Mutex
	source  any                      // guarded by mu: what list came from
	at      uint64                   // guarded by mu: the generation of the configuration that source is of
	config  *mesh.Cluster            // guarded by mu
	hosts   map[netip.AddrPort]*Host // guarded by mu
	list    []*Host                  // guarded by mu; the slice itself never changes
	ring    *ring                    // guarded by mu: of list, nil until asked for
	ejected int                      // guarded by mu
	closed  bool                     // guarded by mu
}

// Host is an endpoint of a cluster as all loops know it.
type Host struct {
	shared   *Shared
	endpoint mesh.Endpoint
	why      atomic.Pointer[string]

	unchecked, failed, ejected atomic.Bool
	// Failures in a row.
	fives, gateways, locals atomic.Int32

	// Guarded by shared.mu.
	gone      bool
	fresh     bool      // no update has seen it yet
	ejections int       // how often in a row; one less for each interval in between
	released  time.Time // when the last ejection ended
	release   *time.Timer
	check     *checkRun
}

// State returns what the host is now.
func (h *Host) State() State {
	switch {
	case h == nil:
		return StateHealthy
	case h.ejected.Load():
		return StateEjected
	case h.unchecked.Load():
		return StateUnchecked
	case h.failed.Load():
		return StateFailed
	}
	return StateHealthy
}

// update makes the cluster's hosts those of a source, in the order of endpoints. at
// says which of two loops has the newer configuration.
func (s *Shared) update(config *mesh.Cluster, at uint64, source any, endpoints []mesh.Endpoint) []*Host {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.source == source && s.config == config {
		return s.list
	}
	if at < s.at {
		// Another loop is ahead; this one will be there with its next request.
		list := make([]*Host, len(endpoints))
		for i := range endpoints {
			if list[i] = s.hosts[endpoints[i].AddrPort]; list[i] == nil {
				list[i] = &Host{shared: s, endpoint: endpoints[i], gone: true}
			}
		}
		return list
	}
	before := s.config
	s.source, s.at, s.config = source, at, config
	s.ring = nil
	list := make([]*Host, len(endpoints))
	hosts := make(map[netip.AddrPort]*Host, len(endpoints))
	for i := range endpoints {
		e := &endpoints[i]
		h := s.hosts[e.AddrPort]
		if h == nil {
			h = &Host{shared: s, endpoint: *e, fresh: true}
		} else {
			h.endpoint = *e
		}
		list[i], hosts[e.AddrPort] = h, h
	}
	old := s.hosts
	s.hosts, s.list = hosts, list
	for a, h := range old {
		if hosts[a] != h {
			h.leave()
		}
	}
	s.setChecks(before)
	s.health.Add(1)
	return list
}

// leave ends what runs for a host that is gone. The caller holds s.mu.
func (h *Host) leave() {
	h.gone = true
	if h.release != nil && h.release.Stop() {
		h.shared.ejected--
	}
	h.release = nil
	if h.check != nil {
		h.check.stop()
		h.check = nil
	}
}

func (s *Shared) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, h := range s.hosts {
		h.leave()
	}
	s.hosts, s.list, s.source = map[netip.AddrPort]*Host{}, nil, nil
}

// tell reports a change of state, which the caller made. The caller holds no lock.
func (h *Host) tell(state State, why string) {
	s := h.shared
	s.mu.Lock()
	e := Event{Cluster: s.name, Endpoint: h.endpoint, State: state, Why: why}
	if s.config != nil {
		e.Service = s.config.Service
	}
	s.mu.Unlock()
	s.registry.changed(e)
}
