// Package conditions has the words of Gateway API status conditions: each
// constructor is one thing that can be said of an object.
//
// Everything is pure. lastTransitionTime stays zero; the writer of statuses, who
// knows what was said before, fills it in.
package conditions

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// ReasonRejected is the reason of conditions that say that a node refused what
// was made of the object. The message is the node's.
const ReasonRejected = "RejectedByNode"

// ReasonConflicted is the reason for which one of two routes of different kinds
// is not accepted (GRPCRoute.spec.hostnames; GEP-1426 for Services).
const ReasonConflicted = "Conflicted"

// New returns a condition. S is any of the string types of the Gateway API.
func New[T, R ~string](typ T, ok bool, reason R, generation int64, message string) metav1.Condition {
	status := metav1.ConditionFalse
	if ok {
		status = metav1.ConditionTrue
	}
	return metav1.Condition{
		Type: string(typ), Status: status, Reason: string(reason),
		ObservedGeneration: generation, Message: message,
	}
}

// ClassAccepted says that a GatewayClass is served.
func ClassAccepted(generation int64) metav1.Condition {
	return New(gatewayv1.GatewayClassConditionStatusAccepted, true, gatewayv1.GatewayClassReasonAccepted, generation,
		"Sluice serves the Gateways of this class")
}

// ClassInvalidParameters says that a GatewayClass wants what is not supported.
func ClassInvalidParameters(generation int64, message string) metav1.Condition {
	return New(gatewayv1.GatewayClassConditionStatusAccepted, false, gatewayv1.GatewayClassReasonInvalidParameters, generation, message)
}

// GatewayAccepted says that all of a Gateway is valid.
func GatewayAccepted(generation int64) metav1.Condition {
	return New(gatewayv1.GatewayConditionAccepted, true, gatewayv1.GatewayReasonAccepted, generation, "The Gateway is valid")
}

// GatewayListenersNotValid says that some listeners are invalid; accepted while
// one is left.
func GatewayListenersNotValid(accepted bool, generation int64, message string) metav1.Condition {
	return New(gatewayv1.GatewayConditionAccepted, accepted, gatewayv1.GatewayReasonListenersNotValid, generation, message)
}

// GatewayNotAccepted refuses a Gateway for a reason.
func GatewayNotAccepted(reason gatewayv1.GatewayConditionReason, generation int64, message string) metav1.Condition {
	return New(gatewayv1.GatewayConditionAccepted, false, reason, generation, message)
}

// GatewayProgrammed says that the configuration of a Gateway went to the nodes.
func GatewayProgrammed(generation int64) metav1.Condition {
	return New(gatewayv1.GatewayConditionProgrammed, true, gatewayv1.GatewayReasonProgrammed, generation, "The Gateway is configured on the nodes")
}

// GatewayNotProgrammed says why a Gateway is not served.
func GatewayNotProgrammed[R ~string](reason R, generation int64, message string) metav1.Condition {
	return New(gatewayv1.GatewayConditionProgrammed, false, reason, generation, message)
}

// GatewayResolvedRefs sums up the listeners' ResolvedRefs.
func GatewayResolvedRefs(ok bool, generation int64) metav1.Condition {
	if ok {
		return New(gatewayv1.GatewayConditionResolvedRefs, true, gatewayv1.GatewayReasonResolvedRefs, generation, "All references are resolved")
	}
	return New(gatewayv1.GatewayConditionResolvedRefs, false, gatewayv1.GatewayReasonListenersNotResolved, generation,
		"References of some listeners are not resolved")
}

// ListenerAccepted says that a listener is valid.
func ListenerAccepted(generation int64) metav1.Condition {
	return New(gatewayv1.ListenerConditionAccepted, true, gatewayv1.ListenerReasonAccepted, generation, "The listener is valid")
}

// ListenerNotAccepted refuses a listener.
func ListenerNotAccepted[R ~string](reason R, generation int64, message string) metav1.Condition {
	return New(gatewayv1.ListenerConditionAccepted, false, reason, generation, message)
}

// ListenerResolvedRefs says that a listener's references are right.
func ListenerResolvedRefs(generation int64) metav1.Condition {
	return New(gatewayv1.ListenerConditionResolvedRefs, true, gatewayv1.ListenerReasonResolvedRefs, generation, "All references are resolved")
}

// ListenerNotResolved says which reference of a listener is wrong.
func ListenerNotResolved(reason gatewayv1.ListenerConditionReason, generation int64, message string) metav1.Condition {
	return New(gatewayv1.ListenerConditionResolvedRefs, false, reason, generation, message)
}

// ListenerConflicted says that a listener cannot stand beside another one.
func ListenerConflicted(reason gatewayv1.ListenerConditionReason, generation int64, message string) metav1.Condition {
	return New(gatewayv1.ListenerConditionConflicted, true, reason, generation, message)
}

// ListenerNoConflicts says that a listener is distinct from the others.
func ListenerNoConflicts(generation int64) metav1.Condition {
	return New(gatewayv1.ListenerConditionConflicted, false, gatewayv1.ListenerReasonNoConflicts, generation, "The listener is distinct")
}

// ListenerOverlappingTLS says that connections to one of two listeners may be
// reused for the other.
func ListenerOverlappingTLS(generation int64, message string) metav1.Condition {
	return New(gatewayv1.ListenerConditionOverlappingTLSConfig, true, gatewayv1.ListenerReasonOverlappingHostnames, generation, message)
}

// ListenerProgrammed says that a listener is served.
func ListenerProgrammed(generation int64) metav1.Condition {
	return New(gatewayv1.ListenerConditionProgrammed, true, gatewayv1.ListenerReasonProgrammed, generation, "The listener is configured on the nodes")
}

// ListenerNotProgrammed says why a listener is not served.
func ListenerNotProgrammed[R ~string](reason R, generation int64, message string) metav1.Condition {
	return New(gatewayv1.ListenerConditionProgrammed, false, reason, generation, message)
}

// RouteAccepted says that a parent takes the route.
func RouteAccepted(generation int64) metav1.Condition {
	return New(gatewayv1.RouteConditionAccepted, true, gatewayv1.RouteReasonAccepted, generation, "The parent accepts the route")
}

// RouteNotAccepted says why a parent does not take the route.
func RouteNotAccepted[R ~string](reason R, generation int64, message string) metav1.Condition {
	return New(gatewayv1.RouteConditionAccepted, false, reason, generation, message)
}

// RouteResolvedRefs says that all backends are right.
func RouteResolvedRefs(generation int64) metav1.Condition {
	return New(gatewayv1.RouteConditionResolvedRefs, true, gatewayv1.RouteReasonResolvedRefs, generation, "All references are resolved")
}

// RouteNotResolved says which backend is wrong.
func RouteNotResolved[R ~string](reason R, generation int64, message string) metav1.Condition {
	return New(gatewayv1.RouteConditionResolvedRefs, false, reason, generation, message)
}

// RoutePartiallyInvalid says which rules are not served while others are. The
// Gateway API wants the message to begin with "Dropped Rule".
func RoutePartiallyInvalid(generation int64, message string) metav1.Condition {
	return New(gatewayv1.RouteConditionPartiallyInvalid, true, gatewayv1.RouteReasonUnsupportedValue, generation, message)
}

// NotProgrammed says that a node refused what was made of an object that has no
// conditions of the Gateway API.
func NotProgrammed(generation int64, message string) metav1.Condition {
	return New("Programmed", false, ReasonRejected, generation, message)
}

// ListenerSetAccepted says whether a ListenerSet is valid and may attach.
func ListenerSetAccepted(ok bool, reason gatewayv1.ListenerSetConditionReason, generation int64, message string) metav1.Condition {
	return New(gatewayv1.ListenerSetConditionAccepted, ok, reason, generation, message)
}

// ReasonParentNotProgrammed is the reason for which a ListenerSet is not served
// although it is accepted (ListenerSetConditionProgrammed).
const ReasonParentNotProgrammed gatewayv1.ListenerSetConditionReason = "ParentNotProgrammed"

// ListenerSetProgrammed says whether the listeners of a ListenerSet are served.
func ListenerSetProgrammed[R ~string](ok bool, reason R, generation int64, message string) metav1.Condition {
	return New(gatewayv1.ListenerSetConditionProgrammed, ok, reason, generation, message)
}
