package dns

import (
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestResolve finds the endpoints of names as a backend needs them.
func TestResolve(t *testing.T) {
	broken := false
	up := resolver(t, func(q *dns.Msg, _ string) *dns.Msg {
		name, kind := q.Question[0].Name, q.Question[0].Qtype
		switch {
		case broken:
			return reply(q, dns.RcodeServerFailure)
		case name == "www.example.com." && kind == dns.TypeA:
			return reply(q, dns.RcodeSuccess, "www.example.com. 70 IN CNAME edge.example.com.", "edge.example.com. 7 IN A 192.0.2.1", "edge.example.com. 9 IN A 192.0.2.2")
		case name == "six.example.com." && kind == dns.TypeAAAA:
			return reply(q, dns.RcodeSuccess, "six.example.com. 60 IN AAAA 2001:db8::1")
		case name == "evil.example.com." && kind == dns.TypeA:
			return reply(q, dns.RcodeSuccess, "evil.example.com. 60 IN A 127.0.0.1", "evil.example.com. 60 IN A 169.254.169.254")
		case name == "none.example.com.":
			return reply(q, dns.RcodeNameError)
		}
		return reply(q, dns.RcodeSuccess)
	})
	h := serve(t, up)
	for name, want := range map[string]struct {
		addrs []netip.Addr
		ttl   time.Duration
	}{
		"www.example.com":              {addrs("192.0.2.1", "192.0.2.2"), 7 * time.Second},
		"six.example.com":              {addrs("2001:db8::1"), time.Minute},
		"evil.example.com":             {nil, absentTTL},
		"none.example.com":             {nil, absentTTL},
		"ext.shop.svc.cluster.local":   {addrs("192.0.2.1", "192.0.2.2"), ttl * time.Second},
		"inner.shop.svc.cluster.local": {addrs("10.96.0.10"), ttl * time.Second},
	} {
		got, ttl, err := h.Resolve(t.Context(), name)
		if err != nil || len(got) != len(want.addrs) || ttl != want.ttl {
			t.Errorf("%s: %v %s %v, want %v", name, got, ttl, err, want)
			continue
		}
		for i := range got {
			if got[i] != want.addrs[i] {
				t.Errorf("%s: %v, want %v", name, got, want.addrs)
			}
		}
	}
	if _, _, err := h.Resolve(t.Context(), "circle.shop.svc.cluster.local"); err == nil {
		t.Error("a circle of aliases resolves")
	}
	broken = true
	if _, _, err := h.Resolve(t.Context(), "www.example.com"); err == nil {
		t.Error("SERVFAIL counts as an answer")
	}
}
