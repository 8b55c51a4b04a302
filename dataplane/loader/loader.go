package loader

import (
	"errors"
	"log/slog"
)

// Config says where the kernel objects go.
type Config struct {
	// WorkloadsCgroup is the cgroup v2 folder above all workloads' cgroups. The
	// socket programs are attached to it.
	WorkloadsCgroup string
	// NodeCgroup is the cgroup v2 folder of the node's own processes: whoever makes
	// listening or upstream sockets for workloads sits in it.
	NodeCgroup string
	// Dir is a folder on a bpffs for the pins; it is made if absent.
	Dir string
	// Sizes of the maps that are not there yet. A map that is pinned keeps its size.
	Sizes  Sizes
	Logger *slog.Logger
}

// Sizes are the greatest numbers of entries of the maps.
type Sizes struct {
	Workloads   uint32 // workloads of this node
	Services    uint32 // frontends: one for each VIP and port
	Endpoints   uint32 // endpoints of all frontends together
	Affinity    uint32 // clients with session affinity; the oldest gives way
	Connections uint32 // steered connections whose handshake is not complete
	Sockets     uint32 // gateways and inbound listeners
	EventBytes  uint32 // ring of events, a power of two of at least a page
}

// DefaultSizes fit a node of a cluster with tens of thousands of services.
func DefaultSizes() Sizes {
	return Sizes{
		Workloads: 4096, Services: 65536, Endpoints: 524288, Affinity: 65536,
		Connections: 65536, Sockets: 8192, EventBytes: 1 << 20,
	}
}

// Datapath is the loaded programs and maps. Its methods may be called from any
// goroutine.
type Datapath struct{}

// Load opens the maps pinned in cfg.Dir, makes those that are absent, and loads
// the programs. It attaches nothing: what an earlier process attached goes on
// with its own programs until Attach.
func Load(cfg Config) (*Datapath, error) { return nil, errors.New("not written yet") }

// Attach puts the programs into the pinned links of an earlier process and makes
// the links that are absent. Call it once the maps hold a full state.
func (d *Datapath) Attach() error { return errors.New("not written yet") }

// AttachNode attaches the program that hands connections to Gateways' addresses
// to their listeners, in the namespace of the descriptor.
func (d *Datapath) AttachNode(netns int) error { return errors.New("not written yet") }

// AttachPod attaches the inbound program in a workload's namespace. cookie is the
// namespace's cookie.
func (d *Datapath) AttachPod(cookie uint64, netns int) error { return errors.New("not written yet") }

// DetachPod detaches the inbound program from the namespace with the cookie. It is
// no error if nothing is attached.
func (d *Datapath) DetachPod(cookie uint64) error { return errors.New("not written yet") }

// Close closes the descriptors. Everything pinned goes on.
func (d *Datapath) Close() error { return nil }

// Remove detaches every program and removes every map that is pinned in dir, and
// dir itself. It is no error if dir does not exist.
func Remove(dir string) error { return errors.New("not written yet") }
