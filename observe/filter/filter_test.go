package filter_test

import (
	"net/netip"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/filter"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// web asks reviews over HTTP, through a route.
func web() *flow.Flow {
	return &flow.Flow{
		Type: flow.TypeHTTP, Verdict: flow.VerdictError, Reason: flow.ReasonUpstreamReset, Protocol: mesh.ProtocolTCP,
		Source: flow.Peer{
			AddrPort: netip.MustParseAddrPort("10.77.0.4:41000"),
			Workload: mesh.Name{Namespace: "shop", Name: "web"}, Labels: map[string]string{"app": "web", "tier": "front"},
		},
		Destination: flow.Peer{
			AddrPort: netip.MustParseAddrPort("10.77.0.5:8080"),
			Workload: mesh.Name{Namespace: "books", Name: "reviews-v2"}, Labels: map[string]string{"app": "reviews"},
			Service: mesh.Name{Namespace: "books", Name: "reviews"},
		},
		Original: netip.MustParseAddrPort("10.96.0.12:80"),
		HTTP: &flow.HTTP{
			Method: "GET", Authority: "Reviews.books:80", Path: "/reviews/7?x=/admin", Proto: "HTTP/1.1", Status: 503,
			Route: "HTTPRoute/books/reviews", TraceID: flow.TraceID{0xab, 15: 1},
		},
		Duration: 250 * time.Millisecond,
	}
}

func TestTerms(t *testing.T) {
	tests := []struct {
		flag string
		yes  []string
		no   []string
	}{
		{"namespace", []string{"shop", "books"}, []string{"sho", "Shop"}},
		{"from-namespace", []string{"shop"}, []string{"books"}},
		{"to-namespace", []string{"books"}, []string{"shop"}},
		{"workload", []string{"web", "shop/web", "shop/", "reviews-*", "books/rev*v2", "*", "w*b"}, []string{"we", "web-*", "books/web", "reviews", "*x*", "shop/reviews*"}},
		{"from-workload", []string{"shop/web"}, []string{"reviews-v2"}},
		{"to-workload", []string{"reviews-v2"}, []string{"web"}},
		{"label", []string{
			"app=web", "app==web", "tier!=back,app=web", "app in (web, api)", "app in (web,api),tier", "tier notin (back)", "!missing", "app", "app=reviews",
			"missing!=x", " app = web , tier = front ",
		}, []string{"app=api", "!app", "missing", "app in (api)", "app=web,tier=back", "app notin (web,reviews)"}},
		{"from-label", []string{"tier"}, []string{"app=reviews", "!tier"}},
		{"to-label", []string{"app=reviews", "!tier"}, []string{"tier"}},
		{"ip", []string{"10.77.0.4", "10.77.0.0/16", "10.96.0.12", "::ffff:10.77.0.5"}, []string{"10.77.0.6", "10.78.0.0/16", "fd77::/16"}},
		{"from-ip", []string{"10.77.0.4"}, []string{"10.77.0.5", "10.96.0.12"}},
		{"to-ip", []string{"10.77.0.5", "10.96.0.12"}, []string{"10.77.0.4"}},
		{"port", []string{"80", "8080", "41000", "8000-8100"}, []string{"443", "81-8079"}},
		{"from-port", []string{"41000"}, []string{"80"}},
		{"to-port", []string{"80", "8080"}, []string{"41000"}},
		{"service", []string{"reviews", "books/reviews", "books/", "rev*"}, []string{"shop/reviews", "reviews-v2"}},
		{"to-service", []string{"reviews"}, []string{"shop/reviews"}},
		{"verdict", []string{"error", "ERROR"}, []string{"forwarded", "dropped"}},
		{"reason", []string{"upstream-reset"}, []string{"no-endpoint"}},
		{"type", []string{"http"}, []string{"tcp", "lost"}},
		{"protocol", []string{"tcp", "http", "HTTP"}, []string{"udp", "dns", "grpc"}},
		{"http-status", []string{"503", "5+", "50+", "50[34]", "5..", "(502|503)"}, []string{"500", "4+", "51+", "50", "3", "0"}},
		{"http-method", []string{"GET", "get"}, []string{"POST", "GE"}},
		{"http-path", []string{"^/reviews/", "/[0-9]+$", "view"}, []string{"^/review$", "admin", "^/Reviews"}},
		{"http-host", []string{"reviews.books", "*.books", "REVIEWS.*"}, []string{"reviews", "*.shop", "reviews.books:80"}},
		{"route", []string{"books/reviews", "HTTPRoute/books/reviews"}, []string{"GRPCRoute/books/reviews", "shop/reviews"}},
		{"trace-id", []string{"ab000000000000000000000000000001"}, []string{"ab000000000000000000000000000002"}},
		{"min-latency", []string{"250ms", "0.25s", "1ns"}, []string{"250.001ms", "1h"}},
		{"dns-query", nil, []string{"reviews"}},
	}
	covered := map[string]bool{}
	for _, test := range tests {
		covered[test.flag] = true
		for value, want := range expectations(test.yes, test.no) {
			t.Run(test.flag+"="+value, func(t *testing.T) {
				f, err := filter.Compile([]filter.Term{{Flag: test.flag, Value: value}})
				if err != nil {
					t.Fatal(err)
				}
				if got := f.Match(web()); got != want {
					t.Errorf("matches: %v, want %v", got, want)
				}
				not, err := filter.Compile([]filter.Term{{Flag: test.flag, Value: value, Not: true}})
				if err != nil {
					t.Fatal(err)
				}
				if got := not.Match(web()); got == want {
					t.Errorf("negated it matches: %v, want %v", got, !want)
				}
			})
		}
	}
	for _, f := range filter.Flags() {
		if !covered[f.Name] {
			t.Errorf("flag %s has no test", f.Name)
		}
	}
}

func expectations(yes, no []string) map[string]bool {
	out := map[string]bool{}
	for _, v := range yes {
		out[v] = true
	}
	for _, v := range no {
		out[v] = false
	}
	return out
}

func TestOtherFlows(t *testing.T) {
	grpc := web()
	grpc.HTTP.GRPC = "14"
	noResponse := web()
	noResponse.HTTP.Status = 0
	dns := &flow.Flow{Type: flow.TypeDNS, Protocol: mesh.ProtocolUDP, DNS: &flow.DNS{Query: "reviews.books.svc.cluster.local.", Type: "A", RCode: "NOERROR"}}
	refused := &flow.Flow{
		Type: flow.TypeSocket, Verdict: flow.VerdictDropped, Reason: flow.ReasonNoEndpoint, Protocol: mesh.ProtocolTCP,
		Source:      flow.Peer{Workload: mesh.Name{Namespace: "shop", Name: "web"}},
		Destination: flow.Peer{Service: mesh.Name{Namespace: "books", Name: "empty"}}, Original: netip.MustParseAddrPort("[fd96::1]:80"),
	}
	tests := []struct {
		flag, value string
		flow        *flow.Flow
		want        bool
	}{
		{"protocol", "grpc", grpc, true},
		{"protocol", "http", grpc, true},
		{"http-status", "0", noResponse, true},
		{"http-status", ".*", noResponse, true},
		{"http-status", "5+", noResponse, false},
		{"protocol", "dns", dns, true},
		{"protocol", "udp", dns, true},
		{"dns-query", `^reviews\.`, dns, true},
		{"http-path", ".*", dns, false},
		{"http-method", "GET", dns, false},
		{"http-host", "*", dns, false},
		{"route", "books/reviews", dns, false},
		{"workload", "*", dns, false},
		{"label", "!app", dns, false}, // who is no workload has no labels to lack
		{"to-namespace", "books", refused, true},
		{"to-ip", "fd96::/64", refused, true},
		{"ip", "0.0.0.0/0", refused, false},
		{"reason", "no-endpoint", refused, true},
		{"verdict", "dropped", refused, true},
	}
	for _, test := range tests {
		f, err := filter.Compile([]filter.Term{{Flag: test.flag, Value: test.value}})
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Match(test.flow); got != test.want {
			t.Errorf("--%s %s matches %+v: %v, want %v", test.flag, test.value, test.flow, got, test.want)
		}
	}
}

func TestCombinations(t *testing.T) {
	term := func(s string) filter.Term {
		s, not := strings.CutPrefix(s, "!")
		flag, value, _ := strings.Cut(s, "=")
		return filter.Term{Flag: flag, Value: value, Not: not}
	}
	tests := []struct {
		terms string
		want  bool
	}{
		{"", true},
		{"verdict=dropped verdict=error", true},
		{"verdict=dropped verdict=forwarded", false},
		{"verdict=error http-status=503", true},
		{"verdict=error http-status=404", false},
		{"verdict=dropped verdict=error http-status=404 http-status=503", true},
		{"!http-path=^/healthz", true},
		{"!http-path=^/reviews", false},
		{"verdict=error !from-workload=web", false},
		{"!verdict=dropped !verdict=forwarded", true},
		{"!verdict=dropped !verdict=error", false},
	}
	for _, test := range tests {
		var terms []filter.Term
		for _, s := range strings.Fields(test.terms) {
			terms = append(terms, term(s))
		}
		f, err := filter.Compile(terms)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Match(web()); got != test.want {
			t.Errorf("%q matches: %v, want %v", test.terms, got, test.want)
		}
	}
	if !(*filter.Filter)(nil).Match(web()) {
		t.Error("no filter selects nothing")
	}
}

// TestLosses: a loss is shown whatever one filters for, except by type.
func TestLosses(t *testing.T) {
	lost := &flow.Flow{Type: flow.TypeLost, Lost: 3, Protocol: mesh.ProtocolTCP}
	tests := []struct {
		term filter.Term
		want bool
	}{
		{filter.Term{Flag: "namespace", Value: "shop"}, true},
		{filter.Term{Flag: "protocol", Value: "tcp", Not: true}, true},
		{filter.Term{Flag: "http-status", Value: "5+"}, true},
		{filter.Term{Flag: "type", Value: "lost"}, true},
		{filter.Term{Flag: "type", Value: "http"}, false},
		{filter.Term{Flag: "type", Value: "lost", Not: true}, false},
		{filter.Term{Flag: "type", Value: "http", Not: true}, true},
	}
	for _, test := range tests {
		f, err := filter.Compile([]filter.Term{test.term})
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Match(lost); got != test.want {
			t.Errorf("%+v matches a loss: %v, want %v", test.term, got, test.want)
		}
	}
}

func TestBadTerms(t *testing.T) {
	for flag, values := range map[string][]string{
		"namespace":   {""},
		"workload":    {"", "/web", "a/b/c"},
		"label":       {"", ",", "app=web,", "=web", "app in web", "app in (a", "app in a)", "app near (a)", "a b", "app=(x)", "!", "app in (a),,b"},
		"ip":          {"", "10.77", "10.77.0.0/33", "web"},
		"port":        {"", "0", "65536", "90-80", "http", "80-", "-80"},
		"service":     {"", "/"},
		"verdict":     {"", "refused", "unknown"},
		"reason":      {"", "because", "unknown"},
		"type":        {"", "unknown"},
		"protocol":    {"", "sctp"},
		"http-status": {"", "5[", "++"},
		"http-method": {""},
		"http-path":   {"", "("},
		"http-host":   {""},
		"route":       {"", "reviews", "a/b/c/d"},
		"dns-query":   {"", "("},
		"color":       {"red"},
	} {
		for _, v := range values {
			_, err := filter.Compile([]filter.Term{{Flag: flag, Value: v}})
			if err == nil {
				t.Errorf("--%s %q was taken", flag, v)
			} else if !strings.Contains(err.Error(), flag) {
				t.Errorf("--%s %q: the error does not name the flag: %v", flag, v, err)
			}
		}
	}
	if _, err := filter.Compile([]filter.Term{{Flag: "http-path", Value: strings.Repeat("a", 5000)}}); err == nil {
		t.Error("a value of 5000 bytes was taken")
	}
}

func TestQuery(t *testing.T) {
	terms := []filter.Term{
		{Flag: "namespace", Value: "shop"},
		{Flag: "label", Value: "a in (b,c)"},
		{Flag: "label", Value: "d&e=%"},
		{Flag: "http-path", Value: "^/healthz$", Not: true},
	}
	q := url.Values{}
	filter.AddToQuery(q, terms)
	parsed, err := url.ParseQuery(q.Encode())
	if err != nil {
		t.Fatal(err)
	}
	got, err := filter.FromQuery(parsed)
	if err != nil || !reflect.DeepEqual(got, terms) {
		t.Errorf("got %v, %v; want %v", got, err, terms)
	}
	for _, bad := range []string{"verdcit", "not-", "not-not-verdict"} {
		if _, err := filter.FromQuery(url.Values{bad: {"x"}}); err == nil {
			t.Errorf("parameter %q was taken", bad)
		}
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	f, err := filter.Compile([]filter.Term{
		{Flag: "namespace", Value: "shop"}, {Flag: "label", Value: "app=web,tier in (front)"}, {Flag: "http-status", Value: "5+"},
		{Flag: "http-path", Value: "^/reviews"}, {Flag: "ip", Value: "10.77.0.0/16"}, {Flag: "verdict", Value: "dropped", Not: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	fl := web()
	if n := testing.AllocsPerRun(100, func() { f.Match(fl) }); n != 0 {
		t.Errorf("Match allocates %v times", n)
	}
}

func FuzzCompile(f *testing.F) {
	for _, seed := range []string{"app in (a,b),!c", "shop/*", "10.0.0.0/8", "80-90", "5+", "^/a(b|c)*$"} {
		for i := range filter.Flags() {
			f.Add(uint8(i), seed)
		}
	}
	flows := []*flow.Flow{web(), {}, {Type: flow.TypeDNS, DNS: &flow.DNS{}}, {Type: flow.TypeLost}}
	f.Fuzz(func(t *testing.T, flag uint8, value string) {
		flags := filter.Flags()
		term := filter.Term{Flag: flags[int(flag)%len(flags)].Name, Value: value}
		compiled, err := filter.Compile([]filter.Term{term})
		if err != nil {
			return
		}
		for _, fl := range flows {
			compiled.Match(fl)
		}
	})
}
