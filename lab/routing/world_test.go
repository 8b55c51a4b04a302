package routing

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	neturl "net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/gateway"
	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/kube/manifest"
	"github.com/sluice-mesh/sluice/l7proxy"
	"github.com/sluice-mesh/sluice/l7proxy/explain"
	"github.com/sluice-mesh/sluice/l7proxy/route"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/mesh/store"
	"github.com/sluice-mesh/sluice/observe/flow"
	"github.com/sluice-mesh/sluice/xds/codec"
	"github.com/sluice-mesh/sluice/xds/server"
)

// patience bounds what a test waits for; nothing is asserted about time.
const patience = 20 * time.Second

// base is in every world: Gateway shop/web, and what world.service adds.
const base = `
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: sluice}
spec: {controllerName: sluice.dev/gateway-controller}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Namespace
metadata: {name: other}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web, namespace: shop}
spec:
  gatewayClassName: sluice
  listeners:
  - {name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}
  - {name: http-8080, port: 8080, protocol: HTTP}
`

// gatewayPool is a network of loopback, so that another program can serve a Gateway at
// its address; processes of this test hardly ever share one.
var gatewayPool = netip.PrefixFrom(netip.AddrFrom4([4]byte{127, byte(32 + rand.IntN(32)), byte(rand.IntN(256)), 0}), 24)

// world is a control plane and a node proxy.
type world struct {
	t        testing.TB
	tr       *gateway.Translator
	store    *store.Store
	routes   *route.Tables
	reg      *prometheus.Registry
	proxy    *l7proxy.Proxy
	statuses map[string]kube.Status
	xds      *server.Server // for those that are not the proxy
	created  int

	mu      sync.Mutex
	origins map[netip.AddrPort]l7proxy.Origin
	flows   []flow.Flow
	more    chan struct{}
	seen    chan seen // requests that servers got
	others  []seen    // of those, what nobody asked for yet
}

// seen is a request as a server got it, and the body of its answer.
type seen struct {
	Server  string
	Method  string
	URI     string
	Host    string
	Proto   string
	Header  http.Header
	Trailer http.Header
	Body    string
}

func newWorld(t testing.TB, limits ...l7proxy.Limits) *world {
	t.Helper()
	w := &world{
		t: t, store: store.New(), routes: route.NewTables(), reg: prometheus.NewRegistry(), statuses: map[string]kube.Status{},
		origins: map[netip.AddrPort]l7proxy.Origin{}, more: make(chan struct{}, 1), seen: make(chan seen, 4096),
	}
	var err error
	w.tr, err = gateway.New(gateway.Config{GatewayPools: []netip.Prefix{gatewayPool}, Node: "node-1"})
	if err != nil {
		t.Fatal(err)
	}
	w.xds, err = server.New(server.Config{Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	w.store.Subscribe(w.routes.Apply)
	cfg := l7proxy.Config{
		Loops: 1, Node: "node-1", Store: w.store, Routes: w.routes, Origins: w, Flows: w.addFlow,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})), Registerer: w.reg,
	}
	for _, l := range limits {
		cfg.Limits = l
	}
	if w.proxy, err = l7proxy.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.proxy.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	w.apply(base)
	return w
}

// Lookup tells what a workload's program dialled, as the kernel would.
func (w *world) Lookup(fd int) (l7proxy.Origin, bool) {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return l7proxy.Origin{}, false
	}
	at := name.(*unix.SockaddrInet4)
	w.mu.Lock()
	defer w.mu.Unlock()
	o, ok := w.origins[netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port))]
	return o, ok
}

func (w *world) addFlow(borrowed *flow.Flow) {
	data, err := json.Marshal(borrowed) // which copies the strings
	var f flow.Flow
	if err = errors.Join(err, json.Unmarshal(data, &f)); err != nil {
		w.t.Errorf("flow: %v", err)
	}
	w.mu.Lock()
	w.flows = append(w.flows, f)
	w.mu.Unlock()
	select {
	case w.more <- struct{}{}:
	default:
	}
}

// flow waits for a flow for which ok holds and takes it out.
func (w *world) flow(what string, ok func(*flow.Flow) bool) flow.Flow {
	w.t.Helper()
	deadline := time.After(patience)
	for {
		w.mu.Lock()
		for i := range w.flows {
			if f := w.flows[i]; ok(&f) {
				w.flows = slices.Delete(w.flows, i, i+1)
				w.mu.Unlock()
				return f
			}
		}
		w.mu.Unlock()
		select {
		case <-w.more:
		case <-deadline:
			w.t.Fatalf("no flow: %s", what)
		}
	}
}

// server waits for a request that a server of the name got.
func (w *world) server(name string) seen {
	w.t.Helper()
	deadline := time.After(patience)
	for {
		for i, s := range w.others {
			if s.Server == name {
				w.others = slices.Delete(w.others, i, i+1)
				return s
			}
		}
		select {
		case s := <-w.seen:
			w.others = append(w.others, s)
		case <-deadline:
			w.t.Fatalf("%s got no request", name)
		}
	}
}

// apply applies manifests, younger than all before unless they say, and sends what
// changes to the proxy as xDS would.
func (w *world) apply(text string) {
	w.t.Helper()
	f := manifest.Parse("test.yaml", []byte(text))
	for _, p := range f.Problems {
		if !p.Warning {
			w.t.Fatal(p.Error())
		}
	}
	var change kube.Change
	for _, o := range f.Objects {
		w.created++
		o.SetGeneration(int64(w.created))
		change.Upserts = append(change.Upserts, o.Object)
	}
	change.Synced = true
	r := w.tr.Apply(change)
	for _, s := range r.Statuses {
		w.statuses[s.Key.String()] = s
	}
	var d mesh.Delta
	for _, resource := range r.Delta.Upserts {
		packed, err := codec.Encode(resource)
		if err != nil {
			w.t.Fatal(err)
		}
		decoded, err := codec.Decode(resource.Kind(), resource.Key(), packed.Value)
		if err != nil {
			w.t.Fatal(err)
		}
		d.Upserts = append(d.Upserts, decoded)
	}
	d.Removes = r.Delta.Removes
	w.store.Commit(d)
	if err := w.xds.Publish(r.Delta); err != nil {
		w.t.Error(err)
	}
	for key, err := range w.routes.Refused() {
		w.t.Errorf("the proxy refuses %s: %v", key, err)
	}
}

// service adds a Service of namespace shop, on port 80, whose endpoints are the
// addresses. attributes are of its port, such as "appProtocol: kubernetes.io/h2c".
func (w *world) service(name, attributes string, addrs ...netip.AddrPort) {
	w.t.Helper()
	w.created++
	if attributes != "" {
		attributes = ", " + attributes
	}
	text := fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: shop}
spec:
  clusterIP: 10.96.0.%d
  ports: [{name: p, port: 80%s}]
`, name, w.created%250, attributes)
	for i, a := range addrs {
		text += fmt.Sprintf(`---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %s-%d, namespace: shop, labels: {kubernetes.io/service-name: %s}}
addressType: IPv4
ports: [{name: p, port: %d, protocol: TCP}]
endpoints: [{addresses: ["%s"], conditions: {ready: true}}]
`, name, i, name, a.Port(), a.Addr())
	}
	w.apply(text)
}

// listen binds a port of a loopback address that nobody else uses.
func listen(t testing.TB, port int) (int, netip.AddrPort) {
	t.Helper()
	for {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		addr := [4]byte{127, byte(64 + rand.IntN(128)), byte(rand.IntN(256)), byte(1 + rand.IntN(254))}
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: addr, Port: port})
		if errors.Is(err, unix.EADDRINUSE) {
			unix.Close(fd)
			continue
		}
		if errors.Is(err, unix.EACCES) {
			t.Skipf("port %d of a loopback address needs root", port)
		}
		if err == nil {
			err = unix.Listen(fd, 1024)
		}
		if err != nil {
			t.Fatal(err)
		}
		name, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		return fd, netip.AddrPortFrom(netip.AddrFrom4(addr), uint16(name.(*unix.SockaddrInet4).Port))
	}
}

// outside returns the address of a port of Gateway shop/web.
func (w *world) outside(port int) netip.AddrPort {
	w.t.Helper()
	fd, addr := listen(w.t, port)
	if err := w.proxy.AddSocket(l7proxy.Socket{FD: fd, Type: l7proxy.SocketGateway, Listener: fmt.Sprintf("gateway/shop/web/%d", port), Addr: addr}); err != nil {
		w.t.Fatal(err)
	}
	return addr
}

// inside returns an address that counts as having dialled a Service of namespace
// shop, for a workload of a namespace.
func (w *world) inside(namespace, service string) netip.AddrPort {
	w.t.Helper()
	svc := w.store.Service(mesh.Name{Namespace: "shop", Name: service})
	if svc == nil || !svc.Ports[0].Steered {
		w.t.Fatalf("Service %s is not steered", service)
	}
	fd, addr := listen(w.t, 0)
	w.mu.Lock()
	defer w.mu.Unlock()
	index := mesh.WorkloadIndex(len(w.origins) + 1)
	w.origins[addr] = l7proxy.Origin{Dest: netip.AddrPortFrom(svc.VIPs[0], svc.Ports[0].Port), Workload: index}
	name := mesh.Name{Namespace: namespace, Name: "client"}
	if err := w.proxy.AddSocket(l7proxy.Socket{FD: fd, Type: l7proxy.SocketOutbound, Workload: index, WorkloadName: name, Addr: addr}); err != nil {
		w.t.Fatal(err)
	}
	return addr
}

// echo is a server of HTTP/1.1 and cleartext HTTP/2 that says what it got.
func (w *world) echo(name string, handle ...func(http.ResponseWriter, *http.Request) bool) netip.AddrPort {
	w.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	s := &http.Server{Protocols: new(http.Protocols), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	s.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		for _, h := range handle {
			if h(rw, r) {
				return
			}
		}
		body, _ := io.ReadAll(r.Body)
		got := seen{name, r.Method, r.RequestURI, r.Host, r.Proto, r.Header, r.Trailer, string(body)}
		select {
		case w.seen <- got:
		default:
		}
		rw.Header().Set("X-Server", name)
		rw.Header().Set("X-Header-Set", "of the server")
		rw.Header().Set("X-Header-Remove", "of the server")
		rw.Header().Set("X-Header-Add", "of the server")
		if code := r.Header.Get("X-Status"); code != "" {
			var status int
			fmt.Sscan(code, &status)
			rw.WriteHeader(status)
		}
		if r.Method != http.MethodHead {
			_ = json.NewEncoder(rw).Encode(got)
		}
	})
	go s.Serve(ln)
	w.t.Cleanup(func() { s.Close() })
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// refusing is an address where nobody listens.
func refusing(t testing.TB) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Bound and not listening: nobody else gets the port meanwhile.
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := name.(*unix.SockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port))
}

// speaker is what a client speaks.
type speaker string

const (
	http1 speaker = "HTTP/1.1"
	http2 speaker = "HTTP/2"
)

// client dials one address whatever the URL says, and follows no redirect.
func (s speaker) client(t testing.TB, to netip.AddrPort) *http.Client {
	t.Helper()
	tr := &http.Transport{
		DialContext:        func(context.Context, string, string) (net.Conn, error) { return net.Dial("tcp", to.String()) },
		DisableCompression: true,
	}
	if s == http2 {
		tr.Protocols = new(http.Protocols)
		tr.Protocols.SetUnencryptedHTTP2(true)
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// request is one for a client.
type request struct {
	method string // GET if empty
	url    string // path, or with a host; www.example if it has none
	header []string
	body   string
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	got    seen // what the server says that it got
	text   string
}

func (r request) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s %s", r.method, r.url, strings.Join(r.header, ", ")))
}

func send(t testing.TB, c *http.Client, r request) answer {
	t.Helper()
	url := r.url
	if strings.HasPrefix(url, "/") {
		url = "http://www.example" + url
	}
	var body io.Reader
	if r.body != "" {
		body = strings.NewReader(r.body)
	}
	req, err := http.NewRequest(r.method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range r.header {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s: %v", r, err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s: %v", r, err)
	}
	a := answer{status: res.StatusCode, header: res.Header, text: string(data)}
	_ = json.NewDecoder(bytes.NewReader(data)).Decode(&a.got) // of our own answers not
	return a
}

// explainer explains with the proxy's own tables.
func (w *world) explain(r request) *explain.Explanation {
	w.t.Helper()
	e := explain.Explainer{Store: w.store, Routes: w.routes, ClusterDomain: "cluster.local"}
	url := r.url
	if strings.HasPrefix(url, "/") {
		url = "http://www.example" + url
	}
	u, err := neturl.Parse(url)
	if err != nil {
		w.t.Fatal(err)
	}
	q := explain.Request{Method: r.method, URL: url}
	if u.Port() != "" {
		// The client dials port 80 whatever it says.
		q.Headers = append(q.Headers, mesh.HeaderValue{Name: "Host", Value: u.Host})
		u.Host = u.Hostname()
		q.URL = u.String()
	}
	if q.Method == "" {
		q.Method = "GET"
	}
	for _, h := range r.header {
		name, value, _ := strings.Cut(h, ": ")
		q.Headers = append(q.Headers, mesh.HeaderValue{Name: name, Value: value})
	}
	out, err := e.Explain(context.Background(), q)
	if err != nil {
		w.t.Fatalf("explain %s: %v", r, err)
	}
	return out
}

// metric sums the samples of a metric whose labels include those given.
func (w *world) metric(name string, labels ...string) float64 {
	w.t.Helper()
	families, err := w.reg.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	var sum float64
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	sample:
		for _, m := range f.Metric {
			for i := 0; i < len(labels); i += 2 {
				if !slices.ContainsFunc(m.Label, func(p *dto.LabelPair) bool {
					return p.GetName() == labels[i] && p.GetValue() == labels[i+1]
				}) {
					continue sample
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}
