package mesh_test

import (
	"encoding/json"
	"testing"

	"github.com/sluice-mesh/sluice/mesh"
)

func TestNameText(t *testing.T) {
	for _, n := range []mesh.Name{{}, {Namespace: "shop", Name: "web"}} {
		b, err := json.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		got := mesh.Name{Namespace: "other", Name: "other"}
		if err := json.Unmarshal(b, &got); err != nil || got != n {
			t.Errorf("%+v became %s and then %+v, %v", n, b, got, err)
		}
	}
	for _, bad := range []string{"web", "shop/", "/web", "a/b/c"} {
		if n, err := mesh.ParseName(bad); err == nil {
			t.Errorf("ParseName(%q) = %v, want an error", bad, n)
		}
	}
}

func TestProtocolText(t *testing.T) {
	for _, p := range []mesh.Protocol{0, mesh.ProtocolTCP, mesh.ProtocolUDP, 132} {
		b, err := p.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		got := mesh.Protocol(1)
		if err := got.UnmarshalText(b); err != nil || got != p {
			t.Errorf("%d became %q and then %d, %v", p, b, got, err)
		}
	}
	for _, bad := range []string{"tcp", "6", "proto-", "proto-6", "proto-300", "proto-132x", "proto-0132"} {
		var p mesh.Protocol
		if err := p.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q parsed as %v, want an error", bad, p)
		}
	}
}
