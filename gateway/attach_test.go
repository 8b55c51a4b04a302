package gateway

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/mesh"
)

const api = "apiVersion: gateway.networking.k8s.io/v1\n"

// standing keeps the newest status of each object.
type standing map[kube.Key]kube.Status

func (s standing) apply(t *testing.T, tr *Translator, text string) {
	t.Helper()
	s.take(tr.Apply(kube.Change{Upserts: parse(t, "change", text), Synced: true}))
}

func (s standing) take(r Result) {
	for _, st := range r.Statuses {
		s[st.Key] = st
	}
	for _, key := range r.Gone {
		delete(s, key)
	}
}

// allConditions returns every condition in a status.
func allConditions(s kube.Status) (out []metav1.Condition) {
	switch {
	case s.GatewayClass != nil:
		out = s.GatewayClass.Conditions
	case s.Gateway != nil:
		out = slices.Clone(s.Gateway.Conditions)
		for _, l := range s.Gateway.Listeners {
			out = append(out, l.Conditions...)
		}
	case s.ListenerSet != nil:
		out = slices.Clone(s.ListenerSet.Conditions)
		for _, l := range s.ListenerSet.Listeners {
			out = append(out, l.Conditions...)
		}
	case s.Route != nil:
		for _, p := range s.Route.Parents {
			out = append(out, p.Conditions...)
		}
	case s.Policy != nil:
		for _, a := range s.Policy.Ancestors {
			out = append(out, a.Conditions...)
		}
	}
	return out
}

// TestObservedGeneration wants every condition of an object to say the generation of
// the object's newest version, also if nothing else of the status is new.
func TestObservedGeneration(t *testing.T) {
	tr := newTestTranslator(t)
	got := standing{}
	got.take(tr.Apply(kube.Change{Upserts: load(t, "testdata/base.yaml"), Synced: true}))
	inputs := []string{"gateway-class", "listener-set", "gateway-conflicts", "gateway-tls-routes", "gateway-tcp-routes", "grpc-route", "route-backends-wrong", "mesh-parents-wrong"}
	for _, name := range inputs {
		t.Run(name, func(t *testing.T) {
			objects := load(t, "testdata/"+name+".in.yaml")
			got.take(tr.Apply(kube.Change{Upserts: objects, Synced: true}))
			n := 0
			for _, generation := range []int64{7, 8} {
				var newer []kube.Object
				for _, o := range objects {
					c := o.DeepCopyObject().(kube.Object)
					c.SetGeneration(generation)
					newer = append(newer, c)
				}
				got.take(tr.Apply(kube.Change{Upserts: newer, Synced: true}))
				for _, o := range newer {
					s, ok := got[kube.KeyOf(o)]
					if !ok {
						continue
					}
					for _, c := range allConditions(s) {
						n++
						if c.ObservedGeneration != generation {
							t.Errorf("%s: %s says generation %d, want %d", s.Key, c.Type, c.ObservedGeneration, generation)
						}
					}
				}
			}
			if n == 0 {
				t.Error("no condition was looked at")
			}
			var keys []kube.Key
			for _, o := range objects {
				keys = append(keys, kube.KeyOf(o))
			}
			got.take(tr.Apply(kube.Change{Deletes: keys, Synced: true}))
		})
	}
}

// TestSelectors: labels of namespaces decide who may attach, by all operators, for
// routes and for ListenerSets, and a changed label counts at once.
func TestSelectors(t *testing.T) {
	for _, test := range []struct {
		selector string
		labels   string // of namespace a; b has none
		a, b     bool
	}{
		{"{matchLabels: {team: books}}", "{team: books}", true, false},
		{"{matchLabels: {team: books}}", "{team: films}", false, false},
		{"{matchExpressions: [{key: team, operator: In, values: [books, films]}]}", "{team: films}", true, false},
		{"{matchExpressions: [{key: team, operator: NotIn, values: [books]}]}", "{team: books}", false, true},
		{"{matchExpressions: [{key: team, operator: Exists}]}", "{team: x}", true, false},
		{"{matchExpressions: [{key: team, operator: DoesNotExist}]}", "{team: x}", false, true},
		{"{matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [b]}]}", "{}", false, true},
		{"{matchLabels: {team: books}, matchExpressions: [{key: tier, operator: Exists}]}", "{team: books}", false, false},
		{"{}", "{}", true, true},
	} {
		t.Run(test.selector+" "+test.labels, func(t *testing.T) {
			tr, got := newTestTranslator(t), standing{}
			got.apply(t, tr, api+`kind: GatewayClass
metadata: {name: sluice}
spec: {controllerName: sluice.dev/gateway-controller}
---
`+api+`kind: Gateway
metadata: {name: web, namespace: shop}
spec:
  gatewayClassName: sluice
  allowedListeners: {namespaces: {from: Selector, selector: `+test.selector+`}}
  listeners: [{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: `+test.selector+`}}}]
`)
			for i, ns := range []string{"a", "b"} {
				got.apply(t, tr, fmt.Sprintf(`%[1]skind: HTTPRoute
metadata: {name: r, namespace: %[2]s}
spec: {parentRefs: [{name: web, namespace: shop}]}
---
%[1]skind: ListenerSet
metadata: {name: s, namespace: %[2]s}
spec: {parentRef: {name: web, namespace: shop}, listeners: [{name: l, port: %[3]d, protocol: HTTP}]}
`, api, ns, 81+i))
			}
			// The labels come last, so that they have to be noticed.
			got.apply(t, tr, "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: "+test.labels+"}\n")
			for ns, want := range map[string]bool{"a": test.a, "b": test.b} {
				for _, key := range []kube.Key{{Kind: kube.KindHTTPRoute, Namespace: ns, Name: "r"}, {Kind: kube.KindListenerSet, Namespace: ns, Name: "s"}} {
					c := allConditions(got[key])
					if len(c) == 0 || (c[0].Status == metav1.ConditionTrue) != want {
						t.Errorf("%s: %v, want %v", key, c, want)
					}
				}
			}
		})
	}
}

// TestGrants: a ReferenceGrant lets exactly what it names refer to what it names, from
// when it is there until it goes.
func TestGrants(t *testing.T) {
	const route, gateway = "HTTPRoute", "Gateway"
	for _, test := range []struct {
		name           string
		from, to       string
		backend, certs bool // permitted
	}{
		{"all Services to routes", "{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}", `{group: "", kind: Service}`, true, false},
		{"this Service to routes", "{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}", `{group: "", kind: Service, name: books}`, true, false},
		{"another Service", "{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}", `{group: "", kind: Service, name: other}`, false, false},
		{"another kind of route", "{group: gateway.networking.k8s.io, kind: GRPCRoute, namespace: shop}", `{group: "", kind: Service}`, false, false},
		{"another namespace", "{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: other}", `{group: "", kind: Service}`, false, false},
		{"another group", "{group: example.com, kind: HTTPRoute, namespace: shop}", `{group: "", kind: Service}`, false, false},
		{"another group of what is referred to", "{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}", `{group: example.com, kind: Service}`, false, false},
		{"all Secrets to Gateways", "{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}", `{group: "", kind: Secret}`, false, true},
		{"this Secret to Gateways", "{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}", `{group: "", kind: Secret, name: catalog-tls}`, false, true},
		{"another Secret", "{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}", `{group: "", kind: Secret, name: other}`, false, false},
		{"Secrets to ListenerSets", "{group: gateway.networking.k8s.io, kind: ListenerSet, namespace: shop}", `{group: "", kind: Secret}`, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			tr, got := newTestTranslator(t), standing{}
			got.take(tr.Apply(kube.Change{Upserts: load(t, "testdata/base.yaml"), Synced: true}))
			got.apply(t, tr, api+`kind: Gateway
metadata: {name: web, namespace: shop}
spec:
  gatewayClassName: sluice
  listeners:
  - {name: http, port: 80, protocol: HTTP}
  - {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: catalog-tls, namespace: catalog}]}}
---
`+api+`kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec: {parentRefs: [{name: web, sectionName: http}], rules: [{backendRefs: [{name: books, namespace: catalog, port: 80}]}]}
`)
			look := func(step string, backend, certs bool) {
				t.Helper()
				for _, check := range []struct {
					kind      string
					condition []metav1.Condition
					want      bool
				}{
					{route, got[kube.Key{Kind: kube.KindHTTPRoute, Namespace: "shop", Name: "r"}].Route.Parents[0].Conditions, backend},
					{gateway, got[kube.Key{Kind: kube.KindGateway, Namespace: "shop", Name: "web"}].Gateway.Listeners[1].Conditions, certs},
				} {
					c := find(check.condition, "ResolvedRefs")
					want := "ResolvedRefs"
					if !check.want {
						want = "RefNotPermitted"
					}
					if c.Reason != want {
						t.Errorf("%s: %s has reason %s, want %s", step, check.kind, c.Reason, want)
					}
				}
			}
			look("before", false, false)
			got.apply(t, tr, api+"kind: ReferenceGrant\nmetadata: {name: g, namespace: catalog}\nspec: {from: ["+test.from+"], to: ["+test.to+"]}\n")
			look("with the grant", test.backend, test.certs)
			got.take(tr.Apply(kube.Change{Deletes: []kube.Key{{Kind: kube.KindReferenceGrant, Namespace: "catalog", Name: "g"}}}))
			look("after it", false, false)
			// One of another namespace is worth nothing.
			got.apply(t, tr, api+"kind: ReferenceGrant\nmetadata: {name: g, namespace: shop}\nspec: {from: ["+test.from+"], to: ["+test.to+"]}\n")
			look("in another namespace", false, false)
		})
	}
}

func find(conditions []metav1.Condition, typ string) metav1.Condition {
	for _, c := range conditions {
		if c.Type == typ {
			return c
		}
	}
	return metav1.Condition{}
}

// TestModifyListeners: listeners that are added and taken away are in the status and
// in the mesh at once, and those that stay keep their routes.
func TestModifyListeners(t *testing.T) {
	tr, got := newTestTranslator(t), standing{}
	got.take(tr.Apply(kube.Change{Upserts: load(t, "testdata/base.yaml"), Synced: true}))
	gw := func(listeners string) {
		got.apply(t, tr, api+"kind: Gateway\nmetadata: {name: web, namespace: shop}\nspec: {gatewayClassName: sluice, listeners: ["+listeners+"]}\n")
	}
	look := func(want string) {
		t.Helper()
		var lines []string
		for _, l := range got[kube.Key{Kind: kube.KindGateway, Namespace: "shop", Name: "web"}].Gateway.Listeners {
			lines = append(lines, fmt.Sprintf("%s:%d:%s", l.Name, l.AttachedRoutes, find(l.Conditions, "Programmed").Status))
		}
		if s := strings.Join(lines, " "); s != want {
			t.Errorf("got %s, want %s", s, want)
		}
		served := map[string]bool{}
		for ref := range tr.outputs {
			if strings.HasPrefix(ref.Key, "gateway/shop/web/") && ref.Kind == mesh.KindListener {
				served[ref.Key] = true
			}
		}
		if len(served) != len(lines) {
			t.Errorf("served are %v", slices.Sorted(maps.Keys(served)))
		}
	}
	gw("{name: a, port: 80, protocol: HTTP}")
	got.apply(t, tr, api+"kind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec: {parentRefs: [{name: web}], rules: [{backendRefs: [{name: reviews, port: 80}]}]}\n")
	look("a:1:True")
	gw("{name: a, port: 80, protocol: HTTP}, {name: b, port: 8080, protocol: HTTP}")
	look("a:1:True b:1:True")
	gw("{name: b, port: 8080, protocol: HTTP}")
	look("b:1:True")
	gw("{name: b, port: 8081, protocol: HTTP, hostname: x.example, allowedRoutes: {kinds: [{kind: GRPCRoute}]}}")
	look("b:0:True")
	if got[kube.Key{Kind: kube.KindHTTPRoute, Namespace: "shop", Name: "r"}].Route.Parents[0].Conditions[0].Reason != string(gatewayv1.RouteReasonNotAllowedByListeners) {
		t.Error("the route does not know that it is not allowed any more")
	}
}
