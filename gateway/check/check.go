// Package check says what would become of objects: the conditions that they would
// get, without a node.
//
// It is pure. The objects are those of a [kube.Change], compiled by the very code of a
// node's control plane.
package check

import (
	"fmt"
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/gateway"
	"github.com/sluice-mesh/sluice/kube"
)

// Grade is how good something is.
type Grade string

// The grades, the best first.
const (
	OK      Grade = "ok"
	Warning Grade = "warning" // it works, and is perhaps not what was meant
	Wrong   Grade = "wrong"
)

// Object is what would be said of an object.
type Object struct {
	Key        kube.Key
	Grade      Grade
	Conditions []Condition
}

// Condition is a condition of an object or of a part of it.
type Condition struct {
	// Of is the part: "listener web", "parent Gateway shop/web", or empty.
	Of      string
	Type    string
	Status  string
	Reason  string
	Message string
	Grade   Grade
}

// Objects returns what a node would say of the objects that have conditions, by kind
// and name.
func Objects(change kube.Change) ([]Object, error) {
	// Addresses are a node's own matter: any will do.
	all := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	t, err := gateway.New(gateway.Config{
		GatewayPools:    []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("2001:db8::/64")},
		StaticAddresses: all,
	})
	if err != nil {
		return nil, err
	}
	statuses := map[kube.Key]kube.Status{}
	for _, s := range t.Apply(change).Statuses {
		statuses[s.Key] = s
	}
	classes := map[string]bool{}
	for _, o := range change.Upserts {
		if class, ok := o.(*gatewayv1.GatewayClass); ok {
			classes[class.Name] = true
		}
	}
	var out []Object
	for _, o := range change.Upserts {
		obj := Object{Key: kube.KeyOf(o), Grade: OK}
		if s, ok := statuses[obj.Key]; ok {
			obj.Conditions = conditionsOf(s)
		} else if why := unheard(o, classes); why != "" {
			obj.Conditions = []Condition{{Type: "Accepted", Status: "Unknown", Reason: "Pending", Message: why, Grade: Wrong}}
		} else {
			continue
		}
		for _, c := range obj.Conditions {
			obj.Grade = worse(obj.Grade, c.Grade)
		}
		out = append(out, obj)
	}
	slices.SortFunc(out, func(a, b Object) int { return a.Key.Compare(b.Key) })
	return out, nil
}

// unheard says why nobody speaks for an object that should have a status.
func unheard(o kube.Object, classes map[string]bool) string {
	gw, ok := o.(*gatewayv1.Gateway)
	if ok && !classes[string(gw.Spec.GatewayClassName)] {
		return fmt.Sprintf("There is no GatewayClass %s, so that no controller serves the Gateway", gw.Spec.GatewayClassName)
	}
	return ""
}

func worse(a, b Grade) Grade {
	order := []Grade{OK, Warning, Wrong}
	return order[max(slices.Index(order, a), slices.Index(order, b))]
}

func conditionsOf(s kube.Status) (out []Condition) {
	add := func(of string, conditions []metav1.Condition) {
		for _, c := range conditions {
			out = append(out, Condition{of, c.Type, string(c.Status), c.Reason, c.Message, grade(c)})
		}
	}
	switch {
	case s.GatewayClass != nil:
		add("", s.GatewayClass.Conditions)
	case s.Gateway != nil:
		add("", s.Gateway.Conditions)
		for _, l := range s.Gateway.Listeners {
			add("listener "+string(l.Name), l.Conditions)
		}
	case s.ListenerSet != nil:
		add("", s.ListenerSet.Conditions)
		for _, l := range s.ListenerSet.Listeners {
			add("listener "+string(l.Name), l.Conditions)
		}
	case s.Route != nil:
		for _, p := range s.Route.Parents {
			add("parent "+parent(p.ParentRef, s.Key.Namespace), p.Conditions)
		}
	case s.Policy != nil:
		for _, a := range s.Policy.Ancestors {
			add("ancestor "+parent(a.AncestorRef, s.Key.Namespace), a.Conditions)
		}
	default:
		add("", s.Conditions)
	}
	return out
}

func parent(ref gatewayv1.ParentReference, namespace string) string {
	kind := "Gateway"
	if ref.Kind != nil {
		kind = string(*ref.Kind)
	}
	if ref.Namespace != nil {
		namespace = string(*ref.Namespace)
	}
	text := kind + " " + namespace + "/" + string(ref.Name)
	if ref.SectionName != nil {
		text += "/" + string(*ref.SectionName)
	}
	if ref.Port != nil {
		text += fmt.Sprintf(":%d", *ref.Port)
	}
	return text
}

// grade judges a condition. Most say that all is well if they are true.
func grade(c metav1.Condition) Grade {
	switch c.Type {
	case string(gatewayv1.ListenerConditionOverlappingTLSConfig), string(gatewayv1.GatewayConditionInsecureFrontendValidationMode):
		if c.Status == metav1.ConditionTrue {
			return Warning
		}
	case string(gatewayv1.ListenerConditionConflicted), string(gatewayv1.RouteConditionPartiallyInvalid):
		if c.Status == metav1.ConditionTrue {
			return Wrong
		}
	default:
		if c.Status != metav1.ConditionTrue {
			return Wrong
		}
	}
	return OK
}
