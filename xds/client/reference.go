package client

import "github.com/sluice-mesh/sluice/mesh"

// references returns what a resource refers to, as names to subscribe to. One may
// be there twice.
func references(r mesh.Resource) []mesh.Ref {
	var out []mesh.Ref
	clusters := func(list []mesh.WeightedCluster) {
		for i := range list {
			if list[i].Cluster != "" && list[i].Weight > 0 {
				out = append(out, mesh.Ref{Kind: mesh.KindCluster, Key: list[i].Cluster})
			}
		}
	}
	switch r := r.(type) {
	case *mesh.Listener:
		for i := range r.Chains {
			c := &r.Chains[i]
			for _, name := range c.Certificates {
				out = append(out, mesh.Ref{Kind: mesh.KindCertificate, Key: name})
			}
			if c.RouteTable != "" {
				out = append(out, mesh.Ref{Kind: mesh.KindVirtualHost, Key: c.RouteTable + "/*"})
			}
			clusters(c.Default)
		}
		if r.ClientCertificate != "" {
			out = append(out, mesh.Ref{Kind: mesh.KindCertificate, Key: r.ClientCertificate})
		}
		for _, table := range r.ConsumerTables {
			out = append(out, mesh.Ref{Kind: mesh.KindVirtualHost, Key: table + "/*"})
		}
	case *mesh.VirtualHost:
		for i := range r.Rules {
			clusters(r.Rules[i].Clusters)
		}
	case *mesh.Cluster:
		if r.Hostname == "" { // else they are what the name resolves to
			out = append(out, mesh.Ref{Kind: mesh.KindClusterEndpoints, Key: r.Name})
		}
	}
	return out
}
