package steer

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/mesh"
)

// addresses are those of the mesh's workloads, at whose capture ports no workload of
// this node may knock.
type addresses struct {
	table *ebpf.Map
	// owners are the workloads that have an address: two for the moment in which it
	// goes from one to the other, none if only an earlier process knew of it.
	owners map[netip.Addr][]string
	owned  map[string][]netip.Addr
}

func newAddresses(table *ebpf.Map) addresses {
	return addresses{table: table, owners: map[netip.Addr][]string{}, owned: map[string][]netip.Addr{}}
}

func (a *addresses) restore() error {
	var key bpf.MeshAddr
	var value uint32
	it := a.table.Iterate()
	for it.Next(&key, &value) {
		a.owners[key.Addr()] = nil
	}
	return it.Err()
}

// set makes the addresses of a workload be now, none for one that is gone.
func (a *addresses) set(workload string, now []netip.Addr) error {
	var errs []error
	old := a.owned[workload]
	kept := make([]netip.Addr, 0, len(now))
	for _, addr := range now {
		addr = addr.Unmap()
		if slices.Contains(old, addr) {
			kept = append(kept, addr)
			continue
		}
		owners, written := a.owners[addr]
		if !written {
			if err := a.table.Put(bpf.AddrFrom(addr), uint32(1)); err != nil {
				errs = append(errs, fmt.Errorf("write address %s of workload %s: %w", addr, workload, err))
				continue
			}
		}
		a.owners[addr] = append(owners, workload)
		kept = append(kept, addr)
	}
	for _, addr := range old {
		if slices.Contains(kept, addr) {
			continue
		}
		left := slices.DeleteFunc(a.owners[addr], func(o string) bool { return o == workload })
		if len(left) > 0 {
			a.owners[addr] = left
			continue
		}
		delete(a.owners, addr)
		if err := deleteKey(a.table, bpf.AddrFrom(addr)); err != nil {
			errs = append(errs, fmt.Errorf("remove address %s of workload %s: %w", addr, workload, err))
		}
	}
	if len(kept) == 0 {
		delete(a.owned, workload)
	} else {
		a.owned[workload] = kept
	}
	return errors.Join(errs...)
}

// Apply has the kernel programs know the addresses of a delta's workloads, on
// whichever node they are; other kinds are ignored. It costs O(the workloads in d).
// The error joins one for each address that could not be written: its capture ports
// are refused by its own node only.
func (t *Table) Apply(d mesh.Delta) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, r := range d.Upserts {
		if w, ok := r.(*mesh.Workload); ok {
			errs = append(errs, t.addresses.set(w.Key(), w.Addresses))
		}
	}
	for _, ref := range d.Removes {
		if ref.Kind == mesh.KindWorkload {
			errs = append(errs, t.addresses.set(ref.Key, nil))
		}
	}
	return errors.Join(errs...)
}

// Prune removes the addresses of an earlier process that no workload applied since New
// has. Call it once the first full state was applied.
func (t *Table) Prune() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for addr, owners := range t.addresses.owners {
		if len(owners) > 0 {
			continue
		}
		if err := deleteKey(t.addresses.table, bpf.AddrFrom(addr)); err != nil {
			errs = append(errs, fmt.Errorf("remove address %s: %w", addr, err))
			continue
		}
		delete(t.addresses.owners, addr)
	}
	return errors.Join(errs...)
}

// Guard has a socket of the node proxy in a workload's namespace take only what comes
// from that very namespace: what the programs steer does. The rest is dropped, and
// told as capture-port. Sockets that a listening socket accepts inherit it.
// The caller keeps fd. A socket that is guarded already gets this process's program.
func (t *Table) Guard(protocol mesh.Protocol, fd int) error {
	if err := t.datapath.GuardCapture(uint8(protocol), fd); err != nil {
		return fmt.Errorf("guard a capture port: %w", err)
	}
	return nil
}
