package explain

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/l7proxy/route"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/mesh/store"
	"github.com/sluice-mesh/sluice/observe/flow"
)

func explainer() *Explainer {
	s, tables := store.New(), route.NewTables()
	s.Subscribe(tables.Apply)
	vip := netip.MustParseAddr("10.96.0.1")
	rule := func(name, path, cluster string) mesh.Rule {
		return mesh.Rule{
			Route: mesh.Name{Namespace: "shop", Name: name}, RouteKind: "HTTPRoute",
			Match:    mesh.Match{PathKind: mesh.MatchPrefix, Path: path},
			Clusters: []mesh.WeightedCluster{{Cluster: cluster, Weight: 1}},
		}
	}
	s.Commit(mesh.Delta{Upserts: []mesh.Resource{
		&mesh.Service{Name: mesh.Name{Namespace: "shop", Name: "reviews"}, VIPs: []netip.Addr{vip}, Ports: []mesh.ServicePort{
			{Port: 80, Protocol: mesh.ProtocolTCP, Steered: true}, {Port: 9000, Protocol: mesh.ProtocolTCP},
		}},
		&mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web"}},
		&mesh.Workload{Name: mesh.Name{Namespace: "other", Name: "client"}},
		&mesh.Listener{
			Name: "service/shop/reviews/80", Type: mesh.ListenerService, Port: 80,
			Chains:         []mesh.Chain{{RouteTable: "service/shop/reviews/80"}},
			ConsumerTables: map[string]string{"other": "service/shop/reviews/80/@other"},
		},
		&mesh.VirtualHost{Table: "service/shop/reviews/80", Hostname: "*", Rules: []mesh.Rule{rule("a", "/a", "shop/a/80"), rule("b", "/b", "")}},
		&mesh.VirtualHost{Table: "service/shop/reviews/80/@other", Hostname: "*", Rules: []mesh.Rule{rule("c", "/", "shop/c/80")}},
		&mesh.Listener{
			Name: "gateway/shop/edge/443", Type: mesh.ListenerGateway, Port: 443, Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")},
			Chains: []mesh.Chain{{ServerNames: []string{"*.example"}, Certificates: []string{"shop/tls"}, RouteTable: "gateway/shop/edge/443/https"}},
		},
		&mesh.VirtualHost{Table: "gateway/shop/edge/443/https", Hostname: "shop.example", Rules: []mesh.Rule{rule("g", "/", "shop/a/80")}},
	}})
	return &Explainer{Store: s, Routes: tables, ClusterDomain: "cluster.local"}
}

func TestExplain(t *testing.T) {
	web, client := mesh.Name{Namespace: "shop", Name: "web"}, mesh.Name{Namespace: "other", Name: "client"}
	for _, tt := range []struct {
		name   string
		url    string
		from   mesh.Name
		winner string // the route's name
		status int
		detail string
	}{
		{"short name", "http://reviews/a/1", web, "a", 0, ""},
		{"full name", "http://reviews.shop.svc.cluster.local/a", web, "a", 0, ""},
		{"address", "http://10.96.0.1/a", web, "a", 0, ""},
		{"dot segments are resolved first", "http://reviews/x/../a", web, "a", 0, ""},
		{"invalid backend", "http://reviews/b", web, "b", 500, ""},
		{"no rule", "http://reviews/c", web, "", 404, ""},
		{"ambiguous path", "http://reviews/a%2f..%2fb", web, "", 400, "two ways"},
		{"consumer route", "http://reviews.shop/c", client, "c", 0, ""},
		{"another namespace's short name", "http://reviews/a", client, "", 0, "neither"},
		{"port without route", "http://reviews:9000/a", web, "", 0, "kernel"},
		{"gateway", "https://shop.example/", mesh.Name{}, "g", 0, ""},
		{"gateway by address", "https://198.51.100.1/", mesh.Name{}, "", 0, "neither"},
		{"gateway's other host", "https://x.example/", mesh.Name{}, "", 404, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := explainer().Explain(context.Background(), Request{Method: "GET", URL: tt.url, From: tt.from})
			if err != nil {
				t.Fatal(err)
			}
			winner := ""
			if w := got.Winner(); w != nil {
				winner = w.Route.Name
			}
			if winner != tt.winner || got.Status != tt.status || !strings.Contains(got.Detail, tt.detail) {
				t.Fatalf("winner %q, status %d, detail %q; want %q, %d, %q", winner, got.Status, got.Detail, tt.winner, tt.status, tt.detail)
			}
		})
	}
}

func TestExplainRefusesNonsense(t *testing.T) {
	e := explainer()
	for _, r := range []Request{
		{Method: "GET", URL: "reviews"}, {Method: "", URL: "http://reviews/"}, {Method: "GET", URL: "http://reviews:99999/"},
	} {
		if _, err := e.Explain(context.Background(), r); !errors.Is(err, ErrRequest) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if _, err := e.Explain(context.Background(), Request{Method: "GET", URL: "http://reviews/", From: mesh.Name{Namespace: "a", Name: "b"}}); !errors.Is(err, ErrNoWorkload) {
		t.Error(err)
	}
}

// TestExplainFilters: what the filters and limits of the winner do to the request.
func TestExplainFilters(t *testing.T) {
	e := explainer()
	rule := func(path string, filters ...mesh.Filter) mesh.Rule {
		return mesh.Rule{
			Route: mesh.Name{Namespace: "shop", Name: "f"}, RouteKind: "HTTPRoute", Match: mesh.Match{PathKind: mesh.MatchPrefix, Path: path},
			Filters: filters, Clusters: []mesh.WeightedCluster{{Cluster: "shop/a/80", Weight: 1}},
			Timeouts: mesh.Timeouts{Request: time.Second, Backend: time.Millisecond}, Retry: &mesh.Retry{Attempts: 2, Codes: []int{503}, Backoff: 5 * time.Millisecond},
		}
	}
	e.Store.Commit(mesh.Delta{Upserts: []mesh.Resource{
		&mesh.Listener{
			Name: "gateway/shop/edge/443", Type: mesh.ListenerGateway, Port: 443,
			Chains: []mesh.Chain{
				{Name: "any", ServerNames: []string{"*.example"}, Certificates: []string{"shop/tls"}, RouteTable: "gateway/shop/edge/443/https"},
				{Name: "one", ServerNames: []string{"one.example"}, Certificates: []string{"shop/tls"}, RouteTable: "gateway/shop/edge/443/one"},
			},
		},
		&mesh.VirtualHost{Table: "gateway/shop/edge/443/https", Hostname: "shop.example", Rules: []mesh.Rule{
			rule("/old", mesh.Filter{Redirect: &mesh.Redirect{Scheme: "http", Status: 301, Path: &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: "/new"}}}),
			rule("/in", mesh.Filter{Rewrite: &mesh.Rewrite{Hostname: "inner", Path: &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: "/"}}}, mesh.Filter{Mirror: &mesh.Mirror{Cluster: "shop/b/80", PerMillion: 250_000}}),
			rule("/cors", mesh.Filter{CORS: &mesh.CORS{AllowOrigins: []string{"*"}}}),
		}},
	}})
	for _, test := range []struct {
		method, url string
		header      []mesh.HeaderValue
		want        Explanation
	}{
		{"GET", "https://shop.example/old/a?b", nil, Explanation{Status: 301, Location: "http://shop.example/new/a?b"}},
		{"GET", "https://shop.example/in/a?b", nil, Explanation{Authority: "inner", Path: "/a?b"}},
		{"GET", "https://shop.example/cors", []mesh.HeaderValue{{Name: "Origin", Value: "https://o"}}, Explanation{Authority: "shop.example", Path: "/cors"}},
		{"OPTIONS", "https://shop.example/cors", []mesh.HeaderValue{{Name: "Origin", Value: "https://o"}, {Name: "Access-Control-Request-Method", Value: "PUT"}}, Explanation{Status: 200}},
		{"GET", "https://shop.example/in", []mesh.HeaderValue{{Name: "Host", Value: "one.example"}}, Explanation{Status: 421, Reason: flow.ReasonMisdirected}},
	} {
		got, err := e.Explain(context.Background(), Request{Method: test.method, URL: test.url, Headers: test.header})
		if err != nil {
			t.Fatal(err)
		}
		if got.Status != test.want.Status || got.Reason != test.want.Reason || got.Location != test.want.Location || got.Authority != test.want.Authority || got.Path != test.want.Path {
			t.Errorf("%s %s: %+v", test.method, test.url, got)
		}
	}
	got, err := e.Explain(context.Background(), Request{Method: "GET", URL: "https://shop.example/in"})
	if err != nil {
		t.Fatal(err)
	}
	if filters := strings.Join(Filters(got.Winner().Filters), "; "); filters != "rewrite: host to inner, path prefix to /; mirror of 25% to shop/b/80" {
		t.Errorf("filters: %s", filters)
	}
	if limits := strings.Join(Limits(got.Winner()), "; "); limits != "timeout of the request: 1s; timeout of the try: 1ms; retries: up to 2 after a failed connection, the timeout of a try, 503, backoff from 5ms" {
		t.Errorf("limits: %s", limits)
	}
}
