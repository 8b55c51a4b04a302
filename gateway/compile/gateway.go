package compile

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/gateway/graph"
	"github.com/sluice-mesh/sluice/mesh"
)

// GatewayListeners compiles a Gateway, with the routes of connections that are
// attached to it, into one listener per port. Without addresses there is none.
func GatewayListeners(g *graph.Gateway, addresses []netip.Addr, routes []L4Route) []*mesh.Listener {
	if len(addresses) == 0 {
		return nil
	}
	type place struct {
		port uint16
		udp  bool
	}
	byPort := map[place]*mesh.Listener{}
	for i := range g.Listeners {
		l := &g.Listeners[i]
		if !l.Served {
			continue
		}
		at := place{l.Port, l.Protocol == gatewayv1.UDPProtocolType}
		out := byPort[at]
		if out == nil {
			out = &mesh.Listener{
				Name: g.ListenerName(l.Port), Type: mesh.ListenerGateway, Parent: g.Name, Port: l.Port, Addresses: addresses,
			}
			if !g.ClientCertificate.IsZero() {
				out.ClientCertificate = g.ClientCertificate.String()
			}
			if at.udp {
				out.Name, out.Protocol = out.Name+"/udp", mesh.ProtocolUDP
			}
			byPort[at] = out
		}
		if l.Protocol == gatewayv1.HTTPProtocolType {
			// All plain listeners of a port share a table, and so one chain.
			if len(out.Chains) == 0 {
				out.Chains = []mesh.Chain{{Name: l.Name, RouteTable: l.Table}}
			}
			continue
		}
		if l.Protocol != gatewayv1.HTTPSProtocolType {
			out.Chains = append(out.Chains, l4Chains(l, routes)...)
			continue
		}
		chain := mesh.Chain{Name: l.Name, RouteTable: l.Table, Clients: l.Clients}
		if l.Hostname != graph.AnyHost {
			chain.ServerNames = []string{l.Hostname}
		}
		for _, name := range l.Certificates {
			chain.Certificates = append(chain.Certificates, name.String())
		}
		out.Chains = append(out.Chains, chain)
	}
	listeners := make([]*mesh.Listener, 0, len(byPort))
	for _, l := range byPort {
		slices.SortStableFunc(l.Chains, compareChains)
		listeners = append(listeners, l)
	}
	slices.SortFunc(listeners, func(a, b *mesh.Listener) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), strings.Compare(a.Name, b.Name))
	})
	return listeners
}

// compareChains puts the chain with the more specific server name first.
func compareChains(a, b mesh.Chain) int {
	return cmp.Or(graph.CompareSpecificity(serverName(a), serverName(b)), strings.Compare(serverName(a), serverName(b)))
}

func serverName(c mesh.Chain) string {
	if len(c.ServerNames) == 0 {
		return graph.AnyHost
	}
	return c.ServerNames[0]
}

// Certificate compiles a Secret of type kubernetes.io/tls.
func Certificate(secret *corev1.Secret) *mesh.Certificate {
	return &mesh.Certificate{
		Name:     secret.Namespace + "/" + secret.Name,
		ChainPEM: secret.Data[corev1.TLSCertKey],
		KeyPEM:   secret.Data[corev1.TLSPrivateKeyKey],
	}
}
