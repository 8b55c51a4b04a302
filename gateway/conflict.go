package gateway

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/gateway/compile"
	"github.com/sluice-mesh/sluice/gateway/graph"
	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/mesh"
)

// domain is a place where routes of different kinds can be in each other's way: a
// listener of a Gateway, or a port of a Service for some clients. HTTPRoutes and
// GRPCRoutes are never merged: of two whose hostnames intersect one is rejected,
// on a Gateway the younger (GRPCRoute.spec.hostnames), on a Service the HTTPRoute
// (GEP-1426).
type domain struct {
	gateway mesh.Name // zero for a Service
	setName mesh.Name // the ListenerSet that has the listener, or zero
	routes  map[kube.Key]*claim
	// byHost has the routes of each kind by hostname; bySuffix by every domain that
	// a hostname of theirs is below, "" for all.
	byHost, bySuffix map[kube.Kind]index[string, kube.Key, struct{}]
	attached         int
}

// claim is a route's wish to be in a domain.
type claim struct {
	created time.Time
	hosts   []string
	// counts is false for routes that are not accepted for other reasons.
	counts bool
	// lostTo is the route that is preferred, or zero.
	lostTo kube.Key
}

// owner returns the object whose status counts the routes, or zero for a Service.
func (d *domain) owner() kube.Key {
	switch {
	case d.gateway.IsZero():
		return kube.Key{}
	case d.setName.IsZero():
		return kube.Key{Kind: kube.KindGateway, Namespace: d.gateway.Namespace, Name: d.gateway.Name}
	}
	return kube.Key{Kind: kube.KindListenerSet, Namespace: d.setName.Namespace, Name: d.setName.Name}
}

func newDomain(gateway, set mesh.Name) *domain {
	d := &domain{gateway: gateway, setName: set, routes: map[kube.Key]*claim{},
		byHost: map[kube.Kind]index[string, kube.Key, struct{}]{}, bySuffix: map[kube.Kind]index[string, kube.Key, struct{}]{}}
	for _, kind := range kube.RouteKinds {
		d.byHost[kind] = index[string, kube.Key, struct{}]{}
		d.bySuffix[kind] = index[string, kube.Key, struct{}]{}
	}
	return d
}

// suffixes calls f with each domain that a hostname is strictly below, "" first:
// for "x.a.b" and for "*.a.b" these are "", and then "a.b" and "b", or "b" alone.
func suffixes(host string, f func(string)) {
	if host == graph.AnyHost {
		return
	}
	f("")
	rest := strings.TrimPrefix(host, "*.")
	for {
		_, parent, ok := strings.Cut(rest, ".")
		if !ok {
			return
		}
		rest = parent
		f(rest)
	}
}

// set replaces the claim of a route, or takes it away if c is nil, and returns the
// routes whose fate changed.
func (d *domain) set(key kube.Key, c *claim) []kube.Key {
	affected := map[kube.Key]struct{}{}
	if old := d.routes[key]; old != nil {
		d.neighbours(key.Kind, old.hosts, affected)
		for _, h := range old.hosts {
			d.byHost[key.Kind].remove(h, key)
			suffixes(h, func(s string) { d.bySuffix[key.Kind].remove(s, key) })
		}
		if old.counts && old.lostTo.IsZero() {
			d.attached--
		}
		delete(d.routes, key)
	}
	if c != nil {
		d.routes[key] = c
		for _, h := range c.hosts {
			d.byHost[key.Kind].put(h, key, struct{}{})
			suffixes(h, func(s string) { d.bySuffix[key.Kind].put(s, key, struct{}{}) })
		}
		if c.counts {
			d.attached++
		}
		d.neighbours(key.Kind, c.hosts, affected)
		affected[key] = struct{}{}
	}
	return d.resolve(affected)
}

// neighbours adds the routes of other kinds whose hostnames intersect.
func (d *domain) neighbours(kind kube.Kind, hosts []string, into map[kube.Key]struct{}) {
	for _, other := range kube.RouteKinds {
		if other != kind {
			d.neighboursOf(other, hosts, into)
		}
	}
}

func (d *domain) neighboursOf(other kube.Kind, hosts []string, into map[kube.Key]struct{}) {
	add := func(set map[kube.Key]struct{}) {
		for key := range set {
			into[key] = struct{}{}
		}
	}
	for _, h := range hosts {
		if len(d.byHost[other]) == 0 {
			return
		}
		add(d.byHost[other][h])
		if h == graph.AnyHost {
			add(d.bySuffix[other][""])
			continue
		}
		add(d.byHost[other][graph.AnyHost])
		suffixes(h, func(s string) {
			if s != "" {
				add(d.byHost[other]["*."+s])
			}
		})
		if s, wildcard := strings.CutPrefix(h, "*."); wildcard {
			add(d.bySuffix[other][s])
		}
	}
}

// resolve decides anew for all routes that affected ones could influence, and
// returns those whose fate changed.
func (d *domain) resolve(affected map[kube.Key]struct{}) (changed []kube.Key) {
	// The connected component of the conflict graph.
	queue := make([]kube.Key, 0, len(affected))
	for key := range affected {
		queue = append(queue, key)
	}
	for i := 0; i < len(queue); i++ {
		more := map[kube.Key]struct{}{}
		d.neighbours(queue[i].Kind, d.routes[queue[i]].hosts, more)
		for key := range more {
			if _, seen := affected[key]; !seen {
				affected[key] = struct{}{}
				queue = append(queue, key)
			}
		}
	}
	slices.SortFunc(queue, d.compare)
	accepted := map[kube.Key]struct{}{}
	for _, key := range queue {
		c := d.routes[key]
		rivals := map[kube.Key]struct{}{}
		d.neighbours(key.Kind, c.hosts, rivals)
		var lostTo kube.Key
		for rival := range rivals {
			if _, ok := accepted[rival]; ok && (lostTo.IsZero() || d.compare(rival, lostTo) < 0) {
				lostTo = rival
			}
		}
		if lostTo.IsZero() {
			accepted[key] = struct{}{}
		}
		if lostTo == c.lostTo {
			continue
		}
		if c.counts && lostTo.IsZero() != c.lostTo.IsZero() {
			if lostTo.IsZero() {
				d.attached++
			} else {
				d.attached--
			}
		}
		c.lostTo = lostTo
		changed = append(changed, key)
	}
	return changed
}

// meshRank orders the kinds of routes of a Service, the most specific first (GEP-1426).
func meshRank(k kube.Kind) int {
	return slices.Index([]kube.Kind{kube.KindGRPCRoute, kube.KindHTTPRoute, kube.KindTLSRoute, kube.KindTCPRoute, kube.KindUDPRoute}, k)
}

// compare orders routes by who is preferred.
func (d *domain) compare(a, b kube.Key) int {
	if d.gateway.IsZero() && a.Kind != b.Kind {
		return cmp.Compare(meshRank(a.Kind), meshRank(b.Kind))
	}
	return compile.CompareAge(d.routes[a].created, a, d.routes[b].created, b)
}
