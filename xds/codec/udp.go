package codec

import (
	"fmt"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	udpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/udp/udp_proxy/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sluice-mesh/sluice/mesh"
)

// udpSuffix ends the names of listeners and clusters of UDP ports.
const udpSuffix = "/udp"

// nameUDP is that of Envoy's listener filter for UDP.
const nameUDP = "envoy.filters.udp_listener.udp_proxy"

// keyUDPChain is the metadata key of the name and the weighted backends of a UDP listener's
// chain: Envoy's filter takes one cluster, the heaviest, and has no word for weights.
const keyUDPChain = "udp_chain"

// encodeUDP writes what a UDP listener has in place of filter chains.
func encodeUDP(l *mesh.Listener, m *listenerv3.Listener, fields map[string]*structpb.Value) error {
	if len(l.Chains) != 1 {
		return at("Chains", "%d of them; a UDP listener has one", len(l.Chains))
	}
	c := &l.Chains[0]
	if c.RouteTable != "" || c.Passthrough || len(c.Certificates) > 0 || len(c.ServerNames) > 0 || c.Clients != nil {
		return at("Chains[0]", "UDP has no server names, TLS or requests")
	}
	m.UdpListenerConfig = new(listenerv3.UdpListenerConfig)
	if l.Type != mesh.ListenerGateway {
		return at("Type", "UDP ports of Services are not steered")
	}
	if m.Address != nil {
		m.Address.GetSocketAddress().Protocol = corev3.SocketAddress_UDP
	}
	for _, a := range m.AdditionalAddresses {
		a.GetAddress().GetSocketAddress().Protocol = corev3.SocketAddress_UDP
	}
	best, backends := invalidCluster, &structpb.ListValue{}
	var heaviest uint32
	for i := range c.Default {
		b := &c.Default[i]
		if err := checkClusterName(b.Cluster); err != nil {
			return below(fmt.Sprintf("Chains[0].Default[%d].Cluster", i), err)
		}
		if len(b.Filters) > 0 {
			return at(fmt.Sprintf("Chains[0].Default[%d].Filters", i), "a datagram has no filters")
		}
		if b.Weight > heaviest && b.Cluster != "" {
			best, heaviest = b.Cluster, b.Weight
		}
		backends.Values = append(backends.Values, structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
			"cluster": structpb.NewStringValue(b.Cluster), "weight": structpb.NewNumberValue(float64(b.Weight)),
		}}))
	}
	fields[keyUDPChain] = structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
		"name": structpb.NewStringValue(c.Name), "backends": structpb.NewListValue(backends),
	}})
	route, err := pack(&udpv3.Route{Cluster: best})
	if err != nil {
		return err
	}
	return addInspector(m, nameUDP, &udpv3.UdpProxyConfig{
		StatPrefix: l.Name,
		RouteSpecifier: &udpv3.UdpProxyConfig_Matcher{Matcher: &xdsmatcherv3.Matcher{OnNoMatch: &xdsmatcherv3.Matcher_OnMatch{
			OnMatch: &xdsmatcherv3.Matcher_OnMatch_Action{Action: &xdscorev3.TypedExtensionConfig{Name: "route", TypedConfig: route}},
		}}},
	})
}

// decodeUDP reads it again.
func decodeUDP(m *listenerv3.Listener) mesh.Chain {
	chain := metadataFields(m.GetMetadata())[keyUDPChain].GetStructValue().GetFields()
	c := mesh.Chain{Name: chain["name"].GetStringValue()}
	for _, v := range chain["backends"].GetListValue().GetValues() {
		b := v.GetStructValue().GetFields()
		c.Default = append(c.Default, mesh.WeightedCluster{Cluster: b["cluster"].GetStringValue(), Weight: uint32(b["weight"].GetNumberValue())})
	}
	return c
}
