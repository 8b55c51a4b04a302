// Package graph says who attaches to what: it resolves the references between
// Gateways, routes, Services, Secrets and ReferenceGrants.
//
// Everything here is pure: the same objects give the same graph. What a value
// depends on is what it asked its [Objects] for, so that a caller who records the
// questions knows when to ask again. Nothing fails; what is wrong becomes a
// condition.
package graph

import (
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/mesh"
)

// Objects answers what the graph needs to know.
type Objects interface {
	// Get returns an object, or nil.
	Get(kube.Key) kube.Object
	// Grants returns the ReferenceGrants of a namespace.
	Grants(namespace string) []*gatewayv1.ReferenceGrant
	// ListenerSets returns the ListenerSets that name a Gateway as their parent. The
	// caller may sort what it gets.
	ListenerSets(gateway mesh.Name) []*gatewayv1.ListenerSet
	// BackendTLS returns how endpoints of a Service's port, by its name, are connected to
	// by BackendTLSPolicy, nil: without TLS.
	BackendTLS(service mesh.Name, port string) *mesh.UpstreamTLS
	// Gateway returns a Gateway of ours as ResolveGateway made it, or nil.
	Gateway(mesh.Name) *Gateway
}

// permitted reports whether an object of kind from may refer to an object of the
// core group in another namespace (ReferenceGrant, GEP-709). Within a namespace
// it may.
func permitted(objects Objects, from kube.Kind, fromNamespace string, to kube.Kind, name mesh.Name) bool {
	if fromNamespace == name.Namespace {
		return true
	}
	for _, grant := range objects.Grants(name.Namespace) {
		if grantedFrom(grant, from, fromNamespace) && grantedTo(grant, to, name.Name) {
			return true
		}
	}
	return false
}

func grantedFrom(grant *gatewayv1.ReferenceGrant, kind kube.Kind, namespace string) bool {
	for _, f := range grant.Spec.From {
		if f.Group == gatewayv1.GroupName && string(f.Kind) == string(kind) && string(f.Namespace) == namespace {
			return true
		}
	}
	return false
}

func grantedTo(grant *gatewayv1.ReferenceGrant, kind kube.Kind, name string) bool {
	for _, t := range grant.Spec.To {
		if t.Group == "" && string(t.Kind) == string(kind) && (t.Name == nil || *t.Name == "" || string(*t.Name) == name) {
			return true
		}
	}
	return false
}
