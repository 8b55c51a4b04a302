package graph

import (
	"cmp"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/gateway/conditions"
	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/mesh"
)

// ListenerSet is a ListenerSet that names a Gateway as its parent.
type ListenerSet struct {
	Name       mesh.Name
	Generation int64
	// Allowed says that allowedListeners of the Gateway takes it; its listeners are
	// among those of the Gateway then.
	Allowed bool
}

// Key returns the key of the object.
func (s *ListenerSet) Key() kube.Key {
	return kube.Key{Kind: kube.KindListenerSet, Namespace: s.Name.Namespace, Name: s.Name.Name}
}

// takeSets adds the listeners of ListenerSets, the older sets first, then by
// namespace and name (ListenerSet.spec.listeners).
func (g *Gateway) takeSets(objects Objects, gw *gatewayv1.Gateway) {
	sets := objects.ListenerSets(g.Name)
	slices.SortFunc(sets, func(a, b *gatewayv1.ListenerSet) int {
		return cmp.Or(a.CreationTimestamp.UTC().Compare(b.CreationTimestamp.UTC()),
			mesh.Name{Namespace: a.Namespace, Name: a.Name}.Compare(mesh.Name{Namespace: b.Namespace, Name: b.Name}))
	})
	for _, o := range sets {
		s := ListenerSet{Name: mesh.Name{Namespace: o.Namespace, Name: o.Name}, Generation: o.Generation}
		s.Allowed = allowsSets(objects, gw, o.Namespace)
		g.Sets = append(g.Sets, s)
		if !s.Allowed {
			continue
		}
		for i := range o.Spec.Listeners {
			e := &o.Spec.Listeners[i]
			l := resolveListener(objects, gw, s.Key(), o.Generation, &gatewayv1.Listener{
				Name: e.Name, Hostname: e.Hostname, Port: e.Port, Protocol: e.Protocol, TLS: e.TLS, AllowedRoutes: e.AllowedRoutes, Filters: e.Filters,
			})
			l.Name = s.Name.String() + "/" + l.Section
			g.Listeners = append(g.Listeners, l)
		}
	}
}

// allowsSets reports whether ListenerSets of a namespace may attach
// (Gateway.spec.allowedListeners; by default none).
func allowsSets(objects Objects, gw *gatewayv1.Gateway, namespace string) bool {
	if gw.Spec.AllowedListeners == nil || gw.Spec.AllowedListeners.Namespaces == nil || gw.Spec.AllowedListeners.Namespaces.From == nil {
		return false
	}
	switch allowed := gw.Spec.AllowedListeners.Namespaces; *allowed.From {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame:
		return namespace == gw.Namespace
	case gatewayv1.NamespacesFromSelector:
		selector, err := metav1.LabelSelectorAsSelector(allowed.Selector)
		return err == nil && selector.Matches(namespaceLabels(objects, namespace))
	}
	return false
}

// refuseSets takes the listeners of ListenerSets out of service, because the
// Gateway is not accepted.
func (g *Gateway) refuseSets(why string) {
	for i := range g.Listeners {
		if l := &g.Listeners[i]; l.Owner.Kind == kube.KindListenerSet && l.Served {
			l.Served, l.Why, l.Table = false, why, ""
		}
	}
}

// SetAccepted returns the Accepted condition of a ListenerSet of the Gateway.
func (g *Gateway) SetAccepted(s *ListenerSet) metav1.Condition {
	switch {
	case !s.Allowed:
		return conditions.ListenerSetAccepted(false, gatewayv1.ListenerSetReasonNotAllowed, s.Generation,
			"allowedListeners of Gateway "+g.Name.String()+" does not allow ListenerSets of namespace "+s.Name.Namespace)
	case g.Accepted.Status != metav1.ConditionTrue:
		return conditions.ListenerSetAccepted(false, gatewayv1.ListenerSetReasonParentNotAccepted, s.Generation,
			"Gateway "+g.Name.String()+" is not accepted")
	}
	served, invalid := 0, ""
	for i := range g.Listeners {
		l := &g.Listeners[i]
		switch {
		case l.Owner != s.Key():
		case l.Served:
			served++
		case invalid == "":
			invalid = "Not valid: listener " + l.Section
		default:
			invalid += ", " + l.Section
		}
	}
	if invalid != "" {
		return conditions.ListenerSetAccepted(served > 0, gatewayv1.ListenerSetReasonListenersNotValid, s.Generation, invalid)
	}
	return conditions.ListenerSetAccepted(true, gatewayv1.ListenerSetReasonAccepted, s.Generation, "The listeners are valid")
}

// AttachedSets counts the ListenerSets that are accepted.
func (g *Gateway) AttachedSets() int {
	n := 0
	for i := range g.Sets {
		if g.SetAccepted(&g.Sets[i]).Status == metav1.ConditionTrue {
			n++
		}
	}
	return n
}
