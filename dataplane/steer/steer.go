package steer

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/dataplane/loader"
	"github.com/sluice-mesh/sluice/mesh"
)

// The ports of the node proxy in each workload's namespace. Workloads can neither
// bind nor dial them.
const (
	OutboundPort     = uint16(bpf.MeshCapturePortPORT_OUTBOUND)      // steered TCP connections: this one
	LastOutboundPort = uint16(bpf.MeshCapturePortPORT_OUTBOUND_LAST) // to this one
	InboundPort      = uint16(bpf.MeshCapturePortPORT_INBOUND)       // plain text for the workload
	TunnelPort       = uint16(bpf.MeshCapturePortPORT_TUNNEL)        // mutual TLS for the workload
	DNSPort          = uint16(bpf.MeshCapturePortPORT_DNS)           // DNS, TCP and UDP
)

// Workload is a workload of this node as the kernel knows it.
type Workload struct {
	Index mesh.WorkloadIndex
	// Name is for errors and logs only; Workloads leaves it zero for what an earlier
	// process enrolled.
	Name mesh.Name
	// NetnsCookie is the cookie of its network namespace (NetnsCookie).
	NetnsCookie uint64
	// Addr4 and Addr6 are its own addresses; one may be the zero Addr.
	Addr4, Addr6 netip.Addr
}

func (w Workload) validate() error {
	switch {
	case w.Index == 0:
		return errors.New("the index is zero")
	case w.NetnsCookie == 0:
		return errors.New("the namespace's cookie is zero")
	case !w.Addr4.IsValid() && !w.Addr6.IsValid():
		return errors.New("it has no address")
	case w.Addr4.IsValid() && !w.Addr4.Is4():
		return fmt.Errorf("%s is no IPv4 address", w.Addr4)
	case w.Addr6.IsValid() && (!w.Addr6.Is6() || w.Addr6.Is4In6() || w.Addr6.Zone() != ""):
		return fmt.Errorf("%s is no IPv6 address of a workload", w.Addr6)
	}
	return nil
}

func (w Workload) addrs() []netip.Addr {
	var out []netip.Addr
	for _, a := range []netip.Addr{w.Addr4, w.Addr6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// Config of a Table.
type Config struct {
	Datapath *loader.Datapath
	Logger   *slog.Logger
}

// Table writes the workloads, the gateways and the inbound listeners of this node, and
// the addresses of the mesh's workloads.
// Its methods may be called from any goroutine.
type Table struct {
	datapath *loader.Datapath
	maps     *bpf.MeshMaps
	log      *slog.Logger
	origins  *ebpf.Map

	mu        sync.Mutex
	workloads map[mesh.WorkloadIndex]Workload // guarded by mu
	gateways  listeners                       // guarded by mu
	inbound   listeners                       // guarded by mu
	addresses addresses                       // guarded by mu
}

// New reads back what an earlier process wrote. Close releases what it opened.
func New(cfg Config) (*Table, error) {
	if cfg.Datapath == nil {
		return nil, errors.New("steer: no datapath")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	maps := cfg.Datapath.Maps()
	t := &Table{
		datapath:  cfg.Datapath,
		maps:      maps,
		log:       cfg.Logger,
		workloads: map[mesh.WorkloadIndex]Workload{},
		gateways:  newListeners(maps.Gateways, maps.GatewaySockets),
		inbound:   newListeners(maps.Inbound, maps.InboundSockets),
		addresses: newAddresses(maps.MeshAddresses),
	}
	var cookie uint64
	var w bpf.MeshWorkload
	it := maps.Workloads.Iterate()
	for it.Next(&cookie, &w) {
		index := mesh.WorkloadIndex(w.Index)
		t.workloads[index] = Workload{
			Index: index, NetnsCookie: cookie, Addr4: w.Addr4.Addr(), Addr6: w.Addr6.Addr(),
		}
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read the workloads back: %w", err)
	}
	for _, l := range []*listeners{&t.gateways, &t.inbound} {
		if err := l.restore(); err != nil {
			return nil, fmt.Errorf("read the listeners back: %w", err)
		}
	}
	if err := t.addresses.restore(); err != nil {
		return nil, fmt.Errorf("read the mesh's addresses back: %w", err)
	}
	origins, err := cfg.Datapath.OpenReadOnly(bpf.MeshMapOrigins)
	if err != nil {
		return nil, err
	}
	t.origins = origins
	return t, nil
}

// Close closes the descriptor that OriginMapFD returned. What is enrolled stays.
func (t *Table) Close() error { return t.origins.Close() }

// Enrol has the kernel programs treat the namespace as the workload, from the next
// connect on. Connections that are open stay as they are. Enrolling an index again
// replaces what it was.
func (t *Table) Enrol(w Workload) error {
	if err := w.validate(); err != nil {
		return fmt.Errorf("enrol workload %s: %w", w.Name, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, other := range t.workloads {
		if other.Index == w.Index {
			continue
		}
		if other.NetnsCookie == w.NetnsCookie {
			return fmt.Errorf("enrol workload %s: its namespace is that of workload %d", w.Name, other.Index)
		}
		for _, a := range w.addrs() {
			if a == other.Addr4 || a == other.Addr6 {
				return fmt.Errorf("enrol workload %s: address %s is that of workload %d", w.Name, a, other.Index)
			}
		}
	}
	old, replaced := t.workloads[w.Index]
	// Addresses first: a capture port must not be open to others for a moment.
	for _, a := range w.addrs() {
		if err := t.maps.Addresses.Put(bpf.AddrFrom(a), uint32(w.Index)); err != nil {
			return fmt.Errorf("enrol workload %s: write address %s: %w", w.Name, a, err)
		}
	}
	value := bpf.MeshWorkload{Index: uint32(w.Index), Addr4: bpf.AddrFrom(w.Addr4), Addr6: bpf.AddrFrom(w.Addr6)}
	if err := t.maps.Workloads.Put(w.NetnsCookie, value); err != nil {
		return fmt.Errorf("enrol workload %s: write namespace %d: %w", w.Name, w.NetnsCookie, err)
	}
	t.workloads[w.Index] = w
	if !replaced {
		return nil
	}
	var errs []error
	if old.NetnsCookie != w.NetnsCookie {
		errs = append(errs, deleteKey(t.maps.Workloads, old.NetnsCookie))
	}
	for _, a := range old.addrs() {
		if a != w.Addr4 && a != w.Addr6 {
			errs = append(errs, deleteKey(t.maps.Addresses, bpf.AddrFrom(a)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("enrol workload %s: remove what it was: %w", w.Name, err)
	}
	return nil
}

// Withdraw undoes Enrol, AttachPod and the SetInbound of its addresses. What still
// runs in the workload's cgroup can open no new connection. It is no error if the
// index is not enrolled.
func (t *Table) Withdraw(index mesh.WorkloadIndex) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	w, ok := t.workloads[index]
	if !ok {
		return nil
	}
	errs := []error{deleteKey(t.maps.Workloads, w.NetnsCookie)}
	for f := range t.inbound.slots {
		if a := f.AddrPort().Addr(); a == w.Addr4 || a == w.Addr6 {
			errs = append(errs, t.inbound.remove(f))
		}
	}
	errs = append(errs, t.datapath.DetachPod(w.NetnsCookie))
	for _, a := range w.addrs() {
		errs = append(errs, deleteKey(t.maps.Addresses, bpf.AddrFrom(a)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("withdraw workload %d: %w", index, err)
	}
	delete(t.workloads, index)
	return nil
}

// Workloads returns what is enrolled, in the order of indexes.
func (t *Table) Workloads() []Workload {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]Workload, 0, len(t.workloads))
	for _, w := range t.workloads {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b Workload) int { return cmp.Compare(a.Index, b.Index) })
	return out
}

// SetGateway has connections (or datagrams) to a Gateway's address and port taken
// by the listening socket fd, which must sit in the node's namespace and must not be
// MPTCP. Replacing a listener is atomic. The caller keeps fd and may close it: the
// kernel holds no reference, and when the last descriptor of the socket closes,
// connections are refused.
func (t *Table) SetGateway(f mesh.Frontend, fd int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.gateways.set(frontend(f), fd, 0); err != nil {
		return fmt.Errorf("set the listener of gateway %s: %w", f, err)
	}
	return nil
}

// RemoveGateway undoes SetGateway. It is no error if there is none.
func (t *Table) RemoveGateway(f mesh.Frontend) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.gateways.remove(frontend(f)); err != nil {
		return fmt.Errorf("remove the listener of gateway %s: %w", f, err)
	}
	return nil
}

// Gateways returns what has a listener set, by this or an earlier process.
func (t *Table) Gateways() []mesh.Frontend {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]mesh.Frontend, 0, len(t.gateways.slots))
	for f := range t.gateways.slots {
		out = append(out, mesh.Frontend{AddrPort: f.AddrPort(), Protocol: mesh.Protocol(f.Protocol)})
	}
	slices.SortFunc(out, func(a, b mesh.Frontend) int {
		return cmp.Or(a.AddrPort.Compare(b.AddrPort), cmp.Compare(a.Protocol, b.Protocol))
	})
	return out
}

// SetInbound has TCP connections to a workload's own address and port taken by the
// listening socket fd, which must sit in that workload's namespace, instead of
// the workload's own. Connections of the node's processes are not taken. When the
// listener is closed or the node proxy does not serve, the workload's own socket gets
// the connections, or nobody if that is required.
func (t *Table) SetInbound(local netip.AddrPort, fd int, required bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var flags uint32
	if required {
		flags = inboundRequired
	}
	if err := t.inbound.set(bpf.FrontendFrom(local, uint8(mesh.ProtocolTCP)), fd, flags); err != nil {
		return fmt.Errorf("set the inbound listener of %s: %w", local, err)
	}
	return nil
}

// RemoveInbound undoes SetInbound. It is no error if there is none.
func (t *Table) RemoveInbound(local netip.AddrPort) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.inbound.remove(bpf.FrontendFrom(local, uint8(mesh.ProtocolTCP))); err != nil {
		return fmt.Errorf("remove the inbound listener of %s: %w", local, err)
	}
	return nil
}

// AttachNode attaches the gateways' program to the node's network namespace.
func (t *Table) AttachNode(netns int) error { return t.datapath.AttachNode(netns) }

// AttachPod attaches the inbound program to the namespace of an enrolled workload.
func (t *Table) AttachPod(index mesh.WorkloadIndex, netns int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	w, ok := t.workloads[index]
	if !ok {
		return fmt.Errorf("attach to workload %d: it is not enrolled", index)
	}
	return t.datapath.AttachPod(w.NetnsCookie, netns)
}

// OriginMapFD is the descriptor to pass to the accepting process for LookupOrigin.
// It allows reading only. The Table keeps it until Close.
func (t *Table) OriginMapFD() int { return t.origins.FD() }

// HeartbeatMapFD is the descriptor to pass to the accepting process for Beat. The
// datapath keeps it.
func (t *Table) HeartbeatMapFD() int { return t.maps.Heartbeat.FD() }

func frontend(f mesh.Frontend) bpf.MeshFrontend {
	return bpf.FrontendFrom(f.AddrPort, uint8(f.Protocol))
}

func deleteKey(m *ebpf.Map, key any) error {
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}
