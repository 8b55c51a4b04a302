package routing

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/observe/flow"
)

// route is an HTTPRoute of Gateway shop/web with the rules given.
func httpRoute(name, rules string) string {
	return fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: %s, namespace: shop, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  parentRefs: [{name: web}]
  rules:
%s`, name, rules)
}

func speakers(t *testing.T, f func(t *testing.T, s speaker)) {
	for _, s := range []speaker{http1, http2} {
		t.Run(string(s), func(t *testing.T) { f(t, s) })
	}
}

// TestCORS: what a browser is told, for each field and wildcard of the filter.
func TestCORS(t *testing.T) {
	w := newWorld(t)
	w.service("v1", "", w.echo("v1", func(rw http.ResponseWriter, r *http.Request) bool {
		rw.Header().Set("Access-Control-Allow-Origin", "https://of-the-server.example")
		return false
	}))
	w.apply(httpRoute("cors", `
  - matches: [{path: {value: /all}}]
    filters:
    - type: CORS
      cors:
        allowOrigins: ["https://www.foo.com", "https://*.bar.com", "http://port.foo.com:8080", "https://*:8443"]
        allowMethods: [GET, PUT]
        allowHeaders: [x-one, X-Two]
        exposeHeaders: [x-three, x-four]
        allowCredentials: true
        maxAge: 3600
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /wild}}]
    filters: [{type: CORS, cors: {allowOrigins: ["*"], allowMethods: ["*"], allowHeaders: ["*"], exposeHeaders: ["*"]}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /credentials}}]
    filters: [{type: CORS, cors: {allowOrigins: ["*"], allowMethods: ["*"], allowHeaders: ["*"], exposeHeaders: ["*"], allowCredentials: true}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /backend}}]
    filters: [{type: CORS, cors: {allowOrigins: ["https://rule.com"]}}]
    backendRefs: [{name: v1, port: 80, filters: [{type: CORS, cors: {allowOrigins: ["https://backend.com"]}}]}]
  - matches: [{path: {value: /only-backend}}]
    backendRefs: [{name: v1, port: 80, filters: [{type: CORS, cors: {allowOrigins: ["https://backend.com"]}}]}]
  - matches: [{path: {value: /redirect}}]
    filters:
    - {type: CORS, cors: {allowOrigins: ["https://www.foo.com"]}}
    - {type: RequestRedirect, requestRedirect: {hostname: elsewhere.example}}
`))
	preflight := func(path, origin string, more ...string) request {
		return request{method: "OPTIONS", url: path, header: append([]string{"Origin: " + origin, "Access-Control-Request-Method: PUT"}, more...)}
	}
	simple := func(path, origin string) request { return request{url: path, header: []string{"Origin: " + origin}} }
	gw := w.outside(80)
	speakers(t, func(t *testing.T, s speaker) {
		c := s.client(t, gw)
		for _, test := range []struct {
			name    string
			request request
			status  int
			server  bool     // it answers
			want    []string // all access-control fields, "NAME: VALUE" without the prefix
		}{
			{"preflight of an exact origin", preflight("/all", "https://www.foo.com", "Access-Control-Request-Headers: x-one"), 200, false,
				[]string{"Origin: https://www.foo.com", "Methods: GET, PUT", "Headers: x-one, X-Two", "Expose: x-three, x-four", "Credentials: true", "Age: 3600"}},
			{"preflight of a label before a wildcard", preflight("/all", "https://a.bar.com"), 200, false,
				[]string{"Origin: https://a.bar.com", "Methods: GET, PUT", "Headers: x-one, X-Two", "Expose: x-three, x-four", "Credentials: true", "Age: 3600"}},
			{"preflight of several labels before a wildcard", preflight("/all", "https://a.b.bar.com"), 200, false,
				[]string{"Origin: https://a.b.bar.com", "Methods: GET, PUT", "Headers: x-one, X-Two", "Expose: x-three, x-four", "Credentials: true", "Age: 3600"}},
			{"preflight of the name behind a wildcard", preflight("/all", "https://bar.com"), 200, false, nil},
			{"preflight of another scheme", preflight("/all", "http://www.foo.com"), 200, false, nil},
			{"preflight of another port", preflight("/all", "https://www.foo.com:444"), 200, false, nil},
			{"preflight of null", preflight("/all", "null"), 200, false, nil},
			{"preflight of a name that ends alike", preflight("/all", "https://evilwww.foo.com"), 200, false, nil},
			{"a simple request", simple("/all", "https://www.foo.com"), 200, true,
				[]string{"Origin: https://www.foo.com", "Expose: x-three, x-four", "Credentials: true"}},
			{"the scheme's own port", simple("/all", "https://www.foo.com:443"), 200, true,
				[]string{"Origin: https://www.foo.com:443", "Expose: x-three, x-four", "Credentials: true"}},
			{"a port of the filter", simple("/all", "http://port.foo.com:8080"), 200, true,
				[]string{"Origin: http://port.foo.com:8080", "Expose: x-three, x-four", "Credentials: true"}},
			{"any host of a port", simple("/all", "https://who.knows:8443"), 200, true,
				[]string{"Origin: https://who.knows:8443", "Expose: x-three, x-four", "Credentials: true"}},
			{"a simple request of a stranger", simple("/all", "https://stranger.com"), 200, true, nil},
			{"OPTIONS without a method asked for", request{method: "OPTIONS", url: "/all", header: []string{"Origin: https://www.foo.com"}}, 200, true,
				[]string{"Origin: https://www.foo.com", "Expose: x-three, x-four", "Credentials: true"}},
			{"preflight of any origin", preflight("/wild", "https://x.com:12345", "Access-Control-Request-Headers: a, b"), 200, false,
				[]string{"Origin: https://x.com:12345", "Methods: PUT", "Headers: a, b", "Expose: *", "Age: 5"}},
			{"preflight without headers", preflight("/wild", "https://x.com"), 200, false,
				[]string{"Origin: https://x.com", "Methods: PUT", "Expose: *", "Age: 5"}},
			{"preflight with credentials", preflight("/credentials", "https://x.com", "Access-Control-Request-Headers: a"), 200, false,
				[]string{"Origin: https://x.com", "Methods: PUT", "Headers: a", "Expose: vary", "Credentials: true", "Age: 5"}},
			{"preflight of the backend's filter", preflight("/only-backend", "https://backend.com"), 200, false, []string{"Origin: https://backend.com", "Age: 5"}},
			{"the backend's filter goes before the rule's", simple("/backend", "https://rule.com"), 200, true, nil},
			{"the backend's filter", simple("/backend", "https://backend.com"), 200, true, []string{"Origin: https://backend.com"}},
			{"a redirect", simple("/redirect", "https://www.foo.com"), 302, false, []string{"Origin: https://www.foo.com"}},
		} {
			t.Run(test.name, func(t *testing.T) {
				a := send(t, c, test.request)
				if a.status != test.status || (a.got.Server != "") != test.server {
					t.Errorf("status %d, answered by %q", a.status, a.got.Server)
				}
				var got []string
				for _, f := range []struct{ word, name string }{{"Origin", "Allow-Origin"}, {"Methods", "Allow-Methods"}, {"Headers", "Allow-Headers"}, {"Expose", "Expose-Headers"}, {"Credentials", "Allow-Credentials"}, {"Age", "Max-Age"}} {
					for _, v := range a.header.Values("Access-Control-" + f.name) {
						got = append(got, f.word+": "+v)
					}
				}
				if !slices.Equal(got, test.want) {
					t.Errorf("got %q, want %q", got, test.want)
				}
				if !strings.Contains(a.header.Get("Vary"), "Origin") {
					t.Errorf("vary: %q", a.header.Get("Vary"))
				}
			})
		}
		a := send(t, c, simple("/credentials", "https://x.com"))
		if expose := a.header.Get("Access-Control-Expose-Headers"); !strings.Contains(expose, "x-server") || strings.Contains(expose, "*") {
			t.Errorf("with credentials the fields of the response stand for all: %q", expose)
		}
		if origin := send(t, c, request{url: "/all"}).header.Get("Access-Control-Allow-Origin"); origin != "https://of-the-server.example" {
			t.Errorf("without an origin the server's word counts: %q", origin)
		}
	})
}

// TestRequestMirror: the copies, their heads and bodies, and what they are as flows.
func TestRequestMirror(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"v1", "v2", "v3"} {
		w.service(name, "", w.echo(name))
	}
	w.service("h2c", "appProtocol: kubernetes.io/h2c", w.echo("h2c"))
	w.service("refusing", "", refusing(t))
	w.apply(httpRoute("mirror", `
  - name: copied
    matches: [{path: {value: /two}}]
    filters:
    - {type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}}}
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: rule}], remove: [x-remove]}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: h2c, port: 80}}}
    - {type: URLRewrite, urlRewrite: {hostname: inner.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}
    backendRefs:
    - {name: v1, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Backend, value: v1}]}}]}
  - matches: [{path: {value: /backend}}]
    backendRefs:
    - {name: v1, port: 80, filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v3, port: 80}}}, {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Backend, value: v1}]}}]}
  - matches: [{path: {value: /refused}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: refusing, port: 80}}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /unknown}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: nobody, port: 80}}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /never}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}, percent: 0}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /fraction-never}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}, fraction: {numerator: 0, denominator: 7}}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /fraction-always}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}, fraction: {numerator: 7, denominator: 7}}}]
    backendRefs: [{name: v1, port: 80}]
`))
	gw := w.outside(80)
	mirrorFlow := func(path string) flow.Flow {
		return w.flow("mirror of "+path, func(f *flow.Flow) bool { return f.HTTP != nil && f.HTTP.Mirror && strings.HasPrefix(f.HTTP.Path, path) })
	}
	speakers(t, func(t *testing.T, s speaker) {
		c := s.client(t, gw)
		t.Run("several", func(t *testing.T) {
			body := strings.Repeat("some body ", 50_000)
			a := send(t, c, request{method: "POST", url: "/two/a?b=c", header: []string{"X-Remove: x"}, body: body})
			if a.status != 200 || a.got.Server != "v1" || a.got.Body != body || a.got.Header.Get("X-Backend") != "v1" {
				t.Fatalf("the client got %d from %s", a.status, a.got.Server)
			}
			id := a.got.Header.Get("X-Request-Id")
			for _, name := range []string{"v2", "h2c"} {
				got := w.server(name)
				if got.Method != "POST" || got.URI != "/new/a?b=c" || got.Host != "inner.example" || got.Body != body || got.Header.Get("X-Request-Id") != id {
					t.Errorf("%s got %s %s of %s with %d bytes", name, got.Method, got.URI, got.Host, len(got.Body))
				}
				if got.Header.Get("X-Set") != "rule" || got.Header.Get("X-Remove") != "" || got.Header.Get("X-Backend") != "" {
					t.Errorf("%s got %v", name, got.Header)
				}
				if want := map[string]string{"v2": "HTTP/1.1", "h2c": "HTTP/2.0"}[name]; got.Proto != want {
					t.Errorf("%s was spoken to in %s", name, got.Proto)
				}
				f := mirrorFlow("/new/a")
				if f.HTTP.Status != 200 || f.HTTP.Route != "HTTPRoute/shop/mirror" || f.HTTP.RuleName != "copied" || f.Verdict != flow.VerdictForwarded || f.BytesIn != uint64(len(body)) {
					t.Errorf("flow of a mirror: %+v %+v", f, f.HTTP)
				}
			}
			f := w.flow("the request", func(f *flow.Flow) bool { return f.HTTP != nil && f.HTTP.Path == "/two/a?b=c" })
			if f.HTTP.Mirror || f.HTTP.RuleName != "copied" {
				t.Errorf("flow of the request: %+v", f.HTTP)
			}
		})
		t.Run("of a backend", func(t *testing.T) {
			send(t, c, request{url: "/backend"})
			if got := w.server("v3"); got.URI != "/backend" || got.Header.Get("X-Backend") != "v1" {
				t.Errorf("v3 got %+v", got)
			}
			mirrorFlow("/backend")
		})
		t.Run("a mirror that fails", func(t *testing.T) {
			if a := send(t, c, request{url: "/refused"}); a.status != 200 || a.got.Server != "v1" {
				t.Errorf("the client got %d from %q", a.status, a.got.Server)
			}
			if f := mirrorFlow("/refused"); f.Reason != flow.ReasonConnectFailed {
				t.Errorf("reason %s", f.Reason)
			}
		})
		t.Run("a mirror that does not resolve", func(t *testing.T) {
			if a := send(t, c, request{url: "/unknown"}); a.status != 200 || a.got.Server != "v1" {
				t.Errorf("the client got %d from %q", a.status, a.got.Server)
			}
		})
		t.Run("fraction", func(t *testing.T) {
			// The last is mirrored, those before are not: nothing comes of them later.
			for range 20 {
				send(t, c, request{url: "/never"})
				send(t, c, request{url: "/fraction-never"})
			}
			send(t, c, request{url: "/fraction-always"})
			if got := w.server("v2"); got.URI != "/fraction-always" {
				t.Errorf("v2 got %s", got.URI)
			}
			mirrorFlow("/fraction-always")
		})
	})
	if n := w.metric("sluice_proxy_mirrors_total", "route", "HTTPRoute/shop/mirror", "reason", "connect-failed"); n != 2 {
		t.Errorf("mirrors that failed: %v", n)
	}
	if n := w.metric("sluice_proxy_mirrors_total", "route", "HTTPRoute/shop/mirror", "reason", ""); n != 8 {
		t.Errorf("mirrors that were answered: %v", n)
	}
}
