package kube

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Status is what Sluice has to say about one object. One of the pointers is set,
// by the kind of the object; other kinds have Conditions. The lastTransitionTime
// of conditions is zero: whoever writes a status knows the one before.
type Status struct {
	Key Key
	// Generation is the one that the status is about.
	Generation   int64
	GatewayClass *gatewayv1.GatewayClassStatus
	Gateway      *gatewayv1.GatewayStatus
	ListenerSet  *gatewayv1.ListenerSetStatus
	// Route is for all kinds of routes, Policy for the policies of
	// backends.
	Route      *gatewayv1.RouteStatus
	Policy     *gatewayv1.PolicyStatus
	Conditions []metav1.Condition
}
