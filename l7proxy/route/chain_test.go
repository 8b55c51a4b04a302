package route

import (
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/mesh"
)

func FuzzBestChain(f *testing.F) {
	f.Add("www.example.com:443", "*.example.com")
	f.Add("[::1]:80", "[::1]")
	f.Add(":", "")
	f.Add("a.", "a")
	f.Fuzz(func(t *testing.T, authority, name string) {
		l := &mesh.Listener{Chains: []mesh.Chain{{Name: "named", ServerNames: []string{name}}, {Name: "any"}}}
		best := BestChain(l, []byte(authority), false)
		if best == nil {
			t.Fatal("a chain without names serves all")
		}
		if best.Name == "named" && name != "" && name != "*" {
			host := strings.ToLower(string(hostOf([]byte(authority))))
			suffix, wild := strings.CutPrefix(name, "*")
			if wild && !strings.HasSuffix(host, suffix) || !wild && host != name {
				t.Errorf("%q serves %q", name, authority)
			}
		}
	})
}
