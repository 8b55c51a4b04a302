package forward

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/dataplane/loader"
	"github.com/sluice-mesh/sluice/dataplane/netns"
	"github.com/sluice-mesh/sluice/mesh"
)

// Interface is a workload's veth pair.
type Interface struct {
	Workload mesh.WorkloadIndex
	Name     mesh.Name // for errors and logs only
	// NetnsCookie is the cookie of the workload's network namespace.
	NetnsCookie uint64
	// HostIfindex is the number of the node's end in the node's namespace.
	HostIfindex int
	// HostMAC and MAC are the hardware addresses of the node's and of the workload's end.
	HostMAC, MAC net.HardwareAddr
	// Addresses are the workload's own, at most one of each family.
	Addresses []netip.Addr
}

// values returns what the kernel is told.
func (i *Interface) values() (of bpf.MeshInterface, neighbour bpf.MeshNeighbour, err error) {
	switch {
	case i.Workload == 0:
		err = errors.New("the index is zero")
	case i.NetnsCookie == 0:
		err = errors.New("the namespace's cookie is zero")
	case i.HostIfindex <= 0:
		err = fmt.Errorf("%d is no interface", i.HostIfindex)
	case len(i.HostMAC) != 6 || len(i.MAC) != 6:
		err = fmt.Errorf("%q and %q are not both hardware addresses of 6 bytes", i.HostMAC, i.MAC)
	case len(i.Addresses) == 0:
		err = errors.New("it has no address")
	}
	of = bpf.MeshInterface{Workload: uint32(i.Workload)}
	neighbour = bpf.MeshNeighbour{Ifindex: uint32(i.HostIfindex)}
	copy(of.Mac[:], i.MAC)
	copy(neighbour.Mac[:], i.MAC)
	copy(neighbour.HostMac[:], i.HostMAC)
	for _, a := range i.Addresses {
		if a.Is4() {
			of.Addr4 = bpf.AddrFrom(a)
		} else {
			of.Addr6 = bpf.AddrFrom(a)
		}
	}
	return of, neighbour, err
}

// Config of a Table.
type Config struct {
	Datapath *loader.Datapath
	// Netns is the node's network namespace; it must stay open.
	Netns *netns.Namespace
	// ThroughStack has packets between workloads of this node pass its network stack.
	ThroughStack bool
	// Registerer may be nil.
	Registerer prometheus.Registerer
	Logger     *slog.Logger
}

// Table is the workloads' interfaces. Its methods may be called from any goroutine.
type Table struct {
	datapath *loader.Datapath
	maps     *bpf.MeshMaps
	netns    *netns.Namespace
	log      *slog.Logger

	mu         sync.Mutex
	interfaces map[mesh.WorkloadIndex]known // guarded by mu
	classifies bool                         // guarded by mu: the kernel has no tcx
}

// known is what the kernel has for a workload.
type known struct {
	ifindex   uint32
	addresses []netip.Addr
}

// New reads back what an earlier process wrote.
func New(cfg Config) (*Table, error) {
	if cfg.Datapath == nil || cfg.Netns == nil {
		return nil, errors.New("forward: no datapath or no namespace")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	t := &Table{
		datapath: cfg.Datapath, maps: cfg.Datapath.Maps(), netns: cfg.Netns, log: cfg.Logger,
		interfaces: map[mesh.WorkloadIndex]known{},
	}
	if err := t.datapath.SetRedirectPeer(!cfg.ThroughStack); err != nil {
		return nil, err
	}
	var ifindex uint32
	var of bpf.MeshInterface
	it := t.maps.Interfaces.Iterate()
	for it.Next(&ifindex, &of) {
		k := known{ifindex: ifindex}
		for _, a := range []bpf.MeshAddr{of.Addr4, of.Addr6} {
			if addr := a.Addr(); addr.IsValid() {
				k.addresses = append(k.addresses, addr)
			}
		}
		t.interfaces[mesh.WorkloadIndex(of.Workload)] = k
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read the workloads' interfaces back: %w", err)
	}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(collector{t.maps.Packets, t.log}); err != nil {
			return nil, fmt.Errorf("register the metrics of packets: %w", err)
		}
	}
	return t, nil
}

// Add puts the program at the node's end of the workload's veth pair and has other
// workloads' packets go straight to it. Adding one again replaces the program and
// whatever differs, without a moment in which packets are lost or unchecked.
func (t *Table) Add(i Interface) error {
	of, neighbour, err := i.values()
	if err != nil {
		return fmt.Errorf("forward for workload %s: %w", i.Name, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.add(&i, of, neighbour); err != nil {
		return errors.Join(fmt.Errorf("forward for workload %s: %w", i.Name, err), t.remove(i.Workload, i.NetnsCookie))
	}
	return nil
}

// add writes what the program looks up before it attaches the program, and lets
// others send to the workload last.
func (t *Table) add(i *Interface, of bpf.MeshInterface, neighbour bpf.MeshNeighbour) error {
	before := t.interfaces[i.Workload]
	t.interfaces[i.Workload] = known{neighbour.Ifindex, i.Addresses}
	if err := t.maps.Interfaces.Put(neighbour.Ifindex, of); err != nil {
		return fmt.Errorf("write interface %d: %w", i.HostIfindex, err)
	}
	if err := t.attach(i); err != nil {
		return err
	}
	for _, a := range i.Addresses {
		if err := t.maps.Neighbours.Put(bpf.AddrFrom(a), neighbour); err != nil {
			return fmt.Errorf("write address %s: %w", a, err)
		}
	}
	var errs []error
	if before.ifindex != 0 && before.ifindex != neighbour.Ifindex {
		errs = append(errs, deleteKey(t.maps.Interfaces, before.ifindex))
	}
	for _, a := range before.addresses {
		if a = a.Unmap(); a != of.Addr4.Addr() && a != of.Addr6.Addr() {
			errs = append(errs, deleteKey(t.maps.Neighbours, bpf.AddrFrom(a)))
		}
	}
	return errors.Join(errs...)
}

func (t *Table) attach(i *Interface) error {
	if !t.classifies {
		err := t.netns.Do(func() error { return t.datapath.AttachHost(i.NetnsCookie, i.HostIfindex) })
		if !errors.Is(err, link.ErrNotSupported) {
			return err
		}
		t.classifies = true
		t.log.Info("no tcx (Linux 6.6 and newer): workloads' packets are checked by classifiers")
	}
	return t.classify(i.HostIfindex)
}

// Remove undoes Add, also what an earlier process added; cookie is that of the
// workload's namespace. It is no error if nothing was added.
func (t *Table) Remove(index mesh.WorkloadIndex, cookie uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.remove(index, cookie); err != nil {
		return fmt.Errorf("stop forwarding for workload %d: %w", index, err)
	}
	return nil
}

func (t *Table) remove(index mesh.WorkloadIndex, cookie uint64) error {
	k, ok := t.interfaces[index]
	if !ok {
		return nil
	}
	var errs []error
	for _, a := range k.addresses {
		// Another workload may have the address by now.
		var now bpf.MeshNeighbour
		if err := t.maps.Neighbours.Lookup(bpf.AddrFrom(a), &now); err == nil && now.Ifindex != k.ifindex {
			continue
		}
		errs = append(errs, deleteKey(t.maps.Neighbours, bpf.AddrFrom(a)))
	}
	errs = append(errs, t.datapath.DetachHost(cookie), deleteKey(t.maps.Interfaces, k.ifindex))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	delete(t.interfaces, index)
	return nil
}

func deleteKey(m *ebpf.Map, key any) error {
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}
