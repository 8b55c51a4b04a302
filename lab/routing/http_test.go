package routing

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/l7proxy"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// expectation is what must come of a request.
type expectation struct {
	status int    // 200 if 0
	server string // who answered; empty: the proxy itself
	uri    string // what the server saw, if it is not what was asked
	host   string
	seen   map[string]string // fields that the server got; "" is none
	header map[string]string // fields of the response; "" is none
	rule   string            // "ROUTE#RULE.MATCH" or "ROUTE#RULE.MATCH (NAME)" that explain names, "-": none
}

func check(t *testing.T, w *world, c *http.Client, r request, want expectation) {
	t.Helper()
	a := send(t, c, r)
	if want.status == 0 {
		want.status = 200
	}
	if a.status != want.status || a.got.Server != want.server {
		t.Errorf("%s: %d from %q, want %d from %q", r, a.status, a.got.Server, want.status, want.server)
		return
	}
	if want.server != "" {
		if want.uri != "" && a.got.URI != want.uri {
			t.Errorf("%s: the server saw %s, want %s", r, a.got.URI, want.uri)
		}
		if want.host != "" && a.got.Host != want.host {
			t.Errorf("%s: the server saw the host %s, want %s", r, a.got.Host, want.host)
		}
	}
	for name, value := range want.seen {
		if got := strings.Join(a.got.Header.Values(name), "|"); got != value {
			t.Errorf("%s: the server saw %s: %q, want %q", r, name, got, value)
		}
	}
	for name, value := range want.header {
		if got := strings.Join(a.header.Values(name), "|"); got != value {
			t.Errorf("%s: the client got %s: %q, want %q", r, name, got, value)
		}
	}
	if want.rule != "" {
		e := w.explain(r)
		got := "-"
		if rule := e.Winner(); rule != nil {
			got = fmt.Sprintf("%s#%d.%d", rule.Route.Name, rule.RuleIndex, rule.MatchIndex)
			if rule.RuleName != "" {
				got += " (" + rule.RuleName + ")"
			}
		}
		if got != want.rule {
			t.Errorf("%s: explain names %s, want %s", r, got, want.rule)
		}
	}
}

// TestMatches: every kind of match and the precedence among them, across rules and
// routes; explain names the rule that the proxy took.
func TestMatches(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"v1", "v2", "v3"} {
		w.service(name, "", w.echo(name))
	}
	w.apply(httpRoute("matches", `
  - name: fallback
    matches: [{path: {value: /}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /v2/}}, {path: {type: Exact, value: /exact}}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /v2/long}}]
    backendRefs: [{name: v3, port: 80}]
  - matches: [{path: {type: RegularExpression, value: "/re/[a-z]+"}}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {type: Exact, value: /re/exact}}]
    backendRefs: [{name: v3, port: 80}]
  - matches: [{method: POST}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{headers: [{name: Version, value: two}]}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{headers: [{name: version, value: two}, {name: color, type: RegularExpression, value: "bl.e"}]}]
    backendRefs: [{name: v3, port: 80}]
  - matches: [{queryParams: [{name: animal, value: whale}]}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{queryParams: [{name: animal, type: RegularExpression, value: "dol.*"}, {name: sea, value: north sea}]}]
    backendRefs: [{name: v3, port: 80}]
  - matches: [{headers: [{name: tie, value: a}]}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{headers: [{name: tie, value: a}]}]
    backendRefs: [{name: v3, port: 80}]
`))
	w.apply(httpRoute("b-younger", `
  - matches: [{path: {value: /age}}]
    backendRefs: [{name: v1, port: 80}]
`))
	w.apply(strings.Replace(httpRoute("c-older", `
  - matches: [{path: {value: /age}}]
    backendRefs: [{name: v3, port: 80}]
`), "2026-01-01", "2020-01-01", 1))
	w.apply(httpRoute("z-name", `
  - matches: [{path: {value: /name}}]
    backendRefs: [{name: v1, port: 80}]
`))
	w.apply(httpRoute("a-name", `
  - matches: [{path: {value: /name}}]
    backendRefs: [{name: v3, port: 80}]
`))
	gw := w.outside(80)
	speakers(t, func(t *testing.T, s speaker) {
		c := s.client(t, gw)
		for _, test := range []struct {
			name    string
			request request
			want    expectation
		}{
			{"prefix", request{url: "/v2"}, expectation{server: "v2", rule: "matches#1.0"}},
			{"prefix of elements", request{url: "/v2example"}, expectation{server: "v1", rule: "matches#0.0 (fallback)"}},
			{"prefix with a trailing slash", request{url: "/v2/"}, expectation{server: "v2", rule: "matches#1.0"}},
			{"longest prefix", request{url: "/v2/long/er"}, expectation{server: "v3", rule: "matches#2.0"}},
			{"prefix with case", request{url: "/V2"}, expectation{server: "v1", rule: "matches#0.0 (fallback)"}},
			{"escaped", request{url: "/%76%32/a%2Fb"}, expectation{server: "v2", uri: "/v2/a%2Fb", rule: "matches#1.0"}},
			{"dot segments", request{url: "/a/../v2/./x"}, expectation{server: "v2", uri: "/v2/x", rule: "matches#1.0"}},
			{"exact", request{url: "/exact?q"}, expectation{server: "v2", rule: "matches#1.1"}},
			{"exact with a trailing slash", request{url: "/exact/"}, expectation{server: "v1", rule: "matches#0.0 (fallback)"}},
			{"expression", request{url: "/re/abc"}, expectation{server: "v2", rule: "matches#3.0"}},
			{"expression of the whole path", request{url: "/re/abc/d"}, expectation{server: "v1", rule: "matches#0.0 (fallback)"}},
			{"exact before expression", request{url: "/re/exact"}, expectation{server: "v3", rule: "matches#4.0"}},
			{"method", request{method: "POST", url: "/"}, expectation{server: "v2", rule: "matches#5.0"}},
			{"path before method", request{method: "POST", url: "/v2/long"}, expectation{server: "v3", rule: "matches#2.0"}},
			{"header", request{url: "/", header: []string{"VERSION: two"}}, expectation{server: "v2", rule: "matches#6.0"}},
			{"header with case of its value", request{url: "/", header: []string{"version: Two"}}, expectation{server: "v1", rule: "matches#0.0 (fallback)"}},
			{"a repeated header is a list", request{url: "/", header: []string{"version: two", "version: three"}}, expectation{server: "v1", rule: "matches#0.0 (fallback)"}},
			{"more headers first", request{url: "/", header: []string{"version: two", "color: blue"}}, expectation{server: "v3", rule: "matches#7.0"}},
			{"header expression of the whole value", request{url: "/", header: []string{"version: two", "color: blues"}}, expectation{server: "v2", rule: "matches#6.0"}},
			{"method before headers", request{method: "POST", url: "/", header: []string{"version: two", "color: blue"}}, expectation{server: "v2", rule: "matches#5.0"}},
			{"query", request{url: "/?animal=whale"}, expectation{server: "v2", rule: "matches#8.0"}},
			{"query with case", request{url: "/?Animal=whale"}, expectation{server: "v1", rule: "matches#0.0 (fallback)"}},
			{"first of a repeated query parameter", request{url: "/?animal=whale&animal=dog"}, expectation{server: "v2", rule: "matches#8.0"}},
			{"query expression, escaped", request{url: "/?sea=north+sea&animal=dolph%69n"}, expectation{server: "v3", rule: "matches#9.0"}},
			{"headers before query", request{url: "/?sea=north+sea&animal=dolphin", header: []string{"version: two"}}, expectation{server: "v2", rule: "matches#6.0"}},
			{"first rule of equals", request{url: "/", header: []string{"tie: a"}}, expectation{server: "v2", rule: "matches#10.0"}},
			{"older route of equals", request{url: "/age"}, expectation{server: "v3", rule: "c-older#0.0"}},
			{"first name of equals", request{url: "/name"}, expectation{server: "v3", rule: "a-name#0.0"}},
		} {
			t.Run(test.name, func(t *testing.T) { check(t, w, c, test.request, test.want) })
		}
	})
	f := w.flow("the rule by name", func(f *flow.Flow) bool { return f.HTTP != nil && f.HTTP.Path == "/exact/" })
	if f.HTTP.Route != "HTTPRoute/shop/matches" || f.HTTP.RuleName != "fallback" {
		t.Errorf("flow %+v", f.HTTP)
	}
	e := w.explain(request{url: "/v2/long"})
	for _, r := range e.Routing.Rules {
		if taken := r.Route == "HTTPRoute/shop/matches" && r.RuleIndex == 2; taken != (r.Why == "") {
			t.Errorf("explain of %s rule %d: %q", r.Route, r.RuleIndex, r.Why)
		}
	}
}

// TestHostnames: exact before wildcards, longer before shorter, and no falling back
// from one to another.
func TestHostnames(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"v1", "v2", "v3"} {
		w.service(name, "", w.echo(name))
	}
	host := func(name, hostname, path, server string) {
		w.apply(strings.Replace(httpRoute(name, fmt.Sprintf(`
  - matches: [{path: {value: %s}}]
    backendRefs: [{name: %s, port: 80}]
`, path, server)), "  rules:", fmt.Sprintf("  hostnames: [%q]\n  rules:", hostname), 1))
	}
	host("exact", "one.example.com", "/exact", "v1")
	host("long", "*.example.com", "/", "v2")
	host("short", "*.com", "/", "v3")
	gw := w.outside(80)
	speakers(t, func(t *testing.T, s speaker) {
		c := s.client(t, gw)
		for _, test := range []struct {
			name, url string
			want      expectation
		}{
			{"exact", "http://one.example.com/exact", expectation{server: "v1", rule: "exact#0.0"}},
			{"no other host after an exact one", "http://one.example.com/other", expectation{status: 404, rule: "-"}},
			{"case and port", "http://ONE.Example.com:1234/exact", expectation{server: "v1", rule: "exact#0.0"}},
			{"longer wildcard", "http://two.example.com/exact", expectation{server: "v2", rule: "long#0.0"}},
			{"wildcard of several labels", "http://a.b.example.com/", expectation{server: "v2", rule: "long#0.0"}},
			{"the name behind a wildcard", "http://example.com/", expectation{server: "v3", rule: "short#0.0"}},
			{"none", "http://example.org/", expectation{status: 404, rule: "-"}},
		} {
			t.Run(test.name, func(t *testing.T) { check(t, w, c, request{url: test.url}, test.want) })
		}
	})
}

// TestFilters: the edits of requests and responses, redirects and rewrites, of rules
// and of backends.
func TestFilters(t *testing.T) {
	w := newWorld(t)
	w.service("v1", "", w.echo("v1"))
	w.apply(httpRoute("edits", `
  - matches: [{path: {value: /headers}}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{name: X-Set, value: set}, {name: x-set, value: ignored}]
        add: [{name: X-Add, value: "b,c"}, {name: X-New, value: new}]
        remove: [X-Remove]
    - type: ResponseHeaderModifier
      responseHeaderModifier:
        set: [{name: x-header-set, value: set}]
        add: [{name: X-Header-Add, value: added}]
        remove: [X-Header-Remove]
    backendRefs:
    - name: v1
      port: 80
      filters:
      - {type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-Add, value: backend}]}}
      - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Backend, value: one}]}}
  - matches: [{path: {value: /old}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /strip}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /empty}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: ""}}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /full}}]
    filters: [{type: URLRewrite, urlRewrite: {hostname: inner.example, path: {type: ReplaceFullPath, replaceFullPath: /one}}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /backend}}]
    filters: [{type: URLRewrite, urlRewrite: {hostname: rule.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /rule}}}]
    backendRefs: [{name: v1, port: 80, filters: [{type: URLRewrite, urlRewrite: {hostname: backend.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /of-backend}}}]}]
  - matches: [{path: {value: /unknown}}]
    filters: [{type: ExtensionRef, extensionRef: {group: example.com, kind: Auth, name: auth}}]
    backendRefs: [{name: v1, port: 80}]
`))
	redirects := ""
	for _, r := range []struct{ path, settings string }{
		{"/host", "hostname: new.example"},
		{"/301", "hostname: new.example, statusCode: 301"},
		{"/303", "hostname: new.example, statusCode: 303"},
		{"/307", "hostname: new.example, statusCode: 307"},
		{"/308", "hostname: new.example, statusCode: 308"},
		{"/https", "scheme: https"},
		{"/https-port", "scheme: https, port: 8443"},
		{"/http", "scheme: http"},
		{"/port", "port: 9000"},
		{"/port-80", "port: 80"},
		{"/prefix", "path: {type: ReplacePrefixMatch, replacePrefixMatch: /other}"},
		{"/prefix-root", "path: {type: ReplacePrefixMatch, replacePrefixMatch: /}"},
		{"/whole", "path: {type: ReplaceFullPath, replaceFullPath: /one}"},
	} {
		redirects += fmt.Sprintf("  - matches: [{path: {value: %s}}]\n    filters: [{type: RequestRedirect, requestRedirect: {%s}}]\n", r.path, r.settings)
	}
	w.apply(httpRoute("redirects", redirects))
	w.apply(httpRoute("backend-redirect", `
  - matches: [{path: {value: /by-backend}}]
    backendRefs:
    - {name: v1, port: 80, filters: [{type: RequestRedirect, requestRedirect: {hostname: new.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /moved}}}]}
`))
	gw, gw8080 := w.outside(80), w.outside(8080)
	to := func(status int, location string) expectation {
		return expectation{status: status, header: map[string]string{"Location": location}}
	}
	speakers(t, func(t *testing.T, s speaker) {
		c, c8080 := s.client(t, gw), s.client(t, gw8080)
		for _, test := range []struct {
			name    string
			request request
			want    expectation
		}{
			{"request headers", request{url: "/headers", header: []string{"x-set: a", "x-set: b", "x-add: a", "x-remove: a"}},
				expectation{server: "v1", seen: map[string]string{"X-Set": "set", "X-Add": "a,b,c,backend", "X-New": "new", "X-Remove": ""}}},
			{"response headers", request{url: "/headers"}, expectation{server: "v1", header: map[string]string{
				"X-Header-Set": "set", "X-Header-Add": "of the server,added", "X-Header-Remove": "", "X-Backend": "one"}}},
			{"replace a prefix", request{url: "/old/a?b=/old"}, expectation{server: "v1", uri: "/new/a?b=/old", host: "www.example"}},
			{"replace a prefix that is all", request{url: "/old"}, expectation{server: "v1", uri: "/new"}},
			{"replace a prefix before a slash", request{url: "/old/"}, expectation{server: "v1", uri: "/new/"}},
			{"strip a prefix", request{url: "/strip/three"}, expectation{server: "v1", uri: "/three"}},
			{"strip a prefix that is all", request{url: "/strip"}, expectation{server: "v1", uri: "/"}},
			{"strip a prefix before a slash", request{url: "/strip/"}, expectation{server: "v1", uri: "/"}},
			{"replace a prefix by nothing", request{url: "/empty/a"}, expectation{server: "v1", uri: "/a"}},
			{"replace all by nothing", request{url: "/empty"}, expectation{server: "v1", uri: "/"}},
			{"replace the path and host", request{url: "/full/a/b?c"}, expectation{server: "v1", uri: "/one?c", host: "inner.example"}},
			{"the backend's rewrite counts", request{url: "/backend/a"}, expectation{server: "v1", uri: "/of-backend/a", host: "backend.example"}},
			{"an unknown filter is not skipped", request{url: "/unknown"}, expectation{status: 500, header: map[string]string{"X-Sluice-Reason": "no-backend"}}},
			{"redirect to a host", request{url: "/host?q=1"}, to(302, "http://new.example/host?q=1")},
			{"redirect with 301", request{url: "/301"}, to(301, "http://new.example/301")},
			{"redirect with 303", request{method: "POST", url: "/303"}, to(303, "http://new.example/303")},
			{"redirect with 307", request{url: "/307"}, to(307, "http://new.example/307")},
			{"redirect with 308", request{url: "/308"}, to(308, "http://new.example/308")},
			{"redirect to a scheme", request{url: "/https"}, to(302, "https://www.example/https")},
			{"redirect to a scheme and port", request{url: "/https-port"}, to(302, "https://www.example:8443/https-port")},
			{"redirect to a port", request{url: "/port"}, to(302, "http://www.example:9000/port")},
			{"redirect to the standard port", request{url: "/port-80"}, to(302, "http://www.example/port-80")},
			{"redirect of a prefix", request{url: "/prefix/a?b"}, to(302, "http://www.example/other/a?b")},
			{"redirect of a prefix to the root", request{url: "/prefix-root/a"}, to(302, "http://www.example/a")},
			{"redirect of the path", request{url: "/whole/a?b"}, to(302, "http://www.example/one?b")},
			{"redirect by a backend", request{url: "/by-backend/a"}, to(302, "http://new.example/moved/a")},
		} {
			t.Run(test.name, func(t *testing.T) { check(t, w, c, test.request, test.want) })
		}
		for _, test := range []struct {
			name, url, location string
		}{
			{"the listener's port stays", "/host", "http://new.example:8080/host"},
			{"the scheme's port goes before the listener's", "/http", "http://www.example/http"},
			{"a scheme with its port", "/https", "https://www.example/https"},
		} {
			t.Run(test.name, func(t *testing.T) {
				check(t, w, c8080, request{url: "http://www.example:8080" + test.url}, to(302, test.location))
			})
		}
	})
}

// TestWeights: shares, weight zero, all zero, and what is answered for a backend that
// does not exist.
func TestWeights(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"v1", "v2", "v3"} {
		w.service(name, "", w.echo(name))
	}
	w.apply(httpRoute("weights", `
  - matches: [{path: {value: /shares}}]
    backendRefs: [{name: v1, port: 80, weight: 3}, {name: v2, port: 80}, {name: v3, port: 80, weight: 0}]
  - matches: [{path: {value: /zero}}]
    backendRefs: [{name: v1, port: 80, weight: 0}]
  - matches: [{path: {value: /missing}}]
    backendRefs: [{name: v1, port: 80}, {name: nobody, port: 80}]
  - matches: [{path: {value: /none}}]
  - matches: [{path: {value: /absent-without-weight}}]
    backendRefs: [{name: v1, port: 80}, {name: nobody, port: 80, weight: 0}]
`))
	c := http1.client(t, w.outside(80))
	shares := func(url string, n int) map[string]int {
		out := map[string]int{}
		for range n {
			a := send(t, c, request{url: url})
			if a.status == 200 {
				out[a.got.Server]++
			} else {
				out[fmt.Sprint(a.status)]++
			}
		}
		return out
	}
	// Six standard deviations of a binomial distribution: a run in 500 million is beyond.
	near := func(got, of int, share float64) bool {
		d := float64(got) - float64(of)*share
		return d*d <= 36*float64(of)*share*(1-share)
	}
	if got := shares("/shares", 800); !near(got["v1"], 800, .75) || got["v1"]+got["v2"] != 800 {
		t.Errorf("3:1:0: %v", got)
	}
	if got := shares("/missing", 400); !near(got["v1"], 400, .5) || got["v1"]+got["500"] != 400 {
		t.Errorf("half of the backends are missing: %v", got)
	}
	if got := shares("/zero", 5); got["500"] != 5 {
		t.Errorf("all weights zero: %v", got)
	}
	if got := shares("/none", 5); got["500"] != 5 {
		t.Errorf("no backends: %v", got)
	}
	if got := shares("/absent-without-weight", 20); got["v1"] != 20 {
		t.Errorf("a missing backend of weight zero: %v", got)
	}
}

// TestTimeouts: of the request and of a try, none for zero, and a response that
// does not end.
func TestTimeouts(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	w.service("slow", "", w.echo("slow", func(rw http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/body") {
			rw.WriteHeader(200)
			io.WriteString(rw, "begun")
			_ = http.NewResponseController(rw).Flush()
		}
		if strings.HasSuffix(r.URL.Path, "/body") || strings.HasSuffix(r.URL.Path, "/head") {
			select {
			case <-release:
			case <-r.Context().Done():
			}
			return true
		}
		return false
	}))
	w.apply(httpRoute("timeouts", `
  - matches: [{path: {value: /request}}]
    timeouts: {request: 50ms}
    backendRefs: [{name: slow, port: 80}]
  - matches: [{path: {value: /backend}}]
    timeouts: {backendRequest: 50ms, request: 0s}
    backendRefs: [{name: slow, port: 80}]
  - matches: [{path: {value: /none}}]
    timeouts: {request: 0s, backendRequest: 0s}
    backendRefs: [{name: slow, port: 80}]
`))
	gw := w.outside(80)
	speakers(t, func(t *testing.T, s speaker) {
		c := s.client(t, gw)
		for path, reason := range map[string]string{"/request": "request-timeout", "/backend": "backend-timeout"} {
			if a := send(t, c, request{url: path + "/head"}); a.status != 504 || a.header.Get("X-Sluice-Reason") != reason {
				t.Errorf("%s: %d %s", path, a.status, a.header.Get("X-Sluice-Reason"))
			}
			// A response that has begun can only be cut.
			res, err := c.Get("http://www.example" + path + "/body")
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(res.Body); err == nil {
				t.Errorf("%s: a response that does not end was ended well: %q", path, b)
			}
			res.Body.Close()
			w.flow(path, func(f *flow.Flow) bool {
				return f.HTTP != nil && f.HTTP.Path == path+"/body" && f.Reason.String() == reason
			})
		}
		if a := send(t, c, request{url: "/none"}); a.status != 200 {
			t.Errorf("timeouts of zero: %d", a.status)
		}
	})
}

// TestRetries: codes, attempts, connections that fail, bodies, and what is not tried
// again.
func TestRetries(t *testing.T) {
	w := newWorld(t, l7proxy.Limits{RetryBodyBytes: 64 << 10})
	var tries atomic.Int64
	failing := w.echo("v1", func(rw http.ResponseWriter, r *http.Request) bool {
		n := tries.Add(1)
		var fail int64
		fmt.Sscan(r.Header.Get("X-Fail"), &fail)
		if n > fail {
			return false
		}
		body, _ := io.ReadAll(r.Body)
		if r.Header.Get("X-Hang") != "" {
			<-r.Context().Done()
			return true
		}
		if r.Header.Get("X-Reset") != "" {
			c, _, err := http.NewResponseController(rw).Hijack()
			if err == nil {
				c.Close()
			}
			return true
		}
		var status int
		fmt.Sscan(r.Header.Get("X-Code"), &status)
		rw.WriteHeader(status)
		fmt.Fprintf(rw, "failed after %d bytes", len(body))
		return true
	})
	w.service("v1", "appProtocol: http", failing)
	w.service("half", "", refusing(t), w.echo("half"))
	w.service("refusing", "", refusing(t))
	w.apply(httpRoute("retries", `
  - matches: [{path: {value: /codes}}]
    retry: {attempts: 2, codes: [500, 503], backoff: 1ms}
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /default}}]
    retry: {codes: [500], backoff: 1ms}
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /never}}]
    retry: {attempts: 0, codes: [500], backoff: 1ms}
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /connect}}]
    retry: {attempts: 100, backoff: 1ms}
    backendRefs: [{name: half, port: 80}]
  - matches: [{path: {value: /refused}}]
    retry: {attempts: 2, backoff: 1ms}
    backendRefs: [{name: refusing, port: 80}]
  - matches: [{path: {value: /backend-timeout}}]
    retry: {attempts: 2, codes: [500], backoff: 1ms}
    timeouts: {backendRequest: 50ms, request: 10s}
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /request-timeout}}]
    retry: {attempts: 1000, codes: [500], backoff: 10ms}
    timeouts: {request: 100ms}
    backendRefs: [{name: v1, port: 80}]
`))
	gw := w.outside(80)
	small, large := strings.Repeat("s", 60_000), strings.Repeat("l", 200_000)
	speakers(t, func(t *testing.T, s speaker) {
		c := s.client(t, gw)
		for _, test := range []struct {
			name   string
			r      request
			status int
			tries  int64
		}{
			{"a code of the list", request{url: "/codes", header: []string{"X-Fail: 2", "X-Code: 503"}}, 200, 3},
			{"more failures than attempts", request{url: "/codes", header: []string{"X-Fail: 9", "X-Code: 500"}}, 500, 3},
			{"a code that is not of the list", request{url: "/codes", header: []string{"X-Fail: 9", "X-Code: 502"}}, 502, 1},
			{"one attempt by default", request{url: "/default", header: []string{"X-Fail: 9", "X-Code: 500"}}, 500, 2},
			{"attempts of zero", request{url: "/never", header: []string{"X-Fail: 9", "X-Code: 500"}}, 500, 1},
			{"a body", request{method: "POST", url: "/codes", body: small, header: []string{"X-Fail: 2", "X-Code: 500"}}, 200, 3},
			{"a body beyond the budget", request{method: "POST", url: "/codes", body: large, header: []string{"X-Fail: 1", "X-Code: 500"}}, 500, 1},
			{"the timeout of a try", request{url: "/backend-timeout", header: []string{"X-Fail: 2", "X-Hang: yes"}}, 200, 3},
			{"the timeout of all tries", request{url: "/backend-timeout", header: []string{"X-Fail: 9", "X-Hang: yes"}}, 504, 3},
		} {
			t.Run(test.name, func(t *testing.T) {
				tries.Store(0)
				a := send(t, c, test.r)
				if a.status != test.status || tries.Load() != test.tries {
					t.Errorf("%d after %d tries, want %d after %d", a.status, tries.Load(), test.status, test.tries)
				}
				if a.status == 200 && a.got.Body != test.r.body {
					t.Errorf("the last try had %d bytes, want %d", len(a.got.Body), len(test.r.body))
				}
			})
		}
		t.Run("connection refused", func(t *testing.T) {
			for range 10 {
				if a := send(t, c, request{method: "POST", url: "/connect", body: "x"}); a.status != 200 || a.got.Server != "half" {
					t.Errorf("%d from %q", a.status, a.got.Server)
				}
			}
			if a := send(t, c, request{url: "/refused"}); a.status != 503 || a.header.Get("X-Sluice-Reason") != "connect-failed" {
				t.Errorf("%d %s", a.status, a.header.Get("X-Sluice-Reason"))
			}
			f := w.flow("refused", func(f *flow.Flow) bool { return f.HTTP != nil && f.HTTP.Path == "/refused" })
			if f.HTTP.Tries != 3 {
				t.Errorf("%d tries", f.HTTP.Tries)
			}
		})
		t.Run("a reset after the request", func(t *testing.T) {
			tries.Store(0)
			if a := send(t, c, request{method: "POST", url: "/codes", body: "x", header: []string{"X-Fail: 1", "X-Reset: yes"}}); a.status != 502 || tries.Load() != 1 {
				t.Errorf("POST may have been acted on: %d after %d tries", a.status, tries.Load())
			}
			tries.Store(0)
			if a := send(t, c, request{url: "/codes", header: []string{"X-Fail: 1", "X-Reset: yes"}}); a.status != 200 || tries.Load() != 2 {
				t.Errorf("GET: %d after %d tries", a.status, tries.Load())
			}
		})
		t.Run("all within the request's timeout", func(t *testing.T) {
			tries.Store(0)
			a := send(t, c, request{url: "/request-timeout", header: []string{"X-Fail: 1000", "X-Code: 500"}})
			if a.status != 504 || a.header.Get("X-Sluice-Reason") != "request-timeout" || tries.Load() < 2 {
				t.Errorf("%d %s after %d tries", a.status, a.header.Get("X-Sluice-Reason"), tries.Load())
			}
		})
		f := w.flow("over the budget", func(f *flow.Flow) bool { return f.HTTP != nil && f.BytesIn == 200_000 })
		if !strings.Contains(f.Detail, "not tried again") {
			t.Errorf("detail %q", f.Detail)
		}
	})
	if n := w.metric("sluice_proxy_retry_bodies_dropped_total", "limit", "request"); n != 2 {
		t.Errorf("bodies that were not kept: %v", n)
	}
}

// TestRetryNodeBudget: bodies of all requests together are bounded.
func TestRetryNodeBudget(t *testing.T) {
	w := newWorld(t, l7proxy.Limits{RetryBufferedBytes: 100_000})
	hold, held := make(chan struct{}), make(chan struct{}, 1)
	var tries atomic.Int64
	w.service("v1", "appProtocol: http", w.echo("v1", func(rw http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/hold" {
			io.ReadAll(r.Body)
			held <- struct{}{}
			<-hold
			return true
		}
		io.ReadAll(r.Body)
		tries.Add(1)
		rw.WriteHeader(500)
		return true
	}))
	w.apply(httpRoute("retries", `
  - retry: {attempts: 1, codes: [500], backoff: 1ms}
    backendRefs: [{name: v1, port: 80}]
`))
	gw := w.outside(80)
	done := make(chan answer)
	go func() {
		done <- send(t, http1.client(t, gw), request{method: "POST", url: "/hold", body: strings.Repeat("x", 60_000)})
	}()
	<-held
	c := http1.client(t, gw)
	send(t, c, request{method: "POST", url: "/more", body: strings.Repeat("x", 60_000)})
	if n := tries.Load(); n != 1 {
		t.Errorf("a body beyond the node's budget: %d tries", n)
	}
	if n := w.metric("sluice_proxy_retry_bodies_dropped_total", "limit", "node"); n != 1 {
		t.Errorf("counted %v", n)
	}
	close(hold)
	<-done
	tries.Store(0)
	send(t, c, request{method: "POST", url: "/more", body: strings.Repeat("x", 60_000)})
	if n := tries.Load(); n != 2 {
		t.Errorf("with the budget free again: %d tries", n)
	}
}

// TestSlowMirror: a mirror that does not read costs bounded memory and neither the
// request nor its answer waits for it.
func TestSlowMirror(t *testing.T) {
	w := newWorld(t, l7proxy.Limits{MirrorBodyBytes: 256 << 10})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	ended := make(chan struct{})
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		// Reads the head alone, then waits for the end.
		if _, err := bufio.NewReaderSize(c, 16).ReadString('\n'); err != nil {
			return
		}
		<-ended
	}()
	w.service("v1", "", w.echo("v1"))
	w.service("slow", "", ln.Addr().(*net.TCPAddr).AddrPort())
	w.apply(httpRoute("mirror", `
  - filters: [{type: RequestMirror, requestMirror: {backendRef: {name: slow, port: 80}}}]
    backendRefs: [{name: v1, port: 80}]
`))
	c := http1.client(t, w.outside(80))
	const size = 8 << 20
	res, err := c.Post("http://www.example/", "application/octet-stream", io.LimitReader(zeros{}, size))
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, res.Body)
	res.Body.Close()
	if got := w.server("v1"); res.StatusCode != 200 || len(got.Body) != size {
		t.Errorf("%d, the server got %d bytes", res.StatusCode, len(got.Body))
	}
	f := w.flow("the mirror", func(f *flow.Flow) bool { return f.HTTP != nil && f.HTTP.Mirror })
	if f.Reason != flow.ReasonMirrorBehind || f.Verdict != flow.VerdictDropped {
		t.Errorf("flow %+v", f)
	}
	close(ended)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestMirrorCut: a request that ends early takes its copy with it.
func TestMirrorCut(t *testing.T) {
	w := newWorld(t)
	w.service("v1", "", w.echo("v1"))
	w.service("v2", "", w.echo("v2"))
	w.apply(httpRoute("mirror", `
  - filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}}}]
    backendRefs: [{name: v1, port: 80}]
`))
	conn, err := net.DialTimeout("tcp", w.outside(80).String(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "POST / HTTP/1.1\r\nHost: www.example\r\nContent-Length: 1000\r\n\r\nsome")
	conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
	f := w.flow("the mirror", func(f *flow.Flow) bool { return f.HTTP != nil && f.HTTP.Mirror })
	if f.Reason != flow.ReasonMirrorCut {
		t.Errorf("flow %+v", f)
	}
}
