package status

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/sluice-mesh/sluice/kube"
)

// TestForeignParentsStay: what another controller wrote of its parents into a status
// stays byte for byte, whether it was there at the start or came later.
func TestForeignParentsStay(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "HTTPRoute/shop/reviews.yaml")
	w := open(t, dir, "2026-01-01T00:00:00Z")
	if err := w.Write([]kube.Status{route(false, "a")}, nil); err != nil {
		t.Fatal(err)
	}
	foreign := gatewayv1.RouteParentStatus{
		ParentRef: gatewayv1.ParentReference{Name: "web"}, ControllerName: "example.com/other",
		Conditions: []metav1.Condition{{Type: "Accepted", Status: "True", Reason: "Theirs", Message: "kept", ObservedGeneration: 2,
			LastTransitionTime: metav1.Date(2020, 1, 1, 0, 0, 0, 0, metav1.Now().UTC().Location())}},
	}
	add := func() {
		var r record
		if err := yaml.Unmarshal([]byte(read(t, path)), &r); err != nil {
			t.Fatal(err)
		}
		var s gatewayv1.RouteStatus
		if err := yaml.Unmarshal(r.Status, &s); err != nil {
			t.Fatal(err)
		}
		s.Parents = append(s.Parents, foreign)
		text, err := marshal(kube.Status{Key: route(true, "").Key, Generation: 3, Route: &s})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	check := func(step string) {
		t.Helper()
		s, ok := parse([]byte(read(t, path)))
		if !ok || len(s.Route.Parents) != 2 {
			t.Fatalf("%s: %+v", step, s.Route)
		}
		got := s.Route.Parents[1]
		if !got.Conditions[0].LastTransitionTime.Equal(&foreign.Conditions[0].LastTransitionTime) {
			t.Errorf("%s: time of the other controller is %v", step, got.Conditions[0].LastTransitionTime)
		}
		got.Conditions[0].LastTransitionTime = foreign.Conditions[0].LastTransitionTime
		if !reflect.DeepEqual(got, foreign) {
			t.Errorf("%s: %+v", step, got)
		}
	}
	add()
	if err := w.Write([]kube.Status{route(true, "b")}, nil); err != nil {
		t.Fatal(err)
	}
	check("written while we run")
	w = open(t, dir, "2026-01-02T00:00:00Z")
	if err := w.Write([]kube.Status{route(false, "c")}, nil); err != nil {
		t.Fatal(err)
	}
	check("there at the start")
}

// TestForeignConditionsStay: so do conditions of types that are not ours, and those
// that are ours go when we no longer say them.
func TestForeignConditionsStay(t *testing.T) {
	condition := func(typ string) metav1.Condition { return metav1.Condition{Type: typ, Status: "True", Reason: "R"} }
	types := func(conditions []metav1.Condition) (out []string) {
		for _, c := range conditions {
			out = append(out, c.Type)
		}
		return out
	}
	key := kube.Key{Kind: kube.KindGateway, Namespace: "shop", Name: "web"}
	before := kube.Status{Key: key, Gateway: &gatewayv1.GatewayStatus{
		Conditions: []metav1.Condition{condition("Accepted"), condition("example.com/Theirs"), condition("InsecureFrontendValidationMode")},
		Listeners: []gatewayv1.ListenerStatus{
			{Name: "http", Conditions: []metav1.Condition{condition("OverlappingTLSConfig"), condition("example.com/Theirs")}},
			{Name: "gone", Conditions: []metav1.Condition{condition("example.com/Theirs")}},
		},
	}}
	ours := kube.Status{Key: key, Gateway: &gatewayv1.GatewayStatus{
		Conditions: []metav1.Condition{condition("Accepted"), condition("Programmed")},
		Listeners:  []gatewayv1.ListenerStatus{{Name: "http", Conditions: []metav1.Condition{condition("Accepted")}}},
	}}
	got := Merge(before, ours, "c").Gateway
	if want := []string{"Accepted", "Programmed", "example.com/Theirs"}; !reflect.DeepEqual(types(got.Conditions), want) {
		t.Errorf("conditions %v, want %v", types(got.Conditions), want)
	}
	if want := []string{"Accepted", "example.com/Theirs"}; len(got.Listeners) != 1 || !reflect.DeepEqual(types(got.Listeners[0].Conditions), want) {
		t.Errorf("listeners %+v, want %v", got.Listeners, want)
	}
	if len(ours.Gateway.Conditions) != 2 || len(ours.Gateway.Listeners[0].Conditions) != 1 {
		t.Error("what was given is changed")
	}
}

// TestForeignAncestorsStay: of a policy too, as long as there is room.
func TestForeignAncestorsStay(t *testing.T) {
	ancestor := func(name, controller string) gatewayv1.PolicyAncestorStatus {
		return gatewayv1.PolicyAncestorStatus{AncestorRef: gatewayv1.ParentReference{Name: gatewayv1.ObjectName(name)}, ControllerName: gatewayv1.GatewayController(controller)}
	}
	before := kube.Status{Policy: &gatewayv1.PolicyStatus{Ancestors: []gatewayv1.PolicyAncestorStatus{ancestor("a", "c"), ancestor("b", "other")}}}
	ours := kube.Status{Policy: &gatewayv1.PolicyStatus{Ancestors: []gatewayv1.PolicyAncestorStatus{ancestor("x", "c")}}}
	got := Merge(before, ours, "c").Policy.Ancestors
	want := []gatewayv1.PolicyAncestorStatus{ancestor("x", "c"), ancestor("b", "other")}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}
