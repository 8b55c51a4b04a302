// Package upstream knows the endpoints of clusters as one loop sees them: which
// of them takes the next request, and the connections to each that are open.
//
// A Set and all that hangs on it belong to one loop's goroutine, so that neither a
// pick nor a pooled connection costs a lock. What all loops must know together —
// health, ejections, limits, budgets — is in a Registry, which requests meet in
// atomics. Load is what this loop has under way at an endpoint of a cluster. A
// connection is pooled by the cluster's endpoint, the workload in whose network
// namespace it was made, and the protocol: no workload ever uses a connection that
// carries another's address. Endpoints that left their cluster get nothing new, keep
// what is under way and are forgotten with it.
package upstream

import (
	"crypto/tls"
	"math/rand/v2"
	"net/netip"

	"github.com/sluice-mesh/sluice/mesh"
)

// Protocol is what a pooled connection speaks.
type Protocol uint8

// The protocols.
const (
	HTTP1 Protocol = iota + 1
	HTTP2
)

// Conn is a pooled connection.
type Conn interface {
	// CanOpen is how many more exchanges it could carry now.
	CanOpen() int
	// Retire closes it as soon as it carries nothing.
	Retire()
}

// Waiter wants a connection that is not there yet.
type Waiter interface {
	// Dialed gives it one, or the error of an attempt. It is not waiting any more.
	Dialed(c Conn, err error)
}

// Set is the clusters and endpoints of one loop.
type Set struct {
	registry  *Registry
	here      Here
	clusters  map[string]*Cluster
	endpoints map[endpointKey]*Endpoint
}

// endpointKey is an endpoint of a cluster, or with an empty name of none.
type endpointKey struct {
	cluster string
	addr    netip.AddrPort
}

// NewSet returns a set that knows nothing. registry is what the loops share.
func NewSet(registry *Registry, here Here) *Set {
	return &Set{registry: registry, here: here, clusters: map[string]*Cluster{}, endpoints: map[endpointKey]*Endpoint{}}
}

// Cluster is the endpoints behind a name.
type Cluster struct {
	Name     string
	Protocol mesh.AppProtocol
	Service  mesh.Name
	Port     uint16
	// Checked is for the caller: when it last compared the cluster with the
	// configuration.
	Checked uint64

	set       *Set
	shared    *Shared // nil while config is
	endpoints []*Endpoint
	hosts     []*Host // of endpoints, in their order
	config    *mesh.Cluster
	source    any

	tiers  []tier
	health uint64 // of shared, that tiers are of
	warm   bool
	ring   *ring // nil until needed
	turn   uint32
}

// Endpoint is one address and port, and what this loop has there.
type Endpoint struct {
	mesh.Endpoint
	// Active is how many requests and raw connections are under way.
	Active int
	// Source is where connections to it come from; zero: the workload's own address.
	Source netip.Addr

	limited   int     // of Active, what counts against the limit
	limitedBy *Shared // of this cluster
	refs      int
	pools     []*Pool
	set       *Set
	cluster   *Cluster // nil if it is in none
	host      *Host    // nil if the cluster has no configuration
	tier      uint8
	usable    bool
}

// Update makes the cluster what config (nil: unknown) and the endpoints say. It
// does nothing if source, which stands for the value that the endpoints came from
// and must be comparable, and config are those of the last call. at is the generation
// of the configuration that they were read in, or an earlier one.
func (s *Set) Update(name string, config *mesh.Cluster, at uint64, source any, endpoints []mesh.Endpoint) *Cluster {
	c := s.clusters[name]
	if c == nil {
		c = &Cluster{Name: name, set: s, turn: rand.Uint32()}
		s.clusters[name] = c
	} else if c.source == source && c.config == config {
		return c
	}
	c.config = config
	c.shared, c.hosts, c.ring = nil, nil, nil
	if config != nil {
		c.Protocol, c.Service, c.Port = config.Protocol, config.Service, config.Port
		c.shared = s.registry.shared(name)
		c.hosts = c.shared.update(config, at, source, endpoints)
	}
	if c.source != source {
		c.source = source
		old := c.endpoints
		c.endpoints = make([]*Endpoint, 0, len(endpoints))
		for i := range endpoints {
			e := s.endpoint(name, &endpoints[i])
			e.refs++
			e.cluster = c
			c.endpoints = append(c.endpoints, e)
		}
		for _, e := range old {
			e.refs--
			e.forget()
		}
	}
	for i, e := range c.endpoints {
		if e.host = nil; c.hosts != nil {
			e.host = c.hosts[i]
		}
	}
	c.arrange()
	return c
}

// Remove forgets a cluster.
func (s *Set) Remove(name string) {
	c := s.clusters[name]
	if c == nil {
		return
	}
	delete(s.clusters, name)
	for _, e := range c.endpoints {
		e.refs--
		e.forget()
	}
}

// Get returns a cluster as it was last updated, nil if it never was.
func (s *Set) Get(name string) *Cluster { return s.clusters[name] }

// Endpoint returns the endpoint of an address that is in no cluster, or is in one.
func (s *Set) Endpoint(e mesh.Endpoint) *Endpoint { return s.endpoint("", &e) }

func (s *Set) endpoint(cluster string, e *mesh.Endpoint) *Endpoint {
	key := endpointKey{cluster, e.AddrPort}
	known := s.endpoints[key]
	if known == nil {
		known = &Endpoint{set: s}
		s.endpoints[key] = known
	}
	known.Endpoint = *e
	return known
}

// DropWorkload closes the unused connections of a workload, and the others once
// they are unused: they would keep its network namespace alive.
func (s *Set) DropWorkload(w mesh.WorkloadIndex) {
	for _, e := range s.endpoints {
		for _, p := range e.pools {
			if p.Workload == w {
				p.retire()
			}
		}
	}
}

// Close closes all pooled connections that are unused.
func (s *Set) Close() {
	for _, e := range s.endpoints {
		for _, p := range e.pools {
			p.retire()
		}
	}
}

// Active is how many requests and raw connections are under way at all endpoints.
func (s *Set) Active() int {
	n := 0
	for _, e := range s.endpoints {
		n += e.Active
	}
	return n
}

// Len is how many endpoints the cluster has.
func (c *Cluster) Len() int { return len(c.endpoints) }

// Config returns what the cluster was last updated with.
func (c *Cluster) Config() (config *mesh.Cluster, source any) { return c.config, c.source }

// Done ends what Active counted.
func (e *Endpoint) Done() {
	e.Active--
	if e.limited > 0 {
		e.limited--
		e.limitedBy.requests.Add(-1)
	}
	e.forget()
}

// forget drops an endpoint that nothing refers to and nothing uses.
func (e *Endpoint) forget() {
	if e.refs > 0 {
		return
	}
	for _, p := range e.pools {
		p.retire()
	}
	name := ""
	if e.cluster != nil {
		name = e.cluster.Name
	}
	if key := (endpointKey{name, e.AddrPort}); e.Active == 0 && e.set.endpoints[key] == e {
		delete(e.set.endpoints, key)
	}
}

// Pool returns the connections to e of a workload and protocol.
func (e *Endpoint) Pool(w mesh.WorkloadIndex, protocol Protocol) *Pool {
	for _, p := range e.pools {
		if p.Workload == w && p.Protocol == protocol && p.TLS == nil {
			return p
		}
	}
	p := &Pool{Endpoint: e, Workload: w, Protocol: protocol}
	e.pools = append(e.pools, p)
	return p
}

// Pool is the connections of one workload to one endpoint in one protocol.
type Pool struct {
	Endpoint *Endpoint
	Workload mesh.WorkloadIndex
	Protocol Protocol
	// TLS has the settings of handshakes, nil for plain text.
	TLS *tls.Config
	// Connecting is how many attempts are under way.
	Connecting int
	// Open is how many connections there are, used or not.
	Open int
	// conns are, of HTTP/1, the unused connections, the last used at the end; of
	// HTTP/2 all that may take more streams.
	conns     []Conn
	waiters   []Waiter
	limited   int     // of waiters, those that count against the limit
	limitedBy *Shared // of this cluster
}

// Get returns a connection that can take an exchange, nil if there is none. An
// HTTP/1 connection is out of the pool until Put.
func (p *Pool) Get() Conn {
	if p.Protocol == HTTP1 {
		for n := len(p.conns); n > 0; n-- {
			c := p.conns[n-1]
			p.conns[n-1] = nil
			p.conns = p.conns[:n-1]
			if c.CanOpen() > 0 {
				return c
			}
			// It is about to learn of its end, and closes itself.
		}
		return nil
	}
	for _, c := range p.conns {
		if c.CanOpen() > 0 {
			return c
		}
	}
	return nil
}

// Put makes a connection available: to whoever waits, then to Get. It reports
// false, and does nothing, if the endpoint is gone and the connection should be
// closed.
func (p *Pool) Put(c Conn) bool {
	if p.Endpoint.refs == 0 && len(p.waiters) == 0 {
		return false
	}
	if p.Protocol == HTTP1 {
		if w := p.nextWaiter(); w != nil {
			w.Dialed(c, nil)
			return true
		}
		p.conns = append(p.conns, c)
		return true
	}
	p.conns = append(p.conns, c)
	p.Serve(c)
	return true
}

// Serve gives a connection to those who wait, as far as it can open.
func (p *Pool) Serve(c Conn) {
	for len(p.waiters) > 0 && c.CanOpen() > 0 {
		w := p.nextWaiter()
		if w == nil {
			return
		}
		w.Dialed(c, nil)
	}
}

// Remove takes a connection out that must not be used any more.
func (p *Pool) Remove(c Conn) {
	for i := range p.conns {
		if p.conns[i] == c {
			p.conns = append(p.conns[:i], p.conns[i+1:]...)
			return
		}
	}
}

// Wait queues w until a connection is Put or an attempt fails. It reports false, and
// does nothing, if the cluster's limit of those who wait is reached.
func (p *Pool) Wait(w Waiter) bool {
	if l := p.Endpoint.limits(); l != nil && l.PendingRequests > 0 {
		s := p.Endpoint.host.shared
		if !enter(&s.pending, l.PendingRequests) {
			return false
		}
		if p.limitedBy != s {
			p.limited, p.limitedBy = 0, s
		}
		p.limited++
	}
	p.waiters = append(p.waiters, w)
	return true
}

// waited counts one off that waits no more.
func (p *Pool) waited() {
	if p.limited > 0 {
		p.limited--
		p.limitedBy.pending.Add(-1)
	}
}

// Cancel takes w out of the queue.
func (p *Pool) Cancel(w Waiter) {
	for i := range p.waiters {
		if p.waiters[i] == w {
			p.waiters = append(p.waiters[:i], p.waiters[i+1:]...)
			p.waited()
			return
		}
	}
}

// Waiting is how many wait.
func (p *Pool) Waiting() int { return len(p.waiters) }

// Failed tells those who waited for an attempt that it failed: of HTTP/1 one, of
// HTTP/2 all that no other attempt could still serve.
func (p *Pool) Failed(err error) {
	if p.Protocol == HTTP1 || p.Connecting > 0 {
		if w := p.nextWaiter(); w != nil {
			w.Dialed(nil, err)
		}
		return
	}
	waiters := p.waiters
	p.waiters = nil
	for _, w := range waiters {
		p.waited()
		w.Dialed(nil, err)
	}
}

func (p *Pool) nextWaiter() Waiter {
	if len(p.waiters) == 0 {
		return nil
	}
	w := p.waiters[0]
	copy(p.waiters, p.waiters[1:])
	p.waiters[len(p.waiters)-1] = nil
	p.waiters = p.waiters[:len(p.waiters)-1]
	p.waited()
	return w
}

func (p *Pool) retire() {
	conns := p.conns
	p.conns = nil
	for _, c := range conns {
		c.Retire()
	}
}

// Waiting is how many requests of this loop wait for a connection to any endpoint of c.
func (c *Cluster) Waiting() int {
	n := 0
	for _, e := range c.endpoints {
		for _, p := range e.pools {
			n += len(p.waiters)
		}
	}
	return n
}

// Uses is how many connections and requests this loop has at an address, in whichever
// cluster.
func (s *Set) Uses(a netip.AddrPort) int {
	n := 0
	for key, e := range s.endpoints {
		if key.addr != a {
			continue
		}
		n += e.Active
		for _, p := range e.pools {
			n += p.Open + p.Connecting
		}
	}
	return n
}
