package graph

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/gateway/conditions"
	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/mesh"
)

// validationOf returns how certificates of clients are validated on a port, nil if
// they are not: what is said of the port replaces the default.
func validationOf(gw *gatewayv1.Gateway, port gatewayv1.PortNumber) (v *gatewayv1.FrontendTLSValidation, field string) {
	if gw.Spec.TLS == nil || gw.Spec.TLS.Frontend == nil {
		return nil, ""
	}
	for i, p := range gw.Spec.TLS.Frontend.PerPort {
		if p.Port == port {
			return p.TLS.Validation, fmt.Sprintf("spec.tls.frontend.perPort[%d].tls.validation", i)
		}
	}
	return gw.Spec.TLS.Frontend.Default.Validation, "spec.tls.frontend.default.validation"
}

// takeClients resolves how certificates of clients are validated. A listener whose
// authorities are all invalid is not served: without the asked-for check it would let
// anybody in.
func (l *Listener) takeClients(objects Objects, gw *gatewayv1.Gateway, port gatewayv1.PortNumber,
	refuse, unresolved func(gatewayv1.ListenerConditionReason, string, ...any),
) {
	v, field := validationOf(gw, port)
	if v == nil {
		return
	}
	clients := &mesh.ClientValidation{Optional: v.Mode == gatewayv1.AllowInsecureFallback}
	for i, ref := range v.CACertificateRefs {
		name := mesh.Name{Namespace: gw.Namespace, Name: string(ref.Name)}
		if ref.Namespace != nil {
			name.Namespace = string(*ref.Namespace)
		}
		if ref.Group == "" && ref.Kind == gatewayv1.Kind(kube.KindConfigMap) && !permitted(objects, kube.KindGateway, gw.Namespace, kube.KindConfigMap, name) {
			unresolved(gatewayv1.ListenerReasonRefNotPermitted, "%s.caCertificateRefs[%d]: no ReferenceGrant in namespace %s lets Gateways of namespace %s use ConfigMap %s",
				field, i, name.Namespace, gw.Namespace, name.Name)
			continue
		}
		roots, reason, why := authorities(objects, ref.Group, ref.Kind, name)
		if why != "" {
			unresolved(reason, "%s.caCertificateRefs[%d]: %s", field, i, why)
			continue
		}
		clients.RootsPEM = append(clients.RootsPEM, roots...)
	}
	if len(clients.RootsPEM) == 0 {
		refuse(gatewayv1.ListenerReasonNoValidCACertificate, "%s: no CA certificate is valid", field)
		return
	}
	l.Clients = clients
}

// letsAnybodyIn reports whether some validation of a Gateway is not enforced.
func letsAnybodyIn(gw *gatewayv1.Gateway) bool {
	if gw.Spec.TLS == nil || gw.Spec.TLS.Frontend == nil {
		return false
	}
	insecure := func(v *gatewayv1.FrontendTLSValidation) bool {
		return v != nil && v.Mode == gatewayv1.AllowInsecureFallback
	}
	for _, p := range gw.Spec.TLS.Frontend.PerPort {
		if insecure(p.TLS.Validation) {
			return true
		}
	}
	return insecure(gw.Spec.TLS.Frontend.Default.Validation)
}

// takeOwnCertificate resolves the certificate that the Gateway shows to backends. The
// Gateway is served without it, and its condition says so.
func (g *Gateway) takeOwnCertificate(objects Objects, gw *gatewayv1.Gateway) {
	if gw.Spec.TLS == nil || gw.Spec.TLS.Backend == nil || gw.Spec.TLS.Backend.ClientCertificateRef == nil {
		return
	}
	ref := gw.Spec.TLS.Backend.ClientCertificateRef
	unresolved := func(reason gatewayv1.GatewayConditionReason, format string, args ...any) {
		g.own = conditions.New(gatewayv1.GatewayConditionResolvedRefs, false, reason, g.Generation,
			"spec.tls.backend.clientCertificateRef: "+fmt.Sprintf(format, args...))
	}
	if ref.Group != nil && *ref.Group != "" || ref.Kind != nil && *ref.Kind != gatewayv1.Kind(kube.KindSecret) {
		unresolved(gatewayv1.GatewayReasonInvalidClientCertificateRef, "only Secrets of the core group are supported")
		return
	}
	name := mesh.Name{Namespace: gw.Namespace, Name: string(ref.Name)}
	if ref.Namespace != nil {
		name.Namespace = string(*ref.Namespace)
	}
	if !permitted(objects, kube.KindGateway, gw.Namespace, kube.KindSecret, name) {
		unresolved(gatewayv1.GatewayReasonRefNotPermitted, "no ReferenceGrant in namespace %s lets Gateways of namespace %s use Secret %s", name.Namespace, gw.Namespace, name.Name)
		return
	}
	secret, ok := objects.Get(kube.Key{Kind: kube.KindSecret, Namespace: name.Namespace, Name: name.Name}).(*corev1.Secret)
	if !ok {
		unresolved(gatewayv1.GatewayReasonInvalidClientCertificateRef, "Secret %s does not exist", name)
		return
	}
	if err := CheckCertificate(secret); err != nil {
		unresolved(gatewayv1.GatewayReasonInvalidClientCertificateRef, "Secret %s: %v", name, err)
		return
	}
	g.ClientCertificate = name
}

// applyOwnCertificate puts what is wrong with the Gateway's own certificate in the place
// of a summary of its listeners, and adds what else a person must know of its TLS.
func (g *Gateway) applyOwnCertificate(gw *gatewayv1.Gateway) {
	if g.own.Type != "" {
		g.ResolvedRefs = g.own
	}
	if letsAnybodyIn(gw) {
		g.Warnings = []metav1.Condition{conditions.GatewayInsecureFrontend(g.Generation)}
	}
}
