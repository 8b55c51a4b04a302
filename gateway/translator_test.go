package gateway

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/mesh"
)

// universe returns versions of objects that are in each other's way in all the
// ways there are: each inner list has the versions of one object.
func universe(t testing.TB) [][]kube.Object {
	secrets := load(t, "testdata/base.yaml")
	var tlsSecret *corev1.Secret
	for _, o := range secrets {
		if s, ok := o.(*corev1.Secret); ok && s.Name == "catalog-tls" {
			tlsSecret = s
		}
	}
	wrongSecret := tlsSecret.DeepCopy()
	wrongSecret.Data[corev1.TLSPrivateKeyKey] = []byte("no key")

	texts := [][]string{
		{api + `
kind: GatewayClass
metadata: {name: sluice}
spec: {controllerName: sluice.dev/gateway-controller}`, api + `
kind: GatewayClass
metadata: {name: sluice}
spec: {controllerName: example.com/other}`},
		{`
apiVersion: v1
kind: Namespace
metadata: {name: catalog, labels: {team: books}}`, `
apiVersion: v1
kind: Namespace
metadata: {name: catalog, labels: {team: films}}`},
		{api + `
kind: ReferenceGrant
metadata: {name: a, namespace: catalog}
spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: "", kind: Service, name: books}]}`, api + `
kind: ReferenceGrant
metadata: {name: a, namespace: catalog}
spec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}], to: [{group: "", kind: Secret}]}`},
		{api + `
kind: Gateway
metadata: {name: web, namespace: shop}
spec:
  gatewayClassName: sluice
  listeners:
  - {name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: books}}}}}
  - {name: api, port: 80, protocol: HTTP, hostname: a.example}
  - {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: catalog-tls, namespace: catalog}]}}`, api + `
kind: Gateway
metadata: {name: web, namespace: shop}
spec:
  gatewayClassName: sluice
  addresses: [{value: 192.0.2.1}]
  listeners:
  - {name: api, port: 80, protocol: HTTP, hostname: "*.example"}
  - {name: http, port: 80, protocol: HTTP}`, api + `
kind: Gateway
metadata: {name: web, namespace: shop}
spec:
  gatewayClassName: sluice
  listeners: [{name: http, port: 80, protocol: HTTP}, {name: https, port: 80, protocol: HTTPS}]`, api + `
kind: Gateway
metadata: {name: web, namespace: shop}
spec:
  gatewayClassName: sluice
  allowedListeners: {namespaces: {from: Selector, selector: {matchLabels: {team: books}}}}
  listeners: [{name: http, port: 80, protocol: HTTP, hostname: web.example}]`, api + `
kind: Gateway
metadata: {name: web, namespace: shop}
spec:
  gatewayClassName: sluice
  allowedListeners: {namespaces: {from: All}}
  listeners: [{name: http, port: 80, protocol: HTTP, hostname: a.example}]`},
		{api + `
kind: ListenerSet
metadata: {name: more, namespace: catalog}
spec:
  parentRef: {name: web, namespace: shop}
  listeners:
  - {name: http, port: 80, protocol: HTTP, hostname: a.example, allowedRoutes: {namespaces: {from: All}}}
  - {name: b, port: 80, protocol: HTTP, hostname: b.example, allowedRoutes: {namespaces: {from: All}}}
  - {name: https, port: 443, protocol: HTTPS, hostname: c.example, tls: {certificateRefs: [{name: catalog-tls}]}}`, api + `
kind: ListenerSet
metadata: {name: more, namespace: catalog}
spec:
  parentRef: {name: second, namespace: shop}
  listeners: [{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}]`},
		{api + `
kind: ListenerSet
metadata: {name: other, namespace: shop, creationTimestamp: "2020-01-01T00:00:00Z"}
spec:
  parentRef: {name: web}
  listeners: [{name: b, port: 80, protocol: HTTP, hostname: b.example}, {name: tcp, port: 81, protocol: TCP}]`},
		{api + `
kind: Gateway
metadata: {name: second, namespace: shop}
spec:
  gatewayClassName: sluice
  addresses: [{value: 192.0.2.1}]
  listeners: [{name: http, port: 80, protocol: HTTP, allowedRoutes: {kinds: [{kind: GRPCRoute}]}}]`, api + `
kind: Gateway
metadata: {name: second, namespace: shop, creationTimestamp: "2019-01-01T00:00:00Z"}
spec:
  gatewayClassName: sluice
  addresses: [{value: 192.0.2.1}, {value: 192.0.2.2}]
  allowedListeners: {namespaces: {from: All}}
  listeners: [{name: http, port: 80, protocol: HTTP}]`},
	}
	route := func(kind, namespace, name, created, parents, hostnames, rules string) string {
		meta := fmt.Sprintf("{name: %s, namespace: %s}", name, namespace)
		if created != "" {
			meta = fmt.Sprintf("{name: %s, namespace: %s, creationTimestamp: %q}", name, namespace, created)
		}
		return api + fmt.Sprintf("kind: %s\nmetadata: %s\nspec:\n  parentRefs: %s\n  hostnames: %s\n  rules: %s\n", kind, meta, parents, hostnames, rules)
	}
	toWeb := "[{name: web, namespace: shop}]"
	toService := `[{group: "", kind: Service, name: reviews, namespace: shop}]`
	backend := "[{backendRefs: [{name: reviews, namespace: shop, port: 80}]}]"
	for i, kind := range []string{"HTTPRoute", "GRPCRoute", "HTTPRoute", "GRPCRoute"} {
		name := fmt.Sprintf("r%d", i)
		texts = append(texts, []string{
			route(kind, "shop", name, "", toWeb, "[a.example]", backend),
			route(kind, "shop", name, "2020-01-01T00:00:00Z", toWeb, `["*.example"]`, backend),
			route(kind, "shop", name, "", `[{name: web}, {name: second}]`, "[]", "[{backendRefs: [{name: books, namespace: catalog, port: 80}]}]"),
			route(kind, "shop", name, "", "[{kind: ListenerSet, name: more, namespace: catalog}, {name: web}]", "[]", backend),
			route(kind, "shop", name, "", "[{kind: ListenerSet, name: other, sectionName: b}]", "[b.example]", backend),
			route(kind, "shop", name, "2021-01-01T00:00:00Z", toService, "[]", backend),
			route(kind, "shop", name, "2021-01-01T00:00:00Z", toService, "[]", "[{backendRefs: [{name: reviews, namespace: shop, port: 81}]}]"),
			route(kind, "shop", name, "2021-01-01T00:00:00Z", toWeb, "[c.example, a.example]", backend),
			route(kind, "shop", name, "2021-01-01T00:00:00Z", toWeb, "[c.example]", backend),
			route(kind, "shop", name, "", `[{group: "", kind: Service, name: reviews, port: 80}, {name: web, sectionName: https}]`, "[b.example, a.example]",
				`[{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: x, port: 80}}}]}]`),
		})
	}
	texts = append(texts,
		[]string{
			route("HTTPRoute", "catalog", "consumer", "", toService, "[]", backend),
			route("HTTPRoute", "catalog", "consumer", "", toWeb, "[]", backend),
		},
		[]string{`
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {clusterIPs: [10.96.0.1], selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: web}]}`, `
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {clusterIPs: [10.96.0.1], selector: {app: reviews, v: "2"}, ports: [{name: http, port: 80}, {name: alt, port: 81}]}`, `
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {clusterIP: None, ports: [{name: https, port: 80}]}`},
		[]string{`
apiVersion: v1
kind: Service
metadata: {name: books, namespace: catalog}
spec: {clusterIPs: [10.96.0.2], ports: [{port: 80}]}`},
		[]string{`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: books-1, namespace: catalog, labels: {kubernetes.io/service-name: books}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2], targetRef: {kind: Pod, name: one, namespace: shop}}]`, `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: books-1, namespace: catalog, labels: {kubernetes.io/service-name: other}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.0.0.1]}]`},
	)
	for i, name := range []string{"one", "two"} {
		pod := `
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: shop, labels: {app: %s, v: "%d"}}
spec: {containers: [{name: c, image: i, ports: [{name: web, containerPort: 8080}]}]}
status: {phase: Running, podIPs: [{ip: %s}], conditions: [{type: Ready, status: "%s"}]}`
		texts = append(texts, []string{
			fmt.Sprintf(pod, name, "reviews", i, fmt.Sprintf("10.0.0.%d", i+1), "True"),
			fmt.Sprintf(pod, name, "reviews", 2, "10.0.0.1", "True"),
			fmt.Sprintf(pod, name, "other", 2, "10.0.0.9", "False"),
		})
	}
	out := [][]kube.Object{{tlsSecret, wrongSecret}}
	for _, versions := range texts {
		var objects []kube.Object
		for i, text := range versions {
			o := parse(t, "universe", text)[0]
			o.SetGeneration(int64(i + 1))
			objects = append(objects, o)
		}
		out = append(out, objects)
	}
	return out
}

// openTranslator lets Gateways name any address, so that only names decide who
// has which.
func openTranslator(t testing.TB) *Translator {
	t.Helper()
	tr, err := New(Config{
		GatewayPools:    []netip.Prefix{netip.MustParsePrefix("10.97.0.0/16")},
		StaticAddresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Node: "node-1",
	})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// TestIncrementalEqualsFresh applies random changes one after the other and wants
// the mesh and the statuses that a fresh translator gives for the set that is
// left; and a mirror that knows only the results to be the same.
func TestIncrementalEqualsFresh(t *testing.T) {
	u := universe(t)
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 1))
		tr := openTranslator(t)
		now := map[kube.Key]kube.Object{}
		mirror := mirror{resources: map[mesh.Ref]mesh.Resource{}, statuses: map[kube.Key]kube.Status{}}
		var history []string
		for range 40 {
			var c kube.Change
			used := map[int]bool{}
			for range 1 + random.IntN(3) {
				i := random.IntN(len(u))
				if used[i] {
					continue
				}
				used[i] = true
				if o := u[i][random.IntN(len(u[i]))]; random.IntN(4) > 0 {
					c.Upserts = append(c.Upserts, o)
					now[kube.KeyOf(o)] = o
					history = append(history, fmt.Sprintf("put %s generation %d", kube.KeyOf(o), o.GetGeneration()))
				} else {
					c.Deletes = append(c.Deletes, kube.KeyOf(o))
					delete(now, kube.KeyOf(o))
					history = append(history, "delete "+kube.KeyOf(o).String())
				}
			}
			mirror.apply(t, tr.Apply(c))

			fresh := openTranslator(t)
			fresh.Apply(kube.Change{Upserts: shuffled(random, now)})
			if d := difference(tr.outputs, fresh.outputs); d != "" {
				t.Fatalf("seed %d: mesh: %s\nafter %s", seed, d, strings.Join(history, "\n"))
			}
			if d := difference(tr.statuses, fresh.statuses); d != "" {
				t.Fatalf("seed %d: statuses: %s\nafter %s", seed, d, strings.Join(history, "\n"))
			}
			if d := difference(mirror.resources, fresh.outputs); d != "" {
				t.Fatalf("seed %d: results do not add up to the mesh: %s\nafter %s", seed, d, strings.Join(history, "\n"))
			}
			if d := difference(mirror.statuses, fresh.statuses); d != "" {
				t.Fatalf("seed %d: results do not add up to the statuses: %s", seed, d)
			}
			if again := tr.Apply(kube.Change{Upserts: shuffled(random, now)}); !again.Delta.IsEmpty() || len(again.Statuses) > 0 {
				t.Fatalf("seed %d: the same objects again change something: %v", seed, again)
			}
		}
		// Nothing may be left of what is gone.
		var c kube.Change
		for key := range now {
			c.Deletes = append(c.Deletes, key)
		}
		mirror.apply(t, tr.Apply(c))
		if len(mirror.resources)+len(mirror.statuses) > 0 {
			t.Fatalf("seed %d: left of nothing: %v %v", seed, mirror.resources, mirror.statuses)
		}
		if n := len(tr.deps.asked) + len(tr.deps.askers) + len(tr.hosts) + len(tr.domains) + len(tr.declared) + len(tr.certificates) +
			len(tr.routes) + len(tr.gateways) + len(tr.services) + len(tr.addr.wanted) + len(tr.addr.wants) + len(tr.objects.byKey) +
			len(tr.objects.grants) + len(tr.objects.slices) + len(tr.objects.podsByLabel) + len(tr.objects.podByAddress) + len(tr.objects.selecting); n > 0 {
			t.Fatalf("seed %d: %d index entries are left of nothing: %+v", seed, n, tr.deps)
		}
	}
}

func shuffled(random *rand.Rand, set map[kube.Key]kube.Object) []kube.Object {
	var out []kube.Object
	for _, o := range set {
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b kube.Object) int { return kube.KeyOf(a).Compare(kube.KeyOf(b)) })
	random.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// mirror is what somebody knows who only sees results.
type mirror struct {
	resources map[mesh.Ref]mesh.Resource
	statuses  map[kube.Key]kube.Status
}

func (m *mirror) apply(t *testing.T, r Result) {
	t.Helper()
	for _, res := range r.Delta.Upserts {
		m.resources[mesh.Ref{Kind: res.Kind(), Key: res.Key()}] = res
	}
	for _, ref := range r.Delta.Removes {
		if m.resources[ref] == nil {
			t.Fatalf("removed and was never there: %v", ref)
		}
		delete(m.resources, ref)
	}
	for _, s := range r.Statuses {
		m.statuses[s.Key] = s
	}
	for _, key := range r.Gone {
		delete(m.statuses, key)
	}
}

func difference[K comparable, V any](got, want map[K]V) string {
	for key, v := range want {
		g, ok := got[key]
		if !ok {
			return fmt.Sprintf("%v is missing", key)
		}
		if !reflect.DeepEqual(g, v) {
			return fmt.Sprintf("%v is\n%+v\nand should be\n%+v", key, g, v)
		}
	}
	for key := range got {
		if _, ok := want[key]; !ok {
			return fmt.Sprintf("%v is too much", key)
		}
	}
	return ""
}

// manyRoutes returns a Gateway, n routes of a hostname each, and their Service.
func manyRoutes(t testing.TB, n int) (*Translator, []*gatewayv1.HTTPRoute) {
	t.Helper()
	tr := openTranslator(t)
	text := `
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: sluice}
spec: {controllerName: sluice.dev/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web, namespace: shop}
spec:
  gatewayClassName: sluice
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {clusterIPs: [10.96.0.1], selector: {app: reviews}, ports: [{name: http, port: 80}]}
---
`
	c := kube.Change{Upserts: parse(t, "many", text)}
	template := parse(t, "route", `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{name: web}]
  hostnames: [x.example]
  rules: [{backendRefs: [{name: reviews, port: 80}]}]
`)[0].(*gatewayv1.HTTPRoute)
	var routes []*gatewayv1.HTTPRoute
	for i := range n {
		r := template.DeepCopy()
		r.Name = fmt.Sprintf("r%d", i)
		r.Spec.Hostnames = []gatewayv1.Hostname{gatewayv1.Hostname(fmt.Sprintf("h%d.example", i))}
		routes = append(routes, r)
		c.Upserts = append(c.Upserts, r)
	}
	if got := len(tr.Apply(c).Statuses); got != n+2 {
		t.Fatalf("%d statuses", got)
	}
	return tr, routes
}

// changeOne changes the path of a route back and forth.
func changeOne(routes []*gatewayv1.HTTPRoute) [2]kube.Change {
	a := routes[len(routes)/2].DeepCopy()
	b := a.DeepCopy()
	path := "/changed"
	b.Spec.Rules[0].Matches = []gatewayv1.HTTPRouteMatch{{Path: &gatewayv1.HTTPPathMatch{Value: &path}}}
	return [2]kube.Change{{Upserts: []kube.Object{b}}, {Upserts: []kube.Object{a}}}
}

// TestCostOfOneRoute wants a change of one route to do the same steps and to
// allocate as much among 30 others as among 3,000.
func TestCostOfOneRoute(t *testing.T) {
	var steps [2]int
	var allocs [2]float64
	for i, n := range []int{30, 3000} {
		tr, routes := manyRoutes(t, n)
		changes := changeOne(routes)
		before := tr.visited
		r := tr.Apply(changes[0])
		steps[i] = tr.visited - before
		if len(r.Delta.Upserts) != 1 || r.Delta.Upserts[0].Kind() != mesh.KindVirtualHost || len(r.Delta.Removes) != 0 || len(r.Statuses) != 0 {
			t.Fatalf("a changed path changed more than one virtual host: %v", r)
		}
		tr.Apply(changes[1])
		allocs[i] = testing.AllocsPerRun(20, func() {
			tr.Apply(changes[0])
			tr.Apply(changes[1])
		})
	}
	if steps[0] != steps[1] || steps[1] != 2 {
		t.Errorf("steps: %v, want 2 both times", steps)
	}
	if allocs[1] > allocs[0]+2 {
		t.Errorf("allocations grow with the number of routes: %v", allocs)
	}
}

func BenchmarkOneRouteAmong3000(b *testing.B) {
	tr, routes := manyRoutes(b, 3000)
	changes := changeOne(routes)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		tr.Apply(changes[i%2])
	}
}

// TestServiceChangeLeavesRoutesAlone wants new endpoints to change no route.
func TestServiceChangeLeavesRoutesAlone(t *testing.T) {
	tr, _ := manyRoutes(t, 10)
	pod := parse(t, "pod", `
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: shop, labels: {app: reviews}}
spec: {containers: [{name: c, image: i}]}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: "True"}]}`)
	before := tr.visited
	r := tr.Apply(kube.Change{Upserts: pod})
	var kinds []string
	for _, res := range r.Delta.Upserts {
		kinds = append(kinds, string(res.Kind()))
	}
	if got := strings.Join(kinds, " "); got != "endpoints workload service" || tr.visited-before != 2 {
		t.Errorf("a Pod changed %s in %d steps", got, tr.visited-before)
	}
}

func TestRejected(t *testing.T) {
	tr, routes := manyRoutes(t, 2)
	key := kube.KeyOf(routes[0])
	host := mesh.Ref{Kind: mesh.KindVirtualHost, Key: "gateway/shop/web/80/http/h0.example"}
	accepted := func(r Result, key kube.Key) (status, message string) {
		for _, s := range r.Statuses {
			if s.Key != key {
				continue
			}
			var conditions []metav1.Condition
			switch {
			case s.Route != nil:
				conditions = s.Route.Parents[0].Conditions[:1]
			case s.Gateway != nil:
				conditions = s.Gateway.Conditions[1:2]
			default:
				conditions = s.Conditions
			}
			return string(conditions[0].Status), conditions[0].Message
		}
		return "no status", ""
	}
	r := tr.Rejected(host, "bad regular expression")
	if s, m := accepted(r, key); s != "False" || !strings.Contains(m, "bad regular expression") || !strings.Contains(m, host.Key) {
		t.Errorf("the route says %s %q", s, m)
	}
	if len(r.Statuses) != 1 || !r.Delta.IsEmpty() {
		t.Errorf("more than the route changed: %v", r)
	}
	if r := tr.Rejected(host, "bad regular expression"); len(r.Statuses) != 0 {
		t.Errorf("the same again changed %v", r.Statuses)
	}
	// The next version is not rejected until somebody says so.
	changed := routes[0].DeepCopy()
	path := "/x"
	changed.Spec.Rules[0].Matches = []gatewayv1.HTTPRouteMatch{{Path: &gatewayv1.HTTPPathMatch{Value: &path}}}
	if s, _ := accepted(tr.Apply(kube.Change{Upserts: []kube.Object{changed}}), key); s != "True" {
		t.Errorf("after the next version the route says %s", s)
	}
	gateway := kube.Key{Kind: kube.KindGateway, Namespace: "shop", Name: "web"}
	listener := mesh.Ref{Kind: mesh.KindListener, Key: "gateway/shop/web/80"}
	if s, m := accepted(tr.Rejected(listener, "address not available"), gateway); s != "False" || !strings.Contains(m, "address not available") {
		t.Errorf("the Gateway says %s %q", s, m)
	}
	if s, _ := accepted(tr.Rejected(listener, ""), gateway); s != "True" {
		t.Errorf("taken back, the Gateway says %s", s)
	}
	service := kube.Key{Kind: kube.KindService, Namespace: "shop", Name: "reviews"}
	cluster := mesh.Ref{Kind: mesh.KindCluster, Key: "shop/reviews/80"}
	if s, m := accepted(tr.Rejected(cluster, "no"), service); s != "False" || !strings.Contains(m, "no") {
		t.Errorf("the Service says %s %q", s, m)
	}
	if r := tr.Rejected(cluster, ""); len(r.Gone) != 1 || r.Gone[0] != service {
		t.Errorf("taken back, the Service's status is still there: %v", r)
	}
	if r := tr.Rejected(mesh.Ref{Kind: mesh.KindCluster, Key: "no/such/1"}, "no"); len(r.Statuses) != 0 || len(tr.rejected) != 0 {
		t.Errorf("an unknown resource was noted: %v", r)
	}
}

func TestGatewayAddressesAreStable(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{GatewayPools: []netip.Prefix{netip.MustParsePrefix("10.97.0.0/29")}, StateDir: dir}
	gateways := func(names ...string) (out []kube.Object) {
		out = parse(t, "class", "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: sluice}\nspec: {controllerName: sluice.dev/gateway-controller}")
		for _, name := range names {
			out = append(out, parse(t, name, fmt.Sprintf("apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: %s}\nspec: {gatewayClassName: sluice, listeners: [{name: http, port: 80, protocol: HTTP}]}", name))...)
		}
		return out
	}
	addresses := func(tr *Translator) map[string]string {
		out := map[string]string{}
		for name, g := range tr.gateways {
			out[name.Name] = fmt.Sprint(g.addresses)
		}
		return out
	}
	start := func(names ...string) *Translator {
		tr, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		tr.Apply(kube.Change{Upserts: gateways(names...)})
		return tr
	}
	names := []string{"a", "b", "c", "d"}
	tr := start(names...)
	first := addresses(tr)
	seen := map[string]bool{}
	for _, a := range first {
		if seen[a] || a == "[]" {
			t.Fatalf("an address is there twice or missing: %v", first)
		}
		seen[a] = true
	}
	// Another order, and fewer, then more than fit.
	slices.Reverse(names)
	if again := addresses(start(names...)); !reflect.DeepEqual(again, first) {
		t.Errorf("after a restart %v, before %v", again, first)
	}
	tr = start("e", "f", "g", "h", "a", "b", "c", "d")
	lacking := 0
	for name, g := range tr.gateways {
		if first[name.Name] != "" && fmt.Sprint(g.addresses) != first[name.Name] {
			t.Errorf("%s moved to %v", name, g.addresses)
		}
		if len(g.addresses) == 0 {
			lacking++
			if s := tr.statuses[kube.Key{Kind: kube.KindGateway, Namespace: "default", Name: name.Name}]; s.Gateway.Conditions[1].Reason != string(gatewayv1.GatewayReasonAddressNotAssigned) {
				t.Errorf("%s without address says %v", name, s.Gateway.Conditions[1])
			}
		}
	}
	if lacking != 2 {
		t.Fatalf("%d of 8 Gateways have none of 6 addresses", lacking)
	}
	// One that goes makes room.
	tr.Apply(kube.Change{Deletes: []kube.Key{{Kind: kube.KindGateway, Namespace: "default", Name: "a"}}})
	with := 0
	for _, g := range tr.gateways {
		if len(g.addresses) > 0 {
			with++
		}
	}
	if with != 6 {
		t.Errorf("after one left %d have an address", with)
	}
}

// TestLoserWinsByYielding gives a route that lost its conflict fewer hostnames:
// those that it kept must come into force although nothing about them changed.
func TestLoserWinsByYielding(t *testing.T) {
	tr, _ := manyRoutes(t, 1)
	route := func(kind, hostnames string) []kube.Object {
		return parse(t, "route", fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: %s
metadata: {name: %s, namespace: shop}
spec:
  parentRefs: [{name: web}]
  hostnames: %s
  rules: [{backendRefs: [{name: reviews, port: 80}]}]`, kind, strings.ToLower(kind), hostnames))
	}
	kept := mesh.Ref{Kind: mesh.KindVirtualHost, Key: "gateway/shop/web/80/http/kept.example"}
	tr.Apply(kube.Change{Upserts: slices.Concat(route("GRPCRoute", "[shared.example]"), route("HTTPRoute", "[kept.example, shared.example]"))})
	if tr.outputs[kept] != nil {
		t.Fatal("the loser is in force")
	}
	tr.Apply(kube.Change{Upserts: route("HTTPRoute", "[kept.example]")})
	if tr.outputs[kept] == nil {
		t.Error("the hostname that is nobody else's is not in force")
	}
}
