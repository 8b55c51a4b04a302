package manifest

import (
	"maps"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

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
	default:
		// Those of the Gateway API have the defaults of their schemas already.
		if status := reflect.ValueOf(o).Elem().FieldByName("Status"); status.IsValid() {
			status.SetZero()
		}
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
