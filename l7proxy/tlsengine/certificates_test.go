package tlsengine

import (
	"crypto/tls"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/mesh"
)

func TestChainByServerName(t *testing.T) {
	c := NewCertificates()
	c.Apply(mesh.Delta{Upserts: []mesh.Resource{
		certificate(t, "ns/a", "a.test"),
		&mesh.Listener{Name: "l", Chains: []mesh.Chain{
			{Name: "exact", ServerNames: []string{"a.test"}, Certificates: []string{"ns/a"}},
			{Name: "wild", ServerNames: []string{"*.a.test", "b.test"}, Certificates: []string{"ns/none", "ns/a"}},
			{Name: "unknown", ServerNames: []string{"c.test"}, Certificates: []string{"ns/none"}},
			{Name: "plain", ServerNames: []string{"p.test"}},
		}},
		&mesh.Listener{Name: "all", Chains: []mesh.Chain{{Name: "all", Certificates: []string{"ns/a"}}}},
	}})
	for _, test := range []struct {
		listener, sni, chain string
		tls, ok              bool
	}{
		{"l", "a.test", "exact", true, true},
		{"l", "A.TEST.", "exact", true, true},
		{"l", "x.a.test", "wild", true, true},
		{"l", "x.y.a.test", "wild", true, true},
		{"l", ".a.test", "", false, false},
		{"l", "b.test", "wild", true, true},
		{"l", "xa.test", "", false, false},
		{"l", "", "", false, false},
		{"l", "c.test", "unknown", false, false},
		{"l", "p.test", "plain", false, true},
		{"all", "", "all", true, true},
		{"all", "x", "all", true, true},
		{"none", "a.test", "", false, false},
	} {
		cfg, chain, ok := c.Config(test.listener, test.sni)
		name := ""
		if chain != nil {
			name = chain.Name
		}
		if name != test.chain || ok != test.ok || (cfg != nil) != test.tls {
			t.Errorf("%s %q: chain %q, %v, settings %v", test.listener, test.sni, name, ok, cfg != nil)
		}
	}
	c.Apply(mesh.Delta{Removes: []mesh.Ref{{Kind: mesh.KindCertificate, Key: "ns/a"}}})
	if _, _, ok := c.Config("l", "a.test"); ok {
		t.Error("a chain without its certificate is served")
	}
	c.Apply(mesh.Delta{Removes: []mesh.Ref{{Kind: mesh.KindListener, Key: "l"}}})
	if _, chain, _ := c.Config("l", "p.test"); chain != nil {
		t.Error("a removed listener is served")
	}
}

// TestRotation changes the certificate below a listener that does not change.
func TestRotation(t *testing.T) {
	certs, client := setup(t)
	next := certificate(t, "ns/cert", "a.test")
	cfg, _, _ := certs.Config("l", "a.test")
	broken := &mesh.Certificate{Name: "ns/cert", ChainPEM: next.ChainPEM, KeyPEM: certificate(t, "", "x").KeyPEM}
	err := ValidateCertificate(broken)
	if err == nil || !strings.Contains(err.Error(), "ns/cert") || strings.Contains(err.Error(), "PRIVATE") {
		t.Fatalf("key of another certificate: %v", err)
	}
	certs.Apply(mesh.Delta{Upserts: []mesh.Resource{broken}})
	if certs.Refused()["ns/cert"] == nil {
		t.Error("the refused certificate does not show")
	}
	newPair(t, cfg, client).mustHandshake() // still the first

	certs.Apply(mesh.Delta{Upserts: []mesh.Resource{next}})
	if len(certs.Refused()) != 0 {
		t.Error("refused still shows")
	}
	client.RootCAs = pool(t, next)
	newPair(t, cfg, client).mustHandshake()
}

func TestCertificateOfTheName(t *testing.T) {
	a, b := certificate(t, "ns/a", "a.test"), certificate(t, "ns/b", "b.test")
	c := NewCertificates()
	c.Apply(mesh.Delta{Upserts: []mesh.Resource{a, b, &mesh.Listener{Name: "l", Chains: []mesh.Chain{
		{Certificates: []string{"ns/a", "ns/b"}},
	}}}})
	cfg, _, _ := c.Config("l", "b.test")
	for name, want := range map[string]string{"a.test": "a.test", "b.test": "b.test", "c.test": "a.test"} {
		p := newPair(t, cfg, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		p.mustHandshake()
		if got := p.client.ConnectionState().PeerCertificates[0].DNSNames[0]; got != want {
			t.Errorf("%s gets the certificate of %s", name, got)
		}
	}
}
