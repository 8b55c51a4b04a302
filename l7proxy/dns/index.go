package dns

import (
	"iter"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/mesh/store"
)

// index is what the store has no table for: which names an address has, and which
// namespaces there are. It follows the store's commits.
type index struct {
	serial atomic.Uint32 // of the zone: the time of the last change, in seconds

	mu sync.RWMutex
	// names are the services that answer PTR of an address, by the order of their names.
	names map[netip.Addr][]mesh.Name
	// namespaces counts the services and workloads of each namespace.
	namespaces map[string]int
	// services and workloads are what is indexed, to take it back by.
	services  map[string]*mesh.Service
	workloads map[string]string // key -> namespace
}

func newIndex(s *store.Store) *index {
	ix := &index{
		names: map[netip.Addr][]mesh.Name{}, namespaces: map[string]int{},
		services: map[string]*mesh.Service{}, workloads: map[string]string{},
	}
	ix.serial.Store(uint32(time.Now().Unix()))
	s.Subscribe(ix.apply)
	// What was committed before is not repeated.
	for _, kind := range []mesh.Kind{mesh.KindService, mesh.KindWorkload} {
		s.Range(kind, func(r mesh.Resource) bool {
			ix.mu.Lock()
			defer ix.mu.Unlock()
			// What the store has no more, or newer, a commit of meanwhile brings or brought.
			if s.Get(kind, r.Key()) == r {
				ix.put(r)
			}
			return true
		})
	}
	return ix
}

func (ix *index) apply(d mesh.Delta) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	for _, r := range d.Upserts {
		ix.put(r)
	}
	for _, ref := range d.Removes {
		switch ref.Kind {
		case mesh.KindService:
			ix.dropService(ref.Key)
		case mesh.KindWorkload:
			if ns, ok := ix.workloads[ref.Key]; ok {
				delete(ix.workloads, ref.Key)
				ix.count(ns, -1)
			}
		}
	}
	ix.serial.Store(uint32(time.Now().Unix()))
}

func (ix *index) put(r mesh.Resource) {
	switch r := r.(type) {
	case *mesh.Service:
		ix.putService(r)
	case *mesh.Workload:
		if _, ok := ix.workloads[r.Key()]; !ok {
			ix.workloads[r.Key()] = r.Name.Namespace
			ix.count(r.Name.Namespace, 1)
		}
	}
}

func (ix *index) putService(s *mesh.Service) {
	ix.dropService(s.Key())
	ix.services[s.Key()] = s
	ix.count(s.Name.Namespace, 1)
	for a := range addresses(s) {
		names := ix.names[a]
		if i, found := slices.BinarySearchFunc(names, s.Name, mesh.Name.Compare); !found {
			ix.names[a] = slices.Insert(slices.Clip(names), i, s.Name)
		}
	}
}

func (ix *index) dropService(key string) {
	s := ix.services[key]
	if s == nil {
		return
	}
	delete(ix.services, key)
	ix.count(s.Name.Namespace, -1)
	for a := range addresses(s) {
		names := ix.names[a]
		i, found := slices.BinarySearchFunc(names, s.Name, mesh.Name.Compare)
		switch {
		case !found:
		case len(names) == 1:
			delete(ix.names, a)
		default:
			// A new slice: readers may hold the old one.
			ix.names[a] = append(append([]mesh.Name{}, names[:i]...), names[i+1:]...)
		}
	}
}

func (ix *index) count(namespace string, by int) {
	if ix.namespaces[namespace] += by; ix.namespaces[namespace] == 0 {
		delete(ix.namespaces, namespace)
	}
}

// servicesOf returns the services that have a as VIP or as headless endpoint. The
// caller must not change the slice.
func (ix *index) servicesOf(a netip.Addr) []mesh.Name {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	return ix.names[a]
}

func (ix *index) hasNamespace(name string) bool {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	return ix.namespaces[name] > 0
}

// addresses yields the addresses that a service gives a name to.
func addresses(s *mesh.Service) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for _, a := range s.VIPs {
			if !yield(a) {
				return
			}
		}
		if s.Headless {
			for _, a := range endpoints(s) {
				if !yield(a) {
					return
				}
			}
		}
	}
}

// endpoints yields each address behind a headless service once, with the label that
// it has below the service's name.
func endpoints(s *mesh.Service) iter.Seq2[string, netip.Addr] {
	return func(yield func(string, netip.Addr) bool) {
		seen := map[netip.Addr]bool{}
		each := func(list []mesh.Endpoint) bool {
			for i := range list {
				e := &list[i]
				a := e.AddrPort.Addr().Unmap()
				if !a.IsValid() || seen[a] {
					continue
				}
				seen[a] = true
				if !yield(endpointLabel(e), a) {
					return false
				}
			}
			return true
		}
		if !each(s.Hosts) {
			return
		}
		for i := range s.Ports {
			if !each(s.Ports[i].Endpoints) {
				return
			}
		}
	}
}

// endpointLabel returns the endpoint's hostname, else its address with dashes.
func endpointLabel(e *mesh.Endpoint) string {
	if e.Hostname != "" {
		return strings.ToLower(e.Hostname)
	}
	return dashed(e.AddrPort.Addr().Unmap())
}

// dashed writes an address as a label: 10-0-0-1, or fd00--1.
func dashed(a netip.Addr) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(a.WithZone("").String())
}
