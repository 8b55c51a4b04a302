package graph

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/gateway/conditions"
	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/mesh"
)

// Route is a route of any kind with its references resolved.
type Route struct {
	Key        kube.Key
	Generation int64
	Created    time.Time
	Object     kube.Object
	Parents    []Parent
	// GatewayBackends and MeshBackends are the backends of each rule, as Gateways and
	// as Services see them: a mesh client may call a Service of any namespace by
	// itself, so that its routes need no ReferenceGrant (GEP-1294).
	GatewayBackends, MeshBackends Backends
}

// Backends are the resolved backendRefs of a route.
type Backends struct {
	// Clusters has the cluster of each backendRef of each rule; empty is invalid.
	Clusters [][]string
	// Mirrors has the clusters of the RequestMirror filters whose backendRef resolves.
	Mirrors map[FilterAt]string
	// ResolvedRefs is the condition to report.
	ResolvedRefs metav1.Condition
}

// Parent is one parentRef of a route.
type Parent struct {
	Ref gatewayv1.ParentReference
	// Mesh says that the parent is a Service.
	Mesh bool
	// Accepted is the condition by what the parent allows.
	Accepted    metav1.Condition
	Attachments []Attachment
}

// Attachment is a place where a route applies: a listener of a Gateway, or a port
// of a Service.
type Attachment struct {
	// Domain is where routes can be in each other's way: "NAMESPACE/NAME/LISTENER" of
	// a Gateway, or the table for a Service.
	Domain string
	// Gateway and Listener, or Service and Port.
	Gateway  mesh.Name
	Listener string
	// Set is the ListenerSet that the listener is of, or zero.
	Set     mesh.Name
	Service mesh.Name
	Port    uint16
	// Consumer is the namespace whose clients the route is for; empty: all.
	Consumer string
	// Table is where the rules go; empty if the listener is not served.
	Table string
	Hosts []Host
}

// Host is a hostname under which a route applies.
type Host struct {
	// Name is the intersection of the route's hostname and the listener's.
	Name string
	// Original is the route's own, which decides precedence.
	Original string
	// Served says that requests for the name come to this listener.
	Served bool
}

// ResolveRoute resolves the references of a route. It returns nil if no parent is
// ours to speak for.
func ResolveRoute(objects Objects, o kube.Object) *Route {
	r := &Route{Key: kube.KeyOf(o), Generation: o.GetGeneration(), Created: o.GetCreationTimestamp().UTC(), Object: o}
	var parents []gatewayv1.ParentReference
	var hostnames []gatewayv1.Hostname
	var refs [][]gatewayv1.BackendRef
	switch o := o.(type) {
	case *gatewayv1.HTTPRoute:
		parents, hostnames = o.Spec.ParentRefs, o.Spec.Hostnames
		for i := range o.Spec.Rules {
			var of []gatewayv1.BackendRef
			for _, b := range o.Spec.Rules[i].BackendRefs {
				of = append(of, b.BackendRef)
			}
			refs = append(refs, of)
		}
	case *gatewayv1.GRPCRoute:
		parents, hostnames = o.Spec.ParentRefs, o.Spec.Hostnames
		for i := range o.Spec.Rules {
			var of []gatewayv1.BackendRef
			for _, b := range o.Spec.Rules[i].BackendRefs {
				of = append(of, b.BackendRef)
			}
			refs = append(refs, of)
		}
	}
	parents, hostnames, refs = l4Spec(o, parents, hostnames, refs)
	var toGateway, toService bool
	for _, ref := range parents {
		p, ours := r.resolveParent(objects, ref, hostnames)
		if !ours {
			continue
		}
		r.Parents = append(r.Parents, p)
		toService = toService || p.Mesh
		toGateway = toGateway || !p.Mesh
	}
	if toGateway {
		r.GatewayBackends = r.resolveBackends(objects, refs, true)
	}
	if toService {
		r.MeshBackends = r.resolveBackends(objects, refs, false)
	}
	if len(r.Parents) == 0 {
		return nil
	}
	return r
}

func (r *Route) resolveParent(objects Objects, ref gatewayv1.ParentReference, hostnames []gatewayv1.Hostname) (p Parent, ours bool) {
	group, kind, name := gatewayv1.Group(gatewayv1.GroupName), gatewayv1.Kind(kube.KindGateway), mesh.Name{Namespace: r.Key.Namespace, Name: string(ref.Name)}
	if ref.Group != nil {
		group = *ref.Group
	}
	if ref.Kind != nil {
		kind = *ref.Kind
	}
	if ref.Namespace != nil {
		name.Namespace = string(*ref.Namespace)
	}
	p = Parent{Ref: ref, Accepted: conditions.RouteAccepted(r.Generation)}
	switch {
	case group == gatewayv1.GroupName && kind == gatewayv1.Kind(kube.KindGateway):
		g := objects.Gateway(name)
		if g == nil {
			if objects.Get(kube.Key{Kind: kube.KindGateway, Namespace: name.Namespace, Name: name.Name}) != nil {
				return p, false // another controller's
			}
			p.refuse(r, gatewayv1.RouteReasonNoMatchingParent, "Gateway %s does not exist", name)
			return p, true
		}
		r.attachToGateway(objects, &p, g, kube.Key{Kind: kube.KindGateway, Namespace: name.Namespace, Name: name.Name}, hostnames)
		return p, true
	case group == gatewayv1.GroupName && kind == gatewayv1.Kind(kube.KindListenerSet):
		return r.resolveSetParent(objects, p, kube.Key{Kind: kube.KindListenerSet, Namespace: name.Namespace, Name: name.Name}, hostnames)
	case group == "" && kind == gatewayv1.Kind(kube.KindService):
		p.Mesh = true
		r.attachToService(objects, &p, name)
		return p, true
	}
	return p, false
}

// resolveSetParent attaches to the listeners of a ListenerSet, and to no other of its
// Gateway.
func (r *Route) resolveSetParent(objects Objects, p Parent, key kube.Key, hostnames []gatewayv1.Hostname) (Parent, bool) {
	set, ok := objects.Get(key).(*gatewayv1.ListenerSet)
	if !ok {
		p.refuse(r, gatewayv1.RouteReasonNoMatchingParent, "%s does not exist", key)
		return p, true
	}
	parent := SetParent(set)
	g := objects.Gateway(parent)
	switch {
	case g == nil && objects.Get(kube.Key{Kind: kube.KindGateway, Namespace: parent.Namespace, Name: parent.Name}) != nil:
		return p, false // another controller's
	case g == nil:
		p.refuse(r, gatewayv1.RouteReasonNoMatchingParent, "Gateway %s of %s does not exist", parent, key)
	case !slices.ContainsFunc(g.Sets, func(s ListenerSet) bool { return s.Key() == key && s.Allowed }):
		p.refuse(r, gatewayv1.RouteReasonNoMatchingParent, "%s is not allowed to attach to Gateway %s", key, parent)
	default:
		r.attachToGateway(objects, &p, g, key, hostnames)
	}
	return p, true
}

// SetParent returns the Gateway that a ListenerSet names as its parent.
func SetParent(set *gatewayv1.ListenerSet) mesh.Name {
	name := mesh.Name{Namespace: set.Namespace, Name: string(set.Spec.ParentRef.Name)}
	if ns := set.Spec.ParentRef.Namespace; ns != nil {
		name.Namespace = string(*ns)
	}
	return name
}

func (p *Parent) refuse(r *Route, reason gatewayv1.RouteConditionReason, format string, args ...any) {
	p.Accepted = conditions.RouteNotAccepted(reason, r.Generation, fmt.Sprintf(format, args...))
}

// attachToGateway attaches to those listeners of a Gateway that owner, the Gateway or
// one of its ListenerSets, has.
func (r *Route) attachToGateway(objects Objects, p *Parent, g *Gateway, owner kube.Key, hostnames []gatewayv1.Hostname) {
	var matching, allowed bool
	for i := range g.Listeners {
		l := &g.Listeners[i]
		if l.Owner != owner || p.Ref.SectionName != nil && string(*p.Ref.SectionName) != l.Section || p.Ref.Port != nil && uint16(*p.Ref.Port) != l.Port {
			continue
		}
		matching = true
		if !slices.Contains(l.Kinds, r.Key.Kind) || !l.allows(objects, owner.Namespace, r.Key.Namespace) {
			continue
		}
		allowed = true
		hosts := r.hosts(g, l, hostnames)
		if len(hosts) == 0 {
			continue
		}
		a := Attachment{
			Domain: g.Name.String() + "/" + l.Name, Gateway: g.Name, Listener: l.Name, Port: l.Port, Table: l.Table, Hosts: hosts,
		}
		if owner.Kind == kube.KindListenerSet {
			a.Set = mesh.Name{Namespace: owner.Namespace, Name: owner.Name}
		}
		p.Attachments = append(p.Attachments, a)
	}
	switch {
	case !matching:
		p.refuse(r, gatewayv1.RouteReasonNoMatchingParent, "%s has no listener with that sectionName and port", owner)
	case !allowed:
		p.refuse(r, gatewayv1.RouteReasonNotAllowedByListeners, "allowedRoutes of %s does not allow %ss of namespace %s", owner, r.Key.Kind, r.Key.Namespace)
	case len(p.Attachments) == 0:
		p.refuse(r, gatewayv1.RouteReasonNoMatchingListenerHostname, "No hostname of the route matches one of %s", owner)
	}
}

// allows reports whether routes of a namespace may attach.
func (l *Listener) allows(objects Objects, own, namespace string) bool {
	switch l.Namespaces {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame:
		return own == namespace
	case gatewayv1.NamespacesFromSelector:
		if l.selector == nil {
			return false
		}
		return l.selector.Matches(namespaceLabels(objects, namespace))
	}
	return false
}

// namespaceLabels returns the labels of a namespace, whether it is declared or not.
func namespaceLabels(objects Objects, namespace string) labels.Set {
	// The API server gives every namespace this label.
	set := labels.Set{corev1.LabelMetadataName: namespace}
	if ns, ok := objects.Get(kube.Key{Kind: kube.KindNamespace, Name: namespace}).(*corev1.Namespace); ok {
		for k, v := range ns.Labels {
			set[k] = v
		}
	}
	return set
}

// hosts intersects the hostnames of the route and of the listener.
func (r *Route) hosts(g *Gateway, l *Listener, hostnames []gatewayv1.Hostname) []Host {
	originals := []string{AnyHost}
	if len(hostnames) > 0 {
		originals = originals[:0]
		for _, h := range hostnames {
			originals = append(originals, strings.ToLower(string(h)))
		}
	}
	var hosts []Host
	for _, original := range originals {
		name, ok := Intersect(l.Hostname, original)
		if !ok {
			continue
		}
		served := l.Served
		switch l.Protocol {
		case gatewayv1.HTTPProtocolType:
			served = served && g.owner(l.Port, name, false) == l
		case gatewayv1.TLSProtocolType:
			served = served && g.owner(l.Port, name, true) == l
		}
		if i := slices.IndexFunc(hosts, func(h Host) bool { return h.Name == name }); i >= 0 {
			if CompareSpecificity(original, hosts[i].Original) < 0 {
				hosts[i].Original = original
			}
			continue
		}
		hosts = append(hosts, Host{Name: name, Original: original, Served: served})
	}
	return hosts
}

// attachToService attaches to the ports of a Service (GEP-1426). Hostnames play
// no part: requests are taken by the address that they go to.
func (r *Route) attachToService(objects Objects, p *Parent, name mesh.Name) {
	svc, ok := objects.Get(kube.Key{Kind: kube.KindService, Namespace: name.Namespace, Name: name.Name}).(*corev1.Service)
	if !ok {
		p.refuse(r, gatewayv1.RouteReasonNoMatchingParent, "Service %s does not exist", name)
		return
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		p.refuse(r, gatewayv1.RouteReasonUnsupportedValue, "Service %s has no cluster IP; routes do not attach to headless and ExternalName Services", name)
		return
	}
	if p.Ref.SectionName != nil {
		p.refuse(r, gatewayv1.RouteReasonUnsupportedValue, "sectionName is not supported for Services; use port")
		return
	}
	if isL4(r.Key.Kind) {
		p.refuse(r, gatewayv1.RouteReasonUnsupportedValue, "%ss do not attach to Services; use a Gateway", r.Key.Kind)
		return
	}
	consumer := ""
	if r.Key.Namespace != name.Namespace {
		consumer = r.Key.Namespace
	}
	for i := range svc.Spec.Ports {
		port := &svc.Spec.Ports[i]
		if port.Protocol != corev1.ProtocolTCP && port.Protocol != "" {
			continue
		}
		if p.Ref.Port != nil {
			if port.Port != *p.Ref.Port {
				continue
			}
		} else if proto := AppProtocol(port); proto == mesh.AppProtocolTCP || proto == mesh.AppProtocolTLS {
			// Without a port the route is for all that can carry it.
			continue
		}
		table := ServiceTable(name, uint16(port.Port), consumer)
		p.Attachments = append(p.Attachments, Attachment{
			Domain: table, Service: name, Port: uint16(port.Port), Consumer: consumer, Table: table,
			Hosts: []Host{{Name: AnyHost, Original: AnyHost, Served: true}},
		})
	}
	if len(p.Attachments) == 0 {
		p.refuse(r, gatewayv1.RouteReasonNoMatchingParent, "Service %s has no such TCP port that carries HTTP", name)
	}
}

// ServiceTable names the route table of a Service's port, for all clients or for
// those of a namespace.
func ServiceTable(service mesh.Name, port uint16, consumer string) string {
	table := "service/" + service.String() + "/" + strconv.Itoa(int(port))
	if consumer != "" {
		table += "/@" + consumer
	}
	return table
}

// ClusterName names the cluster of a Service's port.
func ClusterName(service mesh.Name, port uint16) string {
	return service.String() + "/" + strconv.Itoa(int(port))
}

// UDPClusterName names the cluster of a Service's UDP port.
func UDPClusterName(service mesh.Name, port uint16) string {
	return ClusterName(service, port) + "/udp"
}

// resolveBackends resolves all backendRefs; the first that is wrong is reported.
func (r *Route) resolveBackends(objects Objects, refs [][]gatewayv1.BackendRef, grants bool) Backends {
	b := Backends{ResolvedRefs: conditions.RouteResolvedRefs(r.Generation), Clusters: make([][]string, len(refs))}
	for i := range refs {
		b.Clusters[i] = make([]string, len(refs[i]))
		for j := range refs[i] {
			cluster, reason, why := r.resolveBackend(objects, &refs[i][j], grants)
			b.Clusters[i][j] = cluster
			if reason != "" && b.ResolvedRefs.Status == metav1.ConditionTrue {
				b.ResolvedRefs = conditions.RouteNotResolved(reason, r.Generation, fmt.Sprintf("rules[%d].backendRefs[%d]: %s", i, j, why))
			}
		}
	}
	for _, m := range mirrorRefs(r.Object) {
		cluster, reason, why := r.resolveBackend(objects, &gatewayv1.BackendRef{BackendObjectReference: m.ref}, grants)
		if reason == "" {
			if b.Mirrors == nil {
				b.Mirrors = map[FilterAt]string{}
			}
			b.Mirrors[m.at] = cluster
		} else if b.ResolvedRefs.Status == metav1.ConditionTrue {
			b.ResolvedRefs = conditions.RouteNotResolved(reason, r.Generation, fmt.Sprintf("%s.requestMirror.backendRef: %s", m.at, why))
		}
	}
	return b
}

func (r *Route) resolveBackend(objects Objects, ref *gatewayv1.BackendRef, grants bool) (cluster string, reason gatewayv1.RouteConditionReason, why string) {
	if ref.Group != nil && *ref.Group != "" || ref.Kind != nil && *ref.Kind != gatewayv1.Kind(kube.KindService) {
		kind := "that group"
		if ref.Kind != nil {
			kind = string(*ref.Kind)
		}
		return "", gatewayv1.RouteReasonInvalidKind, kind + " is not supported as a backend; use Service"
	}
	name := mesh.Name{Namespace: r.Key.Namespace, Name: string(ref.Name)}
	if ref.Namespace != nil {
		name.Namespace = string(*ref.Namespace)
	}
	if grants && !permitted(objects, r.Key.Kind, r.Key.Namespace, kube.KindService, name) {
		return "", gatewayv1.RouteReasonRefNotPermitted,
			fmt.Sprintf("no ReferenceGrant in namespace %s lets %ss of namespace %s use Service %s", name.Namespace, r.Key.Kind, r.Key.Namespace, name.Name)
	}
	svc, ok := objects.Get(kube.Key{Kind: kube.KindService, Namespace: name.Namespace, Name: name.Name}).(*corev1.Service)
	if !ok {
		return "", gatewayv1.RouteReasonBackendNotFound, fmt.Sprintf("Service %s does not exist", name)
	}
	if ref.Port == nil {
		return "", gatewayv1.RouteReasonBackendNotFound, "port is missing; a Service needs one"
	}
	udp := false
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		if p.Port != *ref.Port {
			continue
		}
		if wantsUDP := r.Key.Kind == kube.KindUDPRoute; wantsUDP != (p.Protocol == corev1.ProtocolUDP) {
			udp = true
			continue
		} else if wantsUDP {
			return UDPClusterName(name, uint16(p.Port)), "", ""
		}
		if AppProtocol(p) == mesh.AppProtocolTLS && !isL4(r.Key.Kind) && objects.BackendTLS(name, p.Name) == nil {
			return "", gatewayv1.RouteReasonUnsupportedProtocol, fmt.Sprintf("Service %s port %d speaks TLS, and no BackendTLSPolicy says whom to trust there", name, *ref.Port)
		}
		return ClusterName(name, uint16(p.Port)), "", ""
	}
	if udp {
		return "", gatewayv1.RouteReasonUnsupportedProtocol, fmt.Sprintf("Service %s port %d is not of the protocol that %ss carry", name, *ref.Port, r.Key.Kind)
	}
	return "", gatewayv1.RouteReasonBackendNotFound, fmt.Sprintf("Service %s has no port %d", name, *ref.Port)
}

// AppProtocol returns what is spoken on a Service's port by its appProtocol
// (KEP-1435, GEP-1911), or else by the first word of its name.
func AppProtocol(p *corev1.ServicePort) mesh.AppProtocol {
	word, _, _ := strings.Cut(p.Name, "-")
	if strings.HasPrefix(p.Name, "grpc-web") {
		word = "http"
	}
	if p.AppProtocol != nil {
		word = *p.AppProtocol
	}
	switch strings.ToLower(word) {
	case "http", "kubernetes.io/ws", "ws", "grpc-web":
		return mesh.AppProtocolHTTP
	case "kubernetes.io/h2c", "h2c", "http2", "grpc":
		return mesh.AppProtocolHTTP2
	case "https", "tls", "kubernetes.io/wss", "wss":
		return mesh.AppProtocolTLS
	case "tcp", "redis", "mysql", "mongo", "postgresql", "postgres", "amqp", "kafka", "smtp":
		return mesh.AppProtocolTCP
	}
	return mesh.AppProtocolUnknown
}
