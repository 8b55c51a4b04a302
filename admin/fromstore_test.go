package admin_test

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/admin"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/mesh/store"
)

func TestFromStore(t *testing.T) {
	name := func(n string) mesh.Name { return mesh.Name{Namespace: "shop", Name: n} }
	addr := netip.MustParseAddrPort
	s := store.New()
	s.Commit(mesh.Delta{Upserts: []mesh.Resource{
		&mesh.Workload{Name: name("web"), Node: "n1", Ready: true, Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.4")}},
		&mesh.Workload{Name: name("api"), Node: "n2", ServiceAccount: "api", Labels: map[string]string{"a": "b"}},
		&mesh.Service{Name: name("reviews"), VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.12")}, AffinityTimeout: 3 * time.Hour, Ports: []mesh.ServicePort{
			{Name: "http", Port: 80, Protocol: mesh.ProtocolTCP, AppProtocol: mesh.AppProtocolHTTP, Steered: true, Endpoints: []mesh.Endpoint{
				{AddrPort: addr("10.77.0.4:8080"), Workload: name("web"), Node: "n1"},
				{AddrPort: addr("10.77.0.5:8080"), Workload: name("api")},
				{AddrPort: addr("10.77.0.6:8080"), Workload: name("gone")},
				{AddrPort: addr("192.0.2.1:8080")},
			}},
		}},
		&mesh.Service{Name: name("db"), ExternalName: "db.example.com"},
	}})
	if got, want := admin.StoredWorkloads(s, "n1"), []admin.Workload{
		{Name: name("api"), Node: "n2", ServiceAccount: "api", Labels: map[string]string{"a": "b"}},
		{Name: name("web"), Node: "n1", Ready: true, Local: true, Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.4")}},
	}; !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got, want := admin.StoredServices(s), []admin.Service{
		{Name: name("db"), ExternalName: "db.example.com"},
		{Name: name("reviews"), VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.12")}, AffinitySeconds: 10800, Ports: []admin.ServicePort{
			{Name: "http", Port: 80, Protocol: mesh.ProtocolTCP, AppProtocol: "http", Steered: true, Endpoints: []admin.Endpoint{
				{Address: addr("10.77.0.4:8080"), Workload: name("web"), Node: "n1", Ready: true},
				{Address: addr("10.77.0.5:8080"), Workload: name("api")},
				{Address: addr("10.77.0.6:8080"), Workload: name("gone")},
				{Address: addr("192.0.2.1:8080"), Ready: true},
			}},
		}},
	}; !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
