package admin

import (
	"slices"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/mesh/store"
)

// StoredWorkloads returns the workloads of a node's store, by name. Local is true
// for those of the node; what only the owner of their processes knows is zero.
func StoredWorkloads(s *store.Store, node string) []Workload {
	var out []Workload
	s.Range(mesh.KindWorkload, func(r mesh.Resource) bool {
		w := r.(*mesh.Workload)
		out = append(out, Workload{
			Name: w.Name, ServiceAccount: w.ServiceAccount, Labels: w.Labels, Node: w.Node,
			Addresses: w.Addresses, Ready: w.Ready, Local: node != "" && w.Node == node,
		})
		return true
	})
	slices.SortFunc(out, func(a, b Workload) int { return a.Name.Compare(b.Name) })
	return out
}

// StoredServices returns the services of a node's store, by name. An endpoint is
// ready if its workload is, or if it is no workload of the mesh: the store holds
// only endpoints that may get new connections.
func StoredServices(s *store.Store) []Service {
	var out []Service
	s.Range(mesh.KindService, func(r mesh.Resource) bool {
		svc := r.(*mesh.Service)
		v := Service{
			Name: svc.Name, VIPs: svc.VIPs, Headless: svc.Headless, ExternalName: svc.ExternalName,
			AffinitySeconds: int(svc.AffinityTimeout / time.Second),
		}
		for i := range svc.Ports {
			p := &svc.Ports[i]
			v.Ports = append(v.Ports, ServicePort{
				Name: p.Name, Port: p.Port, Protocol: p.Protocol, AppProtocol: p.AppProtocol,
				Steered: p.Steered, Endpoints: StoredEndpoints(s, p.Endpoints),
			})
		}
		out = append(out, v)
		return true
	})
	slices.SortFunc(out, func(a, b Service) int { return a.Name.Compare(b.Name) })
	return out
}

// StoredEndpoints returns endpoints with the readiness of their workloads.
func StoredEndpoints(s *store.Store, endpoints []mesh.Endpoint) []Endpoint {
	out := make([]Endpoint, 0, len(endpoints))
	for _, e := range endpoints {
		ready := true
		if !e.Workload.IsZero() {
			w := s.Workload(e.Workload)
			ready = w != nil && w.Ready
		}
		out = append(out, Endpoint{Address: e.AddrPort, Workload: e.Workload, Node: e.Node, Ready: ready})
	}
	return out
}
