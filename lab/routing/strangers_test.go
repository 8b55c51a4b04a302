package routing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/xds"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sluice-mesh/sluice/xds/server"
)

// serveXDS serves the world's resources on a unix socket and returns its path.
func (w *world) serveXDS() string {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "xds.sock")
	l, err := server.Listen(path, -1)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.xds.Serve(ctx, l) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("serve xds: %v", err)
		}
	})
	return path
}

// refused fails the test if a client refused something.
func (w *world) refused() {
	w.t.Helper()
	for _, c := range w.xds.Status().Clients {
		for _, k := range c.Kinds {
			for _, r := range k.Rejected {
				w.t.Errorf("%s refuses %s %s: %s", c.Client, k.Kind, r.Key, r.Text)
			}
		}
	}
}

// within repeats try until it succeeds.
func within(t testing.TB, try func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// TestProxylessGRPC: a gRPC client without a proxy (xds:///) gets its configuration over
// state-of-the-world ADS, and calls go where the proxy sends them.
func TestProxylessGRPC(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"calls", "v1", "v2"} {
		w.service(name, "appProtocol: kubernetes.io/h2c", w.grpcEcho(name))
	}
	route := func(weight1, weight2 int) string {
		return fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: calls, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: calls}]
  rules:
  - matches: [{method: {service: shop.Echo, method: One}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{method: {service: shop.Echo, method: One}, headers: [{name: version, value: two}]}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{method: {service: shop.Echo, method: Weight}}]
    backendRefs: [{name: v1, port: 80, weight: %d}, {name: v2, port: 80, weight: %d}]
`, weight1, weight2)
	}
	w.apply(route(1, 0))
	path := w.serveXDS()
	resolver, err := xds.NewXDSResolverWithConfigForTesting(fmt.Appendf(nil, `{
		"xds_servers": [{"server_uri": "unix://%s", "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
		"node": {"id": "stranger"}
	}`, path))
	if err != nil {
		t.Fatal(err)
	}
	dial := func(target string, opts ...grpc.DialOption) *grpc.ClientConn {
		conn, err := grpc.NewClient(target, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	proxyless := dial("xds:///calls.shop.svc.cluster.local:80", grpc.WithResolvers(resolver))
	steered := w.inside("shop", "calls")
	proxied := dial("passthrough:///calls", grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", steered.String())
	}))
	invoke := func(conn *grpc.ClientConn, method string, header ...string) (string, codes.Code) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		out := new(wrapperspb.StringValue)
		err := conn.Invoke(metadata.AppendToOutgoingContext(ctx, header...), method, wrapperspb.String("hello"), out)
		return out.Value, status.Code(err)
	}
	for _, test := range []struct {
		method string
		header []string
		server string
	}{
		{method: "/shop.Echo/One", server: "v1"},
		{method: "/shop.Echo/One", header: []string{"version", "two"}, server: "v2"},
		{method: "/shop.Echo/One", header: []string{"version", "three"}, server: "v1"},
		{method: "/shop.Echo/Weight", server: "v1"},
	} {
		for who, conn := range map[string]*grpc.ClientConn{"proxyless": proxyless, "through the proxy": proxied} {
			if got, code := invoke(conn, test.method, test.header...); got != test.server || code != codes.OK {
				t.Errorf("%s: %s %v: %q %s, want %q", who, test.method, test.header, got, code, test.server)
			}
		}
	}
	// A method without a rule fails on both ways; gRPC's own word for it is another.
	if got, code := invoke(proxyless, "/shop.Echo/None"); code != codes.Unavailable {
		t.Errorf("a method without a rule: %q %s", got, code)
	}
	// A change reaches it.
	w.apply(route(0, 1))
	within(t, func() error {
		if got, code := invoke(proxyless, "/shop.Echo/Weight"); got != "v2" {
			return fmt.Errorf("after the change: %q %s", got, code)
		}
		return nil
	})
	// A Service without routes is there too, and one that comes later is found.
	plain := dial("xds:///v2.shop.svc.cluster.local:80", grpc.WithResolvers(resolver))
	if got, code := invoke(plain, "/any.Service/Method"); got != "v2" || code != codes.OK {
		t.Errorf("a Service without routes: %q %s", got, code)
	}
	w.refused()
}

// envoy starts an Envoy that has its configuration from the world, and returns when it
// listens on addr. ENVOY names the program.
func (w *world) envoy(addr netip.AddrPort) {
	w.t.Helper()
	program := os.Getenv("ENVOY")
	if _, err := os.Stat(program); program == "" || err != nil {
		w.t.Skipf("ENVOY=%q is no program; make test gets one: %v", program, err)
	}
	bootstrap := filepath.Join(w.t.TempDir(), "envoy.yaml")
	if err := os.WriteFile(bootstrap, fmt.Appendf(nil, `
node: {id: stranger, cluster: strangers}
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services: [{envoy_grpc: {cluster_name: xds}}]
  lds_config: {ads: {}, resource_api_version: V3}
  cds_config: {ads: {}, resource_api_version: V3}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: xds
      endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: "%s"}}}}]}]
`, w.serveXDS()), 0o600); err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(program, "-c", bootstrap, "--disable-hot-restart", "--concurrency", "1", "-l", "warning")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	w.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if w.t.Failed() {
			w.t.Logf("Envoy said:\n%s", &said)
		}
	})
	within(w.t, func() error {
		select {
		case err := <-ended:
			ended <- err
			w.t.Fatalf("Envoy ended: %v\n%s", err, &said)
		default:
		}
		c, err := net.Dial("tcp", addr.String())
		return errors.Join(err, closed(c))
	})
}

func closed(c net.Conn) error {
	if c == nil {
		return nil
	}
	return c.Close()
}

// TestEnvoy: a real Envoy gets its configuration by delta ADS and answers as the proxy
// does.
func TestEnvoy(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"v1", "v2"} {
		w.service(name, "appProtocol: http", w.echo(name))
	}
	manifest := func(version string) string {
		return strings.ReplaceAll(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop, namespace: shop}
spec:
  parentRefs: [{name: web, sectionName: http}]
  hostnames: [www.example, "*.wild.example"]
  rules:
  - matches: [{path: {type: Exact, value: /exact}}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {value: /prefix}}]
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: VERSION}], remove: [x-gone]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Header-Set, value: VERSION}], remove: [x-header-remove]}}
    - {type: URLRewrite, urlRewrite: {hostname: inner.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {type: RegularExpression, value: "/re/[0-9]+"}, method: POST}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {value: /header}, headers: [{name: version, value: two}]}, {path: {value: /header}, queryParams: [{name: v, value: "2"}]}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {value: /header}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: moved.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, statusCode: 301}}]
  - matches: [{path: {value: /missing}}]
    backendRefs: [{name: nobody, port: 80}]
`, "VERSION", version)
	}
	w.apply(manifest("one"))
	l := w.store.Listener("gateway/shop/web/80")
	if l == nil || len(l.Addresses) == 0 {
		t.Fatalf("the Gateway has no listener on port 80: %+v", l)
	}
	gw := netip.AddrPortFrom(l.Addresses[0], l.Port)
	w.envoy(gw)
	// Its routes come a moment after its listener.
	theirs, ours := http1.client(t, gw), http1.client(t, w.outside(80))
	within(t, func() error {
		if a := send(t, theirs, request{url: "/exact"}); a.status != 200 {
			return fmt.Errorf("Envoy answers %d %s", a.status, a.text)
		}
		return nil
	})
	for _, r := range []request{
		{url: "/exact"},
		{url: "/exact/not"},
		{url: "/prefix"},
		{url: "/prefix/and/more?q=1", header: []string{"x-gone: here", "X-Set: mine"}},
		{url: "/prefixed"},
		{method: "POST", url: "/re/123", body: "body"},
		{method: "GET", url: "/re/123"},
		{method: "POST", url: "/re/123x"},
		{url: "/header", header: []string{"version: two"}},
		{url: "/header?v=2"},
		{url: "/header?v=3"},
		{url: "/old/way?q=1"},
		{url: "/missing"},
		{url: "http://a.wild.example/exact"},
		{url: "http://wild.example/exact"},
		{url: "http://nobody.example/exact"},
		{url: "http://www.example:80/exact"},
	} {
		want, got := send(t, ours, r), send(t, theirs, r)
		if got.status != want.status || got.got.Server != want.got.Server || got.got.URI != want.got.URI || got.got.Host != want.got.Host || got.got.Body != want.got.Body {
			t.Errorf("%s: Envoy %d %q %q %q, the proxy %d %q %q %q", r, got.status, got.got.Server, got.got.Host, got.got.URI, want.status, want.got.Server, want.got.Host, want.got.URI)
		}
		for _, name := range []string{"Location", "X-Header-Set", "X-Header-Remove"} {
			if g, o := got.header.Get(name), want.header.Get(name); g != o {
				t.Errorf("%s: Envoy's %s is %q, the proxy's %q", r, name, g, o)
			}
		}
		for _, name := range []string{"X-Set", "X-Gone"} {
			if g, o := got.got.Header.Get(name), want.got.Header.Get(name); g != o {
				t.Errorf("%s: behind Envoy %s is %q, behind the proxy %q", r, name, g, o)
			}
		}
	}
	w.apply(manifest("two"))
	within(t, func() error {
		if a := send(t, theirs, request{url: "/prefix"}); a.got.Header.Get("X-Set") != "two" {
			return fmt.Errorf("after the change Envoy sets %q", a.got.Header.Get("X-Set"))
		}
		return nil
	})
	w.refused()
}
