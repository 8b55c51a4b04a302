package mesh

import "net/netip"

// Workload is a process group with its own network namespace: a Pod, or what
// `sluice run` started.
type Workload struct {
	Name           Name
	ServiceAccount string
	Labels         map[string]string
	Node           string
	// Addresses are the workload's own, IPv4 first. Never empty once Ready.
	Addresses []netip.Addr
	Ready     bool
}

// WorkloadIndex is the number by which the node's kernel maps and sockets name a
// workload of this node. It is never reused while a socket of the workload may
// be open, is not known outside the node, and zero means "none".
type WorkloadIndex uint32
