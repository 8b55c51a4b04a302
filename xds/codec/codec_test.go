package codec

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sluice-mesh/sluice/mesh"
	sluicev1 "github.com/sluice-mesh/sluice/xds/api/sluice/v1"
)

func TestRoundTripLosesNothing(t *testing.T) {
	for _, kind := range mesh.Kinds {
		t.Run(string(kind), func(t *testing.T) {
			for seed := range uint64(400) {
				want := newRandom(seed).resource(kind)
				packed, err := Encode(want)
				if err != nil {
					t.Fatalf("seed %d: encode %+v: %v", seed, want, err)
				}
				if packed.TypeUrl != TypeURL(kind) {
					t.Fatalf("type URL %q, want %q", packed.TypeUrl, TypeURL(kind))
				}
				got, err := Decode(kind, want.Key(), packed.Value)
				if err != nil {
					t.Fatalf("seed %d: decode: %v", seed, err)
				}
				if !reflect.DeepEqual(got, want) {
					t.Fatalf("seed %d: got\n%+v\nwant\n%+v", seed, dump(got), dump(want))
				}
				again, err := Encode(got)
				if err != nil || !bytes.Equal(again.Value, packed.Value) {
					t.Fatalf("seed %d: equal values have different bytes (%v)", seed, err)
				}
			}
		})
	}
}

// dump shows pointers' targets, which %+v does not at depth.
func dump(r mesh.Resource) string {
	var b strings.Builder
	if v, ok := r.(*mesh.VirtualHost); ok {
		for _, rule := range v.Rules {
			for _, f := range rule.Filters {
				for _, p := range []any{f.RequestHeaders, f.ResponseHeaders, f.Redirect, f.Rewrite} {
					if rv := reflect.ValueOf(p); !rv.IsNil() {
						b.WriteString(reflect.Indirect(rv).Type().Name() + " ")
					}
				}
				if f.Rewrite != nil && f.Rewrite.Path != nil {
					b.WriteString(f.Rewrite.Path.Value + "\n")
				}
			}
		}
	}
	return b.String() + strings.ReplaceAll(fmt.Sprintf("%+v", r), "} ", "}\n")
}

func TestNormalForm(t *testing.T) {
	rule := func(change func(*mesh.Rule)) *mesh.VirtualHost {
		r := mesh.Rule{
			Route: mesh.Name{Namespace: "shop", Name: "web"}, RouteKind: "HTTPRoute",
			Clusters: []mesh.WeightedCluster{{Cluster: "shop/web/80", Weight: 1}},
		}
		change(&r)
		return &mesh.VirtualHost{Table: "t", Hostname: "*", Rules: []mesh.Rule{r}}
	}
	noise := func(r *mesh.Rule) {
		r.Timeouts = mesh.Timeouts{Request: time.Second, Backend: time.Second}
		r.Retry = &mesh.Retry{Attempts: 1}
		r.Filters = append(r.Filters, mesh.Filter{Rewrite: &mesh.Rewrite{Hostname: "x"}})
	}
	redirect := mesh.Filter{Redirect: &mesh.Redirect{Status: 301}}
	for name, c := range map[string]struct{ in, want mesh.Resource }{
		"trailing slash of a prefix": {
			rule(func(r *mesh.Rule) { r.Match = mesh.Match{PathKind: mesh.MatchPrefix, Path: "/a/"} }),
			rule(func(r *mesh.Rule) { r.Match = mesh.Match{PathKind: mesh.MatchPrefix, Path: "/a"} }),
		},
		"redirect": {
			rule(func(r *mesh.Rule) { noise(r); r.Filters = append(r.Filters, redirect) }),
			rule(func(r *mesh.Rule) { r.Clusters = nil; r.Filters = []mesh.Filter{redirect} }),
		},
		"no cluster": {
			rule(func(r *mesh.Rule) { noise(r); r.Clusters = nil }),
			rule(func(r *mesh.Rule) { r.Clusters = nil }),
		},
		"weights all zero": {
			rule(func(r *mesh.Rule) { noise(r); r.Clusters[0].Weight = 0 }),
			rule(func(r *mesh.Rule) { r.Clusters = nil }),
		},
	} {
		t.Run(name, func(t *testing.T) {
			packed, err := Encode(c.in)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Decode(c.in.Kind(), c.in.Key(), packed.Value)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Fatalf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

// A rule says to Envoy what it says to Sluice's own proxy.
func TestEnvoyReadsTheSame(t *testing.T) {
	v := &mesh.VirtualHost{Table: "service/shop/web/80", Hostname: "*", Rules: []mesh.Rule{{
		Route: mesh.Name{Namespace: "shop", Name: "web"}, RouteKind: "HTTPRoute", RuleIndex: 1, MatchIndex: 2, RuleName: "main",
		Match: mesh.Match{PathKind: mesh.MatchPrefix, Path: "/a", Method: "GET"},
		Filters: []mesh.Filter{
			{Rewrite: &mesh.Rewrite{Path: &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: "/"}}},
			{RequestHeaders: &mesh.HeaderEdit{Set: []mesh.HeaderValue{{Name: "x-share", Value: "50%"}}, Add: []mesh.HeaderValue{{Name: "x-empty"}}}},
		},
		Clusters: []mesh.WeightedCluster{{Cluster: "shop/web/80", Weight: 9}, {Weight: 1}},
	}}}
	packed, err := Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	m := new(routev3.VirtualHost)
	if err := packed.UnmarshalTo(m); err != nil {
		t.Fatal(err)
	}
	r := m.Routes[0]
	action := r.GetRoute()
	for what, ok := range map[string]bool{
		"name":              m.Name == "service/shop/web/80/_" && r.Name == "HTTPRoute/shop/web/1/2/main",
		"no timeout":        action.Timeout != nil && action.Timeout.AsDuration() == 0,
		"500 for invalid":   action.ClusterNotFoundResponseCode == routev3.RouteAction_INTERNAL_SERVER_ERROR,
		"prefix elements":   r.Match.GetPathSeparatedPrefix() == "/a",
		"prefix to root":    action.RegexRewrite.GetPattern().GetRegex() == "^/a/*" && action.RegexRewrite.Substitution == "/",
		"method":            r.Match.Headers[0].Name == ":method",
		"percent":           r.RequestHeadersToAdd[0].Header.Value == "50%%",
		"set overwrites":    r.RequestHeadersToAdd[0].AppendAction == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		"empty value stays": r.RequestHeadersToAdd[1].KeepEmptyValue,
	} {
		if !ok {
			t.Errorf("%s is wrong in %v", what, r)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	ok := mesh.WeightedCluster{Cluster: "a/b/1", Weight: 1}
	host := func(change func(*mesh.Rule)) mesh.Resource {
		r := mesh.Rule{RouteKind: "HTTPRoute", Clusters: []mesh.WeightedCluster{ok}}
		change(&r)
		return &mesh.VirtualHost{Table: "t", Hostname: "*", Rules: []mesh.Rule{r}}
	}
	for field, r := range map[string]mesh.Resource{
		"Name":                           &mesh.Workload{Name: mesh.Name{Name: "x"}},
		"Addresses":                      &mesh.Workload{Name: mesh.Name{Namespace: "a", Name: "x"}, Addresses: []netip.Addr{{}}},
		"Hostname":                       &mesh.VirtualHost{Table: "t", Hostname: "_"},
		"Table":                          &mesh.VirtualHost{Hostname: "*"},
		"KeyPEM":                         &mesh.Certificate{Name: "a/b", ChainPEM: []byte("x")},
		"Rules[0].Match.Path":            host(func(r *mesh.Rule) { r.Match = mesh.Match{PathKind: mesh.MatchRegexp, Path: "("} }),
		"Rules[0].Match.Headers[0].Name": host(func(r *mesh.Rule) { r.Match.Headers = []mesh.ValueMatch{{Name: ":path", Kind: mesh.MatchExact}} }),
		"Rules[0].Timeouts":              host(func(r *mesh.Rule) { r.Timeouts.Request = -1 }),
		"Rules[0].Retry.Codes[0]":        host(func(r *mesh.Rule) { r.Retry = &mesh.Retry{Codes: []int{7}} }),
		"Rules[0].Clusters[0].Cluster":   host(func(r *mesh.Rule) { r.Clusters[0].Cluster = invalidCluster }),
		"Rules[0].Clusters[0].Filters.Redirect.Status": host(func(r *mesh.Rule) { r.Clusters[0].Filters = []mesh.Filter{{Redirect: &mesh.Redirect{Status: 200}}} }),
		"Rules[0].Filters.Mirror[0].PerMillion": host(func(r *mesh.Rule) {
			r.Filters = []mesh.Filter{{Mirror: &mesh.Mirror{Cluster: "a/b/1", PerMillion: 1000001}}}
		}),
		"Rules[0].Clusters[0].Filters.Mirror[0].Cluster": host(func(r *mesh.Rule) { r.Clusters[0].Filters = []mesh.Filter{{Mirror: &mesh.Mirror{}}} }),
		"Rules[0].Filters.CORS.AllowOrigins[0]":          host(func(r *mesh.Rule) { r.Filters = []mesh.Filter{{CORS: &mesh.CORS{AllowOrigins: []string{"ftp://a"}}}} }),
		"Rules[0].Clusters":                              host(func(r *mesh.Rule) { r.Clusters = []mesh.WeightedCluster{{Weight: 1 << 31}, {Weight: 1 << 31}} }),
		"Rules[0].Filters[1]":                            host(func(r *mesh.Rule) { r.Filters = []mesh.Filter{{Rewrite: &mesh.Rewrite{}}, {Rewrite: &mesh.Rewrite{}}} }),
		"Rules[0].Filters[0]":                            host(func(r *mesh.Rule) { r.Filters = []mesh.Filter{{}} }),
		"Rules[0].Filters.Redirect.Status":               host(func(r *mesh.Rule) { r.Filters = []mesh.Filter{{Redirect: &mesh.Redirect{Status: 200}}} }),
		"Rules[0].Route.Name":                            host(func(r *mesh.Rule) { r.Route.Name = "a/b" }),
		"Rules[0].Match.PathKind":                        host(func(r *mesh.Rule) { r.Match.PathKind = 9 }),
		"Ports[0].Protocol":                              &mesh.Service{Name: mesh.Name{Namespace: "a", Name: "b"}, Ports: []mesh.ServicePort{{Protocol: 1}}},
		"Ports[0].Steered":                               &mesh.Service{Name: mesh.Name{Namespace: "a", Name: "b"}, Ports: []mesh.ServicePort{{Protocol: mesh.ProtocolUDP, Steered: true}}},
		"Chains[0].Default[0].Filters":                   &mesh.Listener{Name: "service/a/b/1", Type: mesh.ListenerService, Parent: mesh.Name{Namespace: "a", Name: "b"}, Port: 1, Chains: []mesh.Chain{{Default: []mesh.WeightedCluster{{Cluster: "a/b/1", Weight: 1, Filters: []mesh.Filter{{}}}}}}},
		"AppProtocol":                                    &mesh.Cluster{Name: "a/b/1", Service: mesh.Name{Namespace: "a", Name: "b"}, Port: 1, Protocol: "smtp"},
		"Rules[0].Filters.Rewrite.Path.Kind":             host(func(r *mesh.Rule) { r.Filters = []mesh.Filter{{Rewrite: &mesh.Rewrite{Path: &mesh.PathEdit{}}}} }),
		"Endpoints[0].AddrPort":                          &mesh.ClusterEndpoints{Cluster: "a/b/1", Endpoints: []mesh.Endpoint{{}}},
		"Rules[0].Clusters[0].Filters[0]":                host(func(r *mesh.Rule) { r.Clusters = []mesh.WeightedCluster{{Weight: 2, Filters: []mesh.Filter{{}}}} }),
	} {
		_, err := Encode(r)
		var e *Error
		if !errors.As(err, &e) || e.Field != field || e.Kind != r.Kind() || e.Key != r.Key() {
			t.Errorf("error %v, want one of %s", err, field)
		}
	}
	// What Envoy's validation alone refuses.
	if _, err := Encode(host(func(r *mesh.Rule) { r.Match.Headers = []mesh.ValueMatch{{Name: "bad name\n", Kind: mesh.MatchExact}} })); err == nil {
		t.Error("a header name that Envoy refuses was encoded")
	}
	if _, err := Encode(&mesh.Workload{Name: mesh.Name{Namespace: "a", Name: "b"}, Node: "\xff"}); err == nil {
		t.Error("a string that is not UTF-8 was encoded")
	}
}

func encoded[M proto.Message](t *testing.T, r mesh.Resource, m M) M {
	t.Helper()
	packed, err := Encode(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := packed.UnmarshalTo(m); err != nil {
		t.Fatal(err)
	}
	return m
}

// Whatever Decode does not understand it refuses, by name.
func TestDecodeRefuses(t *testing.T) {
	name := mesh.Name{Namespace: "a", Name: "b"}
	vhost := &mesh.VirtualHost{Table: "t", Hostname: "*", Rules: []mesh.Rule{{
		RouteKind: "HTTPRoute", Route: name,
		Filters:  []mesh.Filter{{RequestHeaders: &mesh.HeaderEdit{Set: []mesh.HeaderValue{{Name: "x", Value: "y"}}}}},
		Clusters: []mesh.WeightedCluster{{Cluster: "a/b/1", Weight: 2}},
	}}}
	listener := &mesh.Listener{Name: "gateway/a/b/1", Type: mesh.ListenerGateway, Parent: name, Port: 1,
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
		Chains:    []mesh.Chain{{Name: "https", ServerNames: []string{"x"}, Certificates: []string{"a/c"}, RouteTable: "t"}}}
	cluster := &mesh.Cluster{Name: "a/b/1", Service: name, Port: 1}
	endpoints := &mesh.ClusterEndpoints{Cluster: "a/b/1", Endpoints: []mesh.Endpoint{{AddrPort: netip.MustParseAddrPort("10.0.0.1:1")}}}
	certificate := &mesh.Certificate{Name: "a/c", ChainPEM: []byte("x"), KeyPEM: []byte("y")}
	service := &mesh.Service{Name: name, Ports: []mesh.ServicePort{
		{Port: 1, Protocol: mesh.ProtocolTCP, Endpoints: []mesh.Endpoint{{AddrPort: netip.MustParseAddrPort("10.0.0.1:1"), Node: "n"}}},
	}}
	workload := &mesh.Workload{Name: name}

	host := func(f func(*routev3.Route)) (mesh.Resource, proto.Message) {
		m := encoded(t, vhost, new(routev3.VirtualHost))
		f(m.Routes[0])
		return vhost, m
	}
	front := func(f func(*listenerv3.Listener)) (mesh.Resource, proto.Message) {
		m := encoded(t, listener, new(listenerv3.Listener))
		f(m)
		return listener, m
	}
	manager := func(f func(*hcmv3.HttpConnectionManager)) (mesh.Resource, proto.Message) {
		return front(func(m *listenerv3.Listener) {
			h := new(hcmv3.HttpConnectionManager)
			filter := m.FilterChains[0].Filters[0]
			if err := filter.GetTypedConfig().UnmarshalTo(h); err != nil {
				t.Fatal(err)
			}
			f(h)
			packed, err := pack(h)
			if err != nil {
				t.Fatal(err)
			}
			filter.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: packed}
		})
	}
	svc := func(f func(*sluicev1.Service)) (mesh.Resource, proto.Message) {
		m := encoded(t, service, new(sluicev1.Service))
		f(m)
		return service, m
	}
	clu := func(f func(*clusterv3.Cluster)) (mesh.Resource, proto.Message) {
		m := encoded(t, cluster, new(clusterv3.Cluster))
		f(m)
		return cluster, m
	}
	cla := func(f func(*endpointv3.ClusterLoadAssignment)) (mesh.Resource, proto.Message) {
		m := encoded(t, endpoints, new(endpointv3.ClusterLoadAssignment))
		f(m)
		return endpoints, m
	}
	secret := func(f func(*tlsv3.Secret)) (mesh.Resource, proto.Message) {
		m := encoded(t, certificate, new(tlsv3.Secret))
		f(m)
		return certificate, m
	}
	own := func(number protowire.Number) (mesh.Resource, proto.Message) {
		m := encoded(t, workload, new(sluicev1.Workload))
		m.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, number, protowire.VarintType), 1))
		return workload, m
	}
	cases := []struct {
		field string
		make  func() (mesh.Resource, proto.Message)
	}{
		{"routes[0].tracing", func() (mesh.Resource, proto.Message) {
			return host(func(r *routev3.Route) { r.Tracing = &routev3.Tracing{} })
		}},
		{"routes[0].route.timeout", func() (mesh.Resource, proto.Message) {
			return host(func(r *routev3.Route) { r.GetRoute().Timeout = nil })
		}},
		{"routes[0].route.timeout.seconds", func() (mesh.Resource, proto.Message) { // beyond 64 bits of nanoseconds
			return host(func(r *routev3.Route) { r.GetRoute().Timeout = &durationpb.Duration{Seconds: 300_000_000_000} })
		}},
		{"routes[0].match.prefix", func() (mesh.Resource, proto.Message) {
			return host(func(r *routev3.Route) { r.Match.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: "/a"} })
		}},
		{"routes[0].match.case_sensitive", func() (mesh.Resource, proto.Message) {
			return host(func(r *routev3.Route) { r.Match.CaseSensitive = wrapperspb.Bool(false) })
		}},
		{"routes[0].match.headers[0].invert_match", func() (mesh.Resource, proto.Message) {
			return host(func(r *routev3.Route) {
				r.Match.Headers = []*routev3.HeaderMatcher{{Name: "x", InvertMatch: true, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: exactly("1")}}}
			})
		}},
		{"routes[0].name", func() (mesh.Resource, proto.Message) {
			return host(func(r *routev3.Route) { r.Name = "mine" })
		}},
		{"Rules[0].Clusters[0].Cluster", func() (mesh.Resource, proto.Message) {
			return host(func(r *routev3.Route) { r.GetRoute().GetWeightedClusters().Clusters[0].Name = "elsewhere" })
		}},
		{"routes[0].request_headers_to_add[0].header.value", func() (mesh.Resource, proto.Message) {
			return host(func(r *routev3.Route) { r.RequestHeadersToAdd[0].Header.Value = "%START_TIME%" })
		}},
		{"routes[0].metadata", func() (mesh.Resource, proto.Message) {
			return host(func(r *routev3.Route) {
				r.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"other": {}}}
			})
		}},
		{"routes[0].metadata", func() (mesh.Resource, proto.Message) {
			return host(func(r *routev3.Route) {
				r.Metadata = metadata(map[string]*structpb.Value{keyFilters: textList([]string{"mirrors"})})
			})
		}},
		{"filter_chains[0].use_proxy_proto", func() (mesh.Resource, proto.Message) {
			return front(func(m *listenerv3.Listener) { m.FilterChains[0].UseProxyProto = wrapperspb.Bool(true) })
		}},
		{"filter_chains[0].filters[0].typed_config.skip_xff_append", func() (mesh.Resource, proto.Message) {
			return manager(func(h *hcmv3.HttpConnectionManager) { h.SkipXffAppend = true })
		}},
		{"filter_chains[0].filters[0].typed_config.http_filters", func() (mesh.Resource, proto.Message) {
			return manager(func(h *hcmv3.HttpConnectionManager) { h.HttpFilters = append(h.HttpFilters, h.HttpFilters[0]) })
		}},
		{"filter_chains[0].transport_socket.typed_config", func() (mesh.Resource, proto.Message) {
			return front(func(m *listenerv3.Listener) {
				wrong, _ := pack(new(tlsv3.UpstreamTlsContext))
				m.FilterChains[0].TransportSocket.ConfigType = &corev3.TransportSocket_TypedConfig{TypedConfig: wrong}
			})
		}},
		{"address.socket_address.port_value", func() (mesh.Resource, proto.Message) {
			return front(func(m *listenerv3.Listener) {
				m.Address.GetSocketAddress().PortSpecifier = &corev3.SocketAddress_PortValue{PortValue: 2}
			})
		}},
		{"lb_policy", func() (mesh.Resource, proto.Message) {
			return clu(func(m *clusterv3.Cluster) { m.LbPolicy = clusterv3.Cluster_MAGLEV })
		}},
		{"eds_cluster_config.service_name", func() (mesh.Resource, proto.Message) {
			return clu(func(m *clusterv3.Cluster) { m.EdsClusterConfig.ServiceName = "x" })
		}},
		{"endpoints[0].priority", func() (mesh.Resource, proto.Message) {
			return cla(func(m *endpointv3.ClusterLoadAssignment) { m.Endpoints[0].Priority = 1 })
		}},
		{"endpoints[0].lb_endpoints[0].health_status", func() (mesh.Resource, proto.Message) {
			return cla(func(m *endpointv3.ClusterLoadAssignment) {
				m.Endpoints[0].LbEndpoints[0].HealthStatus = corev3.HealthStatus_UNHEALTHY
			})
		}},
		{"tls_certificate.ocsp_staple", func() (mesh.Resource, proto.Message) {
			return secret(func(m *tlsv3.Secret) { m.GetTlsCertificate().OcspStaple = inline([]byte("x")) })
		}},
		{"ports[0].hosts[0]", func() (mesh.Resource, proto.Message) {
			return svc(func(m *sluicev1.Service) { m.Ports[0].AllHosts, m.Ports[0].Hosts = false, []uint32{7} })
		}},
		{"ports[0].target_port", func() (mesh.Resource, proto.Message) {
			return svc(func(m *sluicev1.Service) { m.Ports[0].TargetPort = 1 << 16 })
		}},
		{"host_nodes[0]", func() (mesh.Resource, proto.Message) {
			return svc(func(m *sluicev1.Service) { m.HostNodes[0] = 2 })
		}},
		{"hosts_ipv4", func() (mesh.Resource, proto.Message) {
			return svc(func(m *sluicev1.Service) { m.HostsIpv4 = m.HostsIpv4[:3] })
		}},
		{"ports[1024].hosts", func() (mesh.Resource, proto.Message) { // small bytes, 2³⁰ endpoints
			return svc(func(m *sluicev1.Service) {
				m.HostsIpv4, m.HostNodes = make([]byte, 4<<10), nil
				p := m.Ports[0]
				for range 1 << 20 / len(m.HostsIpv4) * 8 {
					m.Ports = append(m.Ports, p)
				}
			})
		}},
		{"", func() (mesh.Resource, proto.Message) { return own(firstAdvisory - 1) }},
	}
	for _, c := range cases {
		r, m := c.make()
		value, err := marshal.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Decode(r.Kind(), r.Key(), value)
		var e *Error
		if !errors.As(err, &e) || e.Field != c.field || e.Key != r.Key() {
			t.Errorf("error %v, want one of field %q", err, c.field)
		}
	}
	_, m := own(firstAdvisory)
	value, _ := marshal.Marshal(m)
	if _, err := Decode(mesh.KindWorkload, "a/b", value); err != nil {
		t.Errorf("an advisory field of a newer version: %v", err)
	}
	if _, err := Decode(mesh.KindWorkload, "a/c", value); err == nil {
		t.Error("a resource under another's name was accepted")
	}
	// A message of an earlier version of the encoder, which wrote less, is read.
	_, less := manager(func(h *hcmv3.HttpConnectionManager) { h.NormalizePath, h.UpgradeConfigs = nil, nil })
	value, _ = marshal.Marshal(less)
	if _, err := Decode(mesh.KindListener, listener.Key(), value); err != nil {
		t.Errorf("a listener that says less: %v", err)
	}
}

func TestDecodedSharesNoMemory(t *testing.T) {
	packed, err := Encode(&mesh.Certificate{Name: "a/b", ChainPEM: []byte("chain"), KeyPEM: []byte("key")})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Decode(mesh.KindCertificate, "a/b", packed.Value)
	if err != nil {
		t.Fatal(err)
	}
	clear(packed.Value)
	if c := r.(*mesh.Certificate); string(c.ChainPEM) != "chain" || string(c.KeyPEM) != "key" {
		t.Fatal("the certificate changed with the message's bytes")
	}
}

// A service is compact: an endpoint that serves one port costs its address and
// two small numbers beside the text of its own name.
func TestServiceIsCompact(t *testing.T) {
	s := &mesh.Service{Name: mesh.Name{Namespace: "shop", Name: "web"}, Ports: []mesh.ServicePort{
		{Name: "http", Port: 80, Protocol: mesh.ProtocolTCP}, {Name: "metrics", Port: 9090, Protocol: mesh.ProtocolTCP},
	}}
	names := 0
	for i := range 250 {
		e := mesh.Endpoint{Workload: mesh.Name{Namespace: "shop", Name: "web-" + string(rune('a'+i%26)) + string(rune('a'+i/26))}, Node: "node-" + string(rune('a'+i%10))}
		names += len(e.Workload.Name) + 2
		for p, target := range []uint16{8080, 9090} {
			e.AddrPort = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), target)
			s.Ports[p].Endpoints = append(s.Ports[p].Endpoints, e)
		}
	}
	packed, err := Encode(s)
	if err != nil {
		t.Fatal(err)
	}
	// 4 address bytes, 1 for the namespace, at most 2 for the name, at most 2 for the node.
	if limit := names + 250*9 + 250; len(packed.Value) > limit {
		t.Fatalf("%d bytes for 250 endpoints on two ports, want at most %d", len(packed.Value), limit)
	}
}

func FuzzDecode(f *testing.F) {
	for i, kind := range mesh.Kinds {
		for seed := range uint64(8) {
			packed, err := Encode(newRandom(seed).resource(kind))
			if err != nil {
				f.Fatal(err)
			}
			f.Add(byte(i), packed.Value)
		}
	}
	f.Fuzz(func(t *testing.T, k byte, value []byte) {
		kind := mesh.Kinds[int(k)%len(mesh.Kinds)]
		r, err := decode(kind, value)
		if err != nil {
			return
		}
		// What was accepted means one thing: it survives its own encoding.
		packed, err := Encode(r)
		if err != nil {
			t.Fatalf("decoded %+v cannot be encoded: %v", r, err)
		}
		again, err := Decode(kind, r.Key(), packed.Value)
		if err != nil {
			t.Fatalf("decode again: %v", err)
		}
		if !reflect.DeepEqual(r, again) {
			t.Fatalf("first\n%+v\nthen\n%+v", r, again)
		}
	})
}

func BenchmarkDecodeService(b *testing.B) {
	s := newRandom(1).service()
	for len(s.Ports) == 0 {
		s = newRandom(2).service()
	}
	packed, err := Encode(s)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(mesh.KindService, s.Key(), packed.Value); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVirtualHost(b *testing.B) {
	v := newRandom(3).virtualHost()
	packed, err := Encode(v)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Encode(v); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Decode(mesh.KindVirtualHost, v.Key(), packed.Value); err != nil {
				b.Fatal(err)
			}
		}
	})
}
