package manifest

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/kube"
)

// report takes in what is wrong with a field.
type report func(field, text, cure string)

// check applies the rules of the core API: those of each type wherever it occurs,
// then those between fields. Objects of the Gateway API were checked against their
// schemas; of them only the name is looked at here.
func check(o kube.Object, bad report) {
	checkName(o, bad)
	switch o := o.(type) {
	case *corev1.Service:
		walk(reflect.ValueOf(o).Elem(), "", bad)
		checkService(o, bad)
	case *corev1.Secret:
		checkSecret(o, bad)
	case *corev1.ConfigMap:
		checkConfigMap(o, bad)
	case *discoveryv1.EndpointSlice:
		walk(reflect.ValueOf(o).Elem(), "", bad)
		checkEndpointSlice(o, bad)
	case *corev1.Pod:
		walk(reflect.ValueOf(o).Elem(), "", bad)
		checkPod(o, bad)
	}
}

// checkWarnings tells of what is allowed and yet surely not meant.
func checkWarnings(o kube.Object, warn report) {
	parents, ok := parentsOf(o)
	if !ok {
		return
	}
	if len(parents) == 0 {
		warn("spec.parentRefs", "is empty, so that the route has no effect", "name a Gateway, a ListenerSet or a Service")
	}
	for i, ref := range parents {
		known := *ref.Group == gatewayv1.GroupName && (*ref.Kind == gatewayv1.Kind(kube.KindGateway) || *ref.Kind == gatewayv1.Kind(kube.KindListenerSet)) ||
			*ref.Group == "" && *ref.Kind == gatewayv1.Kind(kube.KindService)
		switch {
		case known:
		case *ref.Kind == gatewayv1.Kind(kube.KindService):
			warn(fmt.Sprintf("spec.parentRefs[%d].group", i), fmt.Sprintf("there is no Service in group %q", *ref.Group), `use group: ""`)
		default:
			warn(fmt.Sprintf("spec.parentRefs[%d].kind", i), fmt.Sprintf("%s is not known as a parent, the route does not attach there", *ref.Kind),
				"use Gateway, ListenerSet or Service")
		}
	}
}

// parentsOf returns the parents of a route.
func parentsOf(o kube.Object) (parents []gatewayv1.ParentReference, ok bool) {
	switch o := o.(type) {
	case *gatewayv1.HTTPRoute:
		return o.Spec.ParentRefs, true
	case *gatewayv1.GRPCRoute:
		return o.Spec.ParentRefs, true
	case *gatewayv1.TLSRoute:
		return o.Spec.ParentRefs, true
	case *gatewayv1.TCPRoute:
		return o.Spec.ParentRefs, true
	case *gatewayv1.UDPRoute:
		return o.Spec.ParentRefs, true
	}
	return nil, false
}

func checkName(o kube.Object, bad report) {
	name, valid := o.GetName(), validation.IsDNS1123Subdomain
	switch o.(type) {
	case *corev1.Namespace:
		valid = validation.IsDNS1123Label
	case *corev1.Service:
		valid = validation.IsDNS1035Label
	}
	if name == "" {
		bad("metadata.name", "is missing", "")
		return
	}
	if problems := valid(name); len(problems) > 0 {
		bad("metadata.name", fmt.Sprintf("%q is not a name", name), problems[0])
	}
	if ns := o.GetNamespace(); ns != "" {
		if problems := validation.IsDNS1123Label(ns); len(problems) > 0 {
			bad("metadata.namespace", fmt.Sprintf("%q is not a namespace", ns), problems[0])
		}
	}
	for _, key := range slices.Sorted(maps.Keys(o.GetLabels())) {
		value := o.GetLabels()[key]
		if len(validation.IsQualifiedName(key)) > 0 {
			bad("metadata.labels", fmt.Sprintf("%q is not a label's name", key), "")
		}
		if problems := validation.IsValidLabelValue(value); len(problems) > 0 {
			bad("metadata.labels["+key+"]", fmt.Sprintf("%q is not a label's value", value), problems[0])
		}
	}
}

// rule says what is wrong with a value, and the cure.
type rule func(s string) (text, cure string)

func oneOf[T ~string](values ...T) rule {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = string(v)
	}
	return func(s string) (string, string) {
		if slices.Contains(words, s) {
			return "", ""
		}
		if s == "" {
			return "is missing", "one of " + strings.Join(words, ", ")
		}
		return fmt.Sprintf("%q is not known", s), "one of " + strings.Join(words, ", ")
	}
}

// rules by type: what the core API says of a named type.
var rules = map[reflect.Type]rule{
	reflect.TypeFor[corev1.Protocol]():                     oneOf(corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP),
	reflect.TypeFor[corev1.ServiceType]():                  oneOf(corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName),
	reflect.TypeFor[corev1.ServiceAffinity]():              oneOf(corev1.ServiceAffinityNone, corev1.ServiceAffinityClientIP),
	reflect.TypeFor[corev1.IPFamily]():                     oneOf(corev1.IPv4Protocol, corev1.IPv6Protocol),
	reflect.TypeFor[corev1.IPFamilyPolicy]():               oneOf(corev1.IPFamilyPolicySingleStack, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack),
	reflect.TypeFor[corev1.ServiceInternalTrafficPolicy](): oneOf(corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal),
	reflect.TypeFor[corev1.ServiceExternalTrafficPolicy](): oneOf(corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal),
	reflect.TypeFor[corev1.URIScheme]():                    oneOf(corev1.URISchemeHTTP, corev1.URISchemeHTTPS),
	reflect.TypeFor[corev1.RestartPolicy]():                oneOf(corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever),
	reflect.TypeFor[corev1.ConditionStatus]():              oneOf(corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionUnknown),
	reflect.TypeFor[discoveryv1.AddressType]():             oneOf(discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN),
}

// walk applies the rules of types to v and all in it.
func walk(v reflect.Value, path string, bad report) {
	if r, ok := rules[v.Type()]; ok && v.Kind() == reflect.String {
		if text, cure := r(v.String()); text != "" {
			bad(path, text, cure)
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			walk(v.Elem(), path, bad)
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return
		}
		for i := range v.Len() {
			walk(v.Index(i), fmt.Sprintf("%s[%d]", path, i), bad)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Type().Field(i)
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			switch {
			case !f.IsExported() || name == "metadata":
			case f.Anonymous && name == "" || strings.Contains(options, "inline"):
				walk(v.Field(i), path, bad)
			case name == "port" || name == "containerPort":
				checkPort(v.Field(i), join(path, name), bad)
			default:
				// The zero value of an optional field means that it was not given.
				if strings.Contains(options, "omitempty") && v.Field(i).IsZero() {
					continue
				}
				walk(v.Field(i), join(path, name), bad)
			}
		}
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func checkPort(v reflect.Value, path string, bad report) {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return
		}
		v = v.Elem()
	}
	if v.Kind() != reflect.Int32 {
		return // the port of a probe may be a name
	}
	if n := v.Int(); n < 1 || n > 65535 {
		bad(path, fmt.Sprintf("%d is not a port", n), "1 to 65535")
	}
}

func checkService(o *corev1.Service, bad report) {
	spec := &o.Spec
	if spec.Type == corev1.ServiceTypeExternalName {
		if problems := validation.IsDNS1123Subdomain(strings.TrimSuffix(spec.ExternalName, ".")); len(problems) > 0 {
			bad("spec.externalName", fmt.Sprintf("%q is not a DNS name", spec.ExternalName), "type ExternalName needs one")
		}
		return
	}
	headless := spec.ClusterIP == corev1.ClusterIPNone
	if len(spec.Ports) == 0 && !headless {
		bad("spec.ports", "is empty", "name the ports that the Service has")
	}
	if headless && spec.Type != corev1.ServiceTypeClusterIP {
		bad("spec.clusterIP", fmt.Sprintf("None does not go with type %s", spec.Type), "")
	}
	names, numbers := map[string]bool{}, map[string]bool{}
	for i := range spec.Ports {
		p := &spec.Ports[i]
		field := fmt.Sprintf("spec.ports[%d]", i)
		switch {
		case p.Name == "" && len(spec.Ports) > 1:
			bad(field+".name", "is missing", "with several ports each needs a name")
		case p.Name != "" && len(validation.IsDNS1123Label(p.Name)) > 0:
			bad(field+".name", fmt.Sprintf("%q is not a port's name", p.Name), "lower case letters, digits and -")
		case names[p.Name]:
			bad(field+".name", fmt.Sprintf("%q is there twice", p.Name), "")
		}
		names[p.Name] = true
		number := fmt.Sprintf("%s %d", p.Protocol, p.Port)
		if numbers[number] {
			bad(field+".port", number+" is there twice", "")
		}
		numbers[number] = true
		if n := p.TargetPort.IntVal; p.TargetPort.StrVal == "" && (n < 1 || n > 65535) {
			bad(field+".targetPort", fmt.Sprintf("%d is not a port", n), "1 to 65535, or the name of a container's port")
		}
	}
	if len(spec.ClusterIPs) > 0 && spec.ClusterIP != spec.ClusterIPs[0] {
		bad("spec.clusterIPs[0]", "is not the same as spec.clusterIP", "leave one of the two out")
	}
	families := map[bool]bool{}
	for i, text := range spec.ClusterIPs {
		if text == corev1.ClusterIPNone {
			continue
		}
		a, err := netip.ParseAddr(text)
		if err != nil || a.Is4In6() || a.Zone() != "" {
			bad(fmt.Sprintf("spec.clusterIPs[%d]", i), fmt.Sprintf("%q is not an IP address", text), "")
			continue
		}
		if families[a.Is4()] {
			bad(fmt.Sprintf("spec.clusterIPs[%d]", i), "is of the same family as the one before", "at most one of each")
		}
		families[a.Is4()] = true
	}
	for i := range spec.Ports {
		p := &spec.Ports[i]
		field := fmt.Sprintf("spec.ports[%d].", i)
		switch {
		case p.NodePort == 0:
		case p.NodePort < 0 || p.NodePort > 65535:
			bad(field+"nodePort", fmt.Sprintf("%d is not a port", p.NodePort), "1 to 65535")
		case spec.Type == corev1.ServiceTypeClusterIP:
			bad(field+"nodePort", "does not go with type ClusterIP", "use type NodePort or LoadBalancer")
		}
		if p.AppProtocol != nil && len(validation.IsQualifiedName(*p.AppProtocol)) > 0 {
			bad(field+"appProtocol", fmt.Sprintf("%q is not a protocol's name", *p.AppProtocol), "such as http or kubernetes.io/h2c")
		}
		if p.TargetPort.StrVal != "" && len(validation.IsValidPortName(p.TargetPort.StrVal)) > 0 {
			bad(field+"targetPort", fmt.Sprintf("%q is not the name of a port", p.TargetPort.StrVal), validation.IsValidPortName(p.TargetPort.StrVal)[0])
		}
	}
	for i, text := range spec.ExternalIPs {
		if a, err := netip.ParseAddr(text); err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() {
			bad(fmt.Sprintf("spec.externalIPs[%d]", i), fmt.Sprintf("%q is not an address that a Service can have", text), "")
		}
	}
	for i, text := range spec.LoadBalancerSourceRanges {
		if _, err := netip.ParsePrefix(strings.TrimSpace(text)); err != nil {
			bad(fmt.Sprintf("spec.loadBalancerSourceRanges[%d]", i), fmt.Sprintf("%q is not an address range", text), "such as 10.0.0.0/8")
		}
	}
	for _, key := range slices.Sorted(maps.Keys(spec.Selector)) {
		value := spec.Selector[key]
		if len(validation.IsQualifiedName(key)) > 0 || len(validation.IsValidLabelValue(value)) > 0 {
			bad("spec.selector["+key+"]", fmt.Sprintf("%s: %q is not a label", key, value), "")
		}
	}
	if spec.ExternalTrafficPolicy != "" && spec.Type == corev1.ServiceTypeClusterIP && len(spec.ExternalIPs) == 0 {
		bad("spec.externalTrafficPolicy", "does not go with type ClusterIP", "use type NodePort or LoadBalancer")
	}
	if d := spec.TrafficDistribution; d != nil {
		known := []string{corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode}
		if !slices.Contains(known, *d) {
			bad("spec.trafficDistribution", fmt.Sprintf("%q is not known", *d), "one of "+strings.Join(known, ", "))
		}
	}
	if a := spec.SessionAffinityConfig; a != nil && a.ClientIP != nil && a.ClientIP.TimeoutSeconds != nil {
		if n := *a.ClientIP.TimeoutSeconds; n < 1 || n > 86400 {
			bad("spec.sessionAffinityConfig.clientIP.timeoutSeconds", fmt.Sprintf("%d is out of range", n), "1 to 86400")
		}
	}
}

// Limits of EndpointSlices (discovery.k8s.io/v1).
const (
	maxEndpoints     = 1000
	maxEndpointPorts = 100
	maxAddresses     = 100
)

func checkEndpointSlice(o *discoveryv1.EndpointSlice, bad report) {
	if o.AddressType == "" {
		bad("addressType", "is missing", "one of IPv4, IPv6, FQDN")
	}
	if n := len(o.Endpoints); n > maxEndpoints {
		bad("endpoints", fmt.Sprintf("has %d items", n), fmt.Sprintf("at most %d; use more slices", maxEndpoints))
	}
	if n := len(o.Ports); n > maxEndpointPorts {
		bad("ports", fmt.Sprintf("has %d items", n), fmt.Sprintf("at most %d", maxEndpointPorts))
	}
	names := map[string]bool{}
	for i := range o.Ports {
		name := *o.Ports[i].Name
		switch {
		case names[name]:
			bad(fmt.Sprintf("ports[%d].name", i), fmt.Sprintf("%q is there twice", name), "")
		case name != "" && len(validation.IsDNS1123Label(name)) > 0:
			bad(fmt.Sprintf("ports[%d].name", i), fmt.Sprintf("%q is not a port's name", name), "lower case letters, digits and -")
		}
		names[name] = true
	}
	for i := range o.Endpoints {
		e := &o.Endpoints[i]
		if n := len(e.Addresses); n > maxAddresses {
			bad(fmt.Sprintf("endpoints[%d].addresses", i), fmt.Sprintf("has %d items", n), fmt.Sprintf("at most %d", maxAddresses))
		}
		if len(e.Addresses) == 0 {
			bad(fmt.Sprintf("endpoints[%d].addresses", i), "is empty", "")
		}
		for j, text := range e.Addresses {
			if o.AddressType == discoveryv1.AddressTypeFQDN {
				continue
			}
			a, err := netip.ParseAddr(text)
			if err != nil || a.Is4() != (o.AddressType == discoveryv1.AddressTypeIPv4) || a.Zone() != "" {
				bad(fmt.Sprintf("endpoints[%d].addresses[%d]", i, j), fmt.Sprintf("%q is not an %s address", text, o.AddressType), "")
			}
		}
	}
}

// maxDataBytes is what a Secret or a ConfigMap may have (corev1.MaxSecretSize).
const maxDataBytes = corev1.MaxSecretSize

func checkSecret(o *corev1.Secret, bad report) {
	size := 0
	for _, key := range slices.Sorted(maps.Keys(o.Data)) {
		checkDataKey("data", key, bad)
		size += len(o.Data[key])
	}
	if size > maxDataBytes {
		bad("data", fmt.Sprintf("has %d bytes", size), fmt.Sprintf("at most %d", maxDataBytes))
	}
	if o.Type == corev1.SecretTypeTLS {
		for _, key := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
			if _, ok := o.Data[key]; !ok {
				bad(fmt.Sprintf("data[%s]", key), "is missing", "a Secret of type kubernetes.io/tls needs tls.crt and tls.key")
			}
		}
	}
}

func checkConfigMap(o *corev1.ConfigMap, bad report) {
	size := 0
	for _, key := range slices.Sorted(maps.Keys(o.Data)) {
		checkDataKey("data", key, bad)
		if _, twice := o.BinaryData[key]; twice {
			bad("binaryData["+key+"]", "is in data too", "remove one of the two")
		}
		size += len(o.Data[key])
	}
	for _, key := range slices.Sorted(maps.Keys(o.BinaryData)) {
		checkDataKey("binaryData", key, bad)
		size += len(o.BinaryData[key])
	}
	if size > maxDataBytes {
		bad("data", fmt.Sprintf("has %d bytes", size), fmt.Sprintf("at most %d", maxDataBytes))
	}
}

func checkDataKey(field, key string, bad report) {
	if problems := validation.IsConfigMapKey(key); len(problems) > 0 {
		bad(field+"["+key+"]", fmt.Sprintf("%q is not a key", key), problems[0])
	}
}

func checkPod(o *corev1.Pod, bad report) {
	for i, ip := range o.Status.PodIPs {
		if _, err := netip.ParseAddr(ip.IP); err != nil {
			bad(fmt.Sprintf("status.podIPs[%d].ip", i), fmt.Sprintf("%q is not an IP address", ip.IP), "")
		}
	}
	containers, ports := map[string]bool{}, map[string]bool{}
	for i := range o.Spec.Containers {
		c := &o.Spec.Containers[i]
		field := fmt.Sprintf("spec.containers[%d]", i)
		switch {
		case c.Name == "":
			bad(field+".name", "is missing", "")
		case len(validation.IsDNS1123Label(c.Name)) > 0:
			bad(field+".name", fmt.Sprintf("%q is not a name", c.Name), "lower case letters, digits and -")
		case containers[c.Name]:
			bad(field+".name", fmt.Sprintf("%q is there twice", c.Name), "")
		}
		containers[c.Name] = true
		for j := range c.Ports {
			name := c.Ports[j].Name
			if name == "" {
				continue
			}
			at := fmt.Sprintf("%s.ports[%d].name", field, j)
			if problems := validation.IsValidPortName(name); len(problems) > 0 {
				bad(at, fmt.Sprintf("%q is not the name of a port", name), problems[0])
			} else if ports[name] {
				bad(at, fmt.Sprintf("%q is there twice", name), "")
			}
			ports[name] = true
		}
	}
}
