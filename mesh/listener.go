package mesh

import "net/netip"

// ListenerType says whose connections a listener takes.
type ListenerType uint8

// The types of listener.
const (
	// ListenerService takes what workloads send to one port of a Service.
	ListenerService ListenerType = iota + 1
	// ListenerGateway takes what anybody sends to one address and port of a Gateway.
	ListenerGateway
)

// Listener is one port of a Gateway or of a Service that the node proxy serves.
// Gateway listeners (in the API's sense) that share a port are one Listener.
type Listener struct {
	// Name is "gateway/NAMESPACE/NAME/PORT" or "service/NAMESPACE/NAME/PORT", with
	// "/udp" behind it if the protocol is UDP.
	Name string
	Type ListenerType
	// Parent is the Gateway or Service.
	Parent Name
	Port   uint16
	// Protocol is what the port takes; zero stands for ProtocolTCP.
	Protocol Protocol
	// Addresses are the Gateway's addresses, or the Service's VIPs.
	Addresses []netip.Addr
	// Chains are tried in order; the first that matches the connection takes it.
	// A service listener has exactly one, with no ServerNames.
	Chains []Chain
	// ConsumerTables maps a client's namespace to the route table that applies to
	// it in place of the chain's (consumer routes, GEP-1426). Nil on gateways.
	ConsumerTables map[string]string
	// ClientCertificate names the Secret ("namespace/name") whose certificate the proxy
	// shows to endpoints that are connected to over TLS, or is empty.
	ClientCertificate string
}

// Chain says how the connections of a listener are spoken with.
type Chain struct {
	// Name of the Gateway listener that it was made of; empty for a service.
	Name string
	// ServerNames are SNI patterns: exact or "*.suffix". Empty matches every
	// connection.
	ServerNames []string
	// Certificates name the Secrets ("namespace/name") to terminate TLS with, the
	// first is the default. Empty: plain text.
	Certificates []string
	// Clients says which certificates clients must have; nil: they are not asked for one.
	Clients *ClientValidation
	// Passthrough says that the chain takes TLS connections and carries them to
	// Default as they are.
	Passthrough bool
	// RouteTable names the routes of HTTP connections; empty: bytes to Default.
	RouteTable string
	// Default are the backends of connections that are not HTTP: those of the
	// service itself, or of a TLS, TCP or UDP route on a gateway. If it is empty and so
	// is RouteTable, connections are refused: no route is attached.
	Default []WeightedCluster
}
