package compile

import (
	"slices"
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/gateway/graph"
	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/mesh"
)

// L4Route is what a TLSRoute, TCPRoute or UDPRoute says for the listeners of one
// Gateway.
type L4Route struct {
	Key     kube.Key
	Created time.Time
	// Hosts has, by listener, the server names that the route is for.
	Hosts map[string][]graph.Host
	// Clusters get the connections, by weight. A connection for one with an empty
	// name is refused; so is any connection if there are none.
	Clusters []mesh.WeightedCluster
}

// IsL4 reports whether an object is a route of connections, which L4Clusters compiles.
func IsL4(o kube.Object) bool {
	switch o.(type) {
	case *gatewayv1.TLSRoute, *gatewayv1.TCPRoute, *gatewayv1.UDPRoute:
		return true
	}
	return false
}

// L4Clusters compiles the backends of a TLSRoute, TCPRoute or UDPRoute. The schemas
// allow one rule.
func L4Clusters(o kube.Object, backends graph.Backends) []mesh.WeightedCluster {
	var refs []gatewayv1.BackendRef
	switch o := o.(type) {
	case *gatewayv1.TLSRoute:
		if len(o.Spec.Rules) > 0 {
			refs = o.Spec.Rules[0].BackendRefs
		}
	case *gatewayv1.TCPRoute:
		if len(o.Spec.Rules) > 0 {
			refs = o.Spec.Rules[0].BackendRefs
		}
	case *gatewayv1.UDPRoute:
		if len(o.Spec.Rules) > 0 {
			refs = o.Spec.Rules[0].BackendRefs
		}
	}
	var out []mesh.WeightedCluster
	for i := range refs {
		if w := weight(refs[i].Weight); w > 0 {
			out = append(out, mesh.WeightedCluster{Cluster: backends.Clusters[0][i], Weight: w})
		}
	}
	return out
}

// l4Chains returns the chains of a TLS, TCP or UDP listener: one for each server
// name that a route is for, and one that refuses the names of the listener that no
// route is for, so that no other listener of the port answers for them.
//
// Of the routes for a name the one whose own hostname is more specific takes it, then
// the older; routes of connections are not merged.
func l4Chains(l *graph.Listener, routes []L4Route) []mesh.Chain {
	type winner struct {
		route    *L4Route
		original string
	}
	won := map[string]winner{}
	for i := range routes {
		r := &routes[i]
		for _, h := range r.Hosts[l.Name] {
			if !h.Served {
				continue
			}
			best, taken := won[h.Name]
			if taken {
				c := graph.CompareSpecificity(best.original, h.Original)
				if c < 0 || c == 0 && CompareAge(best.route.Created, best.route.Key, r.Created, r.Key) <= 0 {
					continue
				}
			}
			won[h.Name] = winner{r, h.Original}
		}
	}
	if _, ok := won[l.Hostname]; !ok {
		won[l.Hostname] = winner{}
	}
	var chains []mesh.Chain
	for host, w := range won {
		c := mesh.Chain{Name: l.Name, Passthrough: l.Passthrough}
		if host != graph.AnyHost {
			c.ServerNames = []string{host}
		}
		for _, name := range l.Certificates {
			c.Certificates = append(c.Certificates, name.String())
		}
		if w.route != nil {
			c.Default = w.route.Clusters
		}
		chains = append(chains, c)
	}
	slices.SortFunc(chains, compareChains)
	return chains
}
