package steer

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
)

// inboundRequired is INBOUND_REQUIRED of bpf/include/types.h.
const inboundRequired = uint32(1) << 31

// listeners is a map of frontends to slots, with the SOCKMAP that they index.
type listeners struct {
	frontends *ebpf.Map
	sockets   *ebpf.Map
	slots     map[bpf.MeshFrontend]uint32
	flags     map[bpf.MeshFrontend]uint32
	used      map[uint32]bool
}

func newListeners(frontends, sockets *ebpf.Map) listeners {
	return listeners{
		frontends: frontends, sockets: sockets,
		slots: map[bpf.MeshFrontend]uint32{}, flags: map[bpf.MeshFrontend]uint32{}, used: map[uint32]bool{},
	}
}

func (l *listeners) restore() error {
	var f bpf.MeshFrontend
	var slot uint32
	it := l.frontends.Iterate()
	for it.Next(&f, &slot) {
		l.flags[f] = slot & inboundRequired
		slot &^= inboundRequired
		l.slots[f], l.used[slot] = slot, true
	}
	return it.Err()
}

// set puts the socket into the frontend's slot before the frontend refers to it.
func (l *listeners) set(f bpf.MeshFrontend, fd int, flags uint32) error {
	slot, known := l.slots[f]
	if !known {
		var err error
		if slot, err = l.freeSlot(); err != nil {
			return err
		}
	}
	if err := l.sockets.Put(slot, uint64(fd)); err != nil {
		return fmt.Errorf("put descriptor %d into slot %d: %w", fd, slot, err)
	}
	if known && l.flags[f] == flags {
		return nil
	}
	if err := l.frontends.Put(f, slot|flags); err != nil {
		err = fmt.Errorf("write the frontend: %w", err)
		if !known {
			err = errors.Join(err, l.sockets.Delete(slot))
		}
		return err
	}
	l.slots[f], l.flags[f], l.used[slot] = slot, flags, true
	return nil
}

func (l *listeners) remove(f bpf.MeshFrontend) error {
	slot, known := l.slots[f]
	if !known {
		return nil
	}
	if err := deleteKey(l.frontends, f); err != nil {
		return err
	}
	delete(l.slots, f)
	delete(l.flags, f)
	// A socket that closed has emptied its slot; the kernel calls that EINVAL.
	if err := l.sockets.Delete(slot); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("empty slot %d: %w", slot, err)
	}
	delete(l.used, slot)
	return nil
}

func (l *listeners) freeSlot() (uint32, error) {
	for slot := range l.sockets.MaxEntries() {
		if !l.used[slot] {
			return slot, nil
		}
	}
	return 0, fmt.Errorf("all %d slots are in use", l.sockets.MaxEntries())
}
