package service

import (
	"net/netip"
	"slices"

	"github.com/sluice-mesh/sluice/mesh"
)

// usable returns the endpoints that clients of this node may be sent to. elsewhere says
// that the service is bound to this node, which has none, and that others have some.
//
// With a Local traffic policy the choice is made among the node's own endpoints as it
// is among all without: ready ones, else those that serve while they terminate (KEP-1669).
func (t *Table) usable(s *mesh.Service, p *mesh.ServicePort) (use []mesh.Endpoint, elsewhere bool) {
	if !s.Local {
		return p.Endpoints, false
	}
	for _, e := range p.Endpoints {
		if e.Node == t.cfg.Node {
			use = append(use, e)
		}
	}
	if len(use) > 0 {
		return use, false
	}
	for _, e := range p.Draining {
		if e.Node == t.cfg.Node && e.Terminating {
			use = append(use, e)
		}
	}
	return use, len(use) == 0 && len(p.Endpoints) > 0
}

// maxWeight bounds the slots of one endpoint.
const maxWeight = 100

// slots returns the endpoints of the frontend's family, each as many times as its
// weight says. A slot is chosen at random, so the order means nothing.
func slots(list []mesh.Endpoint, vip netip.Addr) []netip.AddrPort {
	var of []mesh.Endpoint
	divisor := uint32(0)
	for _, e := range list {
		if a := e.AddrPort.Addr().Unmap(); a.Is4() == vip.Is4() {
			e.AddrPort = netip.AddrPortFrom(a, e.AddrPort.Port())
			e.Weight = min(max(e.Weight, 1), maxWeight)
			divisor = commonDivisor(divisor, e.Weight)
			of = append(of, e)
		}
	}
	var out []netip.AddrPort
	for _, e := range of {
		for range e.Weight / divisor {
			out = append(out, e.AddrPort)
		}
	}
	return out
}

func commonDivisor(a, b uint32) uint32 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// unused returns the port's other endpoints of the family, to which flows may go on:
// draining ones, and under a Local traffic policy those of other nodes.
func unused(p *mesh.ServicePort, vip netip.Addr, used []netip.AddrPort) []netip.AddrPort {
	var out []netip.AddrPort
	for _, list := range [][]mesh.Endpoint{p.Endpoints, p.Draining} {
		for i := range list {
			a := list[i].AddrPort
			a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
			if a.Addr().Is4() == vip.Is4() && !slices.Contains(used, a) {
				out = append(out, a)
			}
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}
