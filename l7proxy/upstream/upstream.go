// Package upstream knows the endpoints of clusters as one loop sees them: which
// of them takes the next request, and the connections to each that are open.
//
// A Set and all that hangs on it belong to one loop's goroutine; loops share
// nothing, so that neither a pick nor a pooled connection costs a lock. Load is
// what this loop has under way at an endpoint, whichever cluster led there. A
// connection is pooled by the workload in whose network namespace it was made,
// the endpoint and the protocol: no workload ever uses a connection that carries
// another's address. Endpoints that left every cluster keep what is under way and
// are forgotten with it.
package upstream

import (
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
	clusters  map[string]*Cluster
	endpoints map[netip.AddrPort]*Endpoint
}

// NewSet returns a set that knows nothing.
func NewSet() *Set {
	return &Set{clusters: map[string]*Cluster{}, endpoints: map[netip.AddrPort]*Endpoint{}}
}

// Cluster is the endpoints behind a name.
type Cluster struct {
	Name     string
	Protocol mesh.AppProtocol
	Service  mesh.Name
	Port     uint16
	// Checked is for the caller: when it last compared the cluster with the
	// configuration.
	Checked   uint64
	endpoints []*Endpoint
	config    *mesh.Cluster
	source    any
}

// Endpoint is one address and port, and what this loop has there.
type Endpoint struct {
	mesh.Endpoint
	// Active is how many requests and raw connections are under way.
	Active int
	refs   int
	pools  []*Pool
	set    *Set
}

// Update makes the cluster what config (nil: unknown) and the endpoints say. It
// does nothing if source, which stands for the value that the endpoints came from
// and must be comparable, and config are those of the last call.
func (s *Set) Update(name string, config *mesh.Cluster, source any, endpoints []mesh.Endpoint) *Cluster {
	c := s.clusters[name]
	if c == nil {
		c = &Cluster{Name: name}
		s.clusters[name] = c
	} else if c.source == source && c.config == config {
		return c
	}
	c.config = config
	if config != nil {
		c.Protocol, c.Service, c.Port = config.Protocol, config.Service, config.Port
	}
	if c.source == source {
		return c
	}
	c.source = source
	old := c.endpoints
	c.endpoints = make([]*Endpoint, 0, len(endpoints))
	for i := range endpoints {
		e := s.endpoint(&endpoints[i])
		e.refs++
		c.endpoints = append(c.endpoints, e)
	}
	for _, e := range old {
		e.refs--
		e.forget()
	}
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
func (s *Set) Endpoint(e mesh.Endpoint) *Endpoint { return s.endpoint(&e) }

func (s *Set) endpoint(e *mesh.Endpoint) *Endpoint {
	known := s.endpoints[e.AddrPort]
	if known == nil {
		known = &Endpoint{set: s}
		s.endpoints[e.AddrPort] = known
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

// Pick chooses the less loaded of two random endpoints, neither of them avoid as
// long as there is another; nil if there is none at all. It does not touch Active.
func (c *Cluster) Pick(avoid *Endpoint) *Endpoint {
	n := len(c.endpoints)
	switch n {
	case 0:
		return nil
	case 1:
		return c.endpoints[0]
	}
	i := rand.IntN(n)
	j := rand.IntN(n - 1)
	if j >= i {
		j++
	}
	a, b := c.endpoints[i], c.endpoints[j]
	switch {
	case a == avoid:
		if n > 2 {
			// Any but the avoided one: the pair without it was as random.
			return c.endpoints[third(n, i, j)].lessLoaded(b)
		}
		return b
	case b == avoid:
		if n > 2 {
			return c.endpoints[third(n, i, j)].lessLoaded(a)
		}
		return a
	}
	return a.lessLoaded(b)
}

// third returns a random index of n that is neither i nor j.
func third(n, i, j int) int {
	k := rand.IntN(n - 2)
	if k >= min(i, j) {
		k++
	}
	if k >= max(i, j) {
		k++
	}
	return k
}

func (e *Endpoint) lessLoaded(o *Endpoint) *Endpoint {
	if o.Active < e.Active {
		return o
	}
	return e
}

// Done ends what Active counted.
func (e *Endpoint) Done() {
	e.Active--
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
	if e.Active > 0 || e.set.endpoints[e.AddrPort] != e {
		return
	}
	delete(e.set.endpoints, e.AddrPort)
}

// Pool returns the connections to e of a workload and protocol.
func (e *Endpoint) Pool(w mesh.WorkloadIndex, protocol Protocol) *Pool {
	for _, p := range e.pools {
		if p.Workload == w && p.Protocol == protocol {
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
	// Connecting is how many attempts are under way.
	Connecting int
	// conns are, of HTTP/1, the unused connections, the last used at the end; of
	// HTTP/2 all that may take more streams.
	conns   []Conn
	waiters []Waiter
}

// Get returns a connection that can take an exchange, nil if there is none. An
// HTTP/1 connection is out of the pool until Put.
func (p *Pool) Get() Conn {
	if p.Protocol == HTTP1 {
		n := len(p.conns)
		if n == 0 {
			return nil
		}
		c := p.conns[n-1]
		p.conns[n-1] = nil
		p.conns = p.conns[:n-1]
		return c
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
	if p.Endpoint.refs == 0 && len(p.waiters) == 0 && p.Endpoint.Active == 0 {
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

// Wait queues w until a connection is Put or an attempt fails.
func (p *Pool) Wait(w Waiter) { p.waiters = append(p.waiters, w) }

// Cancel takes w out of the queue.
func (p *Pool) Cancel(w Waiter) {
	for i := range p.waiters {
		if p.waiters[i] == w {
			p.waiters = append(p.waiters[:i], p.waiters[i+1:]...)
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
	return w
}

func (p *Pool) retire() {
	conns := p.conns
	p.conns = nil
	for _, c := range conns {
		c.Retire()
	}
}
