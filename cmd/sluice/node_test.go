package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/admin"
	"github.com/sluice-mesh/sluice/admin/loglevel"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
	"github.com/sluice-mesh/sluice/observe/ring"
)

// now is the time of the person who runs the commands.
var now = time.Date(2026, 3, 4, 20, 31, 8, 0, time.UTC)

// fakeNode is a node whose processes answer over real admin sockets, with fixed
// content.
type fakeNode struct {
	runDir string
	flows  *ring.Ring
	levels map[admin.Process]*loglevel.Levels
	stops  map[admin.Process]func()
}

// start makes a node of these processes, all of them by default.
func start(t *testing.T, processes ...admin.Process) *fakeNode {
	t.Helper()
	return startIn(t, t.TempDir(), processes...)
}

func startIn(t *testing.T, runDir string, processes ...admin.Process) *fakeNode {
	t.Helper()
	r, err := ring.New(1024)
	if err != nil {
		t.Fatal(err)
	}
	n := &fakeNode{runDir: runDir, flows: r, levels: map[admin.Process]*loglevel.Levels{}, stops: map[admin.Process]func(){}}
	if processes == nil {
		processes = admin.Processes
	}
	for _, p := range processes {
		levels := loglevel.New(slog.LevelInfo)
		levels.Register("xds")
		if p == admin.ProcessProxy {
			levels.Register("dns")
		}
		n.levels[p] = levels
		views := map[admin.Process]admin.View{
			admin.ProcessNode: nodeView{}, admin.ProcessAgent: agentView{r}, admin.ProcessProxy: proxyView{},
		}
		s, err := admin.New(admin.Config{Process: p, Path: admin.SocketPath(n.runDir, p), Levels: levels, Logger: slog.New(slog.DiscardHandler)}, views[p])
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		stopped := false
		n.stops[p] = func() {
			if !stopped {
				stopped = true
				cancel()
				if err := <-done; err != nil {
					t.Errorf("admin server: %v", err)
				}
			}
		}
		t.Cleanup(n.stops[p])
	}
	return n
}

// sluice runs a command line against the node.
func (n *fakeNode) sluice(ctx context.Context, args ...string) (stdout, stderr string, code int) {
	return sluice(ctx, n.runDir, args...)
}

func sluice(ctx context.Context, runDir string, args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	env := map[string]string{envRunDir: runDir}
	a := &app{stdout: &out, stderr: &errs, getenv: func(k string) string { return env[k] }, now: func() time.Time { return now }}
	code = a.execute(ctx, args)
	return out.String(), errs.String(), code
}

func name(s string) mesh.Name {
	n, err := mesh.ParseName(s)
	if err != nil {
		panic(err)
	}
	return n
}

var addrPort = netip.MustParseAddrPort

type nodeView struct{}

func (nodeView) Status() admin.Status {
	return admin.Status{Component: admin.Component{OK: true}, Counts: []admin.Count{{Name: "routes", Value: 2}}, XDS: xdsOfNode()}
}

func (nodeView) Config() any {
	return map[string]any{"config": "examples/bookshop", "key": mesh.PrivateBytes("SECRET")}
}
func (nodeView) XDS() []admin.XDSType { return xdsOfNode() }
func xdsOfNode() []admin.XDSType {
	return []admin.XDSType{
		{Client: "n1/agent", Type: "Workload", Version: "12", Acked: "12", Resources: 6, Changed: now.Add(-3 * time.Minute)},
		{Client: "n1/proxy", Type: "VirtualHost", Version: "13", Acked: "12", Resources: 4, Changed: now.Add(-2 * time.Second)},
		{Client: "n1/proxy", Type: "Listener", Version: "9", Acked: "8", Nacked: "9", Error: "listener gateway/shop/edge/443: no certificate", Resources: 3},
		{Client: "n1/proxy", Type: "Cluster", Pending: 2, Resources: 5},
	}
}

func (nodeView) Routes() []admin.Route {
	accepted := []admin.Condition{{Type: "Accepted", Status: "True", Reason: "Accepted"}, {Type: "ResolvedRefs", Status: "True", Reason: "ResolvedRefs"}}
	return []admin.Route{
		{Kind: "HTTPRoute", Name: name("shop/reviews"), Rules: 3, Source: "routes.yaml", Parents: []admin.RouteParent{
			{Ref: "Service/shop/reviews", Conditions: accepted},
			{Ref: "Gateway/shop/edge/https", Conditions: []admin.Condition{
				{Type: "Accepted", Status: "False", Reason: "NoMatchingListenerHostname", Message: "no hostname of the route is one of the listener's; add bookshop.example"},
			}},
		}, Hostnames: []string{"a.example", "b.example", "c.example", "d.example"}},
		{Kind: "GRPCRoute", Name: name("stock/stock"), Rules: 1, Parents: []admin.RouteParent{{Ref: "Service/stock/stock", Conditions: accepted}}},
	}
}

func (nodeView) Gateways() []admin.Gateway {
	ok := []admin.Condition{{Type: "Accepted", Status: "True", Reason: "Accepted"}, {Type: "Conflicted", Status: "False", Reason: "NoConflicts"}}
	return []admin.Gateway{{
		Name: name("shop/edge"), Class: "sluice", Addresses: []string{"10.97.0.1"}, Conditions: ok, Source: "gateway.yaml",
		Listeners: []admin.GatewayListener{
			{Name: "http", Port: 80, Protocol: "HTTP", AttachedRoutes: 2, Conditions: ok},
			{Name: "https", Port: 443, Protocol: "HTTPS", Hostname: "*.example", Conditions: []admin.Condition{
				{Type: "Accepted", Status: "True", Reason: "Accepted"},
				{Type: "ResolvedRefs", Status: "False", Reason: "InvalidCertificateRef", Message: "Secret shop/tls does not exist"},
			}},
		},
		ListenerSets: []admin.ListenerSet{
			{Name: name("shop/more"), Conditions: ok, Listeners: []admin.GatewayListener{{Name: "alt", Port: 8080, Protocol: "HTTP", AttachedRoutes: 1, Conditions: ok}}},
			{
				Name: name("stock/refused"), Listeners: []admin.GatewayListener{{Name: "alt", Port: 8081, Protocol: "HTTP"}},
				Conditions: []admin.Condition{{Type: "Accepted", Status: "False", Reason: "NotAllowed", Message: "allowedListeners does not allow it"}},
			},
		},
	}}
}

type agentView struct{ flows *ring.Ring }

func (agentView) Status() admin.Status {
	return admin.Status{
		Component: admin.Component{OK: true},
		Features:  []admin.Feature{{Name: "cgroup connect", Needed: true, Have: true, Detail: "Linux 4.17"}, {Name: "tcx", Have: false, Detail: "wants Linux 6.6"}},
		Maps:      []admin.MapUsage{{Name: "sluice_services_v1", Entries: 12, Max: 65536}, {Name: "sluice_origins_v1", Entries: 99, Max: 100}},
		Counts:    []admin.Count{{Name: "workloads", Value: 6}, {Name: "services", Value: 9}},
		XDS:       []admin.XDSType{{Type: "Workload", Version: "12", Acked: "12", Resources: 6}},
		Losses:    []admin.Loss{{Source: "kernel"}, {Source: "proxy", Events: 3}},
	}
}

func (agentView) Config() any         { return map[string]string{"cgroup": "/sys/fs/cgroup/sluice"} }
func (v agentView) Flows() *ring.Ring { return v.flows }

func (agentView) Workloads() []admin.Workload {
	return []admin.Workload{
		{Name: name("shop/reviews-v1"), Node: "n1", ServiceAccount: "default", Labels: map[string]string{"app": "reviews", "version": "v1"},
			Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.5"), netip.MustParseAddr("fd77::5")}, Ready: true, Local: true, PID: 4711, Started: now.Add(-75 * time.Minute)},
		{Name: name("shop/web"), Node: "n1", ServiceAccount: "web", Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.4")}, Local: true},
		{Name: name("stock/stock-1"), Node: "n2", Addresses: []netip.Addr{netip.MustParseAddr("10.78.0.4")}, Ready: true},
	}
}

func (agentView) Services() []admin.Service {
	endpoint := func(s string, ready bool) admin.Endpoint { return admin.Endpoint{Address: addrPort(s), Ready: ready} }
	return []admin.Service{
		{Name: name("shop/db"), ExternalName: "db.example.com"},
		{Name: name("shop/peers"), Headless: true, Ports: []admin.ServicePort{{Port: 7000, Protocol: mesh.ProtocolTCP, Endpoints: []admin.Endpoint{endpoint("10.77.0.9:7000", true)}}}},
		{Name: name("shop/reviews"), VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.12"), netip.MustParseAddr("fd96::12")}, Ports: []admin.ServicePort{
			{Name: "http", Port: 80, Protocol: mesh.ProtocolTCP, AppProtocol: mesh.AppProtocolHTTP, Steered: true,
				Endpoints: []admin.Endpoint{endpoint("10.77.0.5:8080", true), endpoint("10.77.0.6:8080", false)}},
			{Name: "metrics", Port: 9090, Protocol: mesh.ProtocolTCP},
		}},
		{Name: name("stock/stock"), VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.13")}, Ports: []admin.ServicePort{{Port: 53, Protocol: mesh.ProtocolUDP, Endpoints: []admin.Endpoint{
			endpoint("10.78.0.1:53", true), endpoint("10.78.0.2:53", true), endpoint("10.78.0.3:53", true), endpoint("10.78.0.4:53", true), endpoint("10.78.0.5:53", true),
		}}}},
	}
}

type proxyView struct{}

func (proxyView) Status() admin.Status {
	return admin.Status{
		Component: admin.Component{OK: true}, Counts: []admin.Count{{Name: "connections", Value: 2}},
		XDS: []admin.XDSType{{Type: "Listener", Version: "9", Acked: "8", Nacked: "9", Error: "no certificate", Resources: 3}},
	}
}

func (proxyView) Config() any          { return map[string]int{"workers": 2} }
func (proxyView) XDS() []admin.XDSType { return nil }

func (proxyView) Backends() []admin.Backend {
	return []admin.Backend{
		{Cluster: "shop/web/80", Endpoint: netip.MustParseAddrPort("10.77.0.7:8080"), Workload: mesh.Name{Namespace: "shop", Name: "web-0"}, State: "ejected", Why: "5 responses 5xx in a row"},
	}
}

func (proxyView) Connections() []admin.Connection {
	return []admin.Connection{
		{ID: 1, Kind: "outbound", Client: addrPort("10.77.0.4:41000"), Workload: name("shop/web"), Original: addrPort("10.96.0.12:80"), Service: name("shop/reviews"),
			Protocol: "HTTP/1.1", Requests: 12, BytesIn: 900, BytesOut: 12_345_678, Started: now.Add(-26 * time.Hour), Idle: 1500 * time.Millisecond},
		{ID: 2, Kind: "ingress", Client: addrPort("192.0.2.7:5555"), Original: addrPort("10.97.0.1:443"), TLS: &admin.ConnectionTLS{Version: "TLS 1.3", ALPN: "h2", ServerName: "shop.example"}, Protocol: "HTTP/2", Started: now.Add(-5 * time.Second)},
	}
}

func (proxyView) Explain(_ context.Context, q admin.ExplainRequest) (*admin.Explanation, error) {
	switch q.From.Name {
	case "ghost":
		return nil, fmt.Errorf("workload %s: %w", q.From, admin.ErrNotFound)
	case "web":
		return &admin.Explanation{
			Request: q, Listener: "service/shop/reviews/80", Table: "service/shop/reviews/80", Host: "*", Winner: 1,
			Considered: []admin.ConsideredRule{
				{Route: "HTTPRoute/shop/reviews", Rule: 0, Conditions: "header end-user is jason", Why: "the request has no header end-user"},
				{Route: "HTTPRoute/shop/reviews", Rule: 1, Match: 2, Name: "split", Conditions: "path prefix /reviews", Matched: true},
			},
			Filters: []string{"set request header x-via to sluice"},
			Clusters: []admin.ExplainedCluster{
				{Name: "shop/reviews-v1/8080", Weight: 9, Share: 0.9, Endpoints: []admin.Endpoint{{Address: addrPort("10.77.0.5:8080"), Workload: name("shop/reviews-v1"), Ready: true}}},
				{Name: "shop/reviews-v2/8080", Weight: 1, Share: 0.1},
			},
		}, nil
	}
	return &admin.Explanation{Request: q, Listener: "gateway/shop/edge/80", Winner: -1, Status: 404, Reason: "no-route", Detail: "no virtual host matches"}, nil
}

// demoFlows are one of each kind.
func demoFlows() []*flow.Flow {
	at := func(ms int) time.Time { return now.Add(time.Duration(ms-1000) * time.Millisecond) }
	web := flow.Peer{AddrPort: addrPort("10.77.0.4:41000"), Workload: name("shop/web"), Labels: map[string]string{"app": "web"}}
	reviews := flow.Peer{AddrPort: addrPort("10.77.0.5:8080"), Service: name("shop/reviews")}
	v2 := flow.Peer{AddrPort: addrPort("10.77.0.6:8080"), Workload: name("shop/reviews-v2"), Service: name("shop/reviews")}
	vip := addrPort("10.96.0.12:80")
	return []*flow.Flow{
		{Time: at(-86400000), Type: flow.TypeSocket, Verdict: flow.VerdictTranslated, Source: web, Destination: v2, Original: vip, Protocol: mesh.ProtocolTCP},
		{Time: at(100), Type: flow.TypeSocket, Verdict: flow.VerdictRedirected, Source: web, Destination: flow.Peer{Service: name("shop/reviews")}, Original: vip, Protocol: mesh.ProtocolTCP},
		{Time: at(123), Type: flow.TypeHTTP, Verdict: flow.VerdictForwarded, Source: web, Destination: reviews, Original: vip, Protocol: mesh.ProtocolTCP, Duration: 3200 * time.Microsecond,
			HTTP: &flow.HTTP{Method: "GET", Authority: "reviews", Path: "/reviews/7", Proto: "HTTP/1.1", Status: 200, Route: "HTTPRoute/shop/reviews", RuleName: "canary", Tries: 1, TraceID: flow.TraceID{10, 15: 1}}},
		{Time: at(200), Type: flow.TypeHTTP, Verdict: flow.VerdictError, Reason: flow.ReasonConnectFailed, Detail: "ECONNREFUSED", Source: web, Destination: v2, Original: vip, Protocol: mesh.ProtocolTCP,
			Duration: 1234 * time.Millisecond, HTTP: &flow.HTTP{Method: "POST", Path: "/x\x1b[31m\u202e", Proto: "HTTP/2", Status: 503, GRPC: "14", Route: "GRPCRoute/shop/reviews", Rule: 2, Tries: 3}},
		{Time: at(250), Type: flow.TypeHTTP, Verdict: flow.VerdictDropped, Reason: flow.ReasonNoRoute, Source: flow.Peer{AddrPort: addrPort("192.0.2.7:5555")}, Protocol: mesh.ProtocolTCP, Ingress: true,
			Destination: flow.Peer{Service: name("shop/edge")}, Original: addrPort("10.97.0.1:80"), Duration: 90 * time.Microsecond,
			HTTP: &flow.HTTP{Method: "GET", Authority: "bookshop.example", Path: "/", Proto: "HTTP/1.1", Status: 404}},
		{Time: at(300), Type: flow.TypeSocket, Verdict: flow.VerdictDropped, Reason: flow.ReasonNoEndpoint, Source: web, Destination: flow.Peer{Service: name("shop/empty")}, Original: addrPort("[fd96::9]:80"), Protocol: mesh.ProtocolTCP},
		{Time: at(400), Type: flow.TypeTCP, Verdict: flow.VerdictForwarded, Source: web, Destination: flow.Peer{AddrPort: addrPort("10.77.0.8:5432"), Workload: name("shop/db")}, Protocol: mesh.ProtocolTCP,
			BytesIn: 512, BytesOut: 1_500_000, Duration: 2 * time.Second},
		{Time: at(500), Type: flow.TypeDNS, Verdict: flow.VerdictForwarded, Source: web, Destination: flow.Peer{AddrPort: addrPort("10.96.0.10:53")}, Protocol: mesh.ProtocolUDP, Duration: 150 * time.Microsecond,
			DNS: &flow.DNS{Query: "reviews.shop.svc.cluster.local.", Type: "A", RCode: "NOERROR", Answer: []string{"10.96.0.12"}}},
		{Time: at(600), Type: flow.TypeLost, Lost: 12, LostSource: "kernel"},
		{Time: at(700), Type: flow.TypeTCP, Verdict: flow.VerdictError, Reason: flow.ReasonNoOriginalDestination, Protocol: mesh.ProtocolTCP},
	}
}
