package status

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/kube"
)

// Merge returns what is to be written of a status where before is there already:
// ours, and of what is there the parents and ancestors of other controllers
// (RouteStatus.parents, PolicyStatus.ancestors) and conditions of types that are not
// ours, byte for byte. It shares memory with both.
func Merge(before, ours kube.Status, controller string) kube.Status {
	switch {
	case ours.GatewayClass != nil && before.GatewayClass != nil:
		c := *ours.GatewayClass
		c.Conditions = mergeConditions(before.GatewayClass.Conditions, c.Conditions, classTypes)
		ours.GatewayClass = &c
	case ours.Gateway != nil && before.Gateway != nil:
		c := *ours.Gateway
		c.Conditions = mergeConditions(before.Gateway.Conditions, c.Conditions, gatewayTypes)
		c.Listeners = slices.Clone(c.Listeners)
		for i := range c.Listeners {
			for j := range before.Gateway.Listeners {
				if before.Gateway.Listeners[j].Name == c.Listeners[i].Name {
					c.Listeners[i].Conditions = mergeConditions(before.Gateway.Listeners[j].Conditions, c.Listeners[i].Conditions, listenerTypes)
				}
			}
		}
		ours.Gateway = &c
	case ours.ListenerSet != nil && before.ListenerSet != nil:
		c := *ours.ListenerSet
		c.Conditions = mergeConditions(before.ListenerSet.Conditions, c.Conditions, gatewayTypes)
		ours.ListenerSet = &c
	case ours.Route != nil && before.Route != nil:
		c := gatewayv1.RouteStatus{Parents: slices.Clone(ours.Route.Parents)}
		for _, p := range before.Route.Parents {
			if string(p.ControllerName) != controller {
				c.Parents = append(c.Parents, p)
			}
		}
		ours.Route = &c
	case ours.Policy != nil && before.Policy != nil:
		c := gatewayv1.PolicyStatus{Ancestors: slices.Clone(ours.Policy.Ancestors)}
		for _, a := range before.Policy.Ancestors {
			if string(a.ControllerName) != controller && len(c.Ancestors) < maxAncestors {
				c.Ancestors = append(c.Ancestors, a)
			}
		}
		ours.Policy = &c
	}
	return ours
}

// maxAncestors is what a PolicyStatus may have (GEP-713).
const maxAncestors = 16

// The types of conditions that are ours to set and to take away.
var (
	classTypes   = []string{string(gatewayv1.GatewayClassConditionStatusAccepted), string(gatewayv1.GatewayClassConditionStatusSupportedVersion)}
	gatewayTypes = []string{
		string(gatewayv1.GatewayConditionAccepted), string(gatewayv1.GatewayConditionProgrammed), string(gatewayv1.GatewayConditionResolvedRefs),
		string(gatewayv1.GatewayConditionInsecureFrontendValidationMode),
	}
	listenerTypes = []string{
		string(gatewayv1.ListenerConditionAccepted), string(gatewayv1.ListenerConditionProgrammed), string(gatewayv1.ListenerConditionResolvedRefs),
		string(gatewayv1.ListenerConditionConflicted), string(gatewayv1.ListenerConditionOverlappingTLSConfig),
	}
)

func mergeConditions(before, ours []metav1.Condition, types []string) []metav1.Condition {
	out := slices.Clone(ours)
	for _, c := range before {
		isOurs := slices.Contains(types, c.Type) || slices.ContainsFunc(ours, func(o metav1.Condition) bool { return o.Type == c.Type })
		if !isOurs {
			out = append(out, c)
		}
	}
	return out
}
