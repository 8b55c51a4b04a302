package codec

import (
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"github.com/sluice-mesh/sluice/mesh"
)

// TestRouteConfiguration: what is put together from bytes is what Envoy's own type
// says, and has no field that it does not know.
func TestRouteConfiguration(t *testing.T) {
	var hosts [][]byte
	for _, hostname := range []string{"*", "a.example"} {
		packed, err := Encode(&mesh.VirtualHost{Table: "t", Hostname: hostname})
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, packed.Value)
	}
	packed := RouteConfiguration("t", hosts)
	m := new(routev3.RouteConfiguration)
	if err := packed.UnmarshalTo(m); err != nil {
		t.Fatal(err)
	}
	if err := m.ValidateAll(); err != nil {
		t.Error(err)
	}
	want := &routev3.RouteConfiguration{
		Name:                     "t",
		VirtualHosts:             []*routev3.VirtualHost{{Name: "t/_", Domains: []string{"*"}}, {Name: "t/a.example", Domains: []string{"a.example"}}},
		IgnorePortInHostMatching: true,
	}
	if !proto.Equal(m, want) {
		t.Errorf("got %v, want %v", m, want)
	}
}
