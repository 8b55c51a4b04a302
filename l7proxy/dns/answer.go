package dns

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"github.com/sluice-mesh/sluice/mesh"
)

const (
	// ttl of the answers, in seconds: what CoreDNS chose. A headless service's
	// endpoints go stale for as long.
	ttl = 5
	// schemaVersion of the Kubernetes DNS specification that is followed.
	schemaVersion = "1.1.0"
	// maxAliases bounds a chain of ExternalName services.
	maxAliases = 8
)

// answer is what the cluster's names have to say to a question.
type answer struct {
	rcode int
	rrs   []dns.RR
	extra []dns.RR
	// outside says that the question is none of the cluster's: ask upstream.
	outside bool
	// chase, if not empty, is the alias's target, which is for upstream to resolve.
	chase string
}

var nxdomain = answer{rcode: dns.RcodeNameError}

// zone answers questions below the cluster domain, and about the addresses of
// services.
type zone struct {
	server *Server
	name   string   // "cluster.local.", lower case
	labels []string // of name
}

// answer finds what a question wants. Owner names keep the question's case, which
// resolvers use against forged answers (draft-vixie-dnsext-dns0x20).
func (z *zone) answer(q dns.Question) answer {
	labels := dns.SplitDomainName(strings.ToLower(q.Name))
	below := len(labels) - len(z.labels)
	if below < 0 || !slices.Equal(labels[below:], z.labels) {
		if a, ok := parseReverse(labels); ok {
			return z.reverse(q, a)
		}
		return answer{outside: true}
	}
	labels = labels[:below]
	if below == 0 {
		switch q.Qtype {
		case dns.TypeSOA:
			return answer{rrs: []dns.RR{z.soa()}}
		case dns.TypeNS:
			return answer{rrs: []dns.RR{&dns.NS{Hdr: header(q.Name, dns.TypeNS), Ns: "ns.dns." + z.name}}}
		}
		return answer{}
	}
	top := labels[below-1]
	rest := labels[:below-1] // below the top label, most specific first
	switch top {
	case "dns-version":
		if len(rest) > 0 {
			return nxdomain
		}
		if q.Qtype == dns.TypeTXT {
			return answer{rrs: []dns.RR{&dns.TXT{Hdr: header(q.Name, dns.TypeTXT), Txt: []string{schemaVersion}}}}
		}
		return answer{}
	case "dns":
		if len(rest) == 0 || len(rest) == 1 && rest[0] == "ns" {
			return answer{}
		}
		return nxdomain
	case "svc":
		return z.svc(q, rest)
	case "pod":
		return z.pod(q, rest)
	}
	return nxdomain
}

// svc answers for the names below svc.<zone>.
func (z *zone) svc(q dns.Question, labels []string) answer {
	if len(labels) == 0 {
		return answer{}
	}
	n := len(labels) - 1
	namespace, labels := labels[n], labels[:n]
	if len(labels) == 0 {
		if z.server.index.hasNamespace(namespace) {
			return answer{}
		}
		return nxdomain
	}
	n--
	s := z.server.cfg.Store.Service(mesh.Name{Namespace: namespace, Name: labels[n]})
	if s == nil {
		return nxdomain
	}
	labels = labels[:n]
	if s.ExternalName != "" {
		if len(labels) > 0 {
			return nxdomain
		}
		return z.alias(q, dns.Fqdn(s.ExternalName))
	}
	switch {
	case len(labels) == 0:
		if !s.Headless {
			return answer{rrs: addressRecords(q, s.VIPs)}
		}
		return z.endpoints(q, s, "")
	case strings.HasPrefix(labels[len(labels)-1], "_"):
		return z.srv(q, s, labels)
	case len(labels) == 1 && s.Headless:
		return z.endpoints(q, s, labels[0])
	}
	return nxdomain
}

// endpoints answers for a headless service (empty label) or one name of its
// endpoints. Without any endpoint there is no such name (specification §2.4.1).
func (z *zone) endpoints(q dns.Question, s *mesh.Service, label string) answer {
	var addrs []netip.Addr
	for l, a := range endpoints(s) {
		if label == "" || l == label {
			addrs = append(addrs, a)
		}
	}
	if len(addrs) == 0 {
		return nxdomain
	}
	// Clients take the first; this spreads them.
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	return answer{rrs: addressRecords(q, addrs)}
}

// srv answers for [_port] _proto below a service.
func (z *zone) srv(q dns.Question, s *mesh.Service, labels []string) answer {
	var protocol mesh.Protocol
	switch labels[len(labels)-1] {
	case "_tcp":
		protocol = mesh.ProtocolTCP
	case "_udp":
		protocol = mesh.ProtocolUDP
	}
	if protocol == 0 || len(labels) > 2 {
		return nxdomain
	}
	var a answer
	found := false
	for i := range s.Ports {
		p := &s.Ports[i]
		if p.Protocol != protocol || p.Name == "" || s.Headless && len(p.Endpoints) == 0 {
			continue
		}
		if len(labels) == 1 {
			return answer{} // the name exists because those below it do
		}
		if "_"+strings.ToLower(p.Name) != labels[0] {
			continue
		}
		found = true
		if q.Qtype != dns.TypeSRV {
			continue
		}
		target := s.Name.Name + "." + s.Name.Namespace + ".svc." + z.name
		if !s.Headless {
			a.rrs = append(a.rrs, srvRecord(q, p.Port, target))
			a.extra = append(a.extra, glue(target, s.VIPs)...)
			continue
		}
		for j := range p.Endpoints {
			e := &p.Endpoints[j]
			name := endpointLabel(e) + "." + target
			a.rrs = append(a.rrs, srvRecord(q, e.AddrPort.Port(), name))
			a.extra = append(a.extra, glue(name, []netip.Addr{e.AddrPort.Addr().Unmap()})...)
		}
	}
	if !found {
		return nxdomain
	}
	a.rrs, a.extra = unique(a.rrs), unique(a.extra)
	return a
}

// alias answers with a CNAME and with what its target has, when that is of the
// cluster too.
func (z *zone) alias(q dns.Question, target string) answer {
	if _, ok := dns.IsDomainName(target); !ok {
		return answer{rcode: dns.RcodeServerFailure}
	}
	a := answer{rrs: []dns.RR{&dns.CNAME{Hdr: header(q.Name, dns.TypeCNAME), Target: target}}}
	if q.Qtype == dns.TypeCNAME || q.Qtype == dns.TypeANY {
		return a
	}
	for range maxAliases {
		// One step at a time, so that a circle ends.
		next := z.step(dns.Question{Name: target, Qtype: q.Qtype, Qclass: q.Qclass})
		if next.outside {
			a.chase = target
			return a
		}
		a.rcode = next.rcode
		a.rrs = append(a.rrs, next.rrs...)
		if next.chase == "" {
			return a
		}
		target = next.chase
	}
	return answer{rcode: dns.RcodeServerFailure}
}

// step is answer, but for an alias it returns the CNAME alone and its target.
func (z *zone) step(q dns.Question) answer {
	labels := dns.SplitDomainName(strings.ToLower(q.Name))
	if n := len(labels) - len(z.labels); n == 3 && labels[2] == "svc" && slices.Equal(labels[n:], z.labels) {
		if s := z.server.cfg.Store.Service(mesh.Name{Namespace: labels[1], Name: labels[0]}); s != nil && s.ExternalName != "" {
			target := dns.Fqdn(s.ExternalName)
			if _, ok := dns.IsDomainName(target); !ok {
				return answer{rcode: dns.RcodeServerFailure}
			}
			return answer{rrs: []dns.RR{&dns.CNAME{Hdr: header(q.Name, dns.TypeCNAME), Target: target}}, chase: target}
		}
	}
	return z.answer(q)
}

// pod answers for a-b-c-d.<ns>.pod.<zone>, which names an address whether or not a
// pod has it (version 1.0 of the specification, §2.6; 1.1 leaves it out).
func (z *zone) pod(q dns.Question, labels []string) answer {
	if len(labels) == 0 {
		return answer{}
	}
	n := len(labels) - 1
	if n > 1 || !z.server.index.hasNamespace(labels[n]) {
		return nxdomain
	}
	if n == 0 {
		return answer{}
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(labels[0], "-", "."))
	if err != nil {
		if a, err = netip.ParseAddr(strings.ReplaceAll(labels[0], "-", ":")); err != nil || a.Is4In6() {
			return nxdomain
		}
	}
	return answer{rrs: addressRecords(q, []netip.Addr{a})}
}

// reverse answers for the name of an address.
func (z *zone) reverse(q dns.Question, a netip.Addr) answer {
	names := z.server.index.servicesOf(a)
	if len(names) == 0 {
		if z.server.cfg.Store.WorkloadByAddress(a) != nil {
			return nxdomain // the cluster's address is nobody else's to name
		}
		return answer{outside: true}
	}
	if q.Qtype != dns.TypePTR {
		return answer{}
	}
	var out answer
	ptr := func(target string) {
		out.rrs = append(out.rrs, &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: target})
	}
	for _, name := range names {
		s := z.server.cfg.Store.Service(name)
		if s == nil {
			continue
		}
		service := name.Name + "." + name.Namespace + ".svc." + z.name
		for _, vip := range s.VIPs {
			if vip == a {
				ptr(service)
			}
		}
		if s.Headless {
			for label, b := range endpoints(s) {
				if a == b {
					ptr(label + "." + service)
				}
			}
		}
	}
	if len(out.rrs) == 0 {
		return nxdomain
	}
	return out
}

func (z *zone) soa() *dns.SOA {
	h := header(z.name, dns.TypeSOA)
	return &dns.SOA{
		Hdr: h, Ns: "ns.dns." + z.name, Mbox: "hostmaster." + z.name,
		Serial: z.server.index.serial.Load(), Refresh: 7200, Retry: 1800, Expire: 86400,
		Minttl: ttl, // of negative answers (RFC 2308 §4)
	}
}

func header(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
}

// addressRecords returns what of the addresses the question's type wants; nothing for
// another type, or another family.
func addressRecords(q dns.Question, addrs []netip.Addr) (out []dns.RR) {
	if q.Qtype == dns.TypeA || q.Qtype == dns.TypeAAAA {
		for _, rr := range glue(q.Name, addrs) {
			if rr.Header().Rrtype == q.Qtype {
				out = append(out, rr)
			}
		}
	}
	return out
}

func glue(name string, addrs []netip.Addr) (out []dns.RR) {
	for _, a := range addrs {
		if a.Is4() {
			out = append(out, &dns.A{Hdr: header(name, dns.TypeA), A: net.IP(a.AsSlice())})
		} else {
			out = append(out, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: net.IP(a.WithZone("").AsSlice())})
		}
	}
	return out
}

func srvRecord(q dns.Question, port uint16, target string) dns.RR {
	return &dns.SRV{Hdr: header(q.Name, dns.TypeSRV), Priority: 0, Weight: 100, Port: port, Target: target}
}

// unique drops repeated records, such as the address of two ports of one service.
func unique(rrs []dns.RR) []dns.RR {
	if len(rrs) < 2 {
		return rrs
	}
	return dns.Dedup(rrs, nil)
}

// parseReverse returns the address that a full name below in-addr.arpa or ip6.arpa
// stands for (RFC 1035 §3.5, RFC 3596 §2.5).
func parseReverse(labels []string) (netip.Addr, bool) {
	n := len(labels)
	if n < 2 || labels[n-1] != "arpa" {
		return netip.Addr{}, false
	}
	switch {
	case n == 6 && labels[4] == "in-addr":
		var b [4]byte
		for i := range 4 {
			v, err := strconv.ParseUint(labels[3-i], 10, 8)
			if err != nil || len(labels[3-i]) > 1 && labels[3-i][0] == '0' {
				return netip.Addr{}, false
			}
			b[i] = byte(v)
		}
		return netip.AddrFrom4(b), true
	case n == 34 && labels[32] == "ip6":
		var b [16]byte
		for i := range 32 {
			v, err := strconv.ParseUint(labels[31-i], 16, 4)
			if err != nil || len(labels[31-i]) != 1 {
				return netip.Addr{}, false
			}
			b[i/2] |= byte(v) << (4 * (1 - i%2))
		}
		return netip.AddrFrom16(b).Unmap(), true
	}
	return netip.Addr{}, false
}
