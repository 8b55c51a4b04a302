package kube

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/kube/api/v1alpha1"
)

// Kind is a kind of object, without its group: no two groups here share one.
type Kind string

// The kinds of the object set.
const (
	KindNamespace      Kind = "Namespace"
	KindServiceAccount Kind = "ServiceAccount"
	KindPod            Kind = "Pod"
	KindService        Kind = "Service"
	KindEndpointSlice  Kind = "EndpointSlice"
	KindSecret         Kind = "Secret"
	KindConfigMap      Kind = "ConfigMap"
	KindGatewayClass   Kind = "GatewayClass"
	KindGateway        Kind = "Gateway"
	KindListenerSet    Kind = "ListenerSet"
	KindHTTPRoute      Kind = "HTTPRoute"
	KindGRPCRoute      Kind = "GRPCRoute"
	KindTLSRoute       Kind = "TLSRoute"
	KindTCPRoute       Kind = "TCPRoute"
	KindUDPRoute       Kind = "UDPRoute"
	KindReferenceGrant Kind = "ReferenceGrant"

	KindBackendTLSPolicy Kind = "BackendTLSPolicy"

	KindBackendTrafficPolicy Kind = "BackendTrafficPolicy"
)

// Kinds lists all kinds, what is referred to before what refers to it.
var Kinds = []Kind{
	KindNamespace, KindServiceAccount, KindSecret, KindConfigMap, KindPod, KindEndpointSlice, KindService,
	KindReferenceGrant, KindBackendTLSPolicy, KindBackendTrafficPolicy, KindGatewayClass, KindGateway, KindListenerSet,
	KindHTTPRoute, KindGRPCRoute, KindTLSRoute, KindTCPRoute, KindUDPRoute,
}

// RouteKinds lists the kinds of routes.
var RouteKinds = []Kind{KindHTTPRoute, KindGRPCRoute, KindTLSRoute, KindTCPRoute, KindUDPRoute}

// IsRoute reports whether objects of the kind are routes.
func (k Kind) IsRoute() bool { return slices.Contains(RouteKinds, k) }

// Namespaced reports whether objects of the kind live in a namespace.
func (k Kind) Namespaced() bool { return k != KindNamespace && k != KindGatewayClass }

// APIVersion returns the group and version of the kind, as in a manifest.
func (k Kind) APIVersion() string {
	switch k {
	case KindEndpointSlice:
		return discoveryv1.SchemeGroupVersion.String()
	case KindGatewayClass, KindGateway, KindListenerSet, KindHTTPRoute, KindGRPCRoute, KindTLSRoute, KindTCPRoute, KindUDPRoute,
		KindReferenceGrant, KindBackendTLSPolicy:
		return gatewayv1.GroupVersion.String()
	case KindBackendTrafficPolicy:
		return v1alpha1.GroupVersion.String()
	}
	return corev1.SchemeGroupVersion.String()
}

// Object is any of *corev1.Namespace, *corev1.ServiceAccount, *corev1.Pod,
// *corev1.Service, *discoveryv1.EndpointSlice, *corev1.Secret, *corev1.ConfigMap,
// *gatewayv1.GatewayClass, *gatewayv1.Gateway, *gatewayv1.ListenerSet,
// *gatewayv1.HTTPRoute, *gatewayv1.GRPCRoute, *gatewayv1.TLSRoute,
// *gatewayv1.TCPRoute, *gatewayv1.UDPRoute, *gatewayv1.ReferenceGrant,
// *gatewayv1.BackendTLSPolicy or *v1alpha1.BackendTrafficPolicy. An object is never
// changed after it was published in a Change.
type Object interface {
	metav1.Object
	runtime.Object
}

// Key identifies an object of the set.
type Key struct {
	Kind      Kind
	Namespace string // empty for kinds without one
	Name      string
}

// String returns "HTTPRoute shop/reviews", or "GatewayClass sluice".
func (k Key) String() string {
	if k.Name == "" {
		return string(k.Kind)
	}
	if k.Namespace == "" {
		return string(k.Kind) + " " + k.Name
	}
	return string(k.Kind) + " " + k.Namespace + "/" + k.Name
}

// IsZero reports whether k identifies nothing.
func (k Key) IsZero() bool { return k == Key{} }

// Compare orders keys by kind, namespace and name.
func (k Key) Compare(o Key) int {
	if c := strings.Compare(string(k.Kind), string(o.Kind)); c != 0 {
		return c
	}
	if c := strings.Compare(k.Namespace, o.Namespace); c != 0 {
		return c
	}
	return strings.Compare(k.Name, o.Name)
}

// KeyOf returns the key of an object. It panics for a type that is not of the set.
func KeyOf(o Object) Key {
	return Key{Kind: kindOf(o), Namespace: o.GetNamespace(), Name: o.GetName()}
}

func kindOf(o Object) Kind {
	switch o.(type) {
	case *corev1.Namespace:
		return KindNamespace
	case *corev1.ServiceAccount:
		return KindServiceAccount
	case *corev1.Pod:
		return KindPod
	case *corev1.Service:
		return KindService
	case *discoveryv1.EndpointSlice:
		return KindEndpointSlice
	case *corev1.Secret:
		return KindSecret
	case *corev1.ConfigMap:
		return KindConfigMap
	case *gatewayv1.GatewayClass:
		return KindGatewayClass
	case *gatewayv1.Gateway:
		return KindGateway
	case *gatewayv1.HTTPRoute:
		return KindHTTPRoute
	case *gatewayv1.GRPCRoute:
		return KindGRPCRoute
	case *gatewayv1.ListenerSet:
		return KindListenerSet
	case *gatewayv1.TLSRoute:
		return KindTLSRoute
	case *gatewayv1.TCPRoute:
		return KindTCPRoute
	case *gatewayv1.UDPRoute:
		return KindUDPRoute
	case *gatewayv1.ReferenceGrant:
		return KindReferenceGrant
	case *gatewayv1.BackendTLSPolicy:
		return KindBackendTLSPolicy
	case *v1alpha1.BackendTrafficPolicy:
		return KindBackendTrafficPolicy
	}
	panic(fmt.Sprintf("kube: %T is not of the object set", o))
}
