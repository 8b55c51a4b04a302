package store

import (
	"net/netip"
	"testing"

	"github.com/sluice-mesh/sluice/mesh"
)

func service(name, vip string, ports ...uint16) *mesh.Service {
	s := &mesh.Service{Name: mesh.Name{Namespace: "shop", Name: name}, VIPs: []netip.Addr{netip.MustParseAddr(vip)}}
	for _, p := range ports {
		s.Ports = append(s.Ports, mesh.ServicePort{Port: p, Protocol: mesh.ProtocolTCP})
	}
	return s
}

func frontend(s string) mesh.Frontend {
	return mesh.Frontend{AddrPort: netip.MustParseAddrPort(s), Protocol: mesh.ProtocolTCP}
}

func TestFrontendFollowsService(t *testing.T) {
	s := New()
	s.Commit(mesh.Delta{Upserts: []mesh.Resource{service("web", "10.96.0.1", 80, 443)}})
	if svc, i := s.ServiceByFrontend(frontend("10.96.0.1:443")); svc == nil || i != 1 {
		t.Fatalf("10.96.0.1:443 = %v, %d; want port 1 of web", svc, i)
	}
	s.Commit(mesh.Delta{Upserts: []mesh.Resource{service("web", "10.96.0.1", 80)}})
	if svc, _ := s.ServiceByFrontend(frontend("10.96.0.1:443")); svc != nil {
		t.Fatal("a port that the service lost is still found")
	}
	s.Commit(mesh.Delta{Removes: []mesh.Ref{{Kind: mesh.KindService, Key: "shop/web"}}})
	if svc, _ := s.ServiceByFrontend(frontend("10.96.0.1:80")); svc != nil {
		t.Fatal("a removed service is still found")
	}
}

func TestFrontendTakenOverByAnotherService(t *testing.T) {
	s := New()
	s.Commit(mesh.Delta{Upserts: []mesh.Resource{service("old", "10.96.0.1", 80)}})
	s.Commit(mesh.Delta{
		Upserts: []mesh.Resource{service("new", "10.96.0.1", 80)},
		Removes: []mesh.Ref{{Kind: mesh.KindService, Key: "shop/old"}},
	})
	if svc, _ := s.ServiceByFrontend(frontend("10.96.0.1:80")); svc == nil || svc.Name.Name != "new" {
		t.Fatalf("frontend belongs to %v, want new", svc)
	}
}

func TestAddressFollowsWorkload(t *testing.T) {
	s := New()
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	w := func(addrs ...netip.Addr) *mesh.Workload {
		return &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web"}, Addresses: addrs}
	}
	s.Commit(mesh.Delta{Upserts: []mesh.Resource{w(a)}})
	s.Commit(mesh.Delta{Upserts: []mesh.Resource{w(b)}})
	if s.WorkloadByAddress(a) != nil || s.WorkloadByAddress(b) == nil {
		t.Fatal("addresses did not follow the workload")
	}
	if s.WorkloadByAddress(netip.MustParseAddr("::ffff:10.0.0.2")) == nil {
		t.Fatal("a mapped address does not find its workload")
	}
}

func TestSubscriberSeesCommittedState(t *testing.T) {
	s := New()
	seen := 0
	s.Subscribe(func(d mesh.Delta) {
		seen += len(d.Upserts)
		if s.Service(mesh.Name{Namespace: "shop", Name: "web"}) == nil {
			t.Error("subscriber called before the commit")
		}
	})
	s.Commit(mesh.Delta{Upserts: []mesh.Resource{service("web", "10.96.0.1", 80)}})
	if seen != 1 {
		t.Fatalf("subscriber saw %d resources, want 1", seen)
	}
}
