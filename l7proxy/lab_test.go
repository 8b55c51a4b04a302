package l7proxy

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/l7proxy/loop"
	"github.com/sluice-mesh/sluice/l7proxy/route"
	"github.com/sluice-mesh/sluice/l7proxy/tlsengine"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/mesh/store"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// patience bounds what a test waits for; nothing is asserted about time.
const patience = 20 * time.Second

// lab is a proxy with a store, on real sockets of the loopback interface. Where the
// kernel would tell the original destination of a steered connection, the lab
// knows it by the listening socket that took it.
type lab struct {
	t      testing.TB
	store  *store.Store
	routes *route.Tables
	certs  *tlsengine.Certificates
	reg    *prometheus.Registry
	proxy  *Proxy
	cancel context.CancelFunc

	mu      sync.Mutex
	origins map[netip.AddrPort]Origin
	flows   []*flow.Flow
	more    chan struct{}
	wanted  map[mesh.Ref]int
	onWant  func(kind mesh.Kind, key string)
	done    chan error
}

func (l *lab) Lookup(fd int) (Origin, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o, ok := l.origins[loop.LocalAddr(fd)]
	return o, ok
}

func newLab(t testing.TB, edit ...func(*Config)) *lab {
	t.Helper()
	l := &lab{
		t: t, store: store.New(), routes: route.NewTables(), certs: tlsengine.NewCertificates(),
		reg: prometheus.NewRegistry(), origins: map[netip.AddrPort]Origin{}, more: make(chan struct{}, 1),
		wanted: map[mesh.Ref]int{}, done: make(chan error, 1),
	}
	l.store.Subscribe(l.routes.Apply)
	l.store.Subscribe(l.certs.Apply)
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	cfg := Config{
		Loops: 1, Node: "node-1", Store: l.store, Routes: l.routes, Certificates: l.certs, Origins: l,
		Want: l.want, Flows: l.addFlow, Logger: logger, Registerer: l.reg,
		Limits: Limits{PoolIdleTimeout: time.Minute},
	}
	for _, e := range edit {
		e(&cfg)
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l.proxy = p
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	go func() { l.done <- p.Run(ctx) }()
	t.Cleanup(l.stop)
	return l
}

func (l *lab) stop() {
	l.cancel()
	select {
	case err := <-l.done:
		l.done <- err
		if err != nil {
			l.t.Errorf("Run: %v", err)
		}
	case <-time.After(patience):
		l.t.Error("Run does not end")
		return
	}
	l.wantClean()
}

// wantClean checks, after Run, that everything was given back.
func (l *lab) wantClean() {
	l.t.Helper()
	for _, w := range l.proxy.workers {
		if n := w.loop.Buffers.Lent(); n != 0 {
			l.t.Errorf("loop %d: %d bytes of buffers are missing", w.id, n)
		}
		if len(w.conns) != 0 {
			l.t.Errorf("loop %d: %d connections are left", w.id, len(w.conns))
		}
	}
	for _, w := range l.proxy.workers {
		if n := w.set.Active(); n != 0 {
			l.t.Errorf("loop %d: %d requests count as under way at endpoints", w.id, n)
		}
	}
	for name, b := range l.proxy.budgets {
		if b.connections.Load() != 0 || b.bytes.Load() != 0 {
			l.t.Errorf("budget of %s: %d connections, %d bytes", name, b.connections.Load(), b.bytes.Load())
		}
	}
	if n := l.proxy.upstreamBudget.bytes.Load(); n != 0 {
		l.t.Errorf("budget of endpoints: %d bytes", n)
	}
	for _, name := range []string{"sluice_proxy_requests_active", "sluice_proxy_connections_active"} {
		if n := l.metric(name); n != 0 {
			l.t.Errorf("%s: %v", name, n)
		}
	}
}

func (l *lab) want(kind mesh.Kind, key string) {
	l.mu.Lock()
	l.wanted[mesh.Ref{Kind: kind, Key: key}]++
	f := l.onWant
	l.mu.Unlock()
	if f != nil {
		f(kind, key)
	}
}

func (l *lab) addFlow(borrowed *flow.Flow) {
	f := new(flow.Flow)
	*f = *borrowed
	if f.HTTP != nil {
		h := *f.HTTP
		h.Method, h.Authority = strings.Clone(h.Method), strings.Clone(h.Authority)
		h.Path, h.GRPC = strings.Clone(h.Path), strings.Clone(h.GRPC)
		f.HTTP = &h
	}
	l.mu.Lock()
	l.flows = append(l.flows, f)
	l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
}

// flow waits for a flow for which ok holds and takes it out.
func (l *lab) flow(what string, ok func(*flow.Flow) bool) *flow.Flow {
	l.t.Helper()
	deadline := time.After(patience)
	for {
		l.mu.Lock()
		for i, f := range l.flows {
			if ok(f) {
				l.flows = slices.Delete(l.flows, i, i+1)
				l.mu.Unlock()
				return f
			}
		}
		l.mu.Unlock()
		select {
		case <-l.more:
		case <-deadline:
			l.mu.Lock()
			defer l.mu.Unlock()
			for _, f := range l.flows {
				l.t.Logf("have flow %+v http %+v", f, f.HTTP)
			}
			l.t.Fatalf("no flow: %s", what)
		}
	}
}

func listenFD(t testing.TB) (int, netip.AddrPort) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 1024); err != nil {
		t.Fatal(err)
	}
	return fd, loop.LocalAddr(fd)
}

var (
	client = mesh.Name{Namespace: "shop", Name: "client"}
	vip    = netip.MustParseAddrPort("10.96.0.1:80")
)

// outbound makes a workload's capture socket; what connects to it counts as having
// dialled dest.
func (l *lab) outbound(dest netip.AddrPort) netip.AddrPort {
	l.t.Helper()
	fd, addr := listenFD(l.t)
	l.mu.Lock()
	l.origins[addr] = Origin{Dest: dest, Workload: 7}
	l.mu.Unlock()
	if err := l.proxy.AddSocket(Socket{FD: fd, Type: SocketOutbound, Workload: 7, WorkloadName: client, Addr: addr}); err != nil {
		l.t.Fatal(err)
	}
	return addr
}

// gateway makes a Gateway's socket.
func (l *lab) gateway(listener string) netip.AddrPort {
	l.t.Helper()
	fd, addr := listenFD(l.t)
	if err := l.proxy.AddSocket(Socket{FD: fd, Type: SocketGateway, Listener: listener, Addr: addr}); err != nil {
		l.t.Fatal(err)
	}
	return addr
}

func (l *lab) commit(rs ...mesh.Resource) { l.store.Commit(mesh.Delta{Upserts: rs}) }

const (
	webListener = "service/shop/web/80"
	webCluster  = "shop/web/80"
)

func endpoints(addrs ...netip.AddrPort) []mesh.Endpoint {
	var out []mesh.Endpoint
	for i, a := range addrs {
		out = append(out, mesh.Endpoint{AddrPort: a, Workload: mesh.Name{Namespace: "shop", Name: fmt.Sprintf("web-%d", i)}})
	}
	return out
}

// web is the service shop/web without a route.
func web(protocol mesh.AppProtocol, addrs ...netip.AddrPort) []mesh.Resource {
	return []mesh.Resource{
		&mesh.Service{
			Name: mesh.Name{Namespace: "shop", Name: "web"}, VIPs: []netip.Addr{vip.Addr()},
			Ports: []mesh.ServicePort{{Port: 80, Protocol: mesh.ProtocolTCP, AppProtocol: protocol, Steered: true, Endpoints: endpoints(addrs...)}},
		},
		&mesh.Listener{
			Name: webListener, Type: mesh.ListenerService, Parent: mesh.Name{Namespace: "shop", Name: "web"}, Port: 80,
			Chains: []mesh.Chain{{Default: []mesh.WeightedCluster{{Cluster: webCluster, Weight: 1}}}},
		},
		cluster(webCluster, mesh.AppProtocolUnknown), clusterEndpoints(webCluster, addrs...),
	}
}

// routed gives web's listener a route table with rules for all hosts.
func routed(resources []mesh.Resource, rules ...mesh.Rule) []mesh.Resource {
	for _, r := range resources {
		if l, ok := r.(*mesh.Listener); ok {
			l.Chains[0].RouteTable = webListener
		}
	}
	return append(resources, virtualHost(webListener, "*", rules...))
}

func virtualHost(table, host string, rules ...mesh.Rule) *mesh.VirtualHost {
	for i := range rules {
		if rules[i].RouteKind == "" {
			rules[i].RouteKind = "HTTPRoute"
		}
		if rules[i].Route.IsZero() {
			rules[i].Route = mesh.Name{Namespace: "shop", Name: "web-route"}
		}
	}
	return &mesh.VirtualHost{Table: table, Hostname: host, Rules: rules}
}

func cluster(name string, protocol mesh.AppProtocol) *mesh.Cluster {
	parts := strings.Split(name, "/")
	return &mesh.Cluster{Name: name, Service: mesh.Name{Namespace: parts[0], Name: parts[1]}, Port: 80, Protocol: protocol}
}

func clusterEndpoints(name string, addrs ...netip.AddrPort) *mesh.ClusterEndpoints {
	return &mesh.ClusterEndpoints{Cluster: name, Endpoints: endpoints(addrs...)}
}

// to is a rule that sends everything to a cluster.
func to(cluster string) mesh.Rule {
	return mesh.Rule{Clusters: []mesh.WeightedCluster{{Cluster: cluster, Weight: 1}}}
}

// httpServer serves HTTP/1 and cleartext HTTP/2 on the loopback interface.
func httpServer(t testing.TB, h http.Handler) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, Protocols: new(http.Protocols), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	go s.Serve(ln)
	t.Cleanup(func() { s.Close() })
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// tcpServer calls handle for each connection, and closes it afterwards.
func tcpServer(t testing.TB, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
			}()
		}
	}()
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
	return loop.LocalAddr(fd)
}

func dial(t testing.TB, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// h1client dials one address whatever the URL says, and follows no redirect.
func h1client(t testing.TB, to netip.AddrPort) *http.Client {
	t.Helper()
	tr := &http.Transport{
		DialContext:        func(context.Context, string, string) (net.Conn, error) { return net.Dial("tcp", to.String()) },
		DisableCompression: true, MaxIdleConnsPerHost: 100,
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// h2client is h1client with cleartext HTTP/2.
func h2client(t testing.TB, to netip.AddrPort) *http.Client {
	t.Helper()
	c := h1client(t, to)
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	c.Transport.(*http.Transport).Protocols = p
	return c
}

func get(t testing.TB, c *http.Client, url string) (*http.Response, string) {
	t.Helper()
	res, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

// metric sums the samples of a metric whose labels include those given.
func (l *lab) metric(name string, labels ...string) float64 {
	l.t.Helper()
	families, err := l.reg.Gather()
	if err != nil {
		l.t.Fatal(err)
	}
	var sum float64
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	sample:
		for _, m := range f.Metric {
			for i := 0; i < len(labels); i += 2 {
				ok := false
				for _, p := range m.Label {
					ok = ok || p.GetName() == labels[i] && p.GetValue() == labels[i+1]
				}
				if !ok {
					continue sample
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

// loopStats returns the sum of what the loops counted.
func (l *lab) loopStats() loop.Stats {
	var out loop.Stats
	for _, w := range l.proxy.workers {
		got := make(chan loop.Stats)
		w.loop.Post(func() { got <- w.loop.Stats })
		s := <-got
		out.Reads += s.Reads
		out.Writes += s.Writes
		out.Splices += s.Splices
		out.Polls += s.Polls
		out.Waits += s.Waits
		out.ReadAgains += s.ReadAgains
		out.WriteAgains += s.WriteAgains
	}
	return out
}
