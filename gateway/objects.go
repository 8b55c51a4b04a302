package gateway

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/gateway/compile"
	"github.com/sluice-mesh/sluice/gateway/graph"
	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/kube/api/v1alpha1"
	"github.com/sluice-mesh/sluice/mesh"
)

// objectSet is the objects with the indexes that the steps need.
type objectSet struct {
	byKey  map[kube.Key]kube.Object
	grants index[string, string, *gatewayv1.ReferenceGrant]
	// sets has ListenerSets by their Gateway.
	sets index[mesh.Name, mesh.Name, *gatewayv1.ListenerSet]
	// slices are by Service, pods by each of their labels and by address.
	slices       index[mesh.Name, string, *discoveryv1.EndpointSlice]
	podsByLabel  index[label, mesh.Name, *corev1.Pod]
	podByAddress index[netip.Addr, mesh.Name, *corev1.Pod]
	// policies are BackendTrafficPolicies by the Services that they target.
	policies index[mesh.Name, string, *v1alpha1.BackendTrafficPolicy]
	// selecting has Services by one pair of their selector: a Pod has to look at no others.
	selecting index[label, mesh.Name, *corev1.Service]
}

// label is a label of objects in a namespace.
type label struct{ namespace, key, value string }

// index is a set of values by a key, and within it by a name.
type index[K comparable, N comparable, V any] map[K]map[N]V

func (x index[K, N, V]) put(key K, name N, value V) {
	m := x[key]
	if m == nil {
		m = map[N]V{}
		x[key] = m
	}
	m[name] = value
}

func (x index[K, N, V]) remove(key K, name N) {
	if m := x[key]; m != nil {
		delete(m, name)
		if len(m) == 0 {
			delete(x, key)
		}
	}
}

func newObjectSet() objectSet {
	return objectSet{
		byKey:        map[kube.Key]kube.Object{},
		grants:       index[string, string, *gatewayv1.ReferenceGrant]{},
		sets:         index[mesh.Name, mesh.Name, *gatewayv1.ListenerSet]{},
		slices:       index[mesh.Name, string, *discoveryv1.EndpointSlice]{},
		podsByLabel:  index[label, mesh.Name, *corev1.Pod]{},
		podByAddress: index[netip.Addr, mesh.Name, *corev1.Pod]{},
		selecting:    index[label, mesh.Name, *corev1.Service]{},
		policies:     index[mesh.Name, string, *v1alpha1.BackendTrafficPolicy]{},
	}
}

// set puts an object, or takes one away if o is nil, and returns the one before.
func (s *objectSet) set(key kube.Key, o kube.Object) (old kube.Object) {
	old = s.byKey[key]
	if old != nil {
		s.unindex(key, old)
		delete(s.byKey, key)
	}
	if o != nil {
		s.byKey[key] = o
		s.index(key, o)
	}
	return old
}

func (s *objectSet) index(key kube.Key, o kube.Object) {
	name := mesh.Name{Namespace: key.Namespace, Name: key.Name}
	switch o := o.(type) {
	case *gatewayv1.ReferenceGrant:
		s.grants.put(key.Namespace, key.Name, o)
	case *gatewayv1.ListenerSet:
		s.sets.put(graph.SetParent(o), name, o)
	case *discoveryv1.EndpointSlice:
		if svc, ok := serviceOf(o); ok {
			s.slices.put(svc, key.Name, o)
		}
	case *corev1.Pod:
		for k, v := range o.Labels {
			s.podsByLabel.put(label{key.Namespace, k, v}, name, o)
		}
		for _, a := range compile.PodAddresses(o) {
			s.podByAddress.put(a, name, o)
		}
	case *corev1.Service:
		if l, ok := firstPair(o); ok {
			s.selecting.put(l, name, o)
		}
	case *v1alpha1.BackendTrafficPolicy:
		for _, svc := range trafficPolicyTargets(o) {
			s.policies.put(svc, key.Name, o)
		}
	}
}

func (s *objectSet) unindex(key kube.Key, o kube.Object) {
	name := mesh.Name{Namespace: key.Namespace, Name: key.Name}
	switch o := o.(type) {
	case *gatewayv1.ReferenceGrant:
		s.grants.remove(key.Namespace, key.Name)
	case *gatewayv1.ListenerSet:
		s.sets.remove(graph.SetParent(o), name)
	case *discoveryv1.EndpointSlice:
		if svc, ok := serviceOf(o); ok {
			s.slices.remove(svc, key.Name)
		}
	case *corev1.Pod:
		for k, v := range o.Labels {
			s.podsByLabel.remove(label{key.Namespace, k, v}, name)
		}
		for _, a := range compile.PodAddresses(o) {
			s.podByAddress.remove(a, name)
		}
	case *corev1.Service:
		if l, ok := firstPair(o); ok {
			s.selecting.remove(l, name)
		}
	case *v1alpha1.BackendTrafficPolicy:
		for _, svc := range trafficPolicyTargets(o) {
			s.policies.remove(svc, key.Name)
		}
	}
}

// serviceOf returns the Service that a slice belongs to.
func serviceOf(slice *discoveryv1.EndpointSlice) (mesh.Name, bool) {
	name := slice.Labels[discoveryv1.LabelServiceName]
	return mesh.Name{Namespace: slice.Namespace, Name: name}, name != ""
}

// firstPair returns the first pair of a Service's selector.
func firstPair(svc *corev1.Service) (label, bool) {
	if len(svc.Spec.Selector) == 0 {
		return label{}, false
	}
	key := slices.Min(slices.Collect(maps.Keys(svc.Spec.Selector)))
	return label{svc.Namespace, key, svc.Spec.Selector[key]}, true
}

// servicesSelecting returns the Services whose selector matches a Pod.
func (s *objectSet) servicesSelecting(pod *corev1.Pod) []mesh.Name {
	var names []mesh.Name
	for k, v := range pod.Labels {
		for name, svc := range s.selecting[label{pod.Namespace, k, v}] {
			if selects(svc, pod) {
				names = append(names, name)
			}
		}
	}
	return names
}

// podsOf returns the Pods that a Service selects, by name.
func (s *objectSet) podsOf(svc *corev1.Service) []*corev1.Pod {
	first, ok := firstPair(svc)
	if !ok {
		return nil
	}
	var pods []*corev1.Pod
	for _, pod := range s.podsByLabel[first] {
		if selects(svc, pod) {
			pods = append(pods, pod)
		}
	}
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return pods
}

func selects(svc *corev1.Service, pod *corev1.Pod) bool {
	for k, v := range svc.Spec.Selector {
		if have, ok := pod.Labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// slicesOf returns the EndpointSlices of a Service, by name.
func (s *objectSet) slicesOf(name mesh.Name) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for _, slice := range s.slices[name] {
		out = append(out, slice)
	}
	slices.SortFunc(out, func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Kinds of things that a step can ask for beside objects.
const (
	askGrants  kube.Kind = "grants of a namespace"
	askGateway kube.Kind = "resolved Gateway"
	askAddress kube.Kind = "Pod with an address"
	askSets    kube.Kind = "ListenerSets of a Gateway"
)

// reader answers the questions of one step and notes them.
type reader struct {
	t     *Translator
	asked map[kube.Key]struct{}
}

func (t *Translator) reader() *reader { return &reader{t: t, asked: map[kube.Key]struct{}{}} }

// Get implements graph.Objects.
func (r *reader) Get(key kube.Key) kube.Object {
	r.asked[key] = struct{}{}
	return r.t.objects.byKey[key]
}

// Grants implements graph.Objects.
func (r *reader) Grants(namespace string) []*gatewayv1.ReferenceGrant {
	r.asked[kube.Key{Kind: askGrants, Namespace: namespace}] = struct{}{}
	grants := r.t.objects.grants[namespace]
	names := slices.Sorted(maps.Keys(grants))
	out := make([]*gatewayv1.ReferenceGrant, len(names))
	for i, name := range names {
		out[i] = grants[name]
	}
	return out
}

// ListenerSets implements graph.Objects.
func (r *reader) ListenerSets(gateway mesh.Name) []*gatewayv1.ListenerSet {
	r.asked[kube.Key{Kind: askSets, Namespace: gateway.Namespace, Name: gateway.Name}] = struct{}{}
	return slices.Collect(maps.Values(r.t.objects.sets[gateway]))
}

// Gateway implements graph.Objects.
func (r *reader) Gateway(name mesh.Name) *graph.Gateway {
	r.asked[kube.Key{Kind: askGateway, Namespace: name.Namespace, Name: name.Name}] = struct{}{}
	if g := r.t.gateways[name]; g != nil {
		return g.resolved
	}
	return nil
}

// workload returns the workload behind an endpoint.
func (r *reader) workload(namespace, pod string, address netip.Addr) mesh.Name {
	if pod != "" {
		if p, ok := r.Get(kube.Key{Kind: kube.KindPod, Namespace: namespace, Name: pod}).(*corev1.Pod); ok && !p.Spec.HostNetwork {
			return mesh.Name{Namespace: namespace, Name: pod}
		}
		return mesh.Name{}
	}
	r.asked[kube.Key{Kind: askAddress, Name: address.String()}] = struct{}{}
	var found mesh.Name
	for name, p := range r.t.objects.podByAddress[address] {
		if !p.Spec.HostNetwork && !compile.Finished(p) && (found.IsZero() || name.Compare(found) < 0) {
			found = name
		}
	}
	return found
}

// dependencies says who asked for what.
type dependencies struct {
	asked  map[kube.Key]map[kube.Key]struct{} // asker → what it asked for
	askers map[kube.Key]map[kube.Key]struct{} // what was asked for → askers
}

// set replaces what asker asked for.
func (d *dependencies) set(asker kube.Key, asked map[kube.Key]struct{}) {
	for key := range d.asked[asker] {
		if _, still := asked[key]; !still {
			delete(d.askers[key], asker)
			if len(d.askers[key]) == 0 {
				delete(d.askers, key)
			}
		}
	}
	if len(asked) == 0 {
		delete(d.asked, asker)
		return
	}
	for key := range asked {
		if d.askers[key] == nil {
			d.askers[key] = map[kube.Key]struct{}{}
		}
		d.askers[key][asker] = struct{}{}
	}
	d.asked[asker] = asked
}
