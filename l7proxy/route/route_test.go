package route

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/mesh"
)

func request(method, authority, path string, fields ...string) *Request {
	req := &Request{Method: []byte(method), Authority: []byte(authority), Path: []byte(path), Head: new(message.Head)}
	for i := 0; i < len(fields); i += 2 {
		req.Head.Add([]byte(fields[i]), []byte(fields[i+1]))
	}
	return req
}

func vhost(table, hostname string, matches ...mesh.Match) *mesh.VirtualHost {
	v := &mesh.VirtualHost{Table: table, Hostname: hostname}
	for i, m := range matches {
		v.Rules = append(v.Rules, mesh.Rule{
			Route: mesh.Name{Namespace: "shop", Name: "web"}, RouteKind: "HTTPRoute", RuleIndex: i, Match: m,
		})
	}
	return v
}

func tables(t testing.TB, hosts ...*mesh.VirtualHost) *Tables {
	t.Helper()
	tb := NewTables()
	for _, v := range hosts {
		if err := Validate(v); err != nil {
			t.Fatal(err)
		}
		tb.Apply(mesh.Delta{Upserts: []mesh.Resource{v}})
	}
	return tb
}

func TestHostnames(t *testing.T) {
	tb := tables(t,
		vhost("t", "shop.example.com"), vhost("t", "*.example.com"), vhost("t", "*.eu.example.com"),
		vhost("t", "[2001:db8::1]"), vhost("any", "*"))
	for _, c := range []struct{ table, authority, want string }{
		{"t", "shop.example.com", "shop.example.com"},
		{"t", "SHOP.Example.com:8080", "shop.example.com"},
		{"t", "shop.example.com.", "shop.example.com"},
		{"t", "a.example.com", "*.example.com"},
		{"t", "a.b.example.com", "*.example.com"},
		{"t", "a.eu.example.com", "*.eu.example.com"},
		{"t", "a.b.eu.example.com", "*.eu.example.com"},
		{"t", "eu.example.com", "*.example.com"},
		{"t", "example.com", ""}, // a wildcard needs a label
		{"t", ".example.com", ""},
		{"t", "xexample.com", ""},
		{"t", "[2001:DB8::1]:443", "[2001:db8::1]"},
		{"t", "user@shop.example.com", ""},
		{"t", "shop.example.com:x", ""},
		{"t", "", ""},
		{"any", "", "*"},
		{"any", "10.0.0.1:80", "*"},
		{"any", "user@host", ""},
		{"none", "shop.example.com", ""},
	} {
		e := tb.Explain(c.table, request("GET", c.authority, "/"))
		if e.Hostname != c.want {
			t.Errorf("%s %q is served by %q, want %q", c.table, c.authority, e.Hostname, c.want)
		}
		if _, host := tb.Match(c.table, request("GET", c.authority, "/")); host != (c.want != "") {
			t.Errorf("%s %q: Match says host %v", c.table, c.authority, host)
		}
	}
	if !tb.Has("t") || tb.Has("none") {
		t.Error("Has is wrong")
	}
}

func TestMatch(t *testing.T) {
	exact := func(p string) mesh.Match { return mesh.Match{PathKind: mesh.MatchExact, Path: p} }
	prefix := func(p string) mesh.Match { return mesh.Match{PathKind: mesh.MatchPrefix, Path: p} }
	re := func(p string) mesh.Match { return mesh.Match{PathKind: mesh.MatchRegexp, Path: p} }
	header := func(m mesh.ValueMatch) mesh.Match { return mesh.Match{Headers: []mesh.ValueMatch{m}} }
	query := func(m ...mesh.ValueMatch) mesh.Match { return mesh.Match{Query: m} }
	eq, rx := mesh.MatchExact, mesh.MatchRegexp
	for _, c := range []struct {
		match mesh.Match
		req   *Request
		want  bool
	}{
		{exact("/two"), request("GET", "h", "/two"), true},
		{exact("/two"), request("GET", "h", "/two?q"), true},
		{exact("/two"), request("GET", "h", "/two/"), false},
		{exact("/two"), request("GET", "h", "/Two"), false},
		{exact("/%7euser"), request("GET", "h", "/~user"), true},
		{exact("/caf%c3%a9"), request("GET", "h", "/caf%C3%A9"), true},
		{exact("/"), request("GET", "h", "/"), true},
		{prefix("/v2"), request("GET", "h", "/v2"), true},
		{prefix("/v2"), request("GET", "h", "/v2/"), true},
		{prefix("/v2/"), request("GET", "h", "/v2"), true},
		{prefix("/v2/"), request("GET", "h", "/v2/x"), true},
		{prefix("/v2"), request("GET", "h", "/v2example"), false},
		{prefix("/v2"), request("GET", "h", "/"), false},
		{prefix("/v2"), request("GET", "h", "/v2?x=/y"), true},
		{prefix("/a/b"), request("GET", "h", "/a?/b"), false},
		{prefix("/"), request("GET", "h", "/anything"), true},
		{prefix("/"), request("OPTIONS", "h", "*"), true},
		{prefix("/"), request("CONNECT", "h", ""), true},
		{re("/[a-z]+"), request("GET", "h", "/abc"), true},
		{re("/[a-z]+"), request("GET", "h", "/abc1"), false},
		{re("/[a-z]+"), request("GET", "h", "/abc?1"), true},
		{re("a|/b"), request("GET", "h", "/a"), false},
		{re("(?m)/a$"), request("GET", "h", "/a"), true},
		{mesh.Match{Method: "GET"}, request("GET", "h", "/"), true},
		{mesh.Match{Method: "GET"}, request("get", "h", "/"), false},
		{header(mesh.ValueMatch{Name: "version", Kind: eq, Value: "two"}), request("GET", "h", "/", "version", "two"), true},
		{header(mesh.ValueMatch{Name: "version", Kind: eq, Value: "two"}), request("GET", "h", "/", "version", "Two"), false},
		{header(mesh.ValueMatch{Name: "version", Kind: eq, Value: "two"}), request("GET", "h", "/"), false},
		{header(mesh.ValueMatch{Name: "a", Kind: eq, Value: "1,2,3"}), request("GET", "h", "/", "a", "1", "b", "x", "a", "2", "a", "3"), true},
		{header(mesh.ValueMatch{Name: "a", Kind: eq, Value: "1"}), request("GET", "h", "/", "a", "1", "a", "2"), false},
		{header(mesh.ValueMatch{Name: "cookie", Kind: rx, Value: "(.*; )?user=7"}), request("GET", "h", "/", "cookie", "x=1", "cookie", "user=7"), true},
		{header(mesh.ValueMatch{Name: "host", Kind: eq, Value: "h"}), request("GET", "h", "/"), true},
		{header(mesh.ValueMatch{Name: "a", Kind: rx, Value: "x.z"}), request("GET", "h", "/", "a", "xyz"), true},
		{header(mesh.ValueMatch{Name: "a", Kind: rx, Value: "x.z"}), request("GET", "h", "/", "a", "xyzz"), false},
		{query(mesh.ValueMatch{Name: "animal", Kind: eq, Value: "whale"}), request("GET", "h", "/?animal=whale"), true},
		{query(mesh.ValueMatch{Name: "animal", Kind: eq, Value: "whale"}), request("GET", "h", "/?ANIMAL=whale"), false},
		{query(mesh.ValueMatch{Name: "animal", Kind: eq, Value: "whale"}), request("GET", "h", "/?animal=Whale"), false},
		{query(mesh.ValueMatch{Name: "animal", Kind: eq, Value: "whale"}), request("GET", "h", "/?a=b&animal=whale&animal=x"), true},
		{query(mesh.ValueMatch{Name: "animal", Kind: eq, Value: "x"}), request("GET", "h", "/?animal=whale&animal=x"), false},
		{query(mesh.ValueMatch{Name: "a b", Kind: eq, Value: "c d%"}), request("GET", "h", "/?a%20b=c+d%25"), true},
		{query(mesh.ValueMatch{Name: "a", Kind: eq, Value: "%zz"}), request("GET", "h", "/?a=%zz"), true},
		{query(mesh.ValueMatch{Name: "a", Kind: eq, Value: ""}), request("GET", "h", "/?a"), true},
		{query(mesh.ValueMatch{Name: "a", Kind: rx, Value: "x y"}), request("GET", "h", "/?a=x%20y"), true},
		{query(mesh.ValueMatch{Name: "a", Kind: rx, Value: "x%20y"}), request("GET", "h", "/?a=x%20y"), false},
		{query(mesh.ValueMatch{Name: "a", Kind: eq, Value: "1"}, mesh.ValueMatch{Name: "a", Kind: eq, Value: "2"}), request("GET", "h", "/?a=1"), true},
		{mesh.Match{}, request("GET", "h", "/x"), true},
	} {
		tb := tables(t, vhost("t", "*", c.match))
		rule, host := tb.Match("t", c.req)
		if got := rule != nil; got != c.want || !host {
			t.Errorf("%+v takes %s %s %v: %v, want %v", c.match, c.req.Method, c.req.Path, c.req.Head.Fields, got, c.want)
		}
	}
}

// TestIndexEqualsScan compares the indexed search with a scan of the rules in
// order, over random rules and requests from a small alphabet.
func TestIndexEqualsScan(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	elements := []string{"a", "b", "ab", "", "%2F"}
	path := func() string {
		var b strings.Builder
		for range 1 + rng.IntN(4) {
			b.WriteString("/" + elements[rng.IntN(len(elements))])
		}
		return b.String()
	}
	pick := func(s ...string) string { return s[rng.IntN(len(s))] }
	for range 300 {
		var matches []mesh.Match
		for range 1 + rng.IntN(30) {
			m := mesh.Match{PathKind: mesh.MatchKind(rng.IntN(3)), Method: pick("", "", "GET", "PUT")}
			if m.PathKind != 0 {
				m.Path = path()
			}
			if rng.IntN(8) == 0 {
				m.PathKind, m.Path = mesh.MatchRegexp, pick("/a.*", ".*b", "/[ab]+/?")
			}
			if rng.IntN(3) == 0 {
				m.Headers = []mesh.ValueMatch{{Name: "x", Kind: mesh.MatchExact, Value: pick("1", "2")}}
			}
			if rng.IntN(3) == 0 {
				m.Query = []mesh.ValueMatch{{Name: "q", Kind: mesh.MatchExact, Value: pick("1", "2")}}
			}
			matches = append(matches, m)
		}
		tb := tables(t, vhost("t", "*", matches...))
		for range 60 {
			req := request(pick("GET", "PUT"), "h", path()+pick("", "?q=1", "?q=2"), "x", pick("1", "2"))
			if rng.IntN(20) == 0 {
				req.Path = []byte(pick("*", ""))
			}
			e := tb.Explain("t", req)
			want := -1
			for i, r := range e.Rules {
				if r.Matched {
					want = i
					break
				}
			}
			rule, _ := tb.Match("t", req)
			got := -1
			if rule != nil {
				got = rule.RuleIndex
			}
			if got != want || e.Winner != want {
				t.Fatalf("%s takes rule %d (explained: %d), a scan finds %d of %+v", req.Path, got, e.Winner, want, matches)
			}
		}
	}
}

func TestExplain(t *testing.T) {
	v := vhost("t", "*.shop.test",
		mesh.Match{PathKind: mesh.MatchExact, Path: "/cart"},
		mesh.Match{PathKind: mesh.MatchPrefix, Path: "/api", Method: "PUT"},
		mesh.Match{PathKind: mesh.MatchPrefix, Path: "/api", Headers: []mesh.ValueMatch{{Name: "v", Kind: mesh.MatchRegexp, Value: "[0-9]"}}},
		mesh.Match{PathKind: mesh.MatchPrefix, Path: "/api", Query: []mesh.ValueMatch{{Name: "q", Kind: mesh.MatchExact, Value: "1"}}},
		mesh.Match{PathKind: mesh.MatchPrefix, Path: "/api"},
		mesh.Match{PathKind: mesh.MatchPrefix, Path: "/"},
		mesh.Match{PathKind: mesh.MatchRegexp, Path: "/x"})
	v.Rules[4].RuleName = "main"
	e := tables(t, v).Explain("t", request("GET", "a.shop.test", "/api/items?q=2", "v", "x"))
	want := []string{
		`path "/api/items" is not of path "/cart"`,
		`method "GET" is not "PUT"`,
		`header "v" is "x", not of regular expression "[0-9]"`,
		`query parameter "q" is "2", not "1"`,
		"",
		"comes after HTTPRoute/shop/web rule 4 match 0 (main)",
		`path "/api/items" is not of path regular expression "/x"`,
	}
	if e.Winner != 4 || e.Hostname != "*.shop.test" || !e.Known || len(e.Rules) != len(want) {
		t.Fatalf("explanation %+v", e)
	}
	for i, w := range want {
		if e.Rules[i].Why != w {
			t.Errorf("rule %d: %q, want %q", i, e.Rules[i].Why, w)
		}
		if matched := i == 4 || i == 5; e.Rules[i].Matched != matched {
			t.Errorf("rule %d: matched is %v", i, e.Rules[i].Matched)
		}
	}
}

func TestApply(t *testing.T) {
	tb := NewTables()
	prepared := 0
	tb.Prepare = func(r *Rule) { prepared++; r.Metrics = prepared }
	good := vhost("t", "a.test", mesh.Match{PathKind: mesh.MatchRegexp, Path: "/x"})
	tb.Apply(mesh.Delta{Upserts: []mesh.Resource{good, vhost("t", "*"), &mesh.Cluster{Name: "c"}}})
	if r, _ := tb.Match("t", request("GET", "a.test", "/x")); r == nil || r.Metrics != 1 {
		t.Fatalf("rule %v was not prepared", r)
	}
	bad := vhost("t", "a.test", mesh.Match{PathKind: mesh.MatchRegexp, Path: "("})
	tb.Apply(mesh.Delta{Upserts: []mesh.Resource{bad}})
	if r, _ := tb.Match("t", request("GET", "a.test", "/x")); r == nil {
		t.Error("a refused version displaced the last good one")
	}
	if err := tb.Refused()["t/a.test"]; err == nil {
		t.Error("the refused version does not show")
	}
	next := vhost("t", "a.test", mesh.Match{PathKind: mesh.MatchRegexp, Path: "/x"}, mesh.Match{Method: "PUT"})
	tb.Apply(mesh.Delta{Upserts: []mesh.Resource{next}})
	if r, _ := tb.Match("t", request("PUT", "a.test", "/y")); r == nil || len(tb.Refused()) != 0 {
		t.Error("the new version is not in place")
	}
	tb.Apply(mesh.Delta{Removes: []mesh.Ref{{Kind: mesh.KindVirtualHost, Key: "t/a.test"}, {Kind: mesh.KindVirtualHost, Key: "t/a.test"}}})
	if e := tb.Explain("t", request("GET", "a.test", "/x")); e.Hostname != "*" {
		t.Errorf("after its removal a.test is served by %q", e.Hostname)
	}
	tb.Apply(mesh.Delta{Removes: []mesh.Ref{{Kind: mesh.KindVirtualHost, Key: "t/_"}}})
	if tb.Has("t") {
		t.Error("an empty table is still known")
	}
}

// TestApplyInAnyOrder grows and shrinks a table while readers are at work, and wants
// hosts that do not change to be found all the time.
func TestApplyInAnyOrder(t *testing.T) {
	tb := tables(t, vhost("t", "stays.test", mesh.Match{}), vhost("t", "*.stays.test", mesh.Match{}))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				for _, a := range []string{"stays.test", "a.stays.test"} {
					if r, _ := tb.Match("t", request("GET", a, "/")); r == nil {
						t.Errorf("%s was not found", a)
						return
					}
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(3, 4))
	have := map[string]bool{}
	for range 20000 {
		name := fmt.Sprintf("h%d.test", rng.IntN(500))
		if rng.IntN(2) == 0 {
			name = "*." + name
		}
		if have[name] {
			tb.Apply(mesh.Delta{Removes: []mesh.Ref{{Kind: mesh.KindVirtualHost, Key: "t/" + name}}})
		} else {
			tb.Apply(mesh.Delta{Upserts: []mesh.Resource{vhost("t", name, mesh.Match{})}})
		}
		have[name] = !have[name]
	}
	close(stop)
	readers.Wait()
	for name, want := range have {
		e := tb.Explain("t", request("GET", strings.Replace(name, "*", "x", 1), "/"))
		if (e.Hostname == name) != want {
			t.Fatalf("%s is served by %q, present: %v", name, e.Hostname, want)
		}
	}
}

func TestValidate(t *testing.T) {
	rule := func(change func(*mesh.Rule)) *mesh.VirtualHost {
		v := vhost("t", "a.test", mesh.Match{PathKind: mesh.MatchPrefix, Path: "/a"}, mesh.Match{PathKind: mesh.MatchPrefix, Path: "/b"})
		change(&v.Rules[1])
		return v
	}
	filter := func(f mesh.Filter) *mesh.VirtualHost {
		return rule(func(r *mesh.Rule) { r.Filters = []mesh.Filter{f} })
	}
	for _, c := range []struct {
		v    *mesh.VirtualHost
		want string
	}{
		{vhost("", "a.test"), "table"},
		{vhost("t", ""), "hostname"},
		{vhost("t", "A.test"), "hostname"},
		{vhost("t", "a.test:80"), "hostname"},
		{vhost("t", "a.*.test"), "hostname"},
		{rule(func(r *mesh.Rule) { r.Match.Path = "b" }), "rules[1].match.path"},
		{rule(func(r *mesh.Rule) { r.Match.Path = "/b?c" }), "rules[1].match.path"},
		{rule(func(r *mesh.Rule) { r.Match.Path = "/b%2" }), "rules[1].match.path"},
		{rule(func(r *mesh.Rule) { r.Match.Path = "/b/../c" }), "rules[1].match.path"},
		{rule(func(r *mesh.Rule) { r.Match.Path = "/b/." }), "rules[1].match.path"},
		{rule(func(r *mesh.Rule) { r.Match.PathKind = 9 }), "rules[1].match.path"},
		{rule(func(r *mesh.Rule) { r.Match.PathKind, r.Match.Path = mesh.MatchRegexp, "a)|(b" }), "rules[1].match.path"},
		{rule(func(r *mesh.Rule) { r.Match.Method = "G T" }), "rules[1].match.method"},
		{rule(func(r *mesh.Rule) { r.Match.Headers = []mesh.ValueMatch{{Name: "X", Kind: mesh.MatchExact}} }), "rules[1].match.headers[0].name"},
		{rule(func(r *mesh.Rule) { r.Match.Headers = []mesh.ValueMatch{{Name: "x", Kind: mesh.MatchPrefix}} }), "rules[1].match.headers[0].kind"},
		{rule(func(r *mesh.Rule) {
			r.Match.Query = []mesh.ValueMatch{{Name: "x", Kind: mesh.MatchRegexp, Value: "["}}
		}), "rules[1].match.query[0].value"},
		{filter(mesh.Filter{}), "rules[1].filters[0]"},
		{filter(mesh.Filter{Redirect: &mesh.Redirect{Status: 302}, Rewrite: &mesh.Rewrite{}}), "rules[1].filters[0]"},
		{filter(mesh.Filter{Redirect: &mesh.Redirect{Status: 200}}), "rules[1].filters[0].redirect.status"},
		{filter(mesh.Filter{Redirect: &mesh.Redirect{Status: 302, Scheme: "ftp"}}), "rules[1].filters[0].redirect.scheme"},
		{filter(mesh.Filter{Redirect: &mesh.Redirect{Status: 302, Hostname: "a b"}}), "rules[1].filters[0].redirect.hostname"},
		{filter(mesh.Filter{Rewrite: &mesh.Rewrite{Hostname: "a\r\nx: y"}}), "rules[1].filters[0].rewrite.hostname"},
		{filter(mesh.Filter{Rewrite: &mesh.Rewrite{Path: &mesh.PathEdit{Kind: mesh.PathReplaceFull, Value: "/a\r\n"}}}), "rules[1].filters[0].rewrite.path"},
		{filter(mesh.Filter{RequestHeaders: &mesh.HeaderEdit{Set: []mesh.HeaderValue{{Name: "a", Value: "b\r\nc: d"}}}}), "rules[1].filters[0].requestHeaders.set[0].value"},
		{filter(mesh.Filter{ResponseHeaders: &mesh.HeaderEdit{Add: []mesh.HeaderValue{{Name: "a:"}}}}), "rules[1].filters[0].responseHeaders.add[0].name"},
		{filter(mesh.Filter{ResponseHeaders: &mesh.HeaderEdit{Remove: []string{"A"}}}), "rules[1].filters[0].responseHeaders.remove[0]"},
		{rule(func(r *mesh.Rule) {
			r.Match.PathKind = mesh.MatchExact
			r.Clusters = []mesh.WeightedCluster{{Filters: []mesh.Filter{{Rewrite: &mesh.Rewrite{Path: &mesh.PathEdit{Kind: mesh.PathReplacePrefix}}}}}}
		}), "rules[1].clusters[0].filters[0].rewrite.path"},
		{rule(func(r *mesh.Rule) { r.Clusters = []mesh.WeightedCluster{{Weight: 1 << 31}, {Weight: 1 << 31}} }), "rules[1].clusters[1].weight"},
		{rule(func(r *mesh.Rule) { r.Timeouts.Request = -1 }), "rules[1].timeouts.request"},
		{rule(func(r *mesh.Rule) { r.Retry = &mesh.Retry{Codes: []int{200}} }), "rules[1].retry.codes[0]"},
	} {
		err := Validate(c.v)
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("error %v, want one of %s", err, c.want)
		}
	}
	if err := Validate(rule(func(*mesh.Rule) {})); err != nil {
		t.Error(err)
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	tb := tables(t, vhost("t", "*.test",
		mesh.Match{PathKind: mesh.MatchExact, Path: "/x"},
		mesh.Match{PathKind: mesh.MatchPrefix, Path: "/a/b", Headers: []mesh.ValueMatch{{Name: "h", Kind: mesh.MatchRegexp, Value: "1,[0-9]"}}},
		mesh.Match{PathKind: mesh.MatchPrefix, Path: "/a", Query: []mesh.ValueMatch{{Name: "q", Kind: mesh.MatchRegexp, Value: "x y"}}},
		mesh.Match{PathKind: mesh.MatchRegexp, Path: "/a/.*"}))
	req := request("GET", "A.b.TEST:80", "/a/b/c?q=x+yz", "h", "1", "h", "x")
	if n := testing.AllocsPerRun(100, func() {
		if r, _ := tb.Match("t", req); r == nil || r.RuleIndex != 3 {
			t.Fatal(r)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkMatch10000(b *testing.B) {
	var matches []mesh.Match
	for i := range 5000 {
		matches = append(matches, mesh.Match{PathKind: mesh.MatchExact, Path: fmt.Sprintf("/exact/%d", i)})
	}
	for i := range 5000 {
		matches = append(matches, mesh.Match{PathKind: mesh.MatchPrefix, Path: fmt.Sprintf("/prefix/%d", i)})
	}
	tb := tables(b, vhost("t", "shop.test", matches...))
	for _, path := range []string{"/exact/4999", "/prefix/4999/x", "/none"} {
		b.Run(path[1:], func(b *testing.B) {
			req := request("GET", "shop.test", path)
			b.ReportAllocs()
			for b.Loop() {
				tb.Match("t", req)
			}
		})
	}
}
