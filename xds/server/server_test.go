package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sluice-mesh/sluice/mesh"
	sluicev1 "github.com/sluice-mesh/sluice/xds/api/sluice/v1"
	"github.com/sluice-mesh/sluice/xds/codec"
	"github.com/sluice-mesh/sluice/xds/peercred"
)

// patience ends a test that would wait for ever; no test depends on its length.
const patience = 30 * time.Second

func newServer(t testing.TB, change func(*Config)) *Server {
	t.Helper()
	cfg := Config{Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Registerer: prometheus.NewRegistry()}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serve serves on a socket of its own and returns its path.
func serve(t testing.TB, s *Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "xds.sock")
	l, err := Listen(path, -1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return path
}

// raw is a client that does just what the test says.
type raw struct {
	t      testing.TB
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	node   *corev3.Node
}

func dial(t testing.TB, path string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+path,
		grpc.WithContextDialer(func(ctx context.Context, p string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", p)
		}),
		grpc.WithTransportCredentials(peercred.Credentials(nil)), grpc.WithAuthority("x"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func connect(t testing.TB, path, role string, features ...string) *raw {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(dial(t, path)).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &raw{t: t, stream: stream, node: &corev3.Node{
		Id:             "node-1",
		Metadata:       &structpb.Struct{Fields: map[string]*structpb.Value{"role": structpb.NewStringValue(role)}},
		ClientFeatures: features,
	}}
}

func (r *raw) send(kind mesh.Kind, change func(*discoveryv3.DeltaDiscoveryRequest)) {
	r.t.Helper()
	request := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: codec.TypeURL(kind), Node: r.node}
	r.node = nil
	change(request)
	if err := r.stream.Send(request); err != nil {
		r.t.Fatal(err)
	}
}

func (r *raw) subscribe(kind mesh.Kind, names ...string) {
	r.t.Helper()
	r.send(kind, func(q *discoveryv3.DeltaDiscoveryRequest) { q.ResourceNamesSubscribe = names })
}

func (r *raw) unsubscribe(kind mesh.Kind, names ...string) {
	r.t.Helper()
	r.send(kind, func(q *discoveryv3.DeltaDiscoveryRequest) { q.ResourceNamesUnsubscribe = names })
}

func (r *raw) ack(response *discoveryv3.DeltaDiscoveryResponse) {
	r.t.Helper()
	kind, _ := codec.KindOf(response.TypeUrl)
	r.send(kind, func(q *discoveryv3.DeltaDiscoveryRequest) { q.ResponseNonce = response.Nonce })
}

// next returns the next response and what it says in one line: the kind, then
// "+name" for resources and "-name" for removals, sorted.
func (r *raw) next() (*discoveryv3.DeltaDiscoveryResponse, string) {
	r.t.Helper()
	response, err := r.stream.Recv()
	if err != nil {
		r.t.Fatal(err)
	}
	kind, ok := codec.KindOf(response.TypeUrl)
	if !ok || response.Nonce == "" {
		r.t.Fatalf("response of type %q with nonce %q", response.TypeUrl, response.Nonce)
	}
	var words []string
	for _, e := range response.Resources {
		words = append(words, "+"+e.Name)
		if e.Resource != nil && (e.Resource.TypeUrl != response.TypeUrl || e.Version == "") {
			r.t.Fatalf("resource %s of type %q, version %q", e.Name, e.Resource.TypeUrl, e.Version)
		}
	}
	for _, name := range response.RemovedResources {
		words = append(words, "-"+name)
	}
	slices.Sort(words)
	return response, strings.Join(append([]string{string(kind)}, words...), " ")
}

// expect takes a response, acknowledges it, and wants it to say a line.
func (r *raw) expect(want string) *discoveryv3.DeltaDiscoveryResponse {
	r.t.Helper()
	response, got := r.next()
	if got != want {
		r.t.Fatalf("response %q, want %q", got, want)
	}
	r.ack(response)
	return response
}

func (r *raw) end() error {
	for {
		if _, err := r.stream.Recv(); err != nil {
			return err
		}
	}
}

func workload(name, node string) *mesh.Workload {
	return &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: name}, Node: node}
}

func cluster(service string, protocol mesh.AppProtocol) *mesh.Cluster {
	return &mesh.Cluster{Name: "shop/" + service + "/80", Service: mesh.Name{Namespace: "shop", Name: service}, Port: 80, Protocol: protocol}
}

func certificate(name string) *mesh.Certificate {
	return &mesh.Certificate{Name: name, ChainPEM: []byte("chain"), KeyPEM: []byte("key")}
}

func listener(kind string, service string) *mesh.Listener {
	l := &mesh.Listener{Name: kind + "/shop/" + service + "/80", Type: mesh.ListenerGateway, Parent: mesh.Name{Namespace: "shop", Name: service}, Port: 80}
	if kind == "service" {
		l.Type = mesh.ListenerService
	}
	return l
}

func virtualHost(table, hostname string, status int) *mesh.VirtualHost {
	return &mesh.VirtualHost{Table: table, Hostname: hostname, Rules: []mesh.Rule{{
		RouteKind: "HTTPRoute", Route: mesh.Name{Namespace: "shop", Name: "r"},
		Filters: []mesh.Filter{{Redirect: &mesh.Redirect{Status: status}}},
	}}}
}

func upserts(r ...mesh.Resource) mesh.Delta { return mesh.Delta{Upserts: r} }

func removes(r ...mesh.Resource) mesh.Delta {
	var d mesh.Delta
	for _, e := range r {
		d.Removes = append(d.Removes, mesh.Ref{Kind: e.Kind(), Key: e.Key()})
	}
	return d
}

func publish(t testing.TB, s *Server, d mesh.Delta) {
	t.Helper()
	if err := s.Publish(d); err != nil {
		t.Fatal(err)
	}
}

// One push has an order in which nothing refers to what is not there.
func TestOrderOfAPush(t *testing.T) {
	s := newServer(t, nil)
	path := serve(t, s)
	all := []mesh.Resource{
		&mesh.Service{Name: mesh.Name{Namespace: "shop", Name: "web"}}, workload("w", "n"), listener("gateway", "g"),
		virtualHost("t", "a", 301), certificate("shop/c"), &mesh.ClusterEndpoints{Cluster: "shop/web/80"}, cluster("web", ""),
	}
	r := connect(t, path, "proxy")
	for _, e := range all {
		r.subscribe(e.Kind(), e.Key())
	}
	opened(t, s, mesh.Kinds...)
	publish(t, s, mesh.Delta{})
	for _, want := range []string{"cluster", "endpoints", "certificate", "virtualhost", "listener", "workload", "service"} {
		r.expect(want) // nothing yet
	}
	for _, want := range []string{
		"service -shop/web", "workload -shop/w", "listener -gateway/shop/g/80", "virtualhost -t/a", "certificate -shop/c",
		"endpoints -shop/web/80", "cluster -shop/web/80",
	} {
		r.expect(want) // asked for and absent
	}
	publish(t, s, upserts(all...))
	for _, want := range []string{
		"cluster +shop/web/80", "endpoints +shop/web/80", "certificate +shop/c", "virtualhost +t/a", "listener +gateway/shop/g/80",
		"workload +shop/w", "service +shop/web",
	} {
		r.expect(want)
	}
	publish(t, s, mesh.Delta{Upserts: []mesh.Resource{workload("w", "other")}, Removes: removes(all[0], all[2], all[6]).Removes})
	for _, want := range []string{"workload +shop/w", "service -shop/web", "listener -gateway/shop/g/80", "cluster -shop/web/80"} {
		r.expect(want)
	}
}

// A kind whose ACK is out holds back the kinds that may refer to it.
func TestLaterKindsWaitForTheAck(t *testing.T) {
	s := newServer(t, nil)
	path := serve(t, s)
	publish(t, s, mesh.Delta{})
	r := connect(t, path, "proxy", FeatureCollections)
	r.subscribe(mesh.KindCluster, "*")
	r.expect("cluster +*")
	r.subscribe(mesh.KindVirtualHost, "*")
	r.expect("virtualhost +*")

	publish(t, s, upserts(cluster("a", "")))
	first, line := r.next()
	if line != "cluster +shop/a/80" {
		t.Fatalf("response %q", line)
	}
	// Many changes gather into one response, which the virtual host must not overtake.
	for i := range 50 {
		publish(t, s, upserts(cluster("a", []mesh.AppProtocol{mesh.AppProtocolHTTP, mesh.AppProtocolTLS}[i%2]), cluster("b", "")))
	}
	publish(t, s, upserts(virtualHost("t", "a", 301)))
	r.ack(first)
	r.expect("cluster +shop/a/80 +shop/b/80")
	r.expect("virtualhost +t/a")
	// What came back to what the client has is not sent at all.
	second, _ := func() (*discoveryv3.DeltaDiscoveryResponse, string) {
		publish(t, s, upserts(cluster("c", "")))
		return r.next()
	}()
	publish(t, s, upserts(cluster("b", mesh.AppProtocolTCP)))
	publish(t, s, upserts(cluster("b", ""), cluster("d", "")))
	r.ack(second)
	r.expect("cluster +shop/d/80")
}

func TestAnOldNonceIsNoAck(t *testing.T) {
	acked := make(chan string, 10)
	s := newServer(t, func(c *Config) {
		c.OnAck = func(client Client, ref mesh.Ref, version string) {
			acked <- client.String() + " " + ref.Key + " " + version
		}
	})
	path := serve(t, s)
	publish(t, s, upserts(workload("a", "1")))
	r := connect(t, path, "agent")
	r.subscribe(mesh.KindWorkload, "shop/a")
	first, _ := r.next()
	r.send(mesh.KindWorkload, func(q *discoveryv3.DeltaDiscoveryRequest) { q.ResponseNonce = "stale" })
	r.subscribe(mesh.KindWorkload, "shop/b") // has no nonce: no ACK either
	until(t, s, "the request is read", func(clients []ClientStatus) bool { return clients[0].Kinds[0].Names == 2 })
	if k := s.Status().Clients[0].Kinds[0]; k.Acked != 0 {
		t.Fatalf("acked by an old nonce: %+v", k)
	}
	publish(t, s, upserts(workload("a", "2"))) // waits
	r.ack(first)
	if got, want := <-acked, "node-1/agent shop/a "+first.Resources[0].Version; got != want {
		t.Fatalf("acked %q, want %q", got, want)
	}
	second := r.expect("workload +shop/a")
	if second.Resources[0].Version == first.Resources[0].Version {
		t.Fatal("another content has the same version")
	}
	if got, want := <-acked, "node-1/agent shop/a "+second.Resources[0].Version; got != want {
		t.Fatalf("acked %q, want %q", got, want)
	}
	r.ack(first) // twice, and late
	r.expect("workload -shop/b")
	if got := <-acked; got != "node-1/agent shop/b " {
		t.Fatalf("acked %q, want the removal of shop/b", got)
	}
}

func TestNackNamesTheBadOnes(t *testing.T) {
	type event struct{ key, text string }
	nacked, acked := make(chan event, 10), make(chan event, 10)
	s := newServer(t, func(c *Config) {
		c.OnAck = func(_ Client, ref mesh.Ref, _ string) { acked <- event{key: ref.Key} }
		c.OnNack = func(_ Client, ref mesh.Ref, _, text string) { nacked <- event{ref.Key, text} }
	})
	path := serve(t, s)
	publish(t, s, upserts(workload("good", "1"), workload("bad", "1")))
	r := connect(t, path, "agent")
	r.subscribe(mesh.KindWorkload, "*")
	response, _ := r.next()
	details, err := anypb.New(&sluicev1.Rejections{Rejections: []*sluicev1.Rejection{{Name: "shop/bad", Text: "too bad"}}})
	if err != nil {
		t.Fatal(err)
	}
	r.send(mesh.KindWorkload, func(q *discoveryv3.DeltaDiscoveryRequest) {
		q.ResponseNonce = response.Nonce
		q.ErrorDetail = &status.Status{Code: int32(codes.InvalidArgument), Message: "1 refused", Details: []*anypb.Any{details}}
	})
	if got := <-nacked; got != (event{"shop/bad", "too bad"}) {
		t.Fatalf("nack %v", got)
	}
	if got := <-acked; got.key != "shop/good" {
		t.Fatalf("ack %v", got)
	}
	kind := s.Status().Clients[0].Kinds[0]
	if kind.Sent != 2 || kind.Acked != 1 || len(kind.Rejected) != 1 || kind.Rejected[0].Key != "shop/bad" || kind.Rejected[0].Text != "too bad" {
		t.Fatalf("status %+v", kind)
	}
	for _, v := range s.ClientVersions(Client{Node: "node-1", Role: "agent"}) {
		if v.Acked != (v.Key == "shop/good") || (v.Rejected != "") != (v.Key == "shop/bad") {
			t.Fatalf("version %+v", v)
		}
	}
	// The refused version is not sent again; a new one is, and clears the book.
	publish(t, s, upserts(workload("good", "2")))
	r.expect("workload +shop/good")
	<-acked
	publish(t, s, upserts(workload("bad", "2")))
	r.expect("workload +shop/bad")
	<-acked
	if kind := s.Status().Clients[0].Kinds[0]; len(kind.Rejected) != 0 || kind.Acked != 2 {
		t.Fatalf("status %+v", kind)
	}
	// Without details, all of the response is refused.
	publish(t, s, upserts(workload("bad", "3"), workload("good", "3")))
	response, _ = r.next()
	r.send(mesh.KindWorkload, func(q *discoveryv3.DeltaDiscoveryRequest) {
		q.ResponseNonce = response.Nonce
		q.ErrorDetail = &status.Status{Code: int32(codes.InvalidArgument), Message: "all wrong"}
	})
	got := map[string]string{}
	for range 2 {
		e := <-nacked
		got[e.key] = e.text
	}
	if !maps.Equal(got, map[string]string{"shop/bad": "all wrong", "shop/good": "all wrong"}) {
		t.Fatalf("nacks %v", got)
	}
}

func TestReconnectResendsNothing(t *testing.T) {
	s := newServer(t, nil)
	path := serve(t, s)
	publish(t, s, upserts(workload("same", "1"), workload("new", "1"), workload("changed", "2"), workload("other", "1")))
	versions := map[string]string{"shop/gone": "x", "shop/changed": "x", "elsewhere/x": "x"}
	for _, v := range s.Resources(mesh.KindWorkload) {
		if v.Key == "shop/same" || v.Key == "shop/other" {
			versions[v.Key] = v.Version
		}
	}
	t.Run("pattern", func(t *testing.T) {
		r := connect(t, path, "agent", FeatureCollections)
		r.send(mesh.KindWorkload, func(q *discoveryv3.DeltaDiscoveryRequest) {
			q.ResourceNamesSubscribe, q.InitialResourceVersions = []string{"shop/*"}, versions
		})
		r.expect("workload +shop/* +shop/changed +shop/new")
		r.expect("workload -shop/gone")
	})
	t.Run("names", func(t *testing.T) {
		r := connect(t, path, "agent")
		r.send(mesh.KindWorkload, func(q *discoveryv3.DeltaDiscoveryRequest) {
			q.ResourceNamesSubscribe, q.InitialResourceVersions = []string{"shop/gone", "shop/same", "shop/changed", "shop/absent"}, versions
		})
		r.expect("workload +shop/changed")
		r.expect("workload -shop/absent -shop/gone")
		// What it named without subscribing to it, the client no longer has.
		r.subscribe(mesh.KindWorkload, "shop/other")
		r.expect("workload +shop/other")
	})
	t.Run("before the server has its state", func(t *testing.T) {
		s := newServer(t, nil)
		r := connect(t, serve(t, s), "agent")
		r.send(mesh.KindWorkload, func(q *discoveryv3.DeltaDiscoveryRequest) {
			q.ResourceNamesSubscribe, q.InitialResourceVersions = []string{"*"}, versions
		})
		r.subscribe(mesh.KindWorkload, "shop/absent")
		until(t, s, "the requests are read", func(clients []ClientStatus) bool {
			return len(clients) == 1 && len(clients[0].Kinds) == 1 && clients[0].Kinds[0].Names == 1
		})
		publish(t, s, upserts(workload("same", "1"), workload("changed", "2"), workload("other", "1")))
		r.expect("workload +shop/changed")
		r.expect("workload -elsewhere/x -shop/absent -shop/gone")
	})
}

func TestPatterns(t *testing.T) {
	s := newServer(t, nil)
	path := serve(t, s)
	publish(t, s, upserts(virtualHost("gateway/a/b/80/x", "h", 301), virtualHost("gateway/a/b/80/x", "*", 301), virtualHost("gateway/a/bb/80", "h", 301)))
	r := connect(t, path, "proxy", FeatureCollections)
	r.subscribe(mesh.KindVirtualHost, "gateway/a/b/*")
	r.expect("virtualhost +gateway/a/b/* +gateway/a/b/80/x/_ +gateway/a/b/80/x/h")
	r.subscribe(mesh.KindVirtualHost, "gateway/none/*")
	r.expect("virtualhost +gateway/none/*")
	publish(t, s, mesh.Delta{
		Upserts: []mesh.Resource{virtualHost("gateway/none", "h", 301), virtualHost("gateway/a/bb/80", "h", 302)},
		Removes: removes(virtualHost("gateway/a/b/80/x", "h", 301)).Removes,
	})
	r.expect("virtualhost +gateway/none/h")
	r.expect("virtualhost -gateway/a/b/80/x/h")
	// A name that a pattern still covers is sent again when the name goes.
	r.subscribe(mesh.KindVirtualHost, "gateway/none/h")
	r.expect("virtualhost +gateway/none/h")
	r.unsubscribe(mesh.KindVirtualHost, "gateway/none/h")
	r.expect("virtualhost +gateway/none/h")
	r.unsubscribe(mesh.KindVirtualHost, "gateway/none/*")
	until(t, s, "the pattern is gone", func(clients []ClientStatus) bool { return len(clients[0].Kinds[0].Patterns) == 1 })
	publish(t, s, upserts(virtualHost("gateway/none", "h", 307), virtualHost("gateway/a/b/80/x", "*", 307)))
	r.expect("virtualhost +gateway/a/b/80/x/_")

	old := connect(t, path, "proxy") // knows no end marks
	old.subscribe(mesh.KindVirtualHost, "nothing/*")
	old.expect("virtualhost")
	old.expect("virtualhost -nothing/*")
	old.subscribe(mesh.KindVirtualHost, "gateway/none/*")
	old.expect("virtualhost +gateway/none/h")

	older := connect(t, path, "proxy") // and asks for all by naming nothing
	older.subscribe(mesh.KindVirtualHost)
	older.expect("virtualhost +gateway/a/b/80/x/_ +gateway/a/bb/80/h +gateway/none/h")
}

// A name that vanishes before it could be sent is answered for all the same.
func TestAnswerForWhatVanished(t *testing.T) {
	s := newServer(t, nil)
	path := serve(t, s)
	publish(t, s, upserts(workload("a", "1"), workload("b", "1")))
	r := connect(t, path, "agent")
	r.subscribe(mesh.KindWorkload, "shop/a")
	first, _ := r.next() // no ACK yet, so that shop/b waits
	r.subscribe(mesh.KindWorkload, "shop/b")
	r.subscribe(mesh.KindService, "shop/x") // handled after it
	opened(t, s, mesh.KindService)
	publish(t, s, removes(workload("b", "1")))
	r.ack(first)
	r.expect("service")
	got := []string{}
	for range 2 {
		response, line := r.next()
		r.ack(response)
		got = append(got, line)
	}
	slices.Sort(got)
	if want := []string{"service -shop/x", "workload -shop/b"}; !slices.Equal(got, want) {
		t.Fatalf("answers %q, want %q", got, want)
	}
}

func TestBigStateComesInPieces(t *testing.T) {
	s := newServer(t, nil)
	path := serve(t, s)
	const count = 20000
	var d mesh.Delta
	for i := range count {
		w := workload("w"+strconv.Itoa(i), "n")
		w.Labels = map[string]string{"pad": strings.Repeat("x", 200)}
		d.Upserts = append(d.Upserts, w)
	}
	publish(t, s, d)
	r := connect(t, path, "agent", FeatureCollections)
	r.subscribe(mesh.KindWorkload, "*")
	seen := map[string]bool{}
	for pieces := 0; ; pieces++ {
		response, _ := r.next()
		r.ack(response)
		if size := proto.Size(response); size > maxResponseBytes*3/2 {
			t.Fatalf("a response of %d bytes", size)
		}
		for _, e := range response.Resources {
			if seen[e.Name] {
				t.Fatalf("%s came twice", e.Name)
			}
			seen[e.Name] = true
		}
		if seen["*"] {
			if len(seen) != count+1 || pieces < 2 {
				t.Fatalf("the end mark came after %d of %d resources in %d pieces", len(seen)-1, count, pieces+1)
			}
			return
		}
	}
}

// A client that reads nothing delays nobody and makes the server hold no more than
// the names of what it lacks.
func TestSlowClient(t *testing.T) {
	s := newServer(t, nil)
	path := serve(t, s)
	publish(t, s, mesh.Delta{})
	slow, quick := connect(t, path, "agent", FeatureCollections), connect(t, path, "agent", FeatureCollections)
	slow.subscribe(mesh.KindWorkload, "*")
	quick.subscribe(mesh.KindWorkload, "*")
	quick.expect("workload +*")
	pad := strings.Repeat("x", 100_000)
	for i := range 200 { // 20 MB, more than any window takes
		w := workload("w"+strconv.Itoa(i%10), "n")
		w.Labels = map[string]string{"pad": pad, "i": strconv.Itoa(i)}
		publish(t, s, upserts(w))
		quick.expect("workload +shop/w" + strconv.Itoa(i%10))
	}
	for _, c := range s.Status().Clients {
		if k := c.Kinds[0]; k.Pending > 10 {
			t.Fatalf("%d names wait for a client that knows 10", k.Pending)
		}
	}
	// It then gets the last of each.
	seen := map[string]string{}
	for len(seen) < 11 {
		response, _ := slow.next()
		slow.ack(response)
		for _, e := range response.Resources {
			seen[e.Name] = e.Version
		}
	}
	for _, v := range s.Resources(mesh.KindWorkload) {
		if seen[v.Key] != v.Version {
			t.Fatalf("%s has version %s, want %s", v.Key, seen[v.Key], v.Version)
		}
	}
}

func TestUnencodableKeepsTheLastVersion(t *testing.T) {
	s := newServer(t, nil)
	publish(t, s, upserts(cluster("a", ""), cluster("b", "")))
	before := s.Resources(mesh.KindCluster)
	err := s.Publish(upserts(cluster("a", "smtp"), cluster("b", mesh.AppProtocolTLS)))
	var e *codec.Error
	if !errors.As(err, &e) || e.Key != "shop/a/80" {
		t.Fatalf("error %v, want one of shop/a/80", err)
	}
	after := s.Resources(mesh.KindCluster)
	if after[0] != before[0] || after[1] == before[1] {
		t.Fatalf("before %v, after %v", before, after)
	}
}

// until returns when the server has read so much that a condition holds.
func until(t *testing.T, s *Server, what string, f func([]ClientStatus) bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); runtime.Gosched() {
		if f(s.Status().Clients) {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

// opened returns when the only client's first requests of the kinds were handled.
func opened(t *testing.T, s *Server, kinds ...mesh.Kind) {
	t.Helper()
	until(t, s, "requests are read", func(clients []ClientStatus) bool {
		open := 0
		for _, c := range clients {
			for _, k := range c.Kinds {
				if slices.Contains(kinds, k.Kind) {
					open++
				}
			}
		}
		return open == len(kinds)
	})
}

func TestProtocolErrors(t *testing.T) {
	s := newServer(t, nil)
	path := serve(t, s)
	publish(t, s, mesh.Delta{})
	nobody := connect(t, path, "agent")
	nobody.node = nil
	nobody.subscribe(mesh.KindWorkload, "*")
	if err := nobody.end(); grpcstatus.Code(err) != codes.InvalidArgument {
		t.Errorf("a request without a node: %v", err)
	}
	unknown := connect(t, path, "agent")
	unknown.send(mesh.KindWorkload, func(q *discoveryv3.DeltaDiscoveryRequest) { q.TypeUrl = "type.googleapis.com/x" })
	if err := unknown.end(); grpcstatus.Code(err) != codes.InvalidArgument {
		t.Errorf("an unknown type: %v", err)
	}
	greedy := connect(t, path, "agent")
	names := make([]string, maxSubscriptions+1)
	for i := range names {
		names[i] = strconv.Itoa(i)
	}
	greedy.subscribe(mesh.KindWorkload, names...)
	if err := greedy.end(); grpcstatus.Code(err) != codes.ResourceExhausted {
		t.Errorf("too many subscriptions: %v", err)
	}
	whole, err := discoveryv3.NewAggregatedDiscoveryServiceClient(dial(t, path)).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := whole.Send(&discoveryv3.DiscoveryRequest{TypeUrl: codec.TypeURL(mesh.KindCluster)}); err != nil {
		t.Fatal(err)
	}
	if _, err := whole.Recv(); grpcstatus.Code(err) != codes.InvalidArgument {
		t.Errorf("state of the world without a node: %v", err)
	}
}

func TestStreamsLeaveNothingBehind(t *testing.T) {
	s := newServer(t, nil)
	path := serve(t, s)
	publish(t, s, upserts(workload("a", "1")))
	for range 20 {
		r := connect(t, path, "proxy", FeatureCollections)
		r.subscribe(mesh.KindWorkload, "*", "shop/*", "shop/a", "shop/b")
		r.expect("workload +* +shop/* +shop/a")
		r.stream.CloseSend()
		if err := r.end(); err != io.EOF {
			t.Fatal(err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for kind, typ := range s.types {
		if len(s.streams)+len(typ.byName)+len(typ.byPrefix) != 0 {
			t.Fatalf("%d streams and watches %v %v of %s are left", len(s.streams), typ.byName, typ.byPrefix, kind)
		}
	}
}

const childEnv = "SLUICE_TEST_XDS_CLIENT"

// TestMain runs the test binary as another user's client when told to.
func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		fmt.Print(certificatesOf(path))
		return
	}
	os.Exit(m.Run())
}

// certificatesOf asks for all certificates and says what came.
func certificatesOf(path string) string {
	var out string
	var once sync.Once
	func() {
		t := &testing.T{}
		r := connect(t, path, "proxy", FeatureCollections)
		r.subscribe(mesh.KindCertificate, "*", "shop/c")
		for {
			response, line := r.next()
			r.ack(response)
			once.Do(func() { out = line })
			return
		}
	}()
	return out
}

func TestCertificatesGoToTheProxyAlone(t *testing.T) {
	s := newServer(t, func(c *Config) { c.ProxyUID = 65532 })
	path := serve(t, s)
	publish(t, s, upserts(certificate("shop/c")))
	for role, want := range map[string]string{
		"proxy": "certificate +* +shop/c",
		"agent": "certificate +*",
	} {
		r := connect(t, path, role, FeatureCollections)
		r.subscribe(mesh.KindCertificate, "*")
		got := ""
		if os.Geteuid() != 0 && role == "proxy" {
			want = "certificate +*"
		}
		if _, got = r.next(); got != want {
			t.Errorf("%s: %q, want %q", role, got, want)
		}
	}
	agent := connect(t, path, "agent")
	agent.send(mesh.KindCertificate, func(q *discoveryv3.DeltaDiscoveryRequest) {
		q.ResourceNamesSubscribe = []string{"shop/c"}
		q.InitialResourceVersions = map[string]string{"shop/c": "x"}
	})
	agent.expect("certificate")
	agent.expect("certificate -shop/c")
	publish(t, s, upserts(&mesh.Certificate{Name: "shop/c", ChainPEM: []byte("new"), KeyPEM: []byte("new")}))
	agent.subscribe(mesh.KindWorkload, "shop/none")
	agent.expect("workload") // and no certificate before it

	if os.Geteuid() != 0 {
		t.Skip("needs root to be other users")
	}
	for dir := path; dir != "/"; dir = filepath.Dir(dir) {
		if strings.HasPrefix(dir, os.TempDir()+"/") {
			if err := os.Chmod(dir, 0o777); err != nil {
				t.Fatal(err)
			}
		}
	}
	exe := filepath.Join(filepath.Dir(path), "client")
	if data, err := os.ReadFile("/proc/self/exe"); err != nil {
		t.Fatal(err)
	} else if err := os.WriteFile(exe, data, 0o755); err != nil {
		t.Fatal(err)
	}
	for uid, want := range map[uint32]string{65532: "certificate +* +shop/c", 65533: "certificate +*"} {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), childEnv+"="+path)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != want {
			t.Errorf("user %d: %q (%v), want %q", uid, out, err, want)
		}
	}
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path, os.Getegid())
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Fatalf("mode %v (%v)", info.Mode(), err)
	}
	if other, err := Listen(path, -1); err == nil {
		other.Close()
		t.Fatal("the socket of a living server was taken")
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as after a crash
	l.Close()
	if l, err = Listen(path, -1); err != nil {
		t.Fatal(err)
	}
	l.Close()
}

// A change costs by its own size: neither bytes nor allocations follow the number
// of resources.
func TestCostOfOneChange(t *testing.T) {
	cost := func(count int) (bytes int, allocs float64) {
		s := newServer(t, nil)
		path := serve(t, s)
		var d mesh.Delta
		for i := range count {
			d.Upserts = append(d.Upserts, virtualHost("gateway/shop/g/80/http", fmt.Sprintf("h%04d.example", i), 301))
		}
		publish(t, s, d)
		r := connect(t, path, "proxy", FeatureCollections)
		r.subscribe(mesh.KindVirtualHost, "gateway/shop/g/80/http/*")
		for got := 0; got <= count; {
			response, _ := r.next()
			r.ack(response)
			got += len(response.Resources)
		}
		publish(t, s, upserts(virtualHost("gateway/shop/g/80/http", "h0001.example", 302)))
		response := r.expect("virtualhost +gateway/shop/g/80/http/h0001.example")
		response.Nonce = ""
		// From here the client does not acknowledge, so that only Publish works.
		n := 0
		allocs = testing.AllocsPerRun(100, func() {
			n++
			publish(t, s, upserts(virtualHost("gateway/shop/g/80/http", "h0001.example", []int{301, 302}[n%2])))
		})
		return proto.Size(response), allocs
	}
	smallBytes, smallAllocs := cost(3)
	bigBytes, bigAllocs := cost(3000)
	if smallBytes != bigBytes {
		t.Errorf("%d bytes among 3000, %d among 3", bigBytes, smallBytes)
	}
	// A map that grows meanwhile may round up; a walk over 3000 would not.
	if bigAllocs > smallAllocs+10 {
		t.Errorf("%v allocations among 3000, %v among 3", bigAllocs, smallAllocs)
	}
}

func BenchmarkPublishOneAmong3000(b *testing.B) {
	s := newServer(b, nil)
	path := serve(b, s)
	var d mesh.Delta
	for i := range 3000 {
		d.Upserts = append(d.Upserts, virtualHost("t", fmt.Sprintf("h%04d.example", i), 301))
	}
	publish(b, s, d)
	r := connect(b, path, "proxy", FeatureCollections)
	r.subscribe(mesh.KindVirtualHost, "t/*")
	for got := 0; got <= 3000; {
		response, _ := r.next()
		r.ack(response)
		got += len(response.Resources)
	}
	b.ReportAllocs()
	bytes, n := 0, 0
	for b.Loop() {
		n++
		publish(b, s, upserts(virtualHost("t", "h0001.example", []int{301, 302}[n%2])))
		response, _ := r.next()
		bytes += proto.Size(response)
		r.ack(response)
	}
	b.ReportMetric(float64(bytes)/float64(n), "sent-bytes/op")
}
