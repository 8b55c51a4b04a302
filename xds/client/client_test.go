package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/mesh/store"
	"github.com/sluice-mesh/sluice/xds/nametree"
	"github.com/sluice-mesh/sluice/xds/server"
)

// patience ends a test that would wait for ever; no test depends on its length.
const patience = 20 * time.Second

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// control is a control plane on a socket that outlives its restarts.
type control struct {
	t      testing.TB
	path   string
	server *server.Server
	reg    *prometheus.Registry
	stop   func()
	acks   chan string // "ROLE KEY", never full
	nacks  chan string
}

func newControl(t testing.TB) *control {
	c := &control{t: t, path: filepath.Join(t.TempDir(), "xds.sock"), acks: make(chan string, 1<<18), nacks: make(chan string, 1<<10)}
	c.start()
	t.Cleanup(func() { c.stop() })
	return c
}

// start starts a server that knows nothing.
func (c *control) start() {
	c.t.Helper()
	c.reg = prometheus.NewRegistry()
	s, err := server.New(server.Config{
		Logger: quiet, Registerer: c.reg,
		OnAck:  func(cl server.Client, ref mesh.Ref, _ string) { c.acks <- cl.Role + " " + ref.Key },
		OnNack: func(cl server.Client, ref mesh.Ref, _, text string) { c.nacks <- cl.Role + " " + ref.Key + ": " + text },
	})
	if err != nil {
		c.t.Fatal(err)
	}
	l, err := server.Listen(c.path, -1)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	c.server = s
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("serve: %v", err)
		}
	})
}

func (c *control) publish(d mesh.Delta) {
	c.t.Helper()
	if err := c.server.Publish(d); err != nil {
		c.t.Fatal(err)
	}
}

// sent returns the number of resources that the server has sent.
func (c *control) sent(kind mesh.Kind) float64 {
	families, err := c.reg.Gather()
	if err != nil {
		c.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != "sluice_xds_server_resources_sent_total" {
			continue
		}
		for _, m := range f.Metric {
			if kind == "" || m.Label[0].GetValue() == string(kind) {
				sum += m.Counter.GetValue()
			}
		}
	}
	return sum
}

// until returns when a condition holds for each kind of each client.
func (c *control) until(what string, f func(server.KindStatus) bool) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); runtime.Gosched() {
		all := true
		for _, cl := range c.server.Status().Clients {
			for _, k := range cl.Kinds {
				all = all && f(k)
			}
		}
		if all {
			return
		}
	}
	c.t.Fatalf("never: %s; %+v", what, c.server.Status())
}

// connected returns when so many clients have subscribed to all that they want
// from the start.
func (c *control) connected(clients int) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); runtime.Gosched() {
		kinds := 0
		for _, cl := range c.server.Status().Clients {
			for _, k := range cl.Kinds {
				if agentInitial[k.Kind] != nil {
					kinds++
				}
			}
		}
		if kinds == clients*len(agentInitial) {
			return
		}
	}
	c.t.Fatalf("never: %d clients; %+v", clients, c.server.Status())
}

// node is a running client with its store.
type node struct {
	*Client
	t       testing.TB
	store   *store.Store
	commits chan struct{} // capacity 1: the store has changed
	stop    func()
}

func run(t testing.TB, change func(*Config)) *node {
	t.Helper()
	n := &node{t: t, store: store.New(), commits: make(chan struct{}, 1)}
	cfg := Config{Node: "node-1", Role: RoleProxy, Store: n.store, Logger: quiet, Registerer: prometheus.NewRegistry()}
	change(&cfg)
	n.store.Subscribe(func(mesh.Delta) {
		select {
		case n.commits <- struct{}{}:
		default:
		}
	})
	var err error
	if n.Client, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(n.stop)
	return n
}

func (n *node) ready() {
	n.t.Helper()
	select {
	case <-n.Ready():
	case <-time.After(patience):
		n.t.Fatalf("never ready: %+v", n.Status())
	}
}

// until returns when the store fulfils a condition, looking after each commit.
func (n *node) until(what any, f func() bool) {
	n.t.Helper()
	timeout := time.After(patience)
	for !f() {
		select {
		case <-n.commits:
		case <-timeout:
			n.t.Fatalf("never: %v; status %+v, resources %+v", what, n.Status(), n.Resources())
		}
	}
}

func (n *node) keys(kind mesh.Kind) []string {
	var out []string
	n.store.Range(kind, func(r mesh.Resource) bool {
		out = append(out, r.Key())
		return true
	})
	slices.Sort(out)
	return out
}

func (n *node) has(kind mesh.Kind, keys ...string) bool { return slices.Equal(n.keys(kind), keys) }

func workload(name, on string) *mesh.Workload {
	return &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: name}, Node: on, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
}

// gateway is a listener with its table, certificate, and clusters.
type gateway struct {
	listener    *mesh.Listener
	host        *mesh.VirtualHost
	certificate *mesh.Certificate
}

func newGateway(name string, services ...string) gateway {
	n := mesh.Name{Namespace: "shop", Name: name}
	table := "gateway/" + n.String() + "/443/https"
	return gateway{
		&mesh.Listener{
			Name: "gateway/" + n.String() + "/443", Type: mesh.ListenerGateway, Parent: n, Port: 443,
			Chains: []mesh.Chain{{Name: "https", Certificates: []string{"shop/" + name + "-cert"}, RouteTable: table}},
		},
		route(table, services...),
		&mesh.Certificate{Name: "shop/" + name + "-cert", ChainPEM: []byte("chain"), KeyPEM: []byte("very private " + name)},
	}
}

func route(table string, services ...string) *mesh.VirtualHost {
	v := &mesh.VirtualHost{Table: table, Hostname: "*", Rules: []mesh.Rule{{RouteKind: "HTTPRoute", Route: mesh.Name{Namespace: "shop", Name: "r"}}}}
	for _, s := range services {
		v.Rules[0].Clusters = append(v.Rules[0].Clusters, mesh.WeightedCluster{Cluster: clusterName(s), Weight: 1})
	}
	return v
}

func clusterName(service string) string { return "shop/" + service + "/80" }

// backend is a cluster with its endpoints.
func backend(service string, address string) []mesh.Resource {
	n := mesh.Name{Namespace: "shop", Name: service}
	return []mesh.Resource{
		&mesh.Cluster{Name: clusterName(service), Service: n, Port: 80},
		&mesh.ClusterEndpoints{Cluster: clusterName(service), Endpoints: []mesh.Endpoint{{AddrPort: netip.MustParseAddrPort(address)}}},
	}
}

func (g gateway) all() []mesh.Resource { return []mesh.Resource{g.listener, g.host, g.certificate} }

func upserts(lists ...[]mesh.Resource) mesh.Delta {
	return mesh.Delta{Upserts: slices.Concat(lists...)}
}

func removes(list ...mesh.Resource) (out []mesh.Ref) {
	for _, r := range list {
		out = append(out, mesh.Ref{Kind: r.Kind(), Key: r.Key()})
	}
	return out
}

var agentInitial = map[mesh.Kind][]string{
	mesh.KindWorkload: {"*"}, mesh.KindService: {"*"}, mesh.KindListener: {"gateway/*"},
}

func asProxy(path string) func(*Config) {
	return func(c *Config) { c.Target, c.Initial, c.FollowReferences = path, agentInitial, true }
}

func asAgent(path string) func(*Config) {
	return func(c *Config) { c.Target, c.Initial, c.Role = path, agentInitial, RoleAgent }
}

func TestFullState(t *testing.T) {
	cp := newControl(t)
	var d mesh.Delta
	for i := range 5000 {
		w := workload(fmt.Sprintf("w%d", i), "n")
		d.Upserts = append(d.Upserts, w, &mesh.Service{Name: w.Name, VIPs: w.Addresses, Ports: []mesh.ServicePort{
			{Name: "http", Port: 80, Protocol: mesh.ProtocolTCP, Endpoints: []mesh.Endpoint{{AddrPort: netip.AddrPortFrom(w.Addresses[0], 8080), Workload: w.Name, Node: "n"}}},
		}})
	}
	agent := run(t, asAgent(cp.path))
	cp.publish(d)
	agent.ready()
	for _, want := range d.Upserts {
		if got := agent.store.Get(want.Kind(), want.Key()); !reflect.DeepEqual(got, want) {
			t.Fatalf("store has %+v, want %+v", got, want)
		}
	}
	cp.publish(mesh.Delta{Upserts: []mesh.Resource{workload("w1", "moved")}, Removes: removes(workload("w2", ""))})
	agent.until("the change", func() bool {
		return agent.store.Workload(mesh.Name{Namespace: "shop", Name: "w1"}).Node == "moved" &&
			agent.store.Workload(mesh.Name{Namespace: "shop", Name: "w2"}) == nil
	})
	if got := len(agent.keys(mesh.KindWorkload)); got != 4999 {
		t.Fatalf("%d workloads, want 4999", got)
	}
}

// A server that has not been told its state says nothing, so nobody forgets.
func TestNotReadyBeforeTheFirstPublish(t *testing.T) {
	cp := newControl(t)
	agent := run(t, asAgent(cp.path))
	cp.connected(1)
	agent.store.Subscribe(func(d mesh.Delta) {
		if len(d.Upserts) > 0 && agent.Status().Connected {
			return
		}
		t.Errorf("commit %+v", d)
	})
	if agent.Status().Ready {
		t.Fatal("ready before the control plane had anything to say")
	}
	cp.publish(upserts([]mesh.Resource{workload("a", "1")}))
	agent.ready()
	if !agent.has(mesh.KindWorkload, "shop/a") {
		t.Fatal("ready without the first state")
	}
}

func TestFollowsReferences(t *testing.T) {
	cp := newControl(t)
	a, b := newGateway("a", "x", "y"), newGateway("b", "y", "z")
	service := &mesh.Listener{
		Name: "service/shop/web/80", Type: mesh.ListenerService, Parent: mesh.Name{Namespace: "shop", Name: "web"}, Port: 80,
		Chains:         []mesh.Chain{{RouteTable: "service/shop/web/80", Default: []mesh.WeightedCluster{{Cluster: clusterName("web"), Weight: 1}}}},
		ConsumerTables: map[string]string{"other": "service/shop/web/80/@other"},
	}
	cp.publish(upserts(a.all(), b.all(), []mesh.Resource{service, route("service/shop/web/80", "web"), route("service/shop/web/80/@other", "v")},
		backend("x", "10.0.0.1:1"), backend("y", "10.0.0.2:1"), backend("z", "10.0.0.3:1"), backend("unused", "10.0.0.4:1"),
		backend("web", "10.0.0.5:1"), backend("v", "10.0.0.6:1")))
	proxy := run(t, asProxy(cp.path))
	proxy.ready()
	x, y, z, web, v := clusterName("x"), clusterName("y"), clusterName("z"), clusterName("web"), clusterName("v")
	check := func(kind mesh.Kind, want ...string) {
		t.Helper()
		if !proxy.has(kind, want...) {
			t.Fatalf("%s: %v, want %v", kind, proxy.keys(kind), want)
		}
	}
	check(mesh.KindListener, a.listener.Name, b.listener.Name)
	check(mesh.KindVirtualHost, a.host.Key(), b.host.Key())
	check(mesh.KindCertificate, "shop/a-cert", "shop/b-cert")
	check(mesh.KindCluster, x, y, z)
	check(mesh.KindClusterEndpoints, x, y, z)

	// A wanted listener comes with all that belongs to it, and Wait sees to that.
	proxy.Want(mesh.KindListener, service.Name)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := proxy.Wait(ctx, mesh.KindListener, service.Name); err != nil {
		t.Fatal(err)
	}
	check(mesh.KindListener, a.listener.Name, b.listener.Name, service.Name)
	check(mesh.KindCluster, v, web, x, y, z)
	check(mesh.KindClusterEndpoints, v, web, x, y, z)

	// What nothing refers to any more goes; what something still does stays.
	proxy.Forget(mesh.KindListener, service.Name)
	cp.publish(mesh.Delta{Removes: removes(a.all()...)})
	proxy.until("only b's closure", func() bool {
		return proxy.has(mesh.KindListener, b.listener.Name) && proxy.has(mesh.KindVirtualHost, b.host.Key()) &&
			proxy.has(mesh.KindCertificate, "shop/b-cert") && proxy.has(mesh.KindCluster, y, z) && proxy.has(mesh.KindClusterEndpoints, y, z)
	})
	// And the server does not send what nobody asks for.
	cp.until("y and z alone are subscribed to", func(k server.KindStatus) bool {
		return (k.Kind != mesh.KindCluster && k.Kind != mesh.KindClusterEndpoints) || k.Names == 2
	})
	before := cp.sent("")
	cp.publish(upserts(backend("x", "10.0.9.9:1"), backend("web", "10.0.9.9:1"), backend("y", "10.0.9.9:1")))
	proxy.until("y's new endpoint", func() bool {
		e, _ := proxy.store.Get(mesh.KindClusterEndpoints, y).(*mesh.ClusterEndpoints)
		return e.Endpoints[0].AddrPort.Addr() == netip.MustParseAddr("10.0.9.9")
	})
	if n := cp.sent("") - before; n != 1 {
		t.Fatalf("%v resources sent, want y's endpoints alone", n)
	}
	cp.publish(mesh.Delta{Removes: removes(b.listener)})
	proxy.until("nothing", func() bool {
		return proxy.has(mesh.KindListener) && proxy.has(mesh.KindVirtualHost) && proxy.has(mesh.KindCluster) && proxy.has(mesh.KindClusterEndpoints) && proxy.has(mesh.KindCertificate)
	})
}

func TestWait(t *testing.T) {
	cp := newControl(t)
	cp.publish(upserts(newGateway("a", "absent").all()))
	proxy := run(t, func(c *Config) { c.Target, c.FollowReferences = cp.path, true })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := proxy.Wait(ctx, mesh.KindListener, "service/a/b/1"); !errors.Is(err, ErrNotWanted) {
		t.Fatalf("error %v, want ErrNotWanted", err)
	}
	proxy.Want(mesh.KindListener, "service/a/b/1") // does not exist
	if err := proxy.Wait(ctx, mesh.KindListener, "service/a/b/1"); err != nil {
		t.Fatal(err)
	}
	proxy.Want(mesh.KindListener, "gateway/*") // refers to a cluster that does not exist
	if err := proxy.Wait(ctx, mesh.KindListener, "gateway/shop/a/443"); err != nil {
		t.Fatal(err)
	}
	if proxy.store.Listener("gateway/shop/a/443") == nil {
		t.Fatal("the listener is not in the store after Wait")
	}
	cp.stop()
	proxy.Want(mesh.KindListener, "service/a/c/1")
	gone, cancelGone := context.WithCancel(ctx)
	cancelGone()
	if err := proxy.Wait(gone, mesh.KindListener, "service/a/c/1"); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want the context's", err)
	}
}

func TestWantDoesNotAllocate(t *testing.T) {
	proxy := run(t, func(c *Config) { c.Target = filepath.Join(t.TempDir(), "none") })
	key := "service/shop/web/80"
	proxy.Want(mesh.KindListener, key)
	if n := testing.AllocsPerRun(100, func() { proxy.Want(mesh.KindListener, key) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

// A bad resource is refused alone, reported by name, and the last good one stays.
func TestBadResourceIsRefusedAlone(t *testing.T) {
	cp := newControl(t)
	cp.publish(upserts([]mesh.Resource{workload("good", "1"), workload("bad", "1"), workload("worse", "refuse")}))
	agent := run(t, func(c *Config) {
		asAgent(cp.path)(c)
		c.Validate = func(r mesh.Resource) error {
			if w, ok := r.(*mesh.Workload); ok && w.Node == "refuse" {
				return errors.New("node is refused")
			}
			return nil
		}
	})
	agent.ready() // a refused resource keeps nobody waiting
	cp.publish(upserts([]mesh.Resource{workload("good", "2"), workload("bad", "refuse")}))
	if got, want := <-cp.nacks, "agent shop/worse: workload shop/worse: node is refused"; got != want {
		t.Fatalf("nack %q, want %q", got, want)
	}
	if got, want := <-cp.nacks, "agent shop/bad: workload shop/bad: node is refused"; got != want {
		t.Fatalf("nack %q, want %q", got, want)
	}
	name := func(n string) mesh.Name { return mesh.Name{Namespace: "shop", Name: n} }
	if w := agent.store.Workload(name("good")); w == nil || w.Node != "2" {
		t.Fatalf("the good one beside it is %+v", w)
	}
	if w := agent.store.Workload(name("bad")); w == nil || w.Node != "1" {
		t.Fatalf("the last good version is %+v", w)
	}
	if agent.store.Workload(name("worse")) != nil {
		t.Fatal("a resource that was never good is in the store")
	}
	rejected := map[string]bool{}
	for _, r := range agent.Resources() {
		if r.Rejected != "" {
			rejected[r.Key] = r.Version != ""
		}
	}
	if !maps.Equal(rejected, map[string]bool{"shop/bad": true, "shop/worse": false}) {
		t.Fatalf("rejected: %v", rejected)
	}
	// Both sides agree on who has what.
	for _, c := range cp.server.Status().Clients {
		for _, k := range c.Kinds {
			if k.Kind == mesh.KindWorkload && (k.Acked != 1 || len(k.Rejected) != 2) {
				t.Fatalf("server's book: %+v", k)
			}
		}
	}
	// After a reconnect it is refused again, and a good version clears it.
	cp.stop()
	cp.start()
	cp.publish(upserts([]mesh.Resource{workload("good", "2"), workload("bad", "refuse"), workload("worse", "1")}))
	if got, want := <-cp.nacks, "agent shop/bad: workload shop/bad: node is refused"; got != want {
		t.Fatalf("nack %q, want %q", got, want)
	}
	cp.publish(upserts([]mesh.Resource{workload("bad", "3")}))
	agent.until("the good version", func() bool { return agent.store.Workload(name("bad")).Node == "3" })
	if s := agent.Status(); s.Rejected != 0 {
		t.Fatalf("status %+v", s)
	}
}

// A route that moves to a new cluster is held back until the cluster and its
// endpoints are there, and the old cluster stays as long.
func TestMakeBeforeBreak(t *testing.T) {
	cp := newControl(t)
	g := newGateway("a", "old")
	cp.publish(upserts(g.all(), backend("old", "10.0.0.1:1")))
	proxy := run(t, asProxy(cp.path))
	proxy.store.Subscribe(func(mesh.Delta) {
		if text := dangling(proxy.store); text != "" {
			t.Error(text)
		}
	})
	proxy.ready()
	for i := range 50 {
		from, to := []string{"old", "new"}[i%2], []string{"new", "old"}[i%2]
		d := upserts(backend(to, "10.0.0.2:1"), []mesh.Resource{route(g.host.Table, to)})
		d.Removes = removes(backend(from, "10.0.0.1:1")...)
		cp.publish(d)
		proxy.until("the move", func() bool { return proxy.has(mesh.KindCluster, clusterName(to)) })
	}
}

// dangling returns the first reference in a store to what is not in it.
func dangling(s *store.Store) (text string) {
	for _, kind := range []mesh.Kind{mesh.KindListener, mesh.KindVirtualHost, mesh.KindCluster} {
		s.Range(kind, func(r mesh.Resource) bool {
			for _, ref := range references(r) {
				if _, pattern := nametree.Prefix(ref.Key); !pattern && s.Get(ref.Kind, ref.Key) == nil {
					text = fmt.Sprintf("%s %s refers to %s %s, which is not there", kind, r.Key(), ref.Kind, ref.Key)
				}
			}
			return text == ""
		})
	}
	return text
}

func TestRestartOfTheServer(t *testing.T) {
	cp := newControl(t)
	state := upserts(newGateway("a", "x").all(), backend("x", "10.0.0.1:1"), []mesh.Resource{workload("same", "1"), workload("gone", "1"), workload("changed", "1")})
	cp.publish(state)
	proxy, agent := run(t, asProxy(cp.path)), run(t, asAgent(cp.path))
	proxy.ready()
	agent.ready()
	cp.stop()
	cp.start()
	// The server is up and knows nothing yet: nobody may take that for an empty mesh.
	state.Upserts = slices.DeleteFunc(state.Upserts, func(r mesh.Resource) bool { return r.Key() == "shop/gone" || r.Key() == "shop/changed" })
	state.Upserts = append(state.Upserts, workload("changed", "2"))
	removed := map[mesh.Ref]bool{}
	var mu sync.Mutex
	for _, n := range []*node{proxy, agent} {
		n.store.Subscribe(func(d mesh.Delta) {
			mu.Lock()
			defer mu.Unlock()
			for _, ref := range d.Removes {
				removed[ref] = true
			}
		})
	}
	cp.connected(2)
	cp.publish(state)
	for _, n := range []*node{proxy, agent} {
		n.until("the new state", func() bool {
			w := n.store.Workload(mesh.Name{Namespace: "shop", Name: "changed"})
			return w.Node == "2" && n.has(mesh.KindWorkload, "shop/changed", "shop/same")
		})
	}
	mu.Lock()
	defer mu.Unlock()
	if want := (map[mesh.Ref]bool{{Kind: mesh.KindWorkload, Key: "shop/gone"}: true}); !maps.Equal(removed, want) {
		t.Errorf("removed %v, want %v", removed, want)
	}
	if n := cp.sent(""); n != 2 {
		t.Errorf("%v resources sent after the restart, want the changed workload twice", n)
	}
}

// With random publishes and restarts, every store ends equal to the server's view,
// and a proxy's store is whole at every moment.
func TestRandomChangesConverge(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			converge(t, rand.New(rand.NewPCG(seed, 7)))
		})
	}
}

func converge(t *testing.T, r *rand.Rand) {
	cp := newControl(t)
	dir := t.TempDir()
	model := map[mesh.Ref]mesh.Resource{}
	services := []string{"s0", "s1", "s2", "s3", "s4", "s5"}
	// step makes a change that leaves no reference without its target.
	step := func() mesh.Delta {
		var d mesh.Delta
		put := func(list ...mesh.Resource) {
			for _, e := range list {
				model[mesh.Ref{Kind: e.Kind(), Key: e.Key()}] = e
				d.Upserts = append(d.Upserts, e)
			}
		}
		for range 1 + r.IntN(4) {
			name := fmt.Sprint("g", r.IntN(4))
			switch r.IntN(4) {
			case 0:
				put(workload(fmt.Sprint("w", r.IntN(20)), fmt.Sprint("n", r.IntN(3))))
			case 1:
				for ref := range model {
					if ref.Kind == mesh.KindWorkload {
						delete(model, ref)
						d.Removes = append(d.Removes, ref)
						d.Upserts = slices.DeleteFunc(d.Upserts, func(e mesh.Resource) bool { return e.Kind() == ref.Kind && e.Key() == ref.Key })
						break
					}
				}
			default:
				var to []string
				for range 1 + r.IntN(3) {
					to = append(to, services[r.IntN(len(services))])
				}
				for _, s := range to {
					put(backend(s, fmt.Sprintf("10.0.0.%d:80", r.IntN(250)))...)
				}
				g := newGateway(name, to...)
				g.certificate.ChainPEM = fmt.Appendf(nil, "chain %d", r.IntN(3))
				put(g.all()...)
			}
		}
		if r.IntN(5) == 0 { // a gateway goes
			g := newGateway(fmt.Sprint("g", r.IntN(4)))
			for _, e := range g.all() {
				ref := mesh.Ref{Kind: e.Kind(), Key: e.Key()}
				delete(model, ref)
				d.Removes = append(d.Removes, ref)
				d.Upserts = slices.DeleteFunc(d.Upserts, func(e mesh.Resource) bool { return e.Kind() == ref.Kind && e.Key() == ref.Key })
			}
		}
		used := map[string]bool{}
		for _, e := range model {
			for _, ref := range references(e) {
				used[ref.Key] = used[ref.Key] || ref.Kind == mesh.KindCluster
			}
		}
		for _, s := range services { // a cluster that nothing uses goes
			name := clusterName(s)
			if ref := (mesh.Ref{Kind: mesh.KindCluster, Key: name}); !used[name] && model[ref] != nil {
				delete(model, ref)
				d.Removes = append(d.Removes, ref, mesh.Ref{Kind: mesh.KindClusterEndpoints, Key: name})
				delete(model, mesh.Ref{Kind: mesh.KindClusterEndpoints, Key: name})
				d.Upserts = slices.DeleteFunc(d.Upserts, func(e mesh.Resource) bool { return e.Key() == name })
			}
		}
		return d
	}
	proxy := run(t, func(c *Config) { asProxy(cp.path)(c); c.StateDir = filepath.Join(dir, "proxy") })
	proxy.store.Subscribe(func(mesh.Delta) {
		if text := dangling(proxy.store); text != "" {
			t.Error(text)
		}
	})
	agent := run(t, func(c *Config) { asAgent(cp.path)(c); c.StateDir = filepath.Join(dir, "agent") })
	for range 150 {
		d := step()
		switch r.IntN(30) {
		case 0: // the server starts again with all that has changed meanwhile
			cp.stop()
			cp.start()
			all := mesh.Delta{Upserts: slices.Collect(maps.Values(model))}
			cp.publish(all)
		case 1: // the agent starts again, from its disk
			agent.stop()
			cp.publish(d)
			agent = run(t, func(c *Config) { asAgent(cp.path)(c); c.StateDir = filepath.Join(dir, "agent") })
		default:
			cp.publish(d)
		}
	}
	// A last one that everybody sees.
	last := workload("last", "n")
	model[mesh.Ref{Kind: last.Kind(), Key: last.Key()}] = last
	cp.publish(upserts([]mesh.Resource{last}))
	want := map[string]map[mesh.Ref]mesh.Resource{"proxy": model, "agent": {}}
	for ref, e := range model {
		if ref.Kind == mesh.KindWorkload || ref.Kind == mesh.KindListener {
			want["agent"][ref] = e
		}
	}
	for role, n := range map[string]*node{"proxy": proxy, "agent": agent} {
		what := new(lazy)
		n.until(what, func() bool {
			*what = lazy(difference(n.store, want[role]))
			return *what == ""
		})
		if s := n.Status(); s.Warming != 0 || s.Rejected != 0 {
			t.Errorf("%s: %+v", role, s)
		}
	}
}

// lazy is a text that is read when it is printed.
type lazy string

func (l *lazy) String() string { return string(*l) }

// difference says where a store differs from what it should hold.
func difference(s *store.Store, want map[mesh.Ref]mesh.Resource) string {
	seen := 0
	for _, kind := range mesh.Kinds {
		text := ""
		s.Range(kind, func(e mesh.Resource) bool {
			seen++
			if w := want[mesh.Ref{Kind: kind, Key: e.Key()}]; !reflect.DeepEqual(e, w) {
				text = fmt.Sprintf("%s %s is %+v, not %+v", kind, e.Key(), e, w)
			}
			return text == ""
		})
		if text != "" {
			return text
		}
	}
	if seen != len(want) {
		return fmt.Sprintf("%d resources, not %d", seen, len(want))
	}
	return ""
}

func TestStartWithoutControlPlane(t *testing.T) {
	cp := newControl(t)
	g := newGateway("a", "x")
	service := &mesh.Listener{Name: "service/shop/web/80", Type: mesh.ListenerService, Parent: mesh.Name{Namespace: "shop", Name: "web"}, Port: 80,
		Chains: []mesh.Chain{{RouteTable: "service/shop/web/80"}}}
	cp.publish(upserts(g.all(), backend("x", "10.0.0.1:1"), backend("y", "10.0.0.2:1"), []mesh.Resource{service, route("service/shop/web/80", "y"), workload("w", "n")}))
	dir := t.TempDir()
	config := func(c *Config) { asProxy(cp.path)(c); c.StateDir = dir }
	first := run(t, config)
	first.ready()
	first.Want(mesh.KindListener, service.Name)
	first.until("the wanted listener", func() bool { return first.store.Listener(service.Name) != nil })
	if first.store.Get(mesh.KindCertificate, g.certificate.Name) == nil {
		t.Fatal("no certificate arrived")
	}
	first.stop()
	cp.stop()

	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, g.certificate.KeyPEM) {
			t.Fatalf("%s holds the private key", f.Name())
		}
		if info, _ := f.Info(); info.Mode().Perm() != 0o600 {
			t.Fatalf("%s has mode %v", f.Name(), info.Mode())
		}
	}

	second := run(t, config)
	second.ready()
	if s := second.Status(); !s.FromDisk || s.Connected {
		t.Fatalf("status %+v", s)
	}
	for _, kind := range mesh.Kinds {
		want := first.keys(kind)
		if kind == mesh.KindCertificate {
			want = nil
		}
		if !second.has(kind, want...) {
			t.Fatalf("%s: %v from disk, want %v", kind, second.keys(kind), want)
		}
	}
	// When the control plane is back, only what is not on disk is sent.
	cp.start()
	cp.publish(upserts(g.all(), backend("x", "10.0.0.1:1"), backend("y", "10.0.0.9:1"), []mesh.Resource{service, route("service/shop/web/80", "y")}))
	second.until("the certificate, the change and the removal", func() bool {
		e, _ := second.store.Get(mesh.KindClusterEndpoints, clusterName("y")).(*mesh.ClusterEndpoints)
		return second.has(mesh.KindCertificate, g.certificate.Name) && second.has(mesh.KindWorkload) && e.Endpoints[0].AddrPort.Addr().String() == "10.0.0.9"
	})
	if n := cp.sent(""); n != 2 {
		t.Fatalf("%v resources sent, want the certificate and y's endpoints", n)
	}
	if s := second.Status(); s.FromDisk || !s.Connected {
		t.Fatalf("status %+v", s)
	}
}

func TestDamagedState(t *testing.T) {
	cp := newControl(t)
	cp.publish(upserts([]mesh.Resource{workload("a", "1"), workload("b", "1"), workload("c", "1")}))
	dir := t.TempDir()
	config := func(c *Config) { asAgent(cp.path)(c); c.StateDir = dir }
	first := run(t, config)
	first.ready()
	first.stop()
	path := filepath.Join(dir, "state")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"empty":          nil,
		"another header": []byte("something else entirely\n"),
		"cut short":      whole[:len(whole)-3],
		"flipped":        append(slices.Clone(whole[:len(whole)/2]), bytes.Repeat([]byte{0xff}, len(whole)/2)...),
		"all wrong":      bytes.Repeat([]byte{0xff}, 1000),
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			n := run(t, config)
			n.ready()
			n.until("all of the state", func() bool { return n.has(mesh.KindWorkload, "shop/a", "shop/b", "shop/c") })
			n.stop()
			// And the file is sound again.
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if records, _, err := readState(data); err != nil || len(records) != 4 {
				t.Fatalf("%d records (%v), want three workloads and the mark", len(records), err)
			}
		})
	}
}

// A state that was never whole does not make a client ready.
func TestPartOfAStateIsNotReady(t *testing.T) {
	dir := t.TempDir()
	packed := mustEncode(t, workload("a", "1"))
	data := []byte(stateHeader)
	data = (&record{op: opPut, ref: mesh.Ref{Kind: mesh.KindWorkload, Key: "shop/a"}, version: "v", value: packed}).append(data)
	if err := os.WriteFile(filepath.Join(dir, "state"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	n := run(t, func(c *Config) { asAgent(filepath.Join(dir, "none"))(c); c.StateDir = dir })
	n.until("what there is", func() bool { return n.has(mesh.KindWorkload, "shop/a") })
	if n.Status().Ready {
		t.Fatal("ready without a whole state")
	}
}

// The file grows with changes, not with the state, and not for ever.
func TestStateFileCostsByTheChange(t *testing.T) {
	cp := newControl(t)
	var d mesh.Delta
	for i := range 3000 {
		d.Upserts = append(d.Upserts, workload(fmt.Sprintf("w%d", i), "n"))
	}
	cp.publish(d)
	dir := t.TempDir()
	n := run(t, func(c *Config) { asAgent(cp.path)(c); c.StateDir = dir })
	n.ready()
	size := func() int64 {
		info, err := os.Stat(filepath.Join(dir, "state"))
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	change := func(name, on string) {
		cp.publish(upserts([]mesh.Resource{workload(name, on)}))
		n.until("the change", func() bool { return n.store.Workload(mesh.Name{Namespace: "shop", Name: name}).Node == on })
		n.Want(mesh.KindWorkload, "shop/w1")
		if err := n.Wait(ctx, mesh.KindWorkload, "shop/w1"); err != nil { // what was committed before is written
			t.Fatal(err)
		}
	}
	change("w1", "warm")
	before := size()
	change("w1", "node-2")
	if grown := size() - before; grown <= 0 || grown > 200 {
		t.Fatalf("the file grew by %d bytes for one workload", grown)
	}
	whole := size()
	long := strings.Repeat("x", 100_000)
	for i := range 40 { // 4 MB
		change("w2", long+fmt.Sprint(i))
		if limit := 2*(whole+100_100) + slackBytes + 100_100; size() > limit {
			t.Fatalf("the file has %d bytes, more than %d", size(), limit)
		}
	}
}

// Two processes may share the directory for a while, as when one replaces the
// other; the one that came first writes.
func TestStateIsWrittenByOne(t *testing.T) {
	dir := t.TempDir()
	open := func() *stateFile {
		f, err := openState(dir)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	one, two := open(), open()
	records := []record{{op: opReady}}
	all := func() ([]record, error) { return records, nil }
	if err := one.write(records, all); err != nil {
		t.Fatal(err)
	}
	if err := two.write(records, all); err == nil {
		t.Fatal("both write")
	}
	if got, err := two.read(); err != nil || len(got) != 1 {
		t.Fatalf("read %v (%v)", got, err)
	}
	if err := one.close(); err != nil {
		t.Fatal(err)
	}
	if err := two.write(records, all); err != nil {
		t.Fatalf("the other has gone: %v", err)
	}
	if err := two.close(); err != nil {
		t.Fatal(err)
	}
}

func TestUntrustedControlPlane(t *testing.T) {
	client, other := net.Pipe()
	defer client.Close()
	defer other.Close()
	if err := trusted(peerOf(65533)); err == nil && os.Geteuid() != 65533 {
		t.Fatal("a socket of user 65533 was trusted")
	}
	if err := trusted(peerOf(0)); err != nil {
		t.Fatal(err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{Target: "x", Node: "n", Role: RoleAgent, Store: store.New(), Logger: quiet}
	for name, change := range map[string]func(*Config){
		"target":     func(c *Config) { c.Target = "" },
		"node":       func(c *Config) { c.Node = "" },
		"role":       func(c *Config) { c.Role = "operator" },
		"store":      func(c *Config) { c.Store = nil },
		"logger":     func(c *Config) { c.Logger = nil },
		"registerer": func(c *Config) { c.Registerer = nil },
		"kind":       func(c *Config) { c.Initial = map[mesh.Kind][]string{"x": {"*"}} },
	} {
		c := good
		c.Registerer = prometheus.NewRegistry()
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestMetrics(t *testing.T) {
	cp := newControl(t)
	cp.publish(upserts([]mesh.Resource{workload("a", "1")}))
	reg := prometheus.NewRegistry()
	n := run(t, func(c *Config) { asAgent(cp.path)(c); c.Registerer = reg })
	n.ready()
	n.stop()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			got[f.GetName()] += m.GetGauge().GetValue()
		}
	}
	if got["sluice_xds_client_connected"] != 1 || got["sluice_xds_client_resources"] != 1 || got["sluice_xds_client_warming"] != 0 {
		t.Fatalf("metrics %v", got)
	}
}
