package manifest

import (
	"maps"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/kube"
)

// setDefaults fills in what an API server would: the defaults of the schemas,
// where something here reads the field. Statuses that Sluice itself writes are
// taken away.
func setDefaults(o kube.Object) {
	o.SetManagedFields(nil)
	switch o := o.(type) {
	case *corev1.Namespace:
		labels := maps.Clone(o.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		labels[corev1.LabelMetadataName] = o.Name
		o.Labels = labels
	case *corev1.Pod:
		defaultPod(o)
	case *corev1.Service:
		o.Status = corev1.ServiceStatus{}
		defaultService(o)
	case *corev1.Secret:
		for k, v := range o.StringData {
			if o.Data == nil {
				o.Data = map[string][]byte{}
			}
			o.Data[k] = []byte(v)
		}
		o.StringData = nil
		if o.Type == "" {
			o.Type = corev1.SecretTypeOpaque
		}
	case *discoveryv1.EndpointSlice:
		for i := range o.Ports {
			p := &o.Ports[i]
			setIfNil(&p.Name, "")
			setIfNil(&p.Protocol, corev1.ProtocolTCP)
		}
	case *gatewayv1.GatewayClass:
		o.Status = gatewayv1.GatewayClassStatus{}
	case *gatewayv1.Gateway:
		o.Status = gatewayv1.GatewayStatus{}
		defaultGateway(o)
	case *gatewayv1.ListenerSet:
		o.Status = gatewayv1.ListenerSetStatus{}
		defaultListenerSet(o)
	case *gatewayv1.TLSRoute:
		o.Status = gatewayv1.TLSRouteStatus{}
		defaultParents(o.Spec.ParentRefs)
		for i := range o.Spec.Rules {
			defaultBackends(o.Spec.Rules[i].BackendRefs)
		}
	case *gatewayv1.TCPRoute:
		o.Status = gatewayv1.TCPRouteStatus{}
		defaultParents(o.Spec.ParentRefs)
		for i := range o.Spec.Rules {
			defaultBackends(o.Spec.Rules[i].BackendRefs)
		}
	case *gatewayv1.UDPRoute:
		o.Status = gatewayv1.UDPRouteStatus{}
		defaultParents(o.Spec.ParentRefs)
		for i := range o.Spec.Rules {
			defaultBackends(o.Spec.Rules[i].BackendRefs)
		}
	case *gatewayv1.BackendTLSPolicy:
		o.Status = gatewayv1.PolicyStatus{}
	case *gatewayv1.HTTPRoute:
		o.Status = gatewayv1.HTTPRouteStatus{}
		defaultHTTPRoute(o)
	case *gatewayv1.GRPCRoute:
		o.Status = gatewayv1.GRPCRouteStatus{}
		defaultGRPCRoute(o)
	}
}

func setIfNil[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}

func defaultPod(o *corev1.Pod) {
	if o.Spec.ServiceAccountName == "" {
		o.Spec.ServiceAccountName = "default"
	}
	for i := range o.Spec.Containers {
		for j := range o.Spec.Containers[i].Ports {
			if p := &o.Spec.Containers[i].Ports[j]; p.Protocol == "" {
				p.Protocol = corev1.ProtocolTCP
			}
		}
	}
}

func defaultService(o *corev1.Service) {
	if o.Spec.Type == "" {
		o.Spec.Type = corev1.ServiceTypeClusterIP
	}
	if o.Spec.SessionAffinity == "" {
		o.Spec.SessionAffinity = corev1.ServiceAffinityNone
	}
	if o.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		setIfNil(&o.Spec.SessionAffinityConfig, corev1.SessionAffinityConfig{})
		setIfNil(&o.Spec.SessionAffinityConfig.ClientIP, corev1.ClientIPConfig{})
		setIfNil(&o.Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds, corev1.DefaultClientIPServiceAffinitySeconds)
	}
	for i := range o.Spec.Ports {
		p := &o.Spec.Ports[i]
		if p.Protocol == "" {
			p.Protocol = corev1.ProtocolTCP
		}
		if p.TargetPort == (intstr.IntOrString{}) {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	// clusterIP and clusterIPs say the same.
	if len(o.Spec.ClusterIPs) == 0 && o.Spec.ClusterIP != "" {
		o.Spec.ClusterIPs = []string{o.Spec.ClusterIP}
	}
	if o.Spec.ClusterIP == "" && len(o.Spec.ClusterIPs) > 0 {
		o.Spec.ClusterIP = o.Spec.ClusterIPs[0]
	}
}

func defaultGateway(o *gatewayv1.Gateway) {
	for i := range o.Spec.Listeners {
		l := &o.Spec.Listeners[i]
		defaultListener(&l.AllowedRoutes, l.TLS)
	}
	for i := range o.Spec.Addresses {
		setIfNil(&o.Spec.Addresses[i].Type, gatewayv1.IPAddressType)
	}
}

func defaultListenerSet(o *gatewayv1.ListenerSet) {
	setIfNil(&o.Spec.ParentRef.Group, gatewayv1.Group(gatewayv1.GroupName))
	setIfNil(&o.Spec.ParentRef.Kind, gatewayv1.Kind(kube.KindGateway))
	for i := range o.Spec.Listeners {
		l := &o.Spec.Listeners[i]
		defaultListener(&l.AllowedRoutes, l.TLS)
	}
}

func defaultListener(allowed **gatewayv1.AllowedRoutes, tls *gatewayv1.ListenerTLSConfig) {
	setIfNil(allowed, gatewayv1.AllowedRoutes{})
	setIfNil(&(*allowed).Namespaces, gatewayv1.RouteNamespaces{})
	setIfNil(&(*allowed).Namespaces.From, gatewayv1.NamespacesFromSame)
	for j := range (*allowed).Kinds {
		setIfNil(&(*allowed).Kinds[j].Group, gatewayv1.Group(gatewayv1.GroupName))
	}
	if tls != nil {
		setIfNil(&tls.Mode, gatewayv1.TLSModeTerminate)
		for j := range tls.CertificateRefs {
			setIfNil(&tls.CertificateRefs[j].Group, "")
			setIfNil(&tls.CertificateRefs[j].Kind, "Secret")
		}
	}
}

func defaultBackends(refs []gatewayv1.BackendRef) {
	for i := range refs {
		defaultBackend(&refs[i])
	}
}

func defaultParents(refs []gatewayv1.ParentReference) {
	for i := range refs {
		setIfNil(&refs[i].Group, gatewayv1.Group(gatewayv1.GroupName))
		setIfNil(&refs[i].Kind, gatewayv1.Kind(kube.KindGateway))
	}
}

func defaultBackend(b *gatewayv1.BackendRef) {
	setIfNil(&b.Group, "")
	setIfNil(&b.Kind, gatewayv1.Kind(kube.KindService))
	setIfNil(&b.Weight, 1)
}

func defaultHTTPRoute(o *gatewayv1.HTTPRoute) {
	defaultParents(o.Spec.ParentRefs)
	if len(o.Spec.Rules) == 0 {
		o.Spec.Rules = []gatewayv1.HTTPRouteRule{{}}
	}
	for i := range o.Spec.Rules {
		r := &o.Spec.Rules[i]
		if len(r.Matches) == 0 {
			r.Matches = []gatewayv1.HTTPRouteMatch{{}}
		}
		for j := range r.Matches {
			m := &r.Matches[j]
			setIfNil(&m.Path, gatewayv1.HTTPPathMatch{})
			setIfNil(&m.Path.Type, gatewayv1.PathMatchPathPrefix)
			setIfNil(&m.Path.Value, "/")
			for k := range m.Headers {
				setIfNil(&m.Headers[k].Type, gatewayv1.HeaderMatchExact)
			}
			for k := range m.QueryParams {
				setIfNil(&m.QueryParams[k].Type, gatewayv1.QueryParamMatchExact)
			}
		}
		defaultHTTPFilters(r.Filters)
		for j := range r.BackendRefs {
			defaultBackend(&r.BackendRefs[j].BackendRef)
			defaultHTTPFilters(r.BackendRefs[j].Filters)
		}
		if r.Retry != nil {
			setIfNil(&r.Retry.Attempts, 1)
		}
	}
}

func defaultHTTPFilters(filters []gatewayv1.HTTPRouteFilter) {
	for i := range filters {
		if r := filters[i].RequestRedirect; r != nil {
			setIfNil(&r.StatusCode, 302)
		}
	}
}

func defaultGRPCRoute(o *gatewayv1.GRPCRoute) {
	defaultParents(o.Spec.ParentRefs)
	for i := range o.Spec.Rules {
		r := &o.Spec.Rules[i]
		for j := range r.Matches {
			m := &r.Matches[j]
			if m.Method != nil {
				setIfNil(&m.Method.Type, gatewayv1.GRPCMethodMatchExact)
			}
			for k := range m.Headers {
				setIfNil(&m.Headers[k].Type, gatewayv1.GRPCHeaderMatchExact)
			}
		}
		for j := range r.BackendRefs {
			defaultBackend(&r.BackendRefs[j].BackendRef)
		}
	}
}

// SameSpec reports whether two versions of an object differ in nothing that
// counts as a new generation: all but metadata and status.
func SameSpec(a, b kube.Object) bool {
	return reflect.DeepEqual(strip(a), strip(b))
}

// strip returns a shallow copy without metadata and status.
func strip(o kube.Object) any {
	c := reflect.New(reflect.TypeOf(o).Elem()).Elem()
	c.Set(reflect.ValueOf(o).Elem())
	for _, name := range []string{"TypeMeta", "ObjectMeta", "Status"} {
		if f := c.FieldByName(name); f.IsValid() {
			f.SetZero()
		}
	}
	return c.Interface()
}
