package graph

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/gateway/conditions"
	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/mesh"
)

// Policy is a BackendTLSPolicy with its references resolved.
type Policy struct {
	Name       mesh.Name
	Generation int64
	Created    time.Time
	Targets    []PolicyTarget
	// TLS is what the policy says. If it names no valid CA certificate nobody is
	// trusted: backends are never spoken to in plain text because a policy is broken.
	TLS *mesh.UpstreamTLS
	// Accepted and ResolvedRefs are the conditions as far as the policy itself decides
	// them; whether another one takes precedence is not looked at.
	Accepted, ResolvedRefs metav1.Condition
}

// PolicyTarget is a Service, or one port of it.
type PolicyTarget struct {
	Service mesh.Name
	Section string // the port's name; empty: all ports
}

// ResolvePolicy resolves the references of a BackendTLSPolicy.
func ResolvePolicy(objects Objects, o *gatewayv1.BackendTLSPolicy) *Policy {
	p := &Policy{
		Name: mesh.Name{Namespace: o.Namespace, Name: o.Name}, Generation: o.Generation, Created: o.CreationTimestamp.UTC(),
		Accepted: conditions.PolicyAccepted(o.Generation), ResolvedRefs: conditions.PolicyResolvedRefs(o.Generation),
	}
	refuse := func(reason gatewayv1.PolicyConditionReason, format string, args ...any) {
		if p.Accepted.Status == metav1.ConditionTrue {
			p.Accepted = conditions.PolicyNotAccepted(reason, o.Generation, fmt.Sprintf(format, args...))
		}
	}
	p.takeTargets(objects, o, refuse)
	v := &o.Spec.Validation
	p.TLS = &mesh.UpstreamTLS{ServerName: strings.ToLower(string(v.Hostname))}
	for _, n := range v.SubjectAltNames {
		switch n.Type {
		case gatewayv1.HostnameSubjectAltNameType:
			p.TLS.SubjectAltNames = append(p.TLS.SubjectAltNames, mesh.SubjectAltName{DNS: strings.ToLower(string(n.Hostname))})
		case gatewayv1.URISubjectAltNameType:
			p.TLS.SubjectAltNames = append(p.TLS.SubjectAltNames, mesh.SubjectAltName{URI: string(n.URI)})
		}
	}
	if w := v.WellKnownCACertificates; w != nil && *w != "" {
		if *w == gatewayv1.WellKnownCACertificatesSystem {
			p.TLS.SystemRoots = true
		} else {
			refuse(gatewayv1.PolicyReasonInvalid, "validation.wellKnownCACertificates: %s is not supported; use System", *w)
		}
		return p
	}
	for i, ref := range v.CACertificateRefs {
		roots, reason, why := authorities(objects, ref.Group, ref.Kind, mesh.Name{Namespace: o.Namespace, Name: string(ref.Name)})
		if why == "" {
			p.TLS.RootsPEM = append(p.TLS.RootsPEM, roots...)
			continue
		}
		if p.ResolvedRefs.Status == metav1.ConditionTrue {
			r := gatewayv1.BackendTLSPolicyReasonInvalidCACertificateRef
			if reason == gatewayv1.ListenerReasonInvalidCACertificateKind {
				r = gatewayv1.BackendTLSPolicyReasonInvalidKind
			}
			p.ResolvedRefs = conditions.PolicyNotResolved(r, o.Generation, fmt.Sprintf("validation.caCertificateRefs[%d]: %s", i, why))
		}
	}
	if len(p.TLS.RootsPEM) == 0 {
		refuse(gatewayv1.BackendTLSPolicyReasonNoValidCACertificate, "No CA certificate is valid, so that no backend is trusted: %s", p.ResolvedRefs.Message)
	}
	return p
}

func (p *Policy) takeTargets(objects Objects, o *gatewayv1.BackendTLSPolicy, refuse func(gatewayv1.PolicyConditionReason, string, ...any)) {
	var missing []string
	for i, ref := range o.Spec.TargetRefs {
		if ref.Group != "" || string(ref.Kind) != string(kube.KindService) {
			missing = append(missing, fmt.Sprintf("targetRefs[%d]: %s is not supported; use Service", i, ref.Kind))
			continue
		}
		t := PolicyTarget{Service: mesh.Name{Namespace: o.Namespace, Name: string(ref.Name)}}
		if ref.SectionName != nil {
			t.Section = string(*ref.SectionName)
		}
		p.Targets = append(p.Targets, t)
		svc, ok := objects.Get(kube.Key{Kind: kube.KindService, Namespace: t.Service.Namespace, Name: t.Service.Name}).(*corev1.Service)
		switch {
		case !ok:
			missing = append(missing, fmt.Sprintf("targetRefs[%d]: Service %s does not exist", i, t.Service))
		case t.Section != "" && !slices.ContainsFunc(svc.Spec.Ports, func(port corev1.ServicePort) bool { return port.Name == t.Section }):
			missing = append(missing, fmt.Sprintf("targetRefs[%d]: Service %s has no port named %s", i, t.Service, t.Section))
		}
	}
	if len(missing) == len(o.Spec.TargetRefs) {
		refuse(gatewayv1.PolicyReasonTargetNotFound, "%s", strings.Join(missing, "; "))
	}
}

// authorities returns the CA certificates of a ConfigMap, which are in PEM under the
// key ca.crt, or why there are none. Other blocks are left out.
func authorities(objects Objects, group gatewayv1.Group, kind gatewayv1.Kind, name mesh.Name) (roots []byte, reason gatewayv1.ListenerConditionReason, why string) {
	if group != "" || kind != gatewayv1.Kind(kube.KindConfigMap) {
		return nil, gatewayv1.ListenerReasonInvalidCACertificateKind, fmt.Sprintf("%s is not supported; use a ConfigMap of the core group", kind)
	}
	m, ok := objects.Get(kube.Key{Kind: kube.KindConfigMap, Namespace: name.Namespace, Name: name.Name}).(*corev1.ConfigMap)
	if !ok {
		return nil, gatewayv1.ListenerReasonInvalidCACertificateRef, fmt.Sprintf("ConfigMap %s does not exist", name)
	}
	const key = "ca.crt"
	rest := []byte(m.Data[key])
	if len(rest) == 0 {
		rest = m.BinaryData[key]
	}
	if len(rest) == 0 {
		return nil, gatewayv1.ListenerReasonInvalidCACertificateRef, fmt.Sprintf("ConfigMap %s has no data in %s", name, key)
	}
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return nil, gatewayv1.ListenerReasonInvalidCACertificateRef, fmt.Sprintf("ConfigMap %s: %s: %v", name, key, err)
		}
		roots = append(roots, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
	}
	if len(roots) == 0 {
		return nil, gatewayv1.ListenerReasonInvalidCACertificateRef, fmt.Sprintf("ConfigMap %s has no certificate in %s", name, key)
	}
	return roots, "", ""
}

// PolicyFor returns the policy of those given that a port of a Service follows, nil if
// none: one for the port goes before one for all, then the older, then the first by
// name (GEP-713).
func PolicyFor(policies []*Policy, service mesh.Name, port string) *Policy {
	var best *Policy
	section := false
	for _, p := range policies {
		for _, t := range p.Targets {
			if t.Service != service || t.Section != "" && t.Section != port {
				continue
			}
			named := t.Section != ""
			if best == nil || named && !section || named == section && p.before(best) {
				best, section = p, named
			}
		}
	}
	return best
}

func (p *Policy) before(o *Policy) bool {
	if c := p.Created.Compare(o.Created); c != 0 {
		return c < 0
	}
	return p.Name.Compare(o.Name) < 0
}

// LostTo returns the policy that takes precedence over p for all that p targets, nil if
// there is none such.
func (p *Policy) LostTo(policies []*Policy) *Policy {
	var winner *Policy
	for _, t := range p.Targets {
		best := p
		for _, o := range policies {
			if slices.Contains(o.Targets, t) && o.before(best) {
				best = o
			}
		}
		if best == p {
			return nil
		}
		winner = best
	}
	return winner
}
