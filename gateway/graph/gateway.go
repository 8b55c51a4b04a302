package graph

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/gateway/conditions"
	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/mesh"
)

// Gateway is a Gateway with its references resolved.
type Gateway struct {
	Name       mesh.Name
	Generation int64
	// Listeners are those of the Gateway, then those of its ListenerSets by precedence.
	Listeners []Listener
	// Sets are the ListenerSets that name the Gateway as their parent, by precedence.
	Sets []ListenerSet
	// Accepted and ResolvedRefs are the conditions of the Gateway as far as its
	// listeners and parameters decide them. Addresses are not looked at.
	Accepted     metav1.Condition
	ResolvedRefs metav1.Condition
	// ClientCertificate is what the Gateway shows to backends over TLS, or zero.
	ClientCertificate mesh.Name
	own               metav1.Condition // what is wrong with it
	// Warnings are conditions that are there only if there is something to say.
	Warnings []metav1.Condition
}

// Listener is a listener of a Gateway or of one of its ListenerSets.
type Listener struct {
	// Name is unique among the listeners of a Gateway: Section, or for a listener of a
	// ListenerSet "NAMESPACE/NAME/SECTION".
	Name string
	// Section is the name that the listener has in the object that it is of.
	Section string
	// Owner is that object, a Gateway or a ListenerSet. Generation is its generation.
	Owner      kube.Key
	Generation int64
	Port       uint16
	Protocol   gatewayv1.ProtocolType
	Hostname   string // AnyHost if it has none
	// Kinds are the kinds of routes that may attach, SupportedKinds the same for the
	// status.
	Kinds          []kube.Kind
	SupportedKinds []gatewayv1.RouteGroupKind
	// Namespaces says from where routes may attach; Selector goes with Selector.
	Namespaces gatewayv1.FromNamespaces
	Selector   string
	selector   labels.Selector
	// Certificates to terminate TLS with.
	Certificates []mesh.Name
	// Clients says which certificates clients must have, nil: none.
	Clients *mesh.ClientValidation
	// Passthrough says that TLS is not terminated.
	Passthrough bool
	// Conditions without Programmed.
	Conditions []metav1.Condition
	// Served says that connections are taken. Why says why not.
	// WhyReason is the reason of Programmed then, or empty: Invalid.
	Served    bool
	Why       string
	WhyReason string
	// Table is the route table that requests of this listener are looked up in.
	// Plain HTTP listeners of one port share one, because nothing but the Host
	// field tells their requests apart.
	Table string
}

// supportedKinds are the kinds of routes that listeners of a protocol take.
var supportedKinds = map[gatewayv1.ProtocolType][]kube.Kind{
	gatewayv1.HTTPProtocolType:  {kube.KindHTTPRoute, kube.KindGRPCRoute},
	gatewayv1.HTTPSProtocolType: {kube.KindHTTPRoute, kube.KindGRPCRoute},
	gatewayv1.TLSProtocolType:   {kube.KindTLSRoute},
	gatewayv1.TCPProtocolType:   {kube.KindTCPRoute},
	gatewayv1.UDPProtocolType:   {kube.KindUDPRoute},
}

// ResolveGateway resolves the references of a Gateway whose class is ours.
func ResolveGateway(objects Objects, gw *gatewayv1.Gateway) *Gateway {
	g := &Gateway{
		Name:       mesh.Name{Namespace: gw.Namespace, Name: gw.Name},
		Generation: gw.Generation,
		Listeners:  make([]Listener, len(gw.Spec.Listeners)),
	}
	key := kube.Key{Kind: kube.KindGateway, Namespace: gw.Namespace, Name: gw.Name}
	for i := range gw.Spec.Listeners {
		g.Listeners[i] = resolveListener(objects, gw, key, gw.Generation, &gw.Spec.Listeners[i])
	}
	g.takeSets(objects, gw)
	g.findConflicts()
	g.findOverlaps()
	g.summarise(gw)
	g.nameTables()
	g.takeOwnCertificate(objects, gw)
	g.applyOwnCertificate(gw)
	return g
}

// resolveListener looks at a listener by itself.
func resolveListener(objects Objects, gw *gatewayv1.Gateway, owner kube.Key, generation int64, spec *gatewayv1.Listener) Listener {
	l := Listener{
		Name: string(spec.Name), Section: string(spec.Name), Owner: owner, Generation: generation, Port: uint16(spec.Port), Protocol: spec.Protocol,
		Hostname: AnyHost, Namespaces: gatewayv1.NamespacesFromSame, Served: true,
		SupportedKinds: []gatewayv1.RouteGroupKind{},
	}
	if spec.Hostname != nil && *spec.Hostname != "" {
		l.Hostname = strings.ToLower(string(*spec.Hostname))
	}
	accepted := conditions.ListenerAccepted(generation)
	refuse := func(reason gatewayv1.ListenerConditionReason, format string, args ...any) {
		if l.Served {
			l.Served, l.Why = false, fmt.Sprintf(format, args...)
			accepted = conditions.ListenerNotAccepted(reason, generation, l.Why)
		}
	}

	if supportedKinds[spec.Protocol] == nil {
		refuse(gatewayv1.ListenerReasonUnsupportedProtocol, "Protocol %s is not supported; use HTTP, HTTPS, TLS, TCP or UDP", spec.Protocol)
		l.Conditions = []metav1.Condition{accepted, conditions.ListenerResolvedRefs(generation)}
		return l
	}
	if spec.Filters != nil && len(spec.Filters.Requests) > 0 {
		refuse(gatewayv1.ListenerReasonUnsupportedValue, "Filters of listeners are not supported")
	}
	l.takeNamespaces(spec, refuse)

	// The first reference that is wrong is the one reported.
	resolved := conditions.ListenerResolvedRefs(generation)
	unresolved := func(reason gatewayv1.ListenerConditionReason, format string, args ...any) {
		if resolved.Status == metav1.ConditionTrue {
			resolved = conditions.ListenerNotResolved(reason, generation, fmt.Sprintf(format, args...))
		}
	}
	l.Passthrough = spec.Protocol == gatewayv1.TLSProtocolType && spec.TLS != nil && spec.TLS.Mode != nil && *spec.TLS.Mode == gatewayv1.TLSModePassthrough
	terminates := overTLS(spec.Protocol) && !l.Passthrough
	if terminates {
		l.takeCertificates(objects, gw, spec, refuse, unresolved)
	}
	l.takeKinds(spec, unresolved)
	if l.Served && (len(l.Kinds) == 0 || terminates && len(l.Certificates) == 0) {
		l.Served, l.Why = false, resolved.Message
	}
	l.Conditions = []metav1.Condition{accepted, resolved}
	return l
}

func (l *Listener) takeNamespaces(spec *gatewayv1.Listener, refuse func(gatewayv1.ListenerConditionReason, string, ...any)) {
	if spec.AllowedRoutes == nil || spec.AllowedRoutes.Namespaces == nil || spec.AllowedRoutes.Namespaces.From == nil {
		return
	}
	from := spec.AllowedRoutes.Namespaces
	switch *from.From {
	case gatewayv1.NamespacesFromAll, gatewayv1.NamespacesFromSame, gatewayv1.NamespacesFromNone:
		l.Namespaces = *from.From
	case gatewayv1.NamespacesFromSelector:
		l.Namespaces = gatewayv1.NamespacesFromSelector
		selector, err := metav1.LabelSelectorAsSelector(from.Selector)
		if err != nil {
			refuse(gatewayv1.ListenerReasonUnsupportedValue, "allowedRoutes.namespaces.selector: %v", err)
			selector = labels.Nothing()
		}
		l.selector, l.Selector = selector, selector.String()
	default:
		refuse(gatewayv1.ListenerReasonUnsupportedValue, "allowedRoutes.namespaces.from: %q is not known", *from.From)
	}
}

func (l *Listener) takeKinds(spec *gatewayv1.Listener, unresolved func(gatewayv1.ListenerConditionReason, string, ...any)) {
	supported := supportedKinds[spec.Protocol]
	wanted := supported
	if spec.AllowedRoutes != nil && len(spec.AllowedRoutes.Kinds) > 0 {
		wanted = nil
		for _, k := range spec.AllowedRoutes.Kinds {
			kind := kube.Kind(k.Kind)
			if k.Group != nil && *k.Group != gatewayv1.GroupName || !slices.Contains(supported, kind) {
				unresolved(gatewayv1.ListenerReasonInvalidRouteKinds, "allowedRoutes.kinds: %s listeners do not take %s", spec.Protocol, k.Kind)
				continue
			}
			if !slices.Contains(wanted, kind) {
				wanted = append(wanted, kind)
			}
		}
	}
	l.Kinds = wanted
	group := gatewayv1.Group(gatewayv1.GroupName)
	for _, kind := range wanted {
		l.SupportedKinds = append(l.SupportedKinds, gatewayv1.RouteGroupKind{Group: &group, Kind: gatewayv1.Kind(kind)})
	}
}

func (l *Listener) takeCertificates(objects Objects, gw *gatewayv1.Gateway, spec *gatewayv1.Listener,
	refuse, unresolved func(gatewayv1.ListenerConditionReason, string, ...any),
) {
	if spec.TLS != nil && spec.TLS.Mode != nil && *spec.TLS.Mode != gatewayv1.TLSModeTerminate {
		refuse(gatewayv1.ListenerReasonUnsupportedValue, "tls.mode: %s is not supported; use Terminate", *spec.TLS.Mode)
		return
	}
	if spec.Protocol == gatewayv1.HTTPSProtocolType {
		l.takeClients(objects, gw, spec.Port, refuse, unresolved)
	}
	if spec.TLS == nil || len(spec.TLS.CertificateRefs) == 0 {
		unresolved(gatewayv1.ListenerReasonInvalidCertificateRef, "tls.certificateRefs: a listener that terminates TLS needs a certificate")
		return
	}
	for i, ref := range spec.TLS.CertificateRefs {
		if ref.Group != nil && *ref.Group != "" || ref.Kind != nil && *ref.Kind != "Secret" {
			unresolved(gatewayv1.ListenerReasonInvalidCertificateRef, "tls.certificateRefs[%d]: only Secrets of the core group are supported", i)
			continue
		}
		name := mesh.Name{Namespace: l.Owner.Namespace, Name: string(ref.Name)}
		if ref.Namespace != nil {
			name.Namespace = string(*ref.Namespace)
		}
		if !permitted(objects, l.Owner.Kind, l.Owner.Namespace, kube.KindSecret, name) {
			unresolved(gatewayv1.ListenerReasonRefNotPermitted, "tls.certificateRefs[%d]: no ReferenceGrant in namespace %s lets %ss of namespace %s use Secret %s",
				i, name.Namespace, l.Owner.Kind, l.Owner.Namespace, name.Name)
			continue
		}
		secret, ok := objects.Get(kube.Key{Kind: kube.KindSecret, Namespace: name.Namespace, Name: name.Name}).(*corev1.Secret)
		if !ok {
			unresolved(gatewayv1.ListenerReasonInvalidCertificateRef, "tls.certificateRefs[%d]: Secret %s does not exist", i, name)
			continue
		}
		if err := CheckCertificate(secret); err != nil {
			unresolved(gatewayv1.ListenerReasonInvalidCertificateRef, "tls.certificateRefs[%d]: Secret %s: %v", i, name, err)
			continue
		}
		l.Certificates = append(l.Certificates, name)
	}
}

// CheckCertificate reports why TLS cannot be terminated with a Secret, or nil.
func CheckCertificate(secret *corev1.Secret) error {
	if secret.Type != corev1.SecretTypeTLS {
		return fmt.Errorf("its type is %q, not %q", secret.Type, corev1.SecretTypeTLS)
	}
	for _, key := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
		if len(secret.Data[key]) == 0 {
			return fmt.Errorf("it has no data in %s", key)
		}
	}
	if _, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey]); err != nil {
		return fmt.Errorf("not a certificate with its key: %w", err)
	}
	return nil
}

// findConflicts refuses listeners that cannot be told apart: the same port with
// protocols that nothing tells apart, or the same port, protocol and hostname.
// HTTPS and TLS are told apart by the server name that clients ask for. Of two in one
// object neither is preferred (Gateway.spec.listeners); of two in different ones that of
// the Gateway, then that of the ListenerSet with precedence (ListenerSet.spec.listeners).
func (g *Gateway) findConflicts() {
	lost := make([]bool, len(g.Listeners)) // to one of another object
	conflict := func(l, o *Listener) bool {
		reason, why := indistinct(l, o)
		if reason == "" {
			return false
		}
		l.Served, l.Why, l.WhyReason = false, why, string(reason)
		l.Conditions[0] = conditions.ListenerNotAccepted(reason, l.Generation, why)
		l.Conditions = append(l.Conditions, conditions.ListenerConflicted(reason, l.Generation, why))
		return true
	}
	for i := range g.Listeners {
		for j := range i {
			if !lost[j] && g.Listeners[j].Owner != g.Listeners[i].Owner && conflict(&g.Listeners[i], &g.Listeners[j]) {
				lost[i] = true
				break
			}
		}
	}
	for i := range g.Listeners {
		l, found := &g.Listeners[i], lost[i]
		for j := 0; j < len(g.Listeners) && !found; j++ {
			found = i != j && !lost[j] && g.Listeners[j].Owner == l.Owner && conflict(l, &g.Listeners[j])
		}
		if !found {
			l.Conditions = append(l.Conditions, conditions.ListenerNoConflicts(l.Generation))
		}
	}
}

// indistinct says why nothing tells connections to two listeners apart, or returns "".
func indistinct(l, o *Listener) (reason gatewayv1.ListenerConditionReason, why string) {
	if l.Port != o.Port || supportedKinds[l.Protocol] == nil || supportedKinds[o.Protocol] == nil ||
		(l.Protocol == gatewayv1.UDPProtocolType) != (o.Protocol == gatewayv1.UDPProtocolType) {
		return "", ""
	}
	// What another namespace has there is not for everybody's eyes.
	name := "Listener " + o.Name
	if o.Owner.Namespace != l.Owner.Namespace {
		name = "Another listener of the Gateway"
	}
	switch {
	case l.Protocol != o.Protocol && !(overTLS(l.Protocol) && overTLS(o.Protocol)):
		return gatewayv1.ListenerReasonProtocolConflict, fmt.Sprintf("%s has the same port with protocol %s", name, o.Protocol)
	case l.Hostname == o.Hostname:
		return gatewayv1.ListenerReasonHostnameConflict, name + " has the same port, protocol and hostname"
	}
	return "", ""
}

// overTLS reports whether connections to a listener begin with a ClientHello.
func overTLS(p gatewayv1.ProtocolType) bool {
	return p == gatewayv1.HTTPSProtocolType || p == gatewayv1.TLSProtocolType
}

func speaksHTTP(p gatewayv1.ProtocolType) bool {
	return p == gatewayv1.HTTPProtocolType || p == gatewayv1.HTTPSProtocolType
}

// findOverlaps marks HTTPS listeners of one port whose hostnames overlap.
func (g *Gateway) findOverlaps() {
	for i := range g.Listeners {
		for j := range g.Listeners {
			l, o := &g.Listeners[i], &g.Listeners[j]
			if i == j || l.Port != o.Port || l.Protocol != gatewayv1.HTTPSProtocolType || o.Protocol != l.Protocol || l.Hostname == o.Hostname {
				continue
			}
			if _, overlap := Intersect(l.Hostname, o.Hostname); overlap {
				name := "listener " + o.Name
				if o.Owner.Namespace != l.Owner.Namespace {
					name = "another listener of the Gateway"
				}
				l.Conditions = append(l.Conditions, conditions.ListenerOverlappingTLS(l.Generation, "The hostname overlaps with that of "+name))
				break
			}
		}
	}
}

// nameTables gives plain HTTP listeners of a port the table of the first one that
// is served, and the others their own.
func (g *Gateway) nameTables() {
	first := map[uint16]string{}
	for i := range g.Listeners {
		l := &g.Listeners[i]
		if !l.Served || !speaksHTTP(l.Protocol) {
			continue
		}
		name := l.Name
		if l.Protocol == gatewayv1.HTTPProtocolType {
			if first[l.Port] == "" {
				first[l.Port] = l.Name
			}
			name = first[l.Port]
		}
		l.Table = g.ListenerName(l.Port) + "/" + name
	}
}

// ListenerName returns the name of the mesh.Listener of a port.
func (g *Gateway) ListenerName(port uint16) string {
	return "gateway/" + g.Name.String() + "/" + strconv.Itoa(int(port))
}

// summarise sets the conditions of the Gateway.
func (g *Gateway) summarise(gw *gatewayv1.Gateway) {
	g.Accepted = conditions.GatewayAccepted(g.Generation)
	var invalid []string
	resolved, valid := true, 0
	for i := range g.Listeners {
		l := &g.Listeners[i]
		if l.Owner.Kind != kube.KindGateway {
			continue
		}
		if l.Conditions[0].Status == metav1.ConditionTrue {
			valid++
		} else {
			invalid = append(invalid, l.Name)
		}
		resolved = resolved && l.Conditions[1].Status == metav1.ConditionTrue
	}
	g.ResolvedRefs = conditions.GatewayResolvedRefs(resolved, g.Generation)
	if len(invalid) > 0 {
		g.Accepted = conditions.GatewayListenersNotValid(valid > 0, g.Generation, "Not valid: listener "+strings.Join(invalid, ", "))
	}
	if valid == 0 {
		g.refuseSets("No listener of the Gateway itself is valid")
	}
	if gw.Spec.Infrastructure != nil && gw.Spec.Infrastructure.ParametersRef != nil {
		g.Refuse(gatewayv1.GatewayReasonInvalidParameters, "spec.infrastructure.parametersRef is not supported")
	}
}

// Refuse takes the whole Gateway out of service.
func (g *Gateway) Refuse(reason gatewayv1.GatewayConditionReason, message string) {
	g.Accepted = conditions.GatewayNotAccepted(reason, g.Generation, message)
	for i := range g.Listeners {
		l := &g.Listeners[i]
		if l.Served {
			l.Served, l.Why = false, message
			l.Table = ""
		}
	}
	g.refuseSets(message)
}

// SameAttachment reports whether routes attach to both in the same way, so that
// none has to be looked at again.
func (g *Gateway) SameAttachment(o *Gateway) bool {
	if (g == nil) != (o == nil) {
		return false
	}
	if g == nil {
		return true
	}
	return slices.EqualFunc(g.Listeners, o.Listeners, func(a, b Listener) bool {
		return a.Name == b.Name && a.Port == b.Port && a.Protocol == b.Protocol && a.Hostname == b.Hostname &&
			slices.Equal(a.Kinds, b.Kinds) && a.Passthrough == b.Passthrough && a.Namespaces == b.Namespaces && a.Selector == b.Selector &&
			a.Served == b.Served && a.Table == b.Table
	})
}

// owner returns the listener that takes requests for a host on a port, in plain HTTP
// or over TLS: the most specific (Gateway.spec.listeners on listener isolation).
func (g *Gateway) owner(port uint16, host string, tls bool) *Listener {
	var best *Listener
	for i := range g.Listeners {
		l := &g.Listeners[i]
		mine := l.Protocol == gatewayv1.HTTPProtocolType
		if tls {
			mine = overTLS(l.Protocol)
		}
		if l.Port != port || !l.Served || !mine || !Covers(l.Hostname, host) {
			continue
		}
		if best == nil || CompareSpecificity(l.Hostname, best.Hostname) < 0 {
			best = l
		}
	}
	return best
}
