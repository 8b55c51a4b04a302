package upstream

import (
	"crypto/tls"
	"slices"

	"github.com/sluice-mesh/sluice/mesh"
)

// SecurePool is Pool for connections over TLS with certain settings. Connections with
// other settings, or none, are in other pools: what one was verified for says nothing
// about the next.
func (e *Endpoint) SecurePool(w mesh.WorkloadIndex, protocol Protocol, cfg *tls.Config) *Pool {
	for _, p := range e.pools {
		if p.Workload == w && p.Protocol == protocol && p.TLS == cfg {
			return p
		}
	}
	p := &Pool{Endpoint: e, Workload: w, Protocol: protocol, TLS: cfg}
	e.pools = append(e.pools, p)
	return p
}

// DropTLS forgets the pools with certain settings: unused connections close, the
// others do once they are unused.
func (s *Set) DropTLS(cfg *tls.Config) {
	for _, e := range s.endpoints {
		for _, p := range e.pools {
			if p.TLS == cfg {
				p.retire()
			}
		}
		e.pools = slices.DeleteFunc(e.pools, func(p *Pool) bool {
			return p.TLS == cfg && len(p.waiters) == 0 && p.Connecting == 0
		})
	}
}
