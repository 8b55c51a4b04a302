package compile

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/sluice-mesh/sluice/gateway/graph"
	"github.com/sluice-mesh/sluice/kube/api/v1alpha1"
	"github.com/sluice-mesh/sluice/mesh"
)

// ServiceInput is what a Service is compiled from.
type ServiceInput struct {
	Service *corev1.Service
	// Slices are its EndpointSlices. If there are none, Pods are its endpoints.
	Slices []*discoveryv1.EndpointSlice
	// Pods are those that the selector selects.
	Pods []*corev1.Pod
	// Workload returns the workload behind an endpoint, or zero: by the Pod that the
	// slice refers to, or else by the address.
	Workload func(namespace, pod string, address netip.Addr) mesh.Name
	// Steering has the ports that routes are attached to.
	Steering map[uint16]Steering
	// Policies are the BackendTrafficPolicies for it, in the order of precedence.
	Policies []*v1alpha1.BackendTrafficPolicy
	// Node is where endpoints are that do not say.
	Node string
	// TLS returns how endpoints of a port, by its name, are connected to, nil: without TLS.
	TLS func(port string) *mesh.UpstreamTLS
	// Zone is the zone of Node.
	Zone string
}

// overTLS completes a cluster with its TLS. What is spoken inside of that is for the
// route and ALPN to say.
func (in *ServiceInput) overTLS(c *mesh.Cluster, port string) *mesh.Cluster {
	if in.TLS != nil {
		c.TLS = in.TLS(port)
	}
	if c.TLS != nil && c.Protocol == mesh.AppProtocolTLS {
		c.Protocol = mesh.AppProtocolUnknown
	}
	return c
}

// Steering says which routes apply to a port of a Service.
type Steering struct {
	// Producer: routes of the Service's own namespace.
	Producer bool
	// Consumers are the namespaces whose clients have routes of their own.
	Consumers []string
}

// Service compiles a Service into all its resources: itself, and for each TCP
// port a cluster with its endpoints and, if routes are attached, a listener.
func Service(in ServiceInput) []mesh.Resource {
	spec := &in.Service.Spec
	name := mesh.Name{Namespace: in.Service.Namespace, Name: in.Service.Name}
	svc := &mesh.Service{Name: name, Headless: spec.ClusterIP == corev1.ClusterIPNone}
	svc.Local = spec.InternalTrafficPolicy != nil && *spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	if spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		svc.AffinityTimeout = 3 * time.Hour // the API's default
		if c := spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			svc.AffinityTimeout = time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
		}
	}
	if spec.Type == corev1.ServiceTypeExternalName {
		svc.ExternalName = strings.TrimSuffix(spec.ExternalName, ".")
		return append([]mesh.Resource{svc}, externalClusters(&in, svc)...)
	}
	if !svc.Headless {
		svc.VIPs = clusterIPs(spec)
	}
	resources := []mesh.Resource{svc}
	for i := range spec.Ports {
		p := &spec.Ports[i]
		port := mesh.ServicePort{Name: p.Name, Port: uint16(p.Port), AppProtocol: graph.AppProtocol(p)}
		switch p.Protocol {
		case corev1.ProtocolTCP, "":
			port.Protocol = mesh.ProtocolTCP
		case corev1.ProtocolUDP:
			port.Protocol = mesh.ProtocolUDP
		default:
			continue // SCTP
		}
		port.Endpoints, port.Draining = endpoints(&in, p)
		if port.Protocol == mesh.ProtocolTCP {
			cluster := graph.ClusterName(name, port.Port)
			resources = append(resources,
				in.overTLS(&mesh.Cluster{
					Name: cluster, Service: name, Port: port.Port, Protocol: port.AppProtocol,
					Policy: backendPolicy(in.Service, PolicyFor(in.Policies, name.Name, p.Name), svc.AffinityTimeout),
				}, p.Name),
				&mesh.ClusterEndpoints{Cluster: cluster, Endpoints: zoned(&in, backends(spec, port.Endpoints))})
			if s, ok := in.Steering[port.Port]; ok && len(svc.VIPs) > 0 {
				port.Steered = true
				resources = append(resources, serviceListener(svc, port.Port, s))
			}
		}
		if port.Protocol == mesh.ProtocolUDP {
			cluster := graph.UDPClusterName(name, port.Port)
			resources = append(resources, &mesh.Cluster{Name: cluster, Service: name, Port: port.Port},
				&mesh.ClusterEndpoints{Cluster: cluster, Endpoints: zoned(&in, backends(spec, port.Endpoints))})
		}
		svc.Ports = append(svc.Ports, port)
	}
	if svc.Headless && len(spec.Ports) == 0 {
		svc.Hosts, _ = endpoints(&in, nil)
	}
	return resources
}

// externalClusters returns a cluster for each TCP port of an ExternalName Service, whose
// endpoints are what the name resolves to.
func externalClusters(in *ServiceInput, svc *mesh.Service) []mesh.Resource {
	var out []mesh.Resource
	for i := range in.Service.Spec.Ports {
		p := &in.Service.Spec.Ports[i]
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
			continue
		}
		out = append(out, in.overTLS(&mesh.Cluster{
			Name: graph.ClusterName(svc.Name, uint16(p.Port)), Service: svc.Name, Port: uint16(p.Port), Protocol: graph.AppProtocol(p),
			Hostname: svc.ExternalName,
			Policy:   backendPolicy(in.Service, PolicyFor(in.Policies, svc.Name.Name, p.Name), svc.AffinityTimeout),
		}, p.Name))
	}
	return out
}

// zoned returns endpoints with their zones: what a slice says, or the node's own for
// endpoints of the node.
func zoned(in *ServiceInput, list []mesh.Endpoint) []mesh.Endpoint {
	zones := map[netip.Addr]string{}
	for _, slice := range in.Slices {
		for i := range slice.Endpoints {
			if e := &slice.Endpoints[i]; e.Zone != nil && len(e.Addresses) > 0 {
				if a, err := netip.ParseAddr(e.Addresses[0]); err == nil {
					zones[a.Unmap()] = *e.Zone
				}
			}
		}
	}
	if len(zones) == 0 && in.Zone == "" {
		return list
	}
	out := slices.Clone(list) // the Service's own list has no zones
	for i := range out {
		out[i].Zone = zones[out[i].AddrPort.Addr()]
		if out[i].Zone == "" && out[i].Node == in.Node {
			out[i].Zone = in.Zone
		}
	}
	return out
}

func serviceListener(svc *mesh.Service, port uint16, s Steering) *mesh.Listener {
	chain := mesh.Chain{Default: []mesh.WeightedCluster{{Cluster: graph.ClusterName(svc.Name, port), Weight: 1}}}
	if s.Producer {
		chain.RouteTable = graph.ServiceTable(svc.Name, port, "")
	}
	l := &mesh.Listener{
		Name: graph.ServiceTable(svc.Name, port, ""), Type: mesh.ListenerService, Parent: svc.Name, Port: port,
		Addresses: svc.VIPs, Chains: []mesh.Chain{chain},
	}
	for _, ns := range s.Consumers {
		if l.ConsumerTables == nil {
			l.ConsumerTables = map[string]string{}
		}
		l.ConsumerTables[ns] = graph.ServiceTable(svc.Name, port, ns)
	}
	return l
}

func clusterIPs(spec *corev1.ServiceSpec) []netip.Addr {
	texts := spec.ClusterIPs
	if len(texts) == 0 && spec.ClusterIP != "" {
		texts = []string{spec.ClusterIP}
	}
	var out []netip.Addr
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// backends returns a Service's endpoints, each workload once: a backend with two
// addresses is still one backend to the proxy. Its address is that of the Service's
// first family. Of endpoints that are no workloads, which may be the same one twice,
// only those of the first family that has some are backends.
func backends(spec *corev1.ServiceSpec, list []mesh.Endpoint) []mesh.Endpoint {
	first := len(spec.IPFamilies) == 0 || spec.IPFamilies[0] == corev1.IPv4Protocol
	if len(spec.IPFamilies) == 0 && len(list) > 0 {
		first = list[0].AddrPort.Addr().Is4()
	}
	type key struct {
		workload mesh.Name
		port     uint16
	}
	var out, other []mesh.Endpoint
	at := map[key]int{}
	for _, e := range list {
		e.Weight, e.Terminating = 0, false
		if e.AddrPort.Addr().Is4() != first {
			other = append(other, e)
			continue
		}
		if !e.Workload.IsZero() {
			at[key{e.Workload, e.AddrPort.Port()}] = len(out)
		}
		out = append(out, e)
	}
	some := len(out) > 0
	for _, e := range other {
		i, paired := at[key{e.Workload, e.AddrPort.Port()}]
		switch {
		case paired:
			out[i].Additional = e.AddrPort
		case !some || !e.Workload.IsZero():
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b mesh.Endpoint) int { return a.AddrPort.Compare(b.AddrPort) })
	return out
}

// endpoints returns the endpoints of a port, or of the Service without ports if port is
// nil, that may get new connections: ready
// ones, else those that serve while they terminate (KEP-1669); and the rest.
func endpoints(in *ServiceInput, port *corev1.ServicePort) (use, draining []mesh.Endpoint) {
	var ready, terminating, unready []mesh.Endpoint
	add := func(e mesh.Endpoint, isReady, isServing, isTerminating bool) {
		switch {
		case isReady:
			ready = append(ready, e)
		case isServing && isTerminating:
			e.Terminating = true
			terminating = append(terminating, e)
		default:
			unready = append(unready, e)
		}
	}
	if len(in.Slices) > 0 {
		fromSlices(in, port, add)
	} else if len(in.Service.Spec.Selector) > 0 {
		fromPods(in, port, add)
	}
	use = ready
	if len(ready) == 0 {
		use, terminating = terminating, nil
	}
	// The same endpoint may be in two slices while one is being replaced
	// (EndpointSlice documentation, "Duplicate endpoints").
	use = once(use, nil)
	return use, once(slices.Concat(terminating, unready), use)
}

// once returns endpoints in the order of their addresses, without duplicates and
// without those of others, which are in that order.
func once(list, others []mesh.Endpoint) []mesh.Endpoint {
	byAddress := func(a, b mesh.Endpoint) int { return a.AddrPort.Compare(b.AddrPort) }
	slices.SortStableFunc(list, byAddress)
	list = slices.CompactFunc(list, func(a, b mesh.Endpoint) bool { return a.AddrPort == b.AddrPort })
	return slices.DeleteFunc(list, func(e mesh.Endpoint) bool {
		_, found := slices.BinarySearchFunc(others, e, byAddress)
		return found
	})
}

// WeightAnnotation on a Pod is its share of the connections to its Services that the
// kernel balances, 1 to 100; 1 if absent or anything else.
const WeightAnnotation = "sluice.dev/weight"

func weightOf(pod *corev1.Pod) uint32 {
	n, err := strconv.ParseUint(pod.Annotations[WeightAnnotation], 10, 32)
	if err != nil || n < 2 || n > 100 {
		return 0
	}
	return uint32(n)
}

func fromSlices(in *ServiceInput, port *corev1.ServicePort, add func(e mesh.Endpoint, ready, serving, terminating bool)) {
	for _, slice := range in.Slices {
		if slice.AddressType != discoveryv1.AddressTypeIPv4 && slice.AddressType != discoveryv1.AddressTypeIPv6 {
			continue
		}
		number, ok := slicePort(slice, port)
		if !ok {
			continue
		}
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			// Unknown readiness counts as ready, unknown serving as readiness.
			ready := e.Conditions.Ready == nil || *e.Conditions.Ready
			serving := ready
			if e.Conditions.Serving != nil {
				serving = *e.Conditions.Serving
			}
			terminating := e.Conditions.Terminating != nil && *e.Conditions.Terminating
			pod, namespace := "", slice.Namespace
			if e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
				pod = e.TargetRef.Name
				if e.TargetRef.Namespace != "" {
					namespace = e.TargetRef.Namespace
				}
			}
			// Consumers use the first address only (EndpointSlice, Endpoint.addresses).
			if len(e.Addresses) == 0 {
				continue
			}
			addr, err := netip.ParseAddr(e.Addresses[0])
			if err != nil {
				continue
			}
			addr = addr.Unmap()
			out := mesh.Endpoint{AddrPort: netip.AddrPortFrom(addr, number), Workload: in.Workload(namespace, pod, addr), Node: in.Node}
			if e.NodeName != nil {
				out.Node = *e.NodeName
			}
			if e.Hostname != nil {
				out.Hostname = *e.Hostname
			}
			add(out, ready, serving, terminating)
		}
	}
}

// slicePort finds a Service's port in a slice by its name; no port is zero.
func slicePort(slice *discoveryv1.EndpointSlice, port *corev1.ServicePort) (uint16, bool) {
	if port == nil {
		return 0, true
	}
	protocol := port.Protocol
	if protocol == "" {
		protocol = corev1.ProtocolTCP
	}
	for i := range slice.Ports {
		p := &slice.Ports[i]
		if p.Port == nil || deref(p.Name) != port.Name {
			continue
		}
		if p.Protocol == nil && protocol == corev1.ProtocolTCP || p.Protocol != nil && *p.Protocol == protocol {
			return uint16(*p.Port), true
		}
	}
	return 0, false
}

func fromPods(in *ServiceInput, port *corev1.ServicePort, add func(e mesh.Endpoint, ready, serving, terminating bool)) {
	for _, pod := range in.Pods {
		if Finished(pod) {
			continue
		}
		number, ok := targetPort(pod, port)
		if !ok {
			continue
		}
		serving := PodReady(pod) || in.Service.Spec.PublishNotReadyAddresses
		terminating := pod.DeletionTimestamp != nil
		ready := serving && !terminating || in.Service.Spec.PublishNotReadyAddresses
		e := mesh.Endpoint{Node: in.Node}
		if pod.Spec.NodeName != "" {
			e.Node = pod.Spec.NodeName
		}
		if pod.Spec.Hostname != "" && pod.Spec.Subdomain == in.Service.Name {
			e.Hostname = pod.Spec.Hostname
		}
		for _, addr := range PodAddresses(pod) {
			if !wantsFamily(&in.Service.Spec, addr) {
				continue
			}
			e.AddrPort = netip.AddrPortFrom(addr, number)
			e.Workload = in.Workload(pod.Namespace, pod.Name, addr)
			e.Weight = weightOf(pod)
			add(e, ready, serving, terminating)
		}
	}
}

func wantsFamily(spec *corev1.ServiceSpec, addr netip.Addr) bool {
	if len(spec.IPFamilies) == 0 {
		return true
	}
	family := corev1.IPv6Protocol
	if addr.Is4() {
		family = corev1.IPv4Protocol
	}
	return slices.Contains(spec.IPFamilies, family)
}

// targetPort resolves a targetPort, which may be the name of a container's port; no
// port is zero.
func targetPort(pod *corev1.Pod, port *corev1.ServicePort) (uint16, bool) {
	if port == nil {
		return 0, true
	}
	if name := port.TargetPort.StrVal; name != "" {
		protocol := port.Protocol
		if protocol == "" {
			protocol = corev1.ProtocolTCP
		}
		for i := range pod.Spec.Containers {
			for _, p := range pod.Spec.Containers[i].Ports {
				if p.Name == name && (p.Protocol == protocol || p.Protocol == "" && protocol == corev1.ProtocolTCP) {
					return uint16(p.ContainerPort), true
				}
			}
		}
		return 0, false
	}
	if number := port.TargetPort.IntVal; number > 0 {
		return uint16(number), true
	}
	return uint16(port.Port), true
}

// Workload compiles a Pod, or returns nil for one that is not a workload: it has
// no address yet, has ended, or is in the node's own network.
func Workload(pod *corev1.Pod, node string) *mesh.Workload {
	addresses := PodAddresses(pod)
	if len(addresses) == 0 || Finished(pod) || pod.Spec.HostNetwork {
		return nil
	}
	w := &mesh.Workload{
		Name:           mesh.Name{Namespace: pod.Namespace, Name: pod.Name},
		ServiceAccount: pod.Spec.ServiceAccountName,
		Labels:         pod.Labels,
		Node:           pod.Spec.NodeName,
		Addresses:      addresses,
		Ready:          PodReady(pod),
	}
	if w.ServiceAccount == "" {
		w.ServiceAccount = "default"
	}
	if w.Node == "" {
		w.Node = node
	}
	return w
}

// PodAddresses returns a Pod's addresses, IPv4 first.
func PodAddresses(pod *corev1.Pod) []netip.Addr {
	texts := make([]string, 0, 2)
	for _, ip := range pod.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
	if len(texts) == 0 && pod.Status.PodIP != "" {
		texts = append(texts, pod.Status.PodIP)
	}
	var out []netip.Addr
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a.Unmap())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// PodReady reports whether a Pod's Ready condition is true.
func PodReady(pod *corev1.Pod) bool {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// Finished reports whether a Pod has ended for good.
func Finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}
