package service

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/mesh"
)

// batch is changes that are written together.
type batch struct {
	changes map[bpf.MeshFrontend]*frontend
	removes []bpf.MeshFrontend
	gone    []Gone // what the frontends have no more; complete once it was written
}

// rows are elements of one map with the frontend that each is for.
type rows[K, V any] struct {
	keys   []K
	values []V
	of     []bpf.MeshFrontend
}

func (r *rows[K, V]) add(of bpf.MeshFrontend, k K, v V) {
	r.keys, r.values, r.of = append(r.keys, k), append(r.values, v), append(r.of, of)
}

// write brings a batch into the kernel: first what the new frontends refer to,
// then the frontends, then away with what nothing refers to any more. It returns an
// error for each owner that has a frontend which could not be written; that one is
// as it was.
func (t *Table) write(b *batch) map[string]error {
	failed := map[bpf.MeshFrontend]error{}

	var endpoints rows[bpf.MeshEndpointKey, bpf.MeshEndpoint]
	var members rows[bpf.MeshMemberKey, uint32]
	for key, now := range b.changes {
		old := t.frontends[key]
		if old == nil || old.generation != now.generation {
			for slot, e := range now.endpoints {
				k, v := now.endpoint(slot, e)
				endpoints.add(key, k, v)
			}
		}
		for k, v := range joined(old, now) {
			members.add(key, k, v)
		}
	}
	put(t.maps.Endpoints, &endpoints, failed)
	put(t.maps.Members, &members, failed)

	var services rows[bpf.MeshFrontend, bpf.MeshService]
	for key, now := range b.changes {
		if failed[key] == nil {
			services.add(key, key, now.service(key))
		}
	}
	put(t.maps.Services, &services, failed)

	var gone rows[bpf.MeshFrontend, struct{}]
	for _, key := range b.removes {
		if t.frontends[key] != nil {
			gone.add(key, key, struct{}{})
		}
	}
	drop(t.maps.Services, &gone, failed)

	var oldEndpoints rows[bpf.MeshEndpointKey, struct{}]
	var oldMembers rows[bpf.MeshMemberKey, struct{}]
	forget := func(key bpf.MeshFrontend, f, keep *frontend) {
		if keep == nil || keep.generation != f.generation {
			for slot, e := range f.endpoints {
				k, _ := f.endpoint(slot, e)
				oldEndpoints.add(key, k, struct{}{})
			}
		}
		for k := range left(f, keep) {
			oldMembers.add(key, k, struct{}{})
		}
	}
	for key, now := range b.changes {
		old := t.frontends[key]
		if failed[key] != nil {
			forget(key, now, old)
			continue
		}
		if old != nil {
			forget(key, old, now)
			b.gone = append(b.gone, lost(key, old.want, now.want)...)
		}
		t.frontends[key] = now
		t.count(old, now)
	}
	for _, key := range gone.keys {
		if failed[key] == nil {
			old := t.frontends[key]
			forget(key, old, nil)
			b.gone = append(b.gone, lost(key, old.want, want{})...)
			delete(t.frontends, key)
			t.count(old, nil)
		}
	}
	// What stays behind takes room only; the next process sweeps it.
	sweep := map[bpf.MeshFrontend]error{}
	drop(t.maps.Endpoints, &oldEndpoints, sweep)
	drop(t.maps.Members, &oldMembers, sweep)
	for key, err := range sweep {
		t.log.Warn("leftovers in the service tables", "frontend", key.AddrPort(), "error", err)
	}

	out := map[string]error{}
	for key, err := range failed {
		owner := ""
		if c := b.changes[key]; c != nil {
			owner = c.owner
		} else if f := t.frontends[key]; f != nil {
			// It stays until Prune.
			owner, f.owner = f.owner, ""
		}
		out[owner] = errors.Join(out[owner], fmt.Errorf("frontend %s: %w", key.AddrPort(), err))
	}
	return out
}

func (t *Table) count(old, now *frontend) {
	add := func(f *frontend, sign int64) {
		if f == nil {
			return
		}
		t.frontendCount.Add(sign)
		t.endpointCount.Add(sign * int64(len(f.endpoints)))
		t.memberCount.Add(sign * int64(len(f.memberships())))
	}
	add(old, -1)
	add(now, 1)
}

func (f *frontend) service(key bpf.MeshFrontend) bpf.MeshService {
	return bpf.MeshService{
		Id: f.id, Generation: f.generation, Count: uint32(len(f.endpoints)),
		Flags: f.flags, AffinitySeconds: f.affinitySeconds, Self: key,
	}
}

func (f *frontend) endpoint(slot int, e netip.AddrPort) (bpf.MeshEndpointKey, bpf.MeshEndpoint) {
	return bpf.MeshEndpointKey{Service: f.id, Generation: f.generation, Slot: uint32(slot)},
		bpf.MeshEndpoint{
			Addr: bpf.AddrFrom(e.Addr()), Port: bpf.Port(e.Port()),
			Service: f.id, Generation: f.generation,
		}
}

func (f *frontend) member(e netip.AddrPort) bpf.MeshMemberKey {
	return bpf.MeshMemberKey{Addr: bpf.AddrFrom(e.Addr()), Port: bpf.Port(e.Port()), Service: f.id}
}

// memberships returns what the members of a frontend are to be.
func (f *frontend) memberships() map[bpf.MeshMemberKey]uint32 {
	if f == nil || !f.members {
		return nil
	}
	out := make(map[bpf.MeshMemberKey]uint32, len(f.endpoints)+len(f.draining))
	for _, e := range f.draining {
		out[f.member(e)] = uint32(bpf.MeshMembershipMEMBER_DRAINING)
	}
	for _, e := range f.endpoints {
		out[f.member(e)] = uint32(bpf.MeshMembershipMEMBER_USED)
	}
	return out
}

// joined yields the members that now has and old has not, or as something else.
func joined(old, now *frontend) iter.Seq2[bpf.MeshMemberKey, uint32] {
	had := old.memberships()
	if old != nil && old.partial {
		had = nil
	}
	return func(yield func(bpf.MeshMemberKey, uint32) bool) {
		for k, v := range now.memberships() {
			if had[k] != v && !yield(k, v) {
				return
			}
		}
	}
}

// left yields the members that old has and now, which may be nil, has not.
func left(old, now *frontend) iter.Seq[bpf.MeshMemberKey] {
	has := now.memberships()
	return func(yield func(bpf.MeshMemberKey) bool) {
		for k := range old.memberships() {
			if has[k] == 0 && !yield(k) {
				return
			}
		}
	}
}

// put writes rows, those of a frontend one after the other. When one does not fit,
// its frontend fails and the rows of it that were written go, so that they take no
// room from the next.
func put[K, V any](m *ebpf.Map, r *rows[K, V], failed map[bpf.MeshFrontend]error) {
	for start := 0; start < len(r.keys); {
		if failed[r.of[start]] != nil {
			start++
			continue
		}
		n, err := m.BatchUpdate(r.keys[start:], r.values[start:], nil)
		if err == nil {
			return
		}
		// n were written before the one that failed; all of them: the call itself was refused.
		if n >= len(r.keys)-start {
			n = 0
		}
		at := start + n
		first := at
		for first > start && r.of[first-1] == r.of[at] {
			first--
		}
		failed[r.of[at]] = fmt.Errorf("write to map %s: %w", mapName(m), err)
		undo := rows[K, struct{}]{keys: r.keys[first:at], of: r.of[first:at]}
		drop(m, &undo, map[bpf.MeshFrontend]error{})
		start = at + 1
	}
}

// drop deletes rows; one that is not there is no failure.
func drop[K, V any](m *ebpf.Map, r *rows[K, V], failed map[bpf.MeshFrontend]error) {
	for start := 0; start < len(r.keys); {
		n, err := m.BatchDelete(r.keys[start:], nil)
		if err == nil {
			return
		}
		if n >= len(r.keys)-start {
			n = 0
		}
		start += n
		if !errors.Is(err, ebpf.ErrKeyNotExist) {
			failed[r.of[start]] = fmt.Errorf("delete from map %s: %w", mapName(m), err)
		}
		start++
	}
}

func mapName(m *ebpf.Map) string {
	if info, err := m.Info(); err == nil {
		return info.Name
	}
	return m.String()
}

func errorsOf(failures map[string]error) iter.Seq[error] { return maps.Values(failures) }

// restore reads what an earlier process wrote, and deletes what no frontend refers to.
func (t *Table) restore() error {
	byID := map[uint32]*frontend{}
	services, err := readAll[bpf.MeshFrontend, bpf.MeshService](t.maps.Services)
	if err != nil {
		return err
	}
	for i, key := range services.keys {
		s := services.values[i]
		f := &frontend{
			id: s.Id, generation: s.Generation,
			want: want{
				flags: s.Flags, affinitySeconds: s.AffinitySeconds,
				endpoints: make([]netip.AddrPort, s.Count),
				members: key.Protocol == uint8(mesh.ProtocolUDP) && s.Flags&uint32(bpf.MeshServiceFlagsSERVICE_DNS) == 0 ||
					s.Flags&uint32(bpf.MeshServiceFlagsSERVICE_AFFINITY) != 0,
			},
		}
		t.frontends[key], byID[s.Id] = f, f
		t.nextID = max(t.nextID, s.Id)
	}
	var orphans []bpf.MeshEndpointKey
	endpoints, err := readAll[bpf.MeshEndpointKey, bpf.MeshEndpoint](t.maps.Endpoints)
	if err != nil {
		return err
	}
	for i, k := range endpoints.keys {
		e := endpoints.values[i]
		f := byID[k.Service]
		if f == nil || f.generation != k.Generation || k.Slot >= uint32(len(f.endpoints)) {
			orphans = append(orphans, k)
			continue
		}
		f.endpoints[k.Slot] = netip.AddrPortFrom(e.Addr.Addr(), bpf.Port(e.Port))
	}
	has := map[bpf.MeshMemberKey]bool{}
	for _, f := range t.frontends {
		for k := range f.memberships() {
			has[k] = true
		}
	}
	seen := map[bpf.MeshMemberKey]bool{}
	var strangers []bpf.MeshMemberKey
	members, err := readAll[bpf.MeshMemberKey, uint32](t.maps.Members)
	if err != nil {
		return err
	}
	for i, k := range members.keys {
		f := byID[k.Service]
		switch {
		case has[k] && members.values[i] == uint32(bpf.MeshMembershipMEMBER_USED):
			seen[k] = true
		case !has[k] && f != nil && f.members && members.values[i] == uint32(bpf.MeshMembershipMEMBER_DRAINING):
			f.draining = append(f.draining, netip.AddrPortFrom(k.Addr.Addr(), bpf.Port(k.Port)))
		case !has[k]:
			strangers = append(strangers, k)
		}
	}
	for _, f := range t.frontends {
		slices.SortFunc(f.draining, netip.AddrPort.Compare)
		for _, e := range f.endpoints {
			if !e.IsValid() || f.members && !seen[f.member(e)] {
				f.partial = true
			}
		}
		t.count(nil, f)
	}
	if err := deleteAll(t.maps.Endpoints, orphans); err != nil {
		return err
	}
	return deleteAll(t.maps.Members, strangers)
}

// readAll returns all elements of a map that nobody writes meanwhile.
func readAll[K, V any](m *ebpf.Map) (rows[K, V], error) {
	const chunk = 4096
	var out rows[K, V]
	keys, values := make([]K, chunk), make([]V, chunk)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		out.keys, out.values = append(out.keys, keys[:n]...), append(out.values, values[:n]...)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return out, nil
		}
		if err != nil {
			return out, fmt.Errorf("read map %s: %w", mapName(m), err)
		}
	}
}

func deleteAll[K any](m *ebpf.Map, keys []K) error {
	r := rows[K, struct{}]{keys: keys, of: make([]bpf.MeshFrontend, len(keys))}
	failed := map[bpf.MeshFrontend]error{}
	drop(m, &r, failed)
	return errors.Join(slices.Collect(maps.Values(failed))...)
}
