package codec

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sluice-mesh/sluice/mesh"
)

// invalidCluster stands for a backend that does not exist where Envoy wants a
// name. It is no "NAMESPACE/SERVICE/PORT", so no cluster can have it.
const invalidCluster = "sluice.dev/invalid-backend"

// upstreamOptions is the extension key of HttpProtocolOptions in a cluster.
const upstreamOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// connectTimeout is Envoy's: Sluice's own proxy has its own.
const connectTimeout = 5 * time.Second

// clusterNameParts reads "NAMESPACE/SERVICE/PORT", with "/udp" behind it for a UDP port.
func clusterNameParts(name string) (mesh.Name, uint16, error) {
	parts := strings.Split(strings.TrimSuffix(name, udpSuffix), "/")
	if len(parts) != 3 {
		return mesh.Name{}, 0, errors.New(`is not "NAMESPACE/SERVICE/PORT"`)
	}
	n := mesh.Name{Namespace: parts[0], Name: parts[1]}
	if err := checkName(n); err != nil {
		return mesh.Name{}, 0, err
	}
	p, err := canonicalPort(parts[2])
	return n, p, err
}

// canonicalPort reads a port as strconv writes it.
func canonicalPort(s string) (uint16, error) {
	p, err := strconv.ParseUint(s, 10, 16)
	if err != nil || strconv.FormatUint(p, 10) != s {
		return 0, fmt.Errorf("%q is not a port", s)
	}
	return uint16(p), nil
}

func encodeCluster(c *mesh.Cluster) (*clusterv3.Cluster, error) {
	service, port, err := clusterNameParts(c.Name)
	if err != nil {
		return nil, below("Name", err)
	}
	if service != c.Service || port != c.Port {
		return nil, at("Name", "does not say service %s, port %d", c.Service, c.Port)
	}
	if err := checkAppProtocol(c.Protocol); err != nil {
		return nil, err
	}
	m := &clusterv3.Cluster{
		Name:                 c.Name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: fromADS()},
		ConnectTimeout:       durationpb.New(connectTimeout),
		LbPolicy:             clusterv3.Cluster_LEAST_REQUEST,
	}
	if c.Hostname != "" {
		if err := encodeHostname(c, m); err != nil {
			return nil, below("Hostname", err)
		}
	}
	if c.TLS != nil {
		if m.TransportSocket, err = encodeUpstreamTLS(c.TLS); err != nil {
			return nil, below("TLS", err)
		}
	}
	options := new(httpv3.HttpProtocolOptions)
	fields := map[string]*structpb.Value{}
	if err := encodePolicy(&c.Policy, m, options, fields); err != nil {
		return nil, below("Policy", err)
	}
	switch c.Protocol {
	case mesh.AppProtocolUnknown:
		options.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{
			UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{
				HttpProtocolOptions:  &corev3.Http1ProtocolOptions{},
				Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
			},
		}
	case mesh.AppProtocolHTTP:
		options.UpstreamProtocolOptions = explicit(&httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
				HttpProtocolOptions: &corev3.Http1ProtocolOptions{},
			},
		})
	case mesh.AppProtocolHTTP2:
		options.UpstreamProtocolOptions = explicit(&httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
				Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
			},
		})
	default:
		// A cluster that does not speak HTTP has no HTTP options to tell it by.
		fields["app_protocol"] = structpb.NewStringValue(string(c.Protocol))
		m.Metadata = metadata(fields)
		return m, nil
	}
	m.Metadata = metadata(fields)
	packed, err := pack(options)
	if err != nil {
		return nil, err
	}
	m.TypedExtensionProtocolOptions = map[string]*anypb.Any{upstreamOptions: packed}
	return m, nil
}

func explicit(c *httpv3.HttpProtocolOptions_ExplicitHttpConfig) *httpv3.HttpProtocolOptions_ExplicitHttpConfig_ {
	return &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: c}
}

// fromADS says that a thing comes over the stream that named it.
func fromADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
	}
}

func decodeCluster(m *clusterv3.Cluster) (*mesh.Cluster, error) {
	service, port, err := clusterNameParts(m.GetName())
	if err != nil {
		return nil, below("name", err)
	}
	c := &mesh.Cluster{Name: m.GetName(), Service: service, Port: port}
	if m.GetType() == clusterv3.Cluster_STRICT_DNS {
		if c.Hostname, err = decodeHostname(m); err != nil {
			return nil, err
		}
	}
	if m.GetTransportSocket() != nil {
		if c.TLS, err = decodeUpstreamTLS(m.GetTransportSocket()); err != nil {
			return nil, below("transport_socket", err)
		}
	}
	options := new(httpv3.HttpProtocolOptions)
	if p := metadataFields(m.GetMetadata())["app_protocol"]; p != nil {
		c.Protocol = mesh.AppProtocol(p.GetStringValue())
		return c, decodePolicy(m, options, &c.Policy)
	}
	if err := unpack(m.GetTypedExtensionProtocolOptions()[upstreamOptions], options); err != nil {
		return nil, below(fmt.Sprintf("typed_extension_protocol_options[%q]", upstreamOptions), err)
	}
	if err := decodePolicy(m, options, &c.Policy); err != nil {
		return nil, err
	}
	switch config := options.GetExplicitHttpConfig(); {
	case config.GetHttpProtocolOptions() != nil:
		c.Protocol = mesh.AppProtocolHTTP
	case config.GetHttp2ProtocolOptions() != nil:
		c.Protocol = mesh.AppProtocolHTTP2
	}
	return c, nil
}

func encodeClusterEndpoints(c *mesh.ClusterEndpoints) (*endpointv3.ClusterLoadAssignment, error) {
	if _, _, err := clusterNameParts(c.Cluster); err != nil {
		return nil, below("Cluster", err)
	}
	m := &endpointv3.ClusterLoadAssignment{ClusterName: c.Cluster}
	if len(c.Endpoints) == 0 {
		return m, nil
	}
	byZone := map[string]*endpointv3.LocalityLbEndpoints{}
	for i := range c.Endpoints {
		e := &c.Endpoints[i]
		if i > 0 && e.AddrPort.Compare(c.Endpoints[i-1].AddrPort) <= 0 {
			return nil, at(fmt.Sprintf("Endpoints[%d].AddrPort", i), "not in the order of addresses, or there twice")
		}
		address, err := socketAddress(e.AddrPort)
		if err != nil {
			return nil, below(fmt.Sprintf("Endpoints[%d].AddrPort", i), err)
		}
		fields := map[string]*structpb.Value{}
		if !e.Workload.IsZero() {
			if err := checkName(e.Workload); err != nil {
				return nil, below(fmt.Sprintf("Endpoints[%d].Workload", i), err)
			}
			fields["workload"] = structpb.NewStringValue(e.Workload.String())
		}
		if e.Node != "" {
			fields["node"] = structpb.NewStringValue(e.Node)
		}
		var additional []*endpointv3.Endpoint_AdditionalAddress
		if e.Additional.IsValid() {
			a, err := socketAddress(e.Additional)
			if err != nil {
				return nil, below(fmt.Sprintf("Endpoints[%d].Additional", i), err)
			}
			if e.Additional.Addr().Is4() == e.AddrPort.Addr().Is4() {
				return nil, at(fmt.Sprintf("Endpoints[%d].Additional", i), "of the same family")
			}
			additional = append(additional, &endpointv3.Endpoint_AdditionalAddress{Address: a})
		}
		zone := byZone[e.Zone]
		if zone == nil {
			zone = &endpointv3.LocalityLbEndpoints{Locality: &corev3.Locality{Zone: e.Zone}}
			byZone[e.Zone] = zone
			m.Endpoints = append(m.Endpoints, zone)
		}
		zone.LbEndpoints = append(zone.LbEndpoints, &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
				Endpoint: &endpointv3.Endpoint{Address: address, Hostname: e.Hostname, AdditionalAddresses: additional},
			},
			Metadata: metadata(fields),
		})
	}
	for _, zone := range m.Endpoints {
		// By its share of endpoints: proxyless gRPC leaves localities without a weight
		// out (gRFC A27), Envoy reads it only where it is told to weigh localities.
		zone.LoadBalancingWeight = wrapperspb.UInt32(uint32(len(zone.LbEndpoints)))
	}
	slices.SortFunc(m.Endpoints, func(a, b *endpointv3.LocalityLbEndpoints) int {
		return strings.Compare(a.Locality.Zone, b.Locality.Zone)
	})
	return m, nil
}

func decodeClusterEndpoints(m *endpointv3.ClusterLoadAssignment) (*mesh.ClusterEndpoints, error) {
	c := &mesh.ClusterEndpoints{Cluster: m.GetClusterName()}
	for l, locality := range m.GetEndpoints() {
		for i, lb := range locality.GetLbEndpoints() {
			field := fmt.Sprintf("endpoints[%d].lb_endpoints[%d]", l, i)
			address, err := addrPort(lb.GetEndpoint().GetAddress())
			if err != nil {
				return nil, below(field+".endpoint.address", err)
			}
			fields := metadataFields(lb.GetMetadata())
			e := mesh.Endpoint{
				AddrPort: address,
				Node:     fields["node"].GetStringValue(),
				Zone:     locality.GetLocality().GetZone(),
				Hostname: lb.GetEndpoint().GetHostname(),
			}
			additional := lb.GetEndpoint().GetAdditionalAddresses()
			if len(additional) > 1 {
				return nil, at(field+".endpoint.additional_addresses", "more than one")
			}
			for _, a := range additional {
				if e.Additional, err = addrPort(a.GetAddress()); err != nil {
					return nil, below(field+".endpoint.additional_addresses[0].address", err)
				}
				if e.Additional.Addr().Is4() == e.AddrPort.Addr().Is4() {
					return nil, at(field+".endpoint.additional_addresses[0].address", "of the same family as address")
				}
			}
			if w := fields["workload"].GetStringValue(); w != "" {
				namespace, name, ok := strings.Cut(w, "/")
				if !ok {
					return nil, at(field+".metadata", `workload %q is not "namespace/name"`, w)
				}
				e.Workload = mesh.Name{Namespace: namespace, Name: name}
			}
			c.Endpoints = append(c.Endpoints, e)
		}
	}
	slices.SortFunc(c.Endpoints, func(a, b mesh.Endpoint) int { return a.AddrPort.Compare(b.AddrPort) })
	return c, nil
}

func socketAddress(a netip.AddrPort) (*corev3.Address, error) {
	if err := checkAddress(a.Addr()); err != nil {
		return nil, err
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       a.Addr().String(),
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
	}}}, nil
}

func addrPort(m *corev3.Address) (netip.AddrPort, error) {
	s := m.GetSocketAddress()
	if s == nil {
		return netip.AddrPort{}, errors.New("is not a socket address")
	}
	a, err := netip.ParseAddr(s.GetAddress())
	if err != nil {
		return netip.AddrPort{}, err
	}
	p, err := port(s.GetPortValue())
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(a, p), nil
}
