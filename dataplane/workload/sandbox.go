package workload

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
)

// The ports inside a workload's namespace that belong to the node proxy.
const (
	// PortOutbound to PortOutboundLast take what the workload sends to steered services.
	PortOutbound     = 15001
	PortOutboundLast = 15004
	// PortInbound takes what others send to the workload in plain text.
	PortInbound = 15006
	// PortDNS takes the workload's DNS queries.
	PortDNS = 15053
)

// Purpose says whose traffic a socket takes.
type Purpose string

// The purposes.
const (
	PurposeOutbound Purpose = "outbound"
	PurposeInbound  Purpose = "inbound"
	PurposeDNS      Purpose = "dns"
)

// Socket is a socket inside a workload's namespace.
type Socket struct {
	Purpose  Purpose       `json:"purpose"`
	Protocol mesh.Protocol `json:"protocol"`
	// AddrPort is where it is bound: the workload's own address, and the loopback
	// address for PurposeInbound, which only sk_lookup can choose for packets that
	// come from elsewhere.
	AddrPort netip.AddrPort `json:"address"`
	// FD belongs to the registry, which closes it when the workload is removed.
	FD int `json:"-"`
}

// Sandbox is the place in which a workload runs. All but its sockets is immutable.
// Its JSON is the first line of what POST /v1/workloads answers.
type Sandbox struct {
	Spec  Spec               `json:"spec"`
	Index mesh.WorkloadIndex `json:"index"`
	// NetnsPath is where the network namespace can be opened.
	NetnsPath   string `json:"netnsPath"`
	NetnsCookie uint64 `json:"netnsCookie"`
	// Addresses are the workload's own, IPv4 first, at most one of each family.
	Addresses  []netip.Addr `json:"addresses"`
	CgroupPath string       `json:"cgroupPath"`
	// CgroupID is the number by which kernel programs name the cgroup (its inode).
	CgroupID uint64 `json:"cgroupID"`
	// HostInterface is the node's end of the veth pair, HostIfindex its number in
	// the node's namespace.
	HostInterface string    `json:"hostInterface"`
	HostIfindex   int       `json:"hostIfindex"`
	ResolvConf    string    `json:"resolvConf"`
	Created       time.Time `json:"created"`
	Node          string    `json:"node"`
	// Hide are folders of the machine that its processes must not see.
	Hide []string `json:"hide"`

	mu      sync.Mutex // guards all following fields
	sockets []Socket
	ready   bool
}

// ListenerFDs returns the sockets inside the namespace. The descriptors stay the
// registry's and are valid until Hooks.OnRemove has returned.
func (s *Sandbox) ListenerFDs() []Socket {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sockets)
}

// HardwareAddrs returns the hardware addresses of the node's end of the veth pair and
// of the workload's.
func (s *Sandbox) HardwareAddrs() (host, pod net.HardwareAddr) { return hardwareAddrs(s.Spec.Name) }

// Ready reports whether the workload's command was started.
func (s *Sandbox) Ready() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready
}

// Workload returns what the mesh knows of it.
func (s *Sandbox) Workload() *mesh.Workload {
	return &mesh.Workload{
		Name: s.Spec.Name, ServiceAccount: s.Spec.ServiceAccount, Labels: s.Spec.Labels,
		Node: s.Node, Addresses: s.Addresses, Ready: s.Ready(),
	}
}
