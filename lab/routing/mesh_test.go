package routing

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sluice-mesh/sluice/observe/flow"
)

// TestServiceParents: producer and consumer routes of Services (GEP-1426).
func TestServiceParents(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"shop", "v1", "v2", "v3"} {
		w.service(name, "", w.echo(name))
	}
	of := func(namespace, name, rules string) string {
		return fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: %s, namespace: %s}
spec:
  parentRefs: [{group: "", kind: Service, name: shop, namespace: shop, port: 80}]
  rules:
%s`, name, namespace, rules)
	}
	w.apply(of("shop", "producer", `
  - matches: [{path: {value: /a}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /own}}]
    backendRefs: [{name: shop, port: 80}]
`))
	inShop, inOther := w.inside("shop", "shop"), w.inside("other", "shop")
	speakers(t, func(t *testing.T, s speaker) {
		for name, to := range map[string]netip.AddrPort{"producer for its namespace": inShop, "producer for others": inOther} {
			t.Run(name, func(t *testing.T) {
				c := s.client(t, to)
				check(t, w, c, request{url: "http://whatever/a"}, expectation{server: "v1"})
				w.server("v2")
				check(t, w, c, request{url: "http://whatever/own"}, expectation{server: "shop"})
				check(t, w, c, request{url: "http://whatever/b"}, expectation{status: 404})
			})
		}
	})
	w.apply(of("other", "consumer", `
  - backendRefs: [{name: v3, namespace: shop, port: 80}]
`))
	speakers(t, func(t *testing.T, s speaker) {
		t.Run("consumer for its namespace", func(t *testing.T) {
			c := s.client(t, inOther)
			check(t, w, c, request{url: "http://whatever/a"}, expectation{server: "v3"})
			check(t, w, c, request{url: "http://whatever/b"}, expectation{server: "v3"})
		})
		t.Run("consumer not for others", func(t *testing.T) {
			c := s.client(t, inShop)
			check(t, w, c, request{url: "http://whatever/a"}, expectation{server: "v1"})
			check(t, w, c, request{url: "http://whatever/b"}, expectation{status: 404})
		})
	})
}

// grpcEcho answers any method with its name and what it got.
func (w *world) grpcEcho(name string) netip.AddrPort {
	w.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		md, _ := metadata.FromIncomingContext(stream.Context())
		stream.SetHeader(metadata.Pairs("x-server", name, "x-seen", strings.Join(md.Get("x-set"), "|"), "x-header-remove", "of the server"))
		var got []string
		for {
			m := new(wrapperspb.StringValue)
			err := stream.RecvMsg(m)
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			got = append(got, m.Value)
		}
		w.seen <- seen{Server: name, URI: method, Body: strings.Join(got, ",")}
		return stream.SendMsg(wrapperspb.String(name))
	}))
	go s.Serve(ln)
	w.t.Cleanup(s.Stop)
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// TestGRPCRoute: methods, headers, precedence, filters, weights and mirrors.
func TestGRPCRoute(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"v1", "v2", "v3"} {
		w.service(name, "", w.grpcEcho(name))
	}
	w.apply(`
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: calls, namespace: shop}
spec:
  parentRefs: [{name: web}]
  hostnames: [www.example]
  rules:
  - matches: [{method: {service: shop.Echo}}]
    backendRefs: [{name: v1, port: 80}]
  - name: one
    matches: [{method: {service: shop.Echo, method: One}}]
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: rule}]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [x-header-remove], set: [{name: x-rule, value: one}]}}
    backendRefs: [{name: v2, port: 80}]
  - matches: [{method: {service: shop.Echo, method: One}, headers: [{name: Version, value: three}]}]
    backendRefs: [{name: v3, port: 80}]
  - matches: [{method: {method: Anywhere}}]
    backendRefs: [{name: v3, port: 80}]
  - matches: [{method: {type: RegularExpression, service: "shop\\.(Fly|Swim)", method: "[A-Z][a-z]+"}}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{method: {service: shop.Echo, method: Mirrored}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v3, port: 80}}}]
    backendRefs: [{name: v1, port: 80, filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-rule, value: backend}]}}]}]
  - matches: [{method: {service: shop.Echo, method: Missing}}]
    backendRefs: [{name: nobody, port: 80}]
  - matches: [{method: {service: shop.Echo, method: Weight}}]
    backendRefs: [{name: v1, port: 80, weight: 0}, {name: v2, port: 80, weight: 7}]
  - matches: [{headers: [{name: all, type: RegularExpression, value: "y.s"}]}]
    backendRefs: [{name: v3, port: 80}]
`)
	gw := w.outside(80)
	conn, err := grpc.NewClient("passthrough:///www.example", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", gw.String())
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	for _, test := range []struct {
		name, method string
		header       []string
		server       string
		code         codes.Code
		response     map[string]string
	}{
		{name: "service", method: "/shop.Echo/Other", server: "v1"},
		{name: "service and method", method: "/shop.Echo/One", server: "v2", response: map[string]string{"x-rule": "one", "x-seen": "rule", "x-header-remove": ""}},
		{name: "with case", method: "/shop.Echo/one", server: "v1"},
		{name: "header", method: "/shop.Echo/One", header: []string{"version", "three"}, server: "v3"},
		{name: "method alone", method: "/any.Service/Anywhere", server: "v3"},
		{name: "expression", method: "/shop.Swim/Crawl", server: "v2"},
		{name: "expression of the whole", method: "/shop.Swim/Crawl2", code: codes.Unimplemented},
		{name: "header expression", method: "/who/Knows", header: []string{"all", "yes"}, server: "v3"},
		{name: "no rule", method: "/who/Knows", code: codes.Unimplemented},
		{name: "mirror", method: "/shop.Echo/Mirrored", server: "v1", response: map[string]string{"x-rule": "backend"}},
		{name: "missing backend", method: "/shop.Echo/Missing", code: codes.Unavailable},
		{name: "weight", method: "/shop.Echo/Weight", server: "v2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if test.header != nil {
				ctx = metadata.AppendToOutgoingContext(ctx, test.header...)
			}
			var header metadata.MD
			out := new(wrapperspb.StringValue)
			err := conn.Invoke(ctx, test.method, wrapperspb.String("hello"), out, grpc.Header(&header))
			if status.Code(err) != test.code || out.Value != test.server {
				t.Fatalf("%v from %q, want %s from %q", err, out.Value, test.code, test.server)
			}
			for name, value := range test.response {
				if got := strings.Join(header.Get(name), "|"); got != value {
					t.Errorf("%s: %q, want %q", name, got, value)
				}
			}
			if test.name == "mirror" {
				for {
					if got := w.server("v3"); got.URI == test.method {
						if got.Body != "hello" {
							t.Errorf("the mirror got %q", got.Body)
						}
						break
					}
				}
				f := w.flow("mirror", func(f *flow.Flow) bool { return f.HTTP != nil && f.HTTP.Mirror })
				if f.HTTP.Route != "GRPCRoute/shop/calls" || f.HTTP.GRPC != "0" || f.HTTP.Proto != "HTTP/2" {
					t.Errorf("flow %+v", f.HTTP)
				}
			}
		})
	}
	f := w.flow("the rule by name", func(f *flow.Flow) bool { return f.HTTP != nil && f.HTTP.RuleName == "one" })
	if f.HTTP.Rule != 1 {
		t.Errorf("flow %+v", f.HTTP)
	}
}
