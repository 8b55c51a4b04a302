package gateway

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/gateway/compile"
	"github.com/sluice-mesh/sluice/gateway/conditions"
	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/kube/api/v1alpha1"
	"github.com/sluice-mesh/sluice/mesh"
)

// trafficPolicyTargets returns the Services that a policy targets, each once.
func trafficPolicyTargets(p *v1alpha1.BackendTrafficPolicy) []mesh.Name {
	var out []mesh.Name
	for _, ref := range p.Spec.TargetRefs {
		name := mesh.Name{Namespace: p.Namespace, Name: string(ref.Name)}
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// takeTrafficPolicy marks what a policy that came, changed or went had, and has, an effect on.
func (t *Translator) takeTrafficPolicy(old, now kube.Object) {
	for _, version := range []kube.Object{old, now} {
		p, ok := version.(*v1alpha1.BackendTrafficPolicy)
		if !ok {
			continue
		}
		for _, svc := range trafficPolicyTargets(p) {
			t.dirty.services[svc] = struct{}{}
			t.markTrafficPolicies(svc)
		}
	}
}

// markTrafficPolicies has the policies of a Service say anew whether they apply.
func (t *Translator) markTrafficPolicies(svc mesh.Name) {
	for name := range t.objects.policies[svc] {
		t.dirty.statuses[kube.Key{Kind: kube.KindBackendTrafficPolicy, Namespace: svc.Namespace, Name: name}] = struct{}{}
	}
}

// trafficPoliciesOf returns the policies of a Service that make sense, in the order of
// precedence.
func (t *Translator) trafficPoliciesOf(svc mesh.Name) []*v1alpha1.BackendTrafficPolicy {
	all := slices.Collect(maps.Values(t.objects.policies[svc]))
	all = slices.DeleteFunc(all, func(p *v1alpha1.BackendTrafficPolicy) bool { return compile.CheckPolicy(p) != "" })
	compile.SortPolicies(all)
	return all
}

// trafficPolicyStatus says of each target whether the policy applies there.
func (t *Translator) trafficPolicyStatus(p *v1alpha1.BackendTrafficPolicy) *gatewayv1.PolicyStatus {
	out := &gatewayv1.PolicyStatus{Ancestors: []gatewayv1.PolicyAncestorStatus{}}
	group, kind, namespace := gatewayv1.Group(""), gatewayv1.Kind(kube.KindService), gatewayv1.Namespace(p.Namespace)
	for _, ref := range p.Spec.TargetRefs {
		out.Ancestors = append(out.Ancestors, gatewayv1.PolicyAncestorStatus{
			AncestorRef:    gatewayv1.ParentReference{Group: &group, Kind: &kind, Namespace: &namespace, Name: ref.Name, SectionName: ref.SectionName},
			ControllerName: gatewayv1.GatewayController(t.cfg.Controller),
			Conditions:     []metav1.Condition{t.trafficPolicyAccepted(p, &ref)},
		})
	}
	return out
}

func (t *Translator) trafficPolicyAccepted(p *v1alpha1.BackendTrafficPolicy, ref *gatewayv1.LocalPolicyTargetReferenceWithSectionName) metav1.Condition {
	name := mesh.Name{Namespace: p.Namespace, Name: string(ref.Name)}
	key := kube.Key{Kind: kube.KindService, Namespace: name.Namespace, Name: name.Name}
	svc, ok := t.objects.byKey[key].(*corev1.Service)
	if !ok {
		return conditions.PolicyNotAccepted(gatewayv1.PolicyReasonTargetNotFound, p.Generation, fmt.Sprintf("Service %s does not exist", name))
	}
	section := ""
	if ref.SectionName != nil {
		section = string(*ref.SectionName)
		if !slices.ContainsFunc(svc.Spec.Ports, func(port corev1.ServicePort) bool { return port.Name == section }) {
			return conditions.PolicyNotAccepted(gatewayv1.PolicyReasonTargetNotFound, p.Generation, fmt.Sprintf("Service %s has no port named %q", name, section))
		}
	}
	if why := compile.CheckPolicy(p); why != "" {
		return conditions.PolicyNotAccepted(gatewayv1.PolicyReasonInvalid, p.Generation, why)
	}
	if winner := compile.PolicyFor(t.trafficPoliciesOf(name), name.Name, section); winner != nil && winner.Name != p.Name {
		return conditions.PolicyNotAccepted(gatewayv1.PolicyReasonConflicted, p.Generation,
			fmt.Sprintf("BackendTrafficPolicy %s/%s is for the same target and takes precedence", winner.Namespace, winner.Name))
	}
	if text := t.rejectionText(key); text != "" {
		return conditions.PolicyNotAccepted(conditions.ReasonRejected, p.Generation, text)
	}
	return conditions.PolicyAccepted(p.Generation)
}
