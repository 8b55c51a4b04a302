package mesh

import (
	"net/netip"
	"strconv"
)

// Name identifies a namespaced object.
type Name struct {
	Namespace string
	Name      string
}

// String returns "namespace/name".
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// IsZero reports whether n names nothing.
func (n Name) IsZero() bool { return n == Name{} }

// Compare orders names by namespace, then name.
func (n Name) Compare(o Name) int {
	switch {
	case n.Namespace < o.Namespace:
		return -1
	case n.Namespace > o.Namespace:
		return 1
	case n.Name < o.Name:
		return -1
	case n.Name > o.Name:
		return 1
	}
	return 0
}

// Protocol is the layer 4 protocol of a port, with its IANA number.
type Protocol uint8

// The protocols that a Service port may name.
const (
	ProtocolTCP Protocol = 6
	ProtocolUDP Protocol = 17
)

// String returns "TCP" or "UDP", the words of Kubernetes.
func (p Protocol) String() string {
	switch p {
	case ProtocolTCP:
		return "TCP"
	case ProtocolUDP:
		return "UDP"
	}
	return "proto-" + strconv.Itoa(int(p))
}

// Frontend is an address that clients dial: a Service's cluster IP and port, or a
// Gateway's address and port.
type Frontend struct {
	AddrPort netip.AddrPort
	Protocol Protocol
}

// String returns "TCP 10.96.0.1:80".
func (f Frontend) String() string { return f.Protocol.String() + " " + f.AddrPort.String() }
