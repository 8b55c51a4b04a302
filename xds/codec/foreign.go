package codec

import (
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sluice-mesh/sluice/mesh"
)

// TypeRouteConfiguration is the type URL of a whole route table, for clients that do
// not ask for virtual hosts one by one.
const TypeRouteConfiguration = resourcev3.RouteType

// Field numbers of envoy.config.route.v3.RouteConfiguration.
const (
	routeConfigurationName         protowire.Number = 1
	routeConfigurationVirtualHosts protowire.Number = 2
	routeConfigurationIgnorePort   protowire.Number = 14
)

// RouteConfiguration returns the message of a route table. hosts are the virtual
// hosts as Encode wrote them; they are not read again, so that it costs a copy. A port
// in the authority does not matter for the choice of the virtual host.
func RouteConfiguration(table string, hosts [][]byte) *anypb.Any {
	size := len(table) + 8
	for _, h := range hosts {
		size += len(h) + 8
	}
	b := make([]byte, 0, size)
	b = protowire.AppendTag(b, routeConfigurationName, protowire.BytesType)
	b = protowire.AppendString(b, table)
	for _, h := range hosts {
		b = protowire.AppendTag(b, routeConfigurationVirtualHosts, protowire.BytesType)
		b = protowire.AppendBytes(b, h)
	}
	b = protowire.AppendTag(b, routeConfigurationIgnorePort, protowire.VarintType)
	b = protowire.AppendVarint(b, 1)
	return &anypb.Any{TypeUrl: TypeRouteConfiguration, Value: b}
}

// APIListener returns the Listener that a proxyless gRPC client asks for by name
// (gRFC A27): an HTTP connection manager without a socket. Its routes are those of
// table or, if that is empty, every request goes to cluster.
func APIListener(name, table, cluster string) (*anypb.Any, error) {
	router, err := pack(new(routerv3.Router))
	if err != nil {
		return nil, err
	}
	manager := &hcmv3.HttpConnectionManager{
		StatPrefix: name,
		HttpFilters: []*hcmv3.HttpFilter{{
			Name:       nameRouter,
			ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: router},
		}},
	}
	if table != "" {
		manager.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: fromADS(), RouteConfigName: table}}
	} else {
		manager.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			Name: cluster,
			VirtualHosts: []*routev3.VirtualHost{{
				Name:    cluster,
				Domains: []string{"*"},
				Routes: []*routev3.Route{{
					Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{}},
					Action: &routev3.Route_Route{Route: &routev3.RouteAction{
						ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster},
					}},
				}},
			}},
		}}
	}
	packed, err := pack(manager)
	if err != nil {
		return nil, err
	}
	value, err := marshal.Marshal(&listenerv3.Listener{Name: name, ApiListener: &listenerv3.ApiListener{ApiListener: packed}})
	if err != nil {
		return nil, err
	}
	return &anypb.Any{TypeUrl: typeURLs[mesh.KindListener], Value: value}, nil
}
