package graph

import (
	"fmt"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/kube"
)

// FilterAt is the place of a filter in a route's spec.
type FilterAt struct {
	Rule int
	// Backend is the index of the backendRef that has the filter, or OfRule.
	Backend int
	Filter  int
}

// OfRule is the FilterAt.Backend of the filters of a rule itself.
const OfRule = -1

// mirrorRef is the backendRef of a RequestMirror filter.
type mirrorRef struct {
	at  FilterAt
	ref gatewayv1.BackendObjectReference
}

// mirrorRefs returns the mirrors of an HTTPRoute or GRPCRoute in the order of its spec.
func mirrorRefs(o kube.Object) (refs []mirrorRef) {
	add := func(rule, backend, filter int, m *gatewayv1.HTTPRequestMirrorFilter) {
		if m != nil {
			refs = append(refs, mirrorRef{FilterAt{rule, backend, filter}, m.BackendRef})
		}
	}
	switch o := o.(type) {
	case *gatewayv1.HTTPRoute:
		for i := range o.Spec.Rules {
			for k, f := range o.Spec.Rules[i].Filters {
				add(i, OfRule, k, f.RequestMirror)
			}
			for j, b := range o.Spec.Rules[i].BackendRefs {
				for k, f := range b.Filters {
					add(i, j, k, f.RequestMirror)
				}
			}
		}
	case *gatewayv1.GRPCRoute:
		for i := range o.Spec.Rules {
			for k, f := range o.Spec.Rules[i].Filters {
				add(i, OfRule, k, f.RequestMirror)
			}
			for j, b := range o.Spec.Rules[i].BackendRefs {
				for k, f := range b.Filters {
					add(i, j, k, f.RequestMirror)
				}
			}
		}
	}
	return refs
}

// String names the place as a path from the route's spec.
func (a FilterAt) String() string {
	if a.Backend == OfRule {
		return fmt.Sprintf("rules[%d].filters[%d]", a.Rule, a.Filter)
	}
	return fmt.Sprintf("rules[%d].backendRefs[%d].filters[%d]", a.Rule, a.Backend, a.Filter)
}
