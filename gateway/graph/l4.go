package graph

import (
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/kube"
)

// isL4 reports whether routes of a kind choose backends for connections or flows,
// and not for requests.
func isL4(k kube.Kind) bool {
	return k == kube.KindTLSRoute || k == kube.KindTCPRoute || k == kube.KindUDPRoute
}

// l4Spec returns what a TLSRoute, TCPRoute or UDPRoute says, and what it was given
// for any other route.
func l4Spec(o kube.Object, parents []gatewayv1.ParentReference, hostnames []gatewayv1.Hostname, refs [][]gatewayv1.BackendRef) (
	[]gatewayv1.ParentReference, []gatewayv1.Hostname, [][]gatewayv1.BackendRef,
) {
	switch o := o.(type) {
	case *gatewayv1.TLSRoute:
		parents, hostnames = o.Spec.ParentRefs, o.Spec.Hostnames
		for i := range o.Spec.Rules {
			refs = append(refs, o.Spec.Rules[i].BackendRefs)
		}
	case *gatewayv1.TCPRoute:
		parents = o.Spec.ParentRefs
		for i := range o.Spec.Rules {
			refs = append(refs, o.Spec.Rules[i].BackendRefs)
		}
	case *gatewayv1.UDPRoute:
		parents = o.Spec.ParentRefs
		for i := range o.Spec.Rules {
			refs = append(refs, o.Spec.Rules[i].BackendRefs)
		}
	}
	return parents, hostnames, refs
}
