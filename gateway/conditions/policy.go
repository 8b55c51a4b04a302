package conditions

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// GatewayInsecureFrontend says that clients pass without a valid certificate although
// certificates are asked for.
func GatewayInsecureFrontend(generation int64) metav1.Condition {
	return New(gatewayv1.GatewayConditionInsecureFrontendValidationMode, true, gatewayv1.GatewayReasonConfigurationChanged, generation,
		"AllowInsecureFallback lets clients in whose certificate is missing or not valid")
}

// PolicyAccepted says that a policy is in force.
func PolicyAccepted(generation int64) metav1.Condition {
	return New(gatewayv1.PolicyConditionAccepted, true, gatewayv1.PolicyReasonAccepted, generation, "The policy is in force")
}

// PolicyNotAccepted says why a policy cannot do what it says.
func PolicyNotAccepted(reason gatewayv1.PolicyConditionReason, generation int64, message string) metav1.Condition {
	return New(gatewayv1.PolicyConditionAccepted, false, reason, generation, message)
}

// PolicyResolvedRefs says that a BackendTLSPolicy's references are right.
func PolicyResolvedRefs(generation int64) metav1.Condition {
	return New(gatewayv1.BackendTLSPolicyConditionResolvedRefs, true, gatewayv1.BackendTLSPolicyReasonResolvedRefs, generation, "All references are resolved")
}

// PolicyNotResolved says which reference of a BackendTLSPolicy is wrong.
func PolicyNotResolved(reason gatewayv1.PolicyConditionReason, generation int64, message string) metav1.Condition {
	return New(gatewayv1.BackendTLSPolicyConditionResolvedRefs, false, reason, generation, message)
}
