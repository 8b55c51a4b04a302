package service

import (
	"net/netip"
	"slices"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/mesh"
)

// Gone is an endpoint that a frontend has no more.
type Gone struct {
	Frontend mesh.Frontend
	Endpoint netip.AddrPort
}

// lost returns what a frontend had, to use or draining, and is not to have.
func lost(key bpf.MeshFrontend, old, now want) []Gone {
	if len(old.endpoints)+len(old.draining) == 0 || now.flags&uint32(bpf.MeshServiceFlagsSERVICE_STEERED) != 0 {
		return nil // what the node proxy takes over leaves the connections that there are
	}
	has := make(map[netip.AddrPort]bool, len(now.endpoints)+len(now.draining))
	for _, list := range [][]netip.AddrPort{now.endpoints, now.draining} {
		for _, e := range list {
			has[e] = true
		}
	}
	var out []Gone
	for _, list := range [][]netip.AddrPort{old.endpoints, old.draining} {
		for _, e := range list {
			if !has[e] && e.IsValid() {
				has[e] = true
				out = append(out, Gone{mesh.Frontend{AddrPort: key.AddrPort(), Protocol: mesh.Protocol(key.Protocol)}, e})
			}
		}
	}
	return out
}

// tellGone tells of what is gone. workloads says that some of them may have ended, too.
func (t *Table) tellGone(gone []Gone, workloads bool) {
	if t.cfg.Gone == nil {
		return
	}
	// What came back is the service's again.
	for g := range t.lingering {
		if f := t.frontends[bpf.FrontendFrom(g.Frontend.AddrPort, uint8(g.Frontend.Protocol))]; f != nil &&
			(slices.Contains(f.endpoints, g.Endpoint) || slices.Contains(f.draining, g.Endpoint)) {
			delete(t.lingering, g)
		}
	}
	alive := func(g Gone) bool {
		return g.Frontend.Protocol == mesh.ProtocolTCP && t.cfg.Alive != nil && t.cfg.Alive(g.Endpoint.Addr())
	}
	var out []Gone
	if workloads {
		for g := range t.lingering {
			if !alive(g) {
				delete(t.lingering, g)
				out = append(out, g)
			}
		}
	}
	for _, g := range gone {
		if alive(g) {
			t.lingering[g] = true
		} else {
			out = append(out, g)
		}
	}
	if len(out) > 0 {
		t.cfg.Gone(out)
	}
}
