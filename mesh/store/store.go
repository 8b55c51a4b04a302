// Package store holds what one node knows of the mesh: the last good resource of
// each name, with the indexes by which connections ask for them.
//
// One goroutine writes (the xDS client calls Commit); any number read at any
// time without a lock that a writer can hold for long. A commit costs O(its own
// size). Nothing here fails: what reaches the store was validated before.
package store

import (
	"net/netip"
	"sync"

	"github.com/sluice-mesh/sluice/mesh"
)

// Store is the node's tables. The zero value is empty and ready.
type Store struct {
	kinds       sync.Map // mesh.Kind -> *sync.Map of key -> mesh.Resource
	frontends   sync.Map // mesh.Frontend -> mesh.Name of the service
	addresses   sync.Map // netip.Addr -> *mesh.Workload
	mu          sync.Mutex
	subscribers []func(mesh.Delta) // guarded by mu
}

// New returns an empty store.
func New() *Store { return &Store{} }

// Commit applies a delta and then tells the subscribers, before it returns.
// Upserts are applied in the order of mesh.Kinds, removals after them in the
// opposite order, so that no reader meets a reference to a thing not yet there.
// Only one goroutine may call it at a time.
func (s *Store) Commit(d mesh.Delta) {
	for _, kind := range mesh.Kinds {
		for _, r := range d.Upserts {
			if r.Kind() == kind {
				s.put(r)
			}
		}
	}
	for i := len(mesh.Kinds) - 1; i >= 0; i-- {
		for _, ref := range d.Removes {
			if ref.Kind == mesh.Kinds[i] {
				s.remove(ref)
			}
		}
	}
	s.mu.Lock()
	subscribers := s.subscribers
	s.mu.Unlock()
	for _, f := range subscribers {
		f(d)
	}
}

// Subscribe has f called by the writer after each commit. f must not block and
// must not call Commit. What was committed before is not repeated: subscribe
// first, or Range afterwards.
func (s *Store) Subscribe(f func(mesh.Delta)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribers = append(s.subscribers[:len(s.subscribers):len(s.subscribers)], f)
}

// Get returns the resource of a kind and key, or nil.
func (s *Store) Get(kind mesh.Kind, key string) mesh.Resource {
	if v, ok := s.table(kind).Load(key); ok {
		return v.(mesh.Resource)
	}
	return nil
}

// Service returns the service, or nil.
func (s *Store) Service(name mesh.Name) *mesh.Service {
	r, _ := s.Get(mesh.KindService, name.String()).(*mesh.Service)
	return r
}

// Workload returns the workload, or nil.
func (s *Store) Workload(name mesh.Name) *mesh.Workload {
	r, _ := s.Get(mesh.KindWorkload, name.String()).(*mesh.Workload)
	return r
}

// Listener returns the listener, or nil.
func (s *Store) Listener(name string) *mesh.Listener {
	r, _ := s.Get(mesh.KindListener, name).(*mesh.Listener)
	return r
}

// ServiceByFrontend returns the service whose VIP and port f is, and the index of
// the port in Service.Ports; nil if there is none.
func (s *Store) ServiceByFrontend(f mesh.Frontend) (*mesh.Service, int) {
	v, ok := s.frontends.Load(f)
	if !ok {
		return nil, 0
	}
	svc := s.Service(v.(mesh.Name))
	if svc == nil {
		return nil, 0
	}
	for i := range svc.Ports {
		if p := &svc.Ports[i]; p.Port == f.AddrPort.Port() && p.Protocol == f.Protocol {
			return svc, i
		}
	}
	return nil, 0
}

// WorkloadByAddress returns the workload that owns the address, or nil.
func (s *Store) WorkloadByAddress(a netip.Addr) *mesh.Workload {
	if v, ok := s.addresses.Load(a.Unmap()); ok {
		return v.(*mesh.Workload)
	}
	return nil
}

// Range calls f for each resource of a kind, in no order, until it returns false.
func (s *Store) Range(kind mesh.Kind, f func(mesh.Resource) bool) {
	s.table(kind).Range(func(_, v any) bool { return f(v.(mesh.Resource)) })
}

func (s *Store) table(kind mesh.Kind) *sync.Map {
	if t, ok := s.kinds.Load(kind); ok {
		return t.(*sync.Map)
	}
	t, _ := s.kinds.LoadOrStore(kind, new(sync.Map))
	return t.(*sync.Map)
}

func (s *Store) put(r mesh.Resource) {
	old, _ := s.table(r.Kind()).Swap(r.Key(), r)
	switch r := r.(type) {
	case *mesh.Service:
		for _, f := range frontends(r) {
			s.frontends.Store(f, r.Name)
		}
		if old != nil {
			s.dropFrontends(old.(*mesh.Service), r)
		}
	case *mesh.Workload:
		for _, a := range r.Addresses {
			s.addresses.Store(a, r)
		}
		if old != nil {
			s.dropAddresses(old.(*mesh.Workload), r)
		}
	}
}

func (s *Store) remove(ref mesh.Ref) {
	old, ok := s.table(ref.Kind).LoadAndDelete(ref.Key)
	if !ok {
		return
	}
	switch old := old.(type) {
	case *mesh.Service:
		s.dropFrontends(old, nil)
	case *mesh.Workload:
		s.dropAddresses(old, nil)
	}
}

// dropFrontends forgets the frontends of old that now (nil if none) has not and
// that no other service took over.
func (s *Store) dropFrontends(old, now *mesh.Service) {
	keep := map[mesh.Frontend]bool{}
	if now != nil {
		for _, f := range frontends(now) {
			keep[f] = true
		}
	}
	for _, f := range frontends(old) {
		if !keep[f] {
			s.frontends.CompareAndDelete(f, old.Name)
		}
	}
}

func (s *Store) dropAddresses(old, now *mesh.Workload) {
	for _, a := range old.Addresses {
		kept := false
		if now != nil {
			for _, b := range now.Addresses {
				kept = kept || a == b
			}
		}
		if !kept {
			s.addresses.CompareAndDelete(a, old)
		}
	}
}

func frontends(svc *mesh.Service) []mesh.Frontend {
	out := make([]mesh.Frontend, 0, len(svc.VIPs)*len(svc.Ports))
	for _, vip := range svc.VIPs {
		for i := range svc.Ports {
			p := &svc.Ports[i]
			out = append(out, mesh.Frontend{AddrPort: netip.AddrPortFrom(vip, p.Port), Protocol: p.Protocol})
		}
	}
	return out
}
