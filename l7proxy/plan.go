package l7proxy

import (
	"github.com/sluice-mesh/sluice/l7proxy/route"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// plan says where the requests of a connection find their rules.
type plan struct {
	// table is the route table.
	table string
	// missing is the name of a listener that is not known yet.
	missing string
	// reason refuses the request.
	reason flow.Reason
}

// gatewayPlan finds the route table for a request to a Gateway's port: of the chain
// that serves the authority best among those for TLS or for plain text. A TLS
// connection keeps to its chain, by name; an authority that another chain serves
// better is misdirected (RFC 9110 §7.4, GEP-3567).
func gatewayPlan(l *mesh.Listener, authority []byte, tls bool, chain string) plan {
	best := route.BestChain(l, authority, tls)
	if best == nil {
		return plan{reason: flow.ReasonNoChain}
	}
	if tls && best.Name != chain {
		return plan{reason: flow.ReasonMisdirected}
	}
	if best.RouteTable == "" {
		return plan{reason: flow.ReasonNoRoute}
	}
	return plan{table: best.RouteTable}
}

// equalFold compares a host with a lower-case name.
func equalFold(host []byte, name string) bool {
	if len(host) != len(name) {
		return false
	}
	for i := range host {
		c := host[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != name[i] {
			return false
		}
	}
	return true
}
