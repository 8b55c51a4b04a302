package mesh

import (
	"net/netip"
	"time"
)

// Service is a Kubernetes Service with the endpoints that serve it.
type Service struct {
	Name Name
	// VIPs are the cluster IPs, at most one of each family. Empty for a headless
	// service.
	VIPs  []netip.Addr
	Ports []ServicePort
	// AffinityTimeout is zero unless sessionAffinity is ClientIP.
	AffinityTimeout time.Duration
	// ExternalName is the DNS name that the service stands for, or empty.
	ExternalName string
	// Headless services answer DNS with their endpoints and are not balanced.
	Headless bool
	// Hosts are the endpoints of a headless service that has no ports; their own ports
	// are zero. Other services have none.
	Hosts []Endpoint
	// Local says that internalTrafficPolicy is Local: a client gets endpoints of its
	// own node or none.
	Local bool
}

// AppProtocol says what is spoken on a port when its owner said so
// (appProtocol, the port's name, or the kind of route); empty means detect.
type AppProtocol string

// Application protocols that the proxy tells apart (KEP-1435, GEP-1911).
const (
	AppProtocolUnknown AppProtocol = ""
	AppProtocolHTTP    AppProtocol = "http"
	AppProtocolHTTP2   AppProtocol = "h2c" // prior knowledge, also gRPC
	AppProtocolTLS     AppProtocol = "tls"
	AppProtocolTCP     AppProtocol = "tcp"
)

// ServicePort is one port of a Service.
type ServicePort struct {
	Name        string
	Port        uint16
	Protocol    Protocol
	AppProtocol AppProtocol
	// Steered says that TCP connections to this port go through the node proxy,
	// because a route is attached. It never holds for UDP.
	Steered bool
	// Endpoints in the order of their addresses. Only those that may get new
	// connections: ready ones, else serving and terminating ones.
	Endpoints []Endpoint
	// Draining are the others, in the order of their addresses: they get no new
	// connections, and the ones that they have go on.
	Draining []Endpoint
}

// Endpoint is an address and port behind a service port.
type Endpoint struct {
	AddrPort netip.AddrPort
	// Additional is the same backend's address of the other family, or zero: it is
	// tried when AddrPort cannot be connected to. Only clusters know it.
	Additional netip.AddrPort
	// Workload is zero if the endpoint is not a workload of the mesh.
	Workload Name
	Node     string
	// Zone is the topology zone, or empty. Only clusters know it.
	Zone string
	// Terminating endpoints still serve: where there is no ready one they are used.
	// Only services know it.
	Terminating bool
	// Weight is the share of connections that the endpoint gets of those that the kernel
	// balances, relative to the others; zero counts as one. Only services know it.
	Weight uint32
	// Hostname is the endpoint's own DNS label in a headless service, or empty.
	Hostname string
}
