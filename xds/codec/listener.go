package codec

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	inspecthttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	inspecttlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sluice-mesh/sluice/mesh"
)

// Names of Envoy's extensions (Envoy, api/envoy/extensions).
const (
	nameTLSInspector  = "envoy.filters.listener.tls_inspector"
	nameHTTPInspector = "envoy.filters.listener.http_inspector"
	nameHTTP          = "envoy.filters.network.http_connection_manager"
	nameTCP           = "envoy.filters.network.tcp_proxy"
	nameRouter        = "envoy.filters.http.router"
	nameTLS           = "envoy.transport_sockets.tls"
)

// transportTLS is what Envoy's TLS inspector calls a connection that begins with a
// ClientHello.
const transportTLS = "tls"

// keyConsumerTables is the metadata key of Listener.ConsumerTables.
const keyConsumerTables = "consumer_tables"

// keyClientCertificate is that of Listener.ClientCertificate. Envoy has the certificate
// in each cluster, and a cluster is not of one Gateway.
const keyClientCertificate = "client_certificate"

// httpProtocols are what Envoy's inspectors call HTTP. A chain that serves both HTTP
// and other connections becomes two filter chains, the first with these.
var httpProtocols = []string{"http/1.0", "http/1.1", "h2c"}

var listenerTypes = map[string]mesh.ListenerType{
	"service": mesh.ListenerService,
	"gateway": mesh.ListenerGateway,
}

// listenerNameParts reads "gateway/NAMESPACE/NAME/PORT" or "service/…".
func listenerNameParts(name string) (mesh.ListenerType, mesh.Name, uint16, error) {
	parts := strings.Split(strings.TrimSuffix(name, udpSuffix), "/")
	if len(parts) != 4 || listenerTypes[parts[0]] == 0 {
		return 0, mesh.Name{}, 0, errors.New(`is neither "gateway/NAMESPACE/NAME/PORT" nor "service/NAMESPACE/NAME/PORT"`)
	}
	parent := mesh.Name{Namespace: parts[1], Name: parts[2]}
	if err := checkName(parent); err != nil {
		return 0, mesh.Name{}, 0, err
	}
	p, err := canonicalPort(parts[3])
	return listenerTypes[parts[0]], parent, p, err
}

func encodeListener(l *mesh.Listener) (*listenerv3.Listener, error) {
	kind, parent, port, err := listenerNameParts(l.Name)
	if err != nil {
		return nil, below("Name", err)
	}
	if kind != l.Type || parent != l.Parent || port != l.Port {
		return nil, at("Name", "does not say type %d, parent %s, port %d", l.Type, l.Parent, l.Port)
	}
	m := &listenerv3.Listener{Name: l.Name}
	for i, a := range l.Addresses {
		address, err := socketAddress(netip.AddrPortFrom(a, l.Port))
		if err != nil {
			return nil, below(fmt.Sprintf("Addresses[%d]", i), err)
		}
		if i == 0 {
			m.Address = address
		} else {
			m.AdditionalAddresses = append(m.AdditionalAddresses, &listenerv3.AdditionalAddress{Address: address})
		}
	}
	if l.Type == mesh.ListenerService {
		m.BindToPort = wrapperspb.Bool(false)
		m.TrafficDirection = corev3.TrafficDirection_OUTBOUND
	} else {
		m.TrafficDirection = corev3.TrafficDirection_INBOUND
	}
	udp := strings.HasSuffix(l.Name, udpSuffix)
	if udp != (l.Protocol == mesh.ProtocolUDP) {
		return nil, at("Name", "does not say protocol %s", l.Protocol)
	}
	fields := map[string]*structpb.Value{}
	if udp {
		if err := encodeUDP(l, m, fields); err != nil {
			return nil, err
		}
	}
	inspectTLS, inspectHTTP := false, false
	for i := range l.Chains {
		if udp {
			break
		}
		c := &l.Chains[i]
		chains, err := encodeChain(l.Name, c)
		if err != nil {
			return nil, below(fmt.Sprintf("Chains[%d]", i), err)
		}
		m.FilterChains = append(m.FilterChains, chains...)
		inspectTLS = inspectTLS || len(c.ServerNames) > 0 || c.Passthrough
		inspectHTTP = inspectHTTP || len(chains) > 1
	}
	if inspectTLS {
		if err := addInspector(m, nameTLSInspector, new(inspecttlsv3.TlsInspector)); err != nil {
			return nil, err
		}
	}
	if inspectHTTP {
		if err := addInspector(m, nameHTTPInspector, new(inspecthttpv3.HttpInspector)); err != nil {
			return nil, err
		}
	}
	if l.ClientCertificate != "" {
		fields[keyClientCertificate] = structpb.NewStringValue(l.ClientCertificate)
	}
	if len(l.ConsumerTables) > 0 {
		tables := &structpb.Struct{Fields: map[string]*structpb.Value{}}
		for namespace, table := range l.ConsumerTables {
			tables.Fields[namespace] = structpb.NewStringValue(table)
		}
		fields[keyConsumerTables] = structpb.NewStructValue(tables)
	}
	if len(fields) > 0 {
		m.Metadata = metadata(fields)
	}
	return m, nil
}

func addInspector(m *listenerv3.Listener, name string, config proto.Message) error {
	packed, err := pack(config)
	if err != nil {
		return err
	}
	m.ListenerFilters = append(m.ListenerFilters, &listenerv3.ListenerFilter{
		Name:       name,
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: packed},
	})
	return nil
}

// encodeChain returns the filter chain of what c says: one for HTTP, if it has a
// route table, and one for the rest, if it has defaults or no table.
func encodeChain(listener string, c *mesh.Chain) ([]*listenerv3.FilterChain, error) {
	if len(c.Certificates) == 0 && c.Clients != nil {
		return nil, at("Clients", "does not go without certificates")
	}
	if c.Passthrough && (len(c.Certificates) > 0 || c.RouteTable != "") {
		return nil, at("Passthrough", "does not go with certificates or a route table")
	}
	defaults, err := encodeDefault(listener, c.Default)
	if err != nil {
		return nil, below("Default", err)
	}
	socket, err := encodeTLS(c)
	if err != nil {
		return nil, below("Certificates", err)
	}
	if c.RouteTable == "" {
		chain, err := filterChain(c, socket, nameTCP, defaults, nil)
		return []*listenerv3.FilterChain{chain}, err
	}
	router, err := pack(new(routerv3.Router))
	if err != nil {
		return nil, err
	}
	cors, err := pack(new(corsv3.Cors))
	if err != nil {
		return nil, err
	}
	manager := &hcmv3.HttpConnectionManager{
		StatPrefix: listener,
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			ConfigSource:    fromADS(),
			RouteConfigName: c.RouteTable,
		}},
		HttpFilters: []*hcmv3.HttpFilter{{
			// Acts where a route has a policy.
			Name:       nameCORS,
			ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: cors},
		}, {
			Name:       nameRouter,
			ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: router},
		}},
		UpgradeConfigs: []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		NormalizePath:  wrapperspb.Bool(true),
	}
	if len(c.Default) == 0 {
		chain, err := filterChain(c, socket, nameHTTP, manager, nil)
		return []*listenerv3.FilterChain{chain}, err
	}
	first, err := filterChain(c, socket, nameHTTP, manager, httpProtocols)
	if err != nil {
		return nil, err
	}
	second, err := filterChain(c, socket, nameTCP, defaults, nil)
	return []*listenerv3.FilterChain{first, second}, err
}

func filterChain(c *mesh.Chain, socket *corev3.TransportSocket, name string, config proto.Message, protocols []string) (*listenerv3.FilterChain, error) {
	packed, err := pack(config)
	if err != nil {
		return nil, err
	}
	chain := &listenerv3.FilterChain{
		Name:            c.Name,
		TransportSocket: socket,
		Filters: []*listenerv3.Filter{{
			Name:       name,
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed},
		}},
	}
	if len(c.ServerNames) > 0 || len(protocols) > 0 || c.Passthrough {
		chain.FilterChainMatch = &listenerv3.FilterChainMatch{
			ServerNames:          c.ServerNames,
			ApplicationProtocols: protocols,
		}
		if c.Passthrough {
			chain.FilterChainMatch.TransportProtocol = transportTLS
		}
	}
	return chain, nil
}

func encodeTLS(c *mesh.Chain) (*corev3.TransportSocket, error) {
	if len(c.Certificates) == 0 {
		return nil, nil
	}
	common := &tlsv3.CommonTlsContext{AlpnProtocols: alpn(c)}
	for i, name := range c.Certificates {
		if name == "" {
			return nil, at(fmt.Sprintf("[%d]", i), "empty")
		}
		common.TlsCertificateSdsSecretConfigs = append(common.TlsCertificateSdsSecretConfigs,
			&tlsv3.SdsSecretConfig{Name: name, SdsConfig: fromADS()})
	}
	context := &tlsv3.DownstreamTlsContext{CommonTlsContext: common}
	if err := encodeClients(c.Clients, context); err != nil {
		return nil, err
	}
	packed, err := pack(context)
	if err != nil {
		return nil, err
	}
	return &corev3.TransportSocket{
		Name:       nameTLS,
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: packed},
	}, nil
}

// alpn is what a terminating chain offers: HTTP when it routes HTTP.
func alpn(c *mesh.Chain) []string {
	if c.RouteTable == "" {
		return nil
	}
	return []string{"h2", "http/1.1"}
}

// encodeDefault writes the clusters of raw TCP, which have weights and no filters.
func encodeDefault(listener string, clusters []mesh.WeightedCluster) (*tcpv3.TcpProxy, error) {
	m := &tcpv3.TcpProxy{StatPrefix: listener}
	weighted := new(tcpv3.TcpProxy_WeightedCluster)
	var sum uint64
	for i := range clusters {
		c := &clusters[i]
		if len(c.Filters) > 0 {
			return nil, at(fmt.Sprintf("[%d].Filters", i), "a raw connection has no filters")
		}
		if err := checkClusterName(c.Cluster); err != nil {
			return nil, below(fmt.Sprintf("[%d].Cluster", i), err)
		}
		if c.Weight == 0 {
			continue
		}
		name := c.Cluster
		if name == "" {
			name = invalidCluster
		}
		sum += uint64(c.Weight)
		weighted.Clusters = append(weighted.Clusters, &tcpv3.TcpProxy_WeightedCluster_ClusterWeight{Name: name, Weight: c.Weight})
	}
	switch {
	case sum > math.MaxUint32:
		return nil, fmt.Errorf("weights add up to %d, above 32 bits", sum)
	case len(clusters) == 0:
		m.ClusterSpecifier = &tcpv3.TcpProxy_Cluster{Cluster: invalidCluster}
	case sum == 0:
		return nil, errors.New("all weights are zero")
	case len(weighted.Clusters) == 1 && weighted.Clusters[0].Weight == 1 && weighted.Clusters[0].Name != invalidCluster:
		m.ClusterSpecifier = &tcpv3.TcpProxy_Cluster{Cluster: weighted.Clusters[0].Name}
	default:
		m.ClusterSpecifier = &tcpv3.TcpProxy_WeightedClusters{WeightedClusters: weighted}
	}
	return m, nil
}

func decodeListener(m *listenerv3.Listener) (*mesh.Listener, error) {
	kind, parent, port, err := listenerNameParts(m.GetName())
	if err != nil {
		return nil, below("name", err)
	}
	l := &mesh.Listener{Name: m.GetName(), Type: kind, Parent: parent, Port: port}
	if m.GetAddress() != nil {
		addresses := []*corev3.Address{m.GetAddress()}
		for _, a := range m.GetAdditionalAddresses() {
			addresses = append(addresses, a.GetAddress())
		}
		for i, a := range addresses {
			ap, err := addrPort(a)
			if err != nil {
				return nil, below(fmt.Sprintf("address[%d]", i), err)
			}
			l.Addresses = append(l.Addresses, ap.Addr())
		}
	}
	if strings.HasSuffix(l.Name, udpSuffix) {
		l.Protocol = mesh.ProtocolUDP
		l.Chains = []mesh.Chain{decodeUDP(m)}
	}
	chains := m.GetFilterChains()
	for i := 0; i < len(chains); i++ {
		field := fmt.Sprintf("filter_chains[%d]", i)
		c, err := decodeChain(chains[i])
		if err != nil {
			return nil, below(field, err)
		}
		if len(chains[i].GetFilterChainMatch().GetApplicationProtocols()) > 0 {
			if i+1 == len(chains) {
				return nil, at(field+".filter_chain_match.application_protocols", "no filter chain follows for other protocols")
			}
			i++
			rest, err := decodeChain(chains[i])
			if err != nil {
				return nil, below(fmt.Sprintf("filter_chains[%d]", i), err)
			}
			c.Default = rest.Default
		}
		l.Chains = append(l.Chains, c)
	}
	l.ClientCertificate = metadataFields(m.GetMetadata())[keyClientCertificate].GetStringValue()
	if tables := metadataFields(m.GetMetadata())[keyConsumerTables].GetStructValue().GetFields(); len(tables) > 0 {
		l.ConsumerTables = make(map[string]string, len(tables))
		for namespace, table := range maps.All(tables) {
			l.ConsumerTables[namespace] = table.GetStringValue()
		}
	}
	return l, nil
}

func decodeChain(m *listenerv3.FilterChain) (mesh.Chain, error) {
	c := mesh.Chain{
		Name:        m.GetName(),
		ServerNames: slices.Clone(m.GetFilterChainMatch().GetServerNames()),
		Passthrough: m.GetFilterChainMatch().GetTransportProtocol() == transportTLS,
	}
	if m.GetTransportSocket() != nil {
		tls := new(tlsv3.DownstreamTlsContext)
		if err := unpack(m.GetTransportSocket().GetTypedConfig(), tls); err != nil {
			return c, below("transport_socket.typed_config", err)
		}
		for _, s := range tls.GetCommonTlsContext().GetTlsCertificateSdsSecretConfigs() {
			c.Certificates = append(c.Certificates, s.GetName())
		}
		c.Clients = decodeClients(tls)
	}
	if len(m.GetFilters()) != 1 {
		return c, at("filters", "%d filters, want one", len(m.GetFilters()))
	}
	filter := m.GetFilters()[0]
	switch filter.GetName() {
	case nameHTTP:
		manager := new(hcmv3.HttpConnectionManager)
		if err := unpack(filter.GetTypedConfig(), manager); err != nil {
			return c, below("filters[0].typed_config", err)
		}
		if c.RouteTable = manager.GetRds().GetRouteConfigName(); c.RouteTable == "" {
			return c, at("filters[0].typed_config.rds.route_config_name", "absent")
		}
	case nameTCP:
		proxy := new(tcpv3.TcpProxy)
		if err := unpack(filter.GetTypedConfig(), proxy); err != nil {
			return c, below("filters[0].typed_config", err)
		}
		c.Default = decodeDefault(proxy)
	default:
		return c, at("filters[0].name", "%q: %w", filter.GetName(), errUnsupported)
	}
	return c, nil
}

func decodeDefault(m *tcpv3.TcpProxy) []mesh.WeightedCluster {
	if name := m.GetCluster(); name == invalidCluster {
		return nil
	} else if name != "" {
		return []mesh.WeightedCluster{{Cluster: name, Weight: 1}}
	}
	var out []mesh.WeightedCluster
	for _, w := range m.GetWeightedClusters().GetClusters() {
		c := mesh.WeightedCluster{Cluster: w.GetName(), Weight: w.GetWeight()}
		if c.Cluster == invalidCluster {
			c.Cluster = ""
		}
		out = append(out, c)
	}
	return out
}
