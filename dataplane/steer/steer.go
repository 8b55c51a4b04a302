package steer

import (
	"errors"
	"log/slog"
	"net/netip"

	"github.com/sluice-mesh/sluice/dataplane/loader"
	"github.com/sluice-mesh/sluice/mesh"
)

// The ports of the node proxy in each workload's namespace. Workloads can neither
// bind nor dial them.
const (
	OutboundPort = 15001 // steered TCP connections
	InboundPort  = 15006 // plain text for the workload
	TunnelPort   = 15008 // mutual TLS for the workload
	DNSPort      = 15053 // DNS, TCP and UDP
)

// Workload is a workload of this node as the kernel knows it.
type Workload struct {
	Index mesh.WorkloadIndex
	// Name is for errors and logs only; Workloads leaves it zero.
	Name mesh.Name
	// NetnsCookie is the cookie of its network namespace (NetnsCookie).
	NetnsCookie uint64
	// Addr4 and Addr6 are its own addresses; either may be the zero Addr.
	Addr4, Addr6 netip.Addr
}

// Origin is where a steered connection was going and whose it is.
type Origin struct {
	// Destination is as the client dialled it, IPv4 never in mapped form.
	Destination netip.AddrPort
	Workload    mesh.WorkloadIndex
}

// Config of a Table.
type Config struct {
	Datapath *loader.Datapath
	Logger   *slog.Logger
}

// Table writes the workloads, the gateways and the inbound listeners of this node.
// Its methods may be called from any goroutine.
type Table struct{}

var errTODO = errors.New("not written yet")

// New reads back what an earlier process wrote.
func New(cfg Config) (*Table, error) { return nil, errTODO }

// Enrol has the kernel programs treat the namespace as the workload, from the next
// connect on. Connections that are open stay as they are. Enrolling the same index
// or namespace again replaces it.
func (t *Table) Enrol(w Workload) error { return errTODO }

// Withdraw undoes Enrol, and AttachPod. What still runs in the workload's cgroup can open
// no new connection. It is no error if the index is not enrolled.
func (t *Table) Withdraw(index mesh.WorkloadIndex) error { return errTODO }

// Workloads returns what is enrolled, in the order of indexes.
func (t *Table) Workloads() []Workload { return nil }

// SetGateway has connections (or datagrams) to a Gateway's address and port taken
// by the listening socket fd, which must sit in the node's namespace and must not be
// MPTCP. Replacing a listener is atomic. The caller keeps fd and may close it: the map holds
// no reference, and when the last descriptor closes, connections are refused.
func (t *Table) SetGateway(f mesh.Frontend, fd int) error { return errTODO }

// RemoveGateway undoes SetGateway. It is no error if there is none.
func (t *Table) RemoveGateway(f mesh.Frontend) error { return errTODO }

// Gateways returns what SetGateway has set.
func (t *Table) Gateways() []mesh.Frontend { return nil }

// SetInbound has TCP connections to a workload's own address and port taken by the
// listening socket fd, which must sit in that workload's namespace, instead of
// the workload's own. Connections of the node's processes are not taken. When the
// listener closes, they are refused.
func (t *Table) SetInbound(local netip.AddrPort, fd int) error { return errTODO }

// RemoveInbound undoes SetInbound. It is no error if there is none.
func (t *Table) RemoveInbound(local netip.AddrPort) error { return errTODO }

// AttachNode attaches the gateways' program to the node's network namespace.
func (t *Table) AttachNode(netns int) error { return errTODO }

// AttachPod attaches the inbound program to the namespace of an enrolled workload.
func (t *Table) AttachPod(index mesh.WorkloadIndex, netns int) error { return errTODO }

// OriginMapFD is the descriptor to pass to the accepting process for LookupOrigin.
// It allows reading only. The Table keeps it.
func (t *Table) OriginMapFD() int { return -1 }

// HeartbeatMapFD is the descriptor to pass to the accepting process for Beat. The
// Table keeps it.
func (t *Table) HeartbeatMapFD() int { return -1 }

// HeartbeatTimeout is how long after the last Beat connections that need the node proxy
// are refused. Beat three times as often, at least.
const HeartbeatTimeoutSeconds = 3

// LookupOrigin returns where the accepted connection sockFD was going. False: it
// was not steered here, and must be refused. It needs no capability.
func LookupOrigin(mapFD, sockFD int) (Origin, bool, error) { return Origin{}, false, errTODO }

// Beat says that the node proxy accepts connections now. It needs no capability.
func Beat(mapFD int) error { return errTODO }

// NetnsCookie returns the cookie of the network namespace that the descriptor
// refers to. It needs CAP_SYS_ADMIN.
func NetnsCookie(netns int) (uint64, error) { return 0, errTODO }
