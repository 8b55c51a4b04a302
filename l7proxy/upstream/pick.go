package upstream

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
)

// Request is what of a request a balancer may look at.
type Request struct {
	// Hash counts if Hashed.
	Hash   uint64
	Hashed bool
	// Client is its address.
	Client netip.Addr
}

const (
	// defaultPanic is Envoy's healthy_panic_threshold.
	defaultPanic = 50
	// overprovisioning is how much of a tier may be unhealthy, in percent of what is
	// healthy, before the next takes a part (Envoy, overprovisioning_factor).
	overprovisioning = 140
)

// tier is the endpoints of one distance, nearest first.
type tier struct {
	all, healthy []*Endpoint
	// use is one of the two.
	use []*Endpoint
	// load is the tier's part of the requests, in percent.
	load int
	// panicking: health is ignored.
	panicking bool
}

// Here is where a loop's node is.
type Here struct{ Node, Zone string }

func (c *Cluster) policy() *mesh.BackendPolicy {
	if c.config == nil {
		return &noPolicy
	}
	return &c.config.Policy
}

var noPolicy mesh.BackendPolicy

// arrange sorts the endpoints into tiers by distance and health. It costs the
// cluster's endpoints, and happens when one of those changed.
func (c *Cluster) arrange() {
	p := c.policy()
	if c.shared != nil {
		c.health = c.shared.health.Load()
	}
	c.tiers = c.tiers[:0]
	var tiers [3]tier
	checked := 0
	for _, e := range c.endpoints {
		e.tier = c.distance(p.Locality, e)
		state := e.host.State()
		e.usable = state == StateHealthy
		if state != StateUnchecked {
			checked++
			t := &tiers[e.tier]
			t.all = append(t.all, e)
			if e.usable {
				t.healthy = append(t.healthy, e)
			}
		}
	}
	c.warm = checked > 0 || len(c.endpoints) == 0
	c.spread(p, &tiers)
	for i := range tiers {
		c.tiers = append(c.tiers, tiers[i])
	}
}

// distance is the number of an endpoint's tier.
func (c *Cluster) distance(l mesh.Locality, e *Endpoint) uint8 {
	here := &c.set.here
	switch {
	case l == mesh.LocalityAny:
		return 0
	case l == mesh.LocalityNode && e.Node != "" && e.Node == here.Node:
		return 0
	case e.Zone != "" && e.Zone == here.Zone:
		return 1
	}
	return 2
}

// spread says how much each tier takes, as Envoy does with priorities
// (load_balancer_impl.cc, recalculatePerPriorityState).
func (c *Cluster) spread(p *mesh.BackendPolicy, tiers *[3]tier) {
	threshold := defaultPanic
	if p.PanicPercent != nil {
		threshold = *p.PanicPercent
	}
	var health [3]int
	total, count := 0, 0
	for i := range tiers {
		t := &tiers[i]
		t.use = t.healthy
		count += len(t.all)
		if len(t.all) > 0 {
			health[i] = min(100, overprovisioning*len(t.healthy)/len(t.all))
			total += health[i]
		}
	}
	total = min(100, total)
	if total == 0 {
		if threshold == 0 {
			return
		}
		// Nobody is healthy: all take a part by their number.
		for i := range tiers {
			t := &tiers[i]
			t.use, t.panicking = t.all, len(t.all) > 0
			if count > 0 {
				t.load = 100 * len(t.all) / count
			}
		}
		return
	}
	left := 100
	for i := range tiers {
		t := &tiers[i]
		t.load = min(left, 100*health[i]/total)
		left -= t.load
		if total < 100 && len(t.all) > 0 && 100*len(t.healthy) < threshold*len(t.all) {
			t.use, t.panicking = t.all, true
		}
	}
	// What rounding left over goes to the nearest that takes any.
	for i := range tiers {
		if tiers[i].load > 0 {
			tiers[i].load += left
			break
		}
	}
}

// Warm reports whether the health of any endpoint is known: a request that comes before
// the first check should wait for it.
func (c *Cluster) Warm() bool {
	c.current()
	return c.warm
}

// current brings the tiers up to date.
func (c *Cluster) current() {
	if c.shared != nil && c.health != c.shared.health.Load() {
		c.arrange()
	}
}

// Pick chooses the endpoint of a request, not avoid as long as there is another; nil if
// there is none at all. It does not touch Active.
func (c *Cluster) Pick(r Request, avoid *Endpoint) *Endpoint {
	c.current()
	p := c.policy()
	if p.Affinity > 0 && c.shared != nil && r.Client.IsValid() {
		return c.pickAffine(p, r, avoid)
	}
	return c.pick(p, r, avoid)
}

func (c *Cluster) pick(p *mesh.BackendPolicy, r Request, avoid *Endpoint) *Endpoint {
	number := c.tier(r, p)
	if number < 0 {
		return nil
	}
	t := &c.tiers[number]
	if len(t.use) == 1 {
		if t.use[0] != avoid {
			return t.use[0]
		}
		// Another tier may have another one.
		for i := range c.tiers {
			if i != number && len(c.tiers[i].use) > 0 {
				return c.tiers[i].use[rand.IntN(len(c.tiers[i].use))]
			}
		}
		return t.use[0]
	}
	switch p.Balancer {
	case mesh.BalanceRingHash:
		if r.Hashed && c.shared != nil {
			if c.ring == nil {
				c.ring = c.shared.ringOf(c.hosts)
			}
			return c.ring.pick(r.Hash, c.endpoints, uint8(number), !t.panicking, avoid)
		}
		return t.random(avoid)
	case mesh.BalanceRoundRobin:
		return t.next(&c.turn, avoid)
	case mesh.BalanceRandom:
		return t.random(avoid)
	case mesh.BalanceLeastRequest:
	}
	if p.Choices > 2 {
		return t.leastOf(p.Choices, avoid)
	}
	return t.leastOfTwo(avoid)
}

// tier chooses a tier by its load, -1 if none takes any. Requests of one hash choose
// the same.
func (c *Cluster) tier(r Request, p *mesh.BackendPolicy) int {
	only, several := -1, false
	for i := range c.tiers {
		if len(c.tiers[i].use) > 0 && c.tiers[i].load > 0 {
			several = only >= 0
			if !several {
				only = i
				continue
			}
			break
		}
	}
	if !several {
		return only
	}
	var n int
	if p.Balancer == mesh.BalanceRingHash && r.Hashed {
		n = int(r.Hash % 100)
	} else {
		n = rand.IntN(100)
	}
	for i := range c.tiers {
		if n < c.tiers[i].load && len(c.tiers[i].use) > 0 {
			return i
		}
		n -= c.tiers[i].load
	}
	return only
}

// pickAffine returns the endpoint that the client has, and remembers it.
func (c *Cluster) pickAffine(p *mesh.BackendPolicy, r Request, avoid *Endpoint) *Endpoint {
	now := time.Now()
	var e *Endpoint
	if a, ok := c.shared.affinity.endpoint(r.Client, now); ok {
		if e = c.set.endpoints[endpointKey{c.Name, a}]; e != nil && (e.refs == 0 || !e.usable || e == avoid) {
			e = nil
		}
	}
	if e == nil {
		e = c.pick(p, r, avoid)
	}
	if e != nil {
		c.shared.affinity.set(r.Client, e.AddrPort, now.Add(p.Affinity))
	}
	return e
}

func (t *tier) random(avoid *Endpoint) *Endpoint {
	i := rand.IntN(len(t.use))
	if t.use[i] == avoid {
		i = (i + 1 + rand.IntN(len(t.use)-1)) % len(t.use)
	}
	return t.use[i]
}

func (t *tier) next(turn *uint32, avoid *Endpoint) *Endpoint {
	*turn++
	e := t.use[int(*turn)%len(t.use)]
	if e == avoid {
		*turn++
		e = t.use[int(*turn)%len(t.use)]
	}
	return e
}

func (t *tier) leastOf(choices int, avoid *Endpoint) *Endpoint {
	least := t.random(avoid)
	for range choices - 1 {
		least = least.lessLoaded(t.random(avoid))
	}
	return least
}

// leastOfTwo takes the less loaded of two that are not the same one.
func (t *tier) leastOfTwo(avoid *Endpoint) *Endpoint {
	n := len(t.use)
	i := rand.IntN(n)
	j := rand.IntN(n - 1)
	if j >= i {
		j++
	}
	a, b := t.use[i], t.use[j]
	switch {
	case a == avoid:
		if n > 2 {
			// Any but the avoided one: the pair without it was as random.
			return t.use[third(n, i, j)].lessLoaded(b)
		}
		return b
	case b == avoid:
		if n > 2 {
			return t.use[third(n, i, j)].lessLoaded(a)
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
