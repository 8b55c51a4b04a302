package gateway

import (
	"maps"
	"reflect"
	"slices"

	"github.com/sluice-mesh/sluice/gateway/compile"
	"github.com/sluice-mesh/sluice/gateway/graph"
	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/mesh"
)

// attachL4 notes where a route of connections goes. It does nothing for others.
func (s *routeState) attachL4(a *graph.Attachment) {
	if !compile.IsL4(s.route.Object) || a.Gateway.IsZero() {
		return
	}
	r, ok := s.l4[a.Gateway]
	if !ok {
		r = compile.L4Route{
			Key: s.route.Key, Created: s.route.Created, Hosts: map[string][]graph.Host{},
			Clusters: compile.L4Clusters(s.route.Object, s.route.GatewayBackends),
		}
	}
	r.Hosts[a.Listener] = a.Hosts
	s.l4[a.Gateway] = r
}

// settleL4 brings up to date what a route says for the listeners of Gateways.
func (t *Translator) settleL4(key kube.Key, old, now *routeState) {
	for gw, r := range now.l4 {
		if o, ok := old.l4[gw]; !ok || !reflect.DeepEqual(o, r) {
			t.l4.put(gw, key, r)
			t.dirty.listeners[gw] = struct{}{}
		}
	}
	for gw := range old.l4 {
		if _, still := now.l4[gw]; !still {
			t.l4.remove(gw, key)
			t.dirty.listeners[gw] = struct{}{}
		}
	}
}

// settleListeners compiles the listeners of Gateways that changed, or whose routes of
// connections did.
func (t *Translator) settleListeners() {
	for _, name := range drain(t.dirty.listeners, mesh.Name.Compare) {
		g := t.gateways[name]
		if g == nil {
			continue
		}
		t.visited++
		routes := slices.SortedFunc(maps.Values(t.l4[name]), func(a, b compile.L4Route) int { return a.Key.Compare(b.Key) })
		old := g.listeners
		g.listeners = nil
		for _, l := range compile.GatewayListeners(g.resolved, g.addresses, routes) {
			g.listeners = append(g.listeners, t.put(l))
		}
		t.removeStale(old, g.listeners)
	}
}
